"""A policy and a model that keep account of what they are told, for the tests of queues and memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kairos_env.policies import example_observation
from kairos_env.records import ActionChunk, Array, Observation
from kairos_env.sims.tabletop.env import TASKS, make_spec

SPEC = make_spec()


class Counting:
    """A chunk policy that says (decision + step) / 1000 on every axis, and remembers what it is told."""

    def __init__(self, length: int = 4) -> None:
        self.length = length
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        self.decisions = 0
        self.told: list[tuple[Observation, Array]] = []

    def chunk(self, observation: Observation) -> ActionChunk:
        steps = np.arange(self.length) + 10 * self.decisions
        self.decisions += 1
        return ActionChunk(np.repeat(steps[:, None] / 1000, 4, axis=1).astype(np.float32))

    def act(self, observation: Observation) -> Array:
        return self.chunk(observation).actions[0]

    def follow(self, observation: Observation, action: Array) -> None:
        self.told.append((observation, action))


class WindowModel:
    """Stands for a world model: its state is the list of all that it was told."""

    spec, tasks, chunk_length, execute, fresh = SPEC, TASKS, 3, 1, False

    def __init__(self) -> None:
        self.asked = 0

    def observe(
        self, obs: Sequence[Observation], state: Any = None, action: Any = None, seeds: Any = None
    ) -> tuple[Any, ...]:
        if state is None:
            return ("start", tuple(seeds), obs[0].instruction, obs[0].proprio[0])
        return (*state, tuple(np.round(action[0], 4)), obs[0].proprio[0])

    def act(self, state: tuple[Any, ...], steps: int | None = None, seeds: Any = None) -> Array:
        self.asked += 1
        rng = np.random.default_rng([state[1][0], len(state)])
        return rng.uniform(-0.04, 0.04, (1, self.chunk_length, 4)).astype(np.float32)


def see(x: float = 0.0) -> Observation:
    shown = example_observation(SPEC)
    return Observation(shown.images, np.array([x, 0, 0.1, 0.04], np.float32), shown.instruction)
