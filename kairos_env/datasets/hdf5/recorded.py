"""Episodes in HDF5 files of the robomimic layout, written atomically and read lazily.

One file::

    data                         attrs: total (decisions in the file), env_args (json), robot_spec (json),
                                        metadata (json), kairos_format
    data/demo_<i>                attrs: num_samples (T), task, instruction, source, seed, initial_state,
                                        condition, label_tasks (json list)
    data/demo_<i>/actions        (T, A) float32, physical units
    data/demo_<i>/rewards        (T,) float32
    data/demo_<i>/dones          (T,) int64, 1 on the last decision only: recording goes on after success
    data/demo_<i>/success        (T,) bool, the simulator's predicate after each action
    data/demo_<i>/obs/<key>      (T, ...) what the robot saw before each action: image_<camera>, proprio
    data/demo_<i>/final_obs/<key>  (1, ...) what it saw after the last action
    data/demo_<i>/labels/<key>   (T, ...) or (T + 1, ...) privileged arrays, see `records.Episode`
    everything                   attrs: sha256, see `checksums`

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

from kairos_env.datasets.hdf5.checksums import verified, verify_group
from kairos_env.datasets.hdf5.files import (
    Hdf5Episodes,
    NewFile,
    checked_count,
    data_group,
    images,
    numbers,
    open_file,
    write_images,
)
from kairos_env.datasets.recording import BrokenEpisode, episode_problem
from kairos_env.records import Episode, RobotSpec, stored_initial_state

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
        for key in ("task", "instruction", "source", "seed", "initial_state", "condition"):
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


class EpisodeFile(Hdf5Episodes):
    """The usable episodes of recordings of this layout; `Hdf5Episodes` says how broken ones are treated.

    Args:
        path: file, folder or list of them.
        spec: the robot, for files that do not describe it. Else taken from the files, which must agree.
        verify: read every image now.
    """

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the file of the first episode; empty without one."""
        if not self._entries:
            return {}
        path = self._entries[0][0]
        with open_file(path) as file:
            return dict(json.loads(data_group(file, path).attrs.get("metadata", "{}")))

    def _robot(self, file: h5py.File, path: Path) -> RobotSpec | None:
        data = data_group(file, path)
        verify_group(data, deep=False)
        return _stored_spec(data, path) if "robot_spec" in data.attrs else None

    def _check(self, file: h5py.File, path: Path, name: str) -> int:
        return len(self._numbers(file["data"][name])["actions"])

    def _read(self, file: h5py.File, path: Path, name: str) -> Episode:
        demo = file["data"][name]
        found = self._numbers(demo)
        last, attrs = _final_part(demo)[0], demo.attrs
        return Episode(
            images={
                camera.name: np.concatenate(
                    [verified(demo[f"obs/{camera.key}"]), verified(demo[f"{last}/{camera.key}"])[-1:]]
                )
                for camera in self.spec.cameras
            },
            **found,
            task=str(attrs.get("task", "")),
            instruction=str(attrs.get("instruction", "")),
            source=str(attrs.get("source", "")),
            seed=int(attrs.get("seed", -1)),
            initial_state=stored_initial_state(attrs),
            condition=str(attrs.get("condition", "")),
            label_tasks=tuple(json.loads(attrs.get("label_tasks", "[]"))),
        )

    def _numbers(self, demo: h5py.Group) -> dict[str, Any]:
        """Proprioception, actions, rewards, success and labels of an episode whose pictures have the right shape."""
        spec = self.spec
        verify_group(demo)
        actions = numbers(demo, "actions", None, spec.action_dim)
        steps = checked_count(demo, len(actions))
        last, rows = _final_part(demo)
        proprio = [numbers(demo, f"{part}/proprio", n, spec.proprio_dim) for part, n in (("obs", steps), (last, rows))]
        for camera in spec.cameras:
            images(demo, f"obs/{camera.key}", (steps, camera.height, camera.width, 3))
            images(demo, f"{last}/{camera.key}", (rows, camera.height, camera.width, 3))
        rewards = numbers(demo, "rewards", steps)
        labels = {key: verified(values) for key, values in demo.get("labels", {}).items()}
        for key, label in labels.items():
            if len(label) not in (steps, steps + 1):
                raise BrokenEpisode(f"label {key!r} has length {len(label)}, expected {steps} or {steps + 1}")
            if label.dtype.kind == "f" and not np.isfinite(label).all():
                raise BrokenEpisode(f"label {key!r} holds a non-finite value")
        return {
            "proprio": np.concatenate([proprio[0], proprio[1][-1:]]),
            "actions": actions,
            "rewards": rewards,
            # robomimic's rewards are sparse: a file without the predicate says success by a reward of 1
            "success": numbers(demo, "success", steps) > 0 if "success" in demo else rewards >= 1,
            "labels": labels,
        }


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
    """The group with the frame after the last action, and the number of frames in it.

    Files written by robomimic itself have no ``final_obs``; their ``next_obs`` ends with that frame.
    """
    return ("next_obs", len(group["actions"])) if "final_obs" not in group and "next_obs" in group else ("final_obs", 1)
