"""The cross-entropy method (Rubinstein 1999): sample, refit to the best, repeat."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution, continued
from kairos_env.policies.planners.planning import ActionPlan, Evaluator, PlanningModel, SearchOptions
from kairos_env.records import Array


def cem(
    model: PlanningModel,
    state: Any,
    *,
    horizon: int = 8,
    population: int = 128,
    iterations: int = 4,
    elites: int = 12,
    keep: int = 4,
    spread: float = 0.6,
    smoothness: float = 0.6,
    stickiness: float = 0.9,
    momentum: float = 0.1,
    proposals: Array | None = None,
    initial: Array | None = None,
    **options: Unpack[SearchOptions],
) -> ActionPlan:
    """Cross-entropy method: sample, refit the distribution to the best, repeat; returns the best seen.

    Args:
        model, state: where to plan, see `Evaluator`.
        horizon: actions of a plan.
        population, iterations: candidates per round, rounds.
        elites: how many of the best the distribution is refitted to.
        keep: how many of the best compete again in the next round (they are not imagined again).
        spread, smoothness, stickiness: see `ActionDistribution.around`.
        momentum: see `ActionDistribution.fit`.
        proposals: (K, N, A) further candidates of the first round, for example a policy's chunks.
        initial: (N, A) a first guess, usually the last plan shifted (warm start).
        options: see `Evaluator`.
    """
    if not 1 <= elites <= population or iterations < 1 or not 0 <= keep <= elites:
        raise ValueError(
            f"cem needs 1 <= elites <= population, iterations >= 1 and 0 <= keep <= elites; got elites={elites}, "
            f"population={population}, iterations={iterations}, keep={keep}"
        )
    evaluator, spec = Evaluator(model, state, **options), model.spec
    distribution = ActionDistribution.around(spec, horizon, initial, spread, smoothness, stickiness)
    best = np.empty((0, horizon, spec.action_dim), np.float32)
    best_values = np.empty(0)

    for _ in range(iterations):
        # The mean is always a candidate: it is the warm start at first, and the least noisy plan later.
        fresh = [distribution.mode()[None], distribution.sample(population - 1, evaluator.rng)]
        if proposals is not None and not len(best):
            fresh.insert(0, np.stack([continued(spec, p, horizon) for p in proposals]))
        candidates = np.concatenate(fresh)
        values = np.concatenate([best_values[:keep], evaluator.values(candidates).mean(1)])
        candidates = np.concatenate([best[:keep], candidates])

        order = np.argsort(-values, kind="stable")[:elites]
        order = order[np.isfinite(values[order])]
        best, best_values = candidates[order], values[order]
        distribution = distribution.fit(best, momentum=momentum)
        if not evaluator.clock.allows_another():
            break
    return evaluator.plan(best[0], float(best_values[0]), values)
