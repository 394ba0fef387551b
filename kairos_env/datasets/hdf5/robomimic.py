"""Files of robomimic itself: its published datasets, and robosuite or MimicGen demonstrations that it has processed.

One file is one task::

    data                       attrs: env_args (json: env_name, env_kwargs with robots, controller, control_freq)
    data/demo_<i>              attrs: num_samples (T), ep_meta (json with the instruction "lang", newer files only)
    data/demo_<i>/actions      (T, A)
    data/demo_<i>/rewards      (T,) after the action, 1 for success
    data/demo_<i>/obs/<key>    (T, ...) before each action: <camera>_image uint8, robot<i>_eef_pos, ...
    data/demo_<i>/next_obs/<key>  (T, ...) after each action, if it was not excluded

The final frame is the last of ``next_obs``. Without it what the last action led to is unknown, and the T - 1 decisions
before it remain. Pictures stand upright and are not mirrored: robomimic has turned them already.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kairos_env.datasets.hdf5.files import (
    Hdf5Episodes,
    Source,
    blamed_on,
    checked_count,
    checked_finite,
    data_group,
    dataset,
    images,
    in_number_order,
    numbers,
    text,
)
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import ActionKind, Array, Camera, Episode, Field, RobotSpec


class RobomimicFile(Hdf5Episodes):
    """The usable episodes of robomimic's files; `Hdf5Episodes` says how broken ones are treated.

    The robot is put together from the file: the pictures' sizes, the control rate, and the fields of robosuite's
    observations and of its OSC_POSE controller, once for each arm. Other keys and controllers need ``spec``.

    Args:
        path: file, folder or list of them.
        proprio: observations that make up the proprioception, in order; by default ``eef_pos``, ``eef_quat`` and
            ``gripper_qpos`` of every robot, which are robomimic's own.
        spec: the robot, if the file's is not to be made out; its camera ``x`` is the observation ``x_image``.
        instruction: use this one for every episode; by default its own, or the environment's name in words.
        verify: read every image now.
    """

    def __init__(
        self,
        path: Source,
        proprio: Sequence[str] = (),
        spec: RobotSpec | None = None,
        instruction: str = "",
        verify: bool = False,
    ) -> None:
        self.proprio, self.instruction, self._given = tuple(proprio), instruction, spec
        super().__init__(path, spec, verify)

    def _robot(self, file: h5py.File, path: Path) -> RobotSpec | None:
        data, why = data_group(file, path), "it has no episodes"
        if not self.proprio:
            self.proprio = _default_proprio(data, path)
        if self._given:
            return None
        for name in sorted(data, key=in_number_order):
            try:
                with blamed_on(f"{path}:{name}"):
                    return self._describe(data, data[name])
            except BrokenEpisode as error:
                why = str(error)
        raise BrokenEpisode(f"{path} does not tell its robot: {why}")

    def _describe(self, data: h5py.Group, demo: h5py.Group) -> RobotSpec:
        name, settings = _environment(data)
        shapes = {key: array.shape[1:] for key, array in demo["obs"].items()}
        pictures = {key[: -len("_image")]: shape for key, shape in shapes.items() if key.endswith("_image")}
        if not pictures:
            raise BrokenEpisode(f"no pictures among its observations {list(shapes)}; extract them with --camera_names")
        return RobotSpec(
            name="-".join(["robosuite", *map(str.lower, settings.get("robots", []))]),
            cameras=tuple(Camera(camera, *shape[:2]) for camera, shape in pictures.items()),
            proprio=tuple(field for key in self.proprio for field in _proprio_fields(key, shapes.get(key))),
            action=_action_fields(settings.get("controller_configs"), dataset(demo, "actions").shape[-1]),
            control_rate_hz=float(settings["control_freq"]),
            instruction=self.instruction or _words(name),
        )

    def _check(self, file: h5py.File, path: Path, name: str) -> int:
        return len(self._numbers(file["data"][name])[1])

    def _read(self, file: h5py.File, path: Path, name: str) -> Episode:
        demo = file["data"][name]
        proprio, actions, rewards = self._numbers(demo)

        def frames(key: str) -> Array:
            seen = demo[f"obs/{key}"][()]
            return np.concatenate([seen, demo[f"next_obs/{key}"][-1:]]) if "next_obs" in demo else seen

        about = json.loads(text(demo.attrs.get("ep_meta", "{}")))
        return Episode(
            images={camera.name: frames(f"{camera.name}_image") for camera in self.spec.cameras},
            proprio=proprio,
            actions=actions,
            rewards=rewards,
            success=rewards >= 1,
            task=_environment(file["data"])[0] if "env_args" in file["data"].attrs else "",
            instruction=self.instruction or str(about.get("lang", self.spec.instruction)),
        )

    def _numbers(self, demo: h5py.Group) -> tuple[Array, Array, Array]:
        """Proprioception (T + 1, P), actions (T, A), rewards (T,) of an episode whose pictures have the right shape."""
        actions = numbers(demo, "actions", None, self.spec.action_dim, finite=False)
        rows = checked_count(demo, len(actions))
        rewards = numbers(demo, "rewards", rows)
        parts = ["obs", "next_obs"] if "next_obs" in demo else ["obs"]
        seen = [
            np.concatenate([numbers(demo, f"{part}/{key}", rows, None) for key in self.proprio], axis=1)
            for part in parts
        ]
        if seen[0].shape[1] != self.spec.proprio_dim:
            raise BrokenEpisode(
                f"{', '.join(self.proprio)} have {seen[0].shape[1]} values, but {self.spec.name!r} has "
                f"{self.spec.proprio_dim}"
            )
        for part in parts:
            for camera in self.spec.cameras:
                images(demo, f"{part}/{camera.name}_image", (rows, camera.height, camera.width, 3))
        if len(parts) == 1:
            actions, rewards = actions[:-1], rewards[:-1]
        if not len(actions):
            raise BrokenEpisode("it has no decision with frames before and after it")
        proprio = np.concatenate([seen[0], *(after[-1:] for after in seen[1:])])
        return proprio, checked_finite(actions, "actions"), rewards


def _default_proprio(data: h5py.Group, path: Path) -> tuple[str, ...]:
    keys = {key for demo in data.values() if isinstance(demo, h5py.Group) for key in demo.get("obs", ())}
    if not keys:
        raise BrokenEpisode(f"{path} has no observations; extract them with robomimic's dataset_states_to_obs.py")
    robots = sorted(found[1] for key in keys if (found := re.fullmatch(r"(robot\d+_)eef_pos", key)))
    if not robots:
        raise BrokenEpisode(f"{path}: no robot0_eef_pos among the observations {sorted(keys)}; pass proprio=[...]")
    return tuple(robot + part for robot in robots for part in ("eef_pos", "eef_quat", "gripper_qpos"))


def _environment(data: h5py.Group) -> tuple[str, dict[str, Any]]:
    """Name and settings of the environment that was recorded."""
    try:
        stored = json.loads(text(data.attrs["env_args"]))
        return str(stored["env_name"]), dict(stored["env_kwargs"])
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenEpisode(f"data.attrs['env_args'] does not describe the environment ({error!r})") from None


def _words(name: str) -> str:
    """``PickPlaceCan`` -> ``pick place can``."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)).lower()


def _proprio_fields(key: str, shape: tuple[int, ...] | None) -> tuple[Field, ...]:
    """The fields of one of robosuite's observations."""
    robot, _, part = key.partition("_")
    width = shape[0] if shape and len(shape) == 1 else 0
    if part == "eef_pos" and width == 3:
        return tuple(Field(f"{robot}_eef_{axis}", -2, 2, "m", "position", "world") for axis in "xyz")
    if part == "eef_quat" and width == 4:
        return tuple(Field(f"{robot}_eef_q{axis}", -1, 1, "1", "rotation", "world") for axis in "xyzw")
    if part == "gripper_qpos" and width == 2:  # parallel fingers; hands with more joints have angles
        return tuple(Field(f"{robot}_finger_{side}", -0.05, 0.05, "m", "gripper") for side in ("left", "right"))
    if part in ("gripper_qpos", "joint_pos") and width:
        kind = "gripper" if part == "gripper_qpos" else "joint_position"
        return tuple(Field(f"{key}_{i}", -2 * math.pi, 2 * math.pi, "rad", kind) for i in range(width))
    raise BrokenEpisode(f"the meaning of the observation {key!r} {shape} is not known; pass spec=RobotSpec(...)")


def _action_fields(config: Any, width: int) -> tuple[Field, ...]:
    """Inputs of one OSC_POSE controller and gripper for each arm."""
    controllers = list(_controllers(config))
    arms = width // 7
    if width % 7 or len(controllers) not in (1, arms):
        raise BrokenEpisode(
            f"{width} actions and {len(controllers)} OSC_POSE controllers with relative inputs in env_args do not fit; "
            "pass spec=RobotSpec(...)"
        )
    fields: list[Field] = []
    for arm, controller in enumerate(controllers if len(controllers) == arms else controllers * arms):
        prefix = f"robot{arm}_" if arms > 1 else ""
        low, high, frame = controller["input_min"], controller["input_max"], controller.get("input_ref_frame", "world")
        kinds: list[tuple[str, ActionKind, float, str]] = [
            ("d", "delta_position", controller["output_max"][0], "m"),
            ("dr", "delta_rotation", controller["output_max"][3], "rad"),
        ]
        for name, kind, most, unit in kinds:
            fields += [Field(f"{prefix}{name}{axis}", low, high, f"{most:g} {unit}", kind, frame) for axis in "xyz"]
        fields.append(Field(f"{prefix}gripper", -1, 1, "1", "gripper"))
    return tuple(fields)


def _controllers(config: Any) -> Iterator[dict[str, Any]]:
    """OSC_POSE settings, wherever robosuite's version keeps them: at the top (1.4) or below ``body_parts`` (1.5)."""
    if isinstance(config, dict):
        if config.get("type") == "OSC_POSE":
            if config.get("control_delta", True) and config.get("input_type", "delta") == "delta":
                yield config
        else:
            for part in config.values():
                yield from _controllers(part)
    elif isinstance(config, list):
        for part in config:
            yield from _controllers(part)
