"""What was trained in imagination sees a simulator as it saw imagination."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from counting_model import CountingModel, shaken_model

from kairos_env.env.env import WorldModelEnv
from kairos_env.env.perceived import PerceivedEnv
from kairos_env.records import Observation, SpecMismatch
from kairos_env.sims.tabletop.env import RobosuiteEnv
from kairos_env.world_model.model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return shaken_model()


@pytest.mark.parametrize("seen", ["features", "latent"])
def test_reality_begins_as_imagination_does(model: WorldModel, seen: str) -> None:
    real = PerceivedEnv(RobosuiteEnv("push"), model, seen)  # type: ignore[arg-type]
    imagined = WorldModelEnv(model, start=RobosuiteEnv("push"), observation=seen)  # type: ignore[typeddict-item]
    assert (real.observation_space, real.action_space) == (imagined.observation_space, imagined.action_space)
    options = {"initial_state": 300_000}
    first, info = real.reset(seed=0, options=options)
    expected, imagined_info = imagined.reset(seed=0, options=options)
    for key, value in expected.items():
        np.testing.assert_allclose(first[key], value, atol=1e-4)
    np.testing.assert_allclose(info["objects"], imagined_info["objects"], atol=1e-5)
    assert "privileged" in info, "what the simulator says stays"
    for key in ("errors", "uncertainty", "familiarity", "trust"):
        np.testing.assert_allclose(info[key], imagined_info[key], rtol=1e-3)
    real.close()


def observed(env: RobosuiteEnv, told: tuple[Any, dict[str, Any]]) -> Observation:
    return Observation.from_gym(env.observe(), told[1]["instruction"])


def test_every_observation_enters_the_memory_with_the_action_before_it(model: WorldModel) -> None:
    env, shown = RobosuiteEnv("reach"), []
    real = PerceivedEnv(env, model)
    for _ in range(2):  # a reset forgets
        state = model.observe([observed(env, real.reset(seed=4))], seeds=[0])
        for action in (np.array([0.05, 0, 0, -1], np.float32), np.array([0, 0.05, 0, 1], np.float32)):
            seen, reward, terminated, truncated, info = real.step(action)
            state = model.observe([observed(env, (None, info))], state, action[None])
            shown.append(seen["features"])
            np.testing.assert_array_equal(seen["features"], model.features(state.proprio, state.objects)[0].numpy())
            assert seen in real.observation_space and -1 <= reward <= 0
    np.testing.assert_array_equal(shown[:2], shown[2:])
    real.close()


class Darker(gym.ObservationWrapper[Any, Any, Any]):
    """A simulator whose light goes out."""

    light = 1.0

    def observation(self, observation: Any) -> Any:
        return {k: (v * self.light).astype(v.dtype) if k.startswith("image") else v for k, v in observation.items()}


def test_a_light_that_goes_out_is_told_when_it_does() -> None:
    dark = Darker(RobosuiteEnv("reach"))
    real = PerceivedEnv(dark, WorldModel.from_pretrained("kairos-tiny"))
    _, first = real.reset(seed=0, options={"initial_state": 300_000})
    dark.light = 0.1
    *_, second = real.step(np.zeros(4, np.float32))
    dark.light = 1.0
    *_, third = real.step(np.zeros(4, np.float32))
    assert second["familiarity"] < 0.6 < third["familiarity"] and first["familiarity"] > 0.6
    assert second["trust"] < first["trust"], "and believed less"
    real.close()


def test_what_cannot_be_perceived_is_refused(model: WorldModel) -> None:
    env = RobosuiteEnv("reach")
    with pytest.raises(SpecMismatch, match="counter"):
        PerceivedEnv(env, CountingModel())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is what the environment shows itself; use 'features' or 'latent'"):
        PerceivedEnv(env, model, "pixels")
    with pytest.raises(ValueError, match="unknown observation 'feature'; did you mean 'features'"):
        PerceivedEnv(env, model, "feature")  # type: ignore[arg-type]
    env.close()
