"""Rotary positions: of time, height and width, or of one axis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

Table = tuple[Tensor, Tensor]  # cos and sin


def rope(positions: Tensor, head_dim: int, theta: float = 10000.0) -> Table:
    """Rotation table of rotary embedding: (..., axes) positions -> cos, sin (..., head_dim / 2) float32.

    The half dimension is split over (time, height, width) as 22 : 21 : 21 of 64; one axis gets all of it. Angles
    are computed in float64, so that step 10,000 rotates as exactly as step 1.
    """
    half, axes = head_dim // 2, positions.shape[-1]
    share = half // axes
    sizes = (half - (axes - 1) * share, *[share] * (axes - 1))
    return axes_table([positions[..., axis] for axis in range(axes)], sizes, theta)


def axes_table(positions: Sequence[Tensor], sizes: Sequence[int], theta: float = 10000.0) -> Table:
    """Positions (...) along each axis, which gets so many of the pairs -> cos, sin (..., sum of the sizes) float32."""
    angles = torch.cat([p[..., None].double() * frequencies(n, theta, p.device) for p, n in zip(positions, sizes)], -1)
    return angles.cos().float(), angles.sin().float()


@cache
def frequencies(size: int, theta: float, device: torch.device) -> Tensor:
    """Angles of one step, (size,) float64."""
    return theta ** (-torch.arange(size, dtype=torch.float64, device=device) / size)


def placed(time: Tensor, places: tuple[tuple[float, float], ...], head_dim: int) -> Table:
    """`rope` of a frame's tokens at their (row, column), at the times (...) of frames: (..., L, head_dim / 2)."""
    half = head_dim // 2
    share = half // 3
    when = axes_table([time.unsqueeze(-1)], [half - 2 * share])
    where = _plane(places, share, time.device)
    shape = (*time.shape, len(places), -1)
    cos, sin = (torch.cat([t.expand(shape), p.expand(shape)], -1) for t, p in zip(when, where, strict=True))
    return cos, sin


@cache
def _plane(places: tuple[tuple[float, float], ...], share: int, device: torch.device) -> Table:
    """The part of a table that does not change with time, (L, 2 share)."""
    return axes_table(torch.tensor(places, dtype=torch.float64, device=device).unbind(-1), [share, share])


def rotate(x: Tensor, table: Table) -> Tensor:
    """Rotates adjacent pairs of the last axis: x (..., T, H, K), table (..., T, K / 2)."""
    cos, sin = (t.unsqueeze(-2) for t in table)
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which fuses real products, and knows no complex ones
        a, b = pairs.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x.dtype)
