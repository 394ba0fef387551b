"""LeRobotDataset folders of the layouts v2.0, v2.1 and v3.x as episodes, read lazily with pyarrow and av.

A recorded frame holds what the robot saw and what it then did; what it saw after its last action is not
stored. T frames are therefore T - 1 decisions: the last frame is the observation after the last of them, and
the action recorded with that frame is left out, because nobody knows what it led to.

Numbers come as they are stored, in the dataset's own units and at its own rate. The layouts are described
in `meta`, what features mean in `mapping`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.lerobot.documents import DatasetError
from kairos_env.datasets.lerobot.episodes import StoredEpisode, stored_episodes, tables_below
from kairos_env.datasets.lerobot.films import EpisodeFilms
from kairos_env.datasets.lerobot.guess import guess
from kairos_env.datasets.lerobot.mapping import CameraMap, FeatureMap, ScalarMap
from kairos_env.datasets.lerobot.meta import LABEL, read_meta
from kairos_env.datasets.lerobot.parquet import EpisodeRows
from kairos_env.datasets.lerobot.pictures import PictureFacts, decoded, first_facts, wrong_size
from kairos_env.datasets.lerobot.place import locate, video_patterns
from kairos_env.datasets.recording import BrokenEpisode, Recording
from kairos_env.datasets.statistics import DatasetStatistics, RunningStatistics
from kairos_env.datasets.video.reader import BrokenVideo, is_deep
from kairos_env.records import Array, Episode, RobotSpec, stored_initial_state

# A frame belongs to a row if it lies within this share of a frame's duration of the row's time.
_TOLERANCE = 0.25


class LeRobotData(Recording):
    """The usable episodes of a LeRobot dataset; `Recording` says how broken ones are treated.

    Opening reads the metadata and looks for the files.

    Rewards and successes come from the features that the map names, else they are zero and False.
    Simulators often mark only the very last frame as a success, which has no decision here: its success and
    reward then count for the last decision.

    Args:
        path: a folder, or ``owner/name`` on the Hugging Face hub, of which only the needed files are fetched.
        mapping: what to use and what it means; a `FeatureMap`, its JSON file, or None for
            `mapping.guess`. Ranges that it leaves open come from the stored statistics, or from the
            numbers themselves if there are none.
        revision: branch, tag or commit on the hub.
        trust_statistics: False computes open ranges from the numbers although statistics are stored.

    Attributes:
        mapping: the map in use, complete.
        meta: what the dataset says about itself.
        stored: where each episode lies, in order; they are called ``"<path>:episode_<index>"``.

    Raises:
        FileNotFoundError: nothing there.
        DatasetError: not a LeRobot dataset, one of an unknown version, damaged metadata, statistics that do
            not fit, or no usable episode.
        MapError: the map does not fit the dataset.
    """

    def __init__(
        self,
        path: str | Path,
        mapping: FeatureMap | str | Path | None = None,
        *,
        revision: str | None = None,
        trust_statistics: bool = True,
    ) -> None:
        super().__init__()
        self._given = (str(path), revision)
        self.meta = read_meta(locate(path, revision, ["meta/*"]))
        if isinstance(mapping, (str, Path)):
            mapping = FeatureMap.load(mapping)
        self.mapping = mapping or guess(self.meta)
        self.mapping.check(self.meta)
        videos = [pattern for camera in self.mapping.cameras for pattern in video_patterns(camera.feature)]
        locate(path, revision, ["meta/*", "data/*", *videos])
        self.stored: list[StoredEpisode] = []
        self._rows = self._open_rows()
        listed = stored_episodes(self.meta, self._film_features())
        self._films = EpisodeFilms(self.meta.root, self.meta.fps, listed, _TOLERANCE)
        self._collect(listed)
        self._look_at_pictures(guessed=mapping is None)
        self._sound: set[int] = set()
        self._computed: dict[str, DatasetStatistics] = {}
        self._limits = self._stored_limits() if trust_statistics and self.mapping.open_ranges else {}
        self.mapping = self.mapping.with_ranges(self._limits)
        if self.mapping.open_ranges:
            self.mapping = self.mapping.with_ranges(self.statistics(self.mapping.open_ranges))
        self.spec: RobotSpec = self.mapping.spec(self.meta)

    def __reduce__(self) -> Any:
        path, revision = self._given
        return _opened, (path, self.mapping, revision)

    def _episode(self, index: int) -> Episode:
        return self.window(index, 0, self.stored[index].length)

    def window(self, episode: int, start: int, length: int, cameras: Sequence[str] | None = None) -> Episode:
        """Part of an episode; of videos only what it needs is decoded.

        Args:
            episode: index among the usable ones.
            start: the first observation, 0 ... frames - 1.
            length: observations; the result has ``length - 1`` decisions.
            cameras: names of those wanted, by default all; ``()`` reads numbers only.

        Raises:
            IndexError: there is no such episode, or it is shorter.
            KeyError: an unknown camera.
            BrokenEpisode: a file is damaged or does not hold what the metadata promise.
            DatasetError: the numbers contradict the stored statistics that gave them their ranges.
        """
        stored = self.stored[episode]
        if not (0 <= start and 1 <= length <= stored.length - start):
            raise IndexError(
                f"{self.names[episode]} has {stored.length} observations, not {length} from number {start} on"
            )
        known = {camera.name: camera for camera in self.mapping.cameras}
        for name in cameras or ():
            if name not in known:
                raise KeyError(f"no camera {name!r}; there are {', '.join(known) or 'none'}")
        wanted = list(known) if cameras is None else list(cameras)
        try:
            rows = self._checked_rows(stored)
            images = {name: self._images(stored, known[name], rows, start, length) for name in wanted}
            return self._part(stored, rows, start, length, images)
        except (BrokenEpisode, BrokenVideo) as error:
            raise BrokenEpisode(f"{self.names[episode]}: {error}") from None

    def frames(self, episode: int, camera: str, every: int = 1) -> Array:
        """A camera's pictures (n, H, W, 3) of an episode, of so many frames only the first; see `window`."""
        stored = self.stored[episode]
        known = {each.name: each for each in self.mapping.cameras}
        try:
            return self._images(stored, known[camera], self._checked_rows(stored), 0, stored.length, every)
        except (BrokenEpisode, BrokenVideo) as error:
            raise BrokenEpisode(f"{self.names[episode]}: {error}") from None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Notes of the exporter on the whole dataset; empty for those of others."""
        return dict(self.meta.own.get("metadata", {}))

    def provenance(self, episode: int) -> dict[str, Any]:
        """Notes on an episode in a dataset that Kairos exported; empty for others."""
        return dict(self.stored[episode].notes)

    def statistics(
        self, features: Iterable[str] | None = None, watch: Callable[[int], None] | None = None
    ) -> dict[str, DatasetStatistics]:
        """Reads the numbers of all usable episodes once, every frame of them, and nothing else.

        Args:
            features: some of those that the map uses; by default all of them.
            watch: is told how many episodes are done.

        Returns:
            feature -> statistics of its scalars. Damaged episodes are left out and named.

        Raises:
            DatasetError: no episode could be read.
        """
        keys = list(features or self.mapping.number_features)
        running = {key: RunningStatistics() for key in keys if key not in self._computed}
        for index, stored in enumerate(self.stored if running else []):
            try:
                rows = self._whole_rows(stored)
                for key, statistics in running.items():
                    statistics.update(rows[key].reshape(stored.length, -1))
            except BrokenEpisode as error:
                self.leave_out({self.names[index]: str(error)})
            if watch:
                watch(index + 1)
        try:
            self._computed |= {key: statistics.result() for key, statistics in running.items()}
            return {key: self._computed[key] for key in keys}
        except ValueError:
            reasons = "".join(f"\n  {name}: {why}" for name, why in list(self.broken.items())[:3])
            raise DatasetError(f"{self._given[0]}: no episode could be read{reasons}") from None

    def _open_rows(self) -> EpisodeRows:
        files = tables_below(self.meta.root / "data") if self.meta.major == 3 else []
        # A last action is used by nobody, because nobody knows what it led to; nor is its reward.
        observed = {scalar.feature for scalar in self.mapping.proprio}
        spare = {scalar.feature for scalar in self.mapping.action} - observed
        spare |= {self.mapping.reward} if self.mapping.reward else set()
        return EpisodeRows({key: self.meta.features[key].shape for key in self._columns()}, spare, files)

    def _film_features(self) -> list[str]:
        return [c.feature for c in self.mapping.cameras if self.meta.features[c.feature].dtype == "video"]

    def _collect(self, listed: Sequence[StoredEpisode]) -> None:
        videos, broken = self._film_features(), {}
        for episode in listed:
            name = f"{self._given[0]}:episode_{episode.index:06d}"
            files = [window.file for window in episode.videos.values() if not window.file.is_file()]
            files += [] if self._rows.is_there(episode) else [episode.data]
            unplaced = [key for key in videos if key not in episode.videos]
            if files:
                broken[name] = f"{', '.join(str(file.relative_to(self.meta.root)) for file in files)} is missing"
            elif unplaced:
                broken[name] = f"the episode table does not say where its video of {', '.join(unplaced)} is"
            elif episode.length < 2:
                broken[name] = f"{episode.length} frame(s), but a decision needs two"
            else:
                self.names.append(name)
                self.stored.append(episode)
                self.lengths.append(episode.length - 1)
        self.leave_out(broken)
        if not self.stored:
            reasons = "".join(f"\n  {name}: {why}" for name, why in list(broken.items())[:3])
            raise DatasetError(f"{self._given[0]} has no usable episode{reasons}")

    def _look_at_pictures(self, guessed: bool) -> None:
        """Corrects by each camera's first picture what info.json says of all, and leaves out unflagged depth maps."""
        changed = {}
        for camera in self.mapping.cameras:
            feature = self.meta.features[camera.feature]
            seen = self._first_picture(camera.feature)
            if seen is None:
                continue
            if seen.deep:
                changed[feature.key] = dataclasses.replace(feature, notes={**feature.notes, "is_depth_map": True})
            elif (seen.width, seen.height) == feature.shape[:2]:
                changed[feature.key] = dataclasses.replace(feature, shape=(seen.height, seen.width, feature.shape[2]))
        if not changed:
            return
        self.meta = dataclasses.replace(self.meta, features={**self.meta.features, **changed})
        deep = [key for key, feature in changed.items() if feature.is_depth]
        if deep and guessed:
            warnings.warn(f"left out {', '.join(deep)}: depth maps, though info.json does not say so", stacklevel=4)
            left = tuple(camera for camera in self.mapping.cameras if camera.feature not in deep)
            self.mapping = dataclasses.replace(self.mapping, cameras=left)
        self.mapping.check(self.meta)

    def _first_picture(self, key: str) -> PictureFacts | None:
        feature, first = self.meta.features[key], self.stored[0]
        if feature.dtype != "video":
            return first_facts(first.data, feature, self.meta.root)
        film = self._films.facts(first, key)
        return None if film is None else PictureFacts(film.height, film.width, is_deep(film.pixels))

    def _columns(self) -> list[str]:
        """The columns of numbers that episodes are made of."""
        outcomes = [key for key in (self.mapping.reward, self.mapping.success) if key]
        keys = ["frame_index", "timestamp", *self.mapping.number_features, *outcomes]
        keys += [key for key in self.meta.features if key == "task_index" or key.startswith(LABEL)]
        missing = [key for key in keys if key not in self.meta.features]
        if missing:
            raise DatasetError(f"{self._given[0]}: info.json declares no {', '.join(missing)}")
        return keys

    def _stored_limits(self) -> dict[str, DatasetStatistics]:
        return self.meta.statistics(self.mapping.open_ranges)

    def _whole_rows(self, stored: StoredEpisode) -> dict[str, Array]:
        """The episode's rows, as many as promised, in order, at the promised rate, finite."""
        rows = self._rows.numbers(stored)
        if stored.index in self._sound:
            return rows
        numbers = rows["frame_index"].reshape(stored.length)
        wrong = np.flatnonzero(numbers != np.arange(stored.length))
        if len(wrong):
            raise BrokenEpisode(
                f"frames are missing or out of order in {self._rows.row(stored, wrong[0])}: it is frame "
                f"{numbers[wrong[0]]} where {wrong[0]} should be"
            )
        fps = self.meta.fps
        times = rows["timestamp"].reshape(stored.length).astype(np.float64)
        steps = np.diff(times)
        odd = np.flatnonzero(np.abs(steps * fps - 1) > _TOLERANCE)
        if len(odd):
            coarse = "; times of this size need float64" if abs(times[0]) > 1e5 else ""
            raise BrokenEpisode(
                f"its frames are {steps.min():.4f} to {steps.max():.4f} s apart, but info.json says {fps:g} frames/s: "
                f"one of them is wrong (first in {self._rows.row(stored, int(odd[0]) + 1)}){coarse}"
            )
        if stored.videos and abs(times[0]) * fps > _TOLERANCE:
            raise BrokenEpisode(
                f"its clock does not begin at 0 but at {times[0]:.4f} s ({self._rows.row(stored, 0)}), so its frames "
                "cannot be found in its films: store each row's 'timestamp' as seconds since the episode's first row"
            )
        return rows

    def _checked_rows(self, stored: StoredEpisode) -> dict[str, Array]:
        """The same; where stored statistics gave a range, the numbers may not contradict them."""
        rows = self._whole_rows(stored)
        if stored.index in self._sound:
            return rows
        for key, limits in self._limits.items():
            values = rows[key].reshape(stored.length, -1).astype(np.float64)
            slack = 1e-4 * (limits.max - limits.min) + 1e-6 * np.maximum(np.abs(limits.min), np.abs(limits.max))
            outside = np.argwhere((values < limits.min - slack) | (values > limits.max + slack))
            if len(outside):
                frame, at = outside[0]
                name = self.meta.features[key].names[at]
                raise DatasetError(
                    f"{self._given[0]}: the stored statistics do not fit the data: {name!r} of {key!r} is "
                    f"{values[frame, at]:.6g} at frame {frame} of episode {stored.index}, outside of "
                    f"{limits.min[at]:.6g} ... {limits.max[at]:.6g}; `kairos data inspect --save` computes ranges anew"
                )
        self._sound.add(stored.index)
        return rows

    def _images(
        self,
        stored: StoredEpisode,
        camera: CameraMap,
        rows: Mapping[str, Array],
        start: int,
        length: int,
        every: int = 1,
    ) -> Array:
        feature = self.meta.features[camera.feature]
        height, width = feature.shape[:2]

        def seen(image: Array) -> Array:
            if image.shape[:2] != (height, width):
                raise BrokenEpisode(wrong_size(feature, *image.shape[:2]))
            return camera.picture(image)

        if feature.dtype == "video":
            return self._films.read(stored, feature.key, rows["timestamp"][start : start + length : every, 0], seen)
        entries = islice(self._rows.pictures(stored, feature.key, start, length), 0, None, every)
        return np.stack([seen(decoded(entry, feature, where, self.meta.root)) for where, entry in entries])

    def _part(
        self, stored: StoredEpisode, rows: Mapping[str, Array], start: int, length: int, images: Mapping[str, Array]
    ) -> Episode:
        mapping, frames, decisions = self.mapping, slice(start, start + length), slice(start, start + length - 1)
        rewards: Array = np.zeros(stored.length, np.float32)
        success: Array = np.zeros(stored.length, np.bool_)
        if mapping.reward:
            rewards = rows[mapping.reward][:, 0].astype(np.float32)
        if mapping.success:
            success = rows[mapping.success][:, 0] > 0.5
            if success[-1] and not success[-2]:
                success[-2], rewards[-2] = True, rewards[-1]
        text = self._text(stored, rows, start) or mapping.instruction
        notes = stored.notes
        task, label_tasks = str(notes.get("task", text)), self.meta.own.get("label_tasks", ())
        return Episode(
            images=images,
            proprio=_picked(mapping.proprio, rows, frames),
            actions=_picked(mapping.action, rows, decisions),
            rewards=rewards[decisions],
            success=success[decisions],
            task=task,
            instruction=text,
            source=str(notes.get("source", "demonstration")),
            seed=int(notes.get("seed", -1)),
            initial_state=stored_initial_state(notes),
            condition=str(notes.get("condition", "")),
            labels=self._labels(rows, frames, decisions),
            label_tasks=(task,) if label_tasks is None else tuple(label_tasks),  # None: each its own
            outcome_known=bool(mapping.reward or mapping.success),
        )

    def _text(self, stored: StoredEpisode, rows: Mapping[str, Array], start: int) -> str:
        """The instruction at a frame; a few datasets change it within an episode."""
        if "task_index" not in rows:
            return stored.tasks[0] if stored.tasks else ""
        number = int(rows["task_index"][start, 0])
        if number not in self.meta.tasks:
            row = self._rows.row(stored, start)
            raise BrokenEpisode(
                f"{row}: task_index {number} is not in the dataset's table of {len(self.meta.tasks)} tasks"
            )
        return self.meta.tasks[number]

    def _labels(self, rows: Mapping[str, Array], frames: slice, decisions: slice) -> dict[str, Array]:
        labels = {}
        for key in [key for key in rows if key.startswith(LABEL)]:
            notes = self.meta.features[key].notes
            values = rows[key][decisions if notes.get("kairos.per") == "decision" else frames]
            labels[key.removeprefix(LABEL)] = np.array(values[:, 0] if notes.get("kairos.scalar") else values)
        return labels


def _picked(scalars: Sequence[ScalarMap], rows: Mapping[str, Array], part: slice) -> Array:
    """float32 (rows of ``part``, scalars)."""
    columns = [rows[s.feature].reshape(len(rows[s.feature]), -1)[part, s.index] for s in scalars]
    return np.stack(columns, 1).astype(np.float32) if columns else np.zeros((part.stop - part.start, 0), np.float32)


def _opened(path: str, mapping: FeatureMap, revision: str | None) -> LeRobotData:
    return LeRobotData(path, mapping, revision=revision)
