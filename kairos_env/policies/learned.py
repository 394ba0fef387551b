"""Acting with a world model: its own policy, action-only, and the memory that every such policy keeps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.policies.planning import PlanningModel, as_array
from kairos_env.records import ActionChunk, Array, Observation

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


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
        self, model: PlanningModel, task: str | None = None, instruction: str | None = None, seed: int = 0
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

    def see(self, observation: Observation) -> Any:
        """The state (batch 1) after ``observation``; the same object is taken in once."""
        if observation is not self._seen:
            self._seen = observation
            if self._instruction is not None:
                observation = dataclasses.replace(observation, instruction=self._instruction)
            if self._state is None:
                self._state = self.model.observe([observation], seeds=[self.seed])
            else:
                if self._action is None:
                    raise RuntimeError(
                        "two observations without an action between them: call act, or follow(observation, action), "
                        "once for every observation, and reset() when a new episode starts"
                    )
                self._state = self.model.observe([observation], self._state, self._action[None])
            self._action = None
            self.decisions += 1
        return self._state

    def did(self, action: Array) -> None:
        """The robot executes ``action`` (A,) from the last observation."""
        self._action = self.model.spec.check_action(action)


class ChunkPolicy:
    """A policy that decides for several actions at a time and executes ``execute`` of them.

    It still looks at every observation, so that its memory has no gap. Subclasses say what to do in
    `decide`.
    """

    def __init__(self, memory: Memory, execute: int = 1) -> None:
        if execute < 1:
            raise ValueError(f"execute must be >= 1, got {execute}")
        self.memory = memory
        self.execute = execute
        self._queue: list[Array] = []

    def decide(self, state: Any) -> Array:
        """The next actions (N, A) from ``state`` (batch 1)."""
        raise NotImplementedError("decide(state) -> actions (N, A)")

    def reset(self, seed: int | None = None) -> None:
        self.memory.reset(seed)
        self._queue = []

    def act(self, observation: Observation) -> Array:
        if self._queue:
            self.memory.see(observation)
        else:
            self._queue = list(self.chunk(observation).actions[: self.execute])
        action = self._queue.pop(0)
        self.memory.did(action)
        return action

    def chunk(self, observation: Observation) -> ActionChunk:
        actions = self.memory.model.spec.check_action(self.decide(self.memory.see(observation)))
        self.memory.did(actions[0])
        return ActionChunk(actions)

    def follow(self, observation: Observation, action: Array) -> None:
        self.memory.see(observation)
        self.memory.did(action)


class WorldModelPolicy(ChunkPolicy):
    """Action-only inference: the model's action expert on real observations; no video is imagined.

    Args:
        model: a world model whose spec is the robot's.
        task, instruction: replace the observation's instruction; see `Memory`.
        steps: denoising steps of the actions; None is the model's default.
        execute: actions executed per decision, at most the model's chunk length.
        seed: of the sequence from which `reset` without a seed draws.
    """

    def __init__(
        self,
        model: WorldModel,
        task: str | None = None,
        instruction: str | None = None,
        steps: int | None = None,
        execute: int = 1,
        seed: int = 0,
    ) -> None:
        if execute > model.chunk_length:
            raise ValueError(f"the model proposes {model.chunk_length} actions at a time, cannot execute {execute}")
        super().__init__(Memory(model, task, instruction, seed), execute)
        self.steps = steps

    def decide(self, state: Any) -> Array:
        model: Any = self.memory.model
        return as_array(model.act(state, steps=self.steps))[0]
