"""Flow matching: path, prediction, noise levels, reproducible noise. The time convention stands here, once.

Noise level sigma in [0, 1]: ``z_sigma = (1 - sigma) z + sigma eps``; sigma = 0 is clean data, sigma = 1 is noise.
The velocity is ``u = dz/dsigma = eps - z``; the timestep that a network sees is ``1000 sigma``.
(Rectified flow, Liu et al. 2022, in the direction that the published weights use.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kairos_env.world_model.config import Prediction


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """Appends axes to ``sigma`` until it broadcasts against ``like``."""
    return sigma.reshape(sigma.shape + (1,) * (like.ndim - sigma.ndim))


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The point of the path at noise level ``sigma`` (leading axes of ``clean``)."""
    sigma = expand(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def to_sample(prediction: Prediction, output: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """Clean data implied by a network output: ``z = z_sigma - sigma u``."""
    return output if prediction == "sample" else noisy - expand(sigma, noisy) * output


def shown(prediction: Prediction, data: Tensor, sigma: Tensor) -> Tensor:
    """Noisy data as a small network sees them: where it predicts clean data, the less the noisier they are.

    Pure noise says nothing; a network need not learn to ignore it, and one denoising step needs none.
    """
    return (1 - expand(sigma, data)) * data if prediction == "sample" else data


def schedule(steps: int, shift: float = 1.0) -> list[float]:
    """``steps + 1`` noise levels from 1 to 0; ``shift`` > 1 spends more of them near noise."""
    if steps < 1:
        raise ValueError(f"denoising needs at least one step, got {steps}")
    return [_shifted(1 - i / steps, shift) for i in range(steps + 1)]


def shape_aware_shift(tokens_per_frame: int, latent_frames: int) -> float:
    """Shift of a video's schedule: ``exp(f(L)) sqrt(F)``, f linear with f(256) = 0.5 and f(8192) = 0.9.

    The more tokens say the same thing, the more noise hides it: larger and longer clips need a larger shift.
    """
    exponent = 0.5 + (0.9 - 0.5) * (tokens_per_frame - 256) / (8192 - 256)
    return math.exp(exponent) * math.sqrt(latent_frames)


def distilled_schedule(shift: float = 5.0) -> list[float]:
    """The noise levels, and a last 0, at which the published 4-step weights were distilled (DMD)."""
    return [_shifted(time / 1000, shift) for time in (1000, 800, 500, 100, 0)]


def _shifted(sigma: float, shift: float) -> float:
    """``logit sigma + log shift``, as a noise level."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def timestep_embedding(sigma: Tensor, dim: int = 256, rounded: bool = False) -> Tensor:
    """Sinusoids of the timestep, ``concat(cos, sin)``: (...) -> (..., dim), float64.

    Args:
        rounded: round the timestep and the result to bfloat16 (978.26 becomes 980), as the published weights were run.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=sigma.device, dtype=torch.float64))
    timestep = 1000 * sigma.double()
    if rounded:
        timestep = timestep.bfloat16().double()
    angles = timestep[..., None] * frequencies
    sinusoids = torch.cat([angles.cos(), angles.sin()], -1)
    return sinusoids.bfloat16().double() if rounded else sinusoids


def training_levels(shape: tuple[int, ...], pure_noise: float, generator: torch.Generator) -> Tensor:
    """Random noise levels: exactly 1 with probability ``pure_noise``, else uniform in (0, 1).

    Few-step sampling asks the network mostly about pure noise, so that is where it must be best.
    """
    levels = torch.rand(shape, generator=generator)
    pure = torch.rand(shape, generator=generator) < pure_noise
    return torch.where(pure, torch.ones_like(levels), levels)


def draw_noise(
    seeds: Tensor | Sequence[int],
    shape: Sequence[int],
    counter: Tensor | None = None,
    stream: int = 0,
    generator: Literal["counter", "torch"] = "counter",
) -> Tensor:
    """Standard normal noise (B, *shape), float32; an element depends on its own seed, counter and stream alone.

    Args:
        seeds: (B,), at least 0.
        counter: (B,) int64, which draw of the seed; None is the first.
        stream: independent noise of the same seed and counter.
        generator: ``"counter"`` computes it on the seeds' device. ``"torch"`` draws it on the CPU; stream 0 of the
            first draw is torch's generator with that seed, as published.
    """
    if generator == "torch":
        draws = []
        for row, seed in enumerate(torch.as_tensor(seeds).tolist()):
            key = [seed, stream] if counter is None else [seed, stream, int(counter[row])]
            # a generator's seed for any numbers, without relation between neighbours
            mixed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) if any(key[1:]) else seed
            draws.append(torch.randn(tuple(shape), generator=torch.Generator().manual_seed(mixed)))
        return torch.stack(draws)
    seed = torch.as_tensor(seeds)
    return _counter_noise(seed, torch.zeros_like(seed) if counter is None else counter, stream, tuple(shape))


def draw_video_noise(seeds: Sequence[int], shape: Sequence[int], stream: int = 0) -> Tensor:
    """Noise of latents, shape (F, C, h, w) -> (B, F, C, h, w); drawn channel by channel, as published."""
    frames, channels, *cells = shape
    return draw_noise(seeds, (channels, frames, *cells), stream=stream, generator="torch").movedim(2, 1)


def _counter_noise(seed: Tensor, counter: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """A pure function of (seed, counter, stream): (B,), (B,) -> (B, *shape).

    A counter-based generator (splitmix64 finaliser, then Box-Muller) gives every element of a batch the
    same noise whatever stands beside it, which no torch.Generator can.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    index = torch.arange(2 * pairs, device=seed.device, dtype=torch.int64)
    key = _mix(seed.long() * 2 + 1) ^ _mix(counter.long() * 1000003 + stream)
    bits = _mix(_mix(key)[:, None] + index * -7046029254386353131)  # golden-ratio increment
    uniform = ((bits >> 40) & 0xFFFFFF).float() / 2**24
    u1, u2 = uniform[:, :pairs].clamp_min(2**-25), uniform[:, pairs:]
    radius = (-2 * u1.log()).sqrt()
    normal = torch.cat([radius * (2 * math.pi * u2).cos(), radius * (2 * math.pi * u2).sin()], 1)
    return normal[:, :count].reshape(-1, *shape)


def _mix(x: Tensor) -> Tensor:
    """splitmix64 finaliser on int64 (wrapping arithmetic, logical shifts)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))
