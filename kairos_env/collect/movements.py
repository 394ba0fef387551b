"""What behaviours are made of: the scripted expert, clean and noisy, random play, staying still.

Random play reads the true state from ``info`` and moves any robot whose action displaces its hand; experts need a
simulator with ``expert_action(task)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kairos_env.records import Array, Field, Observation, RobotSpec

_LARGEST_WORKSPACE = 1.0  # m; a wider range of the hand's position says nothing about where it can work
_AROUND = 0.2  # m; random play then stays this close to where the hand began


class Behaviour(Protocol):
    """Chooses the actions of one episode."""

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        """(A,) float32 in physical units, for the state that ``info`` describes."""
        ...

    def follow(self, observation: Observation, action: Array) -> None:
        """Tells what is really executed."""


class Forgetful:
    """Reads the true state, so that what was executed before does not matter."""

    def follow(self, observation: Observation, action: Array) -> None:
        pass


class Expert(Forgetful):
    """The scripted expert of the episode's task, without noise."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        if not hasattr(env, "expert_action"):
            raise ValueError(f"{type(env).__name__} has no scripted expert: choose another behaviour")
        self.env, self.task, self.rng = env, task, rng

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        """(A,) float32 for the state that ``info`` describes."""
        return np.asarray(self.env.expert_action(self.task), np.float32)


class Wander(Forgetful):
    """Smooth random play: straight, noisy moves to random way-points, the gripper held for a while.

    Way-points lie anywhere in the workspace, or near the object where the interesting things happen.
    """

    def __init__(self, env: Any, task: str, rng: np.random.Generator, near_object: bool = False) -> None:
        self.spec, self.rng, self.near_object = env.robot_spec, rng, near_object
        self.moves, self.metres, self.gripper_index = hand_motion(self.spec)
        self.limit = self.spec.action_high[self.moves] * self.metres
        self.workspace: tuple[Array, Array] | None = None
        self.waypoint: Array = np.zeros(3)
        self.gripper, self.pace, self.left = 0.0, 1.0, 0

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        eef = np.asarray(info["privileged"]["eef_position"], float)
        if self.workspace is None:
            self.workspace = _workspace(self.spec, eef)
        if self.left == 0 or np.linalg.norm(self.waypoint - eef) < 0.01:
            self._choose(info["privileged"])
        self.left -= 1
        delta = self.waypoint - eef
        # one step of at most `pace` times the limit along the straight line, not clipped axis by axis
        delta *= min(1.0, self.pace / max(1e-6, float(np.max(np.abs(delta) / self.limit))))
        move = delta + self.rng.normal(0, 0.15, 3) * self.limit
        action = np.zeros(self.spec.action_dim, np.float32)
        action[self.moves] = move / self.metres
        if self.gripper_index is not None:
            action[self.gripper_index] = self.gripper
        return self.spec.check_action(action)

    def _choose(self, privileged: Mapping[str, Any]) -> None:
        assert self.workspace is not None, "set by the first act"
        low, high = self.workspace
        self.waypoint = self.rng.uniform(low, high)
        if self.near_object:
            wanted = np.asarray(privileged["objects"][privileged["interest"][0]]["position"])
            self.waypoint = np.clip(wanted + self.rng.normal(0, [0.06, 0.06, 0.03]), low, high)
        closed, opened = (-1.0, 1.0)
        if self.gripper_index is not None:
            field = self.spec.action[self.gripper_index]
            closed, opened = field.low, field.high
        self.gripper = float(self.rng.choice([closed, opened, self.rng.uniform(closed, opened)]))
        self.pace = self.rng.uniform(0.4, 1.0)
        self.left = int(self.rng.integers(3, 8))


class Attracted(Wander):
    """Random play around the object: pushes it, grasps it by chance, knocks it away."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        super().__init__(env, task, rng, near_object=True)


class NoisyExpert(Expert):
    """The expert with correlated noise, disturbed by bursts of random play from which it recovers.

    After success has been held for a while it does something else, so that the data also show how a
    finished task is undone and begun again.
    """

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        super().__init__(env, task, rng)
        self.scale = rng.uniform(0.03, 0.4)
        self.noise: Array = np.zeros(3)
        self.burst, self.patience = 0, int(rng.integers(2, 9))
        self.play = Wander(env, task, rng)

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        solved = info.get("task_success", {self.task: info["success"]})
        if solved[self.task]:
            self.patience -= 1
            if self.patience == 0:
                self.task, self.burst = str(self.rng.choice(list(solved))), int(self.rng.integers(2, 6))
                self.patience = int(self.rng.integers(2, 9))
        elif self.burst == 0 and self.rng.random() < 0.035:
            self.burst = int(self.rng.integers(1, 5))
        if self.burst > 0:
            self.burst -= 1
            return self.play.act(observation, info)
        spec, moves, gripper = self.play.spec, self.play.moves, self.play.gripper_index
        action = np.array(super().act(observation, info), np.float32)
        self.noise = 0.6 * self.noise + 0.8 * self.rng.normal(0, self.scale, 3)
        action[moves] += self.noise * spec.action_high[moves]
        if self.rng.random() < 0.02 and gripper is not None:
            action[gripper] = spec.action_low[gripper] + spec.action_high[gripper] - action[gripper]
        return spec.check_action(action)


class Beside(Wander):
    """Random play in contact: through the cube from any side, onto it, to and fro beside it, mostly closed.

    These are the places in which policies stall.
    """

    def _choose(self, privileged: Mapping[str, Any]) -> None:
        super()._choose(privileged)
        assert self.workspace is not None, "set by the first act"
        wanted = np.asarray(privileged["objects"][privileged["interest"][0]]["position"], float)
        eef = np.asarray(privileged["eef_position"], float)
        angle, radius = self.rng.uniform(-np.pi, np.pi), self.rng.uniform(0.03, 0.06)
        place = wanted + np.append(radius * np.array([np.cos(angle), np.sin(angle)]), self.rng.uniform(0.0, 0.01))
        kind = self.rng.random()
        if kind < 0.4:  # straight through, from wherever the hand is
            through = (wanted - eef)[:2]
            place[:2] = wanted[:2] + 0.06 * through / max(float(np.linalg.norm(through)), 1e-6)
        elif kind < 0.6:  # on top
            place = wanted + np.append(self.rng.normal(0, 0.012, 2), 0.03)
        self.waypoint = np.clip(place, *self.workspace)
        if self.rng.random() < 0.6 and self.gripper_index is not None:
            self.gripper = self.spec.action[self.gripper_index].high


class Hold(Forgetful):
    """The hand stays where it is; the gripper keeps its command for a while, then opens or closes in place.

    Args:
        env, task, rng: as of every behaviour.
        gripper: the first command; None: drawn, as the later ones are.
    """

    def __init__(self, env: Any, task: str, rng: np.random.Generator, gripper: float | None = None) -> None:
        self.spec, self.rng = env.robot_spec, rng
        self.gripper_index = hand_motion(self.spec)[2]
        self.gripper, self.left = gripper, int(rng.integers(6, 25))

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        action = np.zeros(self.spec.action_dim, np.float32)
        if self.gripper_index is not None:
            if self.left == 0 or self.gripper is None:
                field = self.spec.action[self.gripper_index]
                middle = (field.low + field.high) / 2
                self.gripper = float(
                    self.rng.choice([field.low, field.high, middle, self.rng.uniform(field.low, field.high)])
                )
                self.left = int(self.rng.integers(3, 25))
            self.left -= 1
            action[self.gripper_index] = self.gripper
        return self.spec.check_action(action)


def hand_motion(spec: RobotSpec) -> tuple[list[int], Array, int | None]:
    """Indices in the action of the hand's motion along x, y, z, the metres of their units, and the gripper's index.

    Raises:
        ValueError: the robot's action is of another kind.
    """
    moves = [i for i, field in enumerate(spec.action) if field.kind == "delta_position"]
    if len(moves) != 3:
        raise ValueError(
            f"random play moves a hand along x, y and z, but the action of {spec.name!r} has {len(moves)} fields of "
            "the kind delta_position: choose another behaviour"
        )
    gripper = next((i for i, field in enumerate(spec.action) if field.kind == "gripper"), None)
    return moves, np.array([_metres(spec.action[i]) for i in moves]), gripper


def _metres(field: Field) -> float:
    """Metres a unit of the field: its unit is ``m``, or a multiple such as ``0.2 m``."""
    factor, _, unit = field.unit.rpartition(" ")
    if unit != "m":
        raise ValueError(f"action field {field.name!r} is in {field.unit!r}; random play needs metres")
    return float(factor or 1)


def _workspace(spec: RobotSpec, eef: Array) -> tuple[Array, Array]:
    """Lowest and highest way-point (3,): the declared range of the hand, or a box around where it is."""
    fields = [spec.proprio[index] for index in spec.hand_fields]
    low, high = (np.array([getattr(field, side) for field in fields]) for side in ("low", "high"))
    if not fields or np.max(high - low) > _LARGEST_WORKSPACE:
        return eef - _AROUND, eef + _AROUND
    return low, high
