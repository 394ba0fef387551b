"""What imagined futures are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from point_world import PointWorld, start

from kairos_env.env import WorldModelEnv
from kairos_env.env.reward import GoalImageReward
from kairos_env.policies import PLANNERS, Objective, PlannerPolicy, cem
from kairos_env.policies.planners.objective import accumulated_uncertainty, joined, untouched_motion
from kairos_env.records import Observation
from kairos_env.sims.tabletop.env import make_spec
from kairos_env.world_model.model import WorldModel


@dataclass(frozen=True)
class Future:
    reward: Any
    success: Any
    uncertainty: Any
    errors: Any = None
    proprio: Any = None
    objects: Any = None


def test_success_ends_the_imagined_episode() -> None:
    reward = np.array([[0.5, 1.0, 0.0, 0.0], [0.5, 0.9, 0.9, 0.9]])
    success = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    values = Objective(discount=1.0, success_value=0.0).value(reward, success, np.zeros_like(reward))
    assert values.tolist() == pytest.approx([3.5, 3.2])  # what is imagined after success does not count
    bonus = Objective(discount=0.5, success_value=2.0).value(reward, success, np.zeros_like(reward))
    assert bonus[0] == pytest.approx(0.5 + 0.5 + 0.25 + 0.125 + 2 * 0.5)
    cautious = Objective(uncertainty_penalty=1.0).value(reward, success * 0, np.array([[0] * 4, [1] * 4]))
    assert cautious[1] < cautious[0]


def test_uncertainty_adds_up_along_a_future() -> None:
    """The same uncertainty early costs more than late, because what follows rests on it."""
    zeros = np.zeros((2, 3))
    early_and_late = np.array([[0.3, 0.1, 0.1], [0.1, 0.1, 0.3]])
    future = Future(zeros, zeros, early_and_late)
    assert accumulated_uncertainty(future) == pytest.approx(np.array([[0.3, 0.4, 0.5], [0.1, 0.2, 0.5]]))
    values = Objective(discount=1.0, uncertainty_penalty=2.0)(future)
    assert values.tolist() == pytest.approx([-2.4, -1.6])
    # a model that says its errors in metres (hand, cube, picture) is believed instead
    errors = np.array([[[0.01, 0.02, 9.0], [0.02, 0.03, 9.0], [0.03, 0.05, 9.0]]] * 2)
    assert accumulated_uncertainty(Future(zeros, zeros, early_and_late, errors)) == pytest.approx(
        np.array([[0.03, 0.05, 0.08]] * 2)
    )


def test_parts_of_a_future_join_to_the_whole() -> None:
    model, actions = PointWorld(), np.full((2, 5, 3), 0.05, np.float32)
    state = start(model).fork(2)
    whole, first = model.imagine(state, actions), model.imagine(state, actions[:, :2])
    both = joined([first, model.imagine(first.state, actions[:, 2:])])
    assert torch.equal(both.proprio, whole.proprio) and torch.equal(both.reward, whole.reward)
    assert torch.equal(both.state.position, whole.state.position)


def test_an_own_reward_is_not_paid_for_the_models_success() -> None:
    """A cost stays a cost after the imagined success, and success earns nothing unless it is asked for."""
    cost, success, sure = np.array([[-0.5, -0.5, -0.5]]), np.array([[0.0, 1.0, 0.0]]), np.zeros((1, 3))
    own = Objective(discount=1.0, reward=lambda roll: roll.cost)
    assert own.value(cost, success, sure)[0] == pytest.approx(-1.5)
    asked = Objective(discount=0.5, success_value=4.0, reward=lambda roll: roll.cost)
    assert asked.value(cost, success, sure)[0] == pytest.approx(-0.5 - 0.25 - 0.125 + 4.0 * 0.5)


@pytest.mark.parametrize("name", ["cem", "mppi", "random_shooting"])
@pytest.mark.parametrize("deadline", [None, 1e6])
def test_an_own_cost_replaces_the_models_reward_in_every_planner(name: str, deadline: float | None) -> None:
    """Away from where the model's task is: the plan ends at the place that the cost asks for, and stays."""
    there = torch.tensor([-0.15, 0.12])
    near = Objective(reward=lambda roll: -(roll.proprio[..., :2] - there).norm(dim=-1))
    plan = PLANNERS[name](PointWorld(), start(PointWorld()), horizon=4, objective=near, deadline=deadline, rollout=True)
    away = (plan.rollout.proprio[0, :, :2] - there).norm(dim=-1)
    assert away[-1] < (0.1 if name == "random_shooting" else 0.03) and plan.value == pytest.approx(
        float(near(plan.rollout)[0]), abs=1e-4
    )


def test_an_own_cost_chooses_among_the_proposals_of_the_policy() -> None:
    left = Objective(reward=lambda roll: -roll.proprio[..., 0])
    model = PointWorld(aim=1.5)
    plan = PLANNERS["best_of_n"](model, start(model), n=32, objective=left, rollout=True)
    assert plan.chosen == plan.values.argmax() and plan.value > plan.values[0] + 0.1


def test_a_reward_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(64,\), expected \(B, Hor\) = \(64, 4\)"):
        cem(
            PointWorld(),
            start(PointWorld()),
            horizon=4,
            batch_size=128,
            objective=Objective(reward=lambda r: r.reward[:, 0]),
        )


def test_a_cost_as_documented_brings_the_arm_to_its_goal() -> None:
    """With the bundled model, 15 cm away at first (when the model's success was added, it ended 33 cm away)."""
    model = WorldModel.from_pretrained("kairos-tiny")
    env = WorldModelEnv(model, task="reach", success_threshold=None)
    seen, info = env.reset(seed=0)
    goal = torch.from_numpy(seen["proprio"][:3]) + torch.tensor([0.1, 0.1, 0.05])

    def near(rollout: Any) -> torch.Tensor:
        return -(rollout.proprio[..., :3] - goal).norm(dim=-1)

    search = {"horizon": 4, "population": 24, "iterations": 3, "elites": 5}
    policy = PlannerPolicy(model, cem, task="reach", objective=Objective(reward=near), execute=2, **search)
    policy.reset(seed=0)
    distances = [0.15]
    for _ in range(6):
        seen, *_ = env.step(policy.act(Observation.from_gym(seen, info["instruction"])))
        distances.append(float(np.linalg.norm(seen["proprio"][:3] - goal.numpy())))
    assert distances[-1] < 0.03, distances


def test_a_goal_image_is_a_reward_of_rollouts() -> None:
    """Of every imagined step as of a whole rollout; best, within what coding a picture costs, where it is the goal."""
    model = WorldModel.from_pretrained("kairos-tiny")
    state = model.observe(model.starts[0]).fork(2)
    actions = np.zeros((2, 3, 4), np.float32)
    actions[1, :, :3] = 0.05
    rollout = model.imagine(state, actions)
    goal = model.decode(rollout.latents[1, -1])["scene"]
    reward = GoalImageReward(model, goal)
    values = reward(rollout)
    step = model.step(state, actions[:, 0])
    assert values.shape == (2, 3) and torch.allclose(values[:, 0], reward(step), atol=1e-4)
    assert values[1, -1] > values.max() - 0.05 and values[1, -1] > values[0, -1] + 0.1
    chosen = Objective(reward=reward)(rollout)
    assert chosen[1] > chosen[0]


def test_an_object_that_moves_untouched_is_an_error_of_the_model() -> None:
    """A future in which the cube leaps to the goal while the hand is elsewhere loses to one that moves it by hand."""
    spec = make_spec()
    hand = torch.zeros(2, 4, 4)
    hand[..., 2] = 0.02
    hand[0, :, 0] = torch.tensor([0.0, 0.03, 0.06, 0.09])  # pushes a cube that is 4 cm before it
    hand[1, :, 0] = -0.2
    cube = torch.zeros(2, 4, 1, 3)
    cube[..., 0, 2] = 0.02
    cube[:, :, 0, 0] = torch.tensor([0.04, 0.07, 0.10, 0.13])
    lost = untouched_motion(Future(None, None, None, proprio=hand, objects=cube), spec)
    assert lost[0].tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert lost[1].tolist() == pytest.approx([0, 0.02, 0.02, 0.02], abs=1e-6)
    with pytest.raises(ValueError, match="untouched_penalty needs a model that reads objects"):
        cem(PointWorld(), start(PointWorld()), untouched_penalty=1.0)


def test_the_bundled_model_is_held_to_what_hands_can_do() -> None:
    model = WorldModel.from_pretrained("kairos-tiny")
    state = model.observe(model.starts[0])
    search = {"horizon": 3, "population": 8, "iterations": 1, "elites": 4, "rollout": True}
    plan = cem(model, state, untouched_penalty=10.0, **search)
    moved = untouched_motion(plan.rollout, model.spec).sum()
    assert plan.value == pytest.approx(float(Objective()(plan.rollout)[0]) - 10 * moved, abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"discount": 2.0}, {"uncertainty_penalty": -1.0}, {"uncertainty_penalty": np.nan}, {"terminal_weight": -1}],
)
def test_weights_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is .*; it takes a number"):
        Objective(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"deadline": -1.0}, {"deadline": np.nan}, {"risk": "a", "samples": 2}, {"risk": np.nan}]
)
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(deadline|risk) is .*; it takes a number >= 0"):
        cem(PointWorld(), start(PointWorld()), **wrong)
