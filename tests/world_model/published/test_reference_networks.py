"""Single passes of the port against the published code's own: video, prefill, actions, both; and the masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from published_reference import (
    DTYPES,
    LAYERS,
    arrays,
    cases,
    check,
    check_velocity,
    folders,
    levels,
    model,
    needs_reference,
    unpacked,
)
from torch import Tensor

from kairos_env.world_model.attention.patterns import ClipPattern
from kairos_env.world_model.attention.whole_clip import WholeClip
from kairos_env.world_model.config import VideoConfig
from kairos_env.world_model.text.context import Context

pytestmark = needs_reference
__all__ = ["folders"]

ROPE16 = 3e-4  # v1 rotates in float16
VIDEO = [
    (release, file, "", case)
    for release, file in (("4b-robot", "video_v1"), ("4b-3.1-robot", "video_v31"))
    for case in cases(file, "velocity")
] + [
    (f"4b-{robot}", robot, "video/clip", case.removeprefix("video/clip/"))
    for robot in ("libero", "robotwin")
    for case in cases(robot, "velocity")
    if case.startswith("video/")
]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize(("release", "file", "under", "case"), VIDEO)
def test_velocity_of_a_clip(
    release: str, file: str, under: str, case: str, dtype: torch.dtype, folders: Mapping[str, Path]
) -> None:
    data = arrays(file)
    clip, _, what = f"{under}/{case}".strip("/").rpartition("/")
    history = {"free": 0, "first_frame": 1}.get(what)
    history = int(what.removeprefix("history")) if history is None else history
    latents = data[f"{clip}/latents"]
    sigma = levels(data.number(f"{clip}/timestep"), *latents.shape[:2], history)
    context = data.context(f"{clip}/context", f"{clip}/mask")
    found = model(folders, release, dtype).velocity(latents, sigma, context, history)
    suffix = "" if dtype == torch.float32 else "_bf16"
    check_velocity(found, data[f"{clip}/{what}/velocity{suffix}"], dtype)
    if not suffix and f"{clip}/{what}/velocity_rope16" in data:
        check(found, data[f"{clip}/{what}/velocity_rope16"], ROPE16)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("name", ["prefill", "prefill_three_frames"])
@pytest.mark.parametrize("robot", ["libero", "robotwin"])
def test_observed_frames_and_the_actions_over_them(
    robot: str, name: str, dtype: torch.dtype, folders: Mapping[str, Path]
) -> None:
    data, port = arrays(robot), model(folders, f"4b-{robot}", dtype)
    given = data.context(f"{name}/context", f"{name}/mask")
    context = port.condition(given, data[f"{name}/proprio"], data[f"{name}/proprio_mask"])
    memory = port.prefill(data[f"{name}/latents"], context)
    if dtype == torch.float32:
        check(context.tokens, data[f"{name}/context_with_proprio"])
        assert context.mask is not None and torch.equal(context.mask, data[f"{name}/mask_with_proprio"])
        kept = [i for i in range(LAYERS) if f"{name}/layer{i}/key" in data]
        assert kept == [i for i, layer in enumerate(memory) if layer is not None]
        for i in kept:
            layer = memory[i]
            assert layer is not None
            check(layer.keys[0].flatten(2), data[f"{name}/layer{i}/key"])
            check(layer.values[0].flatten(2), data[f"{name}/layer{i}/value"])
    suffix = "" if dtype == torch.float32 else "_bf16"
    for step in range(3):
        actions = data[f"{name}/action_step{step}/actions"]
        sigma = torch.full(actions.shape[:1], data.number(f"{name}/action_step{step}/timestep") / 1000)
        found = port.action_velocity(actions, sigma, context, memory)
        check_velocity(found, data[f"{name}/action_step{step}/velocity{suffix}"], dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("name", ["joint_short", "joint_long"])
@pytest.mark.parametrize("robot", ["libero", "robotwin"])
def test_video_and_actions_together(robot: str, name: str, dtype: torch.dtype, folders: Mapping[str, Path]) -> None:
    data, port = arrays(robot), model(folders, f"4b-{robot}", dtype)
    latents, actions = data[f"{name}/latents"], data[f"{name}/actions"]
    history = data.number(f"{name}/history")
    sigma = levels(data.number(f"{name}/timestep"), *latents.shape[:2], history)
    level = torch.full(actions.shape[:1], data.number(f"{name}/timestep_actions") / 1000)
    context = data.context(f"{name}/context", f"{name}/mask")
    suffix = "" if dtype == torch.float32 else "_bf16"
    found = port.joint_velocity(latents, sigma, actions, level, context, history)
    for what, value in zip(("velocity", "action_velocity"), found, strict=True):
        check_velocity(value, data[f"{name}/{what}{suffix}"], dtype)


# who sees whom --------------------------------------------------------------------------------------------------------


def visible(pattern: ClipPattern) -> Tensor:
    index = torch.arange(pattern.video + pattern.actions)
    return pattern.visible(index[:, None], index[None])


def test_masks_of_every_layer() -> None:
    for i, row in enumerate(arrays("masks").array("kairos/configurations").tolist()):
        kind, frames, tokens, actions, history, restrict, window, dilation, what = row
        seen = 0 if what == 1 else actions
        shape = ("fa", "swa", "dswa")[kind], frames, tokens, seen, window, dilation
        pattern = ClipPattern(*shape, "frame", history, bool(restrict))
        found = visible(pattern)
        assert torch.equal(found[-actions:] if what == 2 else found, unpacked("masks", f"kairos/{i:02d}")), row
    assert i == 38


FASTWAM = cases("masks", "uncond/bits")


@pytest.mark.parametrize("name", FASTWAM)
def test_masks_of_fastwam(name: str) -> None:
    sizes = name.split("/")[1].replace("frames", "").replace("tokens", "").replace("actions", "").split("_")
    frames, tokens, actions = map(int, sizes)

    def mask(**seen: bool) -> Tensor:
        return visible(WholeClip(VideoConfig(), 1, True, **seen).pattern("fa", frames, tokens, actions))

    assert torch.equal(mask(), unpacked("masks", f"{name}/uncond"))
    assert torch.equal(mask(actions_see_future=True), unpacked("masks", f"{name}/joint"))
    assert torch.equal(mask(actions_see_future=True), unpacked("masks", f"{name}/idm_inference"))


def test_inverse_mode_is_fastwams_of_inverse_dynamics(folders: Mapping[str, Path]) -> None:
    """Actions over remembered clean frames are the joint pass in which the actions see them all."""
    data, port = arrays("libero"), model(folders, "4b-libero")
    video, context = data["joint_long/latents"][:1, :5], Context(data["joint_long/context"][:1])
    found = port.infer_actions(video, context, steps=4, horizon=6, seeds=3)
    actions, sigmas = port.action_noise(1, 6, 3), port.action_levels(4)
    for now, then in zip(sigmas, sigmas[1:]):
        level, clean = torch.tensor([now]), torch.zeros(1, 5)
        direction = port.joint_velocity(video, clean, actions, level, context, 1, actions_see_future=True)[1]
        actions = actions + (then - now) * direction
    check(found, actions)
    assert (found - port.act(video, context, 4, 6, 3)).abs().max() > 1e-3  # every frame a history sees the others
