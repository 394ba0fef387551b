"""The video diffusion transformer: embeddings, modulation, block.

Parameter names and the scale-shift-gate order follow the published checkpoint.
Letters as in ``records``; S streams (clean and noisy copies of the same frames).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kairos_env.world_model.attention import softmax_attention
from kairos_env.world_model.config import VideoConfig
from kairos_env.world_model.flow import timestep_embedding
from kairos_env.world_model.gated_delta_net import GatedDeltaNet

EPS = 1e-6
FREQUENCIES = 256


class Modulation(NamedTuple):
    """Adaptive layer norm of one block: attention and feed-forward parts, each broadcastable to the tokens."""

    scale_a: Tensor
    shift_a: Tensor
    gate_a: Tensor
    scale_m: Tensor
    shift_m: Tensor
    gate_m: Tensor


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without affine parameters, then ``x (1 + scale) + shift``."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class SelfAttention(nn.Module):
    """Projections of a softmax layer; query and key are RMS-normalised over the full width, before the head split."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        width = heads * head_dim
        self.heads = heads
        self.q = nn.Linear(dim, width)
        self.k = nn.Linear(dim, width)
        self.v = nn.Linear(dim, width)
        self.o = nn.Linear(width, dim)
        self.norm_q = nn.RMSNorm(width, eps=EPS)
        self.norm_k = nn.RMSNorm(width, eps=EPS)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., T, D) -> three (..., T, H, K), not yet rotated."""
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x)
        return tuple(t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))  # type: ignore[return-value]


class CrossAttention(SelfAttention):
    """Attention of tokens to the instruction's context; no positions."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, T, D), context (B, S, D) -> (B, T, D)."""
        q = rearrange(self.norm_q(self.q(x)), "b t (h k) -> b h t k", h=self.heads)
        k = rearrange(self.norm_k(self.k(context)), "b s (h k) -> b h s k", h=self.heads)
        v = rearrange(self.v(context), "b s (h k) -> b h s k", h=self.heads)
        out = softmax_attention(q, k, v)
        return self.o(rearrange(out, "b h t k -> b t (h k)"))


class Block(nn.Module):
    """One transformer block of either expert; the mixing itself happens in ``action_expert.mix``."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))
        with torch.no_grad():
            self.modulation[:, [2, 5]] += 0.5  # open gates: small models learn faster than from a closed one
        self.cross_attn = CrossAttention(dim, heads, head_dim)
        self.cross_attn_norm = nn.LayerNorm(dim, eps=EPS)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.SiLU(), nn.Linear(ffn_dim, dim))

    def modulations(self, t_mod: Tensor) -> Modulation:
        """t_mod (..., 6 D) -> six (..., 1, D), ready for a token axis."""
        table = t_mod.unflatten(-1, (6, -1)) + self.modulation[0]
        return Modulation(*(m.unsqueeze(-2) for m in table.unbind(-2)))

    def finish(self, x: Tensor, mixed: Tensor, mod: Modulation, context: Tensor) -> Tensor:
        """Residuals after the mixing: gate, cross-attention, feed-forward. x, mixed (B, ..., D)."""
        x = x + mod.gate_a * mixed
        flat = x.flatten(1, -2)
        x = x + self.cross_attn(self.cross_attn_norm(flat), context).view_as(x)
        return x + mod.gate_m * self.ffn(modulate(x, mod.scale_m, mod.shift_m))


class VideoBlock(Block):
    """Block of the video expert: windowed softmax attention or a gated delta net."""

    def __init__(self, config: VideoConfig, kind: str) -> None:
        super().__init__(config.dim, config.ffn_dim, config.heads, config.head_dim)
        self.kind = kind
        if kind == "gdn":
            self.gated_delta = GatedDeltaNet(
                config.dim, config.delta_heads, config.delta_head_dim, config.delta_expand_v
            )
        else:
            self.self_attn = SelfAttention(config.dim, config.heads, config.head_dim)


class TimeEmbedding(nn.Module):
    """Noise level -> conditioning vector and its six-fold projection (published: time_embedding, time_projection)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.time_embedding = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def embed(self, sigma: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """sigma (...) -> t (..., D), t_mod (..., 6 D); ``extra`` (..., D) is added to t."""
        t = self.time_embedding(timestep_embedding(sigma, FREQUENCIES))
        if extra is not None:
            t = t + extra
        return t, self.time_projection(t)


class Head(nn.Module):
    """Last layer norm, its modulation (published order: shift, scale) and the linear read-out."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / math.sqrt(dim))
        nn.init.zeros_(self.head.weight)  # start from "the next frame is the last frame"
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (..., T, D), t (..., D) -> (..., T, out)."""
        shift, scale = (self.modulation[0] + t.unsqueeze(-2)).unbind(-2)
        return self.head(modulate(x, scale.unsqueeze(-2), shift.unsqueeze(-2)))


class VideoDiT(TimeEmbedding):
    """Video expert. A frame's tokens are ``[proprioception | h w visual patches]``.

    Every token also sees the value that it had one frame earlier, and its output is added to that value:
    a small model then only has to learn what changes.
    """

    def __init__(self, config: VideoConfig, channels: int, text_dim: int, proprio_dim: int, action_dim: int) -> None:
        super().__init__(config.dim)
        self.config = config
        patch_dim = channels * config.patch**2
        self.patch_embedding = nn.Linear(2 * patch_dim, config.dim)
        self.proprio_embedding = nn.Linear(2 * proprio_dim, config.dim)
        self.action_embedding = nn.Linear(action_dim, config.dim)
        self.text_embedding = nn.Sequential(
            nn.Linear(text_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.blocks = nn.ModuleList(VideoBlock(config, kind) for kind in config.kinds)
        self.head = Head(config.dim, patch_dim)
        self.proprio_head = Head(config.dim, proprio_dim)

    def patchify(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) -> (..., tokens, C p p)."""
        p = self.config.patch
        return rearrange(latents, "... c (h p) (w q) -> ... (h w) (c p q)", p=p, q=p)

    def unpatchify(self, patches: Tensor, height: int) -> Tensor:
        """Inverse of `patchify` for latents of that height in cells."""
        p = self.config.patch
        return rearrange(patches, "... (h w) (c p q) -> ... c (h p) (w q)", h=height // p, p=p, q=p)

    def embed_frames(self, latents: Tensor, proprio: Tensor, last_latents: Tensor, last_proprio: Tensor) -> Tensor:
        """Frame and predecessor, latents (..., C, h, w) and proprio (..., P) -> tokens (..., L, D)."""
        visual = self.patch_embedding(torch.cat([self.patchify(latents), self.patchify(last_latents)], -1))
        state = self.proprio_embedding(torch.cat([proprio, last_proprio], -1))
        return torch.cat([state.unsqueeze(-2), visual], -2)

    def condition(self, sigma: Tensor, action: Tensor, has_action: Tensor) -> tuple[Tensor, Tensor]:
        """Conditioning of a frame: its noise level and the action that led to it (zero where there is none)."""
        return self.embed(sigma, self.action_embedding(action) * has_action.unsqueeze(-1))

    def read(self, tokens: Tensor, t: Tensor, height: int) -> tuple[Tensor, Tensor]:
        """Tokens (..., L, D) -> latents (..., C, h, w), proprio (..., P), both before the residual is added."""
        proprio = self.proprio_head(tokens[..., :1, :], t).squeeze(-2)
        return self.unpatchify(self.head(tokens[..., 1:, :], t), height), proprio
