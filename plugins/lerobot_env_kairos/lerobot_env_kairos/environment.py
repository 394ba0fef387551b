"""Kairos environments as LeRobot's evaluators want them.

Observations are ``pixels`` (camera name -> uint8 (H, W, 3)) and ``agent_pos`` (float32 (P,)), the attributes ``task``
and ``task_description`` say what is asked for, and ``info["is_success"]`` how it went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space

from kairos_env.env.env import WorldModelEnv
from kairos_env.sims.tabletop.env import RobosuiteEnv

IMAGINED, SIMULATED = "lerobot_env_kairos/WorldModel-v0", "lerobot_env_kairos/Robosuite-v0"


class LeRobotEnv(gym.Wrapper):
    """One robot, imagined or simulated, in LeRobot's words.

    Args:
        env: an environment with the observations of a `RobotSpec`.
        episode_length: decisions until ``env`` truncates an episode.
    """

    def __init__(self, env: gym.Env[Any, Any], episode_length: int) -> None:
        super().__init__(env)
        self.observation_space = translate_space(env.observation_space)
        self.metadata = _whole_rate(env.metadata)
        self._max_episode_steps = episode_length
        self.task = self.task_description = ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode; LeRobot's own option is for LeRobot's own wrappers."""
        observation, info = self.env.reset(seed=seed, options=_without_lerobots(options))
        return self._translate(observation, info)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self._translate(observation, info)
        return observation, float(reward), terminated, truncated, info

    def _translate(self, observation: Any, info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        self.task, self.task_description = info["task"], info["instruction"]
        return translate(observation), info | {"is_success": info["success"]}


class LeRobotVectorEnv(gym.vector.VectorWrapper):
    """Several robots, imagined or simulated, in LeRobot's words.

    Args:
        env: with the observations of a `RobotSpec` and SAME_STEP autoreset.
        episode_length: decisions until ``env`` truncates an episode.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], episode_length: int) -> None:
        super().__init__(env)
        env.metadata = _whole_rate(env.metadata)  # LeRobot looks there
        self.single_observation_space = translate_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._attributes: dict[str, Any] = {"_max_episode_steps": [episode_length] * env.num_envs}

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What each robot's environment has or does under ``name``: all that LeRobot asks for."""
        if name == "render":
            return self.env.render()
        if name not in self._attributes:
            raise AttributeError(f"there is no {name!r} here, only {['render', *self._attributes]}")
        return tuple(self._attributes[name])

    get_attr = call

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode of every robot; LeRobot's own option is for LeRobot's own wrappers."""
        observation, info = self.env.reset(seed=seed, options=_without_lerobots(options))
        return translate(observation), self._translate_info(info)

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Rewards and ends as those of ``env``; ``final_info["is_success"]`` of the episodes that ended."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        info = self._translate_info(info)
        if "final_info" in info:
            info["final_obs"] = np.array([seen and translate(seen) for seen in info["final_obs"]], object)
            info["final_info"] = info["final_info"] | {"is_success": info["final_info"]["success"].astype(bool)}
        return translate(observation), reward, terminated, truncated, info

    def _translate_info(self, info: dict[str, Any]) -> dict[str, Any]:
        self._attributes |= {"task": info["task"], "task_description": info["instruction"]}
        return info | {"is_success": info["success"].astype(bool)}


def make_imagined(episode_length: int, **settings: Any) -> LeRobotEnv:
    """The world model as an environment; ``settings`` are those of `WorldModelEnv`."""
    return LeRobotEnv(WorldModelEnv(max_episode_steps=episode_length, **settings), episode_length)


def make_simulated(episode_length: int, **settings: Any) -> LeRobotEnv:
    """The simulator; ``settings`` are those of `RobosuiteEnv`."""
    return LeRobotEnv(RobosuiteEnv(max_episode_steps=episode_length, **settings), episode_length)


def translate(observation: Mapping[str, Any]) -> dict[str, Any]:
    """``image_<camera>`` and ``proprio`` -> ``pixels`` and ``agent_pos``; spaces and values, single and batched."""
    pixels = {key.removeprefix("image_"): image for key, image in observation.items() if key.startswith("image_")}
    return {"pixels": pixels, "agent_pos": observation["proprio"]}


def translate_space(space: gym.Space[Any]) -> gym.spaces.Dict:
    """The space of translated observations."""
    assert isinstance(space, gym.spaces.Dict)
    names = translate(space.spaces)
    return gym.spaces.Dict({"pixels": gym.spaces.Dict(names["pixels"]), "agent_pos": names["agent_pos"]})


def _without_lerobots(options: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (options or {}).items() if not key.startswith("lerobot_")}


def _whole_rate(metadata: dict[str, Any]) -> dict[str, Any]:
    """LeRobot's video writer takes no fractions of a frame."""
    return metadata | {"render_fps": max(1, round(metadata["render_fps"]))}
