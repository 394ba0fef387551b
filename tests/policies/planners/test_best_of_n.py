"""Best of n proposals of a policy."""

from __future__ import annotations

import numpy as np
from point_world import PointWorld, start

from kairos_env.policies import best_of_n


def test_best_of_one_is_the_policy() -> None:
    model = PointWorld(aim=1.0)
    plan = best_of_n(model, start(model, 7), n=1)
    assert np.array_equal(plan.actions, model.act(start(model, 7))[0].numpy())
    assert plan.chosen == 0 and plan.evaluations == 0


def test_best_of_n_improves_a_bad_policy() -> None:
    model = PointWorld(aim=1.5)
    gains = []
    for seed in range(10):
        plan = best_of_n(model, start(model, seed), n=16, horizon=8, seed=seed)
        assert np.array_equal(plan.values.argmax(), plan.chosen) or plan.chosen == 0
        gains.append(plan.value - plan.values[0])
    assert min(gains) >= 0 and np.mean(gains) > 0.2


def test_best_of_n_keeps_the_policy_when_the_difference_is_only_noise() -> None:
    model = PointWorld(noise=0.3)  # aims perfectly: all proposals are the same, only the values' noise differs
    for seed in range(10):
        assert best_of_n(model, start(model, seed), n=8, seed=seed).chosen == 0
    jittered = [best_of_n(model, start(model, s), n=8, seed=s, jitter=0.02, samples=4).chosen for s in range(10)]
    assert jittered.count(0) >= 9  # hardly different proposals do not pass the margin


def test_best_of_n_imagines_on_with_the_policy() -> None:
    model = PointWorld(aim=0.0)
    near = best_of_n(model, start(model), n=4, horizon=3)
    far = best_of_n(model, start(model), n=4, horizon=10, commit=1)
    assert far.values[0] > near.values[0] + 3  # the policy arrives after the proposal's end
