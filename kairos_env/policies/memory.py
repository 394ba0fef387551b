"""The memory of policies: a model's state, kept up to date with what was seen and done."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kairos_env.policies.chunking import ChunkPolicy, pad_rows
from kairos_env.records import ActionChunk, Array, Observation, RobotSpec


class ObservingModel(Protocol):
    """The verb that remembering takes. States are values: forked freely, never changed."""

    @property
    def spec(self) -> RobotSpec: ...

    @property
    def tasks(self) -> Mapping[str, str]: ...

    def observe(
        self,
        observation: Observation | Sequence[Observation],
        state: Any = None,
        action: Any = None,
        seeds: Sequence[int] | None = None,
    ) -> Any: ...


class Memory:
    """The model's state of one episode, kept up to date with what was seen and what was done.

    Every observation enters the model once, with the action that led to it, so that the model's window
    holds an unbroken history.

    Args:
        task: one of ``model.tasks``; its instruction replaces the observation's.
        instruction: free text that replaces the observation's; at most one of both.
        seed: of the sequence from which `reset` without a seed draws.
    """

    def __init__(
        self, model: ObservingModel, task: str | None = None, instruction: str | None = None, seed: int = 0
    ) -> None:
        if task is not None and instruction is not None:
            raise ValueError(f"give a task or an instruction, not both: {task!r} and {instruction!r}")
        if task is not None and task not in model.tasks:
            raise ValueError(f"the model has no task {task!r}; it has {', '.join(model.tasks)}")
        self.model = model
        self._instruction = model.tasks[task] if task is not None else instruction
        self._sequence = np.random.default_rng(seed)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Forgets the episode; see `Policy.reset`."""
        self.seed = int(self._sequence.integers(2**31)) if seed is None else int(seed)
        self.decisions = 0
        self._state: Any = None
        self._seen: Observation | None = None
        self._action: Array | None = None

    @property
    def state(self) -> Any:
        """The state (batch 1) after the last observation; None before the first."""
        return self._state

    def see(self, observation: Observation) -> Any:
        """The state (batch 1) after ``observation``; the same object is taken in once."""
        if observation is not self._seen:
            self._seen = observation
            observation = self._instructed(observation)
            if self._state is None:
                self._state = self.model.observe([observation], seeds=[self.seed])
            else:
                self._state = self.model.observe([observation], self._state, self._previous_action()[None])
            self._action = None
            self.decisions += 1
        return self._state

    @staticmethod
    def see_together(memories: Sequence[Memory], observations: Sequence[Observation], size: int) -> None:
        """`see` for different episodes of one `WorldModel`; see `ChunkPolicy.act_together`."""
        pairs = [(m, o) for m, o in zip(memories, observations, strict=True) if o is not m._seen]
        first = [(m, m._instructed(o)) for m, o in pairs if m._state is None]
        later = [(m, m._instructed(o)) for m, o in pairs if m._state is not None]
        for group in (g for g in (first, later) if g):
            rows = pad_rows(len(group), size)
            model: Any = group[0][0].model
            batch = [group[row][1] for row in rows]
            if group is first:
                state = model.observe(batch, seeds=[group[row][0].seed for row in rows])
            else:
                states = [group[row][0]._state for row in rows]
                previous = np.stack([group[row][0]._previous_action() for row in rows])
                state = model.observe(batch, type(states[0]).cat(states), previous)
            for row, (memory, _) in enumerate(group):
                memory._state, memory._action = state.select([row]), None
                memory.decisions += 1
        for memory, observation in pairs:
            memory._seen = observation

    def _instructed(self, observation: Observation) -> Observation:
        if self._instruction is None:
            return observation
        return dataclasses.replace(observation, instruction=self._instruction)

    def _previous_action(self) -> Array:
        """The action that led from the last observation to the next."""
        if self._action is None:
            raise RuntimeError(
                "two observations without an action between them: call act, or follow(observation, action), "
                "once for every observation, and reset() when a new episode starts"
            )
        return self._action

    def did(self, action: Array) -> None:
        """The robot executes ``action`` (A,) from the last observation."""
        self._action = self.model.spec.check_action(action)


class RememberingPolicy(ChunkPolicy):
    """A policy over a model's memory. It looks at every observation, so that the memory has no gap.

    Args:
        memory: of the episode.
        execute: actions executed per decision.
    """

    def __init__(self, memory: Memory, execute: int = 1) -> None:
        super().__init__(execute)
        self.memory = memory

    @abstractmethod
    def decide(self, state: Any) -> Array:
        """The next actions (N, A) from ``state`` (batch 1), physical units."""

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self.memory.reset(seed)

    def chunk(self, observation: Observation) -> ActionChunk:
        actions = self.memory.model.spec.check_action(self.decide(self.memory.see(observation)))
        self.memory.did(actions[0])
        return ActionChunk(actions)

    def follow(self, observation: Observation, action: Array) -> None:
        self.memory.see(observation)
        self.memory.did(action)

    @classmethod
    def observe_together(cls, policies: Sequence[Any], observations: Sequence[Observation], size: int) -> None:
        Memory.see_together([policy.memory for policy in policies], observations, size)
