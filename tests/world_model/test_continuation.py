"""Chunks that continue the one being executed: the published guidance in our convention, by its true Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from kairos_env.policies import WorldModelPolicy, example_observation
from kairos_env.policies.chunking import Continuation
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.continuation import ChunkGuide, guidance_gain, overlap_weights
from kairos_env.world_model.flow import schedule
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.sampling import Advance, along, denoise, towards


def published(tau: float) -> float:
    """min(5, (1 - tau) / (tau r^2)), r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2), as in the paper."""
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    return min(5.0, (1 - tau) / (tau * r2)) if tau > 0 else 5.0


@pytest.mark.parametrize("sigma", [1.0, 0.8, 0.5, 0.2, 0.01])
def test_the_gain_is_the_published_one(sigma: float) -> None:
    assert guidance_gain(sigma) == pytest.approx(published(1 - sigma))


def test_weights_are_the_published_ones() -> None:
    weights = overlap_weights(2, 6, 8)
    expected = [1, 1]
    for i in range(2, 6):
        c = (6 - i) / (6 - 2 + 1)
        expected.append(c * (np.exp(c) - 1) / (np.e - 1))
    assert np.allclose(weights, [*expected, 0, 0])
    assert overlap_weights(0, 0, 3).tolist() == [0, 0, 0]
    assert overlap_weights(3, 3, 3).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="got 4 and 3"):
        overlap_weights(4, 3, 5)


class Linear:
    """A denoiser whose clean estimate is z = x M^T + c over the whole chunk: its Jacobian is M."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.matrix = 0.3 * torch.randn(6, 6, generator=draw)  # of N A = 3 x 2
        self.offset = torch.randn(6, generator=draw)

    def clean(self, noisy: Tensor) -> Tensor:
        return (noisy.flatten(1) @ self.matrix.T + self.offset).reshape(noisy.shape)

    def sample(self, data: Sequence[Tensor], levels: tuple[float, ...]) -> list[Tensor]:
        return [self.clean(data[0])]

    def velocity(self, data: Sequence[Tensor], levels: tuple[float, ...]) -> list[Tensor]:
        return [(data[0] - self.clean(data[0])) / levels[0]]


def by_the_paper(net: Linear, guide: ChunkGuide, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Algorithm 1 of the paper, with tau rising and v = dA / dtau."""
    actions = noise.clone()
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        tau, clean = 1 - sigma, net.clean(actions)
        velocity = (clean - actions) / (1 - tau)
        error = (guide.weights[..., None] * (guide.previous - clean)).flatten(1)
        velocity = velocity + published(tau) * (error @ net.matrix).reshape(actions.shape)
        actions = actions + (sigma - following) * velocity
    return actions


@pytest.mark.parametrize(("kind", "advance"), [("sample", towards), ("velocity", along)])
def test_guidance_is_the_papers_for_both_kinds_of_network(kind: str, advance: Advance) -> None:
    net, draw = Linear(), torch.Generator().manual_seed(1)
    previous, noise = torch.randn(2, 4, 3, 2, generator=draw)
    guide = ChunkGuide(previous, overlap_weights(1, 2, 3).expand(4, 3))
    sigmas = schedule(5)
    predict = guide.steer(getattr(net, kind), noise, kind)  # type: ignore[arg-type]
    (found,) = denoise(predict, (noise,), [sigmas], advance)
    assert torch.allclose(found, by_the_paper(net, guide, noise, sigmas), atol=1e-5)
    unguided = denoise(getattr(net, kind), (noise,), [sigmas], advance)[0]
    assert not torch.allclose(found, unguided, atol=1e-2)


@pytest.mark.parametrize(("kind", "advance"), [("sample", towards), ("velocity", along)])
def test_inpainting_keeps_the_past_exactly(kind: str, advance: Advance) -> None:
    net, draw = Linear(), torch.Generator().manual_seed(1)
    previous, noise = torch.randn(2, 4, 3, 2, generator=draw)
    guide = ChunkGuide(previous, overlap_weights(2, 2, 3).expand(4, 3), "inpaint")
    predict = guide.steer(getattr(net, kind), noise, kind)  # type: ignore[arg-type]
    (found,) = denoise(predict, (noise,), [schedule(5)], advance)
    assert torch.allclose(found[:, :2], previous[:, :2], atol=1e-5)


@pytest.mark.parametrize(("mode", "at_most"), [("guided", 0.9), ("inpaint", 0.01)])
def test_a_models_next_chunk_goes_on_from_the_last(mode: Literal["guided", "inpaint"], at_most: float) -> None:
    model = WorldModel.from_pretrained("kairos-tiny")
    policy = WorldModelPolicy(model)
    half = (model.spec.action_high - model.spec.action_low) / 2
    free, followed = [], []
    for seen in model.starts[:3]:
        policy.reset(0)
        proposed = policy.chunk(seen).actions
        rest = model.spec.check_action(np.repeat(proposed[:1] + 0.3 * half, model.chunk_length, 0))
        policy.reset(0)
        next_chunk = policy.continue_chunk(seen, Continuation(rest, 2, 4, mode)).actions
        free.append(np.abs((proposed - rest) / half)[:2].mean())
        followed.append(np.abs((next_chunk - rest) / half)[:2].mean())
    assert np.mean(followed) < at_most * np.mean(free)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_models_jacobian_is_the_true_one() -> None:
    state = WorldModel.from_preset("debug", make_spec(), TASKS).observe(example_observation(make_spec()))
    model = WorldModel.from_preset("debug", make_spec(), TASKS)
    predict = model.action_prediction(state)
    shape = 1, model.chunk_length, model.spec.action_dim
    draw = torch.Generator().manual_seed(2)
    noisy, error, move = (torch.randn(shape, generator=draw) for _ in range(3))
    guide = ChunkGuide(torch.zeros(shape), torch.ones(shape[:2]))
    sigma = 0.5
    with torch.no_grad():
        plain = predict((noisy,), (sigma,))[0]
        previous = ChunkGuide(plain + error, guide.weights)
        steered = previous.steer(predict, noisy, "sample")((noisy,), (sigma,))[0]
        direction = (steered - plain) / (sigma * guidance_gain(sigma))  # J^T e
        ahead = predict((noisy + 1e-2 * move,), (sigma,))[0] - predict((noisy - 1e-2 * move,), (sigma,))[0]
    assert (direction * move).sum().item() == pytest.approx((error * ahead / 2e-2).sum().item(), rel=0.05, abs=1e-3)
