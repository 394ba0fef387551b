"""Scripted experts of a fake arm's tasks: what a person with a leader arm would do, from the true state.

An expert is a function of the present state alone, sensible wherever noise or a policy have brought the arm, and
changes smoothly with the state, so that a network can imitate it from pictures.
"""

from __future__ import annotations

import math

import numpy as np

from kairos_env.records import Array
from kairos_env.sims.robot.fake.arms import FakeArm

_LEAD = math.radians(8.0)  # a goal is at most that far from the measured place, all joints together
_REACHES, _PUSHES = math.radians(65.0), math.radians(78.0)  # pitch of the hand below the horizontal
_TOUCH = 0.035  # height of the finger tips over the table at the block [m]
_HOVER = 0.085  # and above it
_PUSH = 0.014
_BESIDE = 0.05  # how far beside the block the hand comes down [m]
_OUTSIDE = 0.028  # and farther out: fingers that lean inwards push a block outwards [m]
_CONTACT = 0.027  # between the middles of hand and block while it is pushed [m]


def joint_angles(arm: FakeArm, pan: float, reach: float, height: float, pitch: float = _REACHES) -> Array:
    """Angles (A,) [rad] that put the finger tips there, the hand pointing down and forward, the gripper closed.

    Args:
        arm: the arm.
        pan: direction from the base [rad].
        reach, height: of the tips from the base's axis and over the table [m]; a place out of reach is brought nearer.
        pitch: of the hand below the horizontal [rad].
    """
    out, up = reach - arm.hand * math.cos(pitch), height + arm.hand * math.sin(pitch) - arm.base
    far = float(np.clip(math.hypot(out, up), abs(arm.upper - arm.lower) + 1e-4, arm.upper + arm.lower - 1e-4))
    bend = math.acos((arm.upper**2 + far**2 - arm.lower**2) / (2 * arm.upper * far))
    rise = math.atan2(up, out) + bend  # of the upper arm over the horizontal
    scale = far / max(math.hypot(out, up), 1e-9)
    fall = math.atan2(arm.upper * math.sin(rise) - up * scale, out * scale - arm.upper * math.cos(rise))
    lift = math.pi / 2 - rise
    return np.array([pan, lift, fall - lift, pitch - fall, 0.0, 0.0])


def expert_goal(arm: FakeArm, task: str, angles: Array, tip: Array, block: Array, disc: Array) -> Array:
    """Where the expert of a task has the joints go from here (A,) [rad]; a step at a time.

    Args:
        arm: the arm.
        task: reach or push.
        angles: of the joints (A,).
        tip, block, disc: places (3,) [m] in the frame of the base.
    """
    if task not in _TARGETS:
        raise ValueError(f"there is no expert for {task!r}; there are those for {', '.join(_TARGETS)}")
    way = joint_angles(arm, *_TARGETS[task](tip, block, disc)) - angles
    return np.asarray(angles + way * min(1.0, _LEAD / max(float(np.abs(way).max()), 1e-9)))


def _reach(tip: Array, block: Array, disc: Array) -> tuple[float, float, float, float]:
    angle, far = _polar(block)
    return angle, far, max(_TOUCH, float(block[2]) + 0.019), _REACHES


def _push(tip: Array, block: Array, disc: Array) -> tuple[float, float, float, float]:
    """Down beside the block, then around the base's axis until it is on the disc, which is as far out as the block."""
    angle, far = _polar(block)
    goal, wanted = _polar(disc)
    here, out = _polar(tip)
    side = math.copysign(1.0, goal - angle)
    behind = side * (angle - here) * far  # how far the hand is behind the block [m]
    left = side * (goal - angle) * far
    ready = _ramp(behind, 0.5 * _CONTACT, 0.8 * _CONTACT) * _ramp(abs(out - far), 0.05, 0.035)
    low = _ramp(float(tip[2]), _PUSH + 0.022, _PUSH + 0.008) * ready
    height = _HOVER + (_PUSH - _HOVER) * ready * _ramp(abs(behind - _BESIDE), 0.03, 0.015)
    height = height + (_PUSH - height) * low
    beside = angle - side * _BESIDE / far
    pushed = angle + side * (max(0.0, left) - _CONTACT) / far
    aside = _OUTSIDE + float(np.clip(far - wanted, -0.02, 0.03))  # a hand farther out pushes the block inwards
    return (1 - low) * beside + low * pushed, far + aside, height, _PUSHES


_TARGETS = {"reach": _reach, "push": _push}


def _polar(place: Array) -> tuple[float, float]:
    """Direction [rad] and distance [m] from the base's axis."""
    return math.atan2(float(place[1]), float(place[0])), math.hypot(float(place[0]), float(place[1]))


def _ramp(value: float, low: float, high: float) -> float:
    """0 at ``low`` and below, 1 at ``high`` and above, linear between (``low`` may exceed ``high``)."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))
