"""Writing a cache of latents, which `cache` describes: continued after a kill, complete or not opened."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kairos_env.datasets.latents.cache import (
    FORMAT,
    CachedArray,
    CacheError,
    Origin,
    cache_attributes,
    check_array,
    read_array,
    read_record,
    record_digest,
)
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Array, Episode, RobotSpec
from kairos_env.runs import WriteLock, atomic_write, remove_leftovers

_WORDS = ("task", "instruction", "source", "seed", "initial_state", "condition", "outcome_known")
_MASKS = ("proprio_mask", "action_mask")


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
    stored = {key: CachedArray(a.dtype.name, a.shape, zlib.crc32(a.tobytes())) for key, a in arrays.items()}
    words = {key: getattr(episode, key) for key in _WORDS} | {"label_tasks": list(episode.label_tasks)}
    record = {"name": name, "words": words, "arrays": {key: asdict(value) for key, value in stored.items()}}
    with atomic_write(folder / f"{number:06d}") as part:
        group = zarr.create_group(part, attributes=_with_digest(record))
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
        zarr.open_group(self.folder, mode="r+").update_attributes(_with_digest(self._attributes | done))

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
            attributes = cache_attributes(self.folder)
            before, robot = Origin(**attributes["origin"]), RobotSpec.from_dict(attributes["robot"])
            lines = "\n  ".join(_differences(before, origin, robot, spec))
            if lines:
                raise CacheError(f"{self.folder} is a cache of something else; name another folder:\n  {lines}")
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
        zarr.create_group(self.folder, attributes=_with_digest(attributes))
        return attributes

    def _remove_if_damaged(self, number: int, verify: bool) -> None:
        place = self._place(number)
        if not place.exists():
            return
        try:
            record = read_record(place)
            if verify:
                for key, stored in record.arrays.items():
                    check_array(read_array(place, key, stored, mapped=True), stored, f"{place}: {key!r}")
        except BrokenEpisode as error:
            self.damaged[place.name] = str(error)
            shutil.rmtree(place)


def _differences(before: Origin, origin: Origin, cached: RobotSpec, spec: RobotSpec) -> list[str]:
    """The reasons why a cache cannot be continued, a line each."""
    lines = []
    if before.encoder != origin.encoder:
        lines.append(
            f"tokenizer: {before.encoder[:12]} (of {before.model}) made the latents, {origin.encoder[:12]} is wanted; "
            "a model reads only latents of its own tokenizer and statistics"
        )
    lines += [f"{line} (cached != wanted)" for line in cached.diff(spec)]
    if before.fingerprint != origin.fingerprint:
        lines.append(
            f"recording: {before.recording} when the cache was begun, {origin.recording} now, and its files, their "
            "sizes or what its features mean differ"
        )
    return lines


def _with_digest(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**attributes, "sha256": record_digest(attributes)}


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
