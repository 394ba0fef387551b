"""The ``meta`` folder of a LeRobotDataset: version, features, tasks, statistics, where episodes lie.

v3.x: many episodes share a file, and a table says where each one is::

    meta/info.json, meta/stats.json, meta/tasks.parquet
    meta/episodes/chunk-000/file-000.parquet    a row an episode: length, data file, and for each camera
                                                its file and where in it the episode begins, in seconds
    data/chunk-000/file-000.parquet             a row a frame
    videos/<feature>/chunk-000/file-000.mp4

v2.x: files of their own for each episode::

    meta/info.json, meta/episodes.jsonl, meta/tasks.jsonl, meta/episodes_stats.jsonl (v2.0: meta/stats.json)
    data/chunk-000/episode_000000.parquet
    videos/chunk-000/<feature>/episode_000000.mp4

A camera of dtype ``image`` has no video; its encoded pictures are a column of the data files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kairos_env.datasets.statistics import DatasetStatistics, of_all_rows
from kairos_env.records import RobotSpec

# Every dataset has these features; they are bookkeeping, never a state or an action.
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")

LABEL = "kairos."  # datasets that Kairos exported keep an episode's labels in features of this prefix
NOTE = "kairos/"  # and what else is known about it in columns of the episode table

_NEWEST = 3  # major version of the layout
_OWN_FORMAT = 1  # of meta/kairos.json


class DatasetError(ValueError):
    """A dataset that cannot be read as a whole: what is wrong and what to do."""


@dataclass(frozen=True)
class Feature:
    """One feature of ``info.json``.

    Args:
        key: for example ``"observation.state"``.
        dtype: ``"video"``, ``"image"``, ``"string"``, ``"language"`` or the name of a number type.
        shape: of one frame; images as (height, width, channels) whatever the file says.
        names: one for each scalar, in the order of the flattened array; empty for images and texts.
        notes: what else the file says about it.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("video", "image")

    @property
    def is_depth(self) -> bool:
        """A depth map, which is not read."""
        return bool(self.notes.get("is_depth_map") or self.notes.get("video.is_depth_map"))

    @property
    def is_numeric(self) -> bool:
        return not self.is_camera and self.dtype not in ("string", "language")

    @property
    def dim(self) -> int:
        """Scalars in one frame."""
        return prod(self.shape)


@dataclass(frozen=True)
class StoredEpisode:
    """Location of an episode.

    Args:
        index: its number in the dataset.
        length: frames.
        data: parquet file with its rows.
        videos: feature -> (mp4 file, seconds at which the episode begins in it); a camera that the table
            does not mention is missing.
        tasks: what the robot was asked to do, in words.
        notes: further columns ``kairos/...`` of the episode table, without that prefix.
    """

    index: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, float]]
    tasks: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Meta:
    """The metadata of one dataset.

    Args:
        root: its folder.
        version: of the layout, for example ``"v3.0"``.
        fps: frames per second.
        info: the whole ``info.json``.
        features: what it declares.
        tasks: task_index -> text.
        own: ``meta/kairos.json`` of datasets that Kairos exported, else empty.
    """

    root: Path
    version: str
    fps: float
    info: Mapping[str, Any]
    features: Mapping[str, Feature]
    tasks: Mapping[int, str]
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def robot(self) -> RobotSpec | None:
        """The robot as Kairos described it when it exported the dataset."""
        return RobotSpec.from_dict(self.own["robot_spec"]) if self.own else None

    @property
    def control_rate_hz(self) -> float:
        """Decisions per second; ``fps``, except where Kairos noted a rate that is no whole number."""
        return float(self.own["robot_spec"]["control_rate_hz"]) if self.own else self.fps

    def episodes(self, cameras: Sequence[str]) -> list[StoredEpisode]:
        """Every episode that the metadata list, whether its files are there or not.

        Args:
            cameras: features of dtype ``video`` to look up.

        Raises:
            DatasetError: the list is missing or damaged.
        """
        return list((_episodes_v3 if self.major == 3 else _episodes_v2)(self, cameras))

    def statistics(self) -> dict[str, DatasetStatistics]:
        """Feature -> the statistics stored with the dataset, one entry for each scalar; may be empty.

        Raises:
            DatasetError: damaged, or of other lengths than the features.
        """
        return {key: _fitting(found, self.features[key]) for key, found in self.stored_statistics().items()}

    def stored_statistics(self) -> dict[str, DatasetStatistics]:
        """The same, with the lengths that they have.

        Raises:
            DatasetError: damaged.
        """
        whole, each = self.root / "meta" / "stats.json", self.root / "meta" / "episodes_stats.jsonl"
        entries: list[Any]
        if whole.is_file():
            path, entries = whole, [_json(whole.read_text(encoding="utf-8"), whole)]
        elif each.is_file():
            path, entries = each, [row.get("stats") for row in _json_lines(each)]
        else:
            return {}
        found: dict[str, list[DatasetStatistics]] = {}
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise DatasetError(f"{path} is damaged: statistics should be a JSON object")
            for key in [key for key, f in self.features.items() if f.is_numeric and key in entry]:
                try:
                    found.setdefault(key, []).append(DatasetStatistics.from_dict(entry[key]))
                except (TypeError, ValueError) as error:
                    raise DatasetError(f"{path}: {key!r}: {error}") from None
        for key, parts in found.items():
            if len({len(part) for part in parts}) != 1:
                raise DatasetError(f"{path}: the statistics of {key!r} differ in length between episodes")
        return {key: of_all_rows(parts) for key, parts in found.items()}


def read_meta(root: Path) -> Meta:
    """Reads and checks ``info.json``, the tasks, and ``kairos.json`` if it is there.

    Raises:
        DatasetError: not a LeRobot dataset, of an unknown version, or damaged.
    """
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise DatasetError(f"{root} is not a LeRobot dataset: it has no meta/info.json")
    info = _json(path.read_text(encoding="utf-8"), path)
    if not isinstance(info, dict):
        raise DatasetError(f"{path} is damaged: it should be a JSON object")
    version = _version(info, path)
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < float("inf"):
        raise DatasetError(f"{path} has fps {fps!r}, expected a number above 0")
    declared = info.get("features")
    if not isinstance(declared, Mapping) or not declared:
        raise DatasetError(f"{path} declares no features")
    features = {key: _feature(key, entry) for key, entry in declared.items()}
    tasks = _read_tasks(root, version)
    return Meta(root, version, float(fps), info, features, tasks, _read_own(root))


def _version(info: Mapping[str, Any], path: Path) -> str:
    given = str(info.get("codebase_version", ""))
    match = re.fullmatch(r"v?(\d+)\.(\d+)(\..*)?", given)
    if not match:
        raise DatasetError(f"{path} has codebase_version {given!r}, expected something like v2.1 or v3.0")
    major = int(match.group(1))
    if major > _NEWEST:
        raise DatasetError(
            f"{path.parent.parent} was written by a newer LeRobot (layout {given}); known are v2.0, v2.1 and v3.x: "
            "update kairos-env, or store the dataset again as v3.0"
        )
    if major < 2:
        raise DatasetError(f"{path.parent.parent} has the old layout {given}; convert it to v2.1 or v3.0 with LeRobot")
    return given.removeprefix("v")


def _feature(key: str, entry: Any) -> Feature:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry.get("shape") or (1,))
        notes = {**(entry.get("video_info") or {}), **(entry.get("info") or {})}
        if min(shape) < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DatasetError(f"info.json declares {key!r} as {entry!r}, expected a dtype and a shape") from None
    if dtype in ("video", "image"):
        if len(shape) != 3:
            raise DatasetError(f"the images of {key!r} have shape {shape}, expected (height, width, channels)")
        axes = list(_leaves(entry.get("names")))
        if (axes and axes[0].startswith("channel")) or (shape[0] in (1, 3) and shape[2] not in (1, 3)):
            shape = (*shape[1:], shape[0])
        return Feature(key, dtype, shape, notes=notes)
    if dtype in ("string", "language"):
        return Feature(key, dtype, shape, notes=notes)
    names = list(_leaves(entry.get("names")))
    if len(names) != prod(shape):
        short = key.removeprefix("observation.").replace(".", "_")
        names = [short] if prod(shape) == 1 else [f"{short}_{i}" for i in range(prod(shape))]
    return Feature(key, dtype, shape, tuple(distinct(names)), notes)


def _leaves(names: Any) -> Iterable[str]:
    """The names in a list, in nested lists, or in ``{"motors": [...]}``; anything else has none."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, Mapping):
        yield from _leaves(list(names.values()))
    elif isinstance(names, Sequence):
        for part in names:
            yield from _leaves(part)


def distinct(names: Sequence[str]) -> list[str]:
    """Repeated names get numbers: gripper, gripper_2."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def _read_own(root: Path) -> dict[str, Any]:
    path = root / "meta" / "kairos.json"
    if not path.is_file():
        return {}
    own = _json(path.read_text(encoding="utf-8"), path)
    try:
        if own["format"] > _OWN_FORMAT:
            raise DatasetError(f"{path} has format {own['format']}, {_OWN_FORMAT} is known here: update kairos-env")
        RobotSpec.from_dict(own["robot_spec"])
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is damaged: {error!r}") from None
    return dict(own)


def _read_tasks(root: Path, version: str) -> dict[int, str]:
    if version.startswith("2"):
        path = root / "meta" / "tasks.jsonl"
        rows = _json_lines(path)
    else:
        path = root / "meta" / "tasks.parquet"
        # The text is the index of a pandas table: its column is called "task", or "__index_level_0__".
        rows = [{"task": row.get("__index_level_0__"), **row} for row in _table(path)]
    try:
        return {int(row["task_index"]): str(row["task"]) for row in rows if row["task"] is not None}
    except (KeyError, TypeError, ValueError):
        raise DatasetError(f"{path} is damaged: every row needs task_index and task") from None


def _episodes_v2(meta: Meta, cameras: Sequence[str]) -> Iterator[StoredEpisode]:
    path = meta.root / "meta" / "episodes.jsonl"
    chunk = meta.info.get("chunks_size", 1000)
    if not isinstance(chunk, int) or chunk < 1:
        raise DatasetError(f"info.json has chunks_size {chunk!r}, expected the number of episodes in a folder")
    for row in _json_lines(path):
        try:
            index, length = int(row["episode_index"]), int(row["length"])
            tasks = tuple(map(str, row.get("tasks") or ()))
        except (KeyError, TypeError, ValueError):
            raise DatasetError(f"{path} is damaged: every line needs episode_index and length, got {row}") from None
        place = {"episode_chunk": index // chunk, "episode_index": index}
        videos = {key: (_path(meta, "video_path", place | {"video_key": key}), 0.0) for key in cameras}
        yield StoredEpisode(index, length, _path(meta, "data_path", place), videos, tasks)


def _episodes_v3(meta: Meta, cameras: Sequence[str]) -> Iterator[StoredEpisode]:
    files = sorted((meta.root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{meta.root} has no meta/episodes/*/*.parquet")
    for path in files:
        for row in _table(path, leave_out="stats/"):  # which fill most of it
            try:
                index, length = int(row["episode_index"]), int(row["length"])
                place = {"chunk_index": int(row["data/chunk_index"]), "file_index": int(row["data/file_index"])}
            except (KeyError, TypeError, ValueError) as error:
                raise DatasetError(f"{path} is damaged: an episode lacks {error}") from None
            videos = {}
            for key in cameras:
                numbers = {name: row.get(f"videos/{key}/{name}") for name in ("chunk_index", "file_index")}
                begin = row.get(f"videos/{key}/from_timestamp")
                if begin is not None and None not in numbers.values():
                    values = {name: int(value or 0) for name, value in numbers.items()} | {"video_key": key}
                    videos[key] = (_path(meta, "video_path", values), float(begin))
            notes = {k.removeprefix(NOTE): v for k, v in row.items() if k.startswith(NOTE) and v is not None}
            tasks = tuple(map(str, row.get("tasks") or ()))
            yield StoredEpisode(index, length, _path(meta, "data_path", place), videos, tasks, notes)


def _path(meta: Meta, what: str, values: Mapping[str, Any]) -> Path:
    """Fills in a path of ``info.json``; it may not leave the dataset's folder."""
    template = meta.info.get(what)
    try:
        relative = os.path.normpath(str(template).format(**values))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DatasetError(f"info.json has {what} {template!r}, which does not fit its layout: {error!r}") from None
    if template is None or os.path.isabs(relative) or relative.startswith(".."):
        raise DatasetError(f"info.json has {what} {template!r}, expected a path inside of the dataset")
    return meta.root / relative


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{path} is damaged: {error}") from None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DatasetError(f"{path} is missing")
    rows = [_json(line, path) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{path} is damaged: every line should be a JSON object")
    return rows


def _table(path: Path, leave_out: str = "\0") -> list[dict[str, Any]]:
    """The rows of a table, without the columns of a prefix."""
    try:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if not name.startswith(leave_out)]
            rows: list[dict[str, Any]] = file.read(columns=wanted).to_pylist()
            return rows
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing") from None
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path} is damaged: {error}") from None


def _fitting(statistics: DatasetStatistics, feature: Feature) -> DatasetStatistics:
    """One entry for each scalar; LeRobot reduces features of several axes over all but the last."""
    if len(statistics) == feature.dim:
        return statistics
    if len(feature.shape) > 1 and len(statistics) == feature.shape[-1]:
        return statistics.take([i % feature.shape[-1] for i in range(feature.dim)])
    raise DatasetError(
        f"the stored statistics of {feature.key!r} are of {len(statistics)} values, but it has {feature.dim}; "
        "remove meta/stats.json or meta/episodes_stats.jsonl, and they are computed from the data"
    )
