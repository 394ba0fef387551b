"""The table-top tasks: instruction, success and a dense reward for each, from the true state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kairos_env.records import Array

TASKS: dict[str, str] = {
    "reach": "move the gripper to the red cube",
    "push": "push the red cube onto the green disc",
    "lift": "lift the red cube",
    "place": "set the red cube down on the green disc",
}
"""Task name -> instruction. `place` is in no recording of the bundled model: it is there to be learned."""

INTEREST = {"reach": ("cube",), "push": ("cube", "goal"), "lift": ("cube",), "place": ("cube", "goal")}
"""Task name -> the objects that it is about, the one to be moved first."""

REACH_RADIUS = 0.03
"""`reach` succeeds with the gripper's grasp centre this close to the cube's centre [m]."""
PUSH_RADIUS = 0.045
"""`push` succeeds with the cube's centre this close to the disc's centre, on the table [m]: the disc's radius."""
LET_GO = 0.05
"""`place` succeeds as `push` does, with the gripper open and its grasp centre this far above the cube's [m]."""
LIFT_HEIGHT = 0.05
"""`lift` succeeds with the cube raised this much [m]."""
CUBE_REST_HEIGHT = 0.02
"""Height of the centre of a resting cube over the table [m]."""


@dataclass(frozen=True)
class TaskState:
    """The true state that rewards and experts look at; positions in metres relative to the table-top centre.

    Args:
        eef: (3,) grasp centre of the gripper.
        cube: (3,) centre of the cube.
        goal: (3,) centre of the goal disc.
        opening: gripper opening [m], 0 closed ... 0.08 open.
    """

    eef: Array
    cube: Array
    goal: Array
    opening: float

    @property
    def reach_distance(self) -> float:
        return float(np.linalg.norm(self.eef - self.cube))

    @property
    def goal_distance(self) -> float:
        """Horizontal distance of cube and disc centre [m]."""
        return float(np.linalg.norm((self.cube - self.goal)[:2]))

    @property
    def height(self) -> float:
        """How far the cube is raised [m]."""
        return float(self.cube[2] - CUBE_REST_HEIGHT)


def _reach(state: TaskState) -> tuple[float, bool]:
    excess = max(state.reach_distance - REACH_RADIUS, 0.0)
    return 0.95 * (1 - np.tanh(5 * excess)), state.reach_distance < REACH_RADIUS


def _push(state: TaskState) -> tuple[float, bool]:
    """Getting behind the cube (0.3) and bringing it to the disc (0.65)."""
    away = (state.cube - state.goal)[:2]
    behind = state.cube + np.append(0.045 * away / max(float(np.linalg.norm(away)), 1e-6), 0.0)
    approach = 1 - np.tanh(6 * max(float(np.linalg.norm(state.eef - behind)) - 0.02, 0.0))
    progress = 1 - min(max(state.goal_distance - PUSH_RADIUS, 0.0) / 0.3, 1.0)
    success = state.goal_distance < PUSH_RADIUS and state.height < 0.01
    return 0.3 * approach + 0.65 * progress, success


def _lift(state: TaskState) -> tuple[float, bool]:
    """Getting around the cube (0.3), closing on it (0.2) and raising it (0.45)."""
    approach = 1 - np.tanh(6 * state.reach_distance)
    around = np.exp(-((state.reach_distance / 0.025) ** 2))
    closed = np.clip((0.08 - state.opening) / 0.036, 0.0, 1.0)
    raised = np.clip(state.height / LIFT_HEIGHT, 0.0, 1.0)
    return 0.3 * approach + 0.2 * around * closed + 0.45 * raised, state.height > LIFT_HEIGHT


def _place(state: TaskState) -> tuple[float, bool]:
    """Getting around the cube (0.2), closing on it (0.1), bringing it to the disc (0.4), letting go there (0.2)."""
    approach = 1 - np.tanh(6 * state.reach_distance)
    around = np.exp(-((state.reach_distance / 0.025) ** 2))
    closed = np.clip((0.08 - state.opening) / 0.036, 0.0, 1.0)
    progress = 1 - min(max(state.goal_distance - PUSH_RADIUS, 0.0) / 0.3, 1.0)
    there = state.goal_distance < PUSH_RADIUS and state.height < 0.01
    above = state.eef[2] - state.cube[2]
    success = there and state.opening > 0.06 and above > LET_GO
    if there:  # what mattered before, the hand around the cube, no longer does
        return 0.7 + 0.2 * np.clip(above / LET_GO, 0.0, 1.0), success
    return 0.2 * approach + 0.1 * around * closed + 0.4 * progress, success


_MEASURES: dict[str, Callable[[TaskState], tuple[float, bool]]] = {
    "reach": _reach,
    "push": _push,
    "lift": _lift,
    "place": _place,
}


def measure(state: TaskState) -> tuple[dict[str, float], dict[str, bool]]:
    """Reward (0 ... 1, exactly 1 only on success) and success of every task in this state."""
    outcomes = {task: of(state) for task, of in _MEASURES.items()}
    success = {task: bool(done) for task, (_, done) in outcomes.items()}
    rewards = {task: 1.0 if success[task] else float(reward) for task, (reward, _) in outcomes.items()}
    return rewards, success
