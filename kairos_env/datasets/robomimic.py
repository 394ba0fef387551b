"""Episodes in HDF5 files of the robomimic layout, written atomically and read lazily.

One file::

    data                         attrs: total (decisions in the file), env_args (json), robot_spec (json),
                                        metadata (json), kairos_format
    data/demo_<i>                attrs: num_samples (T), task, instruction, source, seed, initial_state_id,
                                        label_tasks (json list)
    data/demo_<i>/actions        (T, A) float32, physical units
    data/demo_<i>/rewards        (T,) float32
    data/demo_<i>/dones          (T,) int64, 1 on the last decision only: recording goes on after success
    data/demo_<i>/success        (T,) bool, the simulator's predicate after each action
    data/demo_<i>/obs/<key>      (T, ...) what the robot saw before each action: image_<camera>, proprio
    data/demo_<i>/final_obs/<key>  (1, ...) what it saw after the last action
    data/demo_<i>/labels/<key>   (T, ...) or (T + 1, ...) privileged arrays, see `records.Episode`

robomimic's own files repeat every image in ``next_obs``. Here ``obs`` has robomimic's length T, so its
readers work, and ``final_obs`` holds the one frame that would be missing: nothing is stored twice.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import h5py
import numpy as np

from kairos_env.records import Array, Episode, RobotSpec, SpecMismatch

FORMAT_VERSION = 1

Source = str | Path | Sequence[str | Path]


class BrokenEpisode(ValueError):
    """An episode that cannot be used: the file, its name there and what is wrong."""


class EpisodeWriter:
    """Writes episodes into one file that appears at ``path`` only when it is complete.

    Until `close` everything goes to ``<path>.<process id>.tmp``; leaving the ``with`` block because of an
    exception removes that file and leaves an older ``path`` as it was.

    Args:
        path: the ``.hdf5`` file to write; its folder is created.
        spec: the robot; every episode is checked against it.
        metadata: JSON values about the whole file (configuration, versions).
        env_name, env_kwargs: what robomimic's tools use to rebuild the environment (``env_args``).

    Example:
        >>> with EpisodeWriter("/tmp/demos.hdf5", spec) as writer:  # doctest: +SKIP
        ...     name = writer.add(episode)
    """

    def __init__(
        self,
        path: str | Path,
        spec: RobotSpec,
        metadata: Mapping[str, Any] | None = None,
        env_name: str = "Kairos-Robosuite-v0",
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.spec = spec
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        self._file = h5py.File(self._temporary, "w")
        data = self._file.create_group("data")
        data.attrs["total"] = 0
        # type 2 is robomimic's EnvType.GYM_TYPE
        data.attrs["env_args"] = json.dumps({"env_name": env_name, "type": 2, "env_kwargs": dict(env_kwargs or {})})
        data.attrs["robot_spec"] = json.dumps(spec.to_dict())
        data.attrs["metadata"] = json.dumps(dict(metadata or {}))
        data.attrs["kairos_format"] = FORMAT_VERSION

    def add(self, episode: Episode, name: str | None = None) -> str:
        """Appends one episode and returns its name, by default the next free ``demo_<i>``.

        Raises:
            BrokenEpisode: wrong shapes, non-finite values, no decisions. The file is as it was before.
            ValueError: the name is taken.
        """
        data = self._file["data"]
        name = name or _free_name(data)
        if name in data:
            raise ValueError(f"{self.path} already has an episode called {name!r}; choose another name")
        problem = _episode_problem(episode, self.spec)
        if problem:
            raise BrokenEpisode(f"cannot write {name!r} to {self.path}: {problem}")
        group = data.create_group(name)
        group.attrs["num_samples"] = len(episode)
        for key in ("task", "instruction", "source", "seed", "initial_state_id"):
            group.attrs[key] = getattr(episode, key)
        group.attrs["label_tasks"] = json.dumps(list(episode.label_tasks))
        dones = np.zeros(len(episode), np.int64)
        dones[-1] = 1
        small = {"actions": episode.actions, "rewards": episode.rewards, "dones": dones, "success": episode.success}
        small |= {f"labels/{key}": value for key, value in episode.labels.items()}
        for part, steps in (("obs", slice(None, -1)), ("final_obs", slice(-1, None))):
            small[f"{part}/proprio"] = episode.proprio[steps]
            for camera in self.spec.cameras:
                _write_images(group, f"{part}/{camera.key}", np.asarray(episode.images[camera.name][steps]))
        for key, value in small.items():
            group.create_dataset(key, data=value)
        data.attrs["total"] += len(episode)
        return name

    def copy(self, path: str | Path, name: str) -> None:
        """Copies one episode from another file byte by byte, without decoding its images."""
        with _open(Path(path)) as source:
            self._file.copy(source["data"][name], self._file["data"], name=name)
        self._file["data"].attrs["total"] += int(self._file["data"][name].attrs["num_samples"])

    def close(self) -> None:
        """Makes the file durable and puts it in place. Calling it again does nothing."""
        if not self._file:
            return
        self._file.close()
        with open(self._temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Drops everything that was added."""
        if self._file:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def read_episode(path: str | Path, name: str, spec: RobotSpec | None = None) -> Episode:
    """Reads one episode completely.

    Args:
        path: an HDF5 file.
        name: for example ``"demo_0"``.
        spec: the robot; by default the description stored in the file.

    Raises:
        BrokenEpisode: the file or the episode is damaged or does not fit the robot.
        KeyError: the file has no such episode.
    """
    with _open(Path(path)) as file:
        data = _data_group(file, Path(path))
        if name not in data:
            raise KeyError(f"{path} has no episode {name!r}; it has {', '.join(sorted(data, key=_order))}")
        return _read(data[name], spec or _stored_spec(data, Path(path)), f"{path}:{name}")


class EpisodeFile(Sequence[Episode]):
    """The usable episodes of a file, a folder (every ``*.hdf5`` in it) or a list of both, read lazily.

    Opening looks at every episode's shapes, types and small arrays; images are read when the episode is.
    Broken episodes are reported in one warning for each file, collected in `broken` and left out. One
    that turns out to be damaged only when its images are read is added to `broken` by iteration, which
    goes on; indexing it raises `BrokenEpisode`.

    Args:
        path: file, folder or list of them.
        spec: the robot, for robomimic files that do not describe it. Else taken from the files, which
            must agree.
        verify: read every image now.

    Attributes:
        spec: the robot of all episodes.
        names: ``"<file>:<episode>"`` of each episode, in order.
        broken: the same names (or a file's path) -> what is wrong.
        metadata: what was stored about the first file.

    Raises:
        FileNotFoundError: nothing at ``path``, or a folder without HDF5 files.
        BrokenEpisode: ``path`` is one single file that cannot be opened.
        SpecMismatch: two files are of different robots.
    """

    def __init__(self, path: Source, spec: RobotSpec | None = None, verify: bool = False) -> None:
        self.broken: dict[str, str] = {}
        self.names: list[str] = []
        self.metadata: dict[str, Any] = {}
        self._entries: list[tuple[Path, str]] = []
        self._lengths: list[int] = []
        files = _files(path)
        found: tuple[RobotSpec, Path] | None = (spec, Path("the given spec")) if spec else None
        for file in files:
            try:
                found = self._scan(file, found, verify)
            except BrokenEpisode as error:
                if len(files) == 1:
                    raise
                self.broken[str(file)] = str(error)
                warnings.warn(f"skipped a broken file: {error}", stacklevel=2)
        if found is None:
            raise BrokenEpisode(f"no readable file among {', '.join(map(str, files))}: {self.broken}")
        self.spec: RobotSpec = found[0]

    def _scan(self, path: Path, found: tuple[RobotSpec, Path] | None, verify: bool) -> tuple[RobotSpec, Path]:
        with _open(path) as file:
            data = _data_group(file, path)
            if found is None or "robot_spec" in data.attrs:
                own = _stored_spec(data, path)
                if found is None:
                    self.metadata = json.loads(data.attrs.get("metadata", "{}"))
                    found = (own, path)
                elif own.diff(found[0]):
                    lines = "\n  ".join(own.diff(found[0]))
                    raise SpecMismatch(
                        f"{path} and {found[1]} are of different robots; open them separately:\n  {lines}"
                    )
            broken = {}
            for name in sorted(data, key=_order):
                try:
                    loaded = _load(data[name], found[0], pixels=verify)
                except BrokenEpisode as error:
                    broken[f"{path}:{name}"] = str(error)
                    continue
                self._entries.append((path, name))
                self.names.append(f"{path}:{name}")
                self._lengths.append(len(loaded["actions"]))
        if broken:
            self.broken |= broken
            lines = "\n  ".join(f"{name}: {why}" for name, why in broken.items())
            warnings.warn(f"left out {len(broken)} broken episode(s):\n  {lines}", stacklevel=3)
        return found

    @property
    def total(self) -> int:
        """Decisions in all usable episodes."""
        return sum(self._lengths)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...
    def __getitem__(self, index: int | slice) -> Episode | list[Episode]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path, name = self._entries[index]
        return read_episode(path, name, self.spec)

    def __iter__(self) -> Iterator[Episode]:
        # The file is opened for each episode: no handle outlives a fork or a change of thread.
        for (path, name), label in zip(self._entries, self.names, strict=True):
            try:
                yield read_episode(path, name, self.spec)
            except BrokenEpisode as error:
                self.broken[label] = str(error)
                warnings.warn(f"left out a broken episode: {error}", stacklevel=2)


def _files(path: Source) -> list[Path]:
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(p) for p in path]
    files: list[Path] = []
    for one in paths:
        if one.is_dir():
            inside = sorted(one.glob("*.hdf5")) + sorted(one.glob("*.h5"))
            if not inside:
                raise FileNotFoundError(f"the folder {one} holds no .hdf5 file; record some with `kairos record`")
            files += inside
        elif one.exists():
            files.append(one)
        else:
            raise FileNotFoundError(f"no such file or folder: {one}")
    if not files:
        raise FileNotFoundError("no files were given; expected a file, a folder or a list of them")
    return files


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BrokenEpisode(f"{path} is not a readable HDF5 file (truncated or of another format): {error}") from None


def _data_group(file: h5py.File, path: Path) -> h5py.Group:
    if not isinstance(file.get("data"), h5py.Group):
        raise BrokenEpisode(f"{path} is not of the robomimic layout: it has no group 'data', only {sorted(file)}")
    return file["data"]


def _stored_spec(data: h5py.Group, path: Path) -> RobotSpec:
    if "robot_spec" not in data.attrs:
        raise BrokenEpisode(f"{path} does not describe its robot (data.attrs['robot_spec']); pass spec=RobotSpec(...)")
    try:
        return RobotSpec.from_dict(json.loads(data.attrs["robot_spec"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenEpisode(f"{path} has a damaged robot_spec: {error!r}") from None


def _order(name: str) -> tuple[str, int]:
    """demo_2 stands before demo_10."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdigit() else (name, -1)


def _free_name(data: h5py.Group) -> str:
    number = len(data)
    while f"demo_{number}" in data:
        number += 1
    return f"demo_{number}"


def _write_images(group: h5py.Group, key: str, images: Array) -> None:
    # One frame is one chunk: a training window reads its own frames and no others. The checksum turns
    # silent damage on disk into an error with a name.
    group.create_dataset(
        key, data=images, chunks=(1, *images.shape[1:]), compression="gzip", compression_opts=4, fletcher32=True
    )


def _final_part(group: h5py.Group) -> tuple[str, int]:
    """Where the frame after the last action is, and how many frames lie there.

    Files written by robomimic itself have no ``final_obs``; their ``next_obs`` ends with that frame.
    """
    return ("next_obs", len(group["actions"])) if "final_obs" not in group and "next_obs" in group else ("final_obs", 1)


def _layout(spec: RobotSpec, steps: int, final: tuple[str, int]) -> dict[str, tuple[tuple[int, ...], type]]:
    """Dataset name -> (shape, kind of number) of an episode of ``steps`` decisions."""
    layout: dict[str, tuple[tuple[int, ...], type]] = {
        "actions": ((steps, spec.action_dim), np.floating),
        "rewards": ((steps,), np.floating),
    }
    for part, frames in (("obs", steps), final):
        layout[f"{part}/proprio"] = ((frames, spec.proprio_dim), np.floating)
        for camera in spec.cameras:
            layout[f"{part}/{camera.key}"] = ((frames, camera.height, camera.width, 3), np.uint8)
    return layout


def _load(group: Any, spec: RobotSpec, pixels: bool = True) -> dict[str, Array]:
    """Reads and checks the datasets of one episode; without ``pixels`` images are checked by shape only.

    Raises:
        BrokenEpisode: something is missing, damaged or does not fit the robot.
    """
    try:
        if not isinstance(group, h5py.Group) or "actions" not in group:
            raise BrokenEpisode("it has no 'actions'")
        steps = len(group["actions"])
        if steps == 0:
            raise BrokenEpisode("it has no decisions")
        if int(group.attrs.get("num_samples", steps)) != steps:
            raise BrokenEpisode(f"num_samples is {group.attrs['num_samples']}, but it has {steps} actions")
        loaded: dict[str, Array] = {}
        for key, (shape, kind) in _layout(spec, steps, _final_part(group)).items():
            if key not in group:
                raise BrokenEpisode(f"{key!r} is missing")
            dataset = group[key]
            if dataset.shape != shape or not np.issubdtype(dataset.dtype, kind):
                raise BrokenEpisode(f"{key!r} is {dataset.dtype} {dataset.shape}, expected {kind.__name__} {shape}")
            if pixels or kind is not np.uint8:
                loaded[key] = dataset[()]
        for key, dataset in group.get("labels", {}).items():
            if len(dataset) not in (steps, steps + 1):
                raise BrokenEpisode(f"label {key!r} has length {len(dataset)}, expected {steps} or {steps + 1}")
            loaded[f"labels/{key}"] = dataset[()]
        if "success" in group:
            loaded["success"] = np.asarray(group["success"][()], np.bool_)
            if loaded["success"].shape != (steps,):
                raise BrokenEpisode(f"'success' has shape {loaded['success'].shape}, expected {(steps,)}")
        for key, value in loaded.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise BrokenEpisode(f"{key!r} holds a non-finite value")
        return loaded
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise BrokenEpisode(f"damaged: {error}") from None


def _read(group: Any, spec: RobotSpec, label: str) -> Episode:
    try:
        loaded = _load(group, spec)
        final = _final_part(group)[0]

        def observed(key: str) -> Array:
            return np.concatenate([loaded[f"obs/{key}"], loaded[f"{final}/{key}"][-1:]])

        rewards = loaded["rewards"].astype(np.float32, copy=False)
        attrs = dict(group.attrs)
        return Episode(
            images={camera.name: observed(camera.key) for camera in spec.cameras},
            proprio=observed("proprio").astype(np.float32, copy=False),
            actions=loaded["actions"].astype(np.float32, copy=False),
            rewards=rewards,
            # robomimic's rewards are sparse: a file without the predicate says success by a reward of 1
            success=loaded.get("success", rewards >= 1),
            task=str(attrs.get("task", "")),
            instruction=str(attrs.get("instruction", "")),
            source=str(attrs.get("source", "")),
            seed=int(attrs.get("seed", -1)),
            initial_state_id=int(attrs.get("initial_state_id", -1)),
            labels={k.removeprefix("labels/"): v for k, v in loaded.items() if k.startswith("labels/")},
            label_tasks=tuple(json.loads(attrs.get("label_tasks", "[]"))),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise BrokenEpisode(f"{label}: {error}") from None


def _episode_problem(episode: Episode, spec: RobotSpec) -> str:
    """What is wrong with an episode in memory, or an empty string."""
    steps = len(episode)
    if steps == 0:
        return "it has no decisions"
    for camera in spec.cameras:
        frames = (steps + 1, camera.height, camera.width, 3)
        image = np.asarray(episode.images.get(camera.name, np.zeros(0)))
        if image.shape != frames or image.dtype != np.uint8:
            return f"images[{camera.name!r}] is {image.dtype} {image.shape}, expected uint8 {frames}"
    for key, value, shape in (
        ("proprio", episode.proprio, (steps + 1, spec.proprio_dim)),
        ("actions", episode.actions, (steps, spec.action_dim)),
    ):
        if np.shape(value) != shape:
            return f"{key} has shape {np.shape(value)}, expected {shape}"
    numbers = {"proprio": episode.proprio, "actions": episode.actions, "rewards": episode.rewards}
    for key, value in (numbers | {f"labels[{k!r}]": v for k, v in episode.labels.items()}).items():
        if not np.isfinite(np.asarray(value, np.float64)).all():
            return f"{key} holds a non-finite value"
    return ""
