"""Stable-Baselines3 on vector environments that step as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from kairos_env.extras import require
from kairos_env.records import Array

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv
else:
    VecEnv = require("stable_baselines3.common.vec_env", "rl").VecEnv


class SB3VecEnv(VecEnv):
    """Any Gymnasium vector environment with SAME_STEP autoreset, as Stable-Baselines3 wants it.

    Actions are rescaled: the agent acts in [-1, 1], `physical` is what the robot gets. Wrap it in
    ``stable_baselines3.common.vec_env.VecMonitor`` for episode returns in the log.

    Args:
        env: for example ``gym.make_vec("Kairos-WorldModel-v0", num_envs=64, autoreset_mode="SameStep")``.

    Raises:
        ValueError: another autoreset mode, or actions without finite bounds.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(f"autoreset_mode is {mode}; Stable-Baselines3 needs autoreset_mode='SameStep'")
        space = env.single_action_space
        if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
            raise ValueError(f"the action space is {space}, expected a Box with finite bounds")
        self.env = env
        self._low, self._high = space.low, space.high
        self._actions: Array | None = None
        agent_space = gym.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        super().__init__(env.num_envs, env.single_observation_space, agent_space)

    def physical(self, actions: Array) -> Array:
        """Actions (..., A) in [-1, 1] -> physical units."""
        return self._low + (np.asarray(actions, np.float32) + 1) / 2 * (self._high - self._low)

    def scaled(self, actions: Array) -> Array:
        """Actions (..., A) in physical units -> [-1, 1]."""
        return ((np.asarray(actions, np.float32) - self._low) / (self._high - self._low) * 2 - 1).astype(np.float32)

    def reset(self) -> Any:
        """Batched observations; uses the seeds of `seed` once."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        options = {key: [o.get(key) for o in self._options] for key in set().union(*self._options)}
        observations, info = self.env.reset(seed=seeds, options=options or None)  # type: ignore[arg-type]
        self.reset_infos = _rows(info, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: Array) -> None:
        """Keeps the actions (B, A) in [-1, 1] for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        """Batched observations, rewards float32 (B,), dones bool (B,), and one info dict for each."""
        assert self._actions is not None, "step_wait() without step_async()"
        observations, rewards, terminated, truncated, info = self.env.step(self.physical(self._actions))
        dones = terminated | truncated
        final_observations, final_info = info.pop("final_obs", None), info.pop("final_info", None)
        rows = _rows(info, self.num_envs)
        if final_info is not None:
            last = _rows(final_info, self.num_envs)
            for i in np.flatnonzero(dones):
                rows[i] = last[i] | {
                    "terminal_observation": final_observations[i],
                    "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                }
                if "success" in rows[i]:
                    rows[i]["is_success"] = rows[i]["success"]  # the name that SB3 logs
        return observations, rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Closes the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[Array | None]:
        """One rendered frame for each sub-environment."""
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)  # type: ignore[arg-type]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The vector environment's attribute, once for each index: they share it."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute of the vector environment, which all sub-environments share."""
        if indices is not None:
            raise NotImplementedError("sub-environments of one batch share their attributes; leave indices=None")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls a method of the vector environment once, and returns its result for each index."""
        result = getattr(self.env, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """Sub-environments of one batch have no wrappers of their own."""
        return [False for _ in self._get_indices(indices)]


def _rows(info: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Gymnasium's masked columns -> one dict for each sub-environment."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, column in info.items():
        mask = info.get(f"_{key}")
        if mask is None or isinstance(column, dict):  # a mask itself, or nested columns
            continue
        values = column.tolist() if column.ndim == 1 else column  # plain numbers, but arrays stay arrays
        for i, (value, meant) in enumerate(zip(values, mask, strict=True)):
            if meant:
                rows[i][key] = value
    return rows
