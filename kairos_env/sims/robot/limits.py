"""What a robot may be asked to do: limits of every joint, of its hand's place, and of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kairos_env.records import Array, RobotSpec
from kairos_env.runs.spelling import did_you_mean

PER_JOINT = ("low", "high", "velocity", "acceleration", "step")

# Unit of a field -> velocity [unit/s], acceleration [unit/s2], distance of a goal from the measured place [unit].
# Slow for a hobby arm: whoever needs more says so.
USUAL = {
    "deg": (120.0, 800.0, 15.0),
    "rad": (2.1, 14.0, 0.26),
    "normalised": (120.0, 800.0, 15.0),
    "percent": (250.0, 2500.0, 40.0),
    "m": (0.25, 1.5, 0.05),
}


@dataclass(frozen=True)
class Workspace:
    """Where the moving parts of the arm may be, in the frame of its base [m].

    Attributes:
        low, high: corners of a box (3,).
        floor: height below which nothing may go.
    """

    low: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    high: tuple[float, float, float] = (1.0, 1.0, 1.0)
    floor: float = -1.0

    def violation(self, points: Array) -> float:
        """How far the worst of the points (N, 3) is outside [m]; 0 if none is."""
        low = np.maximum(self.low, [-np.inf, -np.inf, self.floor])
        return float(max(0.0, (low - points).max(), (points - np.asarray(self.high)).max()))


@dataclass(frozen=True)
class SafetyLimits:
    """Limits of one robot, in the units of its `RobotSpec`; arrays are (A,).

    Attributes:
        names: of the joints, in the order of actions.
        low, high: of the goal.
        velocity: by how much a goal may change in a second.
        acceleration: by how much that velocity may grow in a second. Slowing down may be quicker.
        step: how far a goal may be from the measured position, so that a blocked arm is not pressed ever harder.
        period_s: between two goals.
        workspace: for robots with known kinematics.
        load: of any motor, as a fraction of its greatest, for at most ``load_s``.
        observation_s: age of joints or pictures from which on the arm holds.
        command_s: time without a command after which the arm holds.
        late_s: delay of a beat from which on it counts as late; ``late_beats`` of them in a row hold the arm.
        stop_s: how long it holds for a reason that does not go away, before it stops.
        refusals: commands in a row that are refused before it stops.
        missed_beats: measurements in a row that fail before it stops.
    """

    names: tuple[str, ...]
    low: Array
    high: Array
    velocity: Array
    acceleration: Array
    step: Array
    period_s: float
    workspace: Workspace | None = None
    load: float = 0.9
    load_s: float = 0.5
    observation_s: float = 0.5
    command_s: float = 0.5
    late_s: float = 0.02
    late_beats: int = 15
    stop_s: float = 1.0
    refusals: int = 30
    missed_beats: int = 10

    def __post_init__(self) -> None:
        count = len(self.names)
        for name in PER_JOINT:
            values = np.asarray(getattr(self, name), float)
            if values.shape != (count,) or not np.isfinite(values).all():
                raise ValueError(f"{name} needs {count} finite values, one for each of {', '.join(self.names)}")
            if name not in ("low", "high") and not (values > 0).all():
                raise ValueError(
                    f"{name} of {self.names[int(np.argmin(values))]} is {values.min():g}: give more than 0"
                )
            object.__setattr__(self, name, values)
        if not (self.low < self.high).all():
            raise ValueError(f"low {self.low.tolist()} is not below high {self.high.tolist()}")
        times = ("period_s", "load", "load_s", "observation_s", "command_s", "late_s", "stop_s")
        for name in (*times, "late_beats", "refusals", "missed_beats"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}: give a number above 0")

    @classmethod
    def usual(cls, spec: RobotSpec, rate_hz: float, changes: Mapping[str, Any] | None = None) -> SafetyLimits:
        """Limits that suit a hobby arm, with what ``changes`` says instead.

        Args:
            spec: the robot; its action fields have the ranges of the calibration.
            rate_hz: goals a second.
            changes: fields of this class: a number for all joints, or joint -> number; ``workspace`` as a mapping.
                They can make the range of a joint narrower, never wider.

        Raises:
            ValueError: an unknown name, a unit without usual limits, or a wrong value.
        """
        changes = dict(changes or {})
        legal = [field.name for field in dataclasses.fields(cls) if field.name not in ("names", "period_s")]
        for name in changes:
            if name not in legal:
                raise ValueError(f"unknown safety limit {name!r}; {did_you_mean(name, legal)}")
        names = tuple(field.name.removesuffix(".pos") for field in spec.action)
        values: dict[str, Array] = {"low": spec.action_low.astype(float), "high": spec.action_high.astype(float)}
        for index, name in enumerate(("velocity", "acceleration", "step")):
            per_joint = _each(changes[name], names, name) if name in changes else {}
            values[name] = np.array(
                [_value(per_joint, joint, f.unit, index) for joint, f in zip(names, spec.action, strict=True)]
            )
        for name, narrower in (("low", np.maximum), ("high", np.minimum)):
            if name in changes:
                asked = _each(changes[name], names, name)
                wanted = np.array([asked.get(joint, values[name][i]) for i, joint in enumerate(names)])
                values[name] = narrower(values[name], wanted)
        others = {name: value for name, value in changes.items() if name not in PER_JOINT}
        if isinstance(others.get("workspace"), Mapping):
            others["workspace"] = Workspace(**others["workspace"])
        low, high, velocity, acceleration, step = (values[name] for name in PER_JOINT)
        return cls(names, low, high, velocity, acceleration, step, 1.0 / rate_hz, **others)


def _value(given: Mapping[str, float], joint: str, unit: str, index: int) -> float:
    if joint in given:
        return given[joint]
    if unit not in USUAL:
        raise ValueError(
            f"nobody knows usual limits for {joint} in {unit or 'no unit'}: give velocity, acceleration and step"
        )
    return USUAL[unit][index]


def _each(value: Any, joints: tuple[str, ...], what: str) -> dict[str, float]:
    """``value``, a number or joint -> number, as joint -> number."""
    given = value if isinstance(value, Mapping) else dict.fromkeys(joints, value)
    for joint, number in given.items():
        if joint not in joints:
            raise ValueError(f"{what} names an unknown joint {joint!r}; {did_you_mean(joint, joints)}")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{what} of {joint} is {number!r}: give a number")
    return {joint: float(number) for joint, number in given.items()}
