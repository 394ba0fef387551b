"""Whole runs of the port against the published code's own: clips, distilled clips, chunks, and the loops alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_reference import (
    DTYPES,
    FLOAT32,
    arrays,
    cases,
    check,
    check_velocity,
    folders,
    model,
    needs_reference,
)
from torch import Tensor

from kairos_env.world_model.flow import (
    distilled_schedule,
    draw_video_noise,
    schedule,
    shape_aware_shift,
    timestep_embedding,
)
from kairos_env.world_model.published.generation import GeneratedClip
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.sampling import along, renoise, sample_video

pytestmark = needs_reference
__all__ = ["folders"]


@dataclasses.dataclass
class Made:
    """A clip, and the latents that it was decoded from."""

    clip: GeneratedClip
    latents: Tensor
    port: WorldActionModel


def make(
    folders: Mapping[str, Path],
    release: str,
    file: str,
    name: str,
    dtype: torch.dtype = torch.float32,
    observed: Tensor | None = None,
    **options: Any,
) -> Made:
    """`generate` as a user calls it.

    Args:
        observed: the first frame's latent, where it should not be encoded here.
    """
    data = arrays(file, name)
    guidance = data.number("guidance")
    contexts = {"": data["context"], "prompt": data["context"]}
    if "negative_context" in data:
        contexts["negative"] = data["negative_context"]
    port = model(folders, release, dtype, contexts)
    caught: list[Tensor] = []
    decode = port.decode

    def catch(latents: Tensor, tiled: bool | None = None) -> Any:
        caught.append(latents)
        return decode(latents, tiled) if "pixels" in data else np.zeros((1, 1, 8, 8, 3), np.uint8)

    port.decode = catch  # type: ignore[method-assign]
    if observed is not None:
        port.encode = lambda video, tiled=None: observed.to(dtype)  # type: ignore[method-assign]
    frames, height, width = data.array("frames_height_width").tolist()
    pictured = any(key.startswith(f"{name}/image") for key in data.raw)
    clip = port.generate(
        "" if name == "i2v" else "prompt",
        data.pictures("image") if pictured else None,
        negative_prompt="negative" if guidance != 1 else "",
        prompt_prefix="",
        frames=frames,
        height=height,
        width=width,
        steps=data.number("steps"),
        guidance=guidance,
        seed=data.number("seed"),
        teacache=data.number("teacache") if "teacache" in data else 0.0,
        progress=False,
        **options,
    )
    port.decode = decode  # type: ignore[method-assign]
    return Made(clip, caught[0], port)


CLIPS = [
    (release, file, name)
    for release, file in (("4b-robot", "sampler_v1"), ("4b-3.1-robot", "sampler_v31"))
    for name in cases(file, "latents")
]


@pytest.mark.parametrize(("release", "file", "name"), CLIPS)
def test_clip(release: str, file: str, name: str, folders: Mapping[str, Path]) -> None:
    data, made = arrays(file, name), make(folders, release, file, name)
    check(made.latents, data["latents"])
    assert made.clip.settings.tiled
    if "observed" in data:
        check(made.port.encode(data.pictures("image")[None]), data["observed"])
    if "pixels" in data:  # what lies on the edge of a level may fall to either side
        difference = np.abs(made.clip.frames.astype(int) - data.array("pixels"))
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    if "computed" in data:
        computed = data["computed"].view(-1, made.clip.settings.steps)
        assert made.clip.skipped_steps == int((~computed).sum(1).max()) > 0


def test_a_picture_larger_than_a_tile_is_encoded_whole_where_that_is_asked_for(folders: Mapping[str, Path]) -> None:
    data = arrays("sampler_v1", "ti2v_tiled")
    port = model(folders, "4b-robot", contexts={"": data["context"]})
    image = data.pictures("image")[None]
    whole, tiled = port.encode(image, tiled=False), port.encode(image)
    check(tiled, data["observed"])
    assert 0.02 < (whole - tiled).abs().max() / tiled.abs().max() < 0.1


@pytest.mark.parametrize("word", DTYPES)
@pytest.mark.parametrize("name", ["t2v", "ti2v"])
def test_distilled_clip(name: str, word: str, folders: Mapping[str, Path]) -> None:
    data, dtype = arrays("sampler_distilled", name), DTYPES[word]
    observed = data[f"{word}/observed"] if name == "ti2v" else None
    made = make(folders, "4b-robot-distilled", "sampler_distilled", name, dtype, observed)
    check_velocity(made.latents, data[f"{word}/latents"], dtype)
    check_velocity(made.latents[:, :1], data[f"{word}/latents"][:, :1], dtype)
    if observed is not None:  # the image is not written back after the last step
        assert (made.latents[:, :1].float() - observed).abs().max() > 0.1


@pytest.mark.parametrize("word", DTYPES)
@pytest.mark.parametrize("case", ["free", "first_frame"])
@pytest.mark.parametrize("kind", ["euler", "distilled"])
def test_loop_alone(kind: str, case: str, word: str) -> None:
    """Fed with recorded velocities: what is left is the loop's own arithmetic, bit for bit in bfloat16."""
    data, dtype = arrays("sampler_replay"), DTYPES[word]
    frames, height, width = data.array("frames_height_width").tolist()
    shape = ((frames - 1) // 4 + 1, 16, height // 8, width // 8)
    noise = draw_video_noise([data.number("seed")], shape)
    assert torch.equal(noise, data["noise"])
    noise = noise.to(dtype)
    euler = schedule(10, shape_aware_shift(height * width // 256, shape[0]))
    sigmas = euler if kind == "euler" else distilled_schedule()
    check(np.array(sigmas[:-1]), data[f"{kind}/{word}/sigmas"])
    exact = 0.0 if dtype == torch.bfloat16 else FLOAT32
    check((1000 * torch.tensor(sigmas[:-1]).double()).to(dtype), data[f"{kind}/{word}/timesteps"], exact)
    recorded = iter(data["velocities"].to(dtype))
    observed = data["observed"].to(dtype) if case == "first_frame" else None
    advance = along if kind == "euler" else renoise(lambda step: noise)
    found = sample_video(
        lambda latents, level: next(recorded), noise, sigmas, observed, advance=advance, restore=kind == "euler"
    )
    check(found, data[f"{kind}/{word}/{case}/latents"], exact)


CHUNKS = [
    (robot, name)
    for robot in ("libero", "robotwin")
    for name in cases(f"sampler_{robot}", "actions")
]  # fmt: skip


@pytest.mark.parametrize(("robot", "name"), CHUNKS)
def test_chunk(robot: str, name: str, folders: Mapping[str, Path]) -> None:
    shared, data = arrays(f"sampler_{robot}"), arrays(f"sampler_{robot}", name)
    contexts = {"pick": shared["context"], "bad": shared["negative_context"]}
    port = model(folders, f"4b-{robot}", contexts=contexts)
    image, proprio = shared.array("image"), shared["proprio"]
    context = port.context(["pick"], [image], proprio=proprio)
    if name == "act_tiled":  # as the published LIBERO client sends it
        observed = port.encode(data.pictures("image")[None])
        check(observed, data["observed"])
    else:
        observed = port.encode(image[None])
        check(observed, shared["observed"])
    seeds, steps, horizon = [data.number("seed")], data.number("steps"), data["actions"].shape[1]
    if not name.startswith("joint"):
        check(port.act(observed, context, steps, horizon, seeds), data["actions"])
        return
    guidance = data.number("guidance")
    negative = port.context(["bad"], proprio=proprio) if guidance != 1 else None
    actions, latents = port.joint(
        observed, context, data.number("frames"), steps, horizon, seeds, negative=negative, guidance=guidance
    )
    check(actions, data["actions"])
    check(latents, data["latents"])


def test_schedules() -> None:
    data = arrays("schedules")
    names = cases("schedules", "sigmas")
    assert len(names) == 54
    for name in names:
        words = name.split("/")[1].replace("tokens", "").replace("frames", "").replace("steps", "").split("_")
        numbers = [int(word) for word in words]
        shift = 5.0 if name.startswith("action") else shape_aware_shift(*numbers[:2])
        sigmas = torch.tensor(schedule(numbers[-1], shift)[:-1], dtype=torch.float64)
        check(sigmas, data[f"{name}/sigmas"])
        check(1000 * sigmas, data[f"{name}/timesteps"])
        check((1000 * sigmas.float().double()).bfloat16(), data[f"{name}/timesteps_bfloat16"], 0.0)
    timesteps = data["sinusoid/timesteps"].double()
    check(timestep_embedding(timesteps / 1000, 256, rounded=True), data["sinusoid/bfloat16"], 0.0)
