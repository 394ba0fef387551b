"""Weights in 8 and 4 bits: what is rounded and by how much, what stays exact, what it costs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from kairos_env.world_model.deploy.parallel import heads_of
from kairos_env.world_model.deploy.quantize import QuantizationReport, Scheme, count_bytes, quantize
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context

pytest.importorskip("torchao")

SIGMA, LEVEL = torch.tensor([[0.0, 0.7, 0.7]]), torch.tensor([0.4])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def policy(dtype: torch.dtype = torch.bfloat16) -> WorldActionModel:
    config = miniature("4b-libero", layers=4)
    assert config.action is not None
    config = dataclasses.replace(config, action=dataclasses.replace(config.action, dim=64))  # whole groups of 64
    model = WorldActionModel.from_release(config, seed=1, dtype=dtype)
    with torch.no_grad():
        model.transformer.video_dit.head.head.weight.copy_(random(64, 64, seed=2) / 8)
    return model


def velocities(model: WorldActionModel) -> Tensor:
    """Of frames and actions, in one vector."""
    context = Context(random(1, 5, 48, seed=3))
    both = model.joint_velocity(random(1, 3, 16, 4, 6), SIGMA, random(1, 6, 7, seed=1), LEVEL, context)
    return torch.cat([x.flatten() for x in both])


def quantised(scheme: Scheme, group: int = 64) -> tuple[WorldActionModel, QuantizationReport]:
    model = policy()
    return model, quantize(model, scheme, lambda: velocities(model), group)


def effective(layer: nn.Linear) -> Tensor:
    """The weights that a layer multiplies with, (outputs, inputs)."""
    identity = torch.eye(layer.in_features, dtype=torch.bfloat16)
    zero = layer(torch.zeros_like(identity[:1]))
    return (layer(identity).double() - zero.double()).T


@torch.no_grad()
def test_eight_bits_round_to_steps_of_each_output() -> None:
    model, _ = quantised("int8")
    exact, rounded = (m.transformer.video_dit.blocks[3].gated_delta.q_proj for m in (policy(), model))
    step = exact.weight.double().abs().amax(1, keepdim=True) / 127
    error = (effective(rounded) - exact.weight.double()).abs()
    assert (error <= 0.55 * step + 2**-8 * exact.weight.double().abs()).all()
    assert error.max() > 0.3 * step.min()


@torch.no_grad()
@pytest.mark.parametrize("group", [32, 64])
def test_four_bits_round_to_steps_of_each_group(group: int) -> None:
    model, _ = quantised("int4", group)
    exact, rounded = (m.transformer.video_dit.blocks[0].ffn[2] for m in (policy(), model))
    groups = exact.weight.double().unflatten(1, (-1, group))
    step = (groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)) / 15
    error = (effective(rounded) - exact.weight.double()).unflatten(1, (-1, group)).abs()
    assert (error <= 0.6 * step + 2**-8).all()
    assert error.max() > 0.3 * step.min()


def test_fewer_bits_cost_more_and_the_report_says_so() -> None:
    exact = policy()
    want = velocities(exact)
    errors, sizes = [], [count_bytes(exact.transformer)]
    for scheme in ("int8", "int4"):
        model, report = quantised(scheme)
        error = (velocities(model).double() - want.double()).norm() / want.double().norm()
        assert report.error == pytest.approx(float(error), rel=1e-6)
        assert (report.scheme, report.bytes_before) == (scheme, sizes[0])
        assert report.bytes_after == count_bytes(model.transformer)
        # video: 3 x 4 softmax and 5 delta projections; actions: 4 x 4; both: 8 of cross-attention and feed-forward
        assert report.layers == 3 * 4 + 5 + 4 * 4 + 2 * 4 * 6
        errors.append(report.error)
        sizes.append(report.bytes_after)
    assert 1e-3 < errors[0] < 2e-2 < errors[1] < 0.12
    assert sizes[0] > sizes[1] > sizes[2]


def test_what_is_small_and_sensitive_stays_exact() -> None:
    model, _ = quantised("int8")
    exact = policy().transformer.state_dict()
    state = model.transformer.state_dict()
    same = {name for name, weight in state.items() if type(weight) is Tensor}
    for name in same:
        assert torch.equal(state[name], exact[name]), name
    for part in (
        "video_dit.time_projection.1.weight", "video_dit.text_embedding.0.weight", "video_dit.head.head.weight",
        "video_dit.blocks.3.gated_delta.a_proj.weight", "video_dit.blocks.3.gated_delta.b_proj.weight",
        "video_dit.blocks.0.self_attn.norm_q.weight", "action_dit.proprio_encoder.0.weight", "action_dit.head.weight",
    ):  # fmt: skip
        assert part in same
    assert "video_dit.blocks.3.gated_delta.g_proj.weight" not in same


def test_requests_that_cannot_be_met_say_what_can() -> None:
    exact, narrow = policy(torch.float32), WorldActionModel.from_release(miniature("4b-libero"), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="unknown quantisation 'int3'; legal: int8, int4"):
        quantize(exact, "int3", lambda: velocities(exact))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bfloat16 weights.*torch.float32 on cpu.*model.to\(torch.bfloat16\)"):
        quantize(exact, "int4", lambda: velocities(exact))
    with pytest.raises(ValueError, match="groups of 64 inputs do not fit every layer; legal for this model: 32$"):
        quantize(narrow, "int4", lambda: velocities(narrow))
    model, _ = quantised("int8")
    with pytest.raises(ValueError, match="quantised already"):
        quantize(model, "int8", lambda: velocities(model))
    with pytest.raises(ValueError, match="quantised weights.*cannot be spread over heads"):
        heads_of(model.transformer.video_dit.blocks[3].gated_delta, 0, 2)
