"""Latents of recorded episodes in a zarr folder, so that training decodes no pictures.

A zarr v3 hierarchy, one group an episode, one chunk an array::

    zarr.json                     attributes: `Origin`, robot, versions, complete, left_out
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
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from kairos_env.datasets.hdf5.files import BrokenEpisode
from kairos_env.records import Array, Episode, RobotSpec, stored_initial_state
from kairos_env.runs import WriteLock, atomic_write, remove_leftovers

FORMAT = 1
_WORDS = ("task", "instruction", "source", "seed", "initial_state", "outcome_known")
_MASKS = ("proprio_mask", "action_mask")


class CacheError(ValueError):
    """A cache that cannot be used: unfinished, damaged, or of another recording, robot or model."""


@dataclass(frozen=True)
class Origin:
    """What was encoded, and by what.

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
class _Stored:
    """One array: type, shape and the CRC-32 of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    crc32: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class _Record:
    """What an episode's group says: its name in the recording, its words, and its arrays by key."""

    name: str
    words: Mapping[str, Any]
    arrays: Mapping[str, _Stored]

    @property
    def frames(self) -> int:
        return self.arrays["proprio"].shape[0]


def write_episode(folder: Path, number: int, name: str, episode: Episode, latents: Mapping[str, Array]) -> None:
    """Puts one encoded episode safely into a cache; any process may call it.

    Args:
        folder: of the cache.
        number: of the episode in the recording.
        name: of the episode, for messages.
        episode: its pictures are not looked at.
        latents: camera name -> float (T + 1, C, h, w), stored as float16.

    Raises:
        BrokenEpisode: latents that float16 cannot hold, or labels that are no numbers.
    """
    import zarr

    arrays = {f"latents/{camera}": _half(value, name) for camera, value in latents.items()}
    arrays |= {key: getattr(episode, key) for key in ("proprio", "actions", "rewards", "success")}
    arrays |= {key: getattr(episode, key) for key in _MASKS if getattr(episode, key) is not None}
    arrays |= {f"labels/{key}": value for key, value in episode.labels.items()}
    arrays = {key: _numbers(key, value, name) for key, value in arrays.items()}
    stored = {key: _Stored(a.dtype.name, a.shape, zlib.crc32(a.tobytes())) for key, a in arrays.items()}
    words = {key: getattr(episode, key) for key in _WORDS} | {"label_tasks": list(episode.label_tasks)}
    record = {"name": name, "words": words, "arrays": {key: asdict(value) for key, value in stored.items()}}
    with atomic_write(folder / f"{number:06d}") as part:
        group = zarr.create_group(part, attributes=record | {"sha256": _digest(record)})
        for key, array in arrays.items():
            group.create_array(
                key,
                data=array,
                chunks=tuple(max(1, n) for n in array.shape),
                compressors=None,
                filters=None,
                chunk_key_encoding={"name": "default", "separator": "."},
                config={"write_empty_chunks": True},  # zarr would leave out a chunk of zeros
            )


class LatentCacheWriter:
    """A cache that is being written: knows which episodes are safe and which are missing.

    Use it as a context; only one process may own a folder at a time. A folder of the same recording, robot and model
    is continued.

    Args:
        folder: created if it is not there.
        origin: what is encoded, and by what.
        spec: the robot of the recording.
        episodes: how many it has.
        versions: of the software, noted in a new cache.
        verify: read everything that is already there, instead of only looking at sizes.

    Attributes:
        damaged: name of an episode that was there -> what was wrong; it is missing now.

    Raises:
        CacheError: the folder holds a cache of something else; the message lists every difference.
        RuntimeError: another process is writing it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        origin: Origin,
        spec: RobotSpec,
        episodes: int,
        versions: Mapping[str, str] | None = None,
        verify: bool = False,
    ) -> None:
        self.folder, self.episodes, self._versions = Path(folder), episodes, versions or {}
        self.damaged: dict[str, str] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = WriteLock(self.folder)
        try:
            self._attributes = self._begin(origin, spec)
        except BaseException:
            self._lock.release()
            raise
        remove_leftovers(self.folder)
        for number in range(episodes):
            self._remove_if_damaged(number, verify)

    @property
    def missing(self) -> list[int]:
        """Numbers of the episodes that are not there."""
        return [number for number in range(self.episodes) if not self._place(number).exists()]

    def finish(self, left_out: Mapping[int, tuple[str, str]]) -> None:
        """Declares the cache complete.

        Args:
            left_out: number of an episode that could not be read -> its name, and why. All others must be there.
        """
        import zarr

        missing = self.missing
        if missing != sorted(left_out):
            raise CacheError(f"episodes {missing} of {self.folder} are missing, but {sorted(left_out)} were left out")
        done = {"complete": True, "left_out": {str(number): list(left_out[number]) for number in missing}}
        zarr.open_group(self.folder, mode="r+").update_attributes(self._attributes | done)

    def __enter__(self) -> LatentCacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    def _begin(self, origin: Origin, spec: RobotSpec) -> dict[str, Any]:
        import zarr

        if (self.folder / "zarr.json").exists():
            attributes = _root(self.folder)
            before = Origin(**attributes["origin"])
            lines = _differences(before, origin.encoder, spec, RobotSpec.from_dict(attributes["robot"]))
            if before.fingerprint != origin.fingerprint:
                lines.append(
                    f"recording: {before.recording} when the cache was begun, {origin.recording} now, and its files, "
                    "their sizes or what its features mean differ"
                )
            if lines:
                raise CacheError(f"{self.folder} is a cache of something else; name another folder:\n  {_lines(lines)}")
            return attributes
        # zarr writes zarr.<random>.partial first
        foreign = sorted(p.name for p in self.folder.iterdir() if p.suffix != ".partial" and p.name != ".lock")
        if foreign:
            raise CacheError(f"{self.folder} is not empty and no cache ({foreign[0]}, ...); name another folder")
        attributes = {
            "kairos_latents": FORMAT,
            "origin": asdict(origin),
            "robot": spec.to_dict(),
            "episodes": self.episodes,
            "versions": dict(self._versions),
            "complete": False,
            "left_out": {},
        }
        zarr.create_group(self.folder, attributes=attributes)
        return attributes

    def _remove_if_damaged(self, number: int, verify: bool) -> None:
        place = self._place(number)
        if not place.exists():
            return
        try:
            record = _record(place)
            if verify:
                for key, stored in record.arrays.items():
                    _check(_chunk(place, key, stored, mapped=True), stored, f"{place}: {key!r}")
        except BrokenEpisode as error:
            self.damaged[place.name] = str(error)
            shutil.rmtree(place)


class LatentCache(Sequence[Episode]):
    """The episodes of a complete cache, with ``latents`` instead of ``images``, read lazily.

    Opening looks at every episode's description (which has a checksum) and the sizes of its files. The checksum of
    the numbers is compared when an episode is first read. Damaged episodes are treated as in `hdf5.Hdf5Episodes`:
    named in a warning, collected in `broken`, left out by iteration; indexing one raises `BrokenEpisode`.

    Latents are memory maps: nothing is read before it is used, and the system may drop it again. Writing into one
    changes neither the file nor what others read.

    Args:
        folder: of the cache.
        encoder: `WorldModel.encoder_sha256` of the model that shall read it; None does not ask.
        spec: the robot that it shall be of; None does not ask.

    Attributes:
        spec: the robot of all episodes.
        names: of each episode in the recording that was encoded, in order.
        numbers: of each episode there.
        frames: observations of each episode.
        origin: what was encoded, and by what.
        broken: name -> what is wrong; those that could not be encoded too.

    Raises:
        FileNotFoundError: nothing there.
        CacheError: not a cache, an unfinished one, one of another model or robot, or no usable episode.
    """

    def __init__(
        self, folder: str | os.PathLike[str], encoder: str | None = None, spec: RobotSpec | None = None
    ) -> None:
        self.folder = Path(folder)
        attributes = _root(self.folder)
        self.spec = RobotSpec.from_dict(attributes["robot"])
        self.origin = Origin(**attributes["origin"])
        if lines := _differences(self.origin, encoder, spec, self.spec):
            raise CacheError(f"{folder} does not fit:\n  " + _lines(lines))
        if not attributes["complete"]:
            raise CacheError(f"{folder} is not complete: run the same `kairos data encode` again, it goes on")
        left_out = attributes["left_out"]
        self.broken: dict[str, str] = dict(left_out.values())
        self.names: list[str] = []
        self.numbers: list[int] = []
        self.frames: list[int] = []
        self._records: list[_Record] = []
        self._sound: set[int] = set()
        for number in range(attributes["episodes"]):
            if str(number) not in left_out:
                self._look_at(number, self._place(number))
        if self.broken:
            shown = [f"{name}: {why}" for name, why in list(self.broken.items())[:20]]
            shown += [f"and {len(self.broken) - 20} more"] if len(self.broken) > 20 else []
            warnings.warn(f"left out {len(self.broken)} broken episode(s):\n  {_lines(shown)}", stacklevel=2)
        if not self.names:
            raise CacheError(f"{folder} has no usable episode")

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...
    def __getitem__(self, index: int | slice) -> Episode | list[Episode]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index])

    def __iter__(self) -> Iterator[Episode]:
        for index in range(len(self)):
            try:
                yield self[index]
            except BrokenEpisode as error:
                self.broken[self.names[index]] = str(error)
                warnings.warn(f"left out a broken episode: {error}", stacklevel=2)

    @property
    def nbytes(self) -> int:
        """Bytes of all latents."""
        keys = ((record, key) for record in self._records for key in record.arrays if key.startswith("latents/"))
        return sum(record.arrays[key].nbytes for record, key in keys)

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    def _look_at(self, number: int, place: Path) -> None:
        try:
            record = _record(place)
        except BrokenEpisode as error:
            self.broken[str(place)] = str(error)
            return
        self._records.append(record)
        self.names.append(record.name)
        self.numbers.append(number)
        self.frames.append(record.frames)

    def _read(self, index: int) -> Episode:
        place, record = self._place(self.numbers[index]), self._records[index]
        arrays = {}
        for key, stored in record.arrays.items():
            arrays[key] = _chunk(place, key, stored, mapped=key.startswith("latents/"))
            if index not in self._sound:
                _check(arrays[key], stored, f"{record.name}: {key!r} in {place}")
        self._sound.add(index)
        episode: dict[str, Any] = {key: value for key, value in arrays.items() if "/" not in key}
        for part in ("latents", "labels"):
            episode[part] = {k.removeprefix(f"{part}/"): v for k, v in arrays.items() if k.startswith(f"{part}/")}
        words = {**record.words, "label_tasks": tuple(record.words["label_tasks"])}
        words["initial_state"] = stored_initial_state(words)
        words.pop("initial_state_id", None)
        return Episode(images={}, encoder=self.origin.encoder, **episode, **words)


def _differences(origin: Origin, encoder: str | None, spec: RobotSpec | None, cached: RobotSpec) -> list[str]:
    lines = []
    if encoder is not None and origin.encoder != encoder:
        lines.append(
            f"tokenizer: {origin.encoder[:12]} (of {origin.model}) made the latents, {encoder[:12]} is wanted; a model "
            "reads only latents of its own tokenizer and statistics"
        )
    if spec is not None:
        lines += [f"{line} (cached != wanted)" for line in cached.diff(spec)]
    return lines


def _root(folder: Path) -> dict[str, Any]:
    """The attributes of a cache."""
    path = folder / "zarr.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no cache of latents (no zarr.json); `kairos data encode` makes one")
    try:
        attributes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["attributes"]
        version = attributes["kairos_latents"]
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path} does not describe a cache of latents: {error!r}") from None
    if version != FORMAT:
        raise CacheError(f"{folder} has format {version}, this version reads {FORMAT}: encode again")
    return attributes


def _record(place: Path) -> _Record:
    """Reads an episode's description and looks whether its files are there and of the right size."""
    try:
        attributes = json.loads((place / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        digest = attributes.pop("sha256")
        if digest != _digest(attributes):
            raise ValueError("its checksum differs")
        stored = {k: _Stored(v["dtype"], tuple(v["shape"]), v["crc32"]) for k, v in attributes["arrays"].items()}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BrokenEpisode(f"{place / 'zarr.json'} is damaged: {error}") from None
    for key, array in stored.items():
        path = _path(place, key, array)
        size = path.stat().st_size if path.is_file() else 0
        if size != array.nbytes:
            raise BrokenEpisode(f"{attributes['name']}: {path} has {size} bytes, expected {array.nbytes}")
    return _Record(attributes["name"], attributes["words"], stored)


def _path(place: Path, key: str, stored: _Stored) -> Path:
    return place / key / ".".join(["c"] + ["0"] * len(stored.shape))


def _chunk(place: Path, key: str, stored: _Stored, mapped: bool) -> Array:
    """An array, read or as a memory map that is private to this process."""
    if stored.nbytes == 0:
        return np.zeros(stored.shape, stored.dtype)
    path = _path(place, key, stored)
    try:
        if mapped:
            return np.memmap(path, stored.dtype, "c", shape=stored.shape)
        return np.fromfile(path, stored.dtype).reshape(stored.shape)
    except (OSError, ValueError) as error:  # numpy says by the latter that a file is too short
        raise BrokenEpisode(f"{path} cannot be read: {error}") from None


def _check(array: Array, stored: _Stored, what: str) -> None:
    if zlib.crc32(array.data) != stored.crc32:
        raise BrokenEpisode(f"{what} is damaged: its checksum differs")


def _half(latents: Array, name: str) -> Array:
    half = np.asarray(latents, np.float16)
    if not np.isfinite(half).all():
        raise BrokenEpisode(f"{name}: its latents hold values that are not finite in float16")
    return half


def _numbers(key: str, value: Array, name: str) -> Array:
    array = np.ascontiguousarray(value)
    if array.dtype.kind not in "fiub":
        raise BrokenEpisode(f"{name}: {key!r} holds {array.dtype}, only numbers can be stored")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _lines(lines: Sequence[str]) -> str:
    return "\n  ".join(lines)
