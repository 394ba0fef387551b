"""Scripted experts for LIBERO's pick-and-place tasks (suites libero_object and libero_spatial).

The expert reads the true state and acts as a continuous, memoryless function of it: hover above the object,
descend, close, lift over what stands in the way, carry, lower, let go, rise. It is sensible in every state that noise
or another policy can reach, and a network can imitate it from pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kairos_env.records import Array

SUITES = ("libero_object", "libero_spatial")

_PALM = (0.022, 0.102)  # half the size of the hand across and along the finger axis [m]
_PALM_HEIGHT = 0.030  # of the palm over the grasp centre [m]
_WRIST = (0.038, 0.102)  # the same at its widest [m]
_FINGERS = (0.011, 0.066)  # and of the open fingers [m]
_FINGER_LENGTH = 0.012  # of the fingers below the grasp centre [m]
_DEPTH = 0.026  # the grasp centre goes so far below the top of an object, its palm almost touching it [m]
_RIM_DEPTH = 0.011  # and so far below a rim [m]
_FLOOR = 0.015  # but it stays so far above the lower end of an object, lest the fingers touch the floor [m]
_HOVER = 0.07  # grasp centre over its place when it travels above an object [m]
_CLEAR = 0.01  # distance kept from the tops of other things [m]
_CARRY = 0.03  # and the distance aimed at [m]
_DRAWER_RIM = 0.040  # from the middle of a bowl in a drawer: the outer finger has to pass the wall [m]
_DRAWER = 0.16  # how far an open drawer sticks out of the front (-y) of its cabinet [m]


@dataclass(frozen=True)
class Shape:
    """What has to be known of one kind of object; box in the object's frame, measured from the collision geometry.

    Attributes:
        low, high: corners of the box [m].
        held: distance of the fingers that hold the standing object [m]; a fallen one has the width of its box.
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


def _kind(name: str) -> str:
    return name.rpartition("_")[0]


@dataclass(frozen=True)
class _Box:
    """A box somewhere: its middle (3,), directions of its axes in columns (3, 3), half its size along them (3,)."""

    middle: Array
    axes: Array
    half: Array

    @property
    def top(self) -> float:
        return float(self.middle[2] + np.abs(self.axes[2]) @ self.half)

    @property
    def bottom(self) -> float:
        return float(self.middle[2] - np.abs(self.axes[2]) @ self.half)

    def gap(self, other: _Box) -> float:
        """Distance from another box, seen from above [m]; negative where one is over the other."""
        directions = np.concatenate([self.axes[:2].T, other.axes[:2].T])  # (6, 2); the steep ones say nothing
        length = np.linalg.norm(directions, axis=1)
        directions = directions[length > 0.5] / length[length > 0.5, None]
        apart = np.abs(directions @ (other.middle - self.middle)[:2])
        reach = sum(np.abs(directions @ box.axes[:2]) @ box.half for box in (self, other))
        return float(np.max(apart - reach))


@dataclass(frozen=True)
class _Thing:
    """An object where it is."""

    shape: Shape
    position: Array
    rotation: Array

    @property
    def box(self) -> _Box:
        low, high = np.asarray(self.shape.low), np.asarray(self.shape.high)
        return _Box(self.position + self.rotation @ (low + high) / 2, self.rotation, (high - low) / 2)


def _with_drawer(cabinet: _Thing) -> _Box:
    """The box of a cabinet whose drawer is open."""
    low = np.subtract(cabinet.shape.low, (0, _DRAWER, 0))
    return replace(cabinet, shape=replace(cabinet.shape, low=tuple(low))).box


def _clearance(base: float, height: float, parts: Sequence[_Box], others: Sequence[_Box]) -> float:
    """Height [m] of the grasp centre at which no part that moves with it touches anything that is near.

    Args:
        base: the height where nothing is near.
        height: that the grasp centre has now; ``parts`` are where they are now.
    """
    needed = base
    for part in parts:
        for other in others:
            above = other.top + _CLEAR + height - part.bottom
            needed = max(needed, base + (above - base) * _ramp(part.gap(other), 0.05, 0.015))
    return needed


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
        self._into = _kind(self._goal) == "basket"
        self._gain = 10.0 if action_repeat == 1 else 8.0  # action per metre: held commands overshoot more
        # Decided at the first state of the episode: which cabinet's open drawer holds the object, if any, and, in the
        # world, the way from the middle of a rim to where it is held.
        self._begun = False
        self._cabinet = ""
        self._rim: Array | None = None

    def act(self, privileged: Mapping[str, Any]) -> Array:
        """(7,) float32 action in [-1, 1] for the true state (`info["privileged"]`)."""
        eef = np.asarray(privileged["eef_position"], float)
        hand = np.asarray(privileged["eef_rotation"], float)
        opening = float(privileged["gripper_opening"])
        things = {
            name: _Thing(_SHAPES[_kind(name)], np.asarray(pose["position"], float), np.asarray(pose["rotation"], float))
            for name, pose in privileged["objects"].items()
            if _kind(name) in _SHAPES
        }
        thing, goal = things.pop(self._object), things.pop(self._goal).box
        load = thing.box
        if not self._begun:
            self._begin(thing, things)
        others = [_with_drawer(other) if name == self._cabinet else other.box for name, other in things.items()]

        fingers, width = self._finger_axis(thing, hand)
        grasp = self._grasp(thing, fingers, others)
        palm, tips = (
            _Box(eef + [0, 0, over], hand, np.array([*size, 0.0]))
            for size, over in ((_PALM, _PALM_HEIGHT), (_FINGERS, -_FINGER_LENGTH))
        )
        offset = grasp - eef
        turn = self._turn(hand, fingers)
        aside = float(np.linalg.norm(offset[:2])) + 0.06 * max(0.0, abs(float(turn[2])) - 0.05)
        # Closing has to wait for the right place; what is held may have slipped a little.
        missed = _ramp(opening, 0.47 * width, 0.35 * width)
        closed = _ramp(opening, width + 0.012, width + 0.004) * (1 - missed)
        slack = 1 + closed
        depth = max(-offset[2], offset[2] - 0.008)  # a little too deep is no harm
        around = _ramp(aside, slack * 0.022, slack * 0.012) * _ramp(depth, slack * 0.014, slack * 0.007)
        around *= 1 - missed
        held = around * _ramp(opening, width + 0.006, width + 0.002)

        # Above the object, between the things around it, and down; fingers that are not open wait above it.
        hover = _HOVER * _ramp(aside, 0.010, 0.035)
        obstacles = _clearance(grasp[2], eef[2], (palm, tips), [*others, goal]) - grasp[2]
        hover = max(hover, obstacles * _ramp(aside, 0.004, 0.012))
        narrow = _ramp(opening, min(width + 0.024, 0.074), min(width + 0.016, 0.070))
        hover = max(hover, _HOVER * narrow * (1 - around))
        low = _ramp(offset[2] + hover, 0.015, 0.045) * _ramp(aside, 0.015, 0.03)
        low *= max(_ramp(aside, 0.15, 0.10), _ramp(obstacles, 0.0, 0.02))
        climb = offset[2] + hover + 0.8 * np.clip(aside - 0.04, 0.0, 0.10)
        approach = np.append(self._toward(offset[:2]) * (1 - low), climb)

        # With the object over everything that is near, to the goal and down.
        to_goal = (goal.middle - load.middle)[:2]
        remaining = float(np.linalg.norm(to_goal))
        over = _ramp(remaining, 0.045, 0.02)
        above = eef[2] - load.bottom
        level = _clearance(goal.bottom + _CARRY + above, eef[2], (palm, load), others)
        rim = _clearance(level, eef[2], (palm, load), [goal])
        level += (1 - over) * (rim - level)
        lower = self._lowest(goal, above)
        target = (1 - over) * (level + _CARRY - _CLEAR) + over * (lower + above)
        gate = max(_ramp(eef[2], level - 0.005, level + 0.015), over)
        carry = np.append(self._toward(to_goal) * gate, target - eef[2])

        # Let go, and rise when the fingers are open.
        down = _ramp(load.bottom, lower + 0.03, lower + 0.015)
        going = _ramp(opening, width + 0.002, width + 0.005) * _ramp(load.bottom, goal.top + 0.03, goal.top)
        there = _ramp(remaining, *((0.045, 0.03) if self._into else (0.030, 0.022))) * max(down, going)
        rise = np.array([0.0, 0.0, 0.05]) * _ramp(opening, width + 0.008, width + 0.016)
        rise *= _ramp(eef[2], goal.top + 0.20, goal.top + 0.15)

        move = (1 - there) * ((1 - held) * approach + held * carry) + there * rise
        gripper = (1 - there) * (2 * around - 1) - there
        move = move + np.clip(move, -0.01, 0.01)  # gently to the place, but firmly there
        return np.clip([*(self._gain * move), *turn, gripper], -1, 1).astype(np.float32)

    def _toward(self, offset: Array) -> Array:
        """The offset, shortened along its direction until no axis asks for more than the fastest action."""
        return np.asarray(offset / max(1.0, float(np.abs(offset).max()) * self._gain))

    def _begin(self, thing: _Thing, others: Mapping[str, _Thing]) -> None:
        self._begun = True
        load = thing.box
        for name, other in others.items():
            inside = load.gap(_with_drawer(other)) < 0 and other.box.bottom < load.bottom < other.box.top - 0.02
            if _kind(name) == "wooden_cabinet" and inside:
                self._cabinet = name
        if not thing.shape.rim:
            return
        if self._cabinet:
            # Along the wide side of the drawer, and away from its nearer wall.
            cabinet = others[self._cabinet]
            wide = cabinet.rotation[:, 0] * np.sign(cabinet.rotation[:, 0] @ (cabinet.position - load.middle))
            self._rim = wide * _DRAWER_RIM
            return
        sides = [np.array([0.0, y * thing.shape.rim, 0.0]) for y in (1.0, -1.0)]
        hand = _Box(np.zeros(3), np.eye(3), np.array([*_PALM, 0.0]))
        high = [other.box for other in others.values() if other.box.top > load.top - _RIM_DEPTH + _PALM_HEIGHT]
        room = [min((replace(hand, middle=load.middle + side).gap(o) for o in high), default=1.0) for side in sides]
        self._rim = sides[0] if room[0] > 0 or room[0] >= room[1] else sides[1]

    def _finger_axis(self, thing: _Thing, hand: Array) -> tuple[Array, float]:
        """Horizontal direction along which the fingers close, (3,), and their distance when they hold the object.

        It is the narrow side that needs the least turn.
        """
        now = hand[:, 1] * [1, 1, 0]
        now = now / max(1e-6, float(np.linalg.norm(now)))
        held = thing.shape.held
        if self._rim is not None:
            return self._rim / np.linalg.norm(self._rim) * (1.0 if self._rim @ now >= 0 else -1.0), held
        standing = abs(float(thing.rotation[2, thing.shape.up])) > 0.8
        size = np.subtract(thing.shape.high, thing.shape.low)
        best, axis, width = np.inf, now, held
        for i in range(3):
            direction = thing.rotation[:, i] * [1, 1, 0]
            length = float(np.linalg.norm(direction))
            if length < 0.7 or size[i] > 0.072:
                continue
            direction = direction / length * (1.0 if direction @ now >= 0 else -1.0)
            cost = size[i] + 0.03 * (1 - float(direction @ now))
            if cost < best:
                best, axis, width = cost, direction, held if standing else float(size[i])
        return axis, width

    def _grasp(self, thing: _Thing, fingers: Array, others: Sequence[_Box]) -> Array:
        """(3,) where the grasp centre has to be."""
        if self._rim is not None:
            up = thing.rotation[:, 2]
            side = self._rim - (self._rim @ up) * up
            return np.asarray(thing.position + (thing.shape.high[2] - _RIM_DEPTH) * up + side)
        box = thing.box
        grasp = np.array([*box.middle[:2], max(box.top - _DEPTH, box.bottom + _FLOOR)])
        # A long thing beside a tall one is held nearer to its other end.
        along = np.array([fingers[1], -fingers[0], 0.0])
        free = max(0.0, float(np.abs(box.axes.T @ along) @ box.half) - 0.02)
        wrist = _Box(grasp, np.stack([along, fingers, [0, 0, 1]], axis=1), np.array([*_WRIST, 0.0]))
        shift = 0.0
        for other in others:
            tall = _ramp(other.top - grasp[2], _PALM_HEIGHT, _PALM_HEIGHT + 0.02)
            side = float(np.clip((other.middle - grasp) @ along / 0.02, -1, 1))
            shift -= side * tall * _ramp(wrist.gap(other), 0.01, -0.01)
        return grasp + along * free * np.clip(shift, -1, 1)

    def _lowest(self, goal: _Box, above: float) -> float:
        """Where the lower end of the object is let go [m]: on the plate; in the basket as low as the palm allows."""
        if self._into:
            return float(goal.bottom + max(0.05, goal.top - goal.bottom - 0.015 - above))
        return goal.bottom + 0.002

    def _turn(self, hand: Array, fingers: Array) -> Array:
        """(3,) rotation command that points the hand down with its fingers along ``fingers``."""
        down = np.array([0.0, 0.0, -1.0])
        target = np.stack([np.cross(fingers, down), fingers, down], axis=1)
        error = 0.5 * np.cross(hand, target, axis=0).sum(axis=1)
        return np.asarray(np.clip(0.6 * error, -0.6, 0.6))
