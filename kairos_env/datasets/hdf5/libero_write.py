"""Demonstrations in LIBERO's own HDF5 layout, so that its training code reads the same files as Kairos.

`libero` describes the layout and its traps. Written here is what LIBERO's scripts write, one file for each task, with
row i the frame *before* action i. What else an `Episode` knows lies where LIBERO's tools do not look::

    data                              attrs: kairos (json: task, instruction, action_repeat, control_rate_hz, metadata)
    data/demo_<i>/kairos              attrs: source, seed, initial_state
    data/demo_<i>/kairos/last_obs/    the same names as in ``obs``, with one row: what was seen after the last action
    data/demo_<i>/kairos/expert_actions   (R + 1, 7) what the expert would have done at each frame
    data/demo_<i>/kairos/object_position  (R + 1, 3) where the object of the task was, in metres

LIBERO plays an action for one simulator step of 0.05 s. Recordings with a larger ``action_repeat`` have one row for
each action that was held so long; its tools can read them, but not replay them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.hdf5.files import NewFile, write_images
from kairos_env.datasets.recording import BrokenEpisode, episode_problem
from kairos_env.embodiments import libero_panda
from kairos_env.records import Array, Episode, RobotSpec

EXTRAS = "kairos"  # of the attribute and the group that hold what LIBERO's layout has no place for


class LiberoWriter(NewFile):
    """Writes demonstrations of one task.

    Args:
        path: by LIBERO's custom ``<task>_demo.hdf5``.
        spec: `embodiments.libero_panda`, or one that differs only in its pictures' size.
        task, instruction: of every episode.
        bddl: file of the task definition, which is copied into this one. None leaves out what follows from it.
        metadata: JSON values about the whole file (configuration, versions).

    Raises:
        SpecMismatch: another robot.
    """

    def __init__(
        self,
        path: str | Path,
        spec: RobotSpec,
        task: str,
        instruction: str,
        bddl: Path | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.action_repeat = max(1, round(20 / spec.control_rate_hz))
        like = libero_panda(spec.cameras[0].height if spec.cameras else 1, self.action_repeat)
        spec.require_same(like, "robot to be written", "robot of LIBERO's layout")
        super().__init__(path)
        self.spec, self.task, self.instruction = spec, task, instruction
        definition = "" if bddl is None else bddl.read_text()
        # "(define (problem LIBERO_Floor_Manipulation)": LIBERO knows its problems by the name in small letters
        problem = definition.partition("(problem ")[2].partition(")")[0].strip().lower()
        # the last two parts of the path are the suite and the file, the same on every machine
        place = "" if bddl is None else "/".join(bddl.parts[-2:])
        size = spec.cameras[0].height
        arguments = {
            "bddl_file_name": place,
            "robots": ["Panda"],
            "control_freq": 20,
            "camera_names": ["robot0_eye_in_hand", "agentview"],
            "camera_heights": size,
            "camera_widths": size,
        }
        words = {"problem_name": problem, "domain_name": "robosuite", "language_instruction": instruction}
        arguments_of = {"type": 1, "env_name": problem, "problem_name": problem, "bddl_file": place}
        self.data.attrs["env_name"] = problem
        self.data.attrs["problem_info"] = json.dumps(words)
        self.data.attrs["env_args"] = json.dumps(arguments_of | {"env_kwargs": arguments})
        self.data.attrs["bddl_file_name"] = place or f"{task}.bddl"
        self.data.attrs["bddl_file_content"] = definition
        self.data.attrs["macros_image_convention"] = "opengl"
        self.data.attrs["tag"] = "libero-v1"
        self.data.attrs["num_demos"] = 0
        extras = {
            "task": task,
            "instruction": instruction,
            "action_repeat": self.action_repeat,
            "control_rate_hz": spec.control_rate_hz,
            "metadata": dict(metadata or {}),
        }
        self.data.attrs[EXTRAS] = json.dumps(extras)

    def add(self, episode: Episode, states: Array) -> str:
        """Appends one demonstration and returns its name.

        Args:
            episode: of this task. Of its labels ``expert_actions`` (T + 1, 1, 7) and ``object_position`` (T + 1, 3) are
                kept.
            states: (T, S), the simulator's state before each action.

        Raises:
            BrokenEpisode: wrong shapes, non-finite values, no decisions, another task or instruction, or a reward that
                is not 1 for success and 0 else. The file is as it was before.
        """
        name = f"demo_{len(self.data)}"
        problem = episode_problem(episode, self.spec) or self._problem(episode, states)
        if problem:
            raise BrokenEpisode(f"cannot write {name!r} to {self.path}: {problem}")
        rows = len(episode)
        states = np.asarray(states, np.float64)
        group = self.data.create_group(name)
        group.attrs["num_samples"] = rows
        group.attrs["init_state"] = states[0]
        group["actions"] = np.asarray(episode.actions, np.float64)
        group["states"] = states
        group["rewards"] = np.asarray(episode.rewards, np.uint8)
        group["dones"] = (np.arange(rows) == rows - 1).astype(np.uint8)
        proprio = np.asarray(episode.proprio, np.float64)
        position, turn, fingers = np.split(proprio, [3, 6], axis=1)
        group["robot_states"] = np.concatenate([fingers, position, _quaternions(turn)], axis=1)[:rows]
        numbers = {"ee_pos": position, "ee_ori": turn, "ee_states": proprio[:, :6], "gripper_states": fingers}
        extras = group.create_group(EXTRAS)
        for key in ("source", "seed", "initial_state"):
            extras.attrs[key] = getattr(episode, key)
        for part, frames in (
            (group.create_group("obs"), slice(rows)),
            (extras.create_group("last_obs"), slice(-1, None)),
        ):
            for key, values in numbers.items():
                part[key] = values[frames]
            for camera in self.spec.cameras:
                pictures = np.asarray(episode.images[camera.name][frames])
                write_images(part, f"{camera.name}_rgb", np.ascontiguousarray(pictures[:, ::-1, ::-1]))
        group["obs/joint_states"] = states[:, 1:8]  # after the time; the arm comes first in LIBERO's scenes
        if "expert_actions" in episode.labels:
            extras["expert_actions"] = np.asarray(episode.labels["expert_actions"], np.float32)[:, 0]
        if "object_position" in episode.labels:
            extras["object_position"] = np.asarray(episode.labels["object_position"], np.float32)
        self.data.attrs["num_demos"] += 1
        self.data.attrs["total"] += rows
        return name

    def copy(self, path: str | Path, name: str, new_name: str = "") -> None:
        """Copies one demonstration from another file byte by byte; by default it gets the next number."""
        super().copy(path, name, new_name or f"demo_{len(self.data)}")
        self.data.attrs["num_demos"] += 1

    def _problem(self, episode: Episode, states: Array) -> str:
        if (episode.task, episode.instruction) != (self.task, self.instruction):
            own = f"{self.task!r}, {self.instruction!r}"
            return f"it is of the task {episode.task!r}, {episode.instruction!r}; this file is of {own}"
        if np.shape(states)[:1] != (len(episode),) or np.ndim(states) != 2 or np.shape(states)[1] < 8:
            return f"states has shape {np.shape(states)}, expected ({len(episode)}, at least 8)"
        if not np.isfinite(states).all():
            return "states holds a non-finite value"
        if not np.array_equal(episode.rewards, np.asarray(episode.success, np.float32)):
            return "its rewards are not 1 for success and 0 else, which is all that LIBERO's layout can say"
        labels = episode.labels.get("expert_actions")
        if labels is not None and (
            np.shape(labels) != (len(episode) + 1, 1, 7) or list(episode.label_tasks) != [self.task]
        ):
            return (
                f"expert_actions has shape {np.shape(labels)} for the tasks {list(episode.label_tasks)}, expected "
                f"({len(episode) + 1}, 1, 7) for {self.task!r} alone"
            )
        where = episode.labels.get("object_position")
        if where is not None and np.shape(where) != (len(episode) + 1, 3):
            return f"object_position has shape {np.shape(where)}, expected ({len(episode) + 1}, 3)"
        return ""


def _quaternions(turn: Array) -> Array:
    """Axis-angle (..., 3) -> unit quaternions (..., 4), x y z w; angles up to 2 pi keep the sign that they came of."""
    angle = np.linalg.norm(turn, axis=-1, keepdims=True)
    axis = np.divide(turn, angle, out=np.zeros_like(turn), where=angle > 0)
    return np.concatenate([axis * np.sin(angle / 2), np.cos(angle / 2)], axis=-1)
