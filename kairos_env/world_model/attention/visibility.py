"""Who sees whom: one table, and the rules by which one pass over the blocks obeys it in each of its uses.

Tokens come in *groups*, one a decision: the *lead* action that led to a frame, and the frame. Its *clean* copy was
observed or imagined and is remembered; beside it there may be a *noisy* copy that is denoised, and a *chunk* of
actions proposed at that frame. In the joint and inverse modes an *action* and the *frame* that it leads to are denoised
after the remembered ones. A whole clip has its *history* (observed frames), its *future* and a *plan* of actions.

Streaming is causal: a window is a set of distances back in frames, so the cost of a frame does not depend on the
length of the clip, and only the last groups' keys and values are kept. Whole clips look both ways in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from kairos_env.world_model.attention.kernels import attend
from kairos_env.world_model.config import VideoConfig
from kairos_env.world_model.gated_delta_net import GatedDeltaNet, GatedDeltaState

Heads = tuple[Tensor, Tensor, Tensor]  # queries and keys, rotated, and values of one expert: (B, ..., T, H, K) each

# own: of the same frame · before: in the window, the own frame left out · window: in the window, which looks back ·
# newest: in the window of the newest remembered frame · until: of the same or any earlier frame · around: in the
# window, which looks both ways · led: actions that lead up to the frame · all
Relation = Literal["own", "before", "window", "newest", "until", "around", "led", "all"]

# query -> key -> which of them it sees; what is not listed is never seen. The flags of a `WholeClip` leave entries of
# "future" and "plan" out or let them in, see `WholeClip.sees`.
VISIBLE: dict[str, dict[str, Relation]] = {
    # streaming
    "lead": {"lead": "window", "clean": "before"},
    "clean": {"lead": "window", "clean": "window"},
    "noisy": {"lead": "window", "clean": "before", "noisy": "own"},
    "chunk": {"lead": "window", "clean": "window", "chunk": "own"},
    # joint and inverse: strictly causal, or a frame would learn of later actions through earlier ones
    "action": {"lead": "newest", "clean": "newest", "action": "until", "frame": "until"},
    "frame": {"lead": "window", "clean": "window", "action": "window", "frame": "window"},
    # whole clips, as published
    "history": {"history": "around", "future": "around"},
    "future": {"history": "around", "future": "around", "plan": "led"},
    "plan": {"history": "all", "future": "all", "plan": "all"},
}


def related(relation: Relation | None, q: Tensor, k: Tensor, offsets: Tensor, newest: int = -1) -> Tensor:
    """Whether a token of frame ``q`` sees one of frame ``k``: integer tensors, broadcast -> bool.

    Args:
        offsets: distances back in the layer's window, 0 included.
        newest: number of the newest remembered frame.
    """
    distance = q - k
    match relation:
        case "own":
            return distance == 0
        case "before":
            return torch.isin(distance, offsets) & (distance > 0)
        case "window":
            return torch.isin(distance, offsets)
        case "newest":
            return torch.isin(newest - k, offsets).expand_as(distance)
        case "until":
            return distance >= 0
        case "around":
            return torch.isin(distance.abs(), offsets)
        case "led":
            raise ValueError("which actions lead up to a frame depends on their number: see `ClipPattern.visible`")
    return torch.full_like(distance, relation == "all", dtype=torch.bool)


class LayerMemory(NamedTuple):
    """What one layer keeps of the past: the last R groups, oldest first, and the delta rule's state.

    keys, values: R of (B, G, H, K), tensors of their own, so that a new one moves none of the others; of a gated delta
        layer only the lead actions' (G = 1, or 0 without them).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    delta: GatedDeltaState | None = None


class Tokens(NamedTuple):
    """Embedded tokens of one expert, each group of T under one or T modulations.

    Args:
        tokens: (B, ..., T, D).
        modulation: (B, ..., 1 or T, 6 D).
        table: cos and sin, broadcastable to (B, ..., T, K / 2).
        time: (B, ..., D) of a video's frames, for its head.
    """

    tokens: Tensor
    modulation: Tensor
    table: tuple[Tensor, Tensor]
    time: Tensor | None = None


class Rule(Protocol):
    """How tokens meet in a layer; everything else in a block is token by token."""

    def attend(
        self, kind: str, video: Heads | None, action: Heads | None, memory: LayerMemory | None
    ) -> tuple[Tensor | None, Tensor | None, LayerMemory | None]:
        """Attended heads of either expert, (B, ..., T, H K) for its tokens, and the memory after it.

        Args:
            kind: of the layer. In ``"gdn"`` layers video tokens meet in `delta`, and ``video`` is None.
        """

    def delta(
        self, layer: GatedDeltaNet, x: Tensor, state: GatedDeltaState | None
    ) -> tuple[Tensor, GatedDeltaState | None]:
        """Video tokens (B, ..., T, D) through the gated delta net, and the state to remember."""


def window(groups: Sequence[Tensor], offsets: tuple[int, ...], frames: int, own: Tensor | None = None) -> Tensor:
    """The groups that each of the last ``frames`` groups may see.

    Args:
        groups: R + F of (B, G, H, K), past and present ones, oldest first.
        offsets: distances back in frames; every one at most R.
        frames: F.
        own: (B, F, T, H, K), what each also sees, behind them.

    Returns:
        (B, F, len(offsets) * G + T, H, K); of one frame head by head in memory, as attention reads it.
    """
    start = len(groups) - frames
    if frames == 1:
        seen = [groups[start - d] for d in offsets] + ([] if own is None else [own[:, 0]])
        return torch.cat([x.transpose(1, 2) for x in seen], 2).transpose(1, 2).unsqueeze(1)
    together = torch.stack(tuple(groups), 1)
    apart = [together[:, start - d : start - d + frames] for d in offsets]
    return torch.cat(apart if own is None else [*apart, own], 2)


def window_valid(past: Tensor, offsets: tuple[int, ...], frames: int) -> Tensor:
    """Which offsets reach a frame that exists: past (B,) frames before the first -> (B, F, offsets) bool."""
    position = past[:, None, None] + torch.arange(frames, device=past.device)[None, :, None]
    return position >= torch.tensor(offsets, device=past.device)


# streaming ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """F consecutive decisions after the remembered ones: video (B, F, L, D), leading actions (B, F, 1, Da).

    Args:
        config: of the video expert.
        past: (B,) frames before the first.
        remembered: whether the frames are; frames that only read go one at a time.
    """

    config: VideoConfig
    past: Tensor
    remembered: bool = True
    _masks: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def attend(
        self, kind: str, video: Heads | None, action: Heads | None, memory: LayerMemory | None
    ) -> tuple[Tensor | None, Tensor | None, LayerMemory | None]:
        """See `Rule`: keys are the remembered groups in the window, then whatever belongs to the own decision."""
        assert memory is not None
        given = {"lead": action, "clean" if self.remembered else "noisy": video}
        parts = {name: heads for name, heads in given.items() if heads is not None}
        if not parts:
            return None, None, memory
        frames = next(iter(parts.values()))[0].shape[1]
        back = self.config.offsets(kind)[1:]
        q, k, v = (torch.cat([heads[i] for heads in parts.values()], 2) for i in range(3))
        if frames > 1 and not self.remembered:
            raise ValueError(f"{frames} frames that only read were given together: they go one at a time")
        groups = [(*memory.keys, *k.unbind(1)), (*memory.values, *v.unbind(1))]
        group, ring = memory.keys[0].shape[1], len(memory.keys)
        if self.remembered:
            memory = memory._replace(keys=groups[0][-ring:], values=groups[1][-ring:])
        if kind not in self._masks:
            sizes = {name: int(heads[0].shape[2]) for name, heads in parts.items()}  # numbers, also while traced
            self._masks[kind] = self._mask(sizes, back, group, frames)
        keys, values = (window(past, back, frames, own) for past, own in zip(groups, (k, v), strict=True))
        out = attend(q, keys, values, self._masks[kind])
        mixed = dict(zip(parts, out.split([heads[0].shape[2] for heads in parts.values()], 2), strict=True))
        return mixed.get("clean", mixed.get("noisy")), mixed.get("lead"), memory

    def delta(
        self, layer: GatedDeltaNet, x: Tensor, state: GatedDeltaState | None
    ) -> tuple[Tensor, GatedDeltaState | None]:
        """See `Rule`: frames in order; what only reads leaves no trace."""
        out, after = layer(x.flatten(1, 2), state)
        return out.view_as(x), after if self.remembered else state

    def _mask(self, sizes: dict[str, int], back: tuple[int, ...], group: int, frames: int) -> Tensor:
        """(B, F, queries, keys) for keys ``[past groups | own kinds]``."""
        own = _own_decision(tuple(sizes.items()), self.past.device)
        # every kind sees the remembered groups of its window, whole
        valid = window_valid(self.past, back, frames).unsqueeze(-1).expand(-1, -1, -1, group).flatten(2)
        return torch.cat([valid.unsqueeze(2).expand(-1, -1, len(own), -1), own.expand(*valid.shape[:2], -1, -1)], -1)


@cache
def _own_decision(sizes: tuple[tuple[str, int], ...], device: torch.device) -> Tensor:
    """Which tokens of a decision see each other, (queries, keys) bool; ``sizes``: their kinds and how many of each."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    rows = []
    for query, count in sizes:
        row = torch.cat([related(VISIBLE[query].get(key), zero, zero, zero).expand(size) for key, size in sizes])
        rows.append(row.expand(count, -1))
    return torch.cat(rows)


@dataclass(frozen=True)
class Proposal:
    """A chunk at each of the F newest remembered frames: actions (B R, F, N, Da). The video does not run.

    Args:
        config: of the video expert.
        past: (B,) frames so far; R chunks of each element stand side by side.
    """

    config: VideoConfig
    past: Tensor

    def attend(
        self, kind: str, video: Heads | None, action: Heads | None, memory: LayerMemory | None
    ) -> tuple[Tensor | None, Tensor | None, LayerMemory | None]:
        """See `Rule`: `VISIBLE` for "chunk"."""
        assert memory is not None and action is not None
        offsets = self.config.offsets(kind)
        q, k, v = action
        frames, each = q.shape[1], len(q) // len(self.past)
        valid = window_valid(self.past - frames, offsets, frames).repeat_interleave(memory.keys[0].shape[1], -1)
        seen = [valid, *(window(x, offsets, frames) for x in (memory.keys, memory.values))]
        valid, keys, values = (x.repeat_interleave(each, 0) if each > 1 else x for x in seen)
        mask = torch.cat([valid, valid.new_ones(*valid.shape[:2], q.shape[2])], -1).unsqueeze(2)
        return None, attend(q, torch.cat([keys, k], 2), torch.cat([values, v], 2), mask), memory

    def delta(
        self, layer: GatedDeltaNet, x: Tensor, state: GatedDeltaState | None
    ) -> tuple[Tensor, GatedDeltaState | None]:
        """Never asked: there are no frames."""
        raise ValueError("a chunk is proposed from what is remembered; frames are not computed with it")


@dataclass(frozen=True)
class Joint:
    """N future actions (B, N, Da) and the N frames that they lead to (B, N, L, D), after the remembered ones.

    Args:
        config: of the video expert.
        past: (B,) frames so far.
    """

    config: VideoConfig
    past: Tensor
    _masks: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def attend(
        self, kind: str, video: Heads | None, action: Heads | None, memory: LayerMemory | None
    ) -> tuple[Tensor | None, Tensor | None, LayerMemory | None]:
        """See `Rule`."""
        assert memory is not None and action is not None
        number, length = action[0].shape[1], 0 if video is None else video[0].shape[2]
        q, keys, values = action[0], [*memory.keys, action[1]], [*memory.values, action[2]]
        if video is not None:
            frames = [x.flatten(1, 2) for x in video]
            q = torch.cat([q, frames[0]], 1)
            keys, values = [*keys, frames[1]], [*values, frames[2]]
        if kind not in self._masks:
            self._masks[kind] = self._mask(kind, number, length, len(memory.keys), memory.keys[0].shape[1])
        k, v, mask = torch.cat(keys, 1), torch.cat(values, 1), self._masks[kind]
        out = attend(q[:, None], k[:, None], v[:, None], mask[:, None]).squeeze(1)
        heads = None if video is None else out[:, number:].unflatten(1, (number, length))
        return heads, out[:, :number], memory

    def delta(
        self, layer: GatedDeltaNet, x: Tensor, state: GatedDeltaState | None
    ) -> tuple[Tensor, GatedDeltaState | None]:
        """See `Rule`: frames in order, nothing of them is remembered."""
        return layer(x.flatten(1, 2), state)[0].view_as(x), state

    def _mask(self, kind: str, number: int, length: int, ring: int, group: int) -> Tensor:
        """(B, queries, keys) for queries ``[actions | frames]`` and keys ``[remembered groups | actions | frames]``."""
        device = self.past.device
        offsets = torch.tensor(self.config.offsets(kind), device=device)
        step = torch.arange(number, device=device)
        remembered = torch.arange(-ring, 0, device=device)  # counted from the first future frame
        keys = {
            "clean": remembered.repeat_interleave(group),
            "action": step,
            "frame": step.repeat_interleave(length),
        }
        rows = []
        for query in ("action", "frame"):
            frame = keys[query][:, None]
            rows.append(torch.cat([related(VISIBLE[query][k], frame, at, offsets) for k, at in keys.items()], 1))
        exists = (-1 - keys["clean"] < self.past[:, None]).unsqueeze(1)  # (B, 1, R G)
        seen = torch.cat(rows).expand(len(self.past), -1, -1)
        return torch.cat([seen[..., : exists.shape[-1]] & exists, seen[..., exists.shape[-1] :]], -1)
