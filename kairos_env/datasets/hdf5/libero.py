"""LIBERO's demonstrations: the benchmark's own HDF5 files, and files that were regenerated from them by replay.

One file is one task::

    data                     attrs: problem_info (json), bddl_file_name, macros_image_convention; often none in
                                    regenerated files
    data/demo_<i>/actions    (R, 7), see `embodiments.LIBERO_PANDA`
    data/demo_<i>/rewards    (R,) 1 on the last row of a success
    data/demo_<i>/states     (R, S) the simulator before each action: time, positions (the arm's 7 joints first), ...
    data/demo_<i>/obs/       agentview_rgb, eye_in_hand_rgb (R, H, W, 3) uint8; ee_pos (R, 3), ee_ori (R, 3) axis-angle,
                             gripper_states (R, 2), joint_states (R, 7)

Which frame belongs to which action: R rows have R frames, one too few for R decisions, and the two kinds of files
pair them differently. LIBERO's own script plays an action and then stores what it sees, so row i holds the frame
*after* action i, and there is none before the first action. Scripts that regenerate the files (larger pictures,
idle actions removed) store first and play then: row i holds the frame *before* action i, and there is none after the
last. Both become R - 1 decisions, without the action whose frame is missing. ``states`` is always what was before the
action, so comparing its joint angles with those of the observations tells the kinds apart. The reward of a last action
that is left out goes to the decision before it, so that a demonstration of success stays one.

Files of `libero_write` say more: they hold the frame after the last action, so no decision is lost, for how many
simulator steps an action was held, and what the expert would have done at every frame. All of it is read.

How the pictures are turned: LIBERO's renderer draws upside down, and its files keep that. Published models are trained
and driven with pictures turned by 180 degrees, which stands the scene upright but mirrors left and right; that is what
an `Episode` holds here too.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from kairos_env.datasets.hdf5.checksums import verified, verify_group
from kairos_env.datasets.hdf5.files import (
    Hdf5Episodes,
    Source,
    checked_count,
    checked_finite,
    data_group,
    find_files,
    images,
    numbers,
    open_file,
    text,
)
from kairos_env.datasets.hdf5.libero_write import EXTRAS
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.embodiments import libero_panda
from kairos_env.records import Array, Camera, Episode, RobotSpec, stored_initial_state

Pairing = Literal["before", "after"]
Pictures = Literal["opengl", "opencv", "turned"]

# steps along rows and columns that turn a stored picture into what models see
_TURN: dict[str, tuple[int, int]] = {"opengl": (-1, -1), "opencv": (1, -1), "turned": (1, 1)}
_PERTURBED = re.compile(r"_(view|language|table|light|add|tb)_\d|_level\d+_sample\d|_initstate_\d")


class LiberoFile(Hdf5Episodes):
    """The usable demonstrations of a LIBERO file, a folder and all folders in it, or a list of both.

    `Hdf5Episodes` says how broken episodes are treated; the picture size is that of the files.

    Args:
        path: file, folder or list of them.
        observed: whether a row's frame is from ``"before"`` or ``"after"`` its action; None finds out. Of no matter for
            demonstrations that hold the frame after the last action.
        pictures: how they stand in the file: ``"opengl"`` upside down, ``"opencv"`` upright, or already ``"turned"``.
            None takes it from the file, which is ``"opengl"`` where it does not say.
        prompt: ``"name"`` makes the instruction from the file's name, as LIBERO's benchmark does; ``"bddl"`` takes
            the task definition's own, which often differs ("open the middle layer of the drawer").
        instruction: use this one for every episode instead.
        verify: read every image now.
    """

    def __init__(
        self,
        path: Source,
        observed: Pairing | None = None,
        pictures: Pictures | None = None,
        prompt: Literal["name", "bddl"] = "name",
        instruction: str = "",
        verify: bool = False,
    ) -> None:
        if observed not in (None, "before", "after"):
            raise ValueError(f"observed is {observed!r}, expected 'before', 'after' or None")
        if pictures is not None and pictures not in _TURN:
            raise ValueError(f"pictures is {pictures!r}, expected one of {list(_TURN)} or None")
        if prompt not in ("name", "bddl"):
            raise ValueError(f"prompt is {prompt!r}, expected 'name' or 'bddl'")
        self.observed, self.pictures, self.prompt, self.instruction = observed, pictures, prompt, instruction
        super().__init__(find_files(path, nested=True), verify=verify)

    def extras(self, index: int) -> dict[str, Any]:
        """Notes of `libero_write` on the file of an episode; empty for files of others."""
        path = self._entries[index][0]
        with open_file(path) as file:
            return _extras(data_group(file, path), path)

    def _robot(self, file: h5py.File, path: Path) -> RobotSpec:
        data = data_group(file, path)
        verify_group(data, deep=False)
        panda = libero_panda(action_repeat=int(_extras(data, path).get("action_repeat", 1)))
        for demo in filter(lambda item: isinstance(item, h5py.Group), data.values()):
            found = [demo.get(f"obs/{camera.name}_rgb") for camera in panda.cameras]
            shapes = [getattr(pictures, "shape", ()) for pictures in found]
            if all(len(shape) == 4 for shape in shapes):
                cameras = (Camera(c.name, *shape[1:3]) for c, shape in zip(panda.cameras, shapes, strict=True))
                return dataclasses.replace(panda, cameras=tuple(cameras))
        raise BrokenEpisode(f"{path}: no episode has pictures, obs/agentview_rgb and obs/eye_in_hand_rgb")

    def _names(self, file: h5py.File, path: Path) -> list[str]:
        data = data_group(file, path)
        self._instruction(data, path)
        self._turn(data, path)
        return super()._names(file, path)

    def _check(self, file: h5py.File, path: Path, name: str) -> int:
        return len(self._numbers(file["data"][name])[1])

    def _read(self, file: h5py.File, path: Path, name: str) -> Episode:
        data = file["data"]
        demo = data[name]
        proprio, actions, rewards = self._numbers(demo)
        rows, columns = self._turn(data, path)
        extras, task = demo.get(EXTRAS), _task(data, path)
        seen = [demo["obs"]] if extras is None else [demo["obs"], extras["last_obs"]]
        more: dict[str, Any] = {"source": "human"}
        if extras is not None:
            attrs = extras.attrs
            more = {"source": text(attrs["source"]), "seed": int(attrs["seed"])}
            more["initial_state"] = stored_initial_state(attrs)
            if "expert_actions" in extras:
                experts = numbers(extras, "expert_actions", len(actions) + 1, 7)
                more |= {"labels": {"expert_actions": experts[:, None]}, "label_tasks": (task,)}
            if "object_position" in extras:
                where = numbers(extras, "object_position", len(actions) + 1, 3)
                more["labels"] = more.get("labels", {}) | {"object_position": where}
        return Episode(
            images={
                camera.name: np.concatenate(
                    [verified(part[f"{camera.name}_rgb"])[:, ::rows, ::columns] for part in seen]
                )
                for camera in self.spec.cameras
            },
            proprio=proprio,
            actions=actions,
            rewards=rewards,
            success=rewards >= 1,
            task=task,
            instruction=self._instruction(data, path),
            **more,
        )

    def _numbers(self, demo: h5py.Group) -> tuple[Array, Array, Array]:
        """Proprioception (T + 1, 8), actions (T, 7), rewards (T,) of an episode whose pictures have the right shape."""
        verify_group(demo)
        actions = numbers(demo, "actions", None, 7, finite=False)
        rows, complete = checked_count(demo, len(actions)), EXTRAS in demo
        if rows < 2 and not complete:
            raise BrokenEpisode(f"it has {rows} row, too few for one decision and the frames around it")
        rewards = numbers(demo, "rewards", rows)
        parts = (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2))
        proprio = np.concatenate([numbers(demo, f"obs/{key}", rows, width) for key, width in parts], axis=1)
        for camera in self.spec.cameras:
            images(demo, f"obs/{camera.name}_rgb", (rows, camera.height, camera.width, 3))
        if complete:
            last = [numbers(demo, f"{EXTRAS}/last_obs/{key}", 1, width) for key, width in parts]
            for camera in self.spec.cameras:
                images(demo, f"{EXTRAS}/last_obs/{camera.name}_rgb", (1, camera.height, camera.width, 3))
            return np.concatenate([proprio, np.concatenate(last, axis=1)]), checked_finite(actions, "actions"), rewards
        if (self.observed or _pairing(demo, rows)) == "after":
            return proprio, checked_finite(actions[1:], "actions", 1), rewards[1:]
        rewards[-2] = max(rewards[-2:])
        return proprio, checked_finite(actions[:-1], "actions"), rewards[:-1]

    def _turn(self, data: h5py.Group, path: Path) -> tuple[int, int]:
        stands = self.pictures or text(data.attrs.get("macros_image_convention", "opengl"))
        if stands not in _TURN:
            raise BrokenEpisode(
                f"{path}: macros_image_convention is {stands!r}, expected 'opengl' or 'opencv'; pass pictures=..."
            )
        return _TURN[stands]

    def _instruction(self, data: h5py.Group, path: Path) -> str:
        if self.instruction:
            return self.instruction
        extras = _extras(data, path)
        if "instruction" in extras:
            return str(extras["instruction"])
        if self.prompt == "bddl":
            try:
                words = json.loads(text(data.attrs["problem_info"]))["language_instruction"]
            except (KeyError, TypeError, ValueError) as error:
                raise BrokenEpisode(
                    f"{path}: no instruction in data.attrs['problem_info'] ({error!r}); "
                    "use prompt='name' or instruction=..."
                ) from None
            return "".join(words).strip().strip('"')  # some files hold a list of letters
        task = _task(data, path)
        if found := _PERTURBED.search(task):
            raise BrokenEpisode(
                f"{path}: {task[found.start() :]!r} at the end of the name is a perturbation of LIBERO-plus and would "
                "leak into the instruction; use prompt='bddl' or instruction=..."
            )
        return re.sub(r"^[A-Z0-9_]*SCENE\d+_", "", task).replace("_", " ")


def _task(data: h5py.Group, path: Path) -> str:
    """LIBERO's name of the task. Its files are called ``<task>_demo.hdf5``; renamed ones may still say it inside."""
    extras = _extras(data, path)
    if "task" in extras:
        return str(extras["task"])
    if not path.stem.endswith("_demo") and "bddl_file_name" in data.attrs:
        return Path(text(data.attrs["bddl_file_name"])).stem
    return path.stem.removesuffix("_demo")


def _extras(data: h5py.Group, path: Path) -> dict[str, Any]:
    """Notes of `libero_write` on the whole file; empty for all other files."""
    try:
        return dict(json.loads(text(data.attrs.get(EXTRAS, "{}"))))
    except (TypeError, ValueError) as error:
        raise BrokenEpisode(f"{path} has a damaged attribute data.attrs[{EXTRAS!r}]: {error}") from None


def _pairing(demo: h5py.Group, rows: int) -> Pairing:
    """Pairing of observations and actions (before or after), by the joint angles in ``states``."""
    before_action = numbers(demo, "states", rows, None)[1:, 1:8]
    observed = numbers(demo, "obs/joint_states", rows, 7)
    same_row, row_above = (np.abs(angles - before_action).mean() for angles in (observed[1:], observed[:-1]))
    if min(same_row, row_above) > 0.5 * max(same_row, row_above) or same_row == row_above:
        raise BrokenEpisode(
            f"cannot tell whether its frames are from before or after the actions: joint angles differ from those of "
            f"'states' by {same_row:.2g} rad on average in the same row and by {row_above:.2g} in the row above; "
            "pass observed='before' or 'after'"
        )
    return "before" if same_row < row_above else "after"
