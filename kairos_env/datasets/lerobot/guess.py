"""What the features of a LeRobot dataset probably mean, from their names: a proposal for a `FeatureMap`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kairos_env.datasets.lerobot.features import Feature, distinct
from kairos_env.datasets.lerobot.mapping import CameraMap, FeatureMap, MapError, ScalarMap, numeric
from kairos_env.datasets.lerobot.meta import Meta
from kairos_env.datasets.statistics import DatasetStatistics
from kairos_env.records import Field

_UNITS = {"rad": "rad", "deg": "deg", "mm": "mm", "cm": "cm", "m": "m", "n": "N", "nm": "N m"}
_KINDS = {
    "gripper": r"gripper|claw|finger|jaw",
    "delta_position": r"^(d|delta_?)(x|y|z|pos\w*)$",
    "delta_rotation": r"^(d|delta_?)(rx|ry|rz|roll|pitch|yaw|rot\w*|ori\w*)$",
    "joint_position": r"joint|shoulder|elbow|wrist|waist|forearm|qpos",
}

# Names of the state where nothing begins with "observation.": those of openpi's converters and of DROID.
_STATES = (("state",), ("joint_position", "gripper_position"), ("qpos",), ("proprio",))


def guess(meta: Meta, statistics: Mapping[str, DatasetStatistics] | None = None) -> FeatureMap:
    """A map that suits most datasets: every colour camera, ``observation.state``, ``action``.

    Without ``observation.state`` every other numeric ``observation...`` feature but the environment's own
    state is taken, or without these ``state``, or ``joint_position`` and ``gripper_position``; without ``action`` every
    ``action...`` feature. Kinds and units come from names
    (``gripper``, ``..._rad``). A dataset that Kairos exported says all this itself.

    Args:
        meta: the dataset's metadata.
        statistics: feature -> its statistics; without them ranges stay open.

    Raises:
        MapError: there is no action.
    """
    features, robot, numbers = meta.features, meta.robot, numeric(meta.features)
    reward, success = (key if key in numbers else None for key in ("next.reward", "next.success"))
    if robot is not None:
        return FeatureMap(
            robot=robot.name,
            control_rate_hz=robot.control_rate_hz,
            cameras=tuple(CameraMap(c.name, f"observation.images.{c.name}") for c in robot.cameras),
            proprio=_described("observation.state", robot.proprio),
            action=_described("action", robot.action),
            instruction=robot.instruction,
            reward=reward,
            success=success,
        )
    cameras = [f for f in features.values() if f.is_camera and not f.is_depth]
    action = [numbers[k] for k in ("action",) if k in numbers] or [
        f for key, f in numbers.items() if key.startswith("action")
    ]
    if not action:
        raise MapError(
            f"the dataset has no feature 'action' and none that starts with it, only {', '.join(features)}; "
            "write a map by hand (its format: kairos_env.datasets.lerobot.mapping.FeatureMap)"
        )
    names = [re.sub(r"^(observation\.)?(images?\.)?", "", f.key).replace(".", "_") or f.key for f in cameras]
    found = FeatureMap(
        robot=str(meta.info.get("robot_type") or "robot"),
        control_rate_hz=meta.control_rate_hz,
        cameras=tuple(CameraMap(name, f.key) for name, f in zip(distinct(names), cameras, strict=True)),
        proprio=_scalars(_state(numbers)),
        action=_scalars(action),
        reward=reward,
        success=success,
    )
    return found.with_ranges(statistics or {})


def _state(numbers: Mapping[str, Feature]) -> list[Feature]:
    """The features that are the robot's proprioception, in order."""
    if "observation.state" in numbers:
        return [numbers["observation.state"]]
    observed = [f for k, f in numbers.items() if k.startswith("observation.") and k != "observation.environment_state"]
    named = (group for group in _STATES if group[0] in numbers)
    return observed or [numbers[key] for key in next(named, ()) if key in numbers]


def _described(feature: str, fields: Sequence[Field]) -> tuple[ScalarMap, ...]:
    return tuple(
        ScalarMap(feature, index, f.name, f.low, f.high, f.unit, f.kind, f.frame) for index, f in enumerate(fields)
    )


def _scalars(features: Sequence[Feature]) -> tuple[ScalarMap, ...]:
    names = distinct([name for f in features for name in f.names])
    places = [(f.key, index) for f in features for index in range(f.dim)]
    return tuple(
        ScalarMap(key, index, name, unit=_unit(name), kind=_kind(name))
        for (key, index), name in zip(places, names, strict=True)
    )


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name.lower())), "other")


def _unit(name: str) -> str:
    tail = re.search(r"_([a-z]+)$", name.lower())
    return _UNITS.get(tail.group(1), "") if tail else ""
