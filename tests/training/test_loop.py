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


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04 torn"])
def test_a_damaged_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "it.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"it\.pt is damaged; delete it"):
        optimised(tmp_path)


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
