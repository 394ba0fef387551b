"""The mixture of transformers: video and action expert joined layer by layer, in one pass for every use.

Streaming frames, proposing a chunk, the joint and inverse modes, whole clips, prefill and training all run
`MixtureOfTransformers.run`. They differ in the groups of tokens that go in and in the rule by which these meet and are
remembered (`attention.visibility`).
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kairos_env.world_model.action_expert import ActionDiT
from kairos_env.world_model.attention.rotary import rotate
from kairos_env.world_model.attention.visibility import (
    Heads,
    Joint,
    LayerMemory,
    Proposal,
    Rule,
    Stream,
    Tokens,
)
from kairos_env.world_model.dit import ContextReads, Modulation, VideoDiT, modulate, read_context

Embedded = tuple[Tensor, Tensor]  # tokens and the modulation of their group
Memory = tuple[LayerMemory, ...]
Video = TypeVar("Video", bound=VideoDiT)
Action = TypeVar("Action", bound=ActionDiT | None)


class Contexts(NamedTuple):
    """A context as the blocks of either expert see it, and its mask (B, S) bool; () for an expert that does not run."""

    video: ContextReads
    action: ContextReads
    mask: Tensor | None = None


class Passed(NamedTuple):
    """What a pass returns: output tokens of either expert, None where it did not run, and the memory after it."""

    video: Tensor | None
    action: Tensor | None
    memory: tuple[LayerMemory | None, ...]


class _Passing:
    """One expert's tokens on their way through its blocks."""

    def __init__(self, blocks: nn.ModuleList, group: Tokens, context: ContextReads, mask: Tensor | None) -> None:
        self.blocks, self.tokens, self.context, self.mask = blocks, group.tokens, context, mask
        self.modulation, self.table = group.modulation, group.table

    def modulated(self, index: int) -> Tensor:
        """Tokens as block ``index`` mixes them."""
        self.current: Modulation = self.blocks[index].modulations(self.modulation)
        return modulate(self.tokens, self.current.scale_a, self.current.shift_a)

    def heads(self, index: int, modulated: Tensor) -> Heads:
        """Rotated queries and keys, and values of a softmax layer, (B, ..., T, H, K) each."""
        q, k, v = self.blocks[index].self_attn.qkv(modulated)
        return rotate(q, self.table), rotate(k, self.table), v

    def finish(self, index: int, mixed: Tensor) -> None:
        """The rest of the block."""
        block = self.blocks[index]
        context = self.context[index] if self.context else None
        self.tokens = block.finish(self.tokens, mixed.view_as(self.tokens), self.current, context, self.mask)


class MixtureOfTransformers(nn.Module, Generic[Video, Action]):
    """Video and action expert side by side."""

    def __init__(self, video_dit: Video, action_dit: Action) -> None:
        super().__init__()
        self.video_dit = video_dit
        self.action_dit = action_dit  # None: video only

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.video_dit.config.kinds

    def run(
        self,
        video: Tokens | None,
        action: Tokens | None,
        contexts: Contexts,
        rule: Rule,
        memory: tuple[LayerMemory | None, ...] = (),
    ) -> Passed:
        """All blocks of the experts whose tokens are given.

        Args:
            video, action: tokens, in the shapes that the rule asks for.
            contexts: what each block sees of the instruction.
            rule: how tokens meet.
            memory: of every layer, from an earlier pass; () where the rule needs none.
        """
        x = a = None
        if video is not None:
            x = _Passing(self.video_dit.blocks, video, contexts.video, contexts.mask)
        if action is not None:
            assert self.action_dit is not None
            a = _Passing(self.action_dit.blocks, action, contexts.action, contexts.mask)
        after: list[LayerMemory | None] = []
        for index, kind in enumerate(self.kinds):
            old = memory[index] if memory else None
            frames = actions = mixed = state = None
            if x is not None:
                modulated = x.modulated(index)
                if kind == "gdn":
                    mixed, state = rule.delta(x.blocks[index].gated_delta, modulated, old and old.delta)  # type: ignore[arg-type]
                else:
                    frames = x.heads(index, modulated)
            if a is not None:
                actions = a.heads(index, a.modulated(index))
            video_heads, action_heads, new = rule.attend(kind, frames, actions, old)
            if x is not None:
                x.finish(index, x.blocks[index].self_attn.o(video_heads) if mixed is None else mixed)
            if a is not None:
                a.finish(index, a.blocks[index].self_attn.o(action_heads))
            after.append(new if new is None or mixed is None else new._replace(delta=state))
        return Passed(None if x is None else x.tokens, None if a is None else a.tokens, tuple(after))

    def read_context(
        self, tokens: Tensor, mask: Tensor | None = None, video: bool = True, action: bool = True
    ) -> Contexts:
        """Context (B, S, text width) -> its keys and values for the experts that will run, once for all steps."""
        expert = self.action_dit
        return Contexts(
            read_context(self.video_dit, tokens) if video else (),
            read_context(expert, tokens) if action and expert is not None else (),
            mask,
        )

    # streaming --------------------------------------------------------------------------------------------------------

    def empty_memory(self, batch: int, frame_tokens: int, lead: bool = True, frames: int = 1) -> Memory:
        """Memory before the first frame.

        Args:
            frame_tokens: L; ``lead``: whether a group begins with the action that led to its frame.
            frames: of so many newest frames the whole window is kept, for chunks proposed at each of them.
        """
        config, weight = self.video_dit.config, self.video_dit.patch_embedding.weight
        layers = []
        for kind, block in zip(self.kinds, self.video_dit.blocks, strict=True):
            size = lead if kind == "gdn" else lead + frame_tokens
            ring = config.offsets(kind)[-1] + frames
            empty = (weight.new_zeros(batch, size, config.heads, config.head_dim),) * ring
            layers.append(LayerMemory(empty, empty, block.gated_delta.initial_state(batch) if kind == "gdn" else None))
        return tuple(layers)

    def frames(
        self,
        lead: Embedded | None,
        frames: Embedded,
        contexts: Contexts,
        memory: Memory,
        past: Tensor,
        grid: tuple[int, int],
        remembered: bool = True,
        table: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Memory]:
        """F consecutive decisions in one pass.

        Args:
            lead: tokens (B, F, 1, Da) and modulation (B, F, 6 Da) of the actions that led to the frames; None for a
                model that has no such tokens.
            frames: tokens (B, F, L, D) and modulation (B, F, 6 D).
            memory: of the frames before.
            past: (B,) int64, number of frames before.
            grid: token rows and columns of a frame.
            remembered: False for a single frame that only reads.
            table: rotations of the frames, if they are known already.

        Returns:
            output tokens (B, F, L, D), and the memory after the last frame.
        """
        time = past[:, None] + torch.arange(frames[0].shape[1], device=past.device)
        video = Tokens(frames[0], frames[1].unsqueeze(-2), table or self.video_dit.rotations(time, grid))
        action = None if lead is None else self._actions(lead, time[..., None])
        out = self.run(video, action, contexts, Stream(self.video_dit.config, past, remembered), memory)
        assert out.video is not None
        return out.video, out.memory  # type: ignore[return-value]

    def propose(self, chunk: Embedded, contexts: Contexts, memory: Memory, past: Tensor) -> Tensor:
        """Action chunks at the F newest remembered frames, each blind to the frames after its own.

        Only the action expert runs; everything it knows about the frames is in the remembered keys and values. R chunks
        for each element of the batch may stand side by side (of several tasks, say): [0, 0, 1, 1, ...].

        Args:
            chunk: tokens (B R, F, N, Da) and modulation (B R, F, 6 Da).
            contexts: of the chunks, (B R, ...).
            memory: of B elements, with the windows of F frames (`empty_memory`).
            past: (B,) number of frames so far.

        Returns:
            (B R, F, N, Da).
        """
        frames, number = chunk[0].shape[1:3]
        at = torch.arange(1 - frames, 1, device=past.device)[:, None] + torch.arange(number, device=past.device)
        time = (past[:, None, None] + at).repeat_interleave(len(chunk[0]) // len(past), 0)
        rule = Proposal(self.video_dit.config, past)
        out = self.run(None, self._actions(chunk, time), contexts, rule, memory).action
        assert out is not None
        return out

    def joint(
        self,
        chunk: Embedded,
        future: Embedded,
        contexts: Contexts,
        memory: Memory,
        past: Tensor,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """N future actions and the N frames that they lead to, each at its own noise level.

        Args:
            chunk: tokens (B, N, Da), modulation (B, 6 Da).
            future: tokens (B, N, L, D), modulation (B, N, 6 D).

        Returns:
            output tokens of both.
        """
        time = past[:, None] + torch.arange(chunk[0].shape[1], device=past.device)
        video = Tokens(future[0], future[1].unsqueeze(-2), self.video_dit.rotations(time, grid))
        rule = Joint(self.video_dit.config, past)
        out = self.run(video, self._actions(chunk, time), contexts, rule, memory)
        assert out.video is not None and out.action is not None
        return out.action, out.video

    def _actions(self, embedded: Embedded, time: Tensor) -> Tokens:
        """Actions (B, ..., N, Da) with their modulation (B, ..., 6 Da), at the decisions ``time`` (B, ..., N)."""
        assert self.action_dit is not None
        return Tokens(embedded[0], embedded[1].unsqueeze(-2), self.action_dit.rotations(time))
