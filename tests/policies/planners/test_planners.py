"""What holds for every planner of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from point_world import SPEC, PointWorld, optimum, start

from kairos_env.policies import PLANNERS, Objective, PlannerPolicy, cem, example_observation, mppi
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.model import WorldModel


@pytest.mark.parametrize("planner", [cem, mppi])
def test_planners_find_the_optimum(planner: Any) -> None:
    _, best = optimum(8)
    plan = planner(PointWorld(), start(PointWorld()), horizon=8, population=256, iterations=6, spread=1.0, rollout=True)
    assert plan.actions.shape == (8, 3) and plan.actions.dtype == np.float32
    assert 0.96 * best < plan.value <= best + 1e-6
    assert plan.rollout.success[0, :6].any()  # after success the plan is free
    assert np.isclose(Objective()(plan.rollout)[0], plan.value)
    assert (plan.actions >= SPEC.action_low).all() and (plan.actions <= SPEC.action_high).all()


@pytest.mark.parametrize("name", PLANNERS)
def test_a_plan_depends_on_the_seed_and_not_on_the_batch_size(name: str) -> None:
    model = PointWorld(noise=0.05, aim=1.0)
    plan, again, small = (
        PLANNERS[name](model, start(model), seed=3, samples=2, batch_size=size) for size in (64, 64, 8)
    )
    assert np.array_equal(plan.actions, again.actions) and plan.value == again.value
    assert np.array_equal(plan.actions, small.actions)
    model.largest_batch = 0
    PLANNERS[name](model, start(model), seed=3, samples=2, batch_size=8)
    assert model.largest_batch <= 8
    if name != "best_of_n":
        assert not np.array_equal(plan.actions, PLANNERS[name](model, start(model), seed=4).actions)


@pytest.mark.parametrize("name", ["cem", "mppi", "random_shooting"])
def test_a_good_first_guess_is_never_made_worse(name: str) -> None:
    guess, best = optimum(8)
    plan = PLANNERS[name](PointWorld(), start(PointWorld()), horizon=8, population=16, initial=guess)
    assert plan.value == pytest.approx(best)


@pytest.mark.parametrize("name", PLANNERS)
def test_planners_run_on_the_world_model(name: str) -> None:
    spec = make_spec()
    model = WorldModel.from_preset("debug", spec, TASKS)
    size = {"n": 3} if name == "best_of_n" else {"population": 4}
    size |= {"elites": 2, "keep": 1} if name == "cem" else {}
    size |= {"iterations": 2} if name in ("cem", "mppi") else {}
    policy = PlannerPolicy(model, PLANNERS[name], task="push", horizon=2, batch_size=4, rollout=True, **size)
    policy.reset(seed=1)
    for _ in range(2):
        action = policy.act(example_observation(spec))
        assert action.shape == (4,) and np.isfinite(action).all()
    assert policy.plan is not None and np.isfinite(policy.plan.value)
    film = model.decode(policy.plan.rollout.latents)["scene"]
    assert film.shape == (1, len(policy.plan.actions), 64, 64, 3) and film.dtype == np.uint8
