from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from counting_model import SPEC, CountingModel, observation

from kairos_env.env import WorldModelEnv
from kairos_env.env.reward import make_reward, reward_form
from kairos_env.records import Camera, SpecMismatch
from kairos_env.sims.reward import REWARD_FORMS, RewardForm
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.model import StepOutput, WorldModel


def step_output(model: CountingModel, count: int = 3) -> StepOutput:
    state = model.observe([observation(float(i)) for i in range(count)], seeds=list(range(count)))
    return model.step(state, np.zeros((count, 2), np.float32))


@pytest.mark.parametrize("form", REWARD_FORMS)
def test_every_form_begins_with_the_models_own_reward(form: RewardForm) -> None:
    model = CountingModel()
    out = step_output(model)
    assert torch.equal(make_reward(form, model)(out), out.reward)
    assert reward_form(form) == form


def test_a_model_that_nobody_taught_what_success_is_earns_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = CountingModel()
    model.untrained = ("reward", "success")
    env = WorldModelEnv(model)  # type: ignore[arg-type]
    assert "no episode taught" in caplog.text and "give reward=function" in caplog.text
    _, info = env.reset(seed=0)
    assert "success_probability" not in info
    for _ in range(3):
        _, reward, terminated, _, info = env.step(env.action_space.high)
        assert reward == 0 and not terminated and not info["success"] and "success_probability" not in info
    own = WorldModelEnv(model, reward=lambda out: out.reward)  # type: ignore[arg-type]
    own.reset(seed=0)
    assert own.step(own.action_space.high)[1] > 0


def test_rewards_of_ones_own_are_taken_as_they_are() -> None:
    assert reward_form(lambda out: out.reward) == "dense"


def test_a_function_is_taken_as_it_is() -> None:
    model = CountingModel()
    reward = make_reward(lambda out: out.proprio[:, 1] * 2, model)
    assert reward(step_output(model)).tolist() == [0.0, 2.0, 4.0]


def test_goal_image_rewards_being_there_and_ranks_by_distance() -> None:
    spec = make_spec()
    model = WorldModel.from_preset("debug", spec, TASKS)
    goal, near, far = (np.full((64, 64, 3), value, np.uint8) for value in (200, 180, 20))
    starts = [dataclasses.replace(observation(spec=SPEC), images={"scene": image}) for image in (goal, near, far)]
    proprio = np.array([field.low for field in spec.proprio], np.float32)
    state = model.observe([dataclasses.replace(o, proprio=proprio) for o in starts], seeds=[0, 1, 2])
    read = state.reward, state.success, state.reward, state.objects, state.errors
    out = StepOutput(state, state.latent, state.proprio, *read)
    for form in (goal, {"scene": goal}, dataclasses.replace(starts[0], proprio=proprio)):
        there, close, away = make_reward(form, model)(out).tolist()
        assert there == pytest.approx(0.0, abs=1e-5)
        assert away < close < there


@pytest.mark.parametrize(
    ("reward", "error", "says"),
    [
        ("sparce", ValueError, "did you mean 'sparse'.*or give a function, or a goal image"),
        ("learned", ValueError, "'learned' is called 'dense' now; the default, 'shaped', pays for success"),
        (3, TypeError, "is a int"),
        (np.zeros((8, 8, 3), np.uint8), SpecMismatch, r"\(36, 36, 3\)"),
        (np.zeros((36, 36, 3), np.float32), ValueError, "float32, expected uint8"),
    ],
)
def test_what_is_no_reward_is_refused(reward: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make_reward(reward, CountingModel())  # type: ignore[arg-type]


def test_one_image_for_two_cameras_is_ambiguous() -> None:
    model = CountingModel()
    model.spec = dataclasses.replace(SPEC, cameras=(*SPEC.cameras, Camera("wrist", 36, 36)))
    with pytest.raises(ValueError, match="scene, wrist; pass a mapping"):
        make_reward(np.zeros((36, 36, 3), np.uint8), model)
