"""The optimisation loop: nothing that is not finite is ever learned or kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kairos_env.training.loop import LoopConfig, drop_rows_from, learning_rate, optimise

CONFIG = LoopConfig(steps=6, lr=0.1, warmup=2, log_every=1, checkpoint_every=2)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken(broken: str, tmp_path: Path) -> None:
    layer = nn.Linear(2, 1)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        value = layer(torch.rand(4, 2, generator=generator)).square().mean()
        if step == 3:  # the gradient of a square root at 0 is infinite, times 0 not a number
            value = value * torch.nan if broken == "loss" else value + (layer.weight.sum() * 0).sqrt()
        return value, {}

    with pytest.raises(FloatingPointError, match=r"at step 3; the last checkpoint in .* is intact\. Lower"):
        optimise("it", layer, loss, CONFIG, tmp_path, 0, "fp32")
    saved = torch.load(tmp_path / "it.pt", weights_only=True)
    assert saved["step"] == 2 and all(p.isfinite().all() for p in layer.parameters())
    assert (tmp_path / "it.jsonl").read_text().count("\n") == 3  # of the steps that were taken


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04 torn"])
def test_a_damaged_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "it.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"it\.pt is damaged; delete it"):
        optimise("it", nn.Linear(2, 1), lambda step, generator: (torch.zeros(()), {}), CONFIG, tmp_path, 0, "fp32")


def test_rows_that_come_again_and_a_torn_one_are_dropped(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"step": 0, "loss": 1.5}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    drop_rows_from(rows, 2)
    assert rows.read_text() == '{"step": 0, "loss": 1.5}\n'


def test_the_learning_rate_rises_and_ends_at_a_twentieth() -> None:
    rates = [learning_rate(CONFIG, step) for step in range(CONFIG.steps + 1)]
    assert rates[0] == 0.05 and max(rates) == rates[1] == 0.1 and rates[-1] == pytest.approx(0.005)
