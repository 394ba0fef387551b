"""Many LIBERO simulators at once: ``gym.make_vec("Kairos-LIBERO-v0", num_envs=2)``.

Each sub-environment is a `LiberoEnv` whose simulator runs in a process of its own (about 1.2 GB); all simulate at the
same time. Sub-environment i of a reset with seed s goes through the same episodes as `LiberoEnv` reset with seed s + i,
its later automatic resets included.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from kairos_env.records import Array
from kairos_env.sims.libero.env import LiberoEnv
from kairos_env.sims.libero.tasks import Catalogue, LiberoTask
from kairos_env.sims.process import SimulatorCrashed, SimulatorError, SimulatorTimeout

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


class LiberoVectorEnv(gym.vector.VectorEnv[dict[str, Array], Array, Array]):
    """``num_envs`` robots, each in a simulator of its own.

    Observations, rewards, ends and ``info`` are those of `LiberoEnv`, with a leading axis; ``info`` has Gymnasium's
    ``_key`` masks.

    A simulator that raises, dies or does not answer in time takes nothing else down. Its episode is truncated with
    reward 0 and the last observation, ``info["error"]`` says what happened, and its next reset starts a new
    process. If even the reset fails, its ``info`` has the ``error``, and the episode is truncated in its first step.

    Args:
        num_envs: number of sub-environments.
        tasks: what each of them starts with, if not all the same: an index or name as `LiberoEnv` takes it, a
            `LiberoTask`, or a mapping with any of `LiberoEnv.reset_options`.
        autoreset_mode: what happens to a sub-environment that has finished. ``"NextStep"``: the next step resets it,
            ignoring its action. ``"SameStep"``: it is reset at once, and its last observation and info are in
            ``info["final_obs"]`` and ``info["final_info"]``, the latter with ``is_success``, the name that LeRobot
            reads. ``"Disabled"``: the caller resets it with ``reset(options={"reset_mask": ...})``.
        render_mode: ``"rgb_array"`` or None.
        settings: the other arguments of `LiberoEnv`, for all.

    Attributes:
        envs: the sub-environments, for what only they can do, such as `LiberoEnv.expert_action`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's form)
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        tasks: Sequence[int | str | LiberoTask | Mapping[str, Any]] | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        home: str | Path | Catalogue | None = None,
        **settings: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; use a whole number >= 1")
        if tasks is not None and len(tasks) != num_envs:
            raise ValueError(f"got {len(tasks)} tasks for num_envs={num_envs}")
        modes = [mode.value for mode in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise ValueError(f"autoreset_mode {autoreset_mode!r} is unknown; use one of {modes}")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        # Opened once: the tasks of LIBERO-plus take half a second and 30 MB.
        catalogue = home if isinstance(home, Catalogue) else Catalogue.open(None if home is None else Path(home))
        chosen: list[Mapping[str, Any]] = (
            [{}] * num_envs if tasks is None else [_task_arguments(task) for task in tasks]
        )
        self.envs = [LiberoEnv(**{**settings, **own}, home=catalogue, render_mode=render_mode) for own in chosen]
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.robot_spec = self.envs[0].robot_spec
        self.metadata = {
            **self.metadata,
            "render_fps": self.robot_spec.control_rate_hz,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        # The newest observations. A sub-environment without a simulator keeps its last one.
        self._seen: dict[str, Array] = {
            key: np.zeros((num_envs, *(space.shape or ())), space.dtype)
            for key, space in self.single_observation_space.spaces.items()
        }
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        self._lost: list[RuntimeError | None] = [None] * num_envs  # why there is no simulator for an episode
        self._over = np.ones(num_envs, bool)  # whom only a reset can take further
        self._begun = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode in every sub-environment, or in those of ``options["reset_mask"]``.

        Args:
            seed: s gives sub-environment i the seed s + i; or one for each.
            options: those of `LiberoEnv.reset`, each one value for all or a list of ``num_envs``; and
                ``reset_mask``, bool (num_envs,): the others go on, and show their last observation.

        Raises:
            ValueError: an illegal option; sub-environments that were to be reset have no episode now.
            SimulatorError, SimulatorCrashed, SimulatorTimeout: not one sub-environment has an episode.
        """
        if seed is None or isinstance(seed, int | np.integer):
            super().reset(seed=None if seed is None else int(seed))
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"got {len(seeds)} seeds for {self.num_envs} sub-environments")
        options = dict(options or {})
        mask = self._reset_mask(options.pop("reset_mask", None))
        if not self._begun and not mask.all():
            raise gym.error.ResetNeeded("reset_mask goes on with the other episodes, but none has begun")
        outcomes = self._exchange(
            {
                row: {"seed": seeds[row], "options": self._options_of(row, options)}
                for row in np.flatnonzero(mask).tolist()
            }
        )
        self._begun = True
        errors = [error for error in self._lost if error is not None]
        if len(errors) == self.num_envs:
            raise errors[0]
        return self._observation(), self._batched(outcomes)

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """Simulates one decision of every sub-environment, all at the same time.

        Args:
            actions: (num_envs, 7), see `robot_spec`; clipped to the robot's range.

        Raises:
            ValueError: wrong shape, not numeric, or not finite; nothing has moved.
            ResetNeeded: before the first `reset`, or for finished sub-environments that nobody reset.
        """
        if not self._begun:
            raise gym.error.ResetNeeded("no episode has begun; call reset() first")
        wanted = self.robot_spec.check_action(actions)
        if wanted.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {wanted.shape}, these environments take {self.action_space.shape}")
        over = np.flatnonzero(self._over).tolist()
        if over and self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            raise gym.error.ResetNeeded(
                f"sub-environments {over} have finished; call reset(options={{'reset_mask': finished}})"
            )
        going = [row for row in range(self.num_envs) if row not in over]
        outcomes = self._exchange({row: {} for row in over}, {row: wanted[row] for row in going})
        final: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            ended = {row: outcome for row, outcome in outcomes.items() if outcome.ended}
            final = self._final(ended)
            # Reward and end belong to the episode that is over, observation and info to the next one.
            for row, begun in self._exchange({row: {} for row in ended}).items():
                outcomes[row] = ended[row]._replace(info=begun.info)
        rows = [outcomes[row] for row in range(self.num_envs)]
        return (
            self._observation(),
            np.array([row.reward for row in rows]),
            np.array([row.terminated for row in rows]),
            np.array([row.truncated for row in rows]),
            self._batched(outcomes) | final,
        )

    def render(self) -> tuple[Array, ...] | None:
        """The agent view of every sub-environment, uint8 (256, 256, 3); black where there is no simulator."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a mode: gym.make_vec(..., render_mode='rgb_array')")
            return None
        if not self._begun:
            raise gym.error.ResetNeeded("no episode has begun; call reset() first")
        return tuple(self._frame(row) for row in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the simulators."""
        for env in self.envs:
            env.close()

    def _exchange(
        self, resets: Mapping[int, Mapping[str, Any]], steps: Mapping[int, Array] | None = None
    ) -> dict[int, _Outcome]:
        """Sends a request to each of these sub-environments, and takes the answers as they come.

        Args:
            resets: arguments of `LiberoEnv.reset`.
            steps: actions.
        """
        steps = steps or {}
        asked = sorted({*resets, *steps})
        self._over[asked] = True  # an error of the caller's or an interrupt leaves no half episode behind
        found: dict[int, _Outcome] = {}
        with selectors.DefaultSelector() as waiting:
            for row in asked:
                env, lost = self.envs[row], self._lost[row]
                try:
                    if row in resets:
                        env.send_reset(**resets[row])
                    elif lost is not None:
                        raise lost
                    else:
                        env.send_step(steps[row])
                    waiting.register(env, selectors.EVENT_READ, row)
                except _FAILURES as error:
                    found[row] = self._failure(row, error, row in resets)
            deadline = time.monotonic() + max(env.time_limit_s for env in self.envs)
            while waiting.get_map():
                ready = [key for key, _ in waiting.select(max(0.0, deadline - time.monotonic()))]
                for key in ready or list(waiting.get_map().values()):  # what is late by now is found to be so
                    waiting.unregister(key.fileobj)
                    found[key.data] = self._receive(key.data, key.data in resets)
        for row, outcome in found.items():
            self._infos[row], self._over[row] = outcome.info, outcome.ended
        return {row: found[row] for row in asked}

    def _receive(self, row: int, start: bool) -> _Outcome:
        try:
            observation, reward, terminated, truncated, info = self.envs[row].receive()
        except _FAILURES as error:
            return self._failure(row, error, start)
        for key, value in observation.items():
            self._seen[key][row] = value
        self._lost[row] = None
        return _Outcome(info, reward, terminated, truncated)

    def _failure(self, row: int, error: RuntimeError, start: bool) -> _Outcome:
        if start:
            self._lost[row] = error
        now = {"success": False} | self.envs[row].labels | {"error": f"{type(error).__name__}: {error}"}
        return _Outcome(self._infos[row] | now, truncated=not start)

    def _frame(self, row: int) -> Array:
        frame = None
        try:
            frame = self.envs[row].render()
        except gym.error.ResetNeeded:
            pass
        except _FAILURES as error:
            self._lost[row] = error
        return np.zeros((256, 256, 3), np.uint8) if frame is None else frame

    def _observation(self) -> dict[str, Array]:
        return {key: column.copy() for key, column in self._seen.items()}

    def _batched(self, outcomes: Mapping[int, _Outcome]) -> dict[str, Any]:
        info: dict[str, Any] = {}
        for row, outcome in outcomes.items():
            info = self._add_info(info, outcome.info, row)
        return info

    def _final(self, ended: Mapping[int, _Outcome]) -> dict[str, Any]:
        info: dict[str, Any] = {}
        for row, outcome in ended.items():
            seen = {key: column[row].copy() for key, column in self._seen.items()}
            last = outcome.info | {"is_success": outcome.info["success"]}
            info = self._add_info(info, {"final_obs": seen, "final_info": last}, row)
        return info

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        if "difficulty" in env_info:  # an int or None: Gymnasium would take the type of the first one
            vector_infos.setdefault("difficulty", np.full(self.num_envs, None, object))
        return super()._add_info(vector_infos, env_info, env_num)

    def _options_of(self, row: int, options: Mapping[str, Any]) -> dict[str, Any]:
        own = {}
        for key, value in options.items():
            if isinstance(value, list | tuple | np.ndarray):
                if len(value) != self.num_envs:
                    raise ValueError(f"reset option {key!r} has {len(value)} values, expected 1 or {self.num_envs}")
                value = value[row]
            own[key] = value
        return own

    def _reset_mask(self, mask: Any) -> Array:
        if mask is None:
            return np.ones(self.num_envs, bool)
        array = np.asarray(mask)
        if array.dtype != np.bool_ or array.shape != (self.num_envs,) or not array.any():
            raise ValueError(
                f"reset_mask is {array.dtype} with shape {array.shape}, {int(np.sum(array != 0))} true; expected bool "
                f"with shape ({self.num_envs},) and at least one true"
            )
        return array


def _task_arguments(task: int | str | LiberoTask | Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of `LiberoEnv` that choose a task."""
    if isinstance(task, LiberoTask):
        return {"benchmark": task.benchmark, "suite": task.suite, "task": task.name}
    if not isinstance(task, Mapping):
        return {"task": task}
    unknown = sorted(set(task) - set(LiberoEnv.reset_options))
    if unknown:
        raise ValueError(f"a task has the unknown entries {unknown}; legal are {list(LiberoEnv.reset_options)}")
    return task
