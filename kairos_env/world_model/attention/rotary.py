"""Rotary positions: of time, height and width, or of one axis."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(positions: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Rotation table of rotary embedding: (..., axes) positions -> cos, sin (..., head_dim / 2) float32.

    The half dimension is split over (time, height, width) as 22 : 21 : 21 of 64; one axis gets all of it. Angles
    are computed in float64, so that step 10,000 rotates as exactly as step 1.
    """
    half, axes = head_dim // 2, positions.shape[-1]
    share = half // axes
    sizes = (half - (axes - 1) * share, *[share] * (axes - 1))
    angles = []
    for axis, size in enumerate(sizes):
        frequency = theta ** (-torch.arange(size, dtype=torch.float64, device=positions.device) / size)
        angles.append(positions[..., axis, None].double() * frequency)
    table = torch.cat(angles, -1)
    return table.cos().float(), table.sin().float()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates adjacent pairs of the last axis: x (..., T, H, K), table (..., T, K / 2)."""
    cos, sin = (t.unsqueeze(-2) for t in table)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
