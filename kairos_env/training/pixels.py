"""What counts in a picture: how pixels weigh in the tokenizer's loss, and latent cells in that of imagined frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.records import Array

UNUSUAL, COLOURED = 25, 80  # grey levels, see `PixelWeights`
SAMPLE = 500  # pictures that tell what a camera usually sees


@dataclass(frozen=True)
class PixelWeights:
    """Which pixels the tokenizer must get right. Of the defaults, nothing depends on what a scene looks like.

    Args:
        unusual: extra weight of pixels that differ by more than 25 grey levels from the camera's median image and from
            the picture's own median colour.
        coloured: extra weight of those among them that have a colour (channels more than 80 apart). It keeps a small
            coloured object beside a large grey robot, as on the table top and in LIBERO; 10 was right for both.
    """

    unusual: float = 4.0
    coloured: float = 0.0


def median_image(frames: Tensor) -> Tensor:
    """Median image (H, W, 3) of a sample of uint8 frames (N, H, W, 3): what is there when nothing is there."""
    if not len(frames):
        return torch.zeros(frames.shape[1:])
    chosen = torch.linspace(0, len(frames) - 1, min(SAMPLE, len(frames))).long()
    return frames[chosen].float().median(0).values


def pixel_weights(images: Tensor, usual: Tensor, weights: PixelWeights) -> Tensor:
    """uint8 (B, H, W, 3) and what their cameras usually see -> (B, 1, H, W), mean 1.

    A pixel is unusual if it differs from both that and the picture's own median colour: under another light or on
    another table the whole background differs from what is usual, and is still the background.
    """
    own = images.float().flatten(1, 2).median(1).values[:, None, None]
    unusual = torch.minimum(*((images.float() - x).abs().amax(-1) for x in (usual, own))) > UNUSUAL
    spread = images.amax(-1).float() - images.amin(-1).float()
    found = 1 + weights.unusual * unusual.float() + weights.coloured * (unusual & (spread > COLOURED)).float()
    return (found / found.mean()).unsqueeze(1)


def cell_weights(views: Sequence[Array], cells: tuple[int, int], weights: PixelWeights) -> list[Tensor]:
    """One camera's uint8 (T, H, W, 3) of many episodes -> float16 (T, h, w) of each, mean 1 over a picture.

    The mean of `pixel_weights` over the pixels of every latent cell; every other row and column is looked at.
    """
    every = max(1, sum(map(len, views)) // SAMPLE)
    usual = median_image(torch.from_numpy(np.concatenate([view[::every] for view in views])[:, ::2, ::2]))
    found = []
    for view in views:
        images = torch.from_numpy(np.ascontiguousarray(view[:, ::2, ::2]))
        parts = [F.adaptive_avg_pool2d(pixel_weights(part, usual, weights), cells) for part in images.split(64)]
        whole = torch.cat(parts).squeeze(1)
        found.append((whole / whole.mean((1, 2), keepdim=True)).half())
    return found
