"""Acting with a world model: its own policy, action-only, and the memory that every such policy keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.policies.planners.planning import PlanningModel, as_array
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
                self._state = self.model.observe([observation], self._state, self._led()[None])
            self._action = None
            self.decisions += 1
        return self._state

    @staticmethod
    def see_together(memories: Sequence[Memory], observations: Sequence[Observation], size: int) -> None:
        """`see` for different episodes of one `WorldModel`, in passes of exactly ``size`` rows.

        Equal up to rounding: a row's last bits depend on where in the pass it stands.
        """
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
                leads = np.stack([group[row][0]._led() for row in rows])
                state = model.observe(batch, type(states[0]).cat(states), leads)
            for row, (memory, _) in enumerate(group):
                memory._state, memory._action = state.select([row]), None
                memory.decisions += 1
        for memory, observation in pairs:
            memory._seen = observation

    def _instructed(self, observation: Observation) -> Observation:
        if self._instruction is None:
            return observation
        return dataclasses.replace(observation, instruction=self._instruction)

    def _led(self) -> Array:
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

    @staticmethod
    def act_together(
        policies: Sequence[WorldModelPolicy], observations: Sequence[Observation], size: int
    ) -> list[Array]:
        """`act` for different episodes of policies that share a model, in passes of exactly ``size`` rows.

        Faster than one by one where a pass costs little more for many rows; see `Memory.see_together` for what it
        does to the last bits.
        """
        Memory.see_together([policy.memory for policy in policies], observations, size)
        deciding = [policy for policy in policies if not policy._queue]
        if deciding:
            states = [policy.memory.state for policy in deciding]
            model: Any = deciding[0].memory.model
            batch = type(states[0]).cat([states[row] for row in pad_rows(len(states), size)])
            for policy, chunk in zip(deciding, as_array(model.act(batch, steps=deciding[0].steps)), strict=False):
                policy._queue = list(model.spec.check_action(chunk)[: policy.execute])
        actions = [policy._queue.pop(0) for policy in policies]
        for policy, action in zip(policies, actions, strict=True):
            policy.memory.did(action)
        return actions


def pad_rows(count: int, size: int) -> list[int]:
    """Indices of ``size`` rows: those that there are, and the first one again for the rest."""
    if not 1 <= count <= size:
        raise ValueError(f"{count} rows do not fit into a pass of {size}")
    return [*range(count), *[0] * (size - count)]
