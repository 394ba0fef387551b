"""The loop that moves an arm: beats at a fixed rate, each of them a bounded goal and a measurement."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from kairos_env.records import Array
from kairos_env.sims.robot.bounds import Clip
from kairos_env.sims.robot.clock import CountedClock, SteadyClock
from kairos_env.sims.robot.driver import BusError, Measured
from kairos_env.sims.robot.safety import NotArmed, State, Supervisor

Ending = Literal["hold", "relax"]
_PATIENCE_S = 0.1  # a stop waits that long for a motion that holds the bus; the motion ends itself when it gets on


class ArmDriver(Protocol):
    """What the loop needs of a driver, see `driver.Driver`."""

    powered: bool

    def read(self) -> Measured: ...
    def send(self, goal: Array) -> Array: ...
    def power_on(self) -> None: ...
    def relax(self) -> list[str]: ...


class ControlLoop:
    """One armed arm, its supervisor and its clock; every method may be called from any thread.

    Args:
        arm: the driver.
        supervisor: which everything sent passes.
        clock: of the beats; the supervisor's too.
        on_stop: what a stop ends in: the arm holds where it is, or its servos lose their torque.
        on_exit: what closing ends in.
        watch: whether a thread looks for commands that do not come.

    Attributes:
        sent: the last goal that LeRobot says it sent (A,).
        clips: what was changed in the last decision.
        late_beats: since the beginning.
        read_at: when the last measurement began [monotonic s].
        lost: servos that did not confirm that they were switched off.
    """

    def __init__(
        self,
        arm: ArmDriver,
        supervisor: Supervisor,
        clock: SteadyClock | CountedClock,
        on_stop: Ending = "hold",
        on_exit: Ending = "hold",
        watch: bool = True,
    ) -> None:
        for name, value in (("on_stop", on_stop), ("on_exit", on_exit)):
            if value not in ("hold", "relax"):
                raise ValueError(f"{name}={value!r}: give 'hold' or 'relax'")
        self.arm, self.supervisor, self.clock, self.on_stop, self.on_exit = arm, supervisor, clock, on_stop, on_exit
        self.positions: Array = np.zeros(len(supervisor.limits.names))
        self.sent: Array | None = None
        self.clips: list[Clip] = []
        self.late_beats, self.read_at, self.lost = 0, time.monotonic(), []  # type: int, float, list[str]
        self.ages: Callable[[], float] = lambda: 0.0
        self._bus = threading.RLock()
        self._interrupt, self._ending = threading.Event(), threading.Event()
        self._ended_in: str = ""
        self._held = False  # its goal is where it was when it began to hold; told anew, it would sink each time
        self._asked_at = time.monotonic()
        self._watch = threading.Thread(target=self._watch_for_silence, name="watchdog", daemon=True)
        if watch:
            self._watch.start()

    def measure(self) -> Array:
        """Reads once; positions (A,). A reading that fails leaves the old ones, and the supervisor knows."""
        with self._bus:
            self.read_at = time.monotonic()
            try:
                found = self.arm.read()
            except BusError as error:
                self.supervisor.missed(str(error), error.gone)
            else:
                self.positions = found.positions
                self.supervisor.observe(found.positions, self.ages(), found.loads, found.faults)
            self._end_if_stopped()
        return self.positions

    def power_on(self, person: str) -> None:
        """Arms the robot, and switches torque on where it is.

        Raises:
            NotArmed: see `Supervisor.arm`; torque is as it was.
            BusError: the servos do not answer; they were switched off again.
        """
        with self._bus:
            self._interrupt.clear()
            self._ended_in, self._held = "", False
            for _ in range(3):
                before = self.supervisor.missed_beats
                self.measure()
                if self.supervisor.missed_beats <= before:
                    break
            self.supervisor.arm(person)
            try:
                if not self.arm.powered:
                    self.arm.power_on()
            except BaseException as error:
                self.supervisor.stop(f"torque could not be switched on: {error}")
                self.lost = self.arm.relax()
                raise
            self._asked_at = time.monotonic()
            self.clock.start()

    def decide(self, command: Any, beats: int = 1) -> None:
        """Follows a command for some beats.

        Raises:
            UnsafeCommand: it was refused; nothing was sent, and one beat has passed.
            NotArmed: the robot was stopped, before or meanwhile.
        """
        self.clips = []
        for _ in range(beats):
            self._asked_at = time.monotonic()
            try:
                self._beat(command)
            finally:
                self._end_if_stopped()
        self._asked_at = time.monotonic()
        if self.supervisor.state is State.STOPPED:
            raise NotArmed(f"the robot was stopped ({self.supervisor.reason}); a person has to look at it and arm it")

    def _beat(self, command: Any) -> None:
        try:
            with self._bus:
                decision = self.supervisor.command(command)
                self.clips += decision.clips
                if decision.goal is not None and not self._interrupt.is_set():
                    try:
                        self._held = False
                        self.sent = self.arm.send(decision.goal)
                    except BusError as error:
                        self.supervisor.missed(str(error), error.gone)
        finally:
            late = self.clock.wait(self._interrupt)
            self.late_beats += late > self.supervisor.limits.late_s
            self.supervisor.late(late)
            if not self._interrupt.is_set():
                self.measure()

    def stop(self, reason: str) -> None:
        """Stops from any thread: nothing is sent from now on but what `on_stop` says. Returns soon in any case."""
        self.supervisor.stop(reason)
        self._interrupt.set()
        if self._bus.acquire(timeout=_PATIENCE_S):
            try:
                self._end_if_stopped()
            finally:
                self._bus.release()

    def close(self) -> None:
        """Ends in `on_exit`, whatever the state; safe to call twice."""
        if self._ending.is_set():
            return
        self._ending.set()
        self._interrupt.set()
        with self._bus:
            if self._ended_in != "relax":
                self._end_in(self.on_exit)
            self.supervisor.disarm()

    def _end_if_stopped(self) -> None:
        if self.supervisor.state is State.STOPPED and not self._ended_in:
            with self._bus:
                self._end_in(self.on_stop)

    def _end_in(self, what: Ending) -> None:
        if not self.arm.powered:
            return
        self._ended_in = what
        if what == "hold":
            goal = None if self._held else self.supervisor.hold_goal()
            try:
                if goal is not None:
                    self.sent = self.arm.send(goal)
                    self._held = True
            except BusError:
                pass  # the servos have their last goal, a step from where they are
        else:
            self.lost = self.arm.relax()

    def _watch_for_silence(self) -> None:
        limits = self.supervisor.limits
        while not self._ending.wait(limits.command_s / 4):
            silent = time.monotonic() - self._asked_at
            if silent < limits.command_s or self.supervisor.state not in (State.ARMED, State.HOLDING):
                continue
            if not self._bus.acquire(timeout=_PATIENCE_S):
                continue
            try:
                held = self.supervisor.state is State.HOLDING
                self.supervisor.silent(f"no command came for {silent:.2f} s")
                if not held:
                    self._end_in("hold")
                    self._ended_in = ""
                self.measure()
                if silent > limits.command_s + limits.stop_s:
                    self.supervisor.stop(f"no command came for {silent:.2f} s")
                    self._end_if_stopped()
            finally:
                self._bus.release()
