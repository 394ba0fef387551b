"""Prompt, image or both to a video clip: what is asked for, what the weights make of it, and the run.

t2v: a prompt. ti2v: an image, which becomes the first frame, and a prompt. i2v: an image alone. The input decides.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kairos_env.records import Array
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.flow import distilled_schedule, draw_video_noise, schedule, shape_aware_shift
from kairos_env.world_model.published.memory import explain_out_of_memory
from kairos_env.world_model.published.passes import ClipPasses
from kairos_env.world_model.published.prompts import NEGATIVE_PROMPT, PROMPT_PREFIX
from kairos_env.world_model.published.teacache import TeaCache
from kairos_env.world_model.sampling import Velocity, along, guided_merged, renoise, sample_video
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.tokenizers.wan_vae import SPATIAL, TEMPORAL

Fit = Literal["crop", "pad", "stretch"]
Mode = Literal["t2v", "ti2v", "i2v"]
POSITIONS = 1024  # tokens along a side, by the published position table


@dataclass(frozen=True)
class GenerationRequest:
    """What a clip should be. None stands for the default of the weights.

    Args:
        prompt: what happens; may be empty if there is an image.
        negative_prompt: what guidance leads away from; by default the published examples' list of faults.
        prompt_prefix: put before the prompt when there is an image as well; by default the published examples' wish
            for quality and a single shot.
        frames: length of the clip, 4 n + 1; by default that of the weights.
        height, width: of its picture in pixels, multiples of 16; by default those of the weights.
        steps: denoising steps; distilled weights take their own four.
        guidance: scale of classifier-free guidance; 1 is none and takes half the time; by default that of the weights.
        seed: of the noise. The same seed on the same device gives the same clip.
        fit: what to do with an image of another size: crop its centre, pad it with black, or stretch it.
        teacache: threshold of `TeaCache`; 0 computes every step, 0.1 is usual.
        merge_guidance: both passes of guidance as one of twice the batch; faster where memory allows it.
        tiled: encode and decode pictures in the published tiles, or whole; by default as published.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    prompt_prefix: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    fit: Fit | None = None
    teacache: float = 0.0
    merge_guidance: bool = False
    tiled: bool | None = None


@dataclass(frozen=True)
class GenerationSettings:
    """A request as it is carried out by certain weights; ``sigmas`` are the noise levels, the last one 0."""

    mode: Mode
    prompt: str
    negative_prompt: str
    frames: int
    height: int
    width: int
    fps: int
    sampler: Literal["euler", "dmd"]
    steps: int
    sigmas: tuple[float, ...]
    guidance: float
    merge_guidance: bool
    seed: int
    fit: Fit | None
    teacache: float
    tiled: bool

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents."""
        return (self.frames - 1) // TEMPORAL + 1, self.height // SPATIAL, self.width // SPATIAL


@dataclass(frozen=True)
class GeneratedClip:
    """A generated video.

    Args:
        frames: uint8 (T, H, W, 3).
        settings: everything that it follows from, beside the weights and the image.
        skipped_steps: at how many steps TeaCache left the blocks out.
    """

    frames: Array
    settings: GenerationSettings
    skipped_steps: int = 0

    @property
    def fps(self) -> int:
        return self.settings.fps

    @property
    def seed(self) -> int:
        return self.settings.seed


def resolve(request: GenerationRequest, config: WorldActionConfig, image: Array | None = None) -> GenerationSettings:
    """Fills in the defaults of the weights and checks that they can do what is asked.

    Args:
        image: uint8 (H, W, 3), the first frame; only looked at.

    Raises:
        ValueError: what is wrong, with the nearest legal values.
    """
    defaults = config.generation
    frames, height, width, steps = (
        default if value is None else value
        for value, default in (
            (request.frames, defaults.frames),
            (request.height, defaults.height),
            (request.width, defaults.width),
            (request.steps, defaults.steps),
        )
    )
    unit = SPATIAL * config.video.patch
    for name, side in (("height", height), ("width", width)):
        if side < unit or side % unit:
            raise ValueError(f"{name} {side} is not a multiple of {unit}; {_nearest(side, unit, unit)}")
        if side > POSITIONS * unit:
            raise ValueError(f"{name} {side} has more than {POSITIONS} tokens; at most {POSITIONS * unit} pixels")
    if frames < 1 or (frames - 1) % TEMPORAL:
        raise ValueError(f"frames {frames} is not of the form {TEMPORAL} n + 1; {_nearest(frames, TEMPORAL, 1)}")
    if image is None and not request.prompt.strip():
        raise ValueError("there is neither a prompt nor an image; give at least one of them")
    if image is not None:
        if frames == 1:
            raise ValueError(f"frames 1 with an image leaves nothing to generate; take at least {TEMPORAL + 1}")
        check_image(image, height, width, request.fit)
    if not 0 <= request.seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {request.seed}")
    if not request.teacache >= 0:
        raise ValueError(f"teacache must be at least 0, got {request.teacache}")
    guidance = defaults.guidance if request.guidance is None else request.guidance
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance must be a finite number of at least 0 (1 is none), got {guidance}")
    if guidance == 1 and request.negative_prompt:
        raise ValueError("a negative prompt has no effect with guidance 1; leave it out or raise guidance")
    if defaults.sampler == "dmd":
        sigmas = distilled_schedule()
        if guidance != 1 or request.teacache or steps != len(sigmas) - 1:
            raise ValueError(
                f"{config.name} is distilled to {len(sigmas) - 1} steps without guidance or TeaCache; leave out steps, "
                f"guidance and teacache (got {steps}, {guidance} and {request.teacache})"
            )
    else:
        if not 1 <= steps <= 1000:  # a model knows a thousand noise levels
            raise ValueError(f"steps must be 1 ... 1000, got {steps}")
        sigmas = schedule(steps, shape_aware_shift(height * width // unit**2, (frames - 1) // TEMPORAL + 1))
    prefixed = image is not None and bool(request.prompt.strip())
    prefix = PROMPT_PREFIX if request.prompt_prefix is None else request.prompt_prefix
    negative = NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt
    return GenerationSettings(
        mode="t2v" if image is None else "ti2v" if prefixed else "i2v",
        prompt=(prefix if prefixed else "") + request.prompt,
        negative_prompt=negative if guidance != 1 else "",
        frames=frames,
        height=height,
        width=width,
        fps=defaults.fps,
        sampler=defaults.sampler,
        steps=steps,
        sigmas=tuple(sigmas),
        guidance=guidance,
        merge_guidance=request.merge_guidance,
        seed=request.seed,
        fit=request.fit,
        teacache=request.teacache,
        tiled=defaults.tiled if request.tiled is None else request.tiled,
    )


def check_image(image: Array, height: int, width: int, fit: Fit | None) -> None:
    """Raises ValueError unless ``image`` is uint8 (H, W, 3) and of that size, or may be fitted to it."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the image must be an RGB array uint8 (H, W, 3), got {found}; convert it first")
    if fit not in (None, "crop", "pad", "stretch"):
        raise ValueError(f"fit {fit!r}; legal: 'crop', 'pad', 'stretch'")
    if 0 in image.shape or (fit is None and image.shape[:2] != (height, width)):
        raise ValueError(
            f"the image has {image.shape[0]} x {image.shape[1]} pixels (height x width), the clip {height} x {width}; "
            f"resize the image, or ask for fit='crop', 'pad' or 'stretch'"
        )


def fit_image(image: Array, height: int, width: int, fit: Fit | None) -> Array:
    """uint8 (H', W', 3) -> uint8 (height, width, 3), resized bicubically if the size differs.

    ``"crop"`` covers the target and cuts off what hangs over, ``"pad"`` shows the whole image between black bars, both
    centred and in proportion; ``"stretch"`` gives up the proportions, as the published example does.
    """
    from PIL import Image

    check_image(image, height, width, fit)
    if image.shape[:2] == (height, width):
        return image
    scales = height / image.shape[0], width / image.shape[1]
    if fit == "crop":
        scales = (max(scales),) * 2
    elif fit == "pad":
        scales = (min(scales),) * 2
    rows, columns = (max(1, round(side * scale)) for side, scale in zip(image.shape, scales))
    resized = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))
    fitted = np.zeros((height, width, 3), np.uint8)
    # one of each pair of offsets is 0: a side either hangs over or leaves bars
    top, left = (rows - height) // 2, (columns - width) // 2
    cut = resized[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    fitted[max(-top, 0) : max(-top, 0) + cut.shape[0], max(-left, 0) : max(-left, 0) + cut.shape[1]] = cut
    return fitted


def generate(
    model: ClipPasses, request: GenerationRequest, image: Array | None = None, progress: bool = True
) -> GeneratedClip:
    """Generates one clip; ``image`` is uint8 (H, W, 3), the first frame.

    With ``config.published``, noise, latents and Euler steps are in the model's dtype, and the distilled sampler uses
    one noise for all steps and does not write the image back after the last one; else they are float32, with fresh
    noise, and the first frame is the image.

    Raises:
        ValueError: see `resolve`; or the model lacks tokenizer or text encoder.
        OutOfMemory: the device is too small.
        FloatingPointError: the model's output is not finite.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or (tokenizer.spatial, tokenizer.temporal) != (SPATIAL, TEMPORAL):
        raise ValueError(
            f"clips need a video tokenizer with {TEMPORAL} x {SPATIAL} x {SPATIAL} pixels in a latent cell, this model "
            f"has {'none' if tokenizer is None else type(tokenizer).__name__}; give it a VideoVAE"
        )
    settings = resolve(request, model.config, image)
    doubled = settings.merge_guidance and settings.guidance != 1
    hint = "leave out merge_guidance, which doubles the batch" if doubled else ""
    size = settings.frames, settings.height, settings.width
    with explain_out_of_memory(model.config, *size, model.device, model.dtype, 1 + doubled, hint):
        return _run(model, settings, image, progress)


@torch.no_grad()
def _run(model: ClipPasses, settings: GenerationSettings, image: Array | None, progress: bool) -> GeneratedClip:
    from tqdm import tqdm

    config, observed, shown = model.config, None, image
    if image is not None:
        fitted = fit_image(image, settings.height, settings.width, settings.fit)
        observed = model.encode(fitted[None], settings.tiled)
        # as published, a picture that is stretched for the clip is shown to the text encoder as it is
        shown = image if config.published and settings.fit == "stretch" else fitted
    contexts = [model.context([settings.prompt], [shown])]
    if settings.guidance != 1:
        contexts.append(model.context([settings.negative_prompt]))  # the picture helps the positive prompt alone
    if settings.merge_guidance:
        contexts = [Context.cat(contexts)]
    branches = [_velocity(model, settings, context, int(image is not None)) for context in contexts]
    if settings.guidance == 1:
        velocity = branches[0]
    elif settings.merge_guidance:
        velocity = guided_merged(branches[0], settings.guidance)
    else:
        velocity = model.guided(branches[0], branches[1], settings.guidance)

    frames, rows, columns = settings.latent_shape
    dtype = model.dtype if config.published else torch.float32

    def noise(step: int) -> torch.Tensor:
        shape = (frames, config.latent_channels, rows, columns)
        return draw_video_noise([settings.seed], shape, 0 if config.published else step).to(model.device, dtype)

    bar = functools.partial(tqdm, desc="denoising", unit="step", disable=not progress)
    distilled = settings.sampler == "dmd"
    advance = renoise(noise) if distilled else along
    restore = not (distilled and config.published)
    latents = sample_video(velocity, noise(0), settings.sigmas, observed, bar, advance, restore)
    if not latents.isfinite().all():
        raise FloatingPointError(
            f"the model's output is not finite; {model.dtype} may be too small for these weights, or they are damaged"
        )
    # of both prompts alike; with guidance on two processes each of them ran one
    skipped = max((branch.skipped for branch in branches if isinstance(branch, TeaCache)), default=0)
    return GeneratedClip(model.decode(latents, settings.tiled)[0], settings, skipped)


def _velocity(model: ClipPasses, settings: GenerationSettings, context: Context, history: int) -> Velocity:
    """The model under one context, or two merged ones."""
    contexts = model.read_context(context, action=False)
    if not settings.teacache:
        return lambda latents, sigma: model.velocity(latents, sigma, contexts, history)
    dit, rule, height = model.transformer.video_dit, model.rule(history), settings.latent_shape[1]
    return TeaCache(
        model.embed_video,
        lambda video: model.run_video(video, contexts, rule),
        lambda tokens, video: dit.read_clip(tokens, video, height),
        settings.steps,
        settings.teacache,
    )


def _nearest(value: int, unit: int, least: int) -> str:
    """The legal values beside ``value``, for ``least + n unit``."""
    below = least + (value - least) // unit * unit
    legal = [number for number in (below, below + unit) if number >= least] or [least]
    return f"nearest legal: {' or '.join(map(str, legal))}"
