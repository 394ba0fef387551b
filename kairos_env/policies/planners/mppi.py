"""Model-predictive path integral control (Williams et al. 2017, arXiv 1509.01149)."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution
from kairos_env.policies.planners.planning import ActionPlan, Evaluator, PlanningModel, SearchOptions, clearly_better
from kairos_env.policies.planners.proposals import prior_of, propose
from kairos_env.records import Array


def mppi(
    model: PlanningModel,
    state: Any,
    *,
    horizon: int = 6,
    population: int = 64,
    iterations: int = 3,
    temperature: float = 0.2,
    spread: float = 0.6,
    smoothness: float = 0.6,
    stickiness: float = 0.9,
    proposals: int | Array = 0,
    prior_weight: float = 1.0,
    margin: float = 0.02,
    initial: Array | None = None,
    **options: Unpack[SearchOptions],
) -> ActionPlan:
    """Model-predictive path integral control: the exponentially weighted mean of all samples, repeated.

    Returns that mean, unless its own imagined value falls behind the best sample's. The model's own policy takes part
    as in `cem`.

    Args:
        model, state: where to plan, see `Evaluator`.
        horizon: actions of a plan.
        population, iterations: candidates per round, rounds.
        temperature: in standard deviations of the round's values; small follows the best sample.
        spread, smoothness, stickiness: see `ActionDistribution.around`.
        proposals, prior_weight, margin: see `cem`.
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
    own, own_values = propose(evaluator, proposals, horizon)
    prior = prior_of(own, distribution)
    best, best_values = distribution.mode(), np.full(evaluator.samples, -np.inf)

    for number in range(iterations):
        sampler = distribution if prior is None else distribution.fused(prior, prior_weight)
        candidates = np.concatenate([sampler.mode()[None], sampler.sample(population - 1, evaluator.rng)])
        values = evaluator.values(candidates)
        if number == 0:
            candidates, values = np.concatenate([own, candidates]), np.concatenate([own_values, values])
        worth = evaluator.worth(values)
        seen = np.isfinite(worth)
        if not seen.any():
            break
        first = int(np.argmax(worth))
        if worth[first] > evaluator.worth(best_values[None])[0]:
            best, best_values = candidates[first], values[first]
        # Relative to the spread of values, so that one temperature fits every reward scale.
        advantage = (worth[seen] - worth[first]) / (temperature * (worth[seen].std() + 1e-9))
        weights = np.exp(advantage)
        distribution = distribution.fit(candidates[seen], weights / weights.sum(), momentum=0.0, least_spread=0.1)
        if not evaluator.clock.allows_another():
            break

    mean = distribution.mode()
    mean_values = evaluator.values(mean[None])[0]
    if evaluator.worth(mean_values[None])[0] >= evaluator.worth(best_values[None])[0]:
        best, best_values = mean, mean_values
    if len(own) and not clearly_better(best_values, own_values[0], margin):
        return evaluator.plan(own[0], float(evaluator.worth(own_values)[0]), worth, chosen=0)
    return evaluator.plan(best, float(evaluator.worth(best_values[None])[0]), worth)
