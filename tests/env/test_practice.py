"""Practice in imagination: an agent that imitates the model's own policy, then goes on by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from counting_model import shaken_model

from kairos_env.world_model.model import WorldModel

pytest.importorskip("stable_baselines3")

from kairos_env.env.practice import PracticeConfig, demonstrations, imitate, practice_env, practise, real_starts

SMALL = PracticeConfig(starts=3, robots=2, demonstrations=8, decisions=0, horizon=3)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return shaken_model()


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_an_agent_practises_in_imagination(model: WorldModel, algorithm: Any) -> None:
    agent = practise(dataclasses.replace(SMALL, algorithm=algorithm, decisions=48), model)
    assert agent.num_timesteps == 48
    env = agent.get_env()
    assert env is not None and env.observation_space["features"].shape == (len(model.feature_names),)  # type: ignore[index]
    assert env.env.imagination.success_ends is False and env.env.imagination.max_episode_steps == 3  # type: ignore[attr-defined]


def test_an_agent_imitates_the_models_own_policy(model: WorldModel) -> None:
    agent: Any = practise(dataclasses.replace(SMALL, demonstrations=0), model)
    before = imitate(agent, SMALL, epochs=1)
    assert imitate(agent, SMALL, epochs=60) < 0.5 * before
    seen, wanted = demonstrations(agent, SMALL, noise=0.0)
    assert seen.shape == (8, len(model.feature_names)) and wanted.shape == (8, model.spec.action_dim)
    assert wanted.abs().max() <= 1


def test_what_is_demonstrated_is_remembered_up_to_the_end_of_each_episode(model: WorldModel) -> None:
    agent: Any = practise(dataclasses.replace(SMALL, algorithm="sac"), model)
    memory = agent.replay_buffer
    assert memory.pos == 4 and memory.timeouts[2].all() and not memory.timeouts[[0, 1, 3]].any()
    begun, ended = memory.observations["features"], memory.next_observations["features"]
    assert np.array_equal(begun[1], ended[0]) and np.array_equal(begun[2], ended[1])
    assert not np.array_equal(begun[3], ended[2]), "the last one of an episode, not the first one of the next"


def test_starts_follow_from_the_seed_and_are_many(model: WorldModel) -> None:
    first, again = (real_starts(SMALL, model) for _ in range(2))
    other = real_starts(dataclasses.replace(SMALL, seed=1), model)
    assert len(first) == 3
    for one, two, three in zip(first, again, other, strict=True):
        assert np.array_equal(one.images["scene"], two.images["scene"])
        assert not np.array_equal(one.images["scene"], three.images["scene"])
    bundled = practice_env(dataclasses.replace(SMALL, simulator="dataset"), model)
    assert len(bundled.env.imagination.initial_observations.recorded) == len(model.starts)  # type: ignore[attr-defined]


def test_actions_are_scaled_both_ways(model: WorldModel) -> None:
    env = practice_env(dataclasses.replace(SMALL, simulator="dataset"), model)
    actions = torch.rand(5, 4).numpy() * 2 - 1
    np.testing.assert_allclose(env.scaled(env.physical(actions)), actions, atol=1e-6)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="algorithm='td3': give one of ppo, sac"):
        PracticeConfig(algorithm="td3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="horizon=0: give at least 1"):
        PracticeConfig(horizon=0)
