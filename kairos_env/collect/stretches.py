"""Behaviours that change within an episode: stillness, recovery from trouble, the experts of several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kairos_env.collect.movements import (
    Attracted,
    Behaviour,
    Beside,
    Expert,
    Forgetful,
    Hold,
    NoisyExpert,
    Wander,
    hand_motion,
)
from kairos_env.records import Array, Observation


class Stretches(Forgetful):
    """One behaviour after another, each for some decisions; what comes next is drawn by `choose`."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        self.env, self.task, self.rng = env, task, rng
        self.gripper_index = hand_motion(env.robot_spec)[2]
        self.now: Behaviour = Hold(env, task, rng)
        self.left, self.count = 0, 0
        self.gripper: float | None = None

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        if self.left == 0:
            self.now, self.left = self.choose(self.count, list(info.get("task_success", (self.task,))))
            self.count += 1
        self.left -= 1
        action = self.now.act(observation, info)
        if self.gripper_index is not None:
            self.gripper = float(action[self.gripper_index])
        return action

    def choose(self, number: int, tasks: list[str]) -> tuple[Behaviour, int]:
        """The stretch of that number and its decisions; ``tasks`` are those of the scene."""
        raise NotImplementedError

    def some_expert(self, tasks: list[str]) -> Behaviour:
        """The expert of one of the tasks, at times with noise."""
        kind = Expert if self.rng.random() < 0.5 else NoisyExpert
        return kind(self.env, str(self.rng.choice(tasks)), self.rng)


class Still(Stretches):
    """Nothing is done: in half of the episodes all the time, in the others for stretches amid other behaviour."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        super().__init__(env, task, rng)
        self.always = rng.random() < 0.5

    def choose(self, number: int, tasks: list[str]) -> tuple[Behaviour, int]:
        if self.always or number % 2 == 1:
            return Hold(self.env, self.task, self.rng, self.gripper), int(self.rng.integers(8, 25))
        kind = self.rng.random()
        if kind < 0.6:
            other = self.some_expert(tasks)
        else:
            other = (Attracted if kind < 0.85 else Wander)(self.env, self.task, self.rng)
        return other, int(self.rng.integers(3, 15))


class Recovery(Stretches):
    """The expert from the states in which policies stall, again and again.

    The trouble before it: the cube pushed from a wrong side, the fingers beside or on top of it, let fall, or what the
    expert of another task has left behind.
    """

    def choose(self, number: int, tasks: list[str]) -> tuple[Behaviour, int]:
        if number % 2 == 1:
            kind = Expert if self.rng.random() < 0.7 else NoisyExpert
            return kind(self.env, self.task, self.rng), int(self.rng.integers(10, 22))
        trouble = self.rng.random()
        if trouble < 0.5:
            return Beside(self.env, self.task, self.rng), int(self.rng.integers(4, 12))
        if trouble < 0.8:
            return self.some_expert(tasks), int(self.rng.integers(3, 14))
        if trouble < 0.9 and self.gripper_index is not None:  # lets go wherever it is
            opened = self.env.robot_spec.action[self.gripper_index].low
            return Hold(self.env, self.task, self.rng, opened), int(self.rng.integers(2, 4))
        return Wander(self.env, self.task, self.rng), int(self.rng.integers(3, 8))


class Mixed(Stretches):
    """The experts of all tasks in turn, each for a while."""

    def choose(self, number: int, tasks: list[str]) -> tuple[Behaviour, int]:
        return self.some_expert(tasks), int(self.rng.integers(6, 18))
