"""Pictures as they lie in the rows of a table: encoded, as the name of a file, or as the bytes of their pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from kairos_env.datasets.lerobot.features import Feature
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Array

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # others may need programs that reading must not start


@dataclass(frozen=True)
class PictureFacts:
    """Size of the pictures of a camera as they are shown, and whether they are depth maps."""

    height: int
    width: int
    deep: bool


def first_facts(path: Path, feature: Feature, root: Path) -> PictureFacts | None:
    """What the first picture in a table's file says; None if it cannot be read, which reading it will explain."""
    try:
        # of a large file only the beginning is read
        with pq.ParquetFile(path, buffer_size=2**16, pre_buffer=False) as file:
            entry = next(file.iter_batches(1, columns=[feature.key])).column(0)[0].as_py()
        with Image.open(io.BytesIO(_bytes(entry, feature, "", root)), formats=_FORMATS) as picture:
            shown = ImageOps.exif_transpose(picture)
            return PictureFacts(shown.height, shown.width, _is_deep(picture))
    except Exception:  # noqa: BLE001 (decoders raise many kinds; reading the picture tells)
        return None


def decoded(entry: Any, feature: Feature, where: str, root: Path) -> Array:
    """An entry of a table as uint8 (H, W, 3).

    Args:
        entry: encoded bytes, ``{"bytes": ..., "path": ...}``, or lists of pixels.
        feature: of which it is.
        where: file and row, for messages.
        root: the dataset's folder, below which files are looked for.

    Raises:
        BrokenEpisode: it is missing, damaged, a depth map, or not of the feature's size.
    """
    found = _bytes(entry, feature, where, root)
    if isinstance(found, bytes) and not (feature.is_pixels and len(found) == feature.dim):
        return _decoded(found, feature, where)
    try:
        pixels = np.frombuffer(found, np.uint8) if isinstance(found, bytes) else np.array(found, np.uint8)
        declared = [feature.shape[feature.axes.index(axis)] for axis in range(3)]
        return _colours(pixels.reshape(declared).transpose(feature.axes))
    except (TypeError, ValueError, OverflowError):
        raise BrokenEpisode(f"{where}: {feature.key!r} does not hold the bytes of {feature.shape} pixels") from None


def wrong_size(feature: Feature, height: int, width: int) -> str:
    """What to say of pictures of another size than declared."""
    remedy = "; swap them there" if (width, height) == feature.shape[:2] else "; correct its shape there"
    return (
        f"images of {feature.key!r} are {height} x {width}, info.json says {feature.shape[0]} x {feature.shape[1]}"
        + remedy
    )


def _bytes(entry: Any, feature: Feature, where: str, root: Path) -> Any:
    """The bytes of an entry, out of a file if it only names one; or its pixels."""
    found = entry.get("bytes") if isinstance(entry, dict) else entry
    name = entry.get("path") if isinstance(entry, dict) else None
    if found is None and name:
        file = (root / name).resolve()
        if not file.is_relative_to(root.resolve()) or not file.is_file():
            raise BrokenEpisode(f"{where}: {feature.key!r} only names a file, {name}, and there is none in the dataset")
        found = file.read_bytes()
    if found is None:
        raise BrokenEpisode(f"{where}: {feature.key!r} is missing: there are no bytes of a picture")
    return found


def _decoded(raw: bytes, feature: Feature, where: str) -> Array:
    try:
        with Image.open(io.BytesIO(raw), formats=_FORMATS) as picture:
            deep = _is_deep(picture)
            if not deep and sorted(picture.size) == sorted(feature.shape[:2]):  # others are not worth decoding
                shown = ImageOps.exif_transpose(picture)
                if (shown.height, shown.width) == feature.shape[:2]:
                    return np.asarray(shown.convert("RGB"))
            height, width = picture.height, picture.width
    except Exception as error:  # noqa: BLE001 (decoders raise many kinds; the message names it)
        raise BrokenEpisode(f"{where}: a picture of {feature.key!r} is damaged: {error}") from None
    if deep:
        raise BrokenEpisode(
            f"{where}: {feature.key!r} holds pictures of more than 8 bits; depth maps are not read: leave the camera "
            "out of the map (`kairos data inspect --save`)"
        )
    raise BrokenEpisode(f"{where}: {wrong_size(feature, height, width)}")


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode.startswith(("I", "F"))


def _colours(pixels: Array) -> Array:
    """(H, W, 1, 3 or 4) as RGB."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3])
