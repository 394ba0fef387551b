"""Denoising: one loop over noise levels, for one or several parts of the data side by side; guidance.

A sampler knows no network. It asks a prediction, a function of noisy data and their noise levels, and moves the data
from noise (sigma = 1) to a sample (sigma = 0); ``flow`` has the convention. Latents are (B, F, C, h, w) with
one noise level per frame (B, F), since observed frames are clean from the start; actions are (B, N, A) with one noise
level per chunk (B,). Levels are float32. Data stay in the dtype of the noise that a sampler is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
JointVelocity = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Progress = Callable[[range], Iterable[int]]  # for example tqdm
Parts = tuple[Tensor, ...]
Predict = Callable[[Parts, tuple[float, ...]], Sequence[Tensor]]  # noisy data, their levels -> what `Advance` takes
Advance = Callable[[Tensor, Tensor, float, float, int], Tensor]  # data, prediction, level, next level, number of step


def along(data: Tensor, velocity: Tensor, sigma: float, following: float, index: int = 0) -> Tensor:
    """One Euler step along a predicted velocity."""
    return data + (following - sigma) * velocity.to(data.dtype)


def towards(data: Tensor, sample: Tensor, sigma: float, following: float, index: int = 0) -> Tensor:
    """One Euler step along the velocity that a predicted sample implies."""
    return data + (following - sigma) * ((data - sample) / sigma)


def renoise(noise: Callable[[int], Tensor]) -> Advance:
    """Steps of weights distilled by distribution matching (DMD): guess the sample, noise it again at the next level.

    ``x0 = x - sigma v``, with sigma in the data's dtype, then ``x = (1 - sigma') x0 + sigma' eps``; the levels are
    `flow.distilled_schedule`.

    Args:
        noise: number of the level -> data; the published sampler uses the same noise at every one.
    """

    def advance(data: Tensor, velocity: Tensor, sigma: float, following: float, index: int) -> Tensor:
        sample = data - torch.tensor(sigma, dtype=data.dtype) * velocity.to(data.dtype)
        after = torch.tensor(following, dtype=torch.float32)  # the mixture's level stays a float32 number
        return (1 - after) * sample + after * noise(index + 1) if following > 0 else sample

    return advance


def denoise(
    predict: Predict,
    noise: Parts,
    schedules: Sequence[Sequence[float]],
    advance: Advance = along,
    progress: Progress = iter,
) -> Parts:
    """Every part from noise to a sample, all of them step by step together: the denoising loop.

    Args:
        predict: the parts and their noise levels -> a prediction for each, of the kind that ``advance`` takes.
        noise: the parts at the first level.
        schedules: of each part falling noise levels, one more than there are steps.
        progress: wraps the step numbers.
    """
    data = noise
    for index in progress(range(len(schedules[0]) - 1)):
        predictions = predict(data, tuple(levels[index] for levels in schedules))
        data = tuple(
            advance(x, prediction, levels[index], levels[index + 1], index)
            for x, prediction, levels in zip(data, predictions, schedules, strict=True)
        )
    return data


def sample_video(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Sequence[float],
    observed: Tensor | None = None,
    progress: Progress = iter,
    advance: Advance = along,
    restore: bool = True,
) -> Tensor:
    """Denoises latent frames.

    Args:
        velocity: latents (B, F, C, h, w), sigma (B, F) -> (B, F, C, h, w).
        noise: (B, F, C, h, w), the latents at ``sigmas[0]``.
        sigmas: falling noise levels, one more than there are steps.
        observed: (B, n, C, h, w), the first n latent frames; they are there from the start with sigma = 0 and come
            out unchanged.
        progress: wraps the step numbers.
        advance: `renoise` for distilled weights.
        restore: False leaves the observed frames as the last step made them, as the published distilled sampler does.

    Returns:
        (B, F, C, h, w) in the dtype of ``noise``.
    """

    def predict(data: Parts, levels: tuple[float, ...]) -> list[Tensor]:
        return [velocity(data[0], _levels(data[0], levels[0], observed))]

    def advance_rest(data: Tensor, velocity: Tensor, sigma: float, following: float, index: int) -> Tensor:
        moved = advance(data, velocity, sigma, following, index)
        return _with_observed(moved, observed) if restore or following > 0 else moved

    return denoise(predict, (_with_observed(noise, observed),), [sigmas], advance_rest, progress)[0]


def sample_actions(velocity: Velocity, noise: Tensor, sigmas: Sequence[float], progress: Progress = iter) -> Tensor:
    """Denoises action chunks by Euler steps: velocity (B, N, A), (B,) -> (B, N, A); noise (B, N, A) -> (B, N, A)."""

    def predict(data: Parts, levels: tuple[float, ...]) -> list[Tensor]:
        return [velocity(data[0], _level(data[0], levels[0]))]

    return denoise(predict, (noise,), [sigmas], progress=progress)[0]


def sample_joint(
    velocity: JointVelocity,
    video_noise: Tensor,
    action_noise: Tensor,
    video_sigmas: Sequence[float],
    action_sigmas: Sequence[float],
    observed: Tensor | None = None,
    progress: Progress = iter,
) -> tuple[Tensor, Tensor]:
    """Denoises latent frames and actions side by side, each along its own schedule.

    Args:
        velocity: latents (B, F, C, h, w), their sigma (B, F), actions (B, N, A), their sigma (B,) -> both velocities.

    Returns:
        latents and actions; the rest is as in `sample_video`.

    Raises:
        ValueError: schedules of different length.
    """
    if len(video_sigmas) != len(action_sigmas):
        raise ValueError(
            f"frames and actions take their steps together: the video schedule has {len(video_sigmas) - 1} steps, "
            f"the action schedule {len(action_sigmas) - 1}; give both the same number"
        )

    def predict(data: Parts, levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        latents = _with_observed(data[0], observed)
        return velocity(latents, _levels(latents, levels[0], observed), data[1], _level(data[1], levels[1]))

    noise, schedules = (video_noise, action_noise), [video_sigmas, action_sigmas]
    latents, actions = denoise(predict, noise, schedules, progress=progress)
    return _with_observed(latents, observed), actions


def _level(actions: Tensor, sigma: float) -> Tensor:
    return torch.full(actions.shape[:1], sigma, device=actions.device)


def _with_observed(latents: Tensor, observed: Tensor | None) -> Tensor:
    if observed is None:
        return latents
    return torch.cat([observed.to(latents.dtype), latents[:, observed.shape[1] :]], 1)


def _levels(latents: Tensor, sigma: float, observed: Tensor | None) -> Tensor:
    levels = torch.full(latents.shape[:2], sigma, device=latents.device)
    if observed is not None:
        levels[:, : observed.shape[1]] = 0
    return levels


# classifier-free guidance ---------------------------------------------------------------------------------------------


def guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """``v_neg + scale (v_pos - v_neg)``: 1 is the positive prompt alone (Ho & Salimans 2022)."""
    return negative + scale * (positive - negative)


def guided(positive: Velocity, negative: Velocity, scale: float) -> Velocity:
    """Guidance by two passes, one for each prompt."""
    return lambda latents, sigma: guide(positive(latents, sigma), negative(latents, sigma), scale)


def guided_merged(both: Velocity, scale: float) -> Velocity:
    """Guidance by one pass: ``both`` takes twice the batch, for the positive prompts, then for the negative ones."""

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        positive, negative = both(torch.cat([latents, latents]), torch.cat([sigma, sigma])).chunk(2)
        return guide(positive, negative, scale)

    return velocity


def guided_joint(joint: JointVelocity, negative: Velocity, scale: float) -> JointVelocity:
    """Guidance of the frames only: ``negative`` is a pass without actions, under the negative prompt."""

    def velocity(latents: Tensor, sigma: Tensor, actions: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        positive, direction = joint(latents, sigma, actions, level)
        return guide(positive, negative(latents, sigma), scale), direction

    return velocity
