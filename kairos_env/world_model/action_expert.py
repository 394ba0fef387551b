"""The action expert, and the mixture of transformers that joins it to the video expert layer by layer.

One decision is a group of tokens: the *lead* action that led to a frame, and the frame itself. Beside the
clean frames (what was observed or imagined, and is remembered) there may be a noisy copy of each frame
(being denoised) and an action chunk at each frame (being denoised). Who sees whom is `VISIBLE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from kairos_env.world_model.attention.patterns import attend, rope, rotate, window, window_valid
from kairos_env.world_model.config import ActionConfig, VideoConfig
from kairos_env.world_model.dit import (
    EPS,
    Block,
    ContextReads,
    SelfAttention,
    TimeEmbedding,
    VideoDiT,
    modulate,
    two_layers,
)
from kairos_env.world_model.gated_delta_net import GatedDeltaState

# query kind -> key kinds it sees. "past" are the remembered groups inside the layer's window; "chunk" is a
# proposal, which no frame sees outside the joint mode (`MixtureOfTransformers.joint` has that mode's rule).
VISIBLE: dict[str, tuple[str, ...]] = {
    "lead": ("past", "lead"),
    "clean": ("past", "lead", "clean"),
    "noisy": ("past", "lead", "noisy"),
    "chunk": ("past", "lead", "clean", "chunk"),
}


class ActionBlock(Block):
    """Block of the action expert: full attention width, narrow residual stream."""

    def __init__(self, config: ActionConfig, video: VideoConfig) -> None:
        super().__init__(config.dim, config.ffn_dim, video.heads, video.head_dim)
        self.self_attn = SelfAttention(config.dim, video.heads, video.head_dim)


class ActionDiT(TimeEmbedding):
    """Action expert with exactly the published parameters: one token per action.

    Args:
        proprio_dim: P of a proprioception that joins the context as a token of its own; 0 for none.
    """

    def __init__(
        self, config: ActionConfig, video: VideoConfig, text_dim: int, action_dim: int, proprio_dim: int = 0
    ) -> None:
        super().__init__(config.dim)
        self.config = config
        if proprio_dim:
            self.proprio_encoder = two_layers(proprio_dim, text_dim)
        self.action_encoder = nn.Linear(action_dim, config.dim)
        self.text_embedding = two_layers(text_dim, config.dim)
        self.blocks = nn.ModuleList(ActionBlock(config, video) for _ in video.kinds)
        self.head = nn.Linear(config.dim, action_dim)

    def read(self, tokens: Tensor) -> Tensor:
        """Tokens (..., Da) -> normalised actions or their velocity (..., A)."""
        return self.head(tokens)


class StreamingActionDiT(ActionDiT):
    """The action expert driven decision by decision: also embeds the action that led to a frame."""

    def __init__(self, config: ActionConfig, video: VideoConfig, text_dim: int, action_dim: int) -> None:
        super().__init__(config, video, text_dim, action_dim)
        self.no_action = nn.Parameter(torch.randn(config.dim) * 0.02)  # the lead of a first frame
        self.norm = nn.LayerNorm(config.dim, eps=EPS)

    def embed_lead(self, action: Tensor, has_action: Tensor) -> Tensor:
        """Normalised lead actions (B, F, A) and whether there was one (B, F) -> (B, F, 1, Da)."""
        tokens = torch.where(has_action.bool().unsqueeze(-1), self.action_encoder(action), self.no_action)
        return tokens.unsqueeze(2)

    def read(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(tokens))


@dataclass(frozen=True)
class LayerMemory:
    """What one layer keeps of the past: the last R groups, oldest first, and the delta rule's state.

    keys, values: (B, R, G, H, K); in a gated delta layer only the lead actions' (G = 1).
    """

    keys: Tensor
    values: Tensor
    delta: GatedDeltaState | None = None


Video = TypeVar("Video", bound=VideoDiT)
Action = TypeVar("Action", bound="ActionDiT | None")


class MixtureOfTransformers(nn.Module, Generic[Video, Action]):
    """Video and action expert side by side. The methods are the streaming style: causal, group by group.

    ``bidirectional`` runs the same blocks over whole clips.
    """

    def __init__(self, video_dit: Video, action_dit: Action) -> None:
        super().__init__()
        self.video_dit = video_dit
        self.action_dit = action_dit  # None: video only

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.video_dit.config.kinds

    def offsets(self, kind: str) -> tuple[int, ...]:
        """Frame distances back of a layer; the actions of a gated delta layer use the plain window."""
        return self.video_dit.config.offsets("swa" if kind == "gdn" else kind)

    def empty_memory(self, batch: int, frame_tokens: int) -> tuple[LayerMemory, ...]:
        """Memory before the first frame."""
        config, weight = self.video_dit.config, self.action_dit.head.weight
        layers = []
        for kind, block in zip(self.kinds, self.video_dit.blocks, strict=True):
            ring, size = self.offsets(kind)[-1] + 1, 1 if kind == "gdn" else 1 + frame_tokens
            empty = weight.new_zeros(batch, ring, size, config.heads, config.head_dim)
            delta = block.gated_delta.initial_state(batch) if kind == "gdn" else None
            layers.append(LayerMemory(empty, empty, delta))
        return tuple(layers)

    def rope_table(self, time: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        """Rotations of ``[action | proprioception | grid]``, or of actions alone: time (B, F) -> (B, F, T, K/2)."""
        places = [(-1.0, -2.0)]
        if grid is not None:
            places += [(-1.0, -1.0)] + [(float(y), float(x)) for y in range(grid[0]) for x in range(grid[1])]
        plane = torch.tensor(places, dtype=torch.float64, device=time.device)
        shape = (*time.shape, len(places))
        positions = torch.cat(
            [time.double()[..., None, None].expand(*shape, 1), plane.expand(*time.shape, *plane.shape)], -1
        )
        return rope(positions, self.video_dit.config.head_dim)

    def frames(
        self,
        lead: tuple[Tensor, Tensor],
        streams: dict[str, tuple[Tensor, Tensor]],
        context: tuple[ContextReads, ContextReads],
        memory: tuple[LayerMemory, ...],
        past: Tensor,
        grid: tuple[int, int],
        chunk: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor | None, tuple[LayerMemory, ...]]:
        """F consecutive decisions in one pass.

        Args:
            lead: tokens (B, F, 1, Da) and modulation (B, F, 6 Da) of the actions that led to the frames.
            streams: ``"clean"`` and/or ``"noisy"`` -> tokens (B, F, L, D) and modulation (B, F, 6 D).
            context: the instruction as `dit.read_context` gives it, for the video and for the action expert.
            memory: of the frames before; it grows only by a clean stream.
            past: (B,) int64, number of frames before.
            grid: token rows and columns of a frame.
            chunk: tokens (B, F, N, Da) and modulation (B, F, 6 Da) of an action chunk proposed at each frame.

        Returns:
            output tokens of each stream, of the chunk, and the memory after the last frame.
        """
        names = tuple(streams)
        count = lead[0].shape[1]
        x = torch.stack([streams[n][0] for n in names], 2)  # (B, F, S, L, D)
        x_mod = torch.stack([streams[n][1] for n in names], 2)
        length = x.shape[3]
        a, a_mod = lead[0], lead[1].unsqueeze(2)  # (B, F, 1, Da)
        proposals = 0
        if chunk is not None:
            proposals = chunk[0].shape[2]
            a = torch.cat([a, chunk[0]], 2)
            a_mod = torch.cat([a_mod, chunk[1].unsqueeze(2).expand(-1, -1, proposals, -1)], 2)
        time = past[:, None] + torch.arange(count, device=past.device)
        table = self.rope_table(time, grid)
        lead_table = (table[0][:, :, :1], table[1][:, :, :1])
        frame_table = (table[0][:, :, None, 1:], table[1][:, :, None, 1:])
        action_table = lead_table
        if proposals:
            ahead = time[..., None] + 1 + torch.arange(proposals, device=time.device)
            cos, sin = (t.reshape(*ahead.shape, -1) for t in self.rope_table(ahead.flatten(1), None))
            action_table = torch.cat([lead_table[0], cos], 2), torch.cat([lead_table[1], sin], 2)

        present = ("lead", *names) + (("chunk",) if proposals else ())
        sizes = {"lead": 1, "clean": length, "noisy": length, "chunk": proposals}
        new_memory = []
        for kind, video, action, old, seen_x, seen_a in zip(
            self.kinds, self.video_dit.blocks, self.action_dit.blocks, memory, *context, strict=True
        ):
            offsets = self.offsets(kind)
            mod_x = video.modulations(x_mod)
            mod_a = action.modulations(a_mod)
            mod_a = type(mod_a)(*(m.squeeze(-2) for m in mod_a))  # one modulation per action token
            h = modulate(x, mod_x.scale_a, mod_x.shift_a)
            qa, ka, va = action.self_attn.qkv(modulate(a, mod_a.scale_a, mod_a.shift_a))
            qa, ka = rotate(qa, action_table), rotate(ka, action_table)
            delta = None
            if kind == "gdn":
                mixed_x, delta = self._delta(video, h, names, old.delta)
                q, k, v = {"lead": qa[:, :, :1]}, {"lead": ka[:, :, :1]}, {"lead": va[:, :, :1]}
                group: tuple[str, ...] = ("lead",)
            else:
                qx, kx, vx = video.self_attn.qkv(h)
                qx, kx = rotate(qx, frame_table), rotate(kx, frame_table)
                q, k, v = ({"lead": t[:, :, :1]} for t in (qa, ka, va))
                for i, name in enumerate(names):
                    q[name], k[name], v[name] = qx[:, :, i], kx[:, :, i], vx[:, :, i]
                group = ("lead", names[0])
            if proposals:
                q["chunk"], k["chunk"], v["chunk"] = (t[:, :, 1:] for t in (qa, ka, va))

            # keys: remembered groups inside the window, then whatever belongs to the own decision
            keys = torch.cat([old.keys, torch.cat([k[n] for n in group], 2)], 1)
            values = torch.cat([old.values, torch.cat([v[n] for n in group], 2)], 1)
            kinds = tuple(n for n in present if n in q)
            size = old.keys.shape[2]
            mask = self._mask(kinds, sizes, offsets[1:], size, past, count)
            out = attend(
                torch.cat([q[n] for n in kinds], 2),
                torch.cat([window(keys, offsets[1:], count), *(k[n] for n in kinds)], 2),
                torch.cat([window(values, offsets[1:], count), *(v[n] for n in kinds)], 2),
                mask,
            )
            parts = dict(zip(kinds, out.split([sizes[n] for n in kinds], 2), strict=True))
            if kind != "gdn":
                mixed_x = video.self_attn.o(torch.stack([parts[n] for n in names], 2))
            mixed_a = action.self_attn.o(torch.cat([parts[n] for n in ("lead", "chunk") if n in parts], 2))
            x = video.finish(x, mixed_x, mod_x, seen_x)
            a = action.finish(a, mixed_a, mod_a, seen_a)
            if "clean" in names:
                ring = old.keys.shape[1]
                old = LayerMemory(keys[:, -ring:], values[:, -ring:], delta)
            new_memory.append(old)
        outputs = {name: x[:, :, i] for i, name in enumerate(names)}
        return outputs, a[:, :, 1:] if proposals else None, tuple(new_memory)

    def propose(
        self,
        chunk: tuple[Tensor, Tensor],
        context: ContextReads,
        memory: tuple[LayerMemory, ...],
        past: Tensor,
    ) -> Tensor:
        """Action tokens at the newest remembered frame: (B, N, Da) and modulation (B, 6 Da) -> (B, N, Da).

        Only the action expert runs; everything it knows about the frames is in the remembered keys and values.
        """
        a, a_mod = chunk[0].unsqueeze(1), chunk[1].unsqueeze(1)
        number = a.shape[2]
        time = past[:, None] + torch.arange(number, device=past.device)
        cos, sin = self.rope_table(time, None)
        table = cos.transpose(1, 2), sin.transpose(1, 2)  # (B, 1, N, K/2)
        for kind, action, old, seen in zip(self.kinds, self.action_dit.blocks, memory, context, strict=True):
            offsets = self.offsets(kind)
            mod = action.modulations(a_mod)
            q, k, v = action.self_attn.qkv(modulate(a, mod.scale_a, mod.shift_a))
            q, k = rotate(q, table), rotate(k, table)
            size = old.keys.shape[2]
            valid = window_valid(past - 1, offsets, 1).repeat_interleave(size, -1)  # (B, 1, keys)
            mask = torch.cat([valid, valid.new_ones(len(past), 1, number)], -1).unsqueeze(2)
            out = attend(
                q,
                torch.cat([window(old.keys, offsets, 1), k], 2),
                torch.cat([window(old.values, offsets, 1), v], 2),
                mask,
            )
            a = action.finish(a, action.self_attn.o(out), mod, seen)
        return a.squeeze(1)

    def joint(
        self,
        chunk: tuple[Tensor, Tensor],
        future: tuple[Tensor, Tensor],
        context: tuple[ContextReads, ContextReads],
        memory: tuple[LayerMemory, ...],
        past: Tensor,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """N future actions and the N frames that they lead to, each at its own noise level.

        Strictly causal: action j sees actions and frames up to the one that it leads to, frame j the actions and
        frames inside its window up to action j. Were the actions to see each other freely, a frame would learn
        of later actions through earlier ones.

        Args:
            chunk: tokens (B, N, Da), modulation (B, 6 Da).
            future: tokens (B, N, L, D), modulation (B, N, 6 D).

        Returns:
            output tokens of both.
        """
        a, a_mod = chunk[0], chunk[1].unsqueeze(1)
        x, x_mod = future
        number, length = x.shape[1:3]
        time = past[:, None] + torch.arange(number, device=past.device)
        cos, sin = self.rope_table(time, grid)
        action_table = cos[:, :, 0], sin[:, :, 0]
        frame_table = cos[:, :, 1:].flatten(1, 2), sin[:, :, 1:].flatten(1, 2)
        step = torch.arange(number, device=past.device)
        upto = step[:, None] >= step[None, :]
        for kind, video, action, old, seen_x, seen_a in zip(
            self.kinds, self.video_dit.blocks, self.action_dit.blocks, memory, *context, strict=True
        ):
            offsets = torch.tensor(self.offsets(kind), device=past.device)
            mod_x, mod_a = video.modulations(x_mod), action.modulations(a_mod.squeeze(1))
            h = modulate(x, mod_x.scale_a, mod_x.shift_a)
            qa, ka, va = action.self_attn.qkv(modulate(a, mod_a.scale_a, mod_a.shift_a))
            qa, ka = rotate(qa, action_table), rotate(ka, action_table)
            age = torch.arange(old.keys.shape[1] - 1, -1, -1, device=past.device)  # of the remembered groups
            exists = (age < past[:, None]).repeat_interleave(old.keys.shape[2], -1)[:, None]  # (B, 1, R G)
            near = torch.isin(age, offsets).repeat_interleave(old.keys.shape[2])
            action_sees = torch.cat([(near & exists).expand(-1, number, -1), upto.expand(len(past), -1, -1)], -1)
            keys, values = torch.cat([old.keys.flatten(1, 2), ka], 1), torch.cat([old.values.flatten(1, 2), va], 1)
            queries, mask = qa, action_sees
            if kind == "gdn":
                assert old.delta is not None
                mixed_x = video.gated_delta(h.flatten(1, 2), old.delta)[0].unflatten(1, (number, length))
            else:
                qx, kx, vx = (t.flatten(1, 2) for t in video.self_attn.qkv(h))
                qx, kx = rotate(qx, frame_table), rotate(kx, frame_table)
                distance = step[:, None] - step[None, :]
                past_near = torch.isin(step[:, None] + 1 + age[None, :], offsets)
                past_near = past_near.repeat_interleave(old.keys.shape[2], 1)
                own = torch.isin(distance, offsets)  # isin of a negative distance is False: never a later one
                frame_sees = torch.cat([past_near & exists, own.expand(len(past), -1, -1)], -1).repeat_interleave(
                    length, 1
                )
                to_frames = own.repeat_interleave(length, 0).repeat_interleave(length, 1).expand(len(past), -1, -1)
                from_actions = upto.repeat_interleave(length, 1).expand(len(past), -1, -1)
                mask = torch.cat([torch.cat([mask, from_actions], -1), torch.cat([frame_sees, to_frames], -1)], 1)
                queries = torch.cat([qa, qx], 1)
                keys, values = torch.cat([keys, kx], 1), torch.cat([values, vx], 1)
            out = attend(queries[:, None], keys[:, None], values[:, None], mask[:, None]).squeeze(1)
            if kind != "gdn":
                mixed_x = video.self_attn.o(out[:, number:].unflatten(1, (number, length)))
            x = video.finish(x, mixed_x, mod_x, seen_x)
            a = action.finish(a, action.self_attn.o(out[:, :number]), mod_a, seen_a)
        return a, x

    @staticmethod
    def _delta(
        video: nn.Module, h: Tensor, names: tuple[str, ...], state: GatedDeltaState | None
    ) -> tuple[Tensor, GatedDeltaState | None]:
        """The gated delta net over (B, F, S, L, D): the clean stream is remembered, the noisy one only reads."""
        if names == ("clean", "noisy"):
            clean, noisy, state = video.gated_delta.forward_frames(h[:, :, 0], h[:, :, 1], state)
            return torch.stack([clean, noisy], 2), state
        if names == ("noisy",) and h.shape[1] > 1:
            raise ValueError("several noisy frames need the clean ones beside them")
        out, new = video.gated_delta(h.flatten(1, 3), state)
        return out.view_as(h), new if names == ("clean",) else state

    @staticmethod
    def _mask(
        kinds: tuple[str, ...],
        sizes: dict[str, int],
        past_offsets: tuple[int, ...],
        group: int,
        past: Tensor,
        frames: int,
    ) -> Tensor:
        """`VISIBLE` spelled out: (B, F, queries, keys) for keys ``[past groups | own kinds]``."""
        device = past.device
        rows = []
        for query in kinds:
            row = torch.cat([torch.full((sizes[key],), key in VISIBLE[query], device=device) for key in kinds])
            rows.append(row.expand(sizes[query], -1))
        own = torch.cat(rows)  # (queries, own keys)
        valid = window_valid(past, past_offsets, frames).repeat_interleave(group, -1)  # (B, F, past keys)
        return torch.cat(
            [
                valid.unsqueeze(2).expand(-1, -1, len(own), -1),
                own.expand(*valid.shape[:2], -1, -1),
            ],
            -1,
        )
