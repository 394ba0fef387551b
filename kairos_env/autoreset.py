"""Gymnasium's vector environments, once for all of ours: autoreset modes, seeds, options, masks, columns of info.

A subclass says how resets and steps of some rows are made (`AutoresetVectorEnv._advance`); who is reset when, and what
is returned of it, is decided here.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from kairos_env.records import Array


@dataclass(frozen=True)
class Reset:
    """Arguments of one sub-environment's reset."""

    seed: int | None = None
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class VectorStep:
    """Observations, rewards, ends of all B sub-environments; ``info`` in Gymnasium's form, with ``_key`` masks (B,)."""

    observation: dict[str, Array]
    reward: Array
    terminated: Array
    truncated: Array
    info: dict[str, Any]


class AutoresetVectorEnv(gym.vector.VectorEnv[dict[str, Array], Array, Array]):
    """``num_envs`` robots of the same kind.

    Args:
        num_envs: number of sub-environments.
        observation_space, action_space: of each.
        autoreset_mode: what happens to a sub-environment that has finished. ``"NextStep"``: the next step resets it,
            ignoring its action. ``"SameStep"``: it is reset at once, and its last observation and info are in
            ``info["final_obs"]`` and ``info["final_info"]``. ``"Disabled"``: the caller resets it with
            ``reset(options={"reset_mask": ...})``.
        render_mode: ``"rgb_array"`` or None.
        render_fps: control rate of the robot.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's form)
        "render_modes": ["rgb_array"],
        "render_fps": 5,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        observation_space: gym.spaces.Dict,
        action_space: gym.spaces.Box,
        autoreset_mode: AutoresetMode | str,
        render_mode: str | None,
        render_fps: float,
    ) -> None:
        self.num_envs = num_envs
        self.autoreset_mode = autoreset_mode_of(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": render_fps, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space: gym.spaces.Dict = observation_space  # type: ignore[assignment]
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)

    # -- a subclass says -------------------------------------------------------------------------------------

    @abstractmethod
    def _over(self) -> Array:
        """bool (B,): sub-environments whose episode has ended.

        Raises:
            ResetNeeded: no episode has begun.
        """

    @abstractmethod
    def _check_actions(self, actions: Any) -> Array:
        """Actions (B, A) as float32; ValueError for what is none, before anything moves."""

    @abstractmethod
    def _advance(self, resets: Mapping[int, Reset], actions: Array | None) -> VectorStep:
        """Resets the rows of ``resets`` and steps all others with ``actions``, or leaves them if that is None.

        ``info`` is that of the rows which were reset or stepped.
        """

    def _may_step(self, over: Array) -> bool:
        """Whether sub-environments may be stepped though those of ``over`` have ended and nobody reset them."""
        return not over.any()

    # -- Gymnasium -------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode in every sub-environment, or in those of ``options["reset_mask"]``.

        Args:
            seed: s gives sub-environment i the seed s + i; or one for each.
            options: those of one environment's reset, each one value for all or a list of ``num_envs``; and
                ``reset_mask``, bool (num_envs,): the others go on, and show their last observation.
        """
        if seed is None or isinstance(seed, int | np.integer):
            super().reset(seed=None if seed is None else int(seed))
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            try:
                seeds = [None if each is None else operator.index(each) for each in seed]
            except TypeError:
                raise ValueError(f"seed is {seed!r}; use a whole number, or one for each sub-environment") from None
            if len(seeds) != self.num_envs:
                raise ValueError(f"got {len(seeds)} seeds for {self.num_envs} sub-environments")
        if options is not None and not isinstance(options, Mapping):
            raise ValueError(f"options is {options!r}; reset takes a dict")
        options = dict(options or {})
        mask = self._reset_mask(options.pop("reset_mask", None))
        if not mask.all():
            try:
                self._over()
            except gym.error.ResetNeeded:
                raise gym.error.ResetNeeded("reset_mask goes on with the other episodes, but none has begun") from None
        rows = np.flatnonzero(mask).tolist()
        batch = self._advance({row: Reset(seeds[row], self._options_of(row, options)) for row in rows}, None)
        return batch.observation, batch.info

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """One decision of every sub-environment.

        Args:
            actions: (num_envs, A), physical units; clipped to the robot's range.

        Raises:
            ValueError: wrong shape, not numeric, or not finite; nothing has moved.
            ResetNeeded: before the first `reset`, or for finished sub-environments that nobody reset.
        """
        over = self._over()
        actions = self._check_actions(actions)
        resets: dict[int, Reset] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            resets = {row: Reset() for row in np.flatnonzero(over).tolist()}
        elif not self._may_step(over):
            raise gym.error.ResetNeeded(
                f"sub-environments {np.flatnonzero(over).tolist()} have finished; "
                "call reset(options={'reset_mask': finished})"
            )
        batch = self._advance(resets, actions)
        observation, info = batch.observation, batch.info
        ended = batch.terminated | batch.truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            # Reward and end belong to the episode that is over, observation and info to the next one.
            begun = self._advance({row: Reset() for row in np.flatnonzero(ended).tolist()}, None)
            observation = begun.observation
            info = join_info(select_info(info, ~ended), begun.info) | _final(batch, ended)
        return observation, batch.reward, batch.terminated, batch.truncated, info

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


def autoreset_mode_of(mode: AutoresetMode | str) -> AutoresetMode:
    """The mode of that name, or a ValueError that lists the legal ones."""
    try:
        return AutoresetMode(mode)
    except ValueError:
        legal = [m.value for m in AutoresetMode]
        raise ValueError(f"autoreset_mode {mode!r} is unknown; use one of {legal}") from None


def check_num_envs(num_envs: int) -> int:
    """``num_envs``, or ValueError unless it is a whole number >= 1."""
    if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; use a whole number >= 1")
    return int(num_envs)


def columns_info(columns: Mapping[str, Array], mask: Array) -> dict[str, Any]:
    """Gymnasium's form of ``columns`` (B, ...), which are meant where ``mask`` (B,) is true."""
    masked = {f"_{key}": mask.copy() for key in columns}
    return select_info(dict(columns) | masked, mask)


def rows_info(infos: Mapping[int, Mapping[str, Any]], num_envs: int) -> dict[str, Any]:
    """Gymnasium's form of what single environments say: row -> info."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for info in infos.values() for key in info):
        values = {row: info[key] for row, info in infos.items() if key in info}
        if all(isinstance(value, Mapping) for value in values.values()):
            found[key] = rows_info(values, num_envs)
        else:
            found[key] = _blank(list(values.values()), num_envs)
            for row, value in values.items():
                found[key][row] = value
        found[f"_{key}"] = np.isin(np.arange(num_envs), list(values))
    return found


def _blank(values: Sequence[Any], num_envs: int) -> Array:
    """A column for ``values``: of their type, if they are numbers or arrays of one type and shape, else of objects."""
    kinds = {(type(value), getattr(value, "shape", ()), getattr(value, "dtype", None)) for value in values}
    first = values[0]
    if len(kinds) == 1 and isinstance(first, np.ndarray):
        return np.zeros((num_envs, *first.shape), first.dtype)
    if len(kinds) == 1 and isinstance(first, int | float | np.number | np.bool_):
        return np.zeros(num_envs, type(first))
    return np.full(num_envs, None, object)


def select_info(info: Mapping[str, Any], mask: Array) -> dict[str, Any]:
    """What ``info`` says of the rows of ``mask`` (B,); blank, or left out, elsewhere."""
    found: dict[str, Any] = {}
    for key, column in info.items():
        meant = info[f"_{key}"] & mask if f"_{key}" in info else None
        if meant is None or not meant.any():
            continue
        if isinstance(column, dict):
            found[key] = select_info(column, mask)
        else:
            blank = np.full_like(column, None) if column.dtype == object else np.zeros_like(column)
            blank[meant] = column[meant]
            found[key] = blank
        found[f"_{key}"] = meant
    return found


def join_info(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two infos that are meant for different rows, as one."""
    joined = dict(one)
    for key, column in other.items():
        mask = other.get(f"_{key}")
        if mask is None:
            continue
        if key not in one:
            joined[key], joined[f"_{key}"] = column, mask
            continue
        if isinstance(column, dict):
            joined[key] = join_info(one[key], column)
        else:
            where = mask.reshape(-1, *[1] * (column.ndim - 1))
            joined[key] = np.where(where, column, one[key])
        joined[f"_{key}"] = one[f"_{key}"] | mask
    return joined


def _final(batch: VectorStep, ended: Array) -> dict[str, Any]:
    """``final_obs`` and ``final_info`` of the sub-environments that have ``ended``."""
    observations = np.full(len(ended), None, object)
    for row in np.flatnonzero(ended):
        observations[row] = {key: column[row].copy() for key, column in batch.observation.items()}
    return {
        "final_obs": observations,
        "_final_obs": ended.copy(),
        "final_info": select_info(batch.info, ended),
        "_final_info": ended.copy(),
    }
