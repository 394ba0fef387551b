from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from counting_model import CountingModel, observation, shaken_model
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

import kairos_env  # noqa: F401  (registers the environments)
from kairos_env.env.env import WorldModelEnv
from kairos_env.env.imagination import Imagination
from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.records import SpecMismatch
from kairos_env.world_model.model import WorldModel

WORLD = "Kairos-WorldModel-v0"
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return shaken_model()


def counting_envs(num_envs: int = 4, **settings: Any) -> WorldModelVectorEnv:
    return WorldModelVectorEnv(num_envs, CountingModel(), **settings)


def assert_close(one: Any, other: Any, path: str = "") -> None:
    """Equal, but for a grey level and float round-off: batch sizes choose different kernels."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), f"{path}: {sorted(one)} != {sorted(other)}"
        for key in one:
            assert_close(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple) or (isinstance(one, np.ndarray) and one.dtype == object):
        assert len(one) == len(other)
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_close(a, b, f"{path}[{i}]")
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), path
        tolerance = 1 if one.dtype == np.uint8 else 1e-4
        np.testing.assert_allclose(one.astype(float), other.astype(float), atol=tolerance, err_msg=path)
    else:
        assert one == other, path


def random_actions(envs: gym.vector.VectorEnv[Any, Any, Any], count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    space = envs.action_space
    return [rng.uniform(space.low, space.high).astype(np.float32) for _ in range(count)]  # type: ignore[attr-defined]


# The same as single environments


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", [None, 4])
def test_bookkeeping_is_that_of_gymnasiums_own_vectorisation(mode: AutoresetMode, limit: int | None) -> None:
    single = lambda: WorldModelEnv(CountingModel(), max_episode_steps=limit)
    theirs = SyncVectorEnv([single] * 5, autoreset_mode=mode)
    ours = counting_envs(5, autoreset_mode=mode, max_episode_steps=limit)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert data_equivalence(theirs.reset(seed=3), ours.reset(seed=3), exact=True)
    for step, actions in enumerate(random_actions(ours, 40)):
        expected, got = theirs.step(actions), ours.step(actions)
        assert data_equivalence(expected, got, exact=True), f"step {step}: {expected} != {got}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seen", ["pixels", "latent", "features"])
def test_trajectories_are_those_of_single_environments(model: WorldModel, mode: AutoresetMode, seen: Any) -> None:
    settings: dict[str, Any] = {"max_episode_steps": 3, "success_threshold": None, "observation": seen}
    theirs = SyncVectorEnv([lambda: WorldModelEnv(model, **settings)] * 3, autoreset_mode=mode)
    ours = WorldModelVectorEnv(3, model, autoreset_mode=mode, **settings)
    assert_close(theirs.reset(seed=11), ours.reset(seed=11))
    for actions in random_actions(ours, 8):
        assert_close(theirs.step(actions), ours.step(actions))


def test_neighbours_do_not_matter(model: WorldModel) -> None:
    settings: dict[str, Any] = {"success_threshold": None, "observation": "latent"}
    few, many = (WorldModelVectorEnv(n, model, **settings) for n in (2, 7))
    few.reset(seed=[5, 6])
    many.reset(seed=[9, 9, 5, 9, 9, 9, 6])
    for actions in random_actions(many, 4):
        one = few.step(actions[[2, 6]])[0]
        other = many.step(actions)[0]
        assert_close(one, {k: v[[2, 6]] for k, v in other.items()})


def test_same_seed_same_trajectory(model: WorldModel) -> None:
    envs = WorldModelVectorEnv(3, model, max_episode_steps=2)
    runs = []
    for _ in range(2):
        runs.append([envs.reset(seed=4), *(envs.step(a) for a in random_actions(envs, 5))])
    assert data_equivalence(runs[0], runs[1], exact=True)


# One batch


def test_one_model_step_for_all() -> None:
    envs = counting_envs(64, success_threshold=None)
    envs.reset(seed=0)
    for actions in random_actions(envs, 5):
        envs.step(actions)
    assert envs.model.calls == {"observe": 1, "step": 5, "decode": 5}  # type: ignore[attr-defined]


def test_a_common_end_costs_no_model_step() -> None:
    envs = counting_envs(8, success_threshold=None, max_episode_steps=2)
    envs.reset(seed=0)
    for actions in random_actions(envs, 3):
        _, _, _, truncated, info = envs.step(actions)
    assert envs.model.calls == {"observe": 2, "step": 2, "decode": 2}  # type: ignore[attr-defined]
    assert not truncated.any()
    assert (info["imagined_step"] == 0).all()


# Autoreset


def test_next_step_shows_the_last_observation_then_the_new_start() -> None:
    envs = counting_envs(2, max_episode_steps=3, success_threshold=None)
    envs.reset(seed=0)
    for _ in range(3):
        observed, _, _, truncated, info = envs.step(np.zeros((2, 2)))
    assert truncated.all()
    assert observed["proprio"][:, 0].tolist() == [4.0, 4.0]
    assert info["truncated_reason"].tolist() == ["time_limit"] * 2
    observed, reward, _, truncated, info = envs.step(np.ones((2, 2)))  # this action is ignored
    assert observed["proprio"][:, 0].tolist() == [1.0, 1.0]
    assert reward.tolist() == [0.0, 0.0]
    assert not truncated.any()
    assert "truncated_reason" not in info


def test_same_step_keeps_what_the_episode_ended_with() -> None:
    envs = counting_envs(2, autoreset_mode="SameStep", reward="dense")
    envs.reset(seed=[0, 1])  # these last 2 and 3 decisions
    envs.step(np.zeros((2, 2)))
    observed, reward, terminated, _, info = envs.step(np.zeros((2, 2)))
    assert terminated.tolist() == [True, False]
    assert observed["proprio"][:, 0].tolist() == [1.0, 3.0]
    assert info["final_obs"][0]["proprio"][0] == 3.0
    assert info["final_obs"][1] is None
    assert info["final_info"]["success"].tolist() == [True, False]
    assert info["_final_info"].tolist() == [True, False]
    assert info["imagined_step"].tolist() == [0, 2]
    assert reward[0] == info["final_obs"][0]["proprio"].sum()


def test_disabled_leaves_the_reset_to_the_caller() -> None:
    envs = counting_envs(3, autoreset_mode="Disabled")
    envs.reset(seed=[0, 1, 2])  # 2, 3 and 4 decisions
    envs.step(np.zeros((3, 2)))
    observed, _, terminated, _, _ = envs.step(np.zeros((3, 2)))
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0\] have finished"):
        envs.step(np.zeros((3, 2)))
    shown = {key: column.copy() for key, column in observed.items()}
    for column in observed.values():
        column[:] = 0  # what the caller does with his arrays is his business
    again, info = envs.reset(seed=[7, None, None], options={"reset_mask": terminated})
    for key in shown:
        assert (again[key][1:] == shown[key][1:]).all()
    assert again["proprio"][0, 0] == 1.0
    assert info["_seed"].tolist() == [True, False, False]
    assert info["seed"][0] == 7
    observed, *_ = envs.step(np.zeros((3, 2)))
    assert observed["proprio"][:, 0].tolist() == [2.0, 4.0, 4.0]


@pytest.mark.parametrize("mask", [np.zeros(4, bool), np.ones(3, bool), np.ones(4), "all"])
def test_masks_that_are_none(mask: Any) -> None:
    envs = counting_envs(4, autoreset_mode="Disabled")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected bool with shape \(4,\)"):
        envs.reset(options={"reset_mask": mask})


def test_an_episode_that_breaks_down_leaves_its_neighbours_alone() -> None:
    model = CountingModel(breaks_at=4)
    envs = WorldModelVectorEnv(2, model, autoreset_mode="SameStep", success_threshold=None)
    envs.reset(seed=0)
    envs.step(np.zeros((2, 2)))
    state = envs.get_state()
    envs.reset(seed=0)
    envs.set_state(state.overwrite(np.array([1]), envs.get_state().select(np.array([1]))))
    ends = [envs.step(np.zeros((2, 2))) for _ in range(3)]
    assert [e[3].tolist() for e in ends] == [[False, False], [True, False], [False, True]]
    assert ends[1][4]["final_info"]["truncated_reason"].tolist() == ["non_finite", None]
    assert all(e[0] in envs.observation_space for e in ends)


# Reset options


def test_options_for_all_or_for_each() -> None:
    envs = counting_envs(3)
    observed, info = envs.reset(options={"start": [1, 5, 3], "task": "wait"})
    assert observed["proprio"][:, 1].tolist() == [1.0, 5.0, 3.0]
    assert info["instruction"].tolist() == ["do nothing"] * 3
    observed, _ = envs.reset(options={"observation": [observation(float(i)) for i in (20, 30, 40)]})
    assert observed["proprio"][:, 1].tolist() == [20.0, 30.0, 40.0]
    with pytest.raises(ValueError, match="'start' has 2 values, expected 1 or 3"):
        envs.reset(options={"start": [1, 2]})
    with pytest.raises(ValueError, match="got 2 seeds for 3"):
        envs.reset(seed=[1, 2])


def test_the_observation_of_another_robot_is_refused(model: WorldModel) -> None:
    with pytest.raises(SpecMismatch, match="scene"):
        WorldModelVectorEnv(2, model).reset(options={"observation": observation()})


# State and rendering


def test_going_back_repeats_the_future() -> None:
    envs = counting_envs(4)
    envs.reset(seed=[1, 2, 3, 4])
    actions = random_actions(envs, 3)
    for a in actions[:2]:
        envs.step(a)
    state = envs.get_state()
    first = envs.step(actions[2])
    envs.set_state(state)
    assert data_equivalence(first, envs.step(actions[2]), exact=True)
    with pytest.raises(ValueError, match="holds 2 episodes, this environment 4"):
        envs.set_state(state.select(np.array([0, 1])))


def test_overwriting_a_state_puts_each_episode_in_its_row() -> None:
    envs, others = counting_envs(4), counting_envs(2)
    envs.reset(options={"start": [0, 1, 2, 3]})
    others.reset(options={"start": [8, 9]})
    merged = envs.get_state().overwrite(np.array([3, 1]), others.get_state())
    assert merged.world_state.proprio[:, 1].tolist() == [0.0, 9.0, 2.0, 8.0]
    assert merged.seeds[[3, 1]].tolist() == others.get_state().seeds.tolist()
    everything = others.get_state().overwrite(np.array([1, 0]), others.get_state())
    assert everything.world_state.proprio[:, 1].tolist() == [9.0, 8.0]


def test_render_gives_a_frame_for_each() -> None:
    envs = counting_envs(3, render_mode="rgb_array")
    envs.reset(seed=0)
    frames = envs.render()
    assert frames is not None
    assert [f.shape for f in frames] == [(252, 252, 3)] * 3


# Gymnasium around it


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_make_vec_is_native(mode: str) -> None:
    envs = gym.make_vec(WORLD, num_envs=3, model=CountingModel(), autoreset_mode=mode)
    assert isinstance(envs.unwrapped, WorldModelVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode(mode)
    observed, _ = envs.reset(seed=0)
    assert observed in envs.observation_space


def test_make_vec_limits_to_what_may_be_believed_or_as_told() -> None:
    for asked, expected in (({}, gym.spec(WORLD).max_episode_steps), ({"max_episode_steps": 30}, 30)):
        envs = gym.make_vec(WORLD, num_envs=2, model=CountingModel(), success_threshold=None, **asked)  # type: ignore[arg-type]
        envs.reset(seed=0)
        assert next(i for i in range(1, 100) if envs.step(np.zeros((2, 2)))[3].all()) == expected


def test_environments_share_an_imagination_but_not_their_time_limit() -> None:
    shared = Imagination(CountingModel(), max_episode_steps=3)
    envs = gym.make_vec(WORLD, num_envs=2, model=shared)
    assert envs.model is shared.model  # type: ignore[attr-defined]
    limits = [e.imagination.max_episode_steps for e in (envs, WorldModelVectorEnv(2, shared, max_episode_steps=5))]  # type: ignore[attr-defined]
    assert limits == [gym.spec(WORLD).max_episode_steps, 5] and shared.max_episode_steps == 3
    with pytest.raises(ValueError, match="max_episode_steps is 0"):
        WorldModelVectorEnv(2, shared, max_episode_steps=0)


def test_gymnasiums_vector_wrappers_work() -> None:
    envs = DictInfoToList(RecordEpisodeStatistics(counting_envs(2)))
    envs.reset(seed=0)  # 2 and 3 decisions
    infos = [envs.step(np.zeros((2, 2)))[4] for _ in range(3)]
    assert infos[1][0]["episode"]["l"] == 2
    assert infos[2][1]["episode"]["l"] == 3
    assert infos[1][1]["imagined_step"] == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"autoreset_mode": "Sometimes"}, r"one of \['NextStep', 'SameStep', 'Disabled'\]"),
        ({"render_mode": "human"}, "use 'rgb_array'"),
        ({"task": "dance"}, "the model knows no task 'dance'"),
    ],
)
def test_settings_that_are_not_legal(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        counting_envs(**settings)


def test_actions_and_order() -> None:
    envs = counting_envs(2)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros((2, 2)))
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        envs.step(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="dx, grip"):
        envs.step(None)  # type: ignore[arg-type]
    assert envs.get_state().steps.tolist() == [0, 0], "nothing moved"
    assert envs.reset(seed=np.array([4, 5]))[1]["seed"].tolist() == [4, 5]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed is 1.5; use a whole number, or one for each"):
        envs.reset(seed=1.5)  # type: ignore[arg-type]
    envs.close()
    envs.close()
