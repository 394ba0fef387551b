"""PSNR and SSIM of uint8 images, in numpy alone, and what shows of the red cube by its colour.

The first two agree with scikit-image (``gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
data_range=255``), which the tests hold as numbers: a metric that is slightly different from everybody
else's cannot be compared with anything.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from kairos_env.records import Array

PEAK = 255.0
_RADIUS = 5  # 11 taps, as Wang et al. 2004
_SIGMA = 1.5
VISIBLE_PIXELS = 10
"""The cube counts as in view with this many red pixels, a quarter of what it shows unhidden at 64 x 64."""


def mean_squared_error(image: Array, reference: Array) -> Array:
    """(...,) float64 of two (..., H, W, 3) arrays of one shape, in squared grey levels."""
    _require_same_shape(image, reference)
    difference = np.asarray(image, np.float64) - np.asarray(reference, np.float64)
    return np.asarray((difference**2).mean(axis=(-3, -2, -1)))


def psnr(image: Array, reference: Array) -> Array:
    """Peak signal-to-noise ratio in dB.

    Args:
        image: (..., H, W, 3), 0..255.
        reference: the same shape.

    Returns:
        (...,) float64; identical images give ``inf``.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(PEAK**2 / mean_squared_error(image, reference)))


def ssim(image: Array, reference: Array) -> Array:
    """Structural similarity: Gaussian window of 11 x 11 pixels and sigma 1.5, the mean over pixels and channels.

    Only windows that lie wholly inside the image count, so no padding is invented.

    Args:
        image: (..., H, W, 3), 0..255, both sides of at least 11 pixels.
        reference: the same shape.

    Returns:
        (...,) float64 in [-1, 1], 1 for identical images.
    """
    _require_same_shape(image, reference)
    if min(image.shape[-3:-1]) < 2 * _RADIUS + 1:
        raise ValueError(f"SSIM needs images of at least {2 * _RADIUS + 1} pixels a side, got {image.shape[-3:-1]}")
    x, y = np.asarray(image, np.float64), np.asarray(reference, np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return np.asarray((luminance * structure).mean(axis=(-3, -2, -1)))


def _blur(image: Array) -> Array:
    """Gaussian mean of every window that fits: (..., H, W, 3) -> (..., H - 10, W - 10, 3)."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    rows = image.shape[-3] - 2 * _RADIUS
    columns = image.shape[-2] - 2 * _RADIUS
    across = sum(w * image[..., i : i + rows, :, :] for i, w in enumerate(weights))
    return np.asarray(sum(w * across[..., :, i : i + columns, :] for i, w in enumerate(weights)))


def _require_same_shape(image: Array, reference: Array) -> None:
    if np.shape(image) != np.shape(reference) or np.ndim(image) < 3:
        raise ValueError(
            f"expected two image arrays of one shape (..., H, W, 3), got {np.shape(image)} and {np.shape(reference)}"
        )


def red_pixels(images: Array) -> Array:
    """Number of pixels of uint8 (..., H, W, 3) pictures show the red cube: (...) int.

    A rule, not a network: it also tells in imagined frames whether something of the cube's colour is left.
    """
    return np.asarray(_red(images).sum(axis=(-2, -1)))


def red_spots(images: Array) -> Array:
    """Number of separate spots of the cube's colour in uint8 (..., H, W, 3) pictures: (...) int.

    Spots of fewer than half of `VISIBLE_PIXELS` are noise. Up to two pixels between them join them: a finger in front
    of the cube does not make it two.
    """
    red = torch.from_numpy(_red(images))
    flat = red.reshape(-1, 1, *red.shape[-2:]).float()
    names = flat * torch.arange(1, flat[0].numel() + 1).view(flat.shape[1:])
    while True:  # the largest number spreads over its spot
        spread = functional.max_pool2d(names, 7, stride=1, padding=3) * flat
        if torch.equal(spread, names):
            break
        names = spread
    sizes = (torch.bincount(spots.flatten().long())[1:] for spots in names)
    counts = [int((size >= VISIBLE_PIXELS // 2).sum()) for size in sizes]
    return np.array(counts, int).reshape(red.shape[:-2])


def _red(images: Array) -> Array:
    red, green, blue = (np.asarray(images)[..., i].astype(np.int16) for i in range(3))
    return np.asarray((red > 60) & (red > 2 * green) & (red > 2 * blue))
