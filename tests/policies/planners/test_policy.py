"""A planner as a policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from point_world import GOAL, SPEC, PointWorld, observation

from kairos_env.policies import PlannerPolicy, WorldModelPolicy, best_of_n, cem, check_policy


def test_planner_policy_acts_in_closed_loop() -> None:
    """Replans every second step, keeps the model's history without a gap, and arrives."""
    model = PointWorld()
    policy = PlannerPolicy(model, cem, task="close", execute=2, horizon=6, population=64, iterations=3)
    check_policy(policy, SPEC, observation())
    policy.reset(seed=1)
    model.observed.clear()
    position, plans, acted = np.zeros(2), [], []
    arrived = False
    while not arrived and len(acted) < 8:
        acted.append(policy.act(observation(*position)))
        plans.append(policy.plan)
        position = position + acted[-1][:2]
        arrived = np.linalg.norm(position - GOAL.numpy()) < 0.04 and acted[-1][2] > 0
    assert arrived
    assert plans[0] is plans[1] and plans[1] is not plans[2]
    assert model.observed[0] is None
    assert np.allclose(model.observed[1:], acted[:-1])


def test_planner_policy_starts_warm() -> None:
    seen: list[Any] = []

    def planner(model: Any, state: Any, *, initial: Any, **options: Any) -> Any:
        seen.append(initial)
        return cem(model, state, initial=initial, horizon=5, population=16, elites=8, **options)

    policy = PlannerPolicy(PointWorld(), planner)
    policy.act(observation())
    assert policy.plan is not None
    first = policy.plan.actions
    policy.act(observation(0.1, 0.0))
    assert seen[0] is None
    assert np.array_equal(seen[1][:4], first[1:])
    assert np.array_equal(seen[1][4], [0, 0, first[-1][2]])  # then it stays
    policy.reset()
    policy.act(observation())
    assert seen[2] is None


def test_planner_policy_with_one_proposal_is_the_policy() -> None:
    model: Any = PointWorld(aim=1.0)
    alone = WorldModelPolicy(model, task="close", execute=2)
    chosen = PlannerPolicy(model, best_of_n, task="close", execute=2, n=1)
    for policy in (alone, chosen):
        policy.reset(seed=5)
    for x in (0.0, 0.05, 0.1, 0.2):
        assert np.array_equal(alone.act(observation(x)), chosen.act(observation(x)))


def test_a_mistyped_option_is_named_before_anything_is_planned() -> None:
    with pytest.raises(ValueError, match="unknown option of cem 'horizn'; did you mean 'horizon'"):
        PlannerPolicy(PointWorld(), cem, horizn=3)
    with pytest.raises(ValueError, match="unknown option of best_of_n 'elites'"):
        PlannerPolicy(PointWorld(), best_of_n, elites=3)
    with pytest.raises(ValueError, match="cem needs at least 1: horizon=0, samples=-2"):
        PlannerPolicy(PointWorld(), cem, horizon=0, samples=-2)
