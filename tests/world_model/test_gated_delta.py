"""The fast forms of the gated delta rule equal the plain recurrence; streaming equals one pass."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kairos_env.world_model import gated_delta as gated_delta_module
from kairos_env.world_model import gated_delta_net
from kairos_env.world_model.engines import EngineError, why_not
from kairos_env.world_model.gated_delta import (
    chunk_gated_delta,
    fla_gated_delta,
    gated_delta,
    naive_gated_delta,
)
from kairos_env.world_model.gated_delta_net import GatedDeltaNet, GatedDeltaState

ENGINES = ("naive", "chunked")  # those that run on a CPU


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def draw_inputs(
    batch: int, length: int, heads: int, width_k: int, width_v: int, seed: int = 0, decay: float = 1.0
) -> list[Tensor]:
    """q, k, v, g, beta and state in float32; ``decay`` is the mean of -g."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    return [
        normal(batch, length, heads, width_k),
        normal(batch, length, heads, width_k),
        normal(batch, length, heads, width_v),
        -decay * normal(batch, length, heads).square(),
        normal(batch, length, heads).sigmoid(),
        normal(batch, heads, width_k, width_v),
    ]


def reference(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    return naive_gated_delta(*(x.double() for x in inputs))


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_naive_is_decay_then_delta_rule_on_the_decayed_memory() -> None:
    # One token, worked out by hand: K = V = 1, memory 4, decay 1/2, value 10, strength 1/4.
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    state = 4 * one
    g, beta = torch.full((1, 1, 1), math.log(0.5)).double(), torch.full((1, 1, 1), 0.25).double()
    o, memory = naive_gated_delta(3 * one, 5 * one, 10 * one, g, beta, state)
    # Unit key and query (up to eps): 2 is left of 4, and a quarter of the error 10 - 2 is written.
    assert memory.item() == pytest.approx(2 + 0.25 * (10 - 2), abs=1e-5)
    assert o.item() == pytest.approx(4.0, abs=1e-5)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 65, 127, 200])
@pytest.mark.parametrize("chunk", [1, 16, 32, 64, 1000])
def test_chunked_equals_float64_recurrence(length: int, chunk: int) -> None:
    inputs = draw_inputs(2, length, 3, 8, 12)
    o, state = chunk_gated_delta(*inputs, chunk=chunk)
    for actual, expected in zip((o, state), reference(inputs), strict=True):
        assert_equal(actual, expected)
        assert actual.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 90),
    heads=st.integers(1, 3),
    width_k=st.integers(1, 17),
    width_v=st.integers(1, 17),
    chunk=st.integers(1, 70),
    decay=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    with_state=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_chunked_equals_float64_recurrence_for_any_shape(
    batch: int,
    length: int,
    heads: int,
    width_k: int,
    width_v: int,
    chunk: int,
    decay: float,
    with_state: bool,
    seed: int,
) -> None:
    inputs = draw_inputs(batch, length, heads, width_k, width_v, seed, decay)
    inputs = inputs if with_state else inputs[:5]
    o, state = chunk_gated_delta(*inputs, chunk=chunk)
    expected = reference(inputs)
    assert_equal(o, expected[0])
    assert_equal(state, expected[1])


@pytest.mark.parametrize(("batch", "length", "heads"), [(1, 1000, 2), (2, 701, 8)])
def test_real_head_size_and_length(batch: int, length: int, heads: int) -> None:
    # The second is long and wide enough to go through in several segments.
    inputs = draw_inputs(batch, length, heads, 64, 64, decay=0.05)
    o, state = chunk_gated_delta(*inputs)
    expected = reference(inputs)
    assert_equal(o, expected[0])
    assert_equal(state, expected[1])


@pytest.mark.parametrize("chunk", [32, 64])
def test_near_identical_keys_stay_exact(chunk: int) -> None:
    # All keys alike, no decay, full strength: powers of the triangular matrix would reach 1e18 here.
    q, k, v, g, beta, state = draw_inputs(1, 128, 2, 16, 16)
    k = torch.ones_like(k) + 1e-3 * k
    inputs = [q, k, v, torch.zeros_like(g), torch.ones_like(beta), state]
    for actual, expected in zip(chunk_gated_delta(*inputs, chunk=chunk), reference(inputs), strict=True):
        assert_equal(actual, expected)


def test_decay_from_nothing_to_everything_has_finite_exact_gradients() -> None:
    # A forgotten-at-once token beside weak decays: exp of the sums alone would under- or overflow.
    inputs = draw_inputs(1, 70, 2, 8, 8, decay=0.01)
    inputs[3][:, ::9] = -2000.0
    assert_gradients_equal(inputs, chunk=64)


@pytest.mark.parametrize(("length", "chunk"), [(1, 32), (37, 16), (65, 64), (70, 18)])
def test_gradients_equal_float64_recurrence(length: int, chunk: int) -> None:
    assert_gradients_equal(draw_inputs(2, length, 2, 8, 6), chunk)


def assert_gradients_equal(inputs: list[Tensor], chunk: int) -> None:
    def gradients(of: list[Tensor], fast: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in of]
        o, state = chunk_gated_delta(*leaves, chunk=chunk) if fast else naive_gated_delta(*leaves)
        ((o * o.detach().cos()).sum() + state.square().sum()).backward()
        return [x.grad for x in leaves if x.grad is not None]

    fast, exact = gradients(inputs, True), gradients([x.double() for x in inputs], False)
    assert len(fast) == len(exact) == 6
    for actual, expected in zip(fast, exact, strict=True):
        scale = max(1.0, expected.abs().max().item())
        assert_equal(actual / scale, expected / scale)


@pytest.mark.parametrize("engine", ENGINES)
def test_low_precision_values_keep_a_float32_memory(engine: str) -> None:
    inputs = [x.bfloat16() for x in draw_inputs(1, 20, 2, 8, 8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, state = gated_delta(*inputs, engine=engine)
    assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert_equal(state, reference(inputs)[1])


def test_errors_name_what_was_given_and_what_is_legal() -> None:
    q, k, v, g, beta, state = draw_inputs(1, 4, 2, 8, 6)
    with pytest.raises(ValueError, match=r"state \(1, 2, 6, 8\).*state \(B, H, K, V\)"):
        chunk_gated_delta(q, k, v, g, beta, state.mT)
    with pytest.raises(ValueError, match=r"g \(1, 3, 2\)"):
        naive_gated_delta(q, k, v, g[:, 1:], beta)
    with pytest.raises(ValueError, match="T >= 1"):
        chunk_gated_delta(q[:, :0], k[:, :0], v[:, :0], g[:, :0], beta[:, :0])
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        chunk_gated_delta(q, k, v, g, beta, chunk=0)
    with pytest.raises(EngineError, match="'fla' cannot run here: needs a CUDA device"):
        gated_delta(q, k, v, g, beta, engine="fla")
    with pytest.raises(ValueError, match="whole number"):
        GatedDeltaNet(8, 2, 5, 0.5)
    with pytest.raises(ValueError, match="'fast'; legal are fla, chunked, naive"):
        GatedDeltaNet(8, 2, engine="fast")


# --- flash-linear-attention ----------------------------------------------------------------------------


def fla_stand_in(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What the kernel of this signature computes, and what it asks of its inputs."""
    assert q.dtype == k.dtype == v.dtype and v.dtype in (torch.float16, torch.bfloat16)
    assert g.dtype == torch.float32 and (initial_state is None or initial_state.dtype == torch.float32)
    assert use_qk_l2norm_in_kernel and cu_seqlens is None  # the recurrence below normalises
    o, state = naive_gated_delta(q, k, v.float(), g, beta.float(), initial_state)
    o = o * (1 if scale is None else scale * math.sqrt(q.shape[-1]))
    return o.to(q.dtype), state if output_final_state else None


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(chunk_gated_delta_rule=fla_stand_in)
    for name, part in (("fla", ModuleType("fla")), ("fla.ops", ModuleType("fla.ops"))):
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", module)


@pytest.mark.parametrize("with_state", [False, True])
def test_fla_is_handed_the_recurrence(with_state: bool, fla: None) -> None:
    inputs = draw_inputs(2, 21, 3, 8, 12)[: 6 if with_state else 5]
    inputs[:3] = [x.bfloat16() for x in inputs[:3]]
    o, state = fla_gated_delta(*inputs)
    assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
    expected = reference(inputs)
    assert_equal(o, expected[0], 1e-2)
    assert_equal(state, expected[1])


def test_fla_in_the_layer(fla: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer().bfloat16()
    x = torch.randn(2, 50, 12, generator=torch.Generator().manual_seed(1)).bfloat16()
    y, end = layer(x)
    monkeypatch.setattr(gated_delta_module, "choose", lambda *_: "fla")
    fast, fast_end = layer(x)
    assert_equal(fast, y, 2e-2)
    assert_equal(fast_end.recurrent, end.recurrent)


def test_fla_has_a_widest_key(fla: None) -> None:
    with pytest.raises(EngineError, match="keys up to 256 wide, not 257; use 'chunked'"):
        fla_gated_delta(*draw_inputs(1, 2, 1, 257, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["fla", "chunked"])
def test_engines_of_a_gpu_equal_the_recurrence(engine: str) -> None:
    if reason := why_not(engine, torch.device("cuda"), torch.bfloat16):
        pytest.skip(reason)
    inputs = [x.cuda() for x in draw_inputs(2, 701, 3, 64, 128, decay=0.05)]
    inputs[:3] = [x.bfloat16() for x in inputs[:3]]
    o, state = gated_delta(*inputs, engine=engine)
    expected = reference(inputs)
    assert_equal(o, expected[0], 2e-2)
    assert_equal(state, expected[1], 2e-2)


# --- memory --------------------------------------------------------------------------------------------


def test_long_sequences_take_no_more_memory_than_short_ones_besides_the_output() -> None:
    def beyond_output(length: int) -> int:
        inputs = draw_inputs(1, length, 2, 256, 512)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            o, _ = chunk_gated_delta(*inputs)
        events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
        peak = max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
        return peak - o.nbytes

    short, long = beyond_output(2100), beyond_output(8200)
    assert long < 1.1 * short


# --- the layer ---------------------------------------------------------------------------------------


def make_layer(**changes: object) -> GatedDeltaNet:
    torch.manual_seed(0)
    options: dict[str, object] = {"dim": 12, "heads": 2, "head_k_dim": 6, "expand_v": 1.5} | changes
    return GatedDeltaNet(**options)  # type: ignore[arg-type]


def test_parameters_have_the_published_names_shapes_and_init() -> None:
    layer = make_layer(heads=2000, dim=3, head_k_dim=1, expand_v=2.0)
    names = {name.removesuffix(".weight") for name, _ in layer.named_parameters()}
    projections = {f"{x}_proj" for x in "qkvabgo"}
    assert names == projections | {"q_conv1d", "k_conv1d", "v_conv1d", "o_norm", "A_log", "dt_bias"}
    assert layer.v_conv1d.weight.shape == (4000, 1, 4)
    assert layer.o_norm.weight.shape == (2,)
    rate, step = layer.A_log.exp(), torch.nn.functional.softplus(layer.dt_bias)
    assert 0 < rate.min() and rate.max() <= 16 and rate.mean().item() == pytest.approx(8, abs=0.5)
    assert 0.99e-3 < step.min() and step.max() < 1.01e-1
    assert step.log().mean().exp().item() == pytest.approx(1e-2, rel=0.1)  # log-uniform


def test_layer_equals_its_definition_token_by_token() -> None:
    layer = make_layer().double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    y, _ = layer(x)

    def short_conv(name: str, heads_width: int) -> Tensor:
        raw = getattr(layer, f"{name}_proj")(x).mT
        mixed = getattr(layer, f"{name}_conv1d")(torch.nn.functional.pad(raw, (3, 0)))
        return torch.nn.functional.silu(mixed).mT.unflatten(-1, (2, heads_width))

    g = -layer.A_log.exp() * torch.nn.functional.softplus(layer.a_proj(x) + layer.dt_bias)
    o, _ = naive_gated_delta(short_conv("q", 6), short_conv("k", 6), short_conv("v", 9), g, layer.b_proj(x).sigmoid())
    gate = torch.nn.functional.silu(layer.g_proj(x)).unflatten(-1, (2, 9))
    normed = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-6) * layer.o_norm.weight
    assert_equal(y, layer.o_proj((normed * gate).flatten(-2)), 1e-6)


@pytest.mark.parametrize("split", range(10))
def test_every_split_of_a_sequence_gives_the_same_result(split: int) -> None:
    layer = make_layer()
    x = torch.randn(2, 10, 12, generator=torch.Generator().manual_seed(1))
    whole, end = layer(x)
    first, middle = layer(x[:, :split]) if split else (x[:, :0], None)
    second, split_end = layer(x[:, split:], middle)
    assert_equal(torch.cat([first, second], dim=1), whole)
    assert_equal(split_end.recurrent, end.recurrent)
    assert_equal(split_end.conv, end.conv)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_streaming_in_pieces_equals_one_pass(lengths: list[int], engine: str, seed: int) -> None:
    layer = make_layer(engine=engine)
    x = torch.randn(1, sum(lengths), 12, generator=torch.Generator().manual_seed(seed))
    whole, end = layer(x)
    state: GatedDeltaState | None = None
    pieces = []
    for piece in x.split(lengths, dim=1):
        y, state = layer(piece, state)
        pieces.append(y)
    assert state is not None
    assert_equal(torch.cat(pieces, dim=1), whole)
    assert_equal(state.recurrent, end.recurrent)
    assert_equal(state.conv, end.conv)


def test_long_sequences_go_through_the_layer_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer()
    x = torch.randn(2, 23, 12, generator=torch.Generator().manual_seed(1))
    whole, end = layer(x)
    monkeypatch.setattr(gated_delta_net, "PIECE", 5)
    pieces, pieces_end = layer(x)
    assert_equal(pieces, whole)
    assert_equal(pieces_end.recurrent, end.recurrent)
    assert_equal(pieces_end.conv, end.conv)


def test_gradients_of_the_layer_are_exact() -> None:
    layer = make_layer(dim=5, head_k_dim=2).double()
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(1, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        y, state = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return torch.cat([y.flatten(), state.recurrent.flatten()])

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_state_is_an_immutable_value_of_constant_size() -> None:
    layer = make_layer()
    start = layer.initial_state(3)
    _, state = layer(torch.randn(3, 50, 12), start)
    assert not start.recurrent.any() and not start.conv.any()
    assert state.recurrent.shape == start.recurrent.shape == (3, 2, 6, 9)
    assert state.conv.shape == start.conv.shape == (3, 3, 2 * 12 + 18)
    for x in (state.recurrent, state.conv):
        assert x.untyped_storage().nbytes() == x.numel() * 4  # nothing of the sequence is held on to
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.conv = start.conv  # type: ignore[misc]
    picked = state.map(lambda x: x[[2, 2]])
    assert torch.equal(picked.recurrent[0], state.recurrent[2])
    assert torch.equal(picked.conv[1], state.conv[2])
