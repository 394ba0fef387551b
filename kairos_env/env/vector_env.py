"""Many imagined robots at once: ``gym.make_vec("Kairos-WorldModel-v0", num_envs=64)``.

All sub-environments share one batched model step. Sub-environment i of a reset with seed s goes through
the same episodes as `WorldModelEnv` reset with seed s + i, its later automatic resets included.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode

from kairos_env.autoreset import AutoresetVectorEnv, Reset, VectorStep, autoreset_mode_of, check_num_envs, columns_info
from kairos_env.env.episodes import EpisodeState, Outcome, check_episodes
from kairos_env.env.imagination import Imagination, draw_seed, share_imagination
from kairos_env.env.settings import ImaginationOptions, check_render_mode
from kairos_env.records import Array, RobotSpec

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


class WorldModelVectorEnv(AutoresetVectorEnv):
    """``num_envs`` robots, imagined in one batch.

    Observations, rewards, ends and ``info`` are those of `WorldModelEnv`, with a leading axis; ``info``
    has Gymnasium's ``_key`` masks.

    Args:
        num_envs: number of sub-environments.
        model: bundled name, folder, hub id, a loaded `WorldModel`, or an `Imagination` to share.
        autoreset_mode: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``, see `AutoresetVectorEnv`.
        finished: with ``"Disabled"``, stepping a finished sub-environment is an ``"error"``, or it is
            on ``"hold"``: imagined on, but it stays finished and its reward is 0.
        render_mode: ``"rgb_array"`` or None.
        settings: ``task``, ``start``, ``reward``, ``steps``, ``device``, ``max_episode_steps``,
            ``observation``, ``success_threshold``, ``success_ends``, ``uncertainty_limit``, ``horizon``,
            ``unknown_instructions``, see `Imagination`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        model: str | os.PathLike[str] | WorldModel | Imagination = "kairos-tiny",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        finished: Literal["error", "hold"] = "error",
        render_mode: str | None = None,
        **settings: Unpack[ImaginationOptions],
    ) -> None:
        check_num_envs(num_envs)
        check_render_mode(render_mode)
        autoreset_mode = autoreset_mode_of(autoreset_mode)
        self.imagination, self._own = share_imagination(model, settings)
        spaces = self.imagination.observation_space, self.imagination.action_space
        super().__init__(num_envs, *spaces, autoreset_mode, render_mode, self.imagination.spec.control_rate_hz)
        self.finished = finished
        # One sequence of seeds for each sub-environment, so that its episodes do not depend on its neighbours.
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._now: Outcome | None = None

    @property
    def robot_spec(self) -> RobotSpec:
        """The robot, with one decision for each imagined frame."""
        return self.imagination.spec

    @property
    def model(self) -> WorldModel:
        """The world model."""
        return self.imagination.model

    def _over(self) -> Array:
        return self.get_state().finished

    def _may_step(self, over: Array) -> bool:
        return self.finished == "hold" or super()._may_step(over)

    def _check_actions(self, actions: Any) -> Array:
        if actions is None or self._over().all():  # else the model step checks them, before anything has changed
            self.imagination.check_actions(actions, self.num_envs)
        return actions

    def _advance(self, resets: Mapping[int, Reset], actions: Array | None) -> VectorStep:
        rows = np.array(list(resets), np.int64)
        mask = np.isin(np.arange(self.num_envs), rows)
        outcome = self._now
        if actions is not None and not mask.all():  # the usual case: all reach the time limit together
            outcome = self._held(self.imagination.step(self.get_state(), actions))
        if len(rows):
            begun = self._begin(resets)
            outcome = begun if outcome is None or mask.all() else outcome.overwrite(rows, begun)
        assert outcome is not None  # a reset of some rows needs episodes of the others
        self._remember(outcome)
        info = _info(outcome.info, mask | (actions is not None))
        return VectorStep(outcome.observation, outcome.reward, outcome.terminated, outcome.truncated, info)

    def _begin(self, resets: Mapping[int, Reset]) -> Outcome:
        """New episodes, as an outcome of as many rows."""
        for row, reset in resets.items():
            if reset.seed is not None:
                self._generators[row] = seeding.np_random(reset.seed)[0]
        seeds = [draw_seed(self._generators[row]) if r.seed is None else r.seed for row, r in resets.items()]
        return self.imagination.begin(seeds, [reset.options or {} for reset in resets.values()])

    def _held(self, outcome: Outcome) -> Outcome:
        """``outcome``, but with ends as they were and without reward where an episode was over before."""
        over = self._over()
        if self.autoreset_mode is not AutoresetMode.DISABLED or self._now is None or not over.any():
            return outcome
        return dataclasses.replace(
            outcome,
            reward=np.where(over, 0.0, outcome.reward),
            terminated=np.where(over, self._now.terminated, outcome.terminated),
            truncated=np.where(over, self._now.truncated, outcome.truncated),
        )

    def get_state(self) -> EpisodeState:
        """The present state of all episodes: a value that later steps do not change."""
        if self._now is None:
            raise gym.error.ResetNeeded("no episode has begun; call reset() first")
        return self._now.episodes

    def set_state(self, state: EpisodeState) -> None:
        """Returns the episodes to ``state``, see `WorldModelEnv.set_state`. Later resets draw what they would have."""
        self._now = self.imagination.resume(check_episodes(state, self.num_envs, self.imagination.fingerprint))

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


def _info(columns: Mapping[str, Array], mask: Array) -> dict[str, Any]:
    """Gymnasium's form of ``columns`` (B,) where ``mask`` (B,) is true; a reason only where there is one."""
    reason = columns["truncated_reason"]
    others = {key: column for key, column in columns.items() if key != "truncated_reason"}
    return columns_info(others, mask) | columns_info({"truncated_reason": reason}, mask & (reason != ""))
