"""Where objects are in an observed frame, read from its latents alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kairos_env.world_model.dit import in_float32
from kairos_env.world_model.heads import CERTAIN, LOST

POINTS = 12  # keypoints for each object: some on it, some on what tells where the camera stands
VALUES = 4  # read at each keypoint


class Sighting(NamedTuple):
    """Objects in frames (..., O, 3) in decimetres, and the logarithm of the expected squared distance (..., O)."""

    objects: Tensor
    errors: Tensor


class ObjectReader(nn.Module):
    """Positions by a spatial softmax.

    A small object covers a few latent cells, finer than a token of the transformer. Convolutions weigh every cell for
    each keypoint; the mean place under these weights moves smoothly with the object, which is learnt from far fewer
    frames than a position from flattened features (Levine et al. 2016, https://arxiv.org/abs/1504.00702).

    Args:
        channels: C of the latents; proprio: P; objects: O.
        width: of the convolutions; the layers that join the keypoints are four times as wide.
    """

    def __init__(self, channels: int, proprio: int, objects: int, width: int) -> None:
        super().__init__()
        sizes = [channels, width, width, width]
        layers = [[nn.Conv2d(a, b, 3, padding=1), nn.SiLU()] for a, b in zip(sizes, sizes[1:], strict=False)]
        self.cells = nn.Sequential(*[part for layer in layers for part in layer])
        self.points = POINTS * objects
        self.weigh = nn.Conv2d(width, self.points, 1)
        self.value = nn.Conv2d(width, self.points * VALUES, 1)
        inner = 4 * width
        self.join = nn.Sequential(
            nn.Linear(self.points * (2 + VALUES) + proprio, inner),
            nn.SiLU(),
            nn.Linear(inner, inner),
            nn.SiLU(),
            nn.Linear(inner, 4 * objects),
        )

    def forward(self, latents: Tensor, proprio: Tensor) -> Sighting:
        """Normalised latents (..., C, h, w) and proprioception (..., P)."""
        lead, (height, width) = latents.shape[:-3], latents.shape[-2:]
        cells = self.cells(latents.flatten(0, -4))
        # in bfloat16 a place would be known to two millimetres only
        weights = self.weigh(cells).float().flatten(2).softmax(-1)
        values = self.value(cells).float().flatten(2).unflatten(1, (self.points, VALUES))
        rows, columns = (torch.linspace(-1, 1, size, device=latents.device) for size in (height, width))
        places = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)]).flatten(1)
        found = torch.cat([values, places.expand(*values.shape[:2], 2, -1)], 2) @ weights.unsqueeze(-1)
        with torch.autocast(latents.device.type, enabled=False):
            out = in_float32(self.join, torch.cat([found.flatten(1), proprio.flatten(0, -2).float()], -1))
        objects, errors = out.unflatten(-1, (-1, 4)).unflatten(0, lead).split([3, 1], -1)
        return Sighting(objects, errors.squeeze(-1).clamp(CERTAIN, LOST))
