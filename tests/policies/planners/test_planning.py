"""The objective, the clock and the options that planners share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from point_world import PointWorld, optimum, start

from kairos_env.env import WorldModelEnv
from kairos_env.policies import PLANNERS, Objective, PlannerPolicy, best_of_n, cem
from kairos_env.policies.planners.planning import Clock, option_names
from kairos_env.records import Observation
from kairos_env.world_model.model import WorldModel


def test_deadline_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(np.arange(0, 1e6, 0.1))
    monkeypatch.setattr(Clock.__init__, "__defaults__", (None, lambda: float(next(ticks))))
    guess, best = optimum(8)
    short = cem(PointWorld(), start(PointWorld()), horizon=8, deadline=0.001, batch_size=16, initial=guess)
    longer = cem(PointWorld(), start(PointWorld()), horizon=8, deadline=2.0, batch_size=16)
    full = cem(PointWorld(), start(PointWorld()), horizon=8, batch_size=16)
    assert short.evaluations == 16 and short.value == pytest.approx(best)  # one batch, the warm start in it
    assert 16 < longer.evaluations < full.evaluations
    for name in PLANNERS:
        assert np.isfinite(PLANNERS[name](PointWorld(aim=1.0), start(PointWorld()), deadline=0.0).value)


def test_a_clock_does_not_start_what_would_end_too_late() -> None:
    now = [0.0]
    clock = Clock(1.0, lambda: now[0])
    now[0] = 0.6
    clock.lap()
    assert not clock.allows_another()  # 0.6 more would end at 1.2
    assert Clock(None).allows_another()


def test_success_ends_the_imagined_episode() -> None:
    reward = np.array([[0.5, 1.0, 0.0, 0.0], [0.5, 0.9, 0.9, 0.9]])
    success = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    values = Objective(discount=1.0, success_value=0.0).value(reward, success, np.zeros_like(reward))
    assert values.tolist() == pytest.approx([3.5, 3.2])  # what is imagined after success does not count
    bonus = Objective(discount=0.5, success_value=2.0).value(reward, success, np.zeros_like(reward))
    assert bonus[0] == pytest.approx(0.5 + 0.5 + 0.25 + 0.125 + 2 * 0.5)
    cautious = Objective(uncertainty_penalty=1.0).value(reward, success * 0, np.array([[0] * 4, [1] * 4]))
    assert cautious[1] < cautious[0]


def test_an_own_reward_replaces_the_models() -> None:
    left = Objective(reward=lambda roll: -roll.proprio[..., 0])
    plan = cem(PointWorld(), start(PointWorld()), horizon=4, objective=left)
    assert plan.actions[:, 0].max() < -0.08
    assert np.isfinite(best_of_n(PointWorld(), start(PointWorld()), n=2, objective=left).value)


def test_an_own_reward_is_not_paid_for_the_models_success() -> None:
    """A cost stays a cost after the imagined success, and success earns nothing unless it is asked for."""
    cost, success, sure = np.array([[-0.5, -0.5, -0.5]]), np.array([[0.0, 1.0, 0.0]]), np.zeros((1, 3))
    own = Objective(discount=1.0, reward=lambda roll: roll.cost)
    assert own.value(cost, success, sure)[0] == pytest.approx(-1.5)
    asked = Objective(discount=0.5, success_value=4.0, reward=lambda roll: roll.cost)
    assert asked.value(cost, success, sure)[0] == pytest.approx(-0.5 - 0.25 - 0.125 + 4.0 * 0.5)


def test_a_cost_as_documented_drives_the_arm_to_its_goal() -> None:
    """With the bundled model: 15 cm away at first, 4 cm after three decisions (25 cm when success was added)."""
    model = WorldModel.from_pretrained("kairos-tiny")
    env = WorldModelEnv(model, task="reach", success_threshold=None)
    seen, info = env.reset(seed=0)
    goal = torch.from_numpy(seen["proprio"][:3]) + torch.tensor([0.1, 0.1, 0.05])

    def near(rollout: Any) -> torch.Tensor:
        return -(rollout.proprio[..., :3] - goal).norm(dim=-1)

    search = {"horizon": 6, "population": 16, "iterations": 2, "elites": 5, "keep": 2}
    policy = PlannerPolicy(model, cem, task="reach", objective=Objective(reward=near), execute=3, **search)
    policy.reset(seed=0)
    distances = [0.15]
    for _ in range(3):
        seen, *_ = env.step(policy.act(Observation.from_gym(seen, info["instruction"])))
        distances.append(float(np.linalg.norm(seen["proprio"][:3] - goal.numpy())))
    assert (np.diff(distances) < 0).all() and distances[-1] < 0.06


def test_options_are_those_of_the_signature() -> None:
    assert option_names(cem) is not None and {"horizon", "elites", "deadline", "seed"} <= set(option_names(cem) or ())
    assert "n" in (option_names(best_of_n) or ()) and "elites" not in (option_names(best_of_n) or ())
    assert option_names(lambda model, state, **anything: None) is None  # type: ignore[arg-type, return-value]
