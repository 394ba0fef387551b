"""Behaviour by wrapping: how the chunks of any policy become single actions."""

from __future__ import annotations

import numpy as np

from kairos_env.policies.policy import Policy, follow
from kairos_env.records import ActionChunk, Array, Observation


class ChunkExecution:
    """Executes the first ``execute`` actions of each chunk before the policy decides again.

    Between decisions the policy is told what was seen and done, if it remembers (`follow`).
    """

    def __init__(self, policy: Policy, execute: int) -> None:
        if execute < 1:
            raise ValueError(f"execute must be >= 1, got {execute}")
        self.policy = policy
        self.execute = execute
        self._queue: list[Array] = []

    def reset(self, seed: int | None = None) -> None:
        self.policy.reset(seed)
        self._queue = []

    def chunk(self, observation: Observation) -> ActionChunk:
        return ActionChunk(self.policy.chunk(observation).actions[: self.execute])

    def act(self, observation: Observation) -> Array:
        if not self._queue:
            self._queue = list(self.chunk(observation).actions)
        action = self._queue.pop(0)
        self.follow(observation, action)
        return action

    def follow(self, observation: Observation, action: Array) -> None:
        follow(self.policy, observation, action)


class TemporalEnsembling:
    """Asks for a chunk at every step and averages all that was ever said about the present step.

    The prediction made i decisions after the oldest one that still covers the step has weight
    exp(-decay * i), so small decay means slow, smooth reaction (Zhao et al. 2023, arXiv 2304.13705).
    """

    def __init__(self, policy: Policy, decay: float = 0.01) -> None:
        if not decay >= 0:
            raise ValueError(f"decay must be >= 0, got {decay}")
        self.policy = policy
        self.decay = decay
        self._chunks: list[Array] = []  # oldest first, each already cut to begin at the present step

    def reset(self, seed: int | None = None) -> None:
        self.policy.reset(seed)
        self._chunks = []

    def chunk(self, observation: Observation) -> ActionChunk:
        """The ensembled present and future: as long as the newest chunk."""
        self._chunks = [*self._chunks, self.policy.chunk(observation).actions]
        length = len(self._chunks[-1])
        ensembled = np.stack([self._average(t) for t in range(length)]).astype(np.float32)
        self._chunks = [c[1:] for c in self._chunks if len(c) > 1]
        self.follow(observation, ensembled[0])
        return ActionChunk(ensembled)

    def act(self, observation: Observation) -> Array:
        return self.chunk(observation).actions[0]

    def follow(self, observation: Observation, action: Array) -> None:
        follow(self.policy, observation, action)

    def _average(self, step: int) -> Array:
        said = np.stack([c[step] for c in self._chunks if len(c) > step])  # (K, A)
        weights = np.exp(-self.decay * np.arange(len(said)))
        return (weights / weights.sum()) @ said
