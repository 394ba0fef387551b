"""Softmax attention computed: small key sets spelled out, and `clip_attention` by the same sums in four ways.

``sdpa``   PyTorch's own attention over each frame's gathered window; any device, any precision.
``flex``   one fused kernel that skips the blocks nobody sees; compiled on CUDA, a dense reference on a CPU.
``flash``  flash-attn over ragged batches; CUDA, half precision.
``dense``  a full mask: the reference, for short clips.

All take queries and keys (B, F L + N, H, K) and values (B, F L + N, H, V), as `clip_attention` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.extras import require
from kairos_env.world_model.attention.patterns import ClipPattern, Read
from kairos_env.world_model.engines import EngineError, choose

# Key tokens that go through one call together: half the time at 16 tokens per frame, no gain from 64 on (CPU).
MERGED_KEYS = 1024

# Queries of one masked call, which bounds the mask: 512 x (2 w L + 512).
MASKED_QUERIES = 512

# Tokens of a clip whose full score matrix is still affordable: 256 MB per head in float32.
LONGEST_DENSE = 8192

FLEX_BLOCK = 128  # tokens; the kernel's default

# Patterns and shapes that one process compiles flex attention for.
MOST_PATTERNS = 1024


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of many short sequences: q (..., Tq, K), k and v (..., Tk, K), bool mask (True = visible).

    Spelled out on purpose: with a few dozen keys per query set and a mask, PyTorch's fused CPU kernel is
    slower, five times so in the bfloat16 backward pass.
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention inside each frame's own key set.

    Args:
        q: (B, F, Tq, H, K); k, v: (B, F, Tk, H, K).
        mask: bool, broadcastable to (B, F, Tq, Tk), True = visible.

    Returns:
        (B, F, Tq, H * K).
    """
    q, k, v = (x.transpose(2, 3) for x in (q, k, v))  # (B, F, H, T, K)
    return softmax_attention(q, k, v, mask.unsqueeze(2)).transpose(2, 3).flatten(3)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention: q (B, Tq, H, K), k (B, Tk, H, K), v (B, Tk, H, V), bool mask (Tq, Tk) -> (B, Tq, H, V)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


def read_actions(q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
    """The queries of the actions, (B, N, H, K): all see the same keys, so there is nothing to choose."""
    seen = pattern.video if pattern.actions_see_future else pattern.history * pattern.tokens
    if seen < pattern.video:
        k, v = (torch.cat([x[:, :seen], x[:, pattern.video :]], 1) for x in (k, v))
    return attention(q, k, v)


# --- sdpa --------------------------------------------------------------------------------------------


def sdpa(q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
    """One attention per window, for as many windows of one shape at once as pays."""
    # Split once: the gradient of a slice is as long as the clip, and one per frame would make it quadratic.
    sizes = [pattern.tokens] * pattern.frames + [pattern.actions]
    (*q_frames, q_actions), (*k_frames, k_actions), (*v_frames, v_actions) = (x.split(sizes, 1) for x in (q, k, v))
    k_frames += [torch.zeros_like(k_frames[0])] * pattern.padding
    v_frames += [torch.zeros_like(v_frames[0])] * pattern.padding

    def attend(group: list[Read], actions: int, shift: int) -> Tensor:
        """(B, tokens of all reading frames, H, V)."""
        queries = [q_frames[f] for read in group for f in read.queries]
        keys = [x for read in group for x in (*(k_frames[f] for f in read.keys), k_actions[:, :actions])]
        values = [x for read in group for x in (*(v_frames[f] for f in read.keys), v_actions[:, :actions])]
        query, key, value = (
            torch.cat(x, 1).unflatten(1, (len(group), -1)).flatten(0, 1) for x in (queries, keys, values)
        )
        if pattern.by_token:
            output = _band(query, key, value, shift * pattern.tokens, pattern.window * pattern.tokens, actions)
        else:
            output = attention(query, key, value)
        return output.unflatten(0, (-1, len(group))).flatten(1, 2)

    same_shape: dict[tuple[int, int, int, int], list[Read]] = {}
    for read in pattern.reads():
        shift = (read.queries[0] - read.keys.start) // pattern.stride if pattern.by_token else 0
        same_shape.setdefault((len(read.queries), len(read.keys), read.actions, shift), []).append(read)

    outputs: dict[int, Tensor] = {}
    for (_, width, actions, shift), reads in same_shape.items():
        together = max(1, MERGED_KEYS // (width * pattern.tokens))
        for start in range(0, len(reads), together):
            group = reads[start : start + together]
            parts = attend(group, actions, shift).split(pattern.tokens, 1)
            outputs.update(zip((f for read in group for f in read.queries), parts, strict=True))
    if pattern.actions:
        outputs[pattern.frames] = read_actions(q_actions, k, v, pattern)
    return torch.cat([outputs[f] for f in sorted(outputs)], 1)


def _band(q: Tensor, k: Tensor, v: Tensor, shift: int, reach: int, actions: int) -> Tensor:
    """Query i stands at place ``shift + i`` of the keys and sees ``reach`` keys each way, and the last ``actions``."""
    video, outputs = k.shape[1] - actions, []
    for start in range(0, q.shape[1], MASKED_QUERIES):
        part = q[:, start : start + MASKED_QUERIES]
        place = torch.arange(shift + start, shift + start + part.shape[1], device=q.device)
        first, last = max(0, shift + start - reach), min(video, shift + start + part.shape[1] + reach)
        near = (torch.arange(first, last, device=q.device) - place[:, None]).abs() <= reach
        keys, values = (torch.cat([x[:, first:last], x[:, video:]], 1) for x in (k, v))
        outputs.append(attention(part, keys, values, F.pad(near, (0, actions), value=True)))
    return torch.cat(outputs, 1)


# --- dense -------------------------------------------------------------------------------------------


def dense(q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
    """One attention under the full mask, which is quadratic in the clip's length."""
    k, v = _pad(k, pattern), _pad(v, pattern)
    _refuse_long("dense", k)
    tokens = torch.arange(k.shape[1], device=q.device)
    return attention(q, k, v, pattern.visible(tokens[: q.shape[1], None], tokens))


def _pad(x: Tensor, pattern: ClipPattern) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, pattern.padding * pattern.tokens))


def _refuse_long(engine: str, k: Tensor) -> None:
    if k.shape[1] > LONGEST_DENSE:
        raise EngineError(
            f"attention engine {engine!r} computes every score on a {k.device.type} device: {k.shape[1]} keys are "
            f"more than {LONGEST_DENSE}; use engine 'sdpa'"
        )


# --- flex --------------------------------------------------------------------------------------------


def flex(q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
    """PyTorch's flex attention with a block mask made from ``pattern.visible``.

    On a CPU it stays uncompiled and computes every score: compiling takes a C++ compiler and half a minute,
    and has no gradients either. There it checks the mask, it does not save time.
    """
    from torch.nn.attention.flex_attention import flex_attention

    k, v = _pad(k, pattern), _pad(v, pattern)
    if q.device.type == "cpu":
        _refuse_long("flex", k)
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise EngineError("attention engine 'flex' has no gradients on a cpu; use engine 'sdpa'")
        q, k, v = q.detach(), k.detach(), v.detach()  # asked for even where no gradients are recorded
    mask = block_mask(pattern, q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if torch.compiler.is_compiling():
        return flex_attention(q, k, v, block_mask=mask).transpose(1, 2)
    run = flex_attention if q.device.type == "cpu" else _compiled_flex()
    # Compiled once for every pattern and shape. Beyond the limit PyTorch would go on without the fused kernel.
    with torch._dynamo.config.patch(recompile_limit=MOST_PATTERNS, accumulated_recompile_limit=MOST_PATTERNS):
        return run(q, k, v, block_mask=mask).transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@lru_cache(maxsize=32)
def block_mask(pattern: ClipPattern, device: torch.device) -> Any:
    """The pattern as a ``BlockMask``, made one row of blocks at a time: the full mask never exists."""
    from torch.nn.attention.flex_attention import BlockMask

    queries = pattern.video + pattern.actions
    k = torch.arange(queries + pattern.padding * pattern.tokens, device=device)
    to_whole_blocks = (0, -len(k) % FLEX_BLOCK)
    some, every = [], []
    for rows in torch.arange(queries, device=device).split(FLEX_BLOCK):
        seen = pattern.visible(rows[:, None], k)
        some.append(F.pad(seen.any(0), to_whole_blocks).unflatten(0, (-1, FLEX_BLOCK)).any(1))
        every.append(F.pad(seen.all(0), to_whole_blocks).unflatten(0, (-1, FLEX_BLOCK)).all(1))
        if len(rows) < FLEX_BLOCK:
            every[-1] = torch.zeros_like(every[-1])  # blocks over the end are never full
    full = torch.stack(every)[None, None]
    partial = torch.stack(some)[None, None] & ~full

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        return blocks.sum(-1, dtype=torch.int32), blocks.int().argsort(stable=True, dim=-1, descending=True).int()

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return pattern.visible(q, k)

    return BlockMask.from_kv_blocks(
        *listed(partial), *listed(full), FLEX_BLOCK, mask_mod, seq_lengths=(queries, len(k))
    )


# --- flash -------------------------------------------------------------------------------------------


class Ragged(NamedTuple):
    """A ragged batch: which rows of the flat queries and keys each of its sequences is made of.

    Args:
        q_rows, k_rows: (rows,) int64, sequence after sequence.
        q_ends, k_ends: (sequences + 1,) int32, where each begins and the last one ends.
        longest_q, longest_k: rows of the longest sequence.
        reach: keys that a query sees each way, counted from the ends of the two sequences; -1 is all.
    """

    q_rows: Tensor
    k_rows: Tensor
    q_ends: Tensor
    k_ends: Tensor
    longest_q: int
    longest_k: int
    reach: int


def flash(q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
    """flash-attn. Windows of whole frames are gathered (2 w - 1 copies of the keys), token windows are its own."""
    if pattern.by_token and pattern.video_sees_actions and pattern.actions:
        raise EngineError("attention engine 'flash' has no token window with actions in view; use 'flex' or 'sdpa'")
    kernel = require("flash_attn", "gpu").flash_attn_varlen_func
    length, batch = q.shape[1], q.shape[0]
    q, k, v = (_pad(x, pattern).flatten(0, 1) for x in (q, k, v))
    output = torch.zeros_like(v)
    for part in ragged(pattern, batch, q.device):
        out = kernel(
            q[part.q_rows],
            k[part.k_rows],
            v[part.k_rows],
            part.q_ends,
            part.k_ends,
            part.longest_q,
            part.longest_k,
            window_size=(part.reach, part.reach),
        )
        output = output.index_copy(0, part.q_rows, out)
    return output.unflatten(0, (batch, -1))[:, :length]


@lru_cache(maxsize=32)
def ragged(pattern: ClipPattern, batch: int, device: torch.device) -> list[Ragged]:
    """The video's queries and the actions', over B times the rows [video | actions | padding]."""
    video, actions = torch.arange(pattern.video), torch.arange(pattern.video, pattern.video + pattern.actions)
    padding = torch.arange(pattern.padding * pattern.tokens) + pattern.video + pattern.actions
    frames = torch.cat([video, padding]).view(-1, pattern.tokens)
    sequences = []
    if pattern.by_token:
        for first in range(pattern.stride):
            places = frames[first :: pattern.stride]
            # The frames that see only each other, and behind them those that see all: both end where their keys end.
            alone = len(range(first, pattern.history, pattern.stride)) if pattern.restrict_history else 0
            sequences += [(places[:alone], places[:alone]), (places[alone:], places)]
    else:
        sequences = [
            (frames[list(read.queries)], torch.cat([frames[list(read.keys)].flatten(), actions[: read.actions]]))
            for read in pattern.reads()
        ]
    reach = pattern.window * pattern.tokens if pattern.by_token else -1
    seen = video if pattern.actions_see_future else video[: pattern.history * pattern.tokens]
    rows = len(video) + len(actions) + len(padding)
    parts = [_ragged(sequences, reach, rows, batch, device)]
    if pattern.actions:
        parts.append(_ragged([(actions, torch.cat([seen, actions]))], -1, rows, batch, device))
    return parts


def _ragged(sequences: list[tuple[Tensor, Tensor]], reach: int, rows: int, batch: int, device: torch.device) -> Ragged:
    whole = [(q.flatten() + b * rows, k.flatten() + b * rows) for b in range(batch) for q, k in sequences if q.numel()]
    (q_rows, q_ends, longest_q), (k_rows, k_ends, longest_k) = (_packed(side, device) for side in zip(*whole))
    return Ragged(q_rows, k_rows, q_ends, k_ends, longest_q, longest_k, reach)


def _packed(parts: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, Tensor, int]:
    lengths = [len(x) for x in parts]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return torch.cat(parts).to(device), ends, max(lengths)


ENGINES: Mapping[str, Callable[[Tensor, Tensor, Tensor, ClipPattern], Tensor]] = {
    "sdpa": sdpa,
    "flex": flex,
    "flash": flash,
    "dense": dense,
}


def clip_attention(q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern, engine: str | None = None) -> Tensor:
    """Softmax attention over a clip, tokens in the order [video F L | actions N].

    Args:
        q: (B, Tq, H, K) for all tokens, Tq = F L + N, or for the actions only, Tq = N.
        k: (B, F L + N, H, K).
        v: (B, F L + N, H, V).
        pattern: who sees whom.
        engine: see ``engines.choose``; they differ in speed and rounding only.

    Returns:
        (B, Tq, H, V).

    Raises:
        ValueError: the shapes do not fit the pattern, or the engine cannot run here.
    """
    total = pattern.video + pattern.actions
    if k.shape[1] != total or v.shape[1] != total or q.shape[1] not in (total, pattern.actions):
        raise ValueError(
            f"got {q.shape[1]} queries, {k.shape[1]} keys and {v.shape[1]} values; expected {total} of each, or "
            f"{pattern.actions} queries (actions only), for {pattern.frames} frames of {pattern.tokens} tokens and "
            f"{pattern.actions} actions"
        )
    run = ENGINES[choose("attention", q.device, q.dtype, engine)]
    if q.shape[1] < total or not pattern.frames:
        return read_actions(q, k, v, pattern)
    if pattern.everything:
        return attention(q, k, v)
    return run(q, k, v, pattern)
