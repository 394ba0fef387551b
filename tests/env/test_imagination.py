"""Imagined episodes of published weights: the same environment, a latent frame a decision."""

from __future__ import annotations

import logging
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from released_models import ROBOTS, released_model

from kairos_env.env import WorldModelEnv, WorldModelVectorEnv
from kairos_env.policies.planners import PLANNERS
from kairos_env.world_model.published.folder import save_parts
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.world_action import WorldActionModel

pytest.importorskip("diffusers", reason="the video tokenizer is diffusers'")


@pytest.fixture(scope="module", params=ROBOTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    released_model(ROBOTS[request.param]).save_pretrained(folder)
    return folder


def test_gym_make_runs_a_folder_of_published_weights(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        env = gym.make("Kairos-WorldModel-v0", model=folder, task="bowl", steps=1, render_mode="rgb_array")
    assert caplog.text.count("does not follow actions until they are fine-tuned") == 1
    model = env.unwrapped.model  # type: ignore[attr-defined]
    rate = model.spec.control_rate_hz / 16  # four pictures a frame, four actions a picture
    assert env.unwrapped.robot_spec.control_rate_hz == env.metadata["render_fps"] == rate  # type: ignore[attr-defined]
    observation, info = env.reset(seed=3)
    assert observation in env.observation_space and info["follows_actions"] is False
    assert info["instruction"] == "pick up the bowl"
    for _ in range(2):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert (reward, terminated, truncated, info["success"]) == (-1.0, False, False, False)
    picture = env.render()
    assert isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.max() > picture.min()


def test_a_batch_imagines_what_each_would_alone(folder: Path) -> None:
    single = WorldModelEnv(model=folder, steps=1)
    many = WorldModelVectorEnv(2, single.imagination)
    action = single.action_space.sample()
    many.reset(seed=4)
    together = many.step(np.stack([action, action]))[0]
    for row in range(2):
        single.reset(seed=4 + row)
        alone = single.step(action)[0]
        for key, value in alone.items():
            np.testing.assert_allclose(together[key][row].astype(float), value.astype(float), atol=1.01)


def test_planners_run_on_published_weights(folder: Path) -> None:
    env = WorldModelEnv(folder, steps=1)
    env.reset(seed=0)
    state, size = env.get_state().world_state, {"horizon": 2, "population": 4, "samples": 1, "steps": 1}
    plan = PLANNERS["random_shooting"](env.model, state, **size)
    assert plan.actions.shape[-1] == env.model.spec.action_dim


def test_weights_without_an_action_expert_say_what_is_missing(tmp_path: Path) -> None:
    save_parts(WorldActionModel.from_release(miniature("4b-robot", layers=4)), tmp_path / "m")
    with pytest.raises(ValueError, match=r"'4b-robot-miniature' .* knows no robot: .*4b-libero, 4b-robotwin"):
        gym.make("Kairos-WorldModel-v0", model=tmp_path / "m")
