from __future__ import annotations

import numpy as np
import pytest

from kairos_env.eval.imagination.image_metrics import mean_squared_error, psnr, ssim


def pictures() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:24, 0:32]
    a = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (255 - x * 5 + y) % 256], -1)
    b = np.stack([(x * 7 + y * 4) % 256, (x * y + 9) % 256, (250 - x * 5 + 2 * y) % 256], -1)
    return a.astype(np.uint8), b.astype(np.uint8)


def test_agrees_with_scikit_image() -> None:
    # scikit-image 0.26: structural_similarity(a, b, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=255, channel_axis=-1) and peak_signal_noise_ratio(a, b)
    a, b = pictures()
    assert float(ssim(a, b)) == pytest.approx(0.865400981024603, abs=1e-12)
    assert float(psnr(a, b)) == pytest.approx(14.502210579092301, abs=1e-12)


def test_identical_images_are_perfect() -> None:
    a, _ = pictures()
    assert psnr(a, a) == np.inf
    assert float(ssim(a, a)) == pytest.approx(1)


def test_batches_are_pairs() -> None:
    a, b = pictures()
    first, second = np.stack([a, b]), np.stack([b, b])
    assert psnr(first, second).shape == (2,)
    assert ssim(first, second).tolist() == [pytest.approx(float(ssim(a, b))), pytest.approx(1)]


def test_uint8_does_not_wrap_around() -> None:
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert float(mean_squared_error(black, white)) == 255**2
    assert float(psnr(black, white)) == pytest.approx(0)


def test_says_what_is_wrong() -> None:
    a, _ = pictures()
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, a[:-1])
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(a[:8], a[:8])
