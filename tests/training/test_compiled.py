"""Compiled training passes: the same gradients, and no kernel of a killed compilation is ever loaded."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from moving_square import SPEC, config, moving_square

from kairos_env.runs import read_jsonl
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training import run as training_run
from kairos_env.training.batches import Clips
from kairos_env.training.compiled import compiled_passes
from kairos_env.training.launch import LaunchConfig
from kairos_env.training.losses import LossConfig, world_model_loss
from kairos_env.training.run import one_pass_config, train
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel

TASK = {"push": TASKS["push"]}
GRADIENT_ERROR = 1e-4  # of the largest entry of a parameter's gradient, float32


def gradients(model: WorldModel, clips: Clips) -> dict[str, torch.Tensor]:
    """Of one loss, the same clips and noise each time."""
    model.train().zero_grad()
    loss = LossConfig(frames=6)
    batch = clips.sample(2, loss.frames + model.chunk_length, torch.Generator().manual_seed(1))
    value, _ = world_model_loss(model, batch, loss, torch.Generator().manual_seed(2), horizon=3)
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compared(folder: Path, backend: str) -> float:
    """The largest relative difference of a gradient, compiled and plain."""
    torch.manual_seed(0)
    model = WorldModel(one_pass_config(get_preset("debug"), ()), SPEC, TASK)
    model.tokenizer.requires_grad_(False)
    with torch.no_grad():  # gates and outputs begin at zero, behind which nothing would be compared
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    clips = Clips(model, [moving_square(i) for i in range(3)])
    plain = gradients(model, clips)
    with compiled_passes(model, folder, backend):
        found = gradients(model, clips)
    assert found.keys() == plain.keys() and len(found) > 50
    return max(float((found[k] - g).abs().max() / g.abs().max().clamp_min(1e-6)) for k, g in plain.items())


def test_traced_passes_have_the_same_gradients(tmp_path: Path) -> None:
    assert compared(tmp_path, "eager") < GRADIENT_ERROR


@pytest.mark.slow
def test_compiled_passes_have_the_same_gradients(tmp_path: Path) -> None:
    assert compared(tmp_path, "inductor") < GRADIENT_ERROR
    assert any((tmp_path / "compiled").rglob("*.so"))


def test_kernels_of_a_killed_launch_are_thrown_away_and_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    model = WorldModel.from_preset("debug", SPEC, TASK)
    plain, kernel = model.mixture.frames, tmp_path / "compiled" / "kernel.so"
    with compiled_passes(model, tmp_path):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(kernel.parent)
        kernel.touch()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine" and model.mixture.frames == plain
    with compiled_passes(model, tmp_path):
        assert kernel.exists()
    (kernel.parent / "in_use").touch()  # as a kill leaves it
    with compiled_passes(model, tmp_path):
        assert not kernel.exists()


def test_a_run_with_compiled_passes_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "compiled_passes", partial(compiled_passes, backend="eager"))
    losses = []
    for compile in (False, True):
        wanted = config(tmp_path / str(compile), 3)
        train(wanted, [moving_square(i) for i in range(12)], SPEC, TASK, launch=LaunchConfig(compile=compile))
        losses.append([row["loss"] for row in read_jsonl(tmp_path / str(compile) / "model.jsonl") if "loss" in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and len(losses[0]) == 3
    assert not (tmp_path / "True" / "compiled" / "in_use").exists()
