"""What a decision earns, from dense reward and success."""

from __future__ import annotations

import numpy as np
import pytest
from point_simulator import Point

from kairos_env.sims.check import check_simulator
from kairos_env.sims.reward import REWARD_FORMS, check_reward_form, step_reward
from kairos_env.sims.tabletop.env import RobosuiteEnv


@pytest.mark.parametrize(
    ("form", "earned"),
    [("shaped", [-1.0, -0.25, 0.0, 0.0]), ("sparse", [-1.0, -1.0, -1.0, 0.0]), ("dense", [-0.5, 0.75, 1.5, 0.5])],
)
def test_a_decision_costs_until_success(form: str, earned: list[float]) -> None:
    """Dense rewards beyond 0 ... 1, as a model may say, never pay for not succeeding."""
    dense, success = np.array([-0.5, 0.75, 1.5, 0.5]), np.array([False, False, False, True])
    assert step_reward(dense, success, check_reward_form(form)).tolist() == earned
    for value, solved, expected in zip(dense.tolist(), success.tolist(), earned, strict=True):
        found = step_reward(value, solved, check_reward_form(form))
        assert isinstance(found, float) and found == expected


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ValueError, match="unknown reward 'shapd'; did you mean 'shaped'"):
        RobosuiteEnv(reward="shapd")  # type: ignore[arg-type]


def test_a_simulator_earns_by_the_form_it_was_made_with() -> None:
    for form in REWARD_FORMS:
        env = RobosuiteEnv("reach", observe_images=False, reward=form)
        env.reset(options={"initial_state": 300_000})
        ended = False
        while not ended:
            _, reward, ended, _, info = env.step(env.expert_action())
            dense = info["task_rewards"]["reach"]
            assert 0 <= dense <= 1 and (dense == 1) == ended
            assert reward == step_reward(dense, ended, form)
        env.close()


class Generous(Point):
    """Says that it earns by the contract, and pays more."""

    reward_form, task = "shaped", "near"

    def reset(self, **arguments: object) -> object:
        return super().reset(seed=7, options={"task": "near", "initial_state": 0})


def test_a_simulator_that_pays_for_not_succeeding_is_found() -> None:
    findings = {f.name: f for f in check_simulator(f"{__name__}:Generous", vector=False)}
    assert findings["reward"].status == "problem"
    assert findings["reward"].text.startswith("shaped rewards are [0.")
