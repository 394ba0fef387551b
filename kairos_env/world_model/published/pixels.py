"""Bytes to pixels and back as the published pipeline does it: in the weights' dtype, and cut off on the way out.

In bfloat16 a picture that goes in has 8 bits of precision in [-1, 1], so that neighbouring levels coincide; of one
that comes out, the fraction is dropped. `tokenizers.image` has the exact maps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bytes_to_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (..., H, W, 3) -> (..., 3, H, W) in [-1, 1], computed in ``dtype``."""
    return images.movedim(-1, -3).to(dtype) * (2 / 255) - 1


def pixels_to_bytes(pixels: Tensor) -> Tensor:
    """Float (..., 3, H, W) in [-1, 1] -> uint8 (..., H, W, 3), computed in their dtype and truncated."""
    return ((pixels + 1) * 127.5).clamp(0, 255).to(torch.uint8).movedim(-3, -1)
