"""The evaluator, the clock and the options that planners share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from point_world import PointRollout, PointState, PointWorld, optimum, start

from kairos_env.policies import PLANNERS, Objective, best_of_n, cem
from kairos_env.policies.planners.planning import Clock, Evaluator, clearly_better, option_names


class Timed(PointWorld):
    """Time passes only while the model imagines: 0.1 s a step, whatever the batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.time = 0.0

    def imagine(self, state: PointState, actions: Any, steps: Any = None) -> PointRollout:
        self.time += 0.1 * np.shape(actions)[1]
        return super().imagine(state, actions, steps)


def timed(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Timed:
    model = Timed(**options)
    monkeypatch.setattr(Clock.__init__, "__defaults__", (None, lambda: model.time))
    return model


def test_deadline_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timed(monkeypatch)
    guess, best = optimum(8)
    plans = [cem(model, start(model), horizon=8, deadline=d, initial=guess) for d in (0.85, 2.0, None)]
    assert [plan.value for plan in plans] == pytest.approx([best] * 3)
    assert plans[0].evaluations == 8 < plans[1].evaluations < plans[2].evaluations
    # too little time for one whole future: the candidates are compared as far as they were imagined
    short = cem(model, start(model), horizon=8, deadline=0.3, initial=guess)
    assert short.evaluations == 8 and short.seconds == pytest.approx(0.3)
    assert short.value == pytest.approx(Objective()(PointWorld().imagine(start(model), short.actions[None, :3]))[0])


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("deadline", [0.0, 0.25, 1.0, 2.35])
def test_deadline_is_kept_within_a_step_of_the_model(
    name: str, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timed(monkeypatch, aim=1.0)
    plan = PLANNERS[name](model, start(model), deadline=deadline)
    assert plan.seconds <= max(deadline, 0.1) + 1e-6 and np.isfinite(plan.value) and plan.evaluations >= 8
    if name in ("cem", "mppi"):
        model.time = 0.0
        plan = PLANNERS[name](model, start(model), deadline=deadline, proposals=4)
        assert plan.seconds <= max(deadline, 0.1) + 1e-6 and np.isfinite(plan.value) and plan.evaluations >= 4


def test_a_deadline_that_is_never_reached_changes_nothing() -> None:
    free, late = (cem(PointWorld(), start(PointWorld()), deadline=d) for d in (None, 1e6))
    assert np.array_equal(free.actions, late.actions) and free.value == late.value


def test_a_clock_does_not_start_what_would_end_too_late() -> None:
    now = [0.0]
    clock = Clock(1.0, lambda: now[0])
    now[0] = 0.6
    clock.lap()
    assert not clock.allows_another()  # 0.6 more would end at 1.2
    assert Clock(None).allows_another()


def test_risk_is_how_much_samples_differ() -> None:
    model = PointWorld()
    values = np.array([[1.0, 3.0], [1.8, 2.0], [-np.inf, 1.0]])
    assert Evaluator(model, start(model), samples=2).worth(values).tolist() == [2.0, pytest.approx(1.9), -np.inf]
    averse = Evaluator(model, start(model), samples=2, risk=1.0).worth(values)
    assert averse.tolist() == pytest.approx([1.0, 1.8, -np.inf])
    with pytest.raises(ValueError, match=r"risk=0\.5 needs several samples"):
        cem(model, start(model), risk=0.5)


def test_clearly_better_is_more_than_the_margin_and_than_noise() -> None:
    own = np.array([1.0, 2.0])
    assert clearly_better(own + 0.1, own, margin=0.05)
    assert not clearly_better(own + 0.1, own, margin=0.2)
    assert not clearly_better(np.array([1.6, 1.6]), own, margin=0.05)  # better once, worse once
    assert clearly_better(own, np.array([-np.inf, -np.inf]), margin=0.05)


def test_options_are_those_of_the_signature() -> None:
    assert option_names(cem) is not None and {"horizon", "elites", "deadline", "seed"} <= set(option_names(cem) or ())
    assert "n" in (option_names(best_of_n) or ()) and "elites" not in (option_names(best_of_n) or ())
    assert option_names(lambda model, state, **anything: None) is None  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("planner", [cem, best_of_n])
def test_a_model_without_a_reward_is_planned_in_by_one_of_ones_own(planner: Any) -> None:
    world = PointWorld()
    world.untrained = ("reward", "success")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"nothing taught this model what a state is worth.*objective=Objective\("):
        planner(world, start(world), seed=0)
    planner(world, start(world), seed=0, objective=Objective(reward=lambda rollout: rollout.reward))
    planner(world, start(world), seed=0, objective=lambda rollout: rollout.reward.sum(1))
