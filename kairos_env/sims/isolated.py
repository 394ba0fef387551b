"""Any simulator in a process of its own, run by this very interpreter: it can die or hang without taking us along.

Both sides are here: `IsolatedSimulator` in the parent, and the worker, which is this module run as a program.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kairos_env.records import Array, RobotSpec
from kairos_env.sims.make import make_simulator
from kairos_env.sims.process import Reply, SimulatorError, SimulatorProcess, serve
from kairos_env.sims.process_simulator import ProcessSimulator
from kairos_env.sims.simulator import StepResult


class IsolatedSimulator(ProcessSimulator):
    """A simulator of a Gymnasium id or of ``module:factory``, simulated elsewhere; a drop-in for it.

    What it offers beside the contract (``draw``, ``observe``) is asked for with `call`.

    Args:
        name: see `make_simulator`.
        options: arguments of the simulator, JSON values.
        time_limit_s: for one answer.
        wait: False returns while the simulator is being built; nothing but `ready` may be called then.

    Raises:
        ValueError, ImportError: it cannot be built like this.
        SimulatorError, SimulatorCrashed, SimulatorTimeout: it cannot be built for another reason.
    """

    def __init__(
        self, name: str, options: Mapping[str, Any] | None = None, time_limit_s: float = 300.0, wait: bool = True
    ) -> None:
        self._closed = False
        self.time_limit_s = time_limit_s
        self._made_of = {"name": name, "arguments": packed(options or {}, {}, as_lists=True)}
        self._send("open", **self._made_of)
        if wait:
            self.ready()

    def ready(self) -> IsolatedSimulator:
        """Waits until the simulator is built; robot and spaces are known from then on."""
        try:
            known = unpacked(self._receive())
        except SimulatorError as error:
            self.close()
            raise _as_raised(error, ("ValueError", "ImportError", "SpecMismatch", "FileNotFoundError")) from error
        spec, mode = RobotSpec.from_dict(known["robot_spec"]), known["render_mode"]
        super().__init__(spec, mode, known["images"], known["reward"])
        self.reset_options = tuple(known["reset_options"])  # type: ignore[misc]
        return self

    def _launch(self) -> SimulatorProcess:
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # one busy core each
        return SimulatorProcess(sys.executable, __name__, environment, self.time_limit_s, path=sys.path)

    @property
    def task(self) -> str:  # type: ignore[override]
        return self.call("task")

    @property
    def max_episode_steps(self) -> int:  # type: ignore[override]
        return self.call("max_episode_steps")

    def tasks(self) -> Mapping[str, str]:
        return self.call("tasks")

    def initial_states(self, task: str | None = None) -> int | None:
        return self.call("initial_states", task)

    def versions(self) -> dict[str, str]:
        return self.call("versions")

    def expert_action(self, task: str | None = None) -> Array:
        return self.call("expert_action", task)

    def get_state(self) -> dict[str, Array]:
        return self.call("get_state")

    def set_state(self, state: Mapping[str, Array]) -> Any:
        return self.call("set_state", dict(state))

    def render(self) -> Array | None:  # type: ignore[override]
        return self.call("render")

    def call(self, name: str, *arguments: Any) -> Any:
        """The simulator's attribute of that name; if it is a method, what it returns."""
        if self._process is None:
            self._require_begun()  # a new process starts with a reset
        self._send("call", name=name, arguments=packed(list(arguments), {}, as_lists=True))
        return unpacked(self._receive())

    def send_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        self.require_open()
        wanted = self.check_options(options)
        options = packed(wanted, {}, as_lists=True)
        self._send_reset(seed=None if seed is None else int(seed), options=options, **self._made_of)

    def send_step(self, action: Array) -> None:
        self._require_begun()
        self._send("step", action=self.check_action(action).tolist())

    def receive(self) -> StepResult:
        """See `ProcessSimulator.receive`. An option that the simulator refuses is a ValueError, as it is there."""
        start = self._waits_for == "reset"
        try:
            return super().receive()
        except SimulatorError as error:
            if start:
                raise _as_raised(error, ("ValueError", "TypeError")) from error
            raise

    def _result(self, reply: Reply, start: bool) -> StepResult:
        observation, reward, terminated, truncated, info = unpacked(reply)
        return observation, reward, terminated, truncated, info


def _as_raised(error: SimulatorError, kinds: tuple[str, ...]) -> Exception:
    """The error as the simulator raised it, if it is one of ``kinds``."""
    if error.kind not in kinds:
        return error
    message = str(error).removeprefix(f"{error.kind}: ")
    known: dict[str, type[Exception]] = {"ImportError": ImportError, "FileNotFoundError": FileNotFoundError}
    return known.get(error.kind, ValueError)(message)


def packed(value: Any, arrays: dict[str, Array], as_lists: bool = False) -> Any:
    """``value`` as JSON, its arrays apart: put into ``arrays``, or (``as_lists``) written out with their type."""
    if isinstance(value, np.ndarray):
        if as_lists:
            return {"__list__": value.tolist(), "dtype": value.dtype.str}
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"__array__": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): packed(item, arrays, as_lists) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [packed(item, arrays, as_lists) for item in value]
    return value


def unpacked(reply: Reply) -> Any:
    """The value that was `packed` into an answer."""
    return _restored(reply.values["value"], reply.arrays)


def _restored(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, dict):
        if "__array__" in value:
            return arrays[value["__array__"]]
        if "__list__" in value:
            return np.array(value["__list__"], value["dtype"])
        return {key: _restored(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, arrays) for item in value]
    return value


class _Worker:
    """The process's side: methods are what the parent may ask for."""

    def __init__(self) -> None:
        self._env: Any = None

    def open(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._env = make_simulator(name, **_restored(arguments, {})).unwrapped
        spaces = self._env.observation_space.spaces
        return self._answer(
            {
                "robot_spec": self._env.robot_spec.to_dict(),
                "render_mode": getattr(self._env, "render_mode", None),
                "images": any(key.startswith("image_") for key in spaces),
                "reward": getattr(self._env, "reward_form", "dense"),
                "reset_options": list(getattr(self._env, "reset_options", ("task", "initial_state"))),
            }
        )

    def reset(self, seed: int | None, options: dict[str, Any], **made_of: Any) -> dict[str, Any]:
        if self._env is None:  # the process before this one died
            self.open(**made_of)
        observation, info = self._env.reset(seed=seed, options=_restored(options, {}))
        return self._answer([observation, 0.0, False, False, info])

    def step(self, action: list[float]) -> dict[str, Any]:
        return self._answer(self._env.step(np.array(action, np.float32)))

    def call(self, name: str, arguments: list[Any]) -> dict[str, Any]:
        found: Callable[..., Any] | Any = getattr(self._env, name)
        return self._answer(found(*_restored(arguments, {})) if callable(found) else found)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()

    def _answer(self, value: Any) -> dict[str, Any]:
        arrays: dict[str, Array] = {}
        return {"value": packed(value, arrays)} | arrays


if __name__ == "__main__":
    serve(_Worker())
