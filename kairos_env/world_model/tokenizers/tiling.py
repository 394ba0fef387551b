"""Overlapping, blended tiles of a picture, by the rule of the published pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of a picture, and the share of this tile in each of its pixels."""

    top: int
    bottom: int
    left: int
    right: int
    share: Tensor  # (bottom - top, right - left) float32; over all tiles the shares of a pixel sum to 1


@dataclass(frozen=True)
class Tiling:
    """Overlapping tiles of ``size`` latent cells (rows, columns), one every ``stride`` cells, cut at the picture's end.

    A tile that would add nothing to its predecessor is left out. From an edge inside the picture the weight of a tile
    rises linearly over ``size - stride`` cells; a pixel takes the smaller of its row's and its column's weight,
    divided by the sum over all tiles. This is the rule of the published pipeline.
    """

    size: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        if not all(0 < stride <= size for size, stride in zip(self.size, self.stride, strict=True)):
            raise ValueError(f"tiles of {self.size} latent cells need strides from 1 to their size, got {self.stride}")

    def tiles(self, rows: int, columns: int, scale: int = 1) -> list[Tile]:
        """Tiles of a picture of ``rows`` x ``columns`` latent cells; coordinates and shares in ``scale`` per cell."""
        vertical = self._spans(rows * scale, 0, scale)
        horizontal = self._spans(columns * scale, 1, scale)
        total = torch.zeros(rows * scale, columns * scale)
        found = []
        for top, bottom, down in vertical:
            for left, right, across in horizontal:
                weight = torch.minimum(down[:, None], across)
                total[top:bottom, left:right] += weight
                found.append(Tile(top, bottom, left, right, weight))
        return [t._replace(share=t.share / total[t.top : t.bottom, t.left : t.right]) for t in found]

    def _spans(self, length: int, axis: int, scale: int) -> list[tuple[int, int, Tensor]]:
        """Start, end and weights of the tiles along one axis."""
        size, stride = self.size[axis] * scale, self.stride[axis] * scale
        spans = []
        for start in range(0, length, stride):
            if start and start - stride + size >= length:
                break
            end = min(start + size, length)
            distance = torch.arange(1.0, end - start + 1)  # from the edge, the first pixel counts 1
            weight = torch.ones(end - start)
            if start:
                weight = torch.minimum(weight, distance / (size - stride))
            if end < length:
                weight = torch.minimum(weight, distance.flip(0) / (size - stride))
            spans.append((start, end, weight))
        return spans
