"""The bidirectional style: whole clips and action chunks in one pass, as the published weights were trained.

The same blocks as in the streaming style, over ``[F frames of L tokens | N actions]``. Softmax layers mix both
experts under one `ClipPattern`; in a gated delta layer the video reads and writes its memory in raster order and
the actions see only each other. Five modes follow from who is noisy and who sees whom (`Rule`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kairos_env.world_model.action_expert import ActionDiT, MixtureOfTransformers
from kairos_env.world_model.attention.patterns import ClipPattern, clip_attention, rope, rotate
from kairos_env.world_model.config import VideoConfig
from kairos_env.world_model.dit import ContextReads, Modulation, VideoDiT, modulate, read_context
from kairos_env.world_model.gated_delta_net import GatedDeltaNet

VideoCache = tuple[tuple[Tensor, Tensor] | None, ...]  # per layer rotated keys and values (B, T, H, K), None for delta
Mixture = MixtureOfTransformers[VideoDiT, ActionDiT | None]


@dataclass(frozen=True)
class Rule:
    """Who sees whom. The defaults are the released world-action rule: neither expert sees the other's future.

    Args:
        history: observed latent frames at the start of the clip.
        restrict_history: their tokens see only each other.
        actions_see_future: actions see the frames after the history (joint quality, inverse mode).
        video_sees_actions: a future frame sees the actions that lead up to it (forward mode).
        window_unit: windows counted in latent frames or in tokens.
        pad_dilated: zero keys that pad a dilated token window take part in its softmax.
    """

    history: int = 1
    restrict_history: bool = True
    actions_see_future: bool = False
    video_sees_actions: bool = False
    window_unit: Literal["frame", "token"] = "frame"
    pad_dilated: bool = True

    def pattern(self, config: VideoConfig, kind: str, frames: int, tokens: int, actions: int) -> ClipPattern:
        """The rule in one softmax layer of that kind."""
        return ClipPattern(
            kind,
            frames,
            tokens,
            actions,
            config.window,
            config.dilation,
            self.window_unit,
            self.history,
            self.restrict_history,
            self.actions_see_future,
            self.video_sees_actions,
            self.pad_dilated,
        )


class VideoTokens(NamedTuple):
    """Embedded latent frames.

    tokens (B, F, L, D), time (B, F, D), modulation (B, F, 6 D), table: cos and sin (F, L, K / 2), height of the
    latents in cells.
    """

    tokens: Tensor
    time: Tensor
    modulation: Tensor
    table: tuple[Tensor, Tensor]
    height: int


class ActionTokens(NamedTuple):
    """An embedded action chunk: tokens (B, N, Da), modulation (B, 6 Da), table: cos and sin (N, K / 2)."""

    tokens: Tensor
    modulation: Tensor
    table: tuple[Tensor, Tensor]


class Contexts(NamedTuple):
    """A context as the blocks of either expert see it, and its mask (B, S) bool; () for an expert that does not run."""

    video: ContextReads
    action: ContextReads
    mask: Tensor | None


class Mixing(Protocol):
    """Where tokens meet; everything else in a block is token by token. ``parallel`` offers others than `Local`."""

    def split(self, video: VideoTokens) -> VideoTokens:
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

    def split(self, video: VideoTokens) -> VideoTokens:
        return video

    def join(self, tokens: Tensor) -> Tensor:
        return tokens

    def attention(self, q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
        return clip_attention(q, k, v, pattern, self.engine)

    def delta(self, layer: GatedDeltaNet, x: Tensor) -> Tensor:
        return layer(x.flatten(1, 2))[0].view_as(x)


LOCAL = Local()


def embed_video(dit: VideoDiT, latents: Tensor, sigma: Tensor, rounded: bool = False) -> VideoTokens:
    """Latents (B, F, C, h, w) at noise levels sigma (B, F) -> tokens. ``rounded``: timesteps as in `embed`."""
    frames, height = latents.shape[1], latents.shape[-2]
    patch = dit.config.patch
    axes = (frames, height // patch, latents.shape[-1] // patch)
    positions = torch.cartesian_prod(*(torch.arange(n, device=latents.device) for n in axes)).view(frames, -1, 3)
    time, modulation = dit.embed(sigma, rounded=rounded)
    return VideoTokens(dit.embed_patches(latents), time, modulation, rope(positions, dit.config.head_dim), height)


def read_video(dit: VideoDiT, tokens: Tensor, video: VideoTokens) -> Tensor:
    """Output tokens (B, F, L, D) of the frames ``video`` -> velocity (B, F, C, h, w)."""
    return dit.unpatchify(dit.head(tokens, video.time), video.height)


def embed_actions(
    expert: ActionDiT, head_dim: int, actions: Tensor, sigma: Tensor, rounded: bool = False
) -> ActionTokens:
    """Normalised actions (B, N, A) at noise levels sigma (B,) -> tokens, rotated by their place 0 ... N - 1."""
    positions = torch.arange(actions.shape[1], device=actions.device)[:, None]
    _, modulation = expert.embed(sigma, rounded=rounded)
    return ActionTokens(expert.action_encoder(actions), modulation, rope(positions, head_dim))


def embed_context(
    mixture: Mixture, tokens: Tensor, mask: Tensor | None = None, video: bool = True, action: bool = True
) -> Contexts:
    """Context (B, S, text width) -> its keys and values for the experts that will run, once for all steps."""
    expert = mixture.action_dit
    return Contexts(
        read_context(mixture.video_dit, tokens) if video else (),
        read_context(expert, tokens) if action and expert is not None else (),
        mask,
    )


class _Stream:
    """One expert's tokens on their way through its blocks: (B, F, L, D) frames, or (B, N, Da) actions."""

    def __init__(
        self, blocks: nn.ModuleList, part: VideoTokens | ActionTokens, context: ContextReads, mask: Tensor | None
    ) -> None:
        self.blocks, self.tokens, self.context, self.mask = blocks, part.tokens, context, mask
        self.modulation, self.table = part.modulation, part.table

    @property
    def length(self) -> int:
        return self.tokens.shape[1:-1].numel()

    def modulated(self, index: int) -> Tensor:
        """Tokens as block ``index`` mixes them."""
        self.current: Modulation = self.blocks[index].modulations(self.modulation)
        return modulate(self.tokens, self.current.scale_a, self.current.shift_a)

    def qkv(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values of a softmax layer, (B, T, H, K) each."""
        q, k, v = self.blocks[index].self_attn.qkv(self.modulated(index))
        q, k = rotate(q, self.table), rotate(k, self.table)
        return q.flatten(1, -3), k.flatten(1, -3), v.flatten(1, -3)

    def finish(self, index: int, heads: Tensor) -> None:
        """Output projection of attended heads (B, T, H, K), then the rest of the block."""
        self.finish_mixed(index, self.blocks[index].self_attn.o(heads.flatten(2)))

    def finish_mixed(self, index: int, mixed: Tensor) -> None:
        block, mixed = self.blocks[index], mixed.view_as(self.tokens)
        self.tokens = block.finish(self.tokens, mixed, self.current, self.context[index], self.mask)


def run_blocks(
    mixture: Mixture,
    video: VideoTokens | None,
    action: ActionTokens | None,
    contexts: Contexts,
    rule: Rule,
    cache: VideoCache = (),
    mixing: Mixing = LOCAL,
    keep: bool = False,
) -> tuple[Tensor | None, Tensor | None, VideoCache]:
    """All blocks over a clip, an action chunk, or both.

    Args:
        video: frames to compute; None if there are none or if ``cache`` has them.
        action: actions to compute, or None.
        cache: what an earlier call kept of observed frames; the actions see all of them.
        keep: return the frames' keys and values; of a long clip they are as large as the weights.

    Returns:
        output tokens of the frames (B, F, L, D) and of the actions (B, N, Da), None where not asked for, and the
        frames' keys and values, () where not asked for.
    """
    if (video is None) != (len(cache) > 0):
        raise ValueError("run_blocks computes the frames or takes them from the cache: give one of the two")
    config = mixture.video_dit.config
    x = a = None
    if video is not None:
        x = _Stream(mixture.video_dit.blocks, mixing.split(video), contexts.video, contexts.mask)
    frames, tokens = x.tokens.shape[1:3] if x else (1, _cached_tokens(cache))
    if action is not None:
        assert mixture.action_dit is not None
        a = _Stream(mixture.action_dit.blocks, action, contexts.action, contexts.mask)
    number = a.length if a else 0
    kept: list[tuple[Tensor, Tensor] | None] = []
    for index, kind in enumerate(config.kinds):
        if kind == "gdn":  # the experts do not meet here
            kept.append(None)  # a memory, not keys
            if x:
                layer: GatedDeltaNet = x.blocks[index].gated_delta  # type: ignore[assignment]
                x.finish_mixed(index, mixing.delta(layer, x.modulated(index)))
            if a:
                a.finish(index, mixing.attention(*a.qkv(index), ClipPattern("fa", 0, 1, number)))
            continue
        queries = []
        if x:
            q, k, v = x.qkv(index)
            queries.append(q)
        else:
            k, v = cache[index]  # type: ignore[misc]  # a windowed layer has its pair
        if keep:
            kept.append((k, v))
        if a:
            q, own_k, own_v = a.qkv(index)
            queries.append(q)
            k, v = torch.cat([k, own_k], 1), torch.cat([v, own_v], 1)
        pattern = rule.pattern(config, kind, frames, tokens, number)
        out = mixing.attention(torch.cat(queries, 1), k, v, pattern)
        if x:
            x.finish(index, out[:, : x.length])
        if a:
            a.finish(index, out[:, -number:])
    return mixing.join(x.tokens) if x else None, a.tokens if a else None, tuple(kept) if keep else ()


def _cached_tokens(cache: VideoCache) -> int:
    # to the actions, observed frames are one block of keys, however many there are
    return next(pair[0].shape[1] for pair in cache if pair is not None)
