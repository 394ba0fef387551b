"""The cross-entropy method (Rubinstein 1999): sample, refit to the best, repeat."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution
from kairos_env.policies.planners.planning import ActionPlan, Evaluator, PlanningModel, SearchOptions, clearly_better
from kairos_env.policies.planners.proposals import prior_of, propose
from kairos_env.records import Array


def cem(
    model: PlanningModel,
    state: Any,
    *,
    horizon: int = 6,
    population: int = 64,
    iterations: int = 3,
    elites: int = 8,
    keep: int | None = None,
    spread: float = 0.6,
    smoothness: float = 0.6,
    stickiness: float = 0.9,
    momentum: float = 0.1,
    tolerance: float = 0.02,
    proposals: int | Array = 0,
    prior_weight: float = 1.0,
    margin: float = 0.02,
    initial: Array | None = None,
    **options: Unpack[SearchOptions],
) -> ActionPlan:
    """Cross-entropy method: sample, refit the distribution to the best, repeat; returns the best seen.

    With ``proposals`` the model's own policy takes part: what it would do competes in the first round, narrows the
    search as a prior, and is executed unless the search finds something clearly better.

    Args:
        model, state: where to plan, see `Evaluator`.
        horizon: actions of a plan.
        population, iterations: candidates per round, rounds.
        elites: how many of the best the distribution is refitted to.
        keep: how many of the best compete again in the next round (they are not imagined again); None is 4, or all
            elites if they are fewer.
        spread, smoothness, stickiness: see `ActionDistribution.around`.
        momentum: see `ActionDistribution.fit`.
        tolerance: the search has converged, and ends early, when the elites' values differ by less than this
            fraction of the standard deviation of the first round's values.
        proposals: how many futures of the model's policy, or action sequences (K, N, A), the usual one first; see
            `propose`.
        prior_weight: of the proposals' distribution in each round's, see `ActionDistribution.fused`.
        margin: how much better than the first proposal a plan must be, see `clearly_better`.
        initial: (N, A) a first guess, usually the last plan shifted (warm start).
        options: see `Evaluator`.
    """
    keep = min(4, elites) if keep is None else keep
    if not 1 <= elites <= population or iterations < 1 or not 0 <= keep <= elites:
        raise ValueError(
            f"cem needs 1 <= elites <= population, iterations >= 1 and 0 <= keep <= elites; got elites={elites}, "
            f"population={population}, iterations={iterations}, keep={keep}"
        )
    evaluator, spec = Evaluator(model, state, **options), model.spec
    distribution = ActionDistribution.around(spec, horizon, initial, spread, smoothness, stickiness)
    own, own_values = propose(evaluator, proposals, horizon)
    prior = prior_of(own, distribution)
    kept, kept_values, scale = own, own_values, 0.0

    for _ in range(iterations):
        sampler = distribution if prior is None else distribution.fused(prior, prior_weight)
        # The mean is always a candidate: it is the warm start at first, and the least noisy plan later.
        fresh = np.concatenate([sampler.mode()[None], sampler.sample(population - 1, evaluator.rng)])
        candidates = np.concatenate([kept, fresh])
        values = np.concatenate([kept_values, evaluator.values(fresh)])
        worth = evaluator.worth(values)

        order = np.argsort(-worth, kind="stable")[:elites]
        order = order[np.isfinite(worth[order])]
        best, best_values = candidates[order], values[order]
        kept, kept_values = best[:keep], best_values[:keep]
        distribution = distribution.fit(best, momentum=momentum)
        scale = scale or float(worth[np.isfinite(worth)].std())
        if worth[order].std() <= tolerance * scale or not evaluator.clock.allows_another():
            break
    if len(own) and not clearly_better(best_values[0], own_values[0], margin):
        return evaluator.plan(own[0], float(evaluator.worth(own_values)[0]), worth, chosen=0)
    return evaluator.plan(best[0], float(worth[order[0]]), worth)
