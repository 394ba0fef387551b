"""PSNR and SSIM of uint8 images, in numpy alone.

Both agree with scikit-image (``gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
data_range=255``), which the tests hold as numbers: a metric that is slightly different from everybody
else's cannot be compared with anything.
"""

from __future__ import annotations

import numpy as np

from kairos_env.records import Array

PEAK = 255.0
_RADIUS = 5  # 11 taps, as Wang et al. 2004
_SIGMA = 1.5


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
