"""Film strips (PNG) and films (mp4) of uint8 frames, with captions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.records import Array
from kairos_env.runs import atomic_write, write_bytes

_GAP = 2  # pixels between the frames of a strip
_INK = (30, 30, 30)


def enlarge(frames: Array, factor: int) -> Array:
    """(..., H, W, 3) -> (..., factor*H, factor*W, 3), every pixel a square: nothing is smoothed over."""
    return np.asarray(frames).repeat(factor, axis=-3).repeat(factor, axis=-2)


def joined_views(images: Mapping[str, Array], cameras: Sequence[str]) -> Array:
    """Pictures (..., H, W, 3) of several cameras as one (..., H, sum of W, 3), in that order."""
    return np.concatenate([images[name] for name in cameras], -2)


def film_strip(rows: Mapping[str, Array], steps: Sequence[int] | None = None, scale: int = 2) -> Array:
    """A picture with one captioned row of frames for each film, for example imagined above real.

    Args:
        rows: caption -> uint8 (T, H, W, 3); all frames of one size, films may differ in length.
        steps: which frames, by index; by default at most 13, evenly spaced, first and last included. An
            index beyond a film's end leaves that place empty.
        scale: each pixel becomes a square of this side.

    Returns:
        uint8 (H', W', 3).
    """
    films = {name: np.asarray(frames) for name, frames in rows.items()}
    sizes = {frames.shape[1:] for frames in films.values()}
    if len(sizes) != 1 or any(frames.ndim != 4 or frames.dtype != np.uint8 for frames in films.values()):
        shapes = {name: (frames.dtype.name, frames.shape) for name, frames in films.items()}
        raise ValueError(f"a strip needs films of uint8 (T, H, W, 3) with frames of one size, got {shapes}")
    longest = max(len(frames) for frames in films.values())
    if steps is None:
        steps = np.unique(np.linspace(0, longest - 1, min(longest, 13)).round().astype(int)).tolist()
    height, width = (side * scale for side in next(iter(sizes))[:2])
    margin = 8 + max((_text_width(name) for name in films), default=0)
    header = 16
    picture = np.full(
        (header + len(films) * (height + _GAP), margin + len(steps) * (width + _GAP), 3), 255, dtype=np.uint8
    )
    places: list[tuple[int, int, str]] = []
    for row, (name, frames) in enumerate(films.items()):
        top = header + row * (height + _GAP)
        places.append((4, top + height // 2 - 6, name))
        for column, step in enumerate(steps):
            left = margin + column * (width + _GAP)
            if row == 0:
                places.append((left + 2, 2, str(step)))
            if 0 <= step < len(frames):
                picture[top : top + height, left : left + width] = enlarge(frames[step], scale)
    return _write(picture, places)


def side_by_side(films: Mapping[str, Array], scale: int = 4) -> Array:
    """Films beside each other, captioned: uint8 (T, H', W', 3). A shorter film stays at its last frame."""
    arrays = {name: np.asarray(frames) for name, frames in films.items()}
    longest = max(len(frames) for frames in arrays.values())
    captions: list[tuple[int, int, str]] = []
    parts = []
    left = 0
    for name, frames in arrays.items():
        held = frames[np.minimum(np.arange(longest), len(frames) - 1)]
        large = enlarge(held, scale)
        captions.append((left + 4, 2, name))
        left += large.shape[2] + _GAP
        parts += [large, np.full((longest, large.shape[1], _GAP, 3), 255, np.uint8)]
    film = np.concatenate(parts[:-1], axis=2)
    header = np.full((longest, 16, film.shape[2], 3), 255, np.uint8)
    header[:] = _write(header[0], captions)
    return np.concatenate([header, film], axis=1)


def png_bytes(image: Array, compression: int | None = None) -> bytes:
    """A uint8 (H, W, 3) image as PNG, as small as it gets, or with zlib's ``compression`` (1 is fast)."""
    from PIL import Image

    buffer = io.BytesIO()
    packing: dict[str, Any] = {"optimize": True} if compression is None else {"compress_level": compression}
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", **packing)
    return buffer.getvalue()


def write_png(path: str | Path, image: Array) -> Path:
    """Writes a uint8 (H, W, 3) image, whole or not at all."""
    write_bytes(path, png_bytes(image))
    return Path(path)


def write_mp4(path: str | Path, frames: Array, rate: float = 5.0) -> Path:
    """Writes a film that browsers play (H.264, yuv420p), whole or not at all.

    Args:
        path: ends in ``.mp4``.
        frames: uint8 (T, H, W, 3); odd sides are padded by one pixel, which the format needs.
        rate: frames per second.

    Raises:
        ModuleNotFoundError: PyAV is missing; the message has the command.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise ModuleNotFoundError("writing mp4 needs PyAV; install it with: pip install av") from None
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"a film needs uint8 (T, H, W, 3) with T >= 1, got {frames.dtype} {frames.shape}")
    pad = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, pad, mode="edge")
    options = {"movflags": "faststart"}
    with atomic_write(path) as part, av.open(str(part), "w", format="mp4", options=options) as container:
        # Any: the stub's union of stream types cannot be narrowed by a codec's name
        stream: Any = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.thread_count = 1  # several encoders run beside each other
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return Path(path)


@lru_cache(maxsize=1)
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(11)


def _text_width(text: str) -> int:
    return int(_font().getlength(text)) + 1


def _write(picture: Array, places: Sequence[tuple[int, int, str]]) -> Array:
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for left, top, text in places:
        draw.text((left, top), text, fill=_INK, font=_font())
    return np.asarray(image)
