"""Latents of recorded episodes in a zarr folder, so that training decodes no pictures.

A zarr v3 hierarchy, one group an episode, one chunk an array::

    zarr.json                     attributes: `Origin`, robot, versions, complete, left_out, and their checksum
    000012/zarr.json              attributes: the episode's words, its arrays with their checksums
    000012/latents/<camera>       float16 (T + 1, C, h, w), normalised, as a model's tokenizer makes them
    000012/proprio, actions, rewards, success, proprio_mask, action_mask, labels/<key>     as in `records.Episode`

Chunks are not compressed: a chunk file holds nothing but the numbers, and readers map it into memory. zarr writes
the folder, and any zarr reader can open it; `LatentCache` reads the files itself, since zarr takes milliseconds for
what a map does in microseconds.

An episode is written beside the others and renamed when all of it is there, so it is there as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.foreign import read_json
from kairos_env.datasets.recording import BrokenEpisode, Recording
from kairos_env.records import Array, Episode, RobotSpec, stored_initial_state

FORMAT = 1
_ATTRIBUTES = {"kairos_latents", "origin", "robot", "episodes", "versions", "complete", "left_out"}


class CacheError(ValueError):
    """A cache that cannot be used: unfinished, damaged, or of another recording, robot or model."""


@dataclass(frozen=True)
class Origin:
    """Provenance of a cache: the recording and the encoder.

    Args:
        recording: path or hub name.
        feature_map: file that says what its features mean, or "".
        fingerprint: changes with the recording's files and the map.
        model: name or folder.
        encoder: `WorldModel.encoder_sha256`.
    """

    recording: str
    feature_map: str
    fingerprint: str
    model: str
    encoder: str


@dataclass(frozen=True)
class CachedArray:
    """One array: type, shape and the CRC-32 of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    crc32: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class CachedEpisode:
    """Description of an episode in its group: its name in the recording, its words, and its arrays by key."""

    name: str
    words: Mapping[str, Any]
    arrays: Mapping[str, CachedArray]

    @property
    def frames(self) -> int:
        return self.arrays["proprio"].shape[0]


class LatentCache(Recording):
    """The episodes of a complete cache, with ``latents`` instead of ``images``, read lazily.

    Opening looks at every episode's description (which has a checksum) and the sizes of its files. The checksum of
    the numbers is compared when an episode is first read. `Recording` says how damaged ones are treated; those that
    could not be encoded are `broken`, too.

    Latents are memory maps: nothing is read before it is used, and the system may drop it again. Writing into one
    changes neither the file nor what others read.

    Args:
        folder: of the cache.

    Attributes:
        numbers: of each episode in the recording that was encoded, whose ``names`` these are.
        origin: the recording and the encoder.

    Raises:
        FileNotFoundError: nothing there.
        CacheError: not a cache, an unfinished one, or no usable episode.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.folder = Path(folder)
        attributes = cache_attributes(self.folder)
        self.spec = RobotSpec.from_dict(attributes["robot"])
        self.origin = Origin(**attributes["origin"])
        if not attributes["complete"]:
            raise CacheError(f"{folder} is not complete: run the same `kairos data encode` again, it goes on")
        left_out = attributes["left_out"]
        broken: dict[str, str] = dict(left_out.values())
        self.numbers: list[int] = []
        self._records: list[CachedEpisode] = []
        self._sound: set[int] = set()
        for number in range(attributes["episodes"]):
            if str(number) in left_out:
                continue
            try:
                record = read_record(self.folder / f"{number:06d}")
            except BrokenEpisode as error:
                broken[str(self.folder / f"{number:06d}")] = str(error)
                continue
            self._records.append(record)
            self.names.append(record.name)
            self.numbers.append(number)
            self.lengths.append(record.frames - 1)
        self.leave_out(broken)
        if not self.names:
            raise CacheError(f"{folder} has no usable episode")

    @property
    def nbytes(self) -> int:
        """Bytes of all latents."""
        keys = ((record, key) for record in self._records for key in record.arrays if key.startswith("latents/"))
        return sum(record.arrays[key].nbytes for record, key in keys)

    def _episode(self, index: int) -> Episode:
        place, record = self.folder / f"{self.numbers[index]:06d}", self._records[index]
        arrays = {}
        for key, stored in record.arrays.items():
            arrays[key] = read_array(place, key, stored, mapped=key.startswith("latents/"))
            if index not in self._sound:
                check_array(arrays[key], stored, f"{record.name}: {key!r} in {place}")
        self._sound.add(index)
        episode: dict[str, Any] = {key: value for key, value in arrays.items() if "/" not in key}
        for part in ("latents", "labels"):
            episode[part] = {k.removeprefix(f"{part}/"): v for k, v in arrays.items() if k.startswith(f"{part}/")}
        words = {**record.words, "label_tasks": tuple(record.words["label_tasks"])}
        words["initial_state"] = stored_initial_state(words)
        words.pop("initial_state_id", None)
        return Episode(images={}, encoder=self.origin.encoder, **episode, **words)


def cache_attributes(folder: Path) -> dict[str, Any]:
    """The attributes of a cache."""
    path = folder / "zarr.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no cache of latents (no zarr.json); `kairos data encode` makes one")
    try:
        attributes: dict[str, Any] = read_json(path)["attributes"]
        version = attributes["kairos_latents"]
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path} does not describe a cache of latents: {error!r}") from None
    if version != FORMAT:
        raise CacheError(f"{folder} has format {version}, this version reads {FORMAT}: encode again")
    digest = attributes.pop("sha256", None)  # caches of earlier versions have none
    try:
        if digest not in (None, record_digest(attributes)) or set(attributes) != _ATTRIBUTES:
            raise ValueError("its checksum differs")
        RobotSpec.from_dict(attributes["robot"])
        Origin(**attributes["origin"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheError(f"{path} is damaged: {error}; encode into another folder") from None
    return attributes


def read_record(place: Path) -> CachedEpisode:
    """Reads an episode's description and looks whether its files are there and of the right size."""
    try:
        attributes = read_json(place / "zarr.json")["attributes"]
        digest = attributes.pop("sha256")
        if digest != record_digest(attributes):
            raise ValueError("its checksum differs")
        stored = {k: CachedArray(v["dtype"], tuple(v["shape"]), v["crc32"]) for k, v in attributes["arrays"].items()}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BrokenEpisode(f"{place / 'zarr.json'} is damaged: {error}") from None
    for key, array in stored.items():
        path = array_path(place, key, array)
        size = path.stat().st_size if path.is_file() else 0
        if size != array.nbytes:
            raise BrokenEpisode(f"{attributes['name']}: {path} has {size} bytes, expected {array.nbytes}")
    return CachedEpisode(attributes["name"], attributes["words"], stored)


def array_path(place: Path, key: str, stored: CachedArray) -> Path:
    return place / key / ".".join(["c"] + ["0"] * len(stored.shape))


def read_array(place: Path, key: str, stored: CachedArray, mapped: bool) -> Array:
    """An array, read or as a memory map that is private to this process."""
    if stored.nbytes == 0:
        return np.zeros(stored.shape, stored.dtype)
    path = array_path(place, key, stored)
    try:
        if mapped:
            return np.memmap(path, stored.dtype, "c", shape=stored.shape)
        return np.fromfile(path, stored.dtype).reshape(stored.shape)
    except (OSError, ValueError) as error:  # numpy says by the latter that a file is too short
        raise BrokenEpisode(f"{path} cannot be read: {error}") from None


def check_array(array: Array, stored: CachedArray, what: str) -> None:
    if zlib.crc32(array.data) != stored.crc32:
        raise BrokenEpisode(f"{what} is damaged: its checksum differs")


def record_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
