"""Proposals of a model's own policy: candidates for planners, and a prior that narrows their search."""

from __future__ import annotations

from typing import Any

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution, continued
from kairos_env.policies.planners.objective import as_array, joined
from kairos_env.policies.planners.planning import Evaluator
from kairos_env.records import Array

PRIOR_SPREAD = 0.2
"""Least standard deviation of the prior as a fraction of half of each field's range: a policy's proposals differ less
from each other than from what would be best."""


def propose(evaluator: Evaluator, proposals: int | Array, horizon: int) -> tuple[Array, Array]:
    """Action sequences (K, horizon, A), the first of which is what the policy does by itself, and values (K, samples).

    Args:
        evaluator: whose model has a policy, `ProposingModel`.
        proposals: so many futures of the policy, each with noise of its own, played in imagination; or somebody
            else's sequences (K, N, A), which are continued by staying.
        horizon: actions of each.
    """
    model: Any = evaluator.model
    if not isinstance(proposals, int | np.integer):
        given = np.stack([continued(model.spec, chunk, horizon) for chunk in proposals])
        return given, evaluator.values(given)
    if proposals < 0:
        raise ValueError(f"proposals must be >= 0, got {proposals}")
    if proposals == 0:
        return np.empty((0, horizon, model.spec.action_dim), np.float32), np.empty((0, evaluator.samples))
    chunks = first_chunks(evaluator, proposals)
    taken: list[Array] = []

    def play(part: Array) -> Any:
        actions = np.repeat(part, evaluator.samples, axis=0)
        rollout, actions = play_on(evaluator, evaluator.fork(len(part)), actions, horizon)
        taken.extend(actions[:: evaluator.samples])
        return rollout

    values = evaluator.in_batches(chunks, play)
    sequences = [*taken, *chunks[len(taken) :]]  # a deadline may have left some out
    return np.stack([continued(model.spec, actions, horizon) for actions in sequences]), values


def prior_of(proposals: Array, distribution: ActionDistribution) -> ActionDistribution | None:
    """What the policy would do as a distribution beside that of the planner; None without proposals."""
    return distribution.fit(proposals, momentum=0.0, least_spread=PRIOR_SPREAD) if len(proposals) else None


def first_chunks(evaluator: Evaluator, count: int, act_steps: int | None = None) -> Array:
    """(count, N, A): the policy's own chunk first, then chunks from other noise."""
    model: Any = evaluator.model
    if not hasattr(model, "act"):
        raise ValueError(f"a {type(model).__name__} has no policy that could propose actions: leave proposals at 0")
    chunks = [as_array(model.act(evaluator.state, steps=act_steps))]
    seeds = evaluator.rng.integers(2**31, size=count - 1).tolist()
    for start in range(0, count - 1, evaluator.batch_size):
        part = seeds[start : start + evaluator.batch_size]
        chunks.append(as_array(model.act(evaluator.state.fork(len(part)).reseed(part), steps=act_steps)))
    return np.concatenate(chunks)


def play_on(
    evaluator: Evaluator,
    state: Any,
    actions: Array,
    horizon: int,
    commit: int | None = None,
    act_steps: int | None = None,
) -> tuple[Any, Array]:
    """Chunks (B, N, A) played for ``commit`` actions each (None: all), then the policy's own, up to ``horizon``.

    Returns:
        The rollout, which a deadline may leave shorter or None as `Evaluator.imagine` does, and the actions
        (B, at most horizon, A).
    """
    model: Any = evaluator.model
    parts: list[Any] = []
    taken: list[Array] = []
    done = 0
    while done < horizon:
        if parts:
            actions = as_array(model.act(state, steps=act_steps))
            evaluator.clock.lap()
        part = actions[:, : min(commit or actions.shape[1], horizon - done)]
        taken.append(part)
        rollout = evaluator.imagine(state, part)
        if rollout is None:
            return None, np.concatenate(taken, axis=1)
        parts.append(rollout)
        state, done = rollout.state, done + part.shape[1]
        if rollout.reward.shape[1] < part.shape[1]:
            break
    return joined(parts), np.concatenate(taken, axis=1)
