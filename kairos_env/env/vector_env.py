"""Many imagined robots at once: ``gym.make_vec("Kairos-WorldModel-v0", num_envs=64)``.

All sub-environments share one batched model step. Sub-environment i of a reset with seed s goes through
the same episodes as `WorldModelEnv` reset with seed s + i, its later automatic resets included.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from kairos_env.env.env import check_render_mode, share_imagination
from kairos_env.env.imagination import Imagination, Moment, Outcome, Settings, draw_seed
from kairos_env.records import Array

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


class WorldModelVectorEnv(gym.vector.VectorEnv[dict[str, Array], Array, Array]):
    """``num_envs`` robots, imagined in one batch.

    Observations, rewards, ends and ``info`` are those of `WorldModelEnv`, with a leading axis; ``info``
    has Gymnasium's ``_key`` masks.

    Args:
        num_envs: number of sub-environments.
        model: bundled name, folder, hub id, a loaded `WorldModel`, or an `Imagination` to share.
        autoreset_mode: what happens to a sub-environment that has finished. ``"NextStep"``: the next step
            resets it, ignoring its action. ``"SameStep"``: it is reset at once, and its last observation and
            info are in ``info["final_obs"]`` and ``info["final_info"]``. ``"Disabled"``: the caller
            resets it with ``reset(options={"reset_mask": ...})``.
        finished: with ``"Disabled"``, stepping a finished sub-environment is an ``"error"``, or it is
            on ``"hold"``: imagined on, but it stays finished and its reward is 0.
        render_mode: ``"rgb_array"`` or None.
        settings: ``task``, ``start``, ``reward``, ``steps``, ``device``, ``max_episode_steps``,
            ``observation``, ``success_threshold``, ``uncertainty_limit``, see `Imagination`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's form)
        "render_modes": ["rgb_array"],
        "render_fps": 5,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        model: str | os.PathLike[str] | WorldModel | Imagination = "kairos-tiny",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        finished: Literal["error", "hold"] = "error",
        render_mode: str | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; use a whole number >= 1")
        check_render_mode(render_mode)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.finished = finished
        self.imagination, self._own = share_imagination(model, settings)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = {
            **self.metadata,
            "render_fps": self.imagination.spec.control_rate_hz,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = self.imagination.observation_space
        self.single_action_space = self.imagination.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        # One sequence of seeds for each sub-environment, so that its episodes do not depend on its neighbours.
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._now: Outcome | None = None

    @property
    def model(self) -> WorldModel:
        """The world model."""
        return self.imagination.model

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode in every sub-environment, or in those of ``options["reset_mask"]``.

        Args:
            seed: s gives sub-environment i the seed s + i; or one for each.
            options: those of `WorldModelEnv.reset`, each one value for all or a list of ``num_envs``; and
                ``reset_mask``, bool (num_envs,): the others go on, and show their last observation.
        """
        if seed is None or isinstance(seed, int | np.integer):
            super().reset(seed=None if seed is None else int(seed))
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"got {len(seeds)} seeds for {self.num_envs} sub-environments")
        options = dict(options or {})
        rows = np.flatnonzero(self._reset_mask(options.pop("reset_mask", None)))
        for row in rows:
            if seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])[0]
        begun = self._begin(rows, seeds, options)
        if len(rows) < self.num_envs:
            if self._now is None:
                raise gym.error.ResetNeeded("reset_mask goes on with the other episodes, but none has begun")
            begun = self._now.overwrite(rows, begun)
        self._remember(begun)
        return begun.observation, vector_info(begun.info, np.isin(np.arange(self.num_envs), rows))

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """Imagines one decision of every sub-environment, in one model step.

        Args:
            actions: (num_envs, A), physical units; clipped to the robot's range.

        Raises:
            ValueError: wrong shape, not numeric, or not finite.
            ResetNeeded: before the first `reset`, or for finished sub-environments that nobody reset.
        """
        moment = self.get_state()
        final: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            outcome = self._next_step(moment, actions)
        elif self.autoreset_mode is AutoresetMode.SAME_STEP:
            outcome, final = self._same_step(moment, actions)
        else:
            outcome = self._plain_step(moment, actions)
        self._remember(outcome)
        info = vector_info(outcome.info, np.ones(self.num_envs, bool)) | final
        return outcome.observation, outcome.reward, outcome.terminated, outcome.truncated, info

    def _next_step(self, moment: Moment, actions: Array) -> Outcome:
        if moment.finished.all():  # the usual case: all reach the time limit together
            self.imagination.check_actions(actions, self.num_envs)
            return self._begin(np.arange(self.num_envs))
        return self._restart(self.imagination.step(moment, actions), moment.finished)

    def _same_step(self, moment: Moment, actions: Array) -> tuple[Outcome, dict[str, Any]]:
        last = self.imagination.step(moment, actions)
        over = last.moment.finished
        if not over.any():
            return last, {}
        # Reward and end belong to the episode that is over, observation and info to the next one.
        outcome = dataclasses.replace(
            self._restart(last, over), reward=last.reward, terminated=last.terminated, truncated=last.truncated
        )
        return outcome, _final(last, over)

    def _plain_step(self, moment: Moment, actions: Array) -> Outcome:
        over = moment.finished
        if self.finished == "error" and over.any():
            raise gym.error.ResetNeeded(
                f"sub-environments {np.flatnonzero(over).tolist()} have finished and autoreset is disabled; "
                "call reset(options={'reset_mask': finished})"
            )
        outcome = self.imagination.step(moment, actions)
        if self._now is None or not over.any():
            return outcome
        return dataclasses.replace(
            outcome,
            reward=np.where(over, 0.0, outcome.reward),
            terminated=np.where(over, self._now.terminated, outcome.terminated),
            truncated=np.where(over, self._now.truncated, outcome.truncated),
        )

    def get_state(self) -> Moment:
        """Where the episodes stand: a value that later steps do not change."""
        if self._now is None:
            raise gym.error.ResetNeeded("no episode has begun; call reset() first")
        return self._now.moment

    def set_state(self, moment: Moment) -> None:
        """Goes (back) to ``moment``. What later resets draw is not affected."""
        if len(moment) != self.num_envs:
            raise ValueError(f"the moment holds {len(moment)} episodes, this environment {self.num_envs}")
        self._now = self.imagination.resume(moment)

    def render(self) -> tuple[Array, ...] | None:
        """The newest frame of every sub-environment, enlarged: uint8 (height, width, 3) each."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a mode: gym.make_vec(..., render_mode='rgb_array')")
            return None
        return tuple(self.imagination.render(self.get_state()))

    def close_extras(self, **kwargs: Any) -> None:
        """Frees the simulator that gave starts, if this environment made one."""
        if self._own:
            self.imagination.close()
        self._now = None

    def _begin(
        self, rows: Array, seeds: Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> Outcome:
        """New episodes for the sub-environments ``rows``, as an outcome of that many."""
        episodes = [
            draw_seed(self._generators[row]) if seeds is None or (seed := seeds[row]) is None else seed for row in rows
        ]
        return self.imagination.begin(episodes, [self._options_of(row, options or {}) for row in rows])

    def _restart(self, outcome: Outcome, mask: Array) -> Outcome:
        rows = np.flatnonzero(mask)
        return outcome.overwrite(rows, self._begin(rows)) if len(rows) else outcome

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

    def _remember(self, outcome: Outcome) -> None:
        if self.autoreset_mode is AutoresetMode.DISABLED:
            # A masked reset shows the others' last observation again, and a held branch its end; the
            # caller may have written into the arrays that were returned.
            outcome = dataclasses.replace(
                outcome,
                observation={key: column.copy() for key, column in outcome.observation.items()},
                terminated=outcome.terminated.copy(),
                truncated=outcome.truncated.copy(),
            )
        self._now = outcome


def vector_info(columns: Mapping[str, Array], mask: Array) -> dict[str, Any]:
    """Gymnasium's form of ``columns`` (B,): each key with a ``_key`` mask that says where it is meant."""
    info: dict[str, Any] = {}
    for key, column in columns.items():
        meant = mask & (column != "") if key == "truncated_reason" else mask.copy()
        if not meant.any():
            continue
        blank = np.full(len(mask), None, object) if column.dtype == object else np.zeros(len(mask), column.dtype)
        info[key], info[f"_{key}"] = np.where(meant, column, blank), meant
    return info


def _final(outcome: Outcome, over: Array) -> dict[str, Any]:
    """``final_obs`` and ``final_info`` of the sub-environments that are ``over``."""
    observations = np.full(len(over), None, object)
    for row in np.flatnonzero(over):
        observations[row] = {key: column[row].copy() for key, column in outcome.observation.items()}
    return {
        "final_obs": observations,
        "_final_obs": over.copy(),
        "final_info": vector_info(outcome.info, over),
        "_final_info": over.copy(),
    }


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        legal = [m.value for m in AutoresetMode]
        raise ValueError(f"autoreset_mode {mode!r} is unknown; use one of {legal}") from None
