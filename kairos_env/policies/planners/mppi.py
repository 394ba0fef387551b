"""Model-predictive path integral control (Williams et al. 2017, arXiv 1509.01149)."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution
from kairos_env.policies.planners.planning import ActionPlan, Evaluator, PlanningModel, SearchOptions
from kairos_env.records import Array


def mppi(
    model: PlanningModel,
    state: Any,
    *,
    horizon: int = 8,
    population: int = 128,
    iterations: int = 3,
    temperature: float = 0.2,
    spread: float = 0.6,
    smoothness: float = 0.6,
    stickiness: float = 0.9,
    initial: Array | None = None,
    **options: Unpack[SearchOptions],
) -> ActionPlan:
    """Model-predictive path integral control: the exponentially weighted mean of all samples, repeated.

    Returns that mean, unless its own imagined value falls behind the best sample's.

    Args:
        model, state: where to plan, see `Evaluator`.
        horizon: actions of a plan.
        population, iterations: candidates per round, rounds.
        temperature: in standard deviations of the round's values; small follows the best sample.
        spread, smoothness, stickiness: see `ActionDistribution.around`.
        initial: (N, A) a first guess, usually the last plan shifted (warm start).
        options: see `Evaluator`.
    """
    if population < 2 or iterations < 1 or temperature <= 0:
        raise ValueError(
            f"mppi needs population >= 2, iterations >= 1 and temperature > 0; got {population}, {iterations}, "
            f"{temperature}"
        )
    evaluator, spec = Evaluator(model, state, **options), model.spec
    distribution = ActionDistribution.around(spec, horizon, initial, spread, smoothness, stickiness)
    best, best_value = distribution.mode(), -np.inf

    for _ in range(iterations):
        candidates = np.concatenate([distribution.mode()[None], distribution.sample(population - 1, evaluator.rng)])
        values = evaluator.values(candidates).mean(1)
        seen = np.isfinite(values)
        if not seen.any():
            break
        if values[seen].max() > best_value:
            best, best_value = candidates[np.argmax(values)], float(values[seen].max())
        # Relative to the spread of values, so that one temperature fits every reward scale.
        advantage = (values[seen] - values[seen].max()) / (temperature * (values[seen].std() + 1e-9))
        weights = np.exp(advantage)
        distribution = distribution.fit(candidates[seen], weights / weights.sum(), momentum=0.0, least_spread=0.1)
        if not evaluator.clock.allows_another():
            break

    mean = distribution.mode()
    mean_value = float(evaluator.values(mean[None]).mean())
    if mean_value >= best_value:
        best, best_value = mean, mean_value
    return evaluator.plan(best, best_value, values)
