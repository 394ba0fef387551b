from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from counting_model import CountingModel, CountingState, shaken_model
from gymnasium.utils.env_checker import check_env

import kairos_env  # noqa: F401  (registers the environments)
from kairos_env.env.env import WorldModelEnv
from kairos_env.env.imagination import Imagination
from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.world_model.model import StepOutput, WorldModel

WORLD = "Kairos-WorldModel-v0"


def counting_env(**settings: Any) -> WorldModelEnv:
    return WorldModelEnv(CountingModel(), **settings)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return shaken_model()


def rollout(env: gym.Env[Any, Any], seed: int, count: int = 6) -> list[Any]:
    rng = np.random.default_rng(1)
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    trace: list[Any] = [env.reset(seed=seed)]
    for _ in range(count):
        trace.append(env.step(rng.uniform(low, high).astype(np.float32)))
    return trace


def assert_same(one: Any, other: Any) -> None:
    assert gym.utils.env_checker.data_equivalence(one, other, exact=True), f"{one} != {other}"


# Spaces and checkers


def test_the_spaces_are_the_robots(model: WorldModel) -> None:
    env = WorldModelEnv(model)
    assert env.observation_space == model.spec.observation_space
    assert env.action_space == model.spec.action_space
    observed, _ = env.reset(seed=0)
    assert observed in env.observation_space
    assert env.step(env.action_space.sample())[0] in env.observation_space


@pytest.mark.parametrize("seen", ["pixels", "latent", "features"])
def test_gymnasiums_checker_passes(model: WorldModel, seen: str) -> None:
    env = gym.make(WORLD, model=model, observation=seen, success_threshold=None, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The one warning that stays: actions are in physical units, not in [-1, 1].
        warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normalized space.*")
        check_env(env.unwrapped)


def test_stable_baselines_checker_passes_without_a_warning(model: WorldModel) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gym.make(WORLD, model=model, success_threshold=None, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)), skip_render_check=False)


def test_latent_observations_decode_nothing() -> None:
    env = counting_env(observation="latent")
    observed, _ = env.reset(seed=3)
    observed, *_ = env.step(np.zeros(2))
    assert observed in env.observation_space
    assert observed["latent"].shape == (2, 3, 3)
    assert observed["latent"][0, 0, 0] == pytest.approx(0.02)
    assert env.model.calls["decode"] == 0  # type: ignore[attr-defined]


def test_features_are_those_of_the_model_and_decode_nothing(model: WorldModel) -> None:
    env = WorldModelEnv(model, observation="features", success_threshold=None)
    env.reset(seed=0)
    observed, *_, info = env.step(env.action_space.sample())
    state = env.get_state().world_state
    assert observed in env.observation_space and env.observation_space["features"].shape == (len(model.feature_names),)
    assert np.array_equal(observed["features"], model.features(state.proprio, state.objects)[0].numpy())
    assert np.array_equal(info["objects"], state.objects[0].numpy())
    counting = counting_env(observation="features")
    counting.reset(seed=3)
    counting.step(np.zeros(2))
    assert counting.model.calls["decode"] == 0  # type: ignore[attr-defined]


def test_features_without_objects_say_what_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model = CountingModel()
    model.objects, model.feature_names = (), ("frames", "moved")  # type: ignore[assignment]
    model.features = lambda proprio, objects: proprio.clamp(-10, 10)  # type: ignore[method-assign]
    env = WorldModelEnv(model, observation="features")  # type: ignore[arg-type]
    assert "its features are proprioception alone" in caplog.text
    observed, info = env.reset(seed=3)
    assert observed["features"].shape == (2,) and "objects" not in info


def test_pixels_are_decoded_once_a_step() -> None:
    env = counting_env()
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2))
    assert env.model.calls == {"observe": 1, "step": 3, "decode": 3}  # type: ignore[attr-defined]


# Determinism


def test_same_seed_and_actions_give_the_same_trajectory(model: WorldModel) -> None:
    one, other = (WorldModelEnv(model, success_threshold=None) for _ in range(2))
    other.reset(seed=9)  # another past
    for _ in range(3):
        other.step(other.action_space.sample())
    assert_same(rollout(one, 5), rollout(other, 5))


def test_seeds_matter(model: WorldModel) -> None:
    env = WorldModelEnv(model, start=model.starts[0], success_threshold=None, observation="latent", steps=2)
    one, other = rollout(env, 1, 1), rollout(env, 2, 1)
    assert np.abs(one[1][0]["latent"] - other[1][0]["latent"]).max() > 1e-3  # same start, other noise


def test_the_seed_in_info_replays_any_episode() -> None:
    env = counting_env()
    env.reset(seed=0)
    for _ in range(3):
        observed, info = env.reset()
        assert_same((observed, info), counting_env().reset(seed=info["seed"]))


def test_global_random_state_is_neither_read_nor_changed(model: WorldModel) -> None:
    env = WorldModelEnv(model)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = rollout(env, 0, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert_same(first, rollout(env, 0, 2))


# Ends


def test_success_terminates() -> None:
    env = counting_env(max_episode_steps=20)
    env.reset(seed=1)  # the fake succeeds after 3 decisions
    ends = [env.step(np.zeros(2))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (True, False)]


def test_no_threshold_no_success() -> None:
    env = counting_env(success_threshold=None)
    env.reset(seed=0)
    steps = [env.step(np.zeros(2)) for _ in range(10)]
    assert not any(terminated for _, _, terminated, _, _ in steps)
    assert steps[-1][4]["success_probability"] == 1.0
    assert not steps[-1][4]["success"]


def test_the_time_limit_truncates() -> None:
    env = counting_env(max_episode_steps=2)
    env.reset(seed=4)
    assert env.step(np.zeros(2))[3] is False
    *_, truncated, info = env.step(np.zeros(2))
    assert truncated
    assert info["truncated_reason"] == "time_limit"
    assert info["imagined_step"] == 2


def test_gym_make_limits_to_what_may_be_believed_or_as_told(model: WorldModel) -> None:
    longest = gym.spec(WORLD).max_episode_steps  # of the bundled model
    assert longest is not None and longest >= 24
    for asked, expected in (({}, longest), ({"max_episode_steps": 30}, 30)):
        env = gym.make(WORLD, model=CountingModel(), success_threshold=None, **asked)  # type: ignore[arg-type]
        env.reset(seed=0)
        count = next(i for i in range(1, 100) if env.step(np.zeros(2))[3])
        assert count == expected


def test_what_is_no_longer_trusted_is_truncated() -> None:
    env = counting_env(uncertainty_limit=0.35, success_threshold=None)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2)) for _ in range(3)]  # uncertainty 0.2, 0.3, 0.4
    assert [e[3] for e in ends] == [False, False, True]
    assert ends[-1][4]["truncated_reason"] == "uncertainty"


def test_a_success_that_is_not_trusted_is_none() -> None:
    env = counting_env(uncertainty_limit=0.25)
    env.reset(seed=0)  # succeeds after 2 decisions, at uncertainty 0.3
    env.step(np.zeros(2))
    *_, terminated, truncated, info = env.step(np.zeros(2))
    assert (terminated, truncated, info["truncated_reason"]) == (False, True, "uncertainty")
    assert info["success"] is False and info["success_probability"] == 1


def test_info_has_the_errors_that_the_model_expects() -> None:
    for env in (counting_env(), gym.make(WORLD, model=CountingModel())):
        _, reset = env.reset(seed=0)
        info = env.step(np.zeros(2))[4]
        assert (reset["errors"].dtype, reset["errors"].shape) == (np.float32, (1,))
        assert [reset["errors"].item(), info["errors"].item()] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("seen", ["pixels", "latent", "features"])
def test_a_broken_model_truncates_and_stays_inside_the_spaces(seen: Any) -> None:
    env = WorldModelEnv(CountingModel(breaks_at=3), observation=seen)
    env.reset(seed=4)
    env.step(np.zeros(2))
    observed, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (terminated, truncated, info["truncated_reason"]) == (False, True, "non_finite")
    assert info["uncertainty"] == np.inf and np.isinf(info["errors"]).all(), "not the best values there are"
    assert info.get("trust", 0) == 0
    assert observed in env.observation_space
    assert np.isfinite(reward)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_a_reward_that_is_not_finite_is_0_and_truncates(value: float) -> None:
    env = counting_env(reward=lambda out: np.full(len(out.reward), value))
    env.reset(seed=4)
    _, reward, _, truncated, info = env.step(np.zeros(2))
    assert (reward, truncated, info["truncated_reason"]) == (0.0, True, "non_finite")


def test_rewards_of_a_function_and_of_the_head() -> None:
    for reward, expected in (("dense", 2.25 + 4), (lambda out: out.proprio[:, 0].numpy() * 10, 20.0)):
        env = counting_env(reward=reward)
        env.reset(options={"start": 4})
        assert env.step(np.array([0.25, 0]))[1] == pytest.approx(expected)


class QuarterModel(CountingModel):
    """Its own reward is always a quarter."""

    def step(self, state: CountingState, action: Any, steps: int | None = None) -> StepOutput:
        out = super().step(state, action, steps)
        return dataclasses.replace(out, reward=torch.full_like(out.reward, 0.25))


def test_every_imagined_decision_costs_until_success() -> None:
    for reward, expected in (("shaped", [-0.75, 0.0]), ("sparse", [-1.0, 0.0]), ("dense", [0.25, 0.25])):
        env = WorldModelEnv(QuarterModel(), reward=reward)
        env.reset(seed=0)  # succeeds after 2 decisions
        steps = [env.step(np.zeros(2)) for _ in range(2)]
        assert [step[1] for step in steps] == expected
        assert [step[2] for step in steps] == [False, True]
    doubtful = WorldModelEnv(QuarterModel(), uncertainty_limit=0.25)
    doubtful.reset(seed=0)
    doubtful.step(np.zeros(2))
    assert doubtful.step(np.zeros(2))[1] == -0.75, "a success that cannot be trusted stops no cost"


class FickleModel(QuarterModel):
    """Success comes and goes: in every second frame."""

    def step(self, state: CountingState, action: Any, steps: int | None = None) -> StepOutput:
        out = super().step(state, action, steps)
        return dataclasses.replace(out, success=(out.state.past % 2).float())


def test_where_success_ends_nothing_decisions_cost_again_when_it_is_lost() -> None:
    env = WorldModelEnv(FickleModel(), success_ends=False, max_episode_steps=6)
    env.reset(seed=0)
    steps = [env.step(np.zeros(2)) for _ in range(6)]
    assert [step[1] for step in steps] == [-0.75, 0.0] * 3
    assert [step[4]["success"] for step in steps] == [False, True] * 3
    assert [step[2:4] for step in steps] == [(False, False)] * 5 + [(False, True)]
    ended = WorldModelEnv(FickleModel())
    ended.reset(seed=0)
    assert [ended.step(np.zeros(2))[2] for _ in range(2)] == [False, True], "let off at the first claim"


def test_success_may_end_nothing() -> None:
    env = WorldModelEnv(QuarterModel(), success_ends=False, max_episode_steps=4)
    env.reset(seed=0)  # solved after 2 decisions, and stays so
    steps = [env.step(np.zeros(2)) for _ in range(4)]
    assert [step[1] for step in steps] == [-0.75, 0.0, 0.0, 0.0]
    assert not any(step[2] for step in steps)
    assert [step[4]["success"] for step in steps] == [False, True, True, True]
    assert [step[3] for step in steps] == [False, False, False, True]
    assert steps[-1][4]["truncated_reason"] == "time_limit"


# State


def test_going_back_repeats_the_future(model: WorldModel) -> None:
    env = WorldModelEnv(model, success_threshold=None)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(5)]
    env.step(actions[0])
    state = env.get_state()
    first = [env.step(a) for a in actions]
    env.reset(seed=1)
    env.set_state(state)
    assert_same(first, [env.step(a) for a in actions])
    assert env.get_state().steps.tolist() == [6]


def test_a_state_goes_into_another_environment() -> None:
    env, other = counting_env(), counting_env()
    env.reset(seed=0)
    env.step(np.ones(2))
    other.set_state(env.get_state())  # no reset needed
    assert_same(env.step(np.zeros(2)), other.step(np.zeros(2)))


def test_a_state_of_another_model_and_what_is_none_are_refused() -> None:
    env, other = counting_env(), WorldModelEnv(CountingModel(breaks_at=9))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="of another model"):
        other.set_state(env.get_state())
    for environment in (env, gym.make_vec("Kairos-WorldModel-v0", 1, vectorization_mode=None, model=CountingModel())):
        with pytest.raises(TypeError, match="takes what get_state returned, got int"):
            environment.set_state(3)
    with pytest.raises(ValueError, match="holds 2 episodes"):
        env.set_state(env.get_state().select(np.array([0, 0])))


def test_a_decoder_that_breaks_down_is_noticed() -> None:
    model = shaken_model()
    with torch.no_grad():
        next(model.tokenizer.decoder.parameters()).fill_(torch.nan)
    env = WorldModelEnv(model)
    env.reset(seed=0)
    with pytest.raises(FloatingPointError, match="decoder's pictures are not numbers"):
        env.step(env.action_space.sample())


def test_branches_start_equal_and_differ_by_their_actions() -> None:
    env = counting_env(success_threshold=None)
    env.reset(options={"start": 2})
    env.step(np.array([0.5, 0]))
    branches = env.fork(3)
    observed, *_ = branches.step(np.array([[0.5, 0], [0, 0], [-0.5, 0]]))
    assert observed["proprio"][:, 1].tolist() == [3.0, 2.5, 2.0]
    assert observed["proprio"][:, 0].tolist() == [3.0, 3.0, 3.0]
    assert env.step(np.zeros(2))[0]["proprio"].tolist() == [3.0, 2.5]  # the original goes its own way
    branches.close()


def test_a_branch_that_has_finished_stays_finished() -> None:
    env = counting_env(reward="dense")
    env.reset(seed=0)  # two decisions
    branches = env.fork(2)
    ends = [branches.step(np.zeros((2, 2))) for _ in range(4)]
    assert [e[2].tolist() for e in ends] == [[False] * 2, [True] * 2, [True] * 2, [True] * 2]
    assert [bool(e[1].any()) for e in ends] == [True, True, False, False]


# Rendering


def test_render_enlarges_the_newest_frame() -> None:
    env = counting_env(render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.zeros(2))
    frame = env.render()
    assert frame is not None
    assert frame.shape == (252, 252, 3)
    assert frame.dtype == np.uint8
    assert (frame == 2).all()


def test_render_needs_a_mode_and_a_reset() -> None:
    with pytest.raises(gym.error.ResetNeeded):
        counting_env(render_mode="rgb_array").render()
    with pytest.warns(UserWarning, match="rgb_array"):
        assert counting_env().render() is None
    with pytest.raises(ValueError, match="kairos play"):
        counting_env(render_mode="human")


def test_a_window_is_gymnasiums_and_says_what_it_needs() -> None:
    if importlib.util.find_spec("pygame") is not None:
        pytest.skip("pygame is installed")
    with pytest.warns(UserWarning, match="HumanRendering"):
        env = gym.make(WORLD, model=CountingModel(), render_mode="human")
    with pytest.raises(gym.error.DependencyNotInstalled, match="pip install"):
        env.reset()


# Bad input


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"task": "cuont"}, "did you mean 'count'"),
        ({"rewrad": "dense"}, "unknown setting 'rewrad'; did you mean 'reward'"),
        ({"observation": "image"}, "unknown observation 'image'; legal: pixels, latent, features"),
        ({"steps": 0}, "steps is 0"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"max_episode_steps": 1.5}, "max_episode_steps is 1.5; use a whole number"),
        ({"max_episode_steps": True}, "max_episode_steps is True; use a whole number"),
        ({"steps": "2"}, "steps is '2'; use a whole number"),
        ({"horizon": 2.5}, "horizon is 2.5; use 'measured', a whole number"),
        ({"success_ends": "no"}, "success_ends is 'no'; use True or False"),
        ({"success_threshold": "half"}, "success_threshold is 'half'; use a probability"),
        ({"uncertainty_limit": "a"}, "uncertainty_limit is 'a'; use a number"),
        ({"success_threshold": 1.5}, r"\(0, 1\]"),
        ({"uncertainty_limit": 0}, "> 0"),
        ({"start": "Kairos-Nowhere-v0"}, "neither 'dataset' nor"),
        ({"device": "cuda:7"}, "the given model is on 'cpu'"),
    ],
)
def test_settings_that_are_not_legal(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        counting_env(**settings)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (np.zeros(3), "dx, grip"),
        (np.zeros((2, 2)), r"expected \(1, 2\)"),
        (np.array([np.nan, 0]), "non-finite"),
        (["left", "open"], "must be numeric"),
        (np.array(["0.1", "0"]), "must be numeric"),
        (np.array([1j, 0]), "must be numeric"),
        (torch.zeros(2, requires_grad=True), "must be numeric.*requires grad"),
        (None, "dx, grip"),
    ],
)
def test_actions_that_are_none(action: Any, says: str) -> None:
    env = counting_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=says):
        env.step(action)
    assert env.step(np.zeros(2))[4]["imagined_step"] == 1  # nothing happened


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.float16, np.float64, bool, object])
def test_actions_of_any_numeric_kind(kind: Any) -> None:
    env = counting_env()
    env.reset(options={"start": 0})
    action = np.array([0, 1], kind) if isinstance(kind, type) and kind not in (list, tuple) else kind([0, 1])
    assert env.step(action)[4]["imagined_step"] == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seed": 2**63}, r"the seed of an episode is 9223372036854775808; use 0 \.\.\. 2\*\*63 - 1"),
        ({"options": "count"}, "options is 'count'; reset takes a dict"),
        ({"options": {"start": 1, "initial_state": 2}}, "mean the same; pass one"),
    ],
)
def test_resets_that_are_none(wrong: dict[str, Any], says: str) -> None:
    for env in (counting_env(), WorldModelVectorEnv(2, CountingModel())):
        with pytest.raises(ValueError, match=says):
            env.reset(**wrong)


def test_excess_is_clipped() -> None:
    env = counting_env()
    env.reset(options={"start": 0})
    assert env.step(np.array([9.0, 0]))[0]["proprio"][1] == 0.5


def test_order_is_enforced() -> None:
    env = counting_env()
    for call in (lambda: env.step(np.zeros(2)), env.get_state, lambda: env.fork(2)):
        with pytest.raises(gym.error.ResetNeeded, match="call reset"):
            call()


def test_a_reward_function_with_the_wrong_shape_is_named() -> None:
    env = counting_env(reward=lambda out: out.proprio)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"returned shape \(1, 2\), expected \(1,\)"):
        env.step(np.zeros(2))


def test_an_imagination_has_its_settings_already() -> None:
    with pytest.raises(ValueError, match="task"):
        WorldModelEnv(Imagination(CountingModel()), task="count")


def test_registering_imports_no_torch() -> None:
    import subprocess

    code = "import sys, kairos_env; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
