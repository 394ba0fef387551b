"""Samplers against solutions that are known in closed form, and against formulas written out in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kairos_env.world_model.flow import distilled_schedule, draw_noise, draw_video_noise, schedule, shape_aware_shift
from kairos_env.world_model.published.teacache import COEFFICIENTS, TeaCache
from kairos_env.world_model.sampling import (
    guided,
    guided_joint,
    guided_merged,
    renoise,
    sample_actions,
    sample_joint,
    sample_video,
)

SHAPE = (2, 3, 4, 2, 2)  # B, F, C, h, w


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns(sigma: Tensor) -> Tensor:
    return sigma[..., None, None, None]


def gaussian_velocity(mean: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """E[eps - z | x] for data z ~ N(mean, std^2): linear in x, and its flow is known."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.double().reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))
        variance = (1 - s) ** 2 * std**2 + s**2
        return -mean + (s - (1 - s) * std**2) / variance * (x - (1 - s) * mean)

    return velocity


# schedules


@pytest.mark.parametrize(
    ("height", "width", "frames", "shift"),
    [
        (256, 256, 1, 1.65),
        (480, 640, 81, 7.92),
        (480, 832, 81, 8.07),
        (704, 1280, 81, 8.91),
        (704, 1280, 241, 15.18),
    ],
)
def test_shift_of_the_published_shapes(height: int, width: int, frames: int, shift: float) -> None:
    assert shape_aware_shift(height * width // 256, (frames - 1) // 4 + 1) == pytest.approx(shift, abs=0.005)


def test_levels_of_the_action_schedule() -> None:
    levels = [1, 0.9783, 0.9524, 0.9211, 0.8824, 0.8333, 0.7692, 0.6818, 0.5556, 0.3571, 0]
    assert schedule(10, 5) == pytest.approx(levels, abs=5e-5)


def test_shift_adds_to_the_logit() -> None:
    shift, level = 7.92, schedule(50, 7.92)[20]
    plain = 1 - 20 / 50
    assert math.log(level / (1 - level)) == pytest.approx(math.log(plain / (1 - plain)) + math.log(shift))
    assert schedule(50, shift)[0] == 1 and schedule(50, shift)[-1] == 0


def test_levels_of_the_distilled_weights() -> None:
    assert distilled_schedule() == pytest.approx([1, 0.9524, 0.8333, 0.3571, 0], abs=5e-5)


# Euler


def test_euler_is_exact_on_straight_paths() -> None:
    target, noise = random(*SHAPE), random(*SHAPE, seed=1)
    for steps in (1, 3):
        got = sample_video(lambda x, s: (x - target) / columns(s).double(), noise, schedule(steps, 7.9))
        torch.testing.assert_close(got, target, rtol=0, atol=1e-6)  # levels are float32


def test_euler_converges_with_first_order() -> None:
    noise = random(*SHAPE)
    exact = 0.7 + 0.3 * noise
    errors = [
        (sample_video(gaussian_velocity(0.7, 0.3), noise, schedule(steps)) - exact).abs().max().item()
        for steps in (100, 200, 400)
    ]
    assert errors[2] < 5e-3
    assert [a / b for a, b in zip(errors, errors[1:])] == pytest.approx([2, 2], rel=0.1)


def test_actions_follow_the_same_flow() -> None:
    noise = random(2, 8, 7)
    got = sample_actions(gaussian_velocity(-0.2, 0.5), noise, schedule(1600, 5))
    torch.testing.assert_close(got, -0.2 + 0.5 * noise, rtol=0, atol=5e-3)


def test_observed_frames_stay_and_are_clean() -> None:
    observed, noise = random(2, 1, 4, 2, 2), random(*SHAPE, seed=1)
    seen = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        assert torch.equal(x[:, :1], observed)
        seen.append(sigma)
        return x + 1

    out = sample_video(velocity, noise, [1.0, 0.6, 0.0], observed)
    assert torch.equal(out[:, :1], observed)
    assert torch.stack(seen).tolist() == [[[0, level, level]] * 2 for level in (1.0, pytest.approx(0.6))]


def test_latents_keep_the_dtype_of_the_noise() -> None:
    noise = random(*SHAPE).bfloat16()
    out = sample_video(lambda x, s: x.float(), noise, schedule(3), observed=random(2, 1, 4, 2, 2))
    assert out.dtype == torch.bfloat16
    reference = noise
    for a, b in zip(schedule(3), schedule(3)[1:]):
        reference = reference + ((b - a) * reference.float()).bfloat16()
    torch.testing.assert_close(out[:, 1:], reference[:, 1:])


def test_progress_sees_every_step() -> None:
    seen: list[int] = []

    def progress(steps: range) -> range:
        seen.extend(steps)
        return steps

    sample_actions(lambda x, s: x, random(1, 2, 3), schedule(4), progress)
    assert seen == [0, 1, 2, 3]


# both experts


def test_joint_steps_each_side_along_its_schedule() -> None:
    video, actions = random(*SHAPE), random(2, 8, 7, seed=1)
    observed = random(2, 1, 4, 2, 2, seed=2)
    field = gaussian_velocity(0.1, 0.4)
    video_sigmas, action_sigmas = schedule(6, 7.9), schedule(6, 5)
    got = sample_joint(
        lambda x, s, a, t: (field(x, s), field(a, t)), video, actions, video_sigmas, action_sigmas, observed
    )
    torch.testing.assert_close(got[0], sample_video(field, video, video_sigmas, observed))
    torch.testing.assert_close(got[1], sample_actions(field, actions, action_sigmas))
    assert torch.equal(got[0][:, :1], observed)


def test_joint_schedules_must_agree() -> None:
    with pytest.raises(ValueError, match="video schedule has 4 steps, the action schedule 5"):
        sample_joint(lambda *args: args[:2], random(*SHAPE), random(2, 8, 7), schedule(4), schedule(5))


# guidance


def test_guidance_is_the_formula_and_merging_changes_nothing() -> None:
    noise, sigmas = random(*SHAPE), schedule(5, 3)
    prompts = random(1, 1, 4, 1, 1, seed=1), random(1, 1, 4, 1, 1, seed=2)

    def conditioned(prompt: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, s: torch.tanh(x * prompt + columns(s))

    scale = 4.5
    separate = sample_video(guided(conditioned(prompts[0]), conditioned(prompts[1]), scale), noise, sigmas)
    both = torch.cat([prompt.expand(len(noise), -1, -1, -1, -1) for prompt in prompts])
    merged = sample_video(guided_merged(conditioned(both), scale), noise, sigmas)
    torch.testing.assert_close(merged, separate)
    x = noise
    for a, b in zip(sigmas, sigmas[1:]):
        positive, negative = (torch.tanh(x * prompt + a) for prompt in prompts)
        x = x + (b - a) * (negative + scale * (positive - negative))
    torch.testing.assert_close(separate, x, rtol=1e-5, atol=1e-5)


def test_guidance_of_the_joint_mode_leaves_actions_alone() -> None:
    joint = guided_joint(lambda x, s, a, t: (x * 2, a * 3), lambda x, s: x * 0.5, 4.0)
    x, a = random(*SHAPE), random(2, 8, 7, seed=1)
    video, actions = joint(x, torch.ones(2, 3), a, torch.ones(2))
    torch.testing.assert_close(video, x * (0.5 + 4 * 1.5))
    torch.testing.assert_close(actions, a * 3)


# distilled


@pytest.mark.parametrize("published", [True, False])
def test_distilled_steps_are_the_formula(published: bool) -> None:
    sigmas, observed = distilled_schedule(), random(2, 1, 4, 2, 2, seed=9)
    noises = [random(*SHAPE, seed=0 if published else step) for step in range(4)]
    asked = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return noises[step]

    field = lambda x, s: torch.sin(3 * x) + columns(s)
    got = sample_video(field, noise(0), sigmas, observed, advance=renoise(noise))
    x = noises[0].clone()
    for step in range(4):
        x[:, :1] = observed
        level = torch.full((2, 3, 1, 1, 1), sigmas[step], dtype=torch.float64)
        level[:, :1] = 0
        clean = x - sigmas[step] * (torch.sin(3 * x) + level)
        x = clean if step == 3 else (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * noises[step + 1]
    x[:, :1] = observed
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)
    assert asked == [0, 1, 2, 3]


def test_distilled_sampling_of_a_perfect_velocity_gives_the_sample() -> None:
    target = random(*SHAPE)
    noise = lambda step: random(*SHAPE, seed=step + 1)
    field = lambda x, s: (x - target) / columns(s).double()
    got = sample_video(field, noise(0), distilled_schedule(), advance=renoise(noise))
    torch.testing.assert_close(got, target, rtol=0, atol=1e-6)


# TeaCache


class Parts(NamedTuple):
    tokens: Tensor
    modulation: Tensor


def teacache(modulations: list[float], threshold: float, coefficients: tuple[float, ...] = (1.0, 0.0)) -> TeaCache:
    """One whose modulation takes these values step by step; the blocks add the square of the tokens."""
    values = iter(modulations)
    return TeaCache(
        embed=lambda x, s: Parts(x.flatten(2), torch.full((2, 3, 6), next(values))),
        blocks=lambda video: video.tokens + video.tokens**2,
        read=lambda tokens, video: tokens.view(SHAPE),
        steps=len(modulations),
        threshold=threshold,
        coefficients=coefficients,
    )


def test_teacache_with_threshold_0_is_exact() -> None:
    noise, sigmas = random(*SHAPE) * 0.1, schedule(6)
    # a polynomial that is negative everywhere must not make it skip
    cache = teacache([1.0] * 6, 0.0, COEFFICIENTS)
    assert torch.equal(sample_video(cache, noise, sigmas), sample_video(lambda x, s: x + x**2, noise, sigmas))
    assert (cache.computed, cache.skipped) == (6, 0)


def test_teacache_skips_until_the_change_adds_up() -> None:
    # relative changes: 0.1, 0.1, 0.1, 0.0, 0.25, 0.0, then the last step
    modulations = [1.0, 1.1, 1.21, 1.331, 1.331, 1.331 * 1.25, 1.331 * 1.25, 1.331 * 1.25]
    cache = teacache(modulations, 0.25)
    ran = []
    for _ in modulations:
        before = cache.computed
        cache(random(*SHAPE), torch.ones(2, 3))
        ran.append(cache.computed > before)
    #      first         0.1    0.2    0.3   0.0    0.25  0.0    last
    assert ran == [True, False, False, True, False, True, False, True]
    assert (cache.computed, cache.skipped) == (4, 4)


def test_teacache_rescales_the_change() -> None:
    cache = teacache([1.0, 1.1, 1.1], 0.5, (100.0, 0.0, -0.25))  # 100 * 0.1^2 - 0.25 = 0.75
    for _ in range(3):
        cache(random(*SHAPE), torch.ones(2, 3))
    assert cache.skipped == 0


def test_a_skipped_step_adds_what_the_blocks_added_before() -> None:
    cache = teacache([1.0, 1.0, 1.0], 0.1)
    first, second = random(*SHAPE), random(*SHAPE, seed=1)
    cache(first, torch.ones(2, 3))
    torch.testing.assert_close(cache(second, torch.ones(2, 3)), second + first**2)
    torch.testing.assert_close(cache(second, torch.ones(2, 3)), second + second**2)


def test_teacache_serves_one_clip() -> None:
    cache = teacache([1.0, 1.0], 0.1)
    sample_video(cache, random(*SHAPE), schedule(2))
    with pytest.raises(ValueError, match="served its 2 steps"):
        cache(random(*SHAPE), torch.ones(2, 3))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        teacache([1.0], -1.0)


# noise


def test_noise_depends_on_the_own_seed_only() -> None:
    batch = draw_video_noise([5, 6, 7], (3, 4, 2, 2))
    assert torch.equal(batch[1:2], draw_video_noise([6], (3, 4, 2, 2)))
    assert not torch.equal(batch[0], batch[1])
    assert torch.equal(
        draw_noise([3], (8, 7), stream=2, generator="torch"), draw_noise([3], (8, 7), stream=2, generator="torch")
    )


def test_noise_of_the_published_pipeline() -> None:
    drawn = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(11), dtype=torch.float32)
    assert torch.equal(draw_video_noise([11], (3, 16, 4, 6)), drawn.permute(0, 2, 1, 3, 4))


@pytest.mark.parametrize("generator", ["counter", "torch"])
def test_streams_of_one_seed_are_unrelated(generator: str) -> None:
    draws = torch.stack(
        [draw_noise([seed], (4000,), stream=stream, generator=generator)[0] for seed in (0, 1) for stream in (0, 1, 2)]
    )
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.06


@pytest.mark.parametrize("generator", ["counter", "torch"])
def test_noise_is_normal_and_reproducible(generator: str) -> None:
    draw = functools.partial(draw_noise, shape=(501,), generator=generator)
    seed, counter = torch.arange(200), torch.zeros(200, dtype=torch.int64)
    noise = draw(seed, counter=counter)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    torch.testing.assert_close(noise[7:9], draw(seed[7:9], counter=counter[7:9]))
    torch.testing.assert_close(noise, draw(seed))
    assert abs(torch.corrcoef(noise[:2])[0, 1]) < 0.15
    assert (noise != draw(seed, counter=counter + 1)).float().mean() > 0.99
    assert (noise != draw(seed, counter=counter, stream=1)).float().mean() > 0.99
