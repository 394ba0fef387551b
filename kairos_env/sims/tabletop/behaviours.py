"""Who acts while data are recorded: the scripted expert, clean and disturbed, and random play.

Good data for a world model are varied: success and failure, contact from every side, recovery after a
disturbance, and what comes after success. A behaviour reads the true state from ``info`` and acts on any
simulator that has a ``robot_spec`` of three position deltas and a gripper, and ``expert_action(task)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from kairos_env.records import Array


class Behaviour(Protocol):
    """Chooses the actions of one episode."""

    def act(self, info: Mapping[str, Any]) -> Array:
        """(A,) float32 in physical units, for the state that ``info`` describes."""
        ...


class Expert:
    """The scripted expert of the episode's task, without noise."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        self.env, self.task, self.rng = env, task, rng

    def act(self, info: Mapping[str, Any]) -> Array:
        """(A,) float32 for the state that ``info`` describes."""
        return np.asarray(self.env.expert_action(self.task), np.float32)


class Wander:
    """Smooth random play: straight, noisy moves to random way-points, the gripper held for a while.

    Way-points lie anywhere in the workspace, or near the object where the interesting things happen.
    """

    def __init__(self, env: Any, task: str, rng: np.random.Generator, near_object: bool = False) -> None:
        self.spec, self.rng, self.near_object = env.robot_spec, rng, near_object
        self.waypoint: Array = np.zeros(3)
        self.gripper, self.pace, self.left = 0.0, 1.0, 0

    def act(self, info: Mapping[str, Any]) -> Array:
        limit = self.spec.action_high[:3]
        eef = np.asarray(info["privileged"]["eef_position"], float)
        if self.left == 0 or np.linalg.norm(self.waypoint - eef) < 0.01:
            low, high = (np.array([getattr(f, side) for f in self.spec.proprio[:3]]) for side in ("low", "high"))
            self.waypoint = self.rng.uniform(low, high)
            if self.near_object:
                cube = np.asarray(info["privileged"]["objects"]["cube"]["position"])
                near = cube + self.rng.normal(0, [0.06, 0.06, 0.03])
                self.waypoint = np.clip(near, low, high)
            self.gripper = float(self.rng.choice([-1.0, 1.0, self.rng.uniform(-1, 1)]))
            self.pace = self.rng.uniform(0.4, 1.0)
            self.left = int(self.rng.integers(3, 8))
        self.left -= 1
        delta = self.waypoint - eef
        # one step of at most `pace` times the limit along the straight line, not clipped axis by axis
        delta *= min(1.0, self.pace / max(1e-6, float(np.max(np.abs(delta) / limit))))
        move = delta + self.rng.normal(0, 0.15, 3) * limit
        return self.spec.check_action(np.array([*move, self.gripper], np.float32))


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

    def act(self, info: Mapping[str, Any]) -> Array:
        if info["task_success"][self.task]:
            self.patience -= 1
            if self.patience == 0:
                self.task, self.burst = str(self.rng.choice(list(info["task_success"]))), int(self.rng.integers(2, 6))
                self.patience = int(self.rng.integers(2, 9))
        elif self.burst == 0 and self.rng.random() < 0.035:
            self.burst = int(self.rng.integers(1, 5))
        if self.burst > 0:
            self.burst -= 1
            return self.play.act(info)
        spec = self.env.robot_spec
        action = np.array(super().act(info), np.float32)
        self.noise = 0.6 * self.noise + 0.8 * self.rng.normal(0, self.scale, 3)
        action[:3] += self.noise * spec.action_high[:3]
        if self.rng.random() < 0.02:
            action[3] = -action[3]
        return spec.check_action(action)


BEHAVIOURS: dict[str, Callable[[Any, str, np.random.Generator], Behaviour]] = {
    "expert": Expert,
    "noisy_expert": NoisyExpert,
    "attracted": Attracted,
    "random": Wander,
}
