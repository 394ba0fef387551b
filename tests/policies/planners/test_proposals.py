"""Proposals of the model's policy in planners that search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from point_world import SPEC, PointWorld, optimum, start

from kairos_env.policies import cem, mppi
from kairos_env.policies.planners.action_sampling import ActionDistribution
from kairos_env.policies.planners.planning import Evaluator
from kairos_env.policies.planners.proposals import prior_of, propose


def test_the_first_proposal_is_what_the_policy_does_by_itself() -> None:
    model = PointWorld(aim=1.0)
    proposals, values = propose(Evaluator(model, start(model, 7)), 5, horizon=7)
    assert proposals.shape == (5, 7, 3)
    assert values == pytest.approx(Evaluator(model, start(model, 7)).values(proposals))
    state, acted = start(model, 7), []
    for _ in range(3):
        chunk = model.act(state)
        state = model.imagine(state, chunk).state
        acted.append(chunk[0].numpy())
    assert np.allclose(proposals[0], np.concatenate(acted)[:7], atol=1e-6)
    assert len(np.unique(proposals.reshape(5, -1), axis=0)) >= 4  # noise of their own; two are clipped alike


@pytest.mark.parametrize("planner", [cem, mppi])
@pytest.mark.parametrize("seed", range(3))
def test_proposals_help_a_small_search_and_never_hurt(planner: Any, seed: int) -> None:
    model = PointWorld(aim=0.3)
    options = {"horizon": 8, "population": 12, "iterations": 2, "seed": seed} | (
        {"elites": 4} if planner is cem else {}
    )
    own = float(propose(Evaluator(model, start(model, seed)), 1, 8)[1][0, 0])
    alone = planner(model, start(model, seed), **options)
    helped = planner(model, start(model, seed), proposals=6, **options)
    assert helped.value > max(own - 1e-6, alone.value - 0.05)
    assert helped.evaluations <= alone.evaluations + 6


def test_the_policy_acts_unless_something_is_clearly_better() -> None:
    model = PointWorld()  # whose policy aims perfectly
    for planner in (cem, mppi):
        plan = planner(model, start(model), horizon=8, population=32, proposals=2, margin=1.0)
        assert plan.chosen == 0
        assert np.array_equal(plan.actions, propose(Evaluator(model, start(model)), 1, 8)[0][0])


def test_anybodys_sequences_are_proposals() -> None:
    good, best = optimum(8)
    for planner in (cem, mppi):
        options = {"elites": 8} if planner is cem else {}
        plan = planner(PointWorld(), start(PointWorld()), horizon=8, population=12, proposals=good[None], **options)
        assert plan.value == pytest.approx(best) and plan.chosen == 0


def test_the_surer_distribution_decides() -> None:
    """A product of Gaussians: precisions add up, the mean lies between by precision."""
    wide = ActionDistribution.around(SPEC, 2, spread=0.4)
    sure = wide.fit(np.full((3, 2, 3), 0.05, np.float32), momentum=0.0, least_spread=0.2)
    both = wide.fused(sure)
    assert both.mean[:, 0] == pytest.approx(0.8 * 0.05) and both.std[:, 0] == pytest.approx(0.04 * 0.2**0.5)
    assert np.allclose(wide.fused(sure, weight=0.0).mean, wide.mean)
    assert both.mean[:, 2] == pytest.approx(0.97)  # undecided about the gripper: the prior says it
    against = both.fused(wide.fit(np.full((3, 2, 3), -0.05, np.float32), momentum=0.0))
    assert against.mean[:, 2] == pytest.approx(0.5)
    assert prior_of(np.empty((0, 2, 3), np.float32), wide) is None


def test_a_model_without_a_policy_says_so() -> None:
    class Blind(PointWorld):
        act = property()  # type: ignore[assignment]

    with pytest.raises(ValueError, match="Blind has no policy"):
        cem(Blind(), start(Blind()), proposals=3)
    with pytest.raises(ValueError, match="proposals must be >= 0"):
        cem(PointWorld(), start(PointWorld()), proposals=-1)


@pytest.mark.parametrize("planner", [cem, mppi])
def test_proposals_are_judged_under_every_sample_of_the_noise(planner: Any) -> None:
    model = PointWorld(noise=0.1, aim=1.0)
    evaluator = Evaluator(model, start(model), samples=3, batch_size=6)
    proposals, values = propose(evaluator, 5, horizon=6)
    assert proposals.shape == (5, 6, 3) and values.shape == (5, 3)
    assert evaluator.evaluations == 5 and (values.std(1) > 0).all()
    plans = [planner(model, start(model), proposals=5, samples=3, risk=0.5, batch_size=size) for size in (6, 64)]
    assert plans[0].value == pytest.approx(plans[1].value)
    assert np.array_equal(plans[0].actions, plans[1].actions)
