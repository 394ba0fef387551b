"""Compiled decisions are the plain ones; a context is read once; bfloat16 costs what it may."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from kairos_env.world_model.deploy.compile import compiled
from kairos_env.world_model.mixture import Contexts
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def policy(layers: int = 4, dtype: torch.dtype = torch.float32, device: str = "cpu") -> WorldActionModel:
    """Two layers are one of each family, which is enough to compile."""
    config = miniature("4b-libero")
    pattern = ("swa", "gdn") if layers == 2 else config.video.pattern
    config = dataclasses.replace(config, video=dataclasses.replace(config.video, layers=layers, pattern=pattern))
    model = WorldActionModel.from_release(config, seed=1, device=device, dtype=dtype)
    with torch.no_grad():
        model.transformer.video_dit.head.head.weight.copy_(random(64, 64, seed=2) / 8)
    return model


def request(model: WorldActionModel, words: int, batch: int = 1) -> tuple[Tensor, Context]:
    observed = random(batch, 1, 16, 4, 6, seed=words).to(model.device, model.dtype)
    return observed, model.condition(Context(random(batch, words, 48, seed=3)), random(batch, 8, seed=4))


def test_a_context_read_once_serves_every_pass() -> None:
    model = policy()
    latents, context = request(model, 5, batch=2)
    context = Context(context.tokens, torch.tensor([[True] * 6, [True] * 3 + [False] * 3]))
    read = model.read_context(context)
    assert isinstance(read, Contexts) and model.read_context(read) is read
    sigma, level, actions = torch.full((2, 1), 0.5), torch.full((2,), 0.5), random(2, 6, 7)
    assert torch.equal(model.velocity(latents, sigma, read), model.velocity(latents, sigma, context))
    cache = model.prefill(latents, read)
    for one, other in zip(cache, model.prefill(latents, context), strict=True):
        assert (one is None) == (other is None)
        assert (
            one is None
            or other is None
            or all(torch.equal(a, b) for a, b in zip(one.keys + one.values, other.keys + other.values, strict=True))
        )
    assert torch.equal(
        model.action_velocity(actions, level, read, cache), model.action_velocity(actions, level, context, cache)
    )
    for a, b in zip(*(model.joint_velocity(latents, sigma, actions, level, c) for c in (read, context))):
        assert torch.equal(a, b)


def test_a_decision_reads_its_context_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy()
    observed, context = request(model, 5)
    expert = model.transformer.action_dit
    assert expert is not None
    reads: list[Any] = []
    expert.text_embedding.register_forward_hook(lambda *_: reads.append(1))
    model.act(observed, context, steps=4, horizon=6)
    assert len(reads) == 1


def test_compiled_decisions_are_the_plain_ones_and_share_their_graphs() -> None:
    torch._dynamo.reset()
    model, counter = policy(layers=2), CompileCounter()
    fast = compiled(model, context_unit=8, backend=counter)
    for words in (5, 7, 2):  # and proprioception: 6, 8 and 3 tokens, all padded to 8
        observed, context = request(model, words)
        chunk = fast.act(observed, context, steps=3, horizon=6, seeds=words)
        torch.testing.assert_close(chunk, model.act(observed, context, 3, 6, words), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2  # the observed frames, and one step for all steps
    observed, context = request(model, 9, batch=2)  # another batch and another length
    chunk = fast.act(observed, context, steps=3, horizon=6, seeds=[1, 2])
    torch.testing.assert_close(chunk, model.act(observed, context, 3, 6, [1, 2]), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 4
    sigma = torch.full((2, 1), 0.5)
    assert torch.equal(fast.velocity(observed, sigma, context), model.velocity(observed, sigma, context))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_the_compiler_computes_the_same() -> None:
    torch._dynamo.reset()
    model = policy(layers=2)
    observed, context = request(model, 5)
    cache, actions, level = model.prefill(observed, context), random(1, 6, 7), torch.tensor([0.4])
    step = compiled(model).action_velocity(actions, level, model.read_context(context), cache)
    torch.testing.assert_close(step, model.action_velocity(actions, level, context, cache), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_a_recorded_decision_follows_its_inputs() -> None:
    model = policy(device="cuda")
    fast = compiled(model, context_unit=8)
    for words in (5, 7, 5):
        observed, context = request(model, words)
        chunk = fast.act(observed, context, steps=3, horizon=6, seeds=words)
        torch.testing.assert_close(chunk, model.act(observed, context, 3, 6, words), atol=1e-3, rtol=1e-3)


def test_a_sharded_model_is_not_compiled() -> None:
    model = policy()
    model.mixing = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="only a model on one device can be compiled, this one has object"):
        compiled(model)


@pytest.mark.parametrize("published", [True, False])
def test_bfloat16_is_within_three_hundredths(published: bool) -> None:
    exact = policy(layers=8)
    config = dataclasses.replace(exact.config, published=published)
    exact = WorldActionModel(config, exact.transformer)
    rounded = WorldActionModel(config, policy(layers=8, dtype=torch.bfloat16).transformer)
    latents, sigma = random(1, 9, 16, 4, 6), torch.tensor([[0.0] + [0.7] * 8])
    actions, level, context = random(1, 6, 7), torch.tensor([0.4]), Context(random(1, 5, 48))
    found = rounded.joint_velocity(latents, sigma, actions, level, context)
    for a, b in zip(found, exact.joint_velocity(latents, sigma, actions, level, context)):
        assert a.dtype == torch.bfloat16
        assert 1e-4 < (a.double() - b).norm() / b.norm() < 3e-2
