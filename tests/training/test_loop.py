"""The optimisation loop: nothing that is not finite is ever learned or kept, and it stops and goes on when asked."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kairos_env.runs import read_jsonl
from kairos_env.training.log import TIMES, TrainingLog
from kairos_env.training.loop import (
    Hook,
    LoopConfig,
    TrainingStopped,
    learning_rate,
    optimise,
)

CONFIG = LoopConfig(steps=6, lr=0.1, warmup=2, log_every=1, checkpoint_every=2)


def optimised(
    folder: Path, config: LoopConfig = CONFIG, at: int = -1, do: int = 0, hooks: Sequence[Hook] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """A stage whose loss falls; at one step the process sends itself a signal. Also what it said."""
    torch.manual_seed(0)
    layer, said = nn.Linear(2, 1), []

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if step == at:
            os.kill(os.getpid(), do)
        value = (layer(torch.rand(4, 2, generator=generator)) - 1).square().mean()
        return value, {"twice": 2 * value.detach()}

    return optimise("it", layer, loss, config, TrainingLog(folder), 0, "fp32", hooks, said.append), said


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken(broken: str, tmp_path: Path) -> None:
    layer = nn.Linear(2, 1)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        value = layer(torch.rand(4, 2, generator=generator)).square().mean()
        if step == 3:  # the gradient of a square root at 0 is infinite, times 0 not a number
            value = value * torch.nan if broken == "loss" else value + (layer.weight.sum() * 0).sqrt()
        return value, {}

    with pytest.raises(FloatingPointError, match=r"at step 3; .* is intact\..* --it\.lr 0\.05 --change"):
        optimise("it", layer, loss, CONFIG, TrainingLog(tmp_path), 0, "fp32")
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    assert saved["step"] == 2 and all(p.isfinite().all() for p in layer.parameters())
    assert (tmp_path / "it.jsonl").read_text().count("\n") == 3  # of the steps that were taken


def test_what_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """Loss and gradient may be finite and the step lead beyond the largest number."""
    optimised(tmp_path)
    far = dataclasses.replace(CONFIG, steps=8, lr=1e30, weight_decay=1e30, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=r"not finite.* is intact\."):
        optimised(tmp_path, far)
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    assert all(value.isfinite().all() for part in ("parameters", "ema") for value in saved[part].values())


def test_the_advice_after_a_bad_step_can_be_followed(tmp_path: Path) -> None:
    """The same command fails at the same step, whatever the learning rate; leaving that step out helps."""
    layer = nn.Linear(2, 1)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        value = layer(torch.rand(4, 2, generator=generator)).square().mean()
        return value * (torch.nan if step in (2, 4) else 1), {}

    def go_on(config: LoopConfig) -> None:
        optimise("it", layer, loss, config, TrainingLog(tmp_path), 0, "fp32")

    with pytest.raises(FloatingPointError, match=r"or without this step: --it\.skip 2 --change"):
        go_on(CONFIG)
    with pytest.raises(
        FloatingPointError, match=r"first one after .*--it\.skip 2 --change\. If that fails too, delete"
    ):
        go_on(dataclasses.replace(CONFIG, lr=0.01))
    with pytest.raises(FloatingPointError, match=r"at step 4; .* --it\.skip 2,4 --change"):
        go_on(dataclasses.replace(CONFIG, skip=(2,)))
    go_on(dataclasses.replace(CONFIG, skip=(2, 4)))
    assert [row["step"] for row in read_jsonl(tmp_path / "it.jsonl")] == [0, 1, 3, 5]


@pytest.mark.parametrize(("content", "what"), [(b"", "empty"), (b"abc", "damaged"), (b"PK\x03\x04 torn", "damaged")])
def test_a_damaged_checkpoint_is_named(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "it.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"it\.pt is {what}; delete it"):
        optimised(tmp_path)


def test_a_checkpoint_whose_content_differs_from_its_checksum_is_refused(tmp_path: Path) -> None:
    optimised(tmp_path)
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    saved["ema"]["weight"][0, 0] += 1e-6
    torch.save(saved, tmp_path / "it.pt")
    with pytest.raises(ValueError, match=r"it\.pt is damaged.*checksum differs"):
        optimised(tmp_path)


def test_a_checkpoint_of_an_earlier_version_has_no_checksum_and_is_gone_on_from(tmp_path: Path) -> None:
    optimised(tmp_path)
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    torch.save({key: value for key, value in saved.items() if key != "sha256"}, tmp_path / "it.pt")
    longer = dataclasses.replace(CONFIG, steps=8)
    _, said = optimised(tmp_path, longer)
    assert len(said) == 1 and "without a checksum" in said[0]
    assert optimised(tmp_path, longer)[1] == []


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    optimised(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)of another model.*misshapen weight"):
        optimise("it", nn.Linear(3, 1), lambda step, g: None, CONFIG, TrainingLog(tmp_path), 0, "fp32")  # type: ignore


@pytest.mark.parametrize(
    "wrong", [{"warmup": -1}, {"ema": 2.0}, {"clip": 0.0}, {"weight_decay": float("nan")}, {"steps": -3}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        dataclasses.replace(CONFIG, **wrong)  # type: ignore[arg-type]


def rows(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(folder / "it.jsonl")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_a_checkpoint_from_which_all_goes_on(number: int, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    hooks: list[Hook] = [(3, lambda step, averaged: {"weight": float(averaged["weight"].sum())})]
    calm, _ = optimised(whole, hooks=hooks)
    before = signal.getsignal(number)
    with pytest.raises(TrainingStopped, match="stopped at step 3 of it; the same command goes on"):
        optimised(stopped, at=2, do=number, hooks=hooks)
    assert signal.getsignal(number) == before
    assert torch.load(stopped / "it.pt", weights_only=True)["step"] == 3
    again, _ = optimised(stopped, hooks=hooks)
    assert rows(stopped) == rows(whole) and len(rows(whole)) == 6 + 2
    torch.testing.assert_close(again, calm, atol=0, rtol=0)


def test_time_adds_up_over_launches_and_a_rate_is_logged(tmp_path: Path) -> None:
    for steps in (4, 8):
        optimised(tmp_path, dataclasses.replace(CONFIG, steps=steps))
    found = read_jsonl(tmp_path / "it.jsonl")
    assert all(row["steps_per_second"] > 0 for row in found)
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    assert saved["seconds"] > 0 and saved["cpu_seconds"] >= max(row["cpu_seconds"] for row in found) - 0.1
    spent = dict(saved, seconds=100.0, cpu_seconds=50.0)
    del spent["sha256"]
    torch.save(spent, tmp_path / "it.pt")
    optimised(tmp_path, dataclasses.replace(CONFIG, steps=9))
    last = read_jsonl(tmp_path / "it.jsonl")[-1]
    assert 100 <= last["seconds"] < 160 and 50 <= last["cpu_seconds"] < 80


def test_a_changed_weight_decay_counts_after_a_checkpoint(tmp_path: Path) -> None:
    optimised(tmp_path)
    optimised(tmp_path, dataclasses.replace(CONFIG, steps=7, weight_decay=9.0))
    groups = torch.load(tmp_path / "it.pt", weights_only=True)["optimiser"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [9.0, 0.0]


def test_says_how_long_the_rest_will_take(tmp_path: Path) -> None:
    _, (sentence,) = optimised(tmp_path, dataclasses.replace(CONFIG, steps=30))
    assert re.match(r"it: \d+\.\d\d s and .* CPU-seconds a step; 10 steps are left.* until \w{3} \d\d:\d\d", sentence)


def test_the_learning_rate_rises_and_ends_at_a_twentieth() -> None:
    rates = [learning_rate(CONFIG, step) for step in range(CONFIG.steps + 1)]
    assert rates[0] == 0.05 and max(rates) == rates[1] == 0.1 and rates[-1] == pytest.approx(0.005)
