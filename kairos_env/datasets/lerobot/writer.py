"""Episodes as a LeRobotDataset v3.0 folder, written as they come and without the LeRobot library.

What is stored of an episode of T decisions::

    T + 1 rows                       one for each observation; the last one only shows where the episode ended: it
                                     repeats the last decision's action, success and labels, with reward 0
    observation.images.<camera>      mp4, or PNG inside of the rows
    observation.state, action        float32, physical units, named as in the robot's description
    next.reward, next.success, next.done    what came after the row's action; done from the last decision on;
                                     reward and success only where they were recorded (`Episode.outcome_known`)
    kairos.<label>                   what the episode has as ``labels``

and beside LeRobot's own ``meta`` files::

    meta/kairos.json                 the whole robot description (units, ranges, true rate), whether it is imagined
    meta/episodes: kairos/<key>      who acted, seed, start, and the provenance of imagined episodes

The folder is written beside its place and put there when it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from kairos_env.datasets.lerobot import files
from kairos_env.datasets.lerobot.card import dataset_card
from kairos_env.datasets.lerobot.rows import (
    NUMBER_TYPES,
    FeatureEntry,
    arrow,
    bookkeeping_features,
    camera_key,
    columns_of,
    features_of_labels,
    features_of_robot,
    histogram,
    pixel_statistics,
    png_column,
)
from kairos_env.datasets.recording import BrokenEpisode, episode_problem
from kairos_env.datasets.statistics import RunningStatistics
from kairos_env.datasets.video.writer import KEYFRAMES, Coding, FilmWriter
from kairos_env.records import Array, Episode, RobotSpec
from kairos_env.runs import WriteLock, put_in_place, temporary_for

FORMAT = 1  # of meta/kairos.json

# What every imagined episode must say about itself: columns of meta/episodes, and labels of every frame.
PROVENANCE = ("model", "checkpoint_sha256", "version", "policy", "start")
IMAGINED_LABELS = ("imagined", "uncertainty")

ImageFormat = Literal["h264", "h264_444", "png"]
Provenance = Mapping[str, str | int | float | bool]

_CODINGS = {"h264": Coding("yuv420p", 18), "h264_444": Coding("yuv444p", 10)}
# LeRobot compares times in float32 with a tolerance of 0.1 ms. From 1024 s on float32 is coarser, and frames of long
# episodes that begin late in a file are then not found.
_FILM_SECONDS = 1000.0
_ROWS = 50  # episodes whose metadata are written at once


class LeRobotWriter:
    """Writes episodes into a new LeRobotDataset that appears at ``folder`` only when it is complete.

    Memory holds one episode at a time. Leaving the ``with`` block because of an exception removes what was
    written; what a killed export left is removed by the next one to ``folder``.

    Args:
        folder: does not exist yet.
        spec: the robot; every episode is checked against it.
        fps: frames a second as LeRobot counts them, a whole number; by default the robot's control rate.
        images: ``"h264"`` (4:2:0: plays everywhere, blurs the colour of single pixels), ``"h264_444"`` (full
            colour: decoded by ffmpeg and so by LeRobot, not by every browser) or ``"png"`` (exact, no films).
        imagined: a world model made these episodes. Each must then have `PROVENANCE` and `IMAGINED_LABELS`;
            robot type, every row and the dataset's card say what it is.
        metadata: JSON values about the whole dataset.

    Attributes:
        episodes, frames: written so far.
        tasks: instruction -> its index.
        models: name and sha256 of the models that imagined.

    Raises:
        FileExistsError: ``folder`` exists.
        RuntimeError: another process is writing there.
        ValueError: a rate, camera or option that LeRobot cannot express.

    Example:
        >>> with LeRobotWriter("runs/lerobot", spec) as writer:  # doctest: +SKIP
        ...     for episode in EpisodeFile("runs/record"):
        ...         writer.add(episode)
    """

    def __init__(
        self,
        folder: str | Path,
        spec: RobotSpec,
        fps: float | None = None,
        images: ImageFormat = "h264",
        imagined: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.spec, self.imagined = Path(folder), spec, imagined
        self.fps = _whole_rate(spec, fps)
        self.metadata = dict(metadata or {})
        _check_cameras(spec, images)
        self.episodes = self.frames = 0
        self.tasks: dict[str, int] = {}
        self.models: set[tuple[str, str]] = set()
        self._labels: dict[str, FeatureEntry] | None = None  # these four are those of the first episode
        self._label_tasks: tuple[str, ...] | None = ()
        self._own_types: dict[str, pa.DataType] = {}
        self._outcome = True
        self._numbers: dict[str, RunningStatistics] = {}
        self._pixels: dict[str, Array] = {}
        self._rows: list[dict[str, Any]] = []
        self._state: Literal["open", "failed", "closed"] = "open"
        if self.folder.exists():
            raise FileExistsError(
                f"{folder} exists, and an export never changes a dataset; remove it or choose another"
            )
        self._lock = WriteLock(self.folder, "exporting to")
        self._part = temporary_for(self.folder)
        self._part.mkdir()
        self._data = files.TableWriter(self._part / "data")
        self._meta = files.TableWriter(self._part / "meta/episodes")
        self._coding = _CODINGS.get(images)
        self._films = {c.name: self._film(c.name, self._coding) for c in spec.cameras if self._coding}

    def add(self, episode: Episode, provenance: Provenance | None = None) -> int:
        """Appends one episode and returns its index.

        Args:
            episode: checked whole before anything is written.
            provenance: where it comes from, the same keys for every episode; stored as ``kairos/<key>``.

        Raises:
            BrokenEpisode: wrong shapes, non-finite values, no decisions, other labels or provenance than the
                episodes before, an imagined episode without its marks. The dataset is as it was before.
            OSError: it could not be written. Then nothing more can be, and the dataset is lost.
        """
        if self._state != "open":
            raise ValueError(f"nothing can be added to {self.folder}: the export is {self._state}")
        own = {key: getattr(episode, key) for key in ("task", "source", "seed", "initial_state", "condition")}
        own |= provenance or {}
        problem = episode_problem(episode, self.spec) or self._problem(episode, own)
        if problem:
            raise BrokenEpisode(f"cannot write episode {self.episodes} to {self.folder}: {problem}")
        if self._labels is None:
            self._labels, self._label_tasks = features_of_labels(episode), _label_tasks(episode)
            self._own_types, self._outcome = _types(own), episode.outcome_known
        self._state = "failed"  # until all of it is written
        self._write(episode, own)
        self._state = "open"
        return self.episodes - 1

    def close(self) -> None:
        """Completes the dataset and puts it in place. Calling it again does nothing.

        Raises:
            ValueError: no episode was added, or one failed half way.
            OSError: it could not be written. In all these cases nothing is left.
        """
        if self._state == "closed":
            return
        try:
            if self._state == "failed":
                raise ValueError(f"an episode could not be written to {self.folder}, so the export is incomplete")
            if self.episodes == 0:
                raise ValueError(f"no episode was added to {self.folder}; LeRobot cannot read an empty dataset")
            for film in self._films.values():
                film.close()
            self._flush()
            self._data.close()
            self._meta.close()
            self._write_metadata()
            if self.folder.exists():
                raise FileExistsError(f"{self.folder} has appeared meanwhile; export to another folder")
            put_in_place(self._part, self.folder)
        except BaseException:
            self.discard()
            raise
        self._state = "closed"
        self._lock.release()

    def discard(self) -> None:
        """Drops everything that was added."""
        if self._state == "closed":
            return
        self._state = "closed"
        self._data.abandon()
        self._meta.abandon()
        for film in self._films.values():
            film.abandon()
        shutil.rmtree(self._part)
        self._lock.release()

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _film(self, camera: str, coding: Coding) -> FilmWriter:
        folder = self._part / "videos" / camera_key(camera)
        return FilmWriter(
            lambda n: folder / files.numbered(files.FILMS, n), self.fps, coding, files.FILM_MB * 2**20, _FILM_SECONDS
        )

    def _problem(self, episode: Episode, own: Provenance) -> str:
        """The reason why an episode that fits the robot does not fit this dataset; empty if it does."""
        for name in ("proprio_mask", "action_mask"):
            mask = getattr(episode, name)
            if mask is not None and not np.all(mask):
                return f"{name} says that some fields were never recorded; export it as the robot that it was"
        labels, types = features_of_labels(episode), _types(own)
        for key, feature in labels.items():
            if feature["dtype"] not in NUMBER_TYPES or "/" in key:
                return f"label {key!r} is {feature['dtype']}; labels are {', '.join(NUMBER_TYPES)}, named without '/'"
        if self._labels is not None and labels != self._labels:
            wrong = sorted(k for k in labels | self._labels if labels.get(k) != self._labels.get(k))
            return f"its labels are not those of the episodes before: {', '.join(wrong)}"
        if self._labels is not None and episode.outcome_known != self._outcome:
            here, there = ("recorded" if known else "not recorded" for known in (episode.outcome_known, self._outcome))
            return f"its outcome is {here}, that of those before is {there}"
        if self._labels is not None and _label_tasks(episode) != self._label_tasks:
            before = "its own" if self._label_tasks is None else list(self._label_tasks)
            return f"its labels are of the tasks {list(episode.label_tasks)}, those before of {before}"
        if any(pa.types.is_null(kind) for kind in types.values()):
            return f"its provenance holds None: {own}"
        if self._own_types and types != self._own_types:
            return f"its provenance is {types}, that of the episodes before {self._own_types}"
        lacking = [*(k for k in PROVENANCE if k not in own), *(k for k in IMAGINED_LABELS if k not in episode.labels)]
        if self.imagined and lacking:
            return f"an imagined episode must say where it comes from; it lacks {', '.join(lacking)}"
        if not self.imagined and np.any(episode.labels.get("imagined", False)):
            return "it is imagined; it belongs into a dataset that says so: LeRobotWriter(..., imagined=True)"
        return ""

    def _write(self, episode: Episode, own: Provenance) -> None:
        frames = len(episode) + 1
        task = self.tasks.setdefault(episode.instruction, len(self.tasks))
        columns = columns_of(self.spec, episode) | {
            "timestamp": (np.arange(frames) / self.fps).astype(np.float32),
            "frame_index": np.arange(frames),
            "episode_index": np.full(frames, self.episodes),
            "index": self.frames + np.arange(frames),
            "task_index": np.full(frames, task),
        }
        row: dict[str, Any] = {"episode_index": self.episodes, "tasks": [episode.instruction], "length": frames}
        row |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + frames}
        table: dict[str, pa.Array] = {}
        statistics: dict[str, dict[str, Any]] = {}
        for camera in self.spec.cameras:
            key, pixels = camera_key(camera.name), np.asarray(episode.images[camera.name])
            counts = histogram(pixels)
            self._pixels[key] = self._pixels[key] + counts if key in self._pixels else counts
            statistics[key] = pixel_statistics(counts, frames)
            if camera.name not in self._films:
                table[key] = png_column(pixels)
                continue
            span = self._films[camera.name].add(pixels)
            row |= files.place(f"videos/{key}", span.file)
            row |= {f"videos/{key}/from_timestamp": span.begin, f"videos/{key}/to_timestamp": span.end}
        for key, values in columns.items():
            table[key] = arrow(values)
            here = RunningStatistics()
            here.update(values.reshape(-1, 1) if values.ndim == 1 else values)
            self._numbers.setdefault(key, RunningStatistics()).merge(here)
            # LeRobot counts frames, also where each of them holds several rows of numbers
            statistics[key] = here.result().to_dict() | {"count": [frames]}
        row |= files.place("data", self._data.write(pa.table(table)))
        row |= {f"kairos/{key}": value for key, value in own.items()}
        row |= {f"stats/{key}/{name}": value for key, found in statistics.items() for name, value in found.items()}
        self._rows.append(row)
        self.episodes += 1
        self.frames += frames
        if self.imagined:
            self.models.add((str(own["model"]), str(own["checkpoint_sha256"])))
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        """Writes the metadata of the episodes that wait for it."""
        if self._rows:
            place = files.place("meta/episodes", self._meta.next_number())
            self._meta.write(pa.Table.from_pylist([row | place for row in self._rows]))
            self._rows = []

    def _write_metadata(self) -> None:
        video = None
        if self._coding:
            video = {"video.codec": "h264", "video.pix_fmt": self._coding.pixels, "video.fps": self.fps}
            video |= {"video.channels": 3, "has_audio": False, "video.g": KEYFRAMES, "video.crf": self._coding.crf}
            video |= {"is_depth_map": False}
        own_features = features_of_robot(self.spec, video, self._outcome) | (self._labels or {})
        info = {
            "codebase_version": files.VERSION,
            "fps": self.fps,
            "features": own_features | bookkeeping_features(),
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": files.CHUNK,
            "data_files_size_in_mb": files.TABLE_MB,
            "video_files_size_in_mb": files.FILM_MB,
            "data_path": f"data/{files.TABLES}",
            "video_path": f"videos/{{video_key}}/{files.FILMS}" if self._films else None,
            "robot_type": f"{self.spec.name}-imagined" if self.imagined else self.spec.name,
            "splits": {"train": f"0:{self.episodes}"},
        }
        own = {
            "format": FORMAT,
            "imagined": self.imagined,
            "robot_spec": self.spec.to_dict(),
            "label_tasks": self._label_tasks,
            "metadata": self.metadata,
        }
        statistics = {key: pixel_statistics(counts, self.frames) for key, counts in self._pixels.items()}
        statistics |= {k: run.result().to_dict() | {"count": [self.frames]} for k, run in self._numbers.items()}
        for name, value in (("info", info), ("stats", statistics), ("kairos", own)):
            text = json.dumps(value, indent=4, ensure_ascii=False)
            (self._part / f"meta/{name}.json").write_text(text + "\n", encoding="utf-8")
        files.write_tasks(self._part / "meta/tasks.parquet", list(self.tasks))
        models = sorted(self.models) if self.imagined else None
        card = dataset_card(self.spec, self.episodes, self.frames, self.fps, list(self.tasks), models)
        (self._part / "README.md").write_text(card, encoding="utf-8")


def _label_tasks(episode: Episode) -> tuple[str, ...] | None:
    """The tasks that an episode's labels are of; None if that is its own task alone, whichever it is."""
    tasks = tuple(episode.label_tasks)
    return None if tasks == (episode.task,) else tasks


def _whole_rate(spec: RobotSpec, fps: float | None) -> int:
    rate = spec.control_rate_hz if fps is None else fps
    if rate < 1 or rate != round(rate):
        raise ValueError(
            f"LeRobot's fps is a whole number >= 1, but {spec.name!r} is observed {rate:g} times a second; give "
            f"fps={max(1, round(rate))}: timestamps then count by it, and meta/kairos.json keeps the true rate"
        )
    return round(rate)


def _check_cameras(spec: RobotSpec, images: str) -> None:
    if images not in get_args(ImageFormat):
        raise ValueError(f"images is {images!r}; use one of {', '.join(get_args(ImageFormat))}")
    for camera in spec.cameras:
        if "/" in camera.name:
            raise ValueError(f"LeRobot's names have no '/'; rename the camera {camera.name!r}")
        if images == "h264" and (camera.height % 2 or camera.width % 2):
            raise ValueError(
                f"camera {camera.name!r} has {camera.height} x {camera.width} pixels, and 4:2:0 video needs even "
                "sides; use images='h264_444' or images='png'"
            )


def _types(own: Provenance) -> dict[str, pa.DataType]:
    return {key: pa.infer_type([value]) for key, value in own.items()}
