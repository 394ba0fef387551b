"""Scripted experts for the table-top tasks.

An expert is a stateless function of the true state: its action is sensible in every state that noise, play or
another policy can reach, and changes smoothly with the state, so that a network can imitate it from pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kairos_env.records import Array
from kairos_env.sims.tabletop.arm import WORKSPACE_HIGH, WORKSPACE_LOW
from kairos_env.sims.tabletop.tasks import CUBE_REST_HEIGHT, TASKS, TaskState

MAX_STEP = 0.05
"""Largest displacement of one decision along an axis [m]."""
_GRASP_HEIGHT = 0.018  # of the grasp centre over the table when holding a resting cube [m]
_HOVER = 0.075  # grasp centre over the cube's centre when travelling above it [m]
_CARRY = 0.045  # height of the cube when it is carried [m]
_PUSH_HEIGHT = 0.022
_PUSH_HOVER = 0.095
_PUSH_GRIPPER = 1.0  # pushing with closed fingers: half-open ones wedge a corner of the cube and lift it


def _ramp(value: float, low: float, high: float) -> float:
    """0 at ``low`` and below, 1 at ``high`` and above, linear between (``low`` may exceed ``high``)."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def _toward(offset: Array, limit: float = MAX_STEP) -> Array:
    """The offset, shortened along its direction until no axis exceeds ``limit``."""
    return offset / max(1.0, float(np.abs(offset).max()) / limit)


def _action(delta: Array, gripper: float) -> Array:
    return np.append(np.clip(delta, -MAX_STEP, MAX_STEP), np.clip(gripper, -1.0, 1.0)).astype(np.float32)


def _approach_cube(state: TaskState) -> Array:
    """(3,) step towards straddling the cube: along a funnel whose rim clears the cube's top."""
    offset = state.cube - state.eef
    aside = float(np.linalg.norm(offset[:2]))
    above = _HOVER * _ramp(aside, 0.010, 0.035)
    # Closed fingers would land on the cube: wait above it until they are open, unless they are around it already.
    around = _ramp(aside, 0.025, 0.015) * _ramp(-offset[2], 0.03, 0.02)
    above = max(above, _HOVER * _ramp(state.opening, 0.07, 0.055) * (1 - around))
    height = max(state.cube[2], _GRASP_HEIGHT) + above
    climb = height - state.eef[2]
    # Too low beside the cube: rise before moving over it.
    blocked = _ramp(climb, 0.02, 0.05) * _ramp(aside, 0.02, 0.03) * _ramp(aside, 0.12, 0.07)
    return np.append(_toward(offset[:2]) * (1 - 0.9 * blocked), np.clip(climb, -MAX_STEP, MAX_STEP))


def _reach(state: TaskState) -> Array:
    return _action(_approach_cube(state), -1.0)


def _lift(state: TaskState) -> Array:
    offset = state.cube - state.eef
    aside = float(np.linalg.norm(offset[:2]))
    around = _ramp(aside, 0.025, 0.015) * _ramp(abs(float(offset[2])), 0.022, 0.014)
    held = around * _ramp(state.opening, 0.060, 0.050)
    raise_to = CUBE_REST_HEIGHT + 0.09 - state.eef[2]
    approach = _approach_cube(state)
    delta = approach * (1 - held) + held * np.array([0.0, 0.0, np.clip(raise_to, -MAX_STEP, MAX_STEP)])
    return _action(delta, 2 * around - 1)


def _put_down(state: TaskState) -> tuple[float, Array, float]:
    """Letting go of a cube between the fingers: how much that applies (0 ... 1), step (3,) and gripper command."""
    offset = state.cube - state.eef
    around = _ramp(float(np.linalg.norm(offset[:2])), 0.032, 0.025) * _ramp(-float(offset[2]), 0.030, 0.024)
    around *= _ramp(state.opening, 0.025, 0.035)  # fingers closer than that hold nothing
    low = _ramp(state.height, 0.02, 0.008)
    sink = np.array([0.0, 0.0, -np.clip(state.height, 0.0, MAX_STEP)])
    rise = np.array([0.0, 0.0, MAX_STEP]) * _ramp(state.opening, 0.060, 0.070)
    return around, (1 - low) * sink + low * rise, 1 - 2 * low


def _push(state: TaskState) -> Array:
    """Closed fingers behind the cube push it along the line to the disc; elsewhere, travel there above the cube."""
    to_goal = (state.goal - state.cube)[:2]
    remaining = float(np.linalg.norm(to_goal))
    start = np.clip(state.cube[:2] - 0.055 * to_goal / max(remaining, 1e-6), WORKSPACE_LOW[:2], WORKSPACE_HIGH[:2])
    forward = (state.cube[:2] - start) / max(float(np.linalg.norm(state.cube[:2] - start)), 1e-6)
    sideways = np.array([-forward[1], forward[0]])
    relative = (state.eef - state.cube)[:2]
    along, lateral = float(relative @ forward), float(relative @ sideways)
    # The push line: straight behind the cube, from 7 cm away up to contact.
    off_line = float(np.hypot(lateral, max(0.0, along + 0.030) + max(0.0, -0.075 - along)))
    # Fingers that stand on the cube's edge would only press it down: up and off.
    perched = _ramp(state.eef[2], 0.034, 0.042) * _ramp(along, -0.026, -0.018)
    perched *= _ramp(float(np.linalg.norm(relative)), 0.036, 0.028)
    above = _PUSH_HOVER * max(_ramp(off_line, 0.012, 0.040), perched)
    climb = _PUSH_HEIGHT + above - state.eef[2]
    ready = _ramp(off_line, 0.030, 0.012) * _ramp(state.eef[2], 0.055, 0.040) * (1 - perched)
    gap = max(0.0, -along - 0.032)
    push = forward * min(0.04, 0.9 * max(remaining - 0.010, 0.0) + gap) - sideways * 0.9 * lateral
    blocked = _ramp(climb, 0.02, 0.05)
    delta = ready * push + (1 - ready) * _toward(start - state.eef[:2]) * (1 - 0.9 * blocked)
    travel = np.append(_toward(delta), np.clip(climb, -MAX_STEP, MAX_STEP))
    holding, release, gripper = _put_down(state)
    return _action((1 - holding) * travel + holding * release, (1 - holding) * _PUSH_GRIPPER + holding * gripper)


def _place(state: TaskState) -> Array:
    """Grasps the cube, carries it over the disc, sets it down, lets go and rises."""
    offset = state.cube - state.eef
    aside = float(np.linalg.norm(offset[:2]))
    around = _ramp(aside, 0.025, 0.015) * _ramp(abs(float(offset[2])), 0.022, 0.014)
    held = around * _ramp(state.opening, 0.066, 0.058)  # even a cube held by its edges is thinner
    to_goal = (state.goal - state.cube)[:2]
    remaining = float(np.linalg.norm(to_goal))
    over = _ramp(remaining, 0.030, 0.012)  # the disc is below the cube
    there = over * _ramp(state.height, 0.014, 0.006)  # and the cube stands on it

    # high enough to pass over the table before travelling, down again over the disc
    carry_height = (1 - over) * _CARRY - state.height
    travel = _toward(to_goal) * max(_ramp(state.height, 0.004, 0.020), over)
    carry = np.append(travel, np.clip(carry_height, -MAX_STEP, MAX_STEP))
    rise = np.array([0.0, 0.0, MAX_STEP]) * _ramp(state.opening, 0.050, 0.065)
    rise = rise * _ramp(state.eef[2] - state.cube[2], 0.10, 0.08)
    away = (1 - held) * _approach_cube(state) + held * carry
    return _action((1 - there) * away + there * rise, (1 - there) * (2 * around - 1) - there)


_EXPERTS: dict[str, Callable[[TaskState], Array]] = {"reach": _reach, "push": _push, "lift": _lift, "place": _place}


def expert_action(task: str, state: TaskState) -> Array:
    """(4,) float32 action of the scripted expert of ``task`` in ``state``."""
    if task not in _EXPERTS:
        raise ValueError(f"unknown task {task!r}; there are experts for {list(TASKS)}")
    return _EXPERTS[task](state)
