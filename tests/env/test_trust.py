"""How far imagination may be believed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from counting_model import CountingModel, observation

from kairos_env import _longest_trusted
from kairos_env.env.env import WorldModelEnv
from kairos_env.env.trust import Familiarity, chance_within
from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.records import Array, Observation
from kairos_env.runs import write_json
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.checkpoint import HORIZONS, MEASURED
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel

WORLD = "Kairos-WorldModel-v0"


def counting_model(**horizons: int) -> CountingModel:
    model = CountingModel()
    model.horizons = horizons
    return model


def decisions(env: Any) -> tuple[int, str]:
    """How many until an episode is truncated, and why."""
    env.reset(seed=0)
    for count in range(1, 100):
        *_, truncated, info = env.step(np.zeros(2))
        if truncated:
            return count, info.get("truncated_reason", "")
    raise AssertionError("it never ends")


# Expected errors


def test_the_chance_of_being_near_follows_from_the_expected_error() -> None:
    rng = np.random.default_rng(0)
    apart = np.linalg.norm(rng.normal(0, 0.04 / np.sqrt(3), (200_000, 3)), axis=1)  # root mean square 4 cm
    assert chance_within(0.04) == pytest.approx((apart < 0.03).mean(), abs=0.005)
    assert [chance_within(error) for error in (0.0, 0.001, 10.0)] == pytest.approx([1, 1, 0], abs=1e-6)
    assert (np.diff([chance_within(error) for error in np.linspace(0.005, 0.5, 50)]) < 0).all()


@pytest.fixture(scope="module")
def one_pass() -> WorldModel:
    """A model that expects its errors, untrained."""
    config = dataclasses.replace(get_preset("debug"), objects=("object", "goal"))
    model = WorldModel(config, make_spec(), TASKS).eval()
    model.starts = (Observation({"scene": np.full((64, 64, 3), 90, np.uint8)}, np.zeros(4, np.float32)),)
    return model


def test_trust_falls_as_expected_errors_grow(one_pass: WorldModel) -> None:
    envs = WorldModelVectorEnv(2, one_pass, success_threshold=None)
    _, info = envs.reset(seed=0)
    start = envs.get_state().world_state
    assert info["uncertainty"] == pytest.approx(start.errors[:, :-1].amax(1).numpy())
    for _ in range(3):
        *_, info = envs.step(envs.action_space.sample())
        errors = envs.get_state().world_state.errors.numpy()
        assert info["uncertainty"] == pytest.approx(errors[:, :-1].max(1), rel=1e-5)
        assert info["trust"] == pytest.approx([chance_within(error) for error in info["uncertainty"]])
        np.testing.assert_array_equal(info["errors"], errors)
        assert info["_trust"].all() and ((0 <= info["trust"]) & (info["trust"] <= 1)).all()


def test_the_limit_is_in_metres(one_pass: WorldModel) -> None:
    env = WorldModelEnv(one_pass, success_threshold=None, uncertainty_limit=1e-4)
    env.reset(seed=0)
    *_, truncated, info = env.step(env.action_space.sample())
    assert truncated and info["truncated_reason"] == "uncertainty" and info["uncertainty"] > 1e-4


def test_models_that_expect_no_errors_of_positions_promise_no_trust() -> None:
    env = WorldModelEnv(CountingModel())
    env.reset(seed=0)
    assert "trust" not in env.step(np.zeros(2))[4]


# Observations unlike the training data


@pytest.fixture(scope="module")
def bundled() -> WorldModel:
    return WorldModel.from_pretrained("kairos-tiny")


def changed(model: WorldModel, change: Callable[[Array], Array], count: int = 6) -> list[Observation]:
    def picture(image: Array) -> Array:
        return np.clip(change(image.astype(float)), 0, 255).astype(np.uint8)

    return [dataclasses.replace(o, images={k: picture(v) for k, v in o.images.items()}) for o in model.starts[:count]]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image * 0.1,  # the training data have half the light as well
        lambda image: image * (1.6, 1.0, 0.4),  # another colour
        lambda image: np.random.default_rng(0).integers(0, 256, image.shape),  # noise
        lambda image: image * 0 + 128,
        lambda image: image * 0 + 255 * (np.arange(64) // 2 % 2)[:, None],  # stripes
    ],
)
def test_what_is_unlike_the_training_data_is_told(bundled: WorldModel, change: Any) -> None:
    familiar = Familiarity(bundled)
    own = list(bundled.starts[:6])
    assert (familiar.strangeness(own, bundled.encode(own)) < 1.3).all()
    strange = changed(bundled, change)
    assert (familiar.strangeness(strange, bundled.encode(strange)) > 1.3).all()


def test_an_unfamiliar_start_lowers_trust_and_raises_uncertainty(bundled: WorldModel) -> None:
    usual, dark = bundled.starts[0], changed(bundled, lambda image: image * 0.1)[0]
    envs = WorldModelVectorEnv(2, bundled, success_threshold=None, start=[usual, dark])
    found = {}
    for number in (0, 1):
        env = WorldModelEnv(envs.imagination)
        _, info = env.reset(seed=0, options={"start": number})
        *_, after = env.step(np.zeros(4, np.float32))
        state = env.get_state()
        found[number] = info["familiarity"], after["familiarity"], after["uncertainty"], state.strangeness[0]
    assert found[0][:2] == (1.0, 1.0) and found[1][0] == found[1][1] < 0.5
    assert found[1][2] > 2 * found[0][2] and found[1][3] == pytest.approx(1 / found[1][0])


def test_a_light_that_a_tokenizer_codes_well_is_told_all_the_same(one_pass: WorldModel) -> None:
    """Whatever the tokenizer loses: where its latents lie away from all others is told."""
    rng = np.random.default_rng(0)

    def lit(light: float) -> list[Observation]:
        images = (light * rng.normal(120, 10, (8, 64, 64, 3))).clip(0, 255).astype(np.uint8)
        return [Observation({"scene": image}, np.zeros(4, np.float32)) for image in images]

    model = WorldModel(one_pass.config, make_spec(), TASKS).eval()
    with torch.no_grad():
        model.tokenizer.encoder[-1].weight.mul_(20.0)  # latents differ by standard deviations, as trained ones do
    model.starts = (*lit(1.0), *lit(0.9), *lit(1.1))
    familiar = Familiarity(model)
    usual, dark = (familiar.strangeness(seen, model.encode(seen)) for seen in (lit(1.0), lit(0.5)))
    assert (usual < 1.5).all() and (dark > 1.5).all()


def test_without_shipped_observations_nothing_is_said() -> None:
    env = WorldModelEnv(CountingModel(starts=()), start=observation(3.0))
    assert "familiarity" not in env.reset(seed=0)[1]


# Horizons


def test_episodes_end_at_the_horizon_of_their_task() -> None:
    settings: dict[str, Any] = {"success_threshold": None, "unknown_instructions": "accept"}
    model = counting_model(count=3, wait=5)
    assert decisions(WorldModelEnv(model, task="count", **settings)) == (3, "horizon")
    assert decisions(WorldModelEnv(model, task="wait", **settings)) == (5, "horizon")
    assert decisions(WorldModelEnv(model, horizon=7, **settings)) == (7, "horizon")
    assert decisions(WorldModelEnv(model, horizon=None, max_episode_steps=9, **settings)) == (9, "time_limit")
    assert decisions(WorldModelEnv(model, task="wait", max_episode_steps=2, **settings)) == (2, "time_limit")
    env = WorldModelEnv(model, **settings)
    env.reset(options={"instruction": "sing"})
    ends = [env.step(np.zeros(2))[3] for _ in range(3)]
    assert ends == [False, False, True], "words that are no task have the shortest horizon"


def test_each_of_many_has_the_horizon_of_its_own_task() -> None:
    model = counting_model(count=2, wait=4)
    envs = WorldModelVectorEnv(2, model, success_threshold=None, autoreset_mode="Disabled", finished="hold")
    envs.reset(seed=0, options={"task": "wait"})
    state = envs.get_state()
    envs.set_state(dataclasses.replace(state, tasks=np.array(["count", "wait"], object)))
    ends = [envs.step(np.zeros((2, 2)))[3].tolist() for _ in range(4)]
    assert ends == [[False, False], [True, False], [True, False], [True, True]]


def test_the_folder_of_a_model_states_its_horizons(one_pass: WorldModel, tmp_path: Path) -> None:
    one_pass.save_pretrained(tmp_path)
    assert WorldModel.from_pretrained(tmp_path).horizons == {}
    write_json(tmp_path / MEASURED, {HORIZONS: {"push": 2, "lift": 9}})
    for task, horizon, expected in (
        ("push", {}, 2),
        ("lift", {}, 9),
        ("push", {"horizon": None}, gym.spec(WORLD).max_episode_steps),
    ):
        settings: Any = {"model": tmp_path, "task": task, "success_threshold": None, "observation": "latent"} | horizon
        env, envs = gym.make(WORLD, **settings), gym.make_vec(WORLD, num_envs=2, **settings)
        env.reset(seed=0)
        envs.reset(seed=0)
        action = np.zeros(4, np.float32)
        assert next(i for i in range(1, 100) if env.step(action)[3]) == expected
        assert next(i for i in range(1, 100) if envs.step(np.stack([action] * 2))[3].all()) == expected
    write_json(tmp_path / MEASURED, {HORIZONS: {"push": "long"}})
    with pytest.raises(ValueError, match="the horizon of 'push' is 'long'"):
        WorldModel.from_pretrained(tmp_path)


def test_the_id_cuts_no_measured_horizon_short(tmp_path: Path) -> None:
    assert _longest_trusted(tmp_path) == 24
    for horizons, expected in (({"push": 2, "lift": 9}, 24), ({"push": 31, "lift": 9}, 31)):
        write_json(tmp_path / MEASURED, {HORIZONS: horizons})
        assert _longest_trusted(tmp_path) == expected
    registered = gym.spec(WORLD).max_episode_steps
    assert registered == max([24, *WorldModel.from_pretrained("kairos-tiny").horizons.values()])
    longer: Any = {"model": counting_model(count=40), "max_episode_steps": -1, "success_threshold": None}
    assert decisions(gym.make(WORLD, **longer)) == (40, "horizon")
    envs = gym.make_vec(WORLD, num_envs=1, **longer)
    envs.reset(seed=0)
    assert next(i for i in range(1, 100) if envs.step(np.zeros((1, 2)))[3][0]) == 40


@pytest.mark.parametrize("horizon", [0, -3, "long"])
def test_horizons_that_are_none(horizon: Any) -> None:
    with pytest.raises(ValueError, match="use 'measured', a whole number"):
        WorldModelEnv(CountingModel(), horizon=horizon)
