"""Simulators whose worker runs in a process of its own, asked at once or in halves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from kairos_env.records import Array
from kairos_env.sims.process import Reply, SimulatorCrashed, SimulatorProcess
from kairos_env.sims.simulator import Simulator, StepResult


class ProcessSimulator(Simulator):
    """The parent's side of a simulator in a process of its own; an `AsyncSimulator`.

    A subclass checks options and actions here, before anything is sent (`send_reset`, `send_step`), starts the process
    (`_launch`), and makes of its answers what `step` returns (`_result`). What raises, dies or hangs over there is an
    exception here, and the next reset starts a new process.

    Attributes:
        time_limit_s: for one answer.
    """

    time_limit_s: float = 300.0
    _process: SimulatorProcess | None = None
    _waits_for: str = ""
    _begun: bool = False  # whether the process holds an episode

    @abstractmethod
    def _launch(self) -> SimulatorProcess:
        """A fresh process."""

    @abstractmethod
    def _result(self, reply: Reply, start: bool) -> StepResult:
        """What an answer to "reset" (``start``) or "step" says."""

    @abstractmethod
    def send_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """The first half of `reset`: does not wait for the simulator, and gives up an answer that was not received."""

    @abstractmethod
    def send_step(self, action: Array) -> None:
        """The first half of `step`: does not wait for the simulator."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode; see `reset_options`."""
        self.send_reset(seed=seed, options=options)
        observation, _, _, _, info = self.receive()
        return observation, info

    def step(self, action: Array) -> StepResult:
        """Simulates one decision; ``action`` is float32 (A,), see `robot_spec`."""
        self.send_step(action)
        return self.receive()

    def fileno(self) -> int:
        """Readable when `receive` will not wait, for `selectors`."""
        self.require_open()
        if self._process is None:
            raise gym.error.ResetNeeded("call reset() first: the simulator has not been started")
        return self._process.fileno()

    def receive(self) -> StepResult:
        """The second half of `reset` (reward 0, nothing ended) and of `step`.

        Raises:
            SimulatorError, SimulatorCrashed, SimulatorTimeout: see `process`; the next `reset` starts a new process.
        """
        start = self._waits_for == "reset"
        return self._result(self._receive(), start)

    def close(self) -> None:
        """Ends the simulator's process; safe to call twice."""
        self._drop()
        self._closed = True

    def _require_begun(self) -> None:
        self.require_open()
        if not self._begun:
            raise gym.error.ResetNeeded("call reset() first")

    def _call(self, method: str, **arguments: Any) -> Reply:
        """Asks the process for something else than a reset or step of the episode that it holds."""
        self._require_begun()
        self._send(method, **arguments)
        return self._receive()

    def _send(self, method: str, **arguments: Any) -> None:
        self.require_open()
        if self._process is None:
            self._process = self._launch()
        self._process.time_limit_s = self.time_limit_s
        try:
            self._process.send(method, **arguments)
        except SimulatorCrashed:
            self._drop()
            raise
        self._waits_for = method

    def _send_reset(self, **arguments: Any) -> None:
        """Sends "reset", to a new process if the present one still owes an answer."""
        if self._waits_for:
            self._drop()
        self._begun = True
        self._send("reset", **arguments)

    def _receive(self) -> Reply:
        if self._process is None or not self._waits_for:
            raise RuntimeError("nothing was sent")
        self._waits_for = ""
        try:
            return self._process.receive()
        except BaseException:  # an interrupt, too: nobody will ask for that answer again
            self._drop()
            raise

    def _drop(self) -> None:
        """Ends the process, and with it the episode."""
        process, self._process, self._waits_for, self._begun = self._process, None, "", False
        if process is not None:
            process.close()
