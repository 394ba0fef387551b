"""Who sees whom in a softmax layer over a whole clip, both directions in time: a `ClipPattern`, for any engine.

The cost grows linearly with the frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Read(NamedTuple):
    """Frames of the clip that read the same keys.

    Args:
        queries: the reading frames.
        keys: the frames that they read; those behind the last one are zero padding.
        actions: how many of the first actions they read.
    """

    queries: tuple[int, ...]
    keys: range
    actions: int


@dataclass(frozen=True)
class ClipPattern:
    """Who sees whom in one softmax layer over a clip: F frames of L tokens, then N actions.

    An action sees all actions and the history; a video token sees the frames of its window.

    Args:
        kind: ``"swa"`` a window of neighbouring frames, ``"dswa"`` one of frames ``dilation`` apart, ``"fa"`` all.
        frames: F; 0 for actions alone.
        tokens: L.
        actions: N.
        window: w. Unit ``"frame"``: fewer than w steps away, both ways. Unit ``"token"``: at most w L tokens away.
        dilation: d, frames from one step of a dilated window to the next.
        unit: whether the window is counted in whole frames (world-action weights) or in tokens (video weights).
            A dilated token window is counted within the frames of equal ``f % d``, and is a plain one
            where the clip is shorter than 2 d frames.
        history: observed frames at the start of the clip.
        restrict_history: their tokens see nothing behind them.
        actions_see_future: an action also sees the frames behind the history.
        video_sees_actions: a frame behind the history sees the actions that lead up to it; action j of N leads up
            to frame ``history + floor(j (F - history) / N)``.
        pad_dilated: the published dilated token window pads the clip with zeros to the next multiple of d frames
            (by d frames if it is one already), and these zero keys take part in the softmax.

    Raises:
        ValueError: a value out of its range.
    """

    kind: str
    frames: int
    tokens: int
    actions: int = 0
    window: int = 3
    dilation: int = 4
    unit: Literal["frame", "token"] = "frame"
    history: int = 0
    restrict_history: bool = False
    actions_see_future: bool = False
    video_sees_actions: bool = False
    pad_dilated: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("swa", "dswa", "fa"):
            raise ValueError(f"unknown attention kind {self.kind!r}; legal: swa, dswa, fa")
        if self.unit not in ("frame", "token"):
            raise ValueError(f"unknown window unit {self.unit!r}; legal: frame, token")
        if min(self.frames, self.actions) < 0 or min(self.tokens, self.window, self.dilation) < 1:
            raise ValueError(f"need frames, actions >= 0 and tokens, window, dilation >= 1, got {self}")
        if not 0 <= self.history <= self.frames:
            raise ValueError(f"history must be 0 to {self.frames} of the clip's frames, got {self.history}")

    @property
    def video(self) -> int:
        """T = F L, video tokens."""
        return self.frames * self.tokens

    @property
    def by_token(self) -> bool:
        """Whether the window's border runs through frames."""
        return self.unit == "token" and self.kind != "fa"

    @property
    def dilated(self) -> bool:
        """Whether the steps of the window are ``dilation`` frames."""
        return self.kind == "dswa" and (self.unit == "frame" or self.frames // self.dilation > 1)

    @property
    def stride(self) -> int:
        """Frames from one step of the window to the next."""
        return self.dilation if self.dilated else 1

    @property
    def reach(self) -> int:
        """Steps to the farthest frame that a token sees any of, each way."""
        return self.frames if self.kind == "fa" else self.window - (not self.by_token)

    @property
    def padding(self) -> int:
        """Frames of zero keys behind the clip."""
        padded = self.by_token and self.dilated and self.pad_dilated
        return self.dilation - self.frames % self.dilation if padded else 0

    @property
    def everything(self) -> bool:
        """Whether every token sees every token, so that there is nothing to leave out."""
        whole = range(self.frames)
        return (
            not self.actions
            and (not self.by_token or self.frames <= self.window)
            and all(read.keys == whole for read in self.reads())
        )

    def visible(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether token ``q`` sees token ``k``: integer tensors, broadcast -> bool.

        Tokens are numbered [video F L | actions N | padding L]; ``q`` is not padding.
        """
        video, actions, stride = self.video, self.actions, self.stride
        is_action = (k >= video) & (k < video + actions)
        place = torch.where(k < video, k, k - actions)  # in the padded clip
        q_frame, k_frame = q // self.tokens, place // self.tokens
        steps = (k_frame - q_frame) // stride
        near = ((k_frame - q_frame) % stride == 0) & (steps.abs() <= self.reach)
        if self.by_token:
            distance = steps * self.tokens + place % self.tokens - q % self.tokens
            near = near & (distance.abs() <= self.window * self.tokens)
        if self.restrict_history:
            near = near & ((q_frame >= self.history) | (k_frame < self.history))
        if self.video_sees_actions and actions:
            leads_to = self.history + (k - video) * (self.frames - self.history) // actions
            near = torch.where(is_action, (q_frame >= self.history) & (leads_to <= q_frame), near)
        else:
            near = near & ~is_action
        seen = is_action | (k < (video if self.actions_see_future else self.history * self.tokens))
        return torch.where(q < video, near, seen)

    def reads(self) -> list[Read]:
        """What each frame reads. Frames that read the same are together, unless a token window cuts it differently."""
        table: dict[tuple[range, int, int], list[int]] = {}
        for f in range(self.frames):
            restricted = self.restrict_history and f < self.history
            end = self.history if restricted else self.frames + self.padding
            first = max(f % self.stride, f - self.reach * self.stride)
            keys = range(first, min(f + self.reach * self.stride + 1, end), self.stride)
            table.setdefault((keys, self._actions_before(f), f * self.by_token), []).append(f)
        return [Read(tuple(queries), keys, actions) for (keys, actions, _), queries in table.items()]

    def _actions_before(self, frame: int) -> int:
        """Actions that lead up to ``frame``: those with j (F - history) < (frame - history + 1) N."""
        if not self.video_sees_actions or frame < self.history:
            return 0
        passed = (frame - self.history + 1) * self.actions
        return min(self.actions, -(-passed // (self.frames - self.history)))
