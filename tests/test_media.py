from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kairos_env.media import film_strip, side_by_side, write_mp4, write_png


def film(length: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Frame t is uniformly grey at level 10 t."""
    return np.full((length, height, width, 3), 10 * np.arange(length)[:, None, None, None], np.uint8)


def test_a_strip_has_a_row_for_each_film_and_leaves_missing_frames_empty(tmp_path: Path) -> None:
    strip = film_strip({"imagined": film(9), "real": film(4)}, steps=[0, 3, 8], scale=2)
    assert strip.dtype == np.uint8 and strip.shape[0] == 16 + 2 * (32 + 2)
    first, second = strip[16 + 16], strip[16 + 34 + 16]  # the middle line of each row
    assert set(first[:, 0]) >= {0, 30, 80}
    assert set(second[-68:, 0]) == {30, 255}, "the short film has no frame 8"
    path = write_png(tmp_path / "a" / "strip.png", strip)
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(path)), strip)


def test_a_long_film_is_sampled_with_both_ends() -> None:
    wide = film_strip({"": film(25)}, scale=1)
    assert wide.shape[1] == 8 + 1 + 13 * (16 + 2)
    assert {0, 240} <= set(wide[16 + 8, :, 0])


def test_a_film_can_be_read_back(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    frames = side_by_side({"a": film(6, 17, 15), "b": film(3, 17, 15)}, scale=3)
    path = write_mp4(tmp_path / "f.mp4", frames, rate=5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        seen = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == 5
    assert len(seen) == 6 and seen[0].shape[0] % 2 == 0
    middle = seen[5][40]
    assert abs(int(middle[20, 0]) - 50) < 8 and abs(int(middle[70, 0]) - 20) < 8, "the short film stays at its end"
    assert [p.name for p in tmp_path.iterdir()] == ["f.mp4"]


def test_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames of one size"):
        film_strip({"a": film(2), "b": film(2, 8, 8)})
    with pytest.raises(ValueError, match="T >= 1"):
        write_mp4(tmp_path / "f.mp4", film(0))
    assert not list(tmp_path.iterdir())
