"""Where imagined episodes begin: always a real observation, never a dreamt one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from kairos_env.records import Observation, SpecMismatch
from kairos_env.sims.make import make_simulator

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel

Start = str | Observation | Sequence[Observation] | gym.Env[Any, Any]


class Starts:
    """Draws start observations.

    Args:
        start: ``"dataset"`` (the real starts that ship with the model), an `Observation` or several, the
            id of a simulator (``"Kairos-Robosuite-v0"``; made with the model's cameras, and reset for
            every start), or such a simulator, which then stays the caller's to close.
        model: whose robot the starts must show.

    Raises:
        SpecMismatch: another robot.
        ValueError: the model ships no starts, or an unknown id.
    """

    def __init__(self, start: Start, model: WorldModel) -> None:
        self.spec = model.spec
        self.observations: list[Observation] = []
        self.simulator: gym.Env[Any, Any] | None = None
        self._made_simulator = False
        self._simulator_task: str | None = None
        if isinstance(start, str) and start == "dataset":
            # Which task a bundled start was recorded for says nothing about what is wanted now.
            self.observations = [dataclasses.replace(o, instruction="") for o in model.starts]
            if not self.observations:
                raise ValueError(
                    "this model ships no start observations; pass start='Kairos-Robosuite-v0' (a simulator), "
                    "start=Observation(...), or reset(options={'observation': ...})"
                )
        elif isinstance(start, str):
            self.simulator, self._made_simulator = self._make(start), True
        elif isinstance(start, gym.Env):
            self.simulator = start
        elif isinstance(start, Observation):
            self.observations = [start]
        elif isinstance(start, list | tuple) and start and all(isinstance(o, Observation) for o in start):
            self.observations = list(start)
        else:
            raise TypeError(
                f"start is a {type(start).__name__}; use 'dataset', a simulator or its id, an Observation, "
                "or a list of at least one Observation"
            )
        for observation in self.observations:
            observation.check(self.spec)
        if self.simulator is not None:
            theirs = getattr(self.simulator.unwrapped, "robot_spec", None)
            if theirs is None:
                raise TypeError(f"{self.simulator} has no robot_spec, so it cannot be matched with the model's robot")
            self.spec.require_same(theirs)
            # Simulators keep the task of their last reset; ours fall back to the one they were made with.
            self._simulator_task = getattr(self.simulator.unwrapped, "task", None)

    def draw(self, seed: int, task: str | None, options: Mapping[str, Any]) -> Observation:
        """The start of the episode ``seed``; its instruction is empty where the start implies none.

        Args:
            seed: picks the start.
            task: what a simulator is asked to set up; None is its own default.
            options: ``start`` (int) picks one of the observations instead, ``initial_state`` (int) one
                of the simulator's starts.
        """
        index, state_id = options.get("start"), options.get("initial_state")
        if self.simulator is not None:
            if index is not None:
                raise ValueError("reset got start=..., but starts come from a simulator; pass initial_state=...")
            wish = {"task": task or self._simulator_task, "initial_state": state_id}
            observed, info = self.simulator.reset(seed=seed, options={k: v for k, v in wish.items() if v is not None})
            return Observation.from_gym(observed, info.get("instruction", ""))
        if state_id is not None:
            raise ValueError("reset got initial_state=..., but starts are recorded; pass start=... (their index)")
        count = len(self.observations)
        if index is None:
            # A generator of its own: the start depends on the episode's seed alone, not on what ran before.
            index = int(np.random.default_rng(seed).integers(count))
        if not 0 <= index < count:
            raise ValueError(f"start {index} does not exist; there are {count}: 0 ... {count - 1}")
        return self.observations[index]

    def close(self) -> None:
        """Closes the simulator that was made here."""
        if self.simulator is not None and self._made_simulator:
            self.simulator.close()
            self._made_simulator = False

    def _make(self, environment_id: str) -> gym.Env[Any, Any]:
        try:
            return make_simulator(environment_id, self.spec)
        except SpecMismatch:
            raise
        except ValueError as error:
            raise ValueError(f"start {environment_id!r} is neither 'dataset' nor a simulator: {error}") from None
