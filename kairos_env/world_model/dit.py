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

from kairos_env.world_model.attention.kernels import softmax_attention
from kairos_env.world_model.attention.rotary import placed
from kairos_env.world_model.attention.visibility import Tokens
from kairos_env.world_model.config import VideoConfig
from kairos_env.world_model.flow import timestep_embedding
from kairos_env.world_model.gated_delta import compute_dtype
from kairos_env.world_model.gated_delta_net import GatedDeltaNet

EPS = 1e-6
FREQUENCIES = 256
PIECE = 8192  # tokens of a clip that the feed-forward layers take at once
FEW_KEYS = 64  # up to here spelled-out attention is the faster one, beyond it the fused one, which holds no scores

KeysValues = tuple[Tensor, Tensor]
ContextReads = tuple[KeysValues, ...]  # what each block sees of a context; made by `read_context`


def two_layers(inputs: int, width: int) -> nn.Sequential:
    """Linear, SiLU, linear: how the published model embeds contexts and proprioception."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


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


class WidthNorm(nn.RMSNorm):
    """RMS normalisation; where tokens are of another dtype than the weights, computed in the wider of both."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.eps).to(x.dtype)


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
        self.norm_q = WidthNorm(width, eps=EPS)
        self.norm_k = WidthNorm(width, eps=EPS)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., T, D) -> three (..., T, H, K), not yet rotated."""
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x)
        return tuple(t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))  # type: ignore[return-value]


class CrossAttention(SelfAttention):
    """Attention of tokens to the instruction's context; no positions."""

    def read(self, context: Tensor) -> KeysValues:
        """Context (B, S, D) -> its keys and values (B, H, S, K)."""
        k = rearrange(self.norm_k(self.k(context)), "b s (h k) -> b h s k", h=self.heads)
        return k, rearrange(self.v(context), "b s (h k) -> b h s k", h=self.heads)

    def forward(self, x: Tensor, context: KeysValues, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D), what `read` made of the context, mask (B, S) bool (True = visible) -> (B, T, D)."""
        q = rearrange(self.norm_q(self.q(x)), "b t (h k) -> b h t k", h=self.heads)
        k, v = context
        mask = None if mask is None else mask[:, None, None]
        few = k.shape[2] <= FEW_KEYS
        out = softmax_attention(q, k, v, mask) if few else F.scaled_dot_product_attention(q, k, v, mask)
        return self.o(rearrange(out, "b h t k -> b t (h k)"))


class Block(nn.Module):
    """One transformer block of either expert; the mixing itself happens in `mixture`.

    Args:
        words: whether it reads the instruction.
    """

    def __init__(self, dim: int, ffn_dim: int, heads: int, head_dim: int, words: bool = True) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))
        with torch.no_grad():
            self.modulation[:, [2, 5]] += 0.5  # open gates: small models learn faster than from a closed one
        if words:
            self.cross_attn = CrossAttention(dim, heads, head_dim)
            self.cross_attn_norm = nn.LayerNorm(dim, eps=EPS)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.SiLU(), nn.Linear(ffn_dim, dim))

    def modulations(self, t_mod: Tensor) -> Modulation:
        """t_mod (..., 6 D) -> six (..., D)."""
        return Modulation(*(t_mod.unflatten(-1, (6, -1)) + self.modulation[0]).unbind(-2))

    def finish(
        self, x: Tensor, mixed: Tensor, mod: Modulation, context: KeysValues | None, mask: Tensor | None = None
    ) -> Tensor:
        """Residuals after the mixing: gate, cross-attention, feed-forward. x, mixed (B, ..., D), mask (B, S)."""
        x = x + mod.gate_a * mixed
        if context is not None:
            flat = x.flatten(1, -2)
            x = x + self.cross_attn(self.cross_attn_norm(flat), context, mask).view_as(x)
        return x + mod.gate_m * in_pieces(self.ffn, modulate(x, mod.scale_m, mod.shift_m))


def in_pieces(layers: nn.Module, x: Tensor) -> Tensor:
    """Token-wise layers (B, ..., D) -> the same shape; of a long clip without gradient some tokens at a time.

    What is inside them is several times as wide as the tokens.
    """
    flat = x.flatten(1, -2)
    if torch.is_grad_enabled() or flat.shape[1] <= PIECE:
        return layers(x)
    out = torch.empty_like(flat)
    for start in range(0, flat.shape[1], PIECE):
        out[:, start : start + PIECE] = layers(flat[:, start : start + PIECE])
    return out.view_as(x)


def read_context(expert: nn.Module, context: Tensor) -> ContextReads:
    """Context (B, S, text width) -> its keys and values in every block of an expert; () if it reads no words.

    They depend on nothing else: one reading serves all denoising steps.
    """
    if not hasattr(expert, "text_embedding"):
        return ()
    tokens = expert.text_embedding(context)
    return tuple(block.cross_attn.read(tokens) for block in expert.blocks)


class VideoBlock(Block):
    """Block of the video expert: windowed softmax attention or a gated delta net."""

    def __init__(self, config: VideoConfig, kind: str) -> None:
        super().__init__(config.dim, config.ffn_dim, config.heads, config.head_dim, config.words)
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
        self.time_embedding = two_layers(FREQUENCIES, dim)
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def embed_level(self, sigma: Tensor, rounded: bool = False) -> Tensor:
        """The part of t that follows from the noise level alone: sigma (...) -> (..., D); ``rounded`` as in `embed`."""
        return in_float32(self.time_embedding, timestep_embedding(sigma, FREQUENCIES, rounded))

    def embed(
        self, sigma: Tensor, extra: Tensor | None = None, rounded: bool = False, level: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """sigma (...) -> t (..., D), t_mod (..., 6 D); ``extra`` (..., D) is added to t.

        Args:
            rounded: round the timestep and its sinusoids to bfloat16, as the published weights were run.
            level: `embed_level` of sigma, if it is known already.
        """
        dtype = next(self.time_projection.parameters()).dtype
        t = self.embed_level(sigma, rounded) if level is None else level
        if extra is not None:
            t = t + extra
        return t.to(dtype), in_float32(self.time_projection, t).to(dtype)


def in_float32(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Linear layers and activations in float32 or better, whatever the weights' dtype.

    The vectors are few, and a rounded one would shift every token alike.
    """
    for layer in layers:
        if isinstance(layer, nn.Linear):
            dtype = compute_dtype(layer.weight)
            x = F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
        else:
            x = layer(x)
    return x


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
    """Video expert with exactly the published parameters. A frame's tokens are its h w patches in raster order.

    Args:
        channels: C of the latents.
        text_dim: width of the context tokens.
    """

    def __init__(self, config: VideoConfig, channels: int, text_dim: int) -> None:
        super().__init__(config.dim)
        self.config = config
        size = (1, config.patch, config.patch)
        # kept as the published convolution; a convolution whose stride is its kernel is a linear map of patches
        self.patch_embedding = nn.Conv3d(channels, config.dim, size, stride=size)
        if config.words:
            self.text_embedding = two_layers(text_dim, config.dim)
        self.blocks = nn.ModuleList(VideoBlock(config, kind) for kind in config.kinds)
        self.head = Head(config.dim, channels * config.patch**2)

    def patchify(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) -> (..., tokens, C p p)."""
        p = self.config.patch
        return rearrange(latents, "... c (h p) (w q) -> ... (h w) (c p q)", p=p, q=p)

    def unpatchify(self, patches: Tensor, height: int) -> Tensor:
        """Outputs (..., tokens, p p C), channel last as published, for latents of that height in cells."""
        p = self.config.patch
        return rearrange(patches, "... (h w) (p q c) -> ... c (h p) (w q)", h=height // p, p=p, q=p)

    def embed_patches(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) -> tokens (..., h w / p p, D)."""
        return F.linear(self.patchify(latents), self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def places(self, grid: tuple[int, int]) -> list[tuple[float, float]]:
        """Row and column of every token of a frame."""
        return [(float(y), float(x)) for y in range(grid[0]) for x in range(grid[1])]

    def rotations(self, time: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Rotary table of frames: times (..., F), token rows and columns -> cos, sin (..., F, L, K / 2)."""
        return placed(time, tuple(self.places(grid)), self.config.head_dim)

    def embed_clip(self, latents: Tensor, sigma: Tensor, rounded: bool = False) -> Tokens:
        """Latent frames (B, F, C, h, w) at noise levels sigma (B, F), from time 0; ``rounded`` as in `embed`."""
        grid = latents.shape[-2] // self.config.patch, latents.shape[-1] // self.config.patch
        time, modulation = self.embed(sigma, rounded=rounded)
        table = self.rotations(torch.arange(latents.shape[1], device=latents.device), grid)
        return Tokens(self.embed_patches(latents), modulation.unsqueeze(-2), table, time)

    def read_clip(self, tokens: Tensor, clip: Tokens, height: int) -> Tensor:
        """Output tokens (B, F, L, D) of an embedded clip, ``height`` cells high -> velocity (B, F, C, h, w)."""
        assert clip.time is not None
        return self.unpatchify(self.head(tokens, clip.time), height)


class StreamingVideoDiT(VideoDiT):
    """The video expert driven frame by frame: what an action leads to, from everything that was seen before.

    It adds to the published parameters: a frame's tokens are ``[proprioception | O objects | h w patches]``; every
    token also sees the value that it had one frame earlier, and where the network predicts clean data its output is
    added to that value, so that a small model only has to learn what changes; the action conditions the modulation.

    Args:
        scene: width of what is known of the scene one frame earlier, see `embed_frames`; 0 for none.
        objects: O.
    """

    def __init__(
        self,
        config: VideoConfig,
        channels: int,
        text_dim: int,
        proprio_dim: int,
        action_dim: int,
        scene: int = 0,
        objects: int = 0,
    ) -> None:
        super().__init__(config, channels, text_dim)
        self.objects = objects
        if "fa" in config.kinds:
            raise ValueError("full attention ('fa') cannot stream: its memory would grow with every frame")
        self.last_embedding = nn.Linear(channels * config.patch**2, config.dim, bias=False)
        self.proprio_embedding = nn.Linear(2 * proprio_dim, config.dim)
        self.action_embedding = nn.Linear(action_dim, config.dim)
        self.proprio_head = Head(config.dim, proprio_dim)
        if scene:
            self.scene_embedding = nn.Linear(scene, (1 + objects) * config.dim)

    def places(self, grid: tuple[int, int]) -> list[tuple[float, float]]:
        beside = [(-1.0, -1.0), *((-2.0, -1.0 - i) for i in range(self.objects))]
        return beside + super().places(grid)

    def embed_frames(
        self,
        latents: Tensor,
        proprio: Tensor,
        last_latents: Tensor,
        last_proprio: Tensor,
        scene: Tensor | None = None,
    ) -> Tensor:
        """Frame and predecessor, latents (..., C, h, w) and proprio (..., P) -> tokens (..., L, D).

        Args:
            scene: (..., scene), what is known of the predecessor beside; zero where nothing is.
        """
        visual = self.embed_patches(latents) + self.last_embedding(self.patchify(last_latents))
        state = self.proprio_embedding(torch.cat([proprio, last_proprio], -1)).unsqueeze(-2)
        if scene is not None:
            state = torch.cat([state, state.new_zeros(*state.shape[:-2], self.objects, state.shape[-1])], -2)
            state = state + self.scene_embedding(scene).unflatten(-1, (1 + self.objects, -1))
        return torch.cat([state, visual], -2)

    def condition(
        self, sigma: Tensor, action: Tensor, has_action: Tensor, level: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Conditioning of a frame: its noise level and the action that led to it (zero where there is none).

        Args:
            level: as in `embed`.
        """
        return self.embed(sigma, self.action_embedding(action) * has_action.unsqueeze(-1), level=level)

    def read(self, tokens: Tensor, t: Tensor, height: int) -> tuple[Tensor, Tensor]:
        """Tokens (..., L, D) -> latents (..., C, h, w), proprio (..., P), both before the residual is added."""
        proprio = self.proprio_head(tokens[..., :1, :], t).squeeze(-2)
        return self.unpatchify(self.head(tokens[..., 1 + self.objects :, :], t), height), proprio
