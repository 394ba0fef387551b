"""Analytic costs against counted ones, and against the published figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kairos_env.world_model.attention.patterns import ClipPattern
from kairos_env.world_model.published import memory as cost
from kairos_env.world_model.published.releases import get_release, miniature
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context


def counted_products(function) -> int:  # type: ignore[no-untyped-def]
    """Operations of products with weights that torch really runs."""
    with FlopCounterMode(display=False) as counter:
        function()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if operation in (torch.ops.aten.addmm, torch.ops.aten.mm))


@pytest.mark.parametrize("release", ["4b", "4b-libero"])
def test_products_are_what_torch_counts(release: str) -> None:
    config = miniature(release)
    model = WorldActionModel.from_release(config)
    frames, tokens, context = 5, 6, Context(torch.randn(1, 7, config.text_dim))
    read = model.read_context(context, action=False)
    latents = torch.randn(1, frames, 16, 4, 6)
    want = cost.video_pass(config, frames, tokens, 7).linear
    want -= 2 * 2 * 4 * frames * tokens * (2 * 32 + 64)  # short convolutions of 2 delta layers: no products to torch
    assert counted_products(lambda: model.velocity(latents, torch.ones(1, frames), read)) == want
    want = cost.context_reading(config, "video", 7).linear
    assert counted_products(lambda: model.read_context(context, action=False)) == want


def test_action_products_are_what_torch_counts() -> None:
    config = miniature("4b-libero")
    model = WorldActionModel.from_release(config)
    context = Context(torch.randn(1, 7, config.text_dim))
    cache = model.prefill(torch.randn(1, 1, 16, 4, 6), context)
    actions = torch.randn(1, 32, 7)
    read = model.read_context(context, video=False)
    counted = counted_products(lambda: model.action_velocity(actions, torch.ones(1), read, cache))
    assert counted == cost.action_pass(config, 32, 6, 7).linear
    want = cost.context_reading(config, "action", 7).linear
    assert counted_products(lambda: model.read_context(context, video=False)) == want


@pytest.mark.parametrize("kind", ["swa", "dswa", "fa"])
@pytest.mark.parametrize("frames", [1, 3, 7, 8, 21])
@pytest.mark.parametrize("release", ["4b", "4b-libero"])
def test_visible_pairs_are_those_of_the_pattern(release: str, kind: str, frames: int) -> None:
    config = miniature(release)
    tokens = 3
    pattern = ClipPattern(kind, frames, tokens, unit=config.window_unit, pad_dilated=False)
    index = torch.arange(frames * tokens)
    want = int(pattern.visible(index[:, None], index[None, :]).sum())
    assert cost.visible_pairs(config, kind, frames, tokens) == want


def test_published_sizes() -> None:
    """The hand calculations of the published system: 392 and 480 tokens, 3.2 TFLOP, 1.93 GB a step."""
    libero, robotwin = get_release("4b-libero"), get_release("4b-robotwin")
    assert cost.grid(libero, 1, 224, 448) == (1, 392)
    assert cost.grid(robotwin, 1, 384, 320) == (1, 480)
    assert cost.grid(get_release("4b-720p"), 81, 704, 1280) == (21, 3520)
    whole = cost.video_pass(libero, 1, 392) + cost.context_reading(libero, "video")
    assert whole.operations == pytest.approx(3.2e12, rel=0.1)
    whole = cost.action_pass(libero, 32, 392) + cost.context_reading(libero, "action")
    assert whole.bytes == pytest.approx(1.93e9, rel=0.1)
    action_only = cost.action_only(libero, 224, 448, 10, 32)
    assert cost.joint(libero, 9, 224, 448, 10, 32).operations > 10 * action_only.operations


def test_the_floor_is_the_slower_of_computing_and_reading() -> None:
    both = cost.Cost(linear=2e12, bytes=1e9)
    assert both.floor(1e12, 1e12) == 2.0
    assert both.floor(1e15, 1e9) == 1.0


MEASURE = """
import dataclasses, torch
from kairos_env.world_model.published import memory as cost
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.world_action import WorldActionModel

def status(key):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

config = miniature("4b-robot", layers=4)
video = dataclasses.replace(config.video, dim=128, heads=2, head_dim=64, ffn_dim=512, delta_heads=2, delta_head_dim=64)
config = dataclasses.replace(config, video=video)
model = WorldActionModel.from_release(config)
context = Context(torch.randn(1, 8, config.text_dim))
model.velocity(torch.randn(1, 1, 16, 32, 40), torch.ones(1, 1), context)
before = status("VmRSS")
model.velocity(torch.randn(1, 41, 16, 32, 40), torch.ones(1, 41), context)
weights = 4 * sum(cost.weight_count(config))
print(status("VmHWM") - before, cost.estimate_memory(config, 161, 256, 320, torch.float32) - weights)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux's /proc")
def test_estimated_memory_is_about_the_measured_peak() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # give freed memory back
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    measured, estimated = map(int, done.stdout.split())
    assert 0.6 * measured < estimated < 1.8 * measured


@pytest.mark.parametrize("verb", ["act", "joint", "imagine"])
def test_a_mode_that_runs_out_of_memory_says_what_to_lower(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = WorldActionModel.from_release(miniature("4b-libero", layers=4))
    observed, actions = torch.zeros(2, 1, 16, 4, 6), torch.zeros(2, 6, 7)
    context = Context(torch.zeros(2, 5, 48))

    def passes(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    for name in ("prefill", "joint_velocity"):
        monkeypatch.setattr(model, name, passes)
    frames = "1" if verb == "act" else "9"
    with pytest.raises(
        cost.OutOfMemory,
        match=rf"denoising {frames} frames of 32 x 48, batch 2, in float32 takes about 0.0 GiB.*or the batch.*bfloat16",
    ):
        getattr(model, verb)(*(observed, actions, context) if verb == "imagine" else (observed, context))
