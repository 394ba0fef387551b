"""Many simulators at once: ``gym.make_vec("Kairos-Robosuite-v0", num_envs=4)``, the same for every simulator.

Every sub-environment is simulated in a process of its own, all at the same time. Sub-environment i of a reset with seed
s goes through the same episodes as the single environment reset with seed s + i, its later automatic resets included.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from kairos_env.autoreset import AutoresetVectorEnv, Reset, VectorStep, autoreset_mode_of, check_num_envs, rows_info
from kairos_env.records import Array
from kairos_env.sims.isolated import IsolatedSimulator
from kairos_env.sims.make import find_simulator, make_simulator
from kairos_env.sims.process import SimulatorCrashed, SimulatorError, SimulatorTimeout
from kairos_env.sims.process_simulator import ProcessSimulator
from kairos_env.sims.reward import step_reward
from kairos_env.sims.simulator import AnswersAtOnce, AsyncSimulator, Simulator

_FAILURES = (SimulatorError, SimulatorCrashed, SimulatorTimeout)


class _Outcome(NamedTuple):
    """What a reset or a step of one sub-environment came to; its observation is in the batch."""

    info: dict[str, Any]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


class SimulatorVectorEnv(AutoresetVectorEnv):
    """``num_envs`` robots, each in a simulator of its own.

    Observations, rewards, ends and ``info`` are those of the single simulator, with a leading axis; ``info`` has
    Gymnasium's ``_key`` masks.

    A simulator that raises, dies or does not answer in time takes nothing else down. Its episode is truncated with
    the last observation and the reward of a decision that came to nothing, ``info["error"]`` says what happened, and
    its next reset starts a new process. If even the reset fails, its ``info`` has the ``error``, and the episode is
    truncated in its first step.

    Args:
        simulator: Gymnasium id, ``module:factory``, or a class that is importable by its name.
        num_envs: number of sub-environments.
        tasks: what each of them starts with, if not all the same: a task, or a mapping with arguments of the
            simulator's constructor.
        autoreset_mode: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``, see `AutoresetVectorEnv`.
        processes: False simulates one after another in this process, which saves the memory and time that processes
            take. One that raises is then reset as it is; one that hangs or dies takes all along.
        time_limit_s: for one answer of a simulator, its construction included.
        settings: the other arguments of the simulator, for all; ``render_mode`` is one of them.

    Attributes:
        envs: the sub-environments, for what only they can do, such as ``expert_action``.
    """

    def __init__(
        self,
        simulator: str | type[Simulator],
        num_envs: int = 1,
        tasks: Sequence[Any] | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        processes: bool = True,
        time_limit_s: float = 300.0,
        **settings: Any,
    ) -> None:
        num_envs, mode = check_num_envs(num_envs), autoreset_mode_of(autoreset_mode)
        if tasks is not None and len(tasks) != num_envs:
            raise ValueError(f"got {len(tasks)} tasks for num_envs={num_envs}")
        chosen = [{}] * num_envs if tasks is None else [_arguments_of(task) for task in tasks]
        name = simulator if isinstance(simulator, str) else f"{simulator.__module__}:{simulator.__qualname__}"
        self.envs = _make(name, [settings | own for own in chosen], processes, time_limit_s)
        self._halves: list[Any] = [env if isinstance(env, AsyncSimulator) else AnswersAtOnce(env) for env in self.envs]
        first = self.envs[0]
        self.robot_spec = first.robot_spec
        spaces = first.observation_space, first.action_space
        super().__init__(num_envs, *spaces, mode, settings.get("render_mode"), self.robot_spec.control_rate_hz)  # type: ignore[arg-type]
        self.time_limit_s = time_limit_s
        # The newest observations. A sub-environment without a simulator keeps its last one.
        self._seen: dict[str, Array] = {
            key: np.zeros((num_envs, *(space.shape or ())), space.dtype)
            for key, space in self.single_observation_space.spaces.items()
        }
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        self._lost: list[Exception | None] = [None] * num_envs  # why there is no simulator for an episode
        self._ended = np.ones(num_envs, bool)
        self._begun = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """See `AutoresetVectorEnv.reset`.

        Raises:
            ValueError: an illegal option; sub-environments that were to be reset have no episode now.
            SimulatorError, SimulatorCrashed, SimulatorTimeout: not one sub-environment has an episode.
        """
        found = super().reset(seed=seed, options=options)
        errors = [error for error in self._lost if error is not None]
        if len(errors) == self.num_envs:
            raise errors[0]
        return found

    def render(self) -> tuple[Array, ...] | None:
        """What each simulator renders; black where there is none."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a mode: gym.make_vec(..., render_mode='rgb_array')")
            return None
        self._over()
        frames = [self._frame(row) for row in range(self.num_envs)]
        shape = next((frame.shape for frame in frames if frame is not None), (256, 256, 3))
        return tuple(np.zeros(shape, np.uint8) if frame is None else frame for frame in frames)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the simulators."""
        for env in self.envs:
            env.close()

    def _over(self) -> Array:
        if not self._begun:
            raise gym.error.ResetNeeded("no episode has begun; call reset() first")
        return self._ended.copy()

    def _check_actions(self, actions: Any) -> Array:
        wanted = self.robot_spec.check_action(actions)
        if wanted.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {wanted.shape}, these environments take {self.action_space.shape}")
        return wanted

    def _advance(self, resets: Mapping[int, Reset], actions: Array | None) -> VectorStep:
        asked = list(range(self.num_envs)) if actions is not None else sorted(resets)
        self._ended[asked] = True  # an error of the caller's or an interrupt leaves no half episode behind
        outcomes = self._exchange(asked, resets, actions)
        self._begun = True
        for row, outcome in outcomes.items():
            self._infos[row], self._ended[row] = outcome.info, outcome.ended
        rows = [outcomes.get(row, _Outcome({})) for row in range(self.num_envs)]
        return VectorStep(
            {key: column.copy() for key, column in self._seen.items()},
            np.array([row.reward for row in rows]),
            np.array([row.terminated for row in rows]),
            np.array([row.truncated for row in rows]),
            rows_info({row: outcomes[row].info for row in asked}, self.num_envs),
        )

    def _exchange(
        self, asked: Sequence[int], resets: Mapping[int, Reset], actions: Array | None
    ) -> dict[int, _Outcome]:
        """Sends a request to each of these sub-environments, and takes the answers as they come."""
        found: dict[int, _Outcome] = {}
        refused: Exception | None = None  # a mistake of the caller's, raised when all who were asked have answered
        with selectors.DefaultSelector() as waiting:
            for row in asked:
                try:
                    self._ask(row, resets.get(row), None if actions is None else actions[row])
                    if isinstance(self._halves[row], AnswersAtOnce):
                        found[row] = self._receive(row, row in resets)
                    else:
                        waiting.register(self._halves[row], selectors.EVENT_READ, row)
                except _FAILURES as error:
                    found[row] = self._failure(row, error, row in resets)
                except Exception as error:  # noqa: BLE001
                    refused = error
                    break
            deadline = time.monotonic() + self.time_limit_s
            while waiting.get_map():
                ready = [key for key, _ in waiting.select(max(0.0, deadline - time.monotonic()))]
                for key in ready or list(waiting.get_map().values()):  # what is late by now is found to be so
                    waiting.unregister(key.fileobj)
                    try:
                        found[key.data] = self._receive(key.data, key.data in resets)
                    except Exception as error:  # noqa: BLE001
                        refused = error
        if refused is not None:
            raise refused
        return found

    def _ask(self, row: int, reset: Reset | None, action: Array | None) -> None:
        half, lost = self._halves[row], self._lost[row]
        try:
            if reset is not None:
                half.send_reset(seed=reset.seed, options=reset.options)
            elif lost is not None:
                raise lost
            else:
                half.send_step(action)
        except Exception as error:
            option = reset is not None and isinstance(error, ValueError | TypeError)
            if isinstance(half, AnswersAtOnce) and not option and error is not lost:
                raise SimulatorError(f"{type(error).__name__}: {error}", type(error).__name__) from error
            raise

    def _receive(self, row: int, start: bool) -> _Outcome:
        try:
            observation, reward, terminated, truncated, info = self._halves[row].receive()
        except _FAILURES as error:
            return self._failure(row, error, start)
        for key, value in observation.items():
            self._seen[key][row] = value
        self._lost[row] = None
        return _Outcome(info, reward, terminated, truncated)

    def _failure(self, row: int, error: Exception, start: bool) -> _Outcome:
        if start:
            self._lost[row] = error
        now = {"success": False} | getattr(self.envs[row], "labels", {}) | {"error": f"{type(error).__name__}: {error}"}
        earned = 0.0 if start else step_reward(0.0, False, getattr(self.envs[row], "reward_form", "dense"))
        return _Outcome(self._infos[row] | now, earned, truncated=not start)

    def _frame(self, row: int) -> Array | None:
        try:
            return self.envs[row].render()
        except gym.error.ResetNeeded:
            return None
        except _FAILURES as error:
            self._lost[row] = error
            return None


def _arguments_of(task: Any) -> dict[str, Any]:
    """Arguments of a simulator's constructor that choose a task."""
    return dict(task) if isinstance(task, Mapping) else {"task": task}


def _make(name: str, settings: Sequence[Mapping[str, Any]], processes: bool, time_limit_s: float) -> list[Any]:
    """A simulator of each of the settings; those that are isolated are built at the same time."""
    factory = find_simulator(name)[0]
    envs: list[Any] = []
    try:
        if isinstance(factory, type) and issubclass(factory, ProcessSimulator):
            for own in settings:
                envs.append(make_simulator(name, **own))
                envs[-1].time_limit_s = time_limit_s
        elif processes:
            envs += [IsolatedSimulator(name, own, time_limit_s, wait=False) for own in settings]
            for env in envs:
                env.ready()
        else:
            envs += [make_simulator(name, **own).unwrapped for own in settings]
    except BaseException:
        for env in envs:
            env.close()
        raise
    return envs
