"""Scripted experts for LIBERO's pick-and-place tasks (suites libero_object and libero_spatial).

The expert reads the true state and acts as a continuous, memoryless function of it: hover above the object,
descend, close, lift over what stands in the way, carry, lower, let go, rise. It is sensible in every state that noise
or another policy can reach, and a network can imitate it from pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kairos_env.records import Array

SUITES = ("libero_object", "libero_spatial")

_FINGER_DEPTH = 0.026  # how far the grasp centre goes below an object's top before the palm touches it [m]
_FLOOR_CLEARANCE = 0.017  # of the grasp centre over the lower end of an object: the finger tips need it [m]
_OPEN = 0.0775  # distance of the open fingers [m]
_HOVER = 0.07  # grasp centre over its place when travelling above an object [m]
_MARGIN = 0.03  # height at which things are carried over others [m]
_PALM = 0.105  # half the width of the hand along the finger axis [m]


@dataclass(frozen=True)
class Shape:
    """What has to be known of one kind of object; box in the object's frame, measured from the collision geometry.

    Attributes:
        low, high: corners of the box [m].
        held: distance of the fingers that hold the standing object [m]; 0 = the width of the box.
        rim: radius of the wall at which a hollow object is held [m]; 0 = held around its middle.
        up: axis of its own frame that points up when the object stands (0, 1, 2).
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    held: float = 0.0
    rim: float = 0.0
    up: int = 2


_SHAPES = {
    "alphabet_soup": Shape((-0.031, -0.039, -0.035), (0.031, 0.038, 0.028), held=0.063, up=1),
    "tomato_sauce": Shape((-0.031, -0.039, -0.034), (0.031, 0.038, 0.028), held=0.062, up=1),
    "cream_cheese": Shape((-0.041, -0.021, -0.009), (0.041, 0.021, 0.009), held=0.042),
    "butter": Shape((-0.038, -0.020, -0.009), (0.038, 0.020, 0.009), held=0.039),
    "chocolate_pudding": Shape((-0.041, -0.023, -0.013), (0.040, 0.023, 0.014), held=0.046),
    "salad_dressing": Shape((-0.027, -0.073, -0.018), (0.025, 0.073, 0.018), held=0.037, up=1),
    "ketchup": Shape((-0.028, -0.072, -0.018), (0.029, 0.073, 0.019), held=0.034, up=1),
    "bbq_sauce": Shape((-0.023, -0.015, -0.055), (0.023, 0.015, 0.052), held=0.036),
    "milk": Shape((-0.026, -0.070, -0.026), (0.027, 0.061, 0.026), held=0.053, up=1),
    "orange_juice": Shape((-0.027, -0.070, -0.026), (0.026, 0.061, 0.026), held=0.053, up=1),
    "akita_black_bowl": Shape((-0.054, -0.054, 0.002), (0.054, 0.054, 0.052), held=0.008, rim=0.048),
    "basket": Shape((-0.084, -0.079, 0.004), (0.085, 0.079, 0.146)),
    "plate": Shape((-0.069, -0.069, -0.003), (0.069, 0.069, 0.016)),
    "cookies": Shape((-0.031, -0.041, -0.009), (0.031, 0.041, 0.009)),
    "glazed_rim_porcelain_ramekin": Shape((-0.045, -0.045, 0.001), (0.045, 0.045, 0.043)),
    "wooden_cabinet": Shape((-0.123, -0.109, 0.005), (0.131, 0.112, 0.223)),
    "flat_stove": Shape((-0.052, -0.095, -0.020), (0.245, 0.095, 0.050)),
}


def _ramp(value: float, low: float, high: float) -> float:
    """0 at ``low`` and below, 1 at ``high`` and above, linear between (``low`` may exceed ``high``)."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


@dataclass(frozen=True)
class _Thing:
    """An object where it is: middle of its box, half size of that box along the axes of the world, its rotation."""

    shape: Shape
    position: Array
    rotation: Array

    @property
    def middle(self) -> Array:
        return self.position + self.rotation @ (np.add(self.shape.low, self.shape.high) / 2)

    @property
    def half(self) -> Array:
        return np.asarray(np.abs(self.rotation) @ (np.subtract(self.shape.high, self.shape.low) / 2))

    @property
    def top(self) -> float:
        return float(self.middle[2] + self.half[2])

    @property
    def bottom(self) -> float:
        return float(self.middle[2] - self.half[2])


def _kind(name: str) -> str:
    return name.rpartition("_")[0]


class LiberoExpert:
    """Picks one object up and puts it into, or onto, another.

    Args:
        interest: names of the object and of its goal, as in ``privileged["interest"]``.
        suite: "libero_object" (goal: a basket) or "libero_spatial" (goal: a plate).
        action_repeat: simulator steps for which an action is held.
    """

    def __init__(self, interest: Sequence[str], suite: str, action_repeat: int = 1) -> None:
        if suite not in SUITES:
            raise ValueError(f"there is no expert for suite {suite!r}; there are experts for {list(SUITES)}")
        if len(interest) != 2 or any(_kind(name) not in _SHAPES for name in interest):
            raise ValueError(f"the expert puts one known object into or onto another, got {list(interest)}")
        if action_repeat < 1:
            raise ValueError(f"action_repeat must be at least 1, got {action_repeat}")
        self._object, self._goal = interest
        self._gain = 20.0 if action_repeat == 1 else 16.0
        self._side: float | None = None  # which side of a rim is held, chosen at the first state of the episode

    def act(self, privileged: Mapping[str, Any]) -> Array:
        """(7,) float32 action in [-1, 1] for the true state (`info["privileged"]`)."""
        things = {
            name: _Thing(_SHAPES[_kind(name)], np.asarray(o["position"], float), np.asarray(o["rotation"], float))
            for name, o in privileged["objects"].items()
            if _kind(name) in _SHAPES
        }
        thing, goal = things.pop(self._object), things.pop(self._goal)
        eef = np.asarray(privileged["eef_position"], float)
        hand = np.asarray(privileged["eef_rotation"], float)
        opening = float(privileged["gripper_opening"])

        finger = self._finger_axis(thing, hand)
        grasp, width = self._grasp(thing, finger, things)
        offset = grasp - eef
        aside = float(np.linalg.norm(offset[:2]))
        around = _ramp(aside, 0.025, 0.015) * _ramp(abs(float(offset[2])), 0.025, 0.015)
        held = around * _ramp(opening, width + 0.006, width + 0.002)

        to_goal = goal.middle[:2] - thing.middle[:2]
        remaining = float(np.linalg.norm(to_goal))
        basket = _kind(self._goal) == "basket"
        over = _ramp(remaining, 0.045, 0.02)  # above the goal
        if basket:
            lower = max(0.05, goal.top - 0.015 - (grasp[2] - thing.bottom))
            let_go = _ramp(opening, width + 0.002, width + 0.005) * _ramp(thing.bottom, goal.top + 0.03, goal.top)
            low = max(_ramp(thing.bottom, lower + 0.03, lower + 0.01), let_go)
        else:
            lower = goal.bottom + 0.004
            low = _ramp(thing.bottom - goal.bottom, 0.014, 0.008)
        there = _ramp(remaining, 0.045, 0.03) * low

        # approach
        hover = _HOVER * _ramp(aside, 0.012, 0.04)
        unready = _ramp(opening, min(width + 0.024, 0.074), min(width + 0.016, 0.07))
        hover = max(hover, _HOVER * unready * (1 - _ramp(aside, 0.025, 0.015) * _ramp(-offset[2], 0.035, 0.02)))
        climb = offset[2] + hover + 0.8 * np.clip(aside - 0.04, 0.0, 0.10)
        need = offset[2] + min(hover, 0.055)
        blocked = _ramp(need, 0.0, 0.03) * _ramp(aside, 0.015, 0.03) * _ramp(aside, 0.15, 0.10)
        approach = np.append(self._toward(offset[:2]) * (1 - blocked), climb)

        # carry
        level = self._level(thing, goal, things)
        if basket:
            rim = goal.top
            level = max(level, rim * 1.0 if remaining < 0.25 else level)
        height = level + _MARGIN
        target = (1 - over) * height + over * lower
        gate = max(_ramp(thing.bottom, level - 0.005, level + 0.02), over)
        carry = np.append(self._toward(to_goal) * gate, target - thing.bottom)

        delta = (1 - held) * approach + held * carry
        gripper = 2 * around - 1
        # let go and rise
        rise = np.array([0.0, 0.0, 0.05]) * _ramp(opening, width + 0.008, width + 0.016)
        delta = (1 - there) * delta + there * rise
        gripper = (1 - there) * gripper - there
        turn = self._turn(hand, finger)
        action = np.concatenate([np.clip(self._gain * delta, -1, 1), turn, [gripper]])
        return np.clip(action, -1, 1).astype(np.float32)

    def _toward(self, offset: Array) -> Array:
        limit = 1 / self._gain
        return offset / max(1.0, float(np.abs(offset).max()) / limit)

    def _finger_axis(self, thing: _Thing, hand: Array) -> Array:
        """(3,) horizontal direction along which the fingers close: the narrow side that needs the least turn."""
        current = hand[:, 1] * [1, 1, 0]
        current /= np.linalg.norm(current)
        if thing.shape.rim:
            return np.array([0.0, 1.0 if current[1] > 0 else -1.0, 0.0])
        size = np.subtract(thing.shape.high, thing.shape.low)
        best, axis = np.inf, current
        for i in range(3):
            direction = thing.rotation[:, i] * [1, 1, 0]
            length = float(np.linalg.norm(direction))
            if length < 0.7 or size[i] > 0.072:
                continue
            direction = direction / length * (1.0 if direction @ current >= 0 else -1.0)
            cost = size[i] + 0.03 * (1 - float(direction @ current))
            if cost < best:
                best, axis = cost, direction
        return np.asarray(axis)

    def _grasp(self, thing: _Thing, finger: Array, others: Mapping[str, _Thing]) -> tuple[Array, float]:
        """Where the grasp centre has to be, (3,), and how far the fingers are apart when they hold."""
        if thing.shape.rim:
            if self._side is None:
                room = [
                    min(float(np.hypot(*(o.middle - thing.middle - s * 0.08 * finger)[:2])) for o in others.values())
                    for s in (1.0, -1.0)
                ]
                self._side = float(np.sign(finger[1])) * (1.0 if room[0] >= min(room[1], 0.13) else -1.0)
            up = thing.rotation[:, 2]
            side = np.array([0.0, self._side, 0.0])
            side = side - (side @ up) * up
            return thing.position + 0.041 * up + thing.shape.rim * side, thing.shape.held
        standing = abs(float(thing.rotation[2, thing.shape.up])) > 0.8
        width = thing.shape.held if standing else float(2 * thing.half @ np.abs(finger))
        grasp = thing.middle.copy()
        grasp[2] = max(thing.top - _FINGER_DEPTH, thing.bottom + _FLOOR_CLEARANCE)
        return grasp, width

    def _level(self, thing: _Thing, goal: _Thing, others: Mapping[str, _Thing]) -> float:
        """Height that the object's lower end must exceed here: tops of the things nearby, else of the goal's base."""
        level = goal.bottom + 0.03
        own = max(thing.half[:2])
        for other in others.values():
            gap = float(np.linalg.norm((other.middle - thing.middle)[:2])) - max(other.half[:2]) - own
            level = max(level, goal.bottom + (other.top - goal.bottom) * _ramp(gap, 0.06, 0.02))
        return level

    def _turn(self, hand: Array, finger: Array) -> Array:
        """(3,) rotation command that points the hand down with its fingers along ``finger``."""
        down = np.array([0.0, 0.0, -1.0])
        target = np.stack([np.cross(finger, down), finger, down], axis=1)
        error = 0.5 * sum(np.cross(hand[:, i], target[:, i]) for i in range(3))
        return np.clip(1.2 * error, -0.6, 0.6)
