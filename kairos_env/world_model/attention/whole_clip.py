"""The rule of whole clips, both directions in time, as the published weights were trained; on one or many devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from kairos_env.world_model.attention.kernels import clip_attention
from kairos_env.world_model.attention.patterns import ClipPattern
from kairos_env.world_model.attention.visibility import VISIBLE, Heads, LayerMemory, Relation, Tokens
from kairos_env.world_model.config import VideoConfig
from kairos_env.world_model.gated_delta_net import GatedDeltaNet, GatedDeltaState


class Mixing(Protocol):
    """Where the tokens of a clip meet on one or several devices. ``parallel`` offers others than `Local`."""

    def split(self, video: Tokens) -> Tokens:
        """The share of the tokens that is computed here."""

    def join(self, tokens: Tensor) -> Tensor:
        """Everybody's share of the output tokens (B, F, L, D)."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
        """(B, Tq, H, K), (B, Tk, H, K) twice -> (B, Tq, H, K)."""

    def delta(self, layer: GatedDeltaNet, x: Tensor) -> Tensor:
        """(B, F, L, D) -> (B, F, L, D), in raster order from an empty memory."""


@dataclass(frozen=True)
class Local:
    """All tokens on this device. ``engine`` overrides the choice of the attention engine."""

    engine: str | None = None

    def split(self, video: Tokens) -> Tokens:
        return video

    def join(self, tokens: Tensor) -> Tensor:
        return tokens

    def attention(self, q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
        return clip_attention(q, k, v, pattern, self.engine)

    def delta(self, layer: GatedDeltaNet, x: Tensor) -> Tensor:
        return layer(x.flatten(1, 2))[0].view_as(x)


LOCAL = Local()


@dataclass(frozen=True)
class WholeClip:
    """A whole clip (B, F, L, D), actions (B, N, Da), or both; or actions over the memory of observed frames.

    The default flags are the rule of the released world-action weights: neither expert sees the other's future.

    Args:
        config: of the video expert.
        history: observed latent frames at the start of the clip.
        restrict_history: their tokens see only each other.
        actions_see_future: actions see the frames after the history (joint quality, inverse mode).
        video_sees_actions: a future frame sees the actions that lead up to it (forward mode).
        window_unit: windows counted in latent frames or in tokens.
        pad_dilated: zero keys that pad a dilated token window take part in its softmax.
        mixing: where tokens meet.
        keep: remember the frames; of a long clip their keys and values are as large as the weights.
    """

    config: VideoConfig
    history: int = 1
    restrict_history: bool = True
    actions_see_future: bool = False
    video_sees_actions: bool = False
    window_unit: Literal["frame", "token"] = "frame"
    pad_dilated: bool = True
    mixing: Mixing = LOCAL
    keep: bool = False

    def sees(self, query: str, key: str) -> Relation | None:
        """`VISIBLE` under these flags."""
        let_in = {
            ("history", "future"): not self.restrict_history,
            ("plan", "future"): self.actions_see_future,
            ("future", "plan"): self.video_sees_actions,
        }
        return VISIBLE[query].get(key) if let_in.get((query, key), True) else None

    def pattern(self, kind: str, frames: int, tokens: int, actions: int) -> ClipPattern:
        """The rule in one softmax layer of that kind."""
        return ClipPattern(
            kind,
            frames,
            tokens,
            actions,
            self.config.window,
            self.config.dilation,
            self.window_unit,
            self.history,
            restrict_history=self.sees("history", "future") is None,
            actions_see_future=self.sees("plan", "future") is not None,
            video_sees_actions=self.sees("future", "plan") is not None,
            pad_dilated=self.pad_dilated,
        )

    def attend(
        self, kind: str, video: Heads | None, action: Heads | None, memory: LayerMemory | None
    ) -> tuple[Tensor | None, Tensor | None, LayerMemory | None]:
        """See `Rule`. To actions, remembered frames are one block of keys, however many there are."""
        number = 0 if action is None else action[0].shape[1]
        if kind == "gdn":  # the experts do not meet here
            if action is None:
                return None, None, None
            return None, self.mixing.attention(*action, ClipPattern("fa", 0, 1, number)).flatten(2), None
        if video is not None:
            frames, tokens = video[0].shape[1:3]
            queries, keys, values = ([x.flatten(1, 2)] for x in video)
        else:
            assert memory is not None
            keys, values, queries = [*memory.keys], [*memory.values], []
            frames, tokens = 1, keys[0].shape[1]
        if action is not None:
            queries, keys, values = ([*a, b] for a, b in zip((queries, keys, values), action, strict=True))
        q, k, v = (torch.cat(x, 1) for x in (queries, keys, values))
        out = self.mixing.attention(q, k, v, self.pattern(kind, frames, tokens, number)).flatten(2)
        kept = LayerMemory((keys[0],), (values[0],)) if self.keep and video is not None else None
        return (
            None if video is None else out[:, : frames * tokens].unflatten(1, (frames, tokens)),
            None if action is None else out[:, -number:],
            kept,
        )

    def delta(
        self, layer: GatedDeltaNet, x: Tensor, state: GatedDeltaState | None
    ) -> tuple[Tensor, GatedDeltaState | None]:
        """See `Rule`: raster order from an empty memory."""
        return self.mixing.delta(layer, x), None
