"""Every attention engine sums what the published formulas say, over any clip; the cost grows with the frames only."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kairos_env.world_model.attention import kernels as attention_engines
from kairos_env.world_model.attention.kernels import clip_attention
from kairos_env.world_model.attention.patterns import ClipPattern
from kairos_env.world_model.engines import NAMES, EngineError, why_not


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# --- the reference: one query after the other, keys listed by the rules -------------------------------

ZERO_KEY = -1


def window_of(p: ClipPattern, token: int) -> list[int]:
    """Video tokens in the window of a video token, and ``ZERO_KEY`` for every padded one."""
    total, frame = p.frames * p.tokens, token // p.tokens
    if p.kind == "fa":
        return [*range(total)]
    if p.unit == "frame":
        apart = [(other // p.tokens - frame) for other in range(total)]
        if p.kind == "swa":
            return [other for other in range(total) if abs(apart[other]) < p.window]
        return [j for j in range(total) if apart[j] % p.dilation == 0 and abs(apart[j] // p.dilation) < p.window]
    reach, block = p.window * p.tokens, p.dilation * p.tokens
    if p.kind == "swa" or total // block <= 1:
        return [other for other in range(total) if abs(other - token) <= reach]
    padded = total + block - total % block
    same = [j for j in range(padded) if j // p.tokens % p.dilation == frame % p.dilation]
    place = same.index(token)
    near = same[max(0, place - reach) : place + reach + 1]
    return [j if j < total else ZERO_KEY for j in near if j < total or p.pad_dilated]


def keys_of(p: ClipPattern, token: int) -> list[int]:
    total = p.frames * p.tokens
    actions = [total + j for j in range(p.actions)]
    if token >= total:
        return [j for j in range(total) if j // p.tokens < p.history or p.actions_see_future] + actions
    keys, frame = window_of(p, token), token // p.tokens
    if p.restrict_history and frame < p.history:
        keys = [j for j in keys if j != ZERO_KEY and j // p.tokens < p.history]
    if p.video_sees_actions and frame >= p.history:
        lead_to = [p.history + math.floor(j * (p.frames - p.history) / p.actions) for j in range(p.actions)]
        keys = keys + [key for key, to in zip(actions, lead_to, strict=True) if to <= frame]
    return keys


def reference(q: Tensor, k: Tensor, v: Tensor, p: ClipPattern) -> Tensor:
    outputs = []
    k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (k, v))  # the last one is the zero key
    for token in range(q.shape[1]):
        keys = keys_of(p, token)
        scores = torch.einsum("bhk,bjhk->bhj", q[:, token], k[:, keys]) / math.sqrt(q.shape[-1])
        outputs.append(torch.einsum("bhj,bjhv->bhv", scores.softmax(-1), v[:, keys]))
    return torch.stack(outputs, 1)


def draw_qkv(p: ClipPattern, seed: int = 0, batch: int = 2, heads: int = 2, width: int = 4) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, p.frames * p.tokens + p.actions, heads, width)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(3)]


def assert_same(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Equal outputs and equal gradients."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    weight = expected.detach().cos()
    mine, exact = (
        torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True, materialize_grads=True)
        for x in (actual, expected)
    )
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, most_q: int, most_k: int, **options: Any
) -> Tensor:
    """What flash-attn's function of this signature computes: its windows count from the ends of both sequences."""
    (left, right) = options.pop("window_size")
    assert not options and q_ends.dtype == k_ends.dtype == torch.int32
    outputs = []
    for (q_from, q_to), (k_from, k_to) in zip(
        itertools.pairwise(q_ends.tolist()), itertools.pairwise(k_ends.tolist()), strict=True
    ):
        rows, columns = q_to - q_from, k_to - k_from
        assert 0 < rows <= most_q and 0 < columns <= most_k
        scores = torch.einsum("qhk,jhk->hqj", q[q_from:q_to], k[k_from:k_to]) / math.sqrt(q.shape[-1])
        apart = torch.arange(columns) - (torch.arange(rows) + columns - rows)[:, None]
        outside = ((apart < -left) & (left >= 0)) | ((apart > right) & (right >= 0))
        weights = scores.masked_fill(outside, -math.inf).softmax(-1)
        outputs.append(torch.einsum("hqj,jhv->qhv", weights, v[k_from:k_to]))
    return torch.cat(outputs)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen_attention))


# --- equality ----------------------------------------------------------------------------------------


@st.composite
def patterns(draw: st.DrawFn) -> ClipPattern:
    frames = draw(st.integers(0, 11))
    flags = {name: draw(st.booleans()) for name in ("restrict_history", "actions_see_future", "video_sees_actions")}
    return ClipPattern(
        draw(st.sampled_from(["swa", "dswa", "dswa", "fa"])),
        frames,
        draw(st.integers(1, 5)),
        draw(st.integers(0 if frames else 1, 5)),
        window=draw(st.integers(1, 3)),
        dilation=draw(st.integers(1, 4)),
        unit=draw(st.sampled_from(["frame", "token"])),
        history=draw(st.integers(0, min(frames, 3))),
        pad_dilated=draw(st.booleans()),
        **flags,
    )


@settings(max_examples=80, deadline=None)
@given(p=patterns(), seed=st.integers(0, 99), merged=st.sampled_from([1, 24, 1024]), masked=st.sampled_from([2, 512]))
def test_engines_equal_the_formulas_for_any_clip(p: ClipPattern, seed: int, merged: int, masked: int) -> None:
    q, k, v = inputs = draw_qkv(p, seed)
    expected = reference(q, k, v, p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_engines, "MERGED_KEYS", merged)
        patch.setattr(attention_engines, "MASKED_QUERIES", masked)
        assert_same(clip_attention(q, k, v, p, "sdpa"), expected, inputs)
        if p.frames and not (p.by_token and p.actions and p.video_sees_actions):
            patch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen_attention))
            assert_same(attention_engines.flash(q, k, v, p), expected, inputs)
    assert_same(clip_attention(q, k, v, p, "dense"), expected, inputs)


# The published shapes in small, and the corners: one frame, two, fewer than a dilation, just 2 d, one more.
CASES = {
    "world-action": ClipPattern("swa", 3, 5, 4, history=1, restrict_history=True),
    "world-action dilated": ClipPattern("dswa", 3, 5, 4, history=1, restrict_history=True),
    "long": ClipPattern("dswa", 21, 3, 4, history=1, restrict_history=True),
    "joint": ClipPattern("swa", 7, 3, 5, history=2, actions_see_future=True),
    "forward": ClipPattern("dswa", 11, 3, 7, history=2, restrict_history=True, video_sees_actions=True),
    "more frames than actions": ClipPattern("swa", 9, 3, 2, history=1, video_sees_actions=True),
    "full attention": ClipPattern("fa", 5, 3, 4, history=1, restrict_history=True, video_sees_actions=True),
    "video": ClipPattern("swa", 9, 7, unit="token"),
    "video dilated": ClipPattern("dswa", 9, 7, unit="token"),
    "video, whole dilations": ClipPattern("dswa", 8, 7, unit="token", history=1, restrict_history=True),
    "video, unpadded": ClipPattern("dswa", 10, 7, unit="token", pad_dilated=False, history=2, restrict_history=True),
    "video, short": ClipPattern("dswa", 7, 5, 3, unit="token"),
    "one frame": ClipPattern("dswa", 1, 9, unit="token", history=1, restrict_history=True),
    "one frame and actions": ClipPattern("swa", 1, 9, 4, history=1, restrict_history=True),
    "two frames": ClipPattern("dswa", 2, 5, 3, history=1, actions_see_future=True, video_sees_actions=True),
    "all observed": ClipPattern("swa", 2, 5, 3, history=2, restrict_history=True, video_sees_actions=True),
}


@pytest.mark.parametrize("name", CASES)
def test_flash_hands_over_the_right_rows(name: str, flash_attn: None) -> None:
    p = CASES[name]
    q, k, v = inputs = draw_qkv(p)
    assert_same(attention_engines.flash(q, k, v, p), reference(q, k, v, p), inputs)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", CASES)
def test_flex_equals_the_formulas(name: str) -> None:
    p = CASES[name]
    q, k, v = (x.detach() for x in draw_qkv(p))
    torch.testing.assert_close(attention_engines.flex(q, k, v, p), reference(q, k, v, p), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "p", [ClipPattern("swa", 9, 40, 7, history=1, video_sees_actions=True), ClipPattern("dswa", 21, 40, unit="token")]
)
def test_block_mask_lists_what_is_visible_and_no_block_more(p: ClipPattern) -> None:
    mask = attention_engines.block_mask(p, torch.device("cpu"))
    queries, keys = mask.seq_lengths
    assert queries == p.video + p.actions and keys == queries + p.padding * p.tokens
    seen = p.visible(torch.arange(queries)[:, None], torch.arange(keys))
    for row, column in itertools.product(range(-(-queries // 128)), range(-(-keys // 128))):
        block = seen[128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)]
        partial = column in mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]]
        full = column in mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]]
        assert full == (block.numel() == 128 * 128 and bool(block.all()))
        assert partial == (bool(block.any()) and not full)


@pytest.mark.parametrize("name", [name for name, p in CASES.items() if p.actions])
@pytest.mark.parametrize("engine", ["sdpa", "flex", "dense"])
def test_action_queries_alone_equal_those_of_the_whole_clip(name: str, engine: str) -> None:
    p = CASES[name]
    q, k, v = (x.detach() for x in draw_qkv(p))
    torch.testing.assert_close(clip_attention(q[:, p.video :], k, v, p, engine), reference(q, k, v, p)[:, p.video :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["world-action", "video dilated"])
def test_low_precision_stays_close(name: str, dtype: torch.dtype) -> None:
    p = CASES[name]
    q, k, v = draw_qkv(p, width=16)
    actual = clip_attention(q.to(dtype), k.to(dtype), v.to(dtype), p)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.double(), reference(q, k, v, p), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["world-action", "forward", "video dilated"])
def test_compiled_in_one_graph(name: str) -> None:
    p = CASES[name]
    q, k, v = (x.detach() for x in draw_qkv(p))
    compiled = torch.compile(clip_attention, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(q, k, v, p), clip_attention(q, k, v, p))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["world-action", "long", "forward", "video dilated"])
def test_every_engine_of_a_gpu_equals_the_formulas(name: str) -> None:
    p, device = CASES[name], torch.device("cuda")
    inputs = [x.detach().to(device, torch.bfloat16).requires_grad_() for x in draw_qkv(p, width=64)]
    expected = reference(*(x.double() for x in inputs), p)
    exact = torch.autograd.grad(expected.sin().sum(), inputs, materialize_grads=True)
    for engine in NAMES["attention"]:
        if not why_not(engine, device, torch.bfloat16):
            actual = clip_attention(*inputs, p, engine)
            torch.testing.assert_close(actual.double(), expected, rtol=2e-2, atol=2e-2)
            for mine, other in zip(torch.autograd.grad(actual.sin().sum(), inputs), exact, strict=True):
                torch.testing.assert_close(mine, other, rtol=5e-2, atol=5e-2)


# --- cost --------------------------------------------------------------------------------------------


def peak_bytes(run: Any) -> int:
    """The most that ``run`` holds at once of what it allocates itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("kind", "unit"), [("swa", "frame"), ("dswa", "frame"), ("swa", "token"), ("dswa", "token")])
def test_memory_grows_with_the_frames_and_never_holds_a_full_mask(kind: str, unit: str, backward: bool) -> None:
    def run(p: ClipPattern, q: Tensor, k: Tensor, v: Tensor) -> None:
        output = clip_attention(q, k, v, p, "sdpa")
        if backward:
            output.sum().backward()

    def peak(frames: int) -> int:
        p = ClipPattern(kind, frames, 16, unit=unit)  # type: ignore[arg-type]
        inputs = (x.detach().float().requires_grad_(backward) for x in draw_qkv(p, batch=1, heads=1, width=8))
        return peak_bytes(partial(run, p, *inputs))

    middle, large = peak(64), peak(128)
    assert large < 2.2 * middle  # quadratic would be 4
    assert large < (128 * 16) ** 2  # a full mask


# --- errors ------------------------------------------------------------------------------------------


def test_errors_name_what_was_given_and_what_to_do(flash_attn: None) -> None:
    p = CASES["world-action"]
    q, k, v = draw_qkv(p)
    with pytest.raises(ValueError, match="18 keys .* expected 19 of each, or 4 queries"):
        clip_attention(q, k[:, 1:], v, p)
    with pytest.raises(ValueError, match="'gdn'; legal: swa, dswa, fa"):
        dataclasses.replace(p, kind="gdn")
    with pytest.raises(ValueError, match="legal: frame, token"):
        dataclasses.replace(p, unit="pixel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 to 3 of the clip's frames, got 4"):
        dataclasses.replace(p, history=4)
    with pytest.raises(ValueError, match="window, dilation >= 1"):
        dataclasses.replace(p, window=0)
    with pytest.raises(EngineError, match="no gradients on a cpu; use engine 'sdpa'"):
        clip_attention(q, k, v, p, "flex")
    with pytest.raises(EngineError, match="no token window with actions in view"):
        attention_engines.flash(q, k, v, dataclasses.replace(p, unit="token", video_sees_actions=True))
    long = ClipPattern("swa", 9, 1000)
    with pytest.raises(EngineError, match=r"9000 keys are more than 8192; use engine 'sdpa'"):
        clip_attention(*(torch.zeros(1, 9000, 1, 4) for _ in range(3)), long, "dense")
