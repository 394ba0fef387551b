"""Random shooting: the baseline planner."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution, continued
from kairos_env.policies.planners.planning import ActionPlan, Evaluator, PlanningModel, SearchOptions
from kairos_env.records import Array


def random_shooting(
    model: PlanningModel,
    state: Any,
    *,
    horizon: int = 6,
    population: int = 192,
    spread: float = 0.8,
    smoothness: float = 0.6,
    stickiness: float = 0.9,
    initial: Array | None = None,
    **options: Unpack[SearchOptions],
) -> ActionPlan:
    """The best of ``population`` random action sequences, ``initial`` among them.

    Args:
        model, state: where to plan, see `Evaluator`.
        horizon: actions of a plan.
        population: candidates.
        spread, smoothness, stickiness: see `ActionDistribution.around`.
        initial: (N, A) a first guess, usually the last plan shifted (warm start).
        options: see `Evaluator`.
    """
    if population < 1:
        raise ValueError(f"random_shooting needs population >= 1, got {population}")
    evaluator, spec = Evaluator(model, state, **options), model.spec
    # Sampled around the middle of the bounds, not around the guess: this one is meant to be unprejudiced.
    distribution = ActionDistribution.around(spec, horizon, None, spread, smoothness, stickiness)
    candidates = distribution.sample(population, evaluator.rng)
    if initial is not None:
        candidates[0] = continued(spec, initial, horizon)
    worth = evaluator.worth(evaluator.values(candidates))
    best = int(np.argmax(worth))
    return evaluator.plan(candidates[best], float(worth[best]), worth)
