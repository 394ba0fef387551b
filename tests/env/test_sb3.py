"""Stable-Baselines3 on the imagined robots."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from counting_model import CountingModel, shaken_model

from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.world_model.model import WorldModel

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.vec_env import VecMonitor  # noqa: E402

from kairos_env.env.sb3 import SB3VecEnv  # noqa: E402


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return shaken_model()


def test_ends_are_reported_as_stable_baselines_wants_them() -> None:
    envs = SB3VecEnv(WorldModelVectorEnv(2, CountingModel(), autoreset_mode="SameStep", max_episode_steps=3))
    envs.seed(0)  # sub-environment 0 succeeds after 2 decisions; 1 would need 3, which is the limit as well
    observed = envs.reset()
    assert observed["proprio"][:, 0].tolist() == [1.0, 1.0]
    assert envs.action_space == gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    moved = observed["proprio"][:, 1]
    observed, rewards, dones, infos = envs.step(np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32))
    assert (observed["proprio"][:, 1] - moved).tolist() == [0.5, -0.5]  # physical units
    assert rewards.dtype == np.float32
    assert not dones.any()
    observed, _, dones, infos = envs.step(np.zeros((2, 2)))
    assert dones.tolist() == [True, False]
    assert infos[0]["terminal_observation"]["proprio"][0] == 3.0
    assert infos[0]["TimeLimit.truncated"] is False
    assert infos[0]["is_success"] is True
    assert observed["proprio"][0, 0] == 1.0
    assert "terminal_observation" not in infos[1]


def test_time_limits_are_marked() -> None:
    envs = SB3VecEnv(WorldModelVectorEnv(1, CountingModel(), autoreset_mode="SameStep", max_episode_steps=1))
    envs.reset()
    *_, infos = envs.step(np.zeros((1, 2)))
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["is_success"] is False


def test_same_step_autoreset_is_needed() -> None:
    with pytest.raises(ValueError, match="autoreset_mode='SameStep'"):
        SB3VecEnv(WorldModelVectorEnv(2, CountingModel()))


@pytest.mark.parametrize("seen", ["pixels", "latent", "features"])
def test_ppo_trains_on_it(model: WorldModel, seen: str) -> None:
    settings: dict[str, Any] = {"observation": seen, "max_episode_steps": 3, "success_threshold": None}
    envs = gym.make_vec("Kairos-WorldModel-v0", num_envs=2, model=model, autoreset_mode="SameStep", **settings)
    ppo = sb3.PPO("MultiInputPolicy", VecMonitor(SB3VecEnv(envs)), n_steps=4, batch_size=8, n_epochs=1, device="cpu")
    ppo.learn(8)
    assert len(ppo.ep_info_buffer) == 2


def test_sac_trains_on_it(model: WorldModel) -> None:
    envs = WorldModelVectorEnv(2, model, observation="latent", max_episode_steps=3, autoreset_mode="SameStep")
    options: dict[str, Any] = {"learning_starts": 4, "batch_size": 4, "buffer_size": 16, "device": "cpu"}
    sac = sb3.SAC("MultiInputPolicy", SB3VecEnv(envs), **options)
    sac.learn(8)
    assert sac.replay_buffer.size() == 4  # of two robots each


def test_seeds_and_options_reach_each_robot() -> None:
    envs = SB3VecEnv(WorldModelVectorEnv(2, CountingModel(), autoreset_mode="SameStep"))
    envs.seed(7)
    envs.set_options([{"start": 3}, {"start": 5}])
    assert envs.reset()["proprio"][:, 1].tolist() == [3.0, 5.0]
    assert [info["seed"] for info in envs.reset_infos] == [7, 8]
    assert envs.get_attr("num_envs") == [2, 2]


def test_what_a_single_environment_tells_as_arrays_stays_arrays() -> None:
    envs = SB3VecEnv(WorldModelVectorEnv(2, CountingModel(), autoreset_mode="SameStep"))
    envs.reset()
    infos = envs.step(np.zeros((2, 2), np.float32))[3]
    assert infos[1]["objects"].shape == (1, 3) and infos[1]["errors"].shape == (1,)
    assert type(infos[1]["success"]) is bool and type(infos[1]["uncertainty"]) is float
