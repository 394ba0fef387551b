"""Policies without learning: smooth random play, a recorded sequence, the simulator's own expert."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from kairos_env.policies.chunking import ChunkPolicy
from kairos_env.policies.planners.action_sampling import ActionDistribution, stay
from kairos_env.records import ActionChunk, Array, Observation, RobotSpec


class RandomPolicy(ChunkPolicy):
    """Smooth random play: actions correlated over time, a gripper that opens and closes now and then.

    Args:
        spec: the robot.
        seed: of the sequence from which `reset` without a seed draws.
        spread, smoothness: see `ActionDistribution.around`.
    """

    _LENGTH = 24  # steps drawn at once; the noise is correlated inside such a chunk

    def __init__(self, spec: RobotSpec, seed: int = 0, spread: float = 0.6, smoothness: float = 0.8) -> None:
        super().__init__(execute=self._LENGTH)
        self._distribution = ActionDistribution.around(spec, self._LENGTH, None, spread, smoothness)
        self._sequence = np.random.default_rng(seed)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self._rng = np.random.default_rng(int(self._sequence.integers(2**31)) if seed is None else seed)

    def chunk(self, observation: Observation) -> ActionChunk:
        return ActionChunk(self._distribution.sample(1, self._rng)[0])


class ReplayPolicy:
    """Plays given actions, one a step, from the start after every reset.

    Args:
        actions: (T, A), physical units.
        spec: clips and checks the actions; also needed for ``after="stay"``.
        after: at the end ``"error"`` raises, ``"stay"`` makes the robot keep where it is.
    """

    def __init__(self, actions: Array, spec: RobotSpec, after: Literal["error", "stay"] = "error") -> None:
        if after not in ("error", "stay"):
            raise ValueError(f'after must be "error" or "stay", got {after!r}')
        self._actions = np.atleast_2d(spec.check_action(actions))
        self._spec = spec
        self._after = after
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        self._step = 0
        self._acted_from: Observation | None = None

    def act(self, observation: Observation) -> Array:
        action = self.chunk(observation).actions[0]
        self._step += 1
        self._acted_from = observation
        return action

    def chunk(self, observation: Observation) -> ActionChunk:
        rest = self._actions[self._step :]
        if len(rest):
            return ActionChunk(rest.copy())
        if self._after == "error":
            raise IndexError(
                f"all {len(self._actions)} recorded actions are played; call reset(), or build "
                'ReplayPolicy(..., after="stay") to stand still from here on'
            )
        return ActionChunk(stay(self._spec, self._actions[-1])[None])

    def follow(self, observation: Observation, action: Array) -> None:
        if observation is not self._acted_from:  # else a wrapper corrects what `act` has counted
            self._step += 1
            self._acted_from = observation


class ExpertPolicy:
    """The simulator's scripted expert: reads the true state, so it is an upper bound and not a policy for robots.

    Args:
        env: the running environment, wrapped or not; it must have ``expert_action(task)``.
        task: which task the expert solves; None is the environment's own.
    """

    def __init__(self, env: Any, task: str | None = None) -> None:
        if not hasattr(env.unwrapped, "expert_action"):
            raise TypeError(
                f"{type(env.unwrapped).__name__} has no scripted expert (expert_action(task) -> action); "
                "use an environment of Kairos-Robosuite-v0 or Kairos-LIBERO-v0, or another policy"
            )
        self._expert = env.unwrapped.expert_action
        self._task = task

    def reset(self, seed: int | None = None) -> None:
        """Nothing to forget here: the environment makes a new expert at each of its resets."""

    def act(self, observation: Observation) -> Array:
        return np.asarray(self._expert(self._task), np.float32)

    def chunk(self, observation: Observation) -> ActionChunk:
        return ActionChunk(self.act(observation)[None])
