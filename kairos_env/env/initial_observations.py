"""Initial observations of imagined episodes: always real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from kairos_env.records import Observation, SpecMismatch
from kairos_env.runs import did_you_mean
from kairos_env.sims.make import make_simulator, spec_of
from kairos_env.sims.simulator import matching_task

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel

Start = str | Observation | Sequence[Observation] | gym.Env[Any, Any]


class InitialObservations:
    """Draws the first observations of episodes.

    Args:
        start: ``"dataset"`` (the real observations that ship with the model), an `Observation` or several, the
            id of a simulator (``"Kairos-Robosuite-v0"``, ``"Kairos-LIBERO-v0"``, ``module:factory``; made with the
            model's cameras and rate, and reset for every episode), or such a simulator, which then stays the
            caller's to close.
        model: whose robot they must show.

    Raises:
        SpecMismatch: another robot.
        ValueError: the model ships no observations, or an unknown id.
    """

    def __init__(self, start: Start, model: WorldModel) -> None:
        self.spec = model.imagined_spec
        self.model_tasks = model.tasks
        self.recorded: list[Observation] = []
        self.simulator: gym.Env[Any, Any] | None = None
        self._made_simulator = False
        self.shipped = isinstance(start, str) and start == "dataset"  # with the model
        if self.shipped:
            # Which task a bundled observation was recorded for says nothing about what is wanted now.
            self.recorded = [dataclasses.replace(o, instruction="") for o in model.starts]
            if not self.recorded:
                raise ValueError(
                    "this model ships no start observations; pass start='Kairos-Robosuite-v0' (a simulator), "
                    "start=Observation(...), or reset(options={'observation': ...})"
                )
        elif isinstance(start, str):
            self.simulator, self._made_simulator = self._make(start), True
        elif isinstance(start, gym.Env):
            self.spec.require_same(spec_of(start), "model", "simulator")
            self.simulator = start
        elif isinstance(start, Observation):
            self.recorded = [start]
        elif isinstance(start, list | tuple) and start and all(isinstance(o, Observation) for o in start):
            self.recorded = list(start)
        else:
            raise TypeError(
                f"start is a {type(start).__name__}; use 'dataset', a simulator or its id, an Observation, "
                "or a list of at least one Observation"
            )
        for observation in self.recorded:
            observation.check(self.spec)
        if self.simulator is not None:
            inner: Any = self.simulator.unwrapped
            # A simulator keeps the task of its last reset; an episode without one gets the task it was made with.
            self._default_task = getattr(inner, "task", None)
            self._simulator_tasks: Mapping[str, str] = inner.tasks() if hasattr(inner, "tasks") else {}

    def draw(self, seed: int, task: str | None, options: Mapping[str, Any]) -> Observation:
        """The first observation of the episode ``seed``; its instruction is empty where it implies none.

        Args:
            seed: picks it.
            task: of the model, which a simulator is asked to set up; None is the simulator's own default.
            options: ``initial_state`` (int) picks one of the simulator's initial states, or of the recorded ones,
                where it may also be called ``start``.
        """
        index, state = options.get("start"), options.get("initial_state")
        if self.simulator is not None:
            if index is not None:
                raise ValueError("reset got start=..., but starts come from a simulator; pass initial_state=...")
            wish = {"task": self._default_task if task is None else self.task_there(task), "initial_state": state}
            observed, info = self.simulator.reset(seed=seed, options={k: v for k, v in wish.items() if v is not None})
            return Observation.from_gym(observed, info.get("instruction", ""))
        if index is not None and state is not None:
            raise ValueError(f"reset got start={index!r} and initial_state={state!r}, which mean the same; pass one")
        count, index = len(self.recorded), state if index is None else index
        if index is None:
            # A generator of its own: the start depends on the episode's seed alone, not on what ran before.
            index = int(np.random.default_rng(seed).integers(count))
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise ValueError(f"start={index!r}: give the index of a recorded start, 0 ... {count - 1}")
        if not 0 <= index < count:
            raise ValueError(f"start {index} does not exist; there are {count}: 0 ... {count - 1}")
        return self.recorded[index]

    def count(self, task: str | None = None) -> int | None:
        """The number n of initial states of a task, which are 0 ... n - 1; None where any number is one."""
        if self.simulator is None:
            return len(self.recorded)
        counted = getattr(self.simulator.unwrapped, "initial_states", lambda task: None)
        found: int | None = counted(task if task is None else self.task_there(task))
        return found

    def close(self) -> None:
        """Closes the simulator that was made here."""
        if self.simulator is not None and self._made_simulator:
            self.simulator.close()
            self._made_simulator = False

    def _make(self, name: str) -> gym.Env[Any, Any]:
        try:
            return make_simulator(name, self.spec)
        except SpecMismatch:
            raise
        except ValueError as error:
            raise ValueError(f"start {name!r} is neither 'dataset' nor a simulator: {error}") from None

    def task_there(self, task: str) -> str:
        """The simulator's name of the model's ``task``: the same, one that ends so, or that of the same instruction."""
        there = self._simulator_tasks
        found = matching_task(task, self.model_tasks.get(task, ""), there) if there else task
        if found is None:
            raise ValueError(f"the simulator of the starts has no task {task!r}; {did_you_mean(task, there)}")
        return found
