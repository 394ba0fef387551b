"""The gated delta net: projections, short causal convolutions, the delta rule's memory, a gated norm.

Letters as in ``gated_delta``, which holds the recurrence itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kairos_env.world_model.engines import NAMES
from kairos_env.world_model.gated_delta import compute_dtype, gated_delta

# Tokens that ``forward`` takes at once: bounds the memory of its intermediates over long clips.
PIECE = 10240


@dataclass(frozen=True)
class GatedDeltaState:
    """What a ``GatedDeltaNet`` remembers between calls; its size does not depend on the length seen.

    Args:
        recurrent: (B, H, K, V) float32 memory.
        conv: (B, 3, 2 H K + H V) the last three inputs of the short convolutions, queries | keys | values.
    """

    recurrent: Tensor
    conv: Tensor

    def map(self, transform: Callable[[Tensor], Tensor]) -> GatedDeltaState:
        """Apply ``transform`` to both tensors, for example to select batch elements or to move them."""
        return GatedDeltaState(transform(self.recurrent), transform(self.conv))


class SwishGatedRMSNorm(nn.Module):
    """``weight * x / rms(x) * swish(gate)`` over the last axis, computed in float32 or better."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """``x`` and ``gate`` (..., V) to (..., V) in ``x``'s dtype."""
        dtype = compute_dtype(x)
        normed = F.rms_norm(x.to(dtype), (x.shape[-1],), self.weight.to(dtype), self.eps)
        return (normed * F.silu(gate.to(dtype))).to(x.dtype)


class _CausalDepthwise(torch.autograd.Function):
    """Depthwise convolution of (B, k - 1 + T, C) with (C, 1, k) to (B, T, C), channels last.

    A two-dimensional convolution of height 1 takes this layout without a copy, and on a CPU is several times
    faster than ``conv1d``; its own backward is not, hence this one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _depthwise(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        kernel, length = weight.shape[-1], grad.shape[1]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _depthwise(F.pad(grad, (0, 0, kernel - 1, kernel - 1)), weight.flip(-1))
        if ctx.needs_input_grad[1]:
            taps = [(grad * x[:, i : i + length]).sum((0, 1)) for i in range(kernel)]
            grad_weight = torch.stack(taps, dim=-1)[:, None]
        return grad_x, grad_weight


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.mT[:, :, None], weight[:, :, None], groups=x.shape[-1])[:, :, 0].mT


class GatedDeltaNet(nn.Module):
    """Gated delta rule layer: projections, short causal convolutions, the memory, a gated norm.

    Parameter names are those of the published checkpoints.

    Args:
        dim: D, model width.
        heads: H.
        head_k_dim: K.
        expand_v: V = K * expand_v, must come out whole.
        engine: which implementation of the recurrence ``forward`` uses; None is automatic, see ``engines.choose``.
    """

    conv_kernel = 4

    def __init__(
        self, dim: int, heads: int, head_k_dim: int = 256, expand_v: float = 2.0, engine: str | None = None
    ) -> None:
        super().__init__()
        if engine and engine not in NAMES["gated_delta"]:
            raise ValueError(f"unknown gated delta engine {engine!r}; legal are {', '.join(NAMES['gated_delta'])}")
        if (head_k_dim * expand_v) % 1 or head_k_dim * expand_v < 1:
            raise ValueError(f"head_k_dim {head_k_dim} * expand_v {expand_v} must be a whole number of at least 1")
        self.dim, self.heads, self.head_k_dim, self.head_v_dim = dim, heads, head_k_dim, int(head_k_dim * expand_v)
        self.engine = engine
        self.key_dim, self.value_dim = heads * self.head_k_dim, heads * self.head_v_dim

        self.q_proj = nn.Linear(dim, self.key_dim, bias=False)
        self.k_proj = nn.Linear(dim, self.key_dim, bias=False)
        self.v_proj = nn.Linear(dim, self.value_dim, bias=False)
        self.a_proj = nn.Linear(dim, heads, bias=False)
        self.b_proj = nn.Linear(dim, heads, bias=False)
        self.g_proj = nn.Linear(dim, self.value_dim, bias=False)
        self.o_proj = nn.Linear(self.value_dim, dim, bias=False)
        self.q_conv1d = self._short_conv(self.key_dim)
        self.k_conv1d = self._short_conv(self.key_dim)
        self.v_conv1d = self._short_conv(self.value_dim)
        self.o_norm = SwishGatedRMSNorm(self.head_v_dim)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.reset_decay()

    def _short_conv(self, channels: int) -> nn.Conv1d:
        # Used for its weight (C, 1, 4) and its init; forward convolves q, k and v in one go.
        return nn.Conv1d(channels, channels, self.conv_kernel, groups=channels, bias=False)

    @torch.no_grad()
    def reset_decay(self) -> None:
        """Decay rates as published: A ~ U(0, 16), step sizes log-uniform in [1e-3, 1e-1]."""
        self.A_log.uniform_(0, 16).clamp_(min=1e-4).log_()
        step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def initial_state(self, batch_size: int) -> GatedDeltaState:
        """The empty memory, on the layer's device."""
        weight = self.A_log  # a plain tensor, also where projections are quantised
        return GatedDeltaState(
            weight.new_zeros(batch_size, self.heads, self.head_k_dim, self.head_v_dim, dtype=compute_dtype(weight)),
            weight.new_zeros(batch_size, self.conv_kernel - 1, 2 * self.key_dim + self.value_dim),
        )

    def forward(self, x: Tensor, state: GatedDeltaState | None = None) -> tuple[Tensor, GatedDeltaState]:
        """Read and write ``x`` (B, T, D) in order, from ``state`` (None: empty).

        Returns:
            y (B, T, D), and the state after the last token: any split of a sequence gives the same result.
        """
        state = state or self.initial_state(x.shape[0])
        outputs = []
        for piece in x.split(PIECE, dim=1):
            raw = self._convolution_inputs(piece)
            padded = torch.cat([state.conv.to(raw.dtype), raw], dim=1)
            q, k, v = self._convolve(padded)
            o, recurrent = gated_delta(q, k, v, *self._decay_and_strength(piece), state.recurrent, engine=self.engine)
            outputs.append(self._output(o, piece))
            state = GatedDeltaState(recurrent, self._tail(padded))
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], state

    def _convolution_inputs(self, x: Tensor) -> Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)

    def _tail(self, padded: Tensor) -> Tensor:
        # A copy: a view would keep the whole sequence in memory for as long as the state lives.
        return padded[:, -(self.conv_kernel - 1) :].clone()

    def _convolve(self, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Causal depthwise convolution and SiLU: (B, 3 + T, C) to q, k (B, T, H, K) and v (B, T, H, V)."""
        weight = torch.cat([self.q_conv1d.weight, self.k_conv1d.weight, self.v_conv1d.weight])
        mixed = _CausalDepthwise.apply(padded, weight.to(padded.dtype))
        q, k, v = F.silu(mixed).split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        return (
            q.unflatten(-1, (self.heads, self.head_k_dim)),
            k.unflatten(-1, (self.heads, self.head_k_dim)),
            v.unflatten(-1, (self.heads, self.head_v_dim)),
        )

    def _decay_and_strength(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return g = -exp(A_log) softplus(a + dt_bias) <= 0 and beta = sigmoid(b), both (..., H), at least float32."""
        a, b = self.a_proj(x), self.b_proj(x)
        dtype = compute_dtype(a)
        g = -self.A_log.to(dtype).exp() * F.softplus(a.to(dtype) + self.dt_bias.to(dtype))
        return g, b.to(dtype).sigmoid()

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        gate = self.g_proj(x).unflatten(-1, (self.heads, self.head_v_dim))
        return self.o_proj(self.o_norm(o, gate).flatten(-2))
