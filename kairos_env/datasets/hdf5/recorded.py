"""Episodes in HDF5 files of the robomimic layout, written atomically and read lazily.

One file::

    data                         attrs: total (decisions in the file), env_args (json), robot_spec (json),
                                        metadata (json), kairos_format
    data/demo_<i>                attrs: num_samples (T), task, instruction, source, seed, initial_state,
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kairos_env.datasets.hdf5.files import (
    BrokenEpisode,
    Hdf5Episodes,
    NewFile,
    blamed_on,
    data_group,
    in_number_order,
    open_file,
    write_images,
)
from kairos_env.records import Array, Episode, RobotSpec, stored_initial_state

FORMAT_VERSION = 1


class EpisodeWriter(NewFile):
    """Writes episodes into one file that appears at ``path`` only when it is complete.

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
        super().__init__(path)
        self.spec, data = spec, self.data
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
        data = self.data
        name = name or _free_name(data)
        if name in data:
            raise ValueError(f"{self.path} already has an episode called {name!r}; choose another name")
        problem = episode_problem(episode, self.spec)
        if problem:
            raise BrokenEpisode(f"cannot write {name!r} to {self.path}: {problem}")
        group = data.create_group(name)
        group.attrs["num_samples"] = len(episode)
        for key in ("task", "instruction", "source", "seed", "initial_state"):
            group.attrs[key] = getattr(episode, key)
        group.attrs["label_tasks"] = json.dumps(list(episode.label_tasks))
        dones = np.zeros(len(episode), np.int64)
        dones[-1] = 1
        small = {"actions": episode.actions, "rewards": episode.rewards, "dones": dones, "success": episode.success}
        small |= {f"labels/{key}": value for key, value in episode.labels.items()}
        for part, steps in (("obs", slice(None, -1)), ("final_obs", slice(-1, None))):
            small[f"{part}/proprio"] = episode.proprio[steps]
            for camera in self.spec.cameras:
                write_images(group, f"{part}/{camera.key}", np.asarray(episode.images[camera.name][steps]))
        for key, value in small.items():
            group.create_dataset(key, data=value)
        data.attrs["total"] += len(episode)
        return name


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
    with open_file(Path(path)) as file:
        data = data_group(file, Path(path))
        if name not in data:
            raise KeyError(f"{path} has no episode {name!r}; it has {', '.join(sorted(data, key=in_number_order))}")
        robot = spec or _stored_spec(data, Path(path))
        with blamed_on(f"{path}:{name}"):
            return _episode(data[name], robot)


class EpisodeFile(Hdf5Episodes):
    """The usable episodes of recordings of this layout; `Hdf5Episodes` says how broken ones are treated.

    Args:
        path: file, folder or list of them.
        spec: the robot, for files that do not describe it. Else taken from the files, which must agree.
        verify: read every image now.
    """

    @property
    def metadata(self) -> dict[str, Any]:
        """What was stored about the file of the first episode; empty without one."""
        if not self._entries:
            return {}
        path = self._entries[0][0]
        with open_file(path) as file:
            return dict(json.loads(data_group(file, path).attrs.get("metadata", "{}")))

    def _robot(self, file: h5py.File, path: Path) -> RobotSpec | None:
        data = data_group(file, path)
        return _stored_spec(data, path) if "robot_spec" in data.attrs else None

    def _names(self, file: h5py.File, path: Path) -> list[str]:
        return sorted(data_group(file, path), key=in_number_order)

    def _check(self, file: h5py.File, path: Path, name: str) -> int:
        return len(_load(file["data"][name], self.spec, pixels=False)["actions"])

    def _read(self, file: h5py.File, path: Path, name: str) -> Episode:
        return _episode(file["data"][name], self.spec)


def _stored_spec(data: h5py.Group, path: Path) -> RobotSpec:
    if "robot_spec" not in data.attrs:
        raise BrokenEpisode(f"{path} does not describe its robot (data.attrs['robot_spec']); pass spec=RobotSpec(...)")
    try:
        return RobotSpec.from_dict(json.loads(data.attrs["robot_spec"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenEpisode(f"{path} has a damaged robot_spec: {error!r}") from None


def _free_name(data: h5py.Group) -> str:
    number = len(data)
    while f"demo_{number}" in data:
        number += 1
    return f"demo_{number}"


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


def _episode(group: Any, spec: RobotSpec) -> Episode:
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
        initial_state=stored_initial_state(attrs),
        labels={k.removeprefix("labels/"): v for k, v in loaded.items() if k.startswith("labels/")},
        label_tasks=tuple(json.loads(attrs.get("label_tasks", "[]"))),
    )


def episode_problem(episode: Episode, spec: RobotSpec) -> str:
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
