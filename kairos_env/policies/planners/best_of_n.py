"""Best of n: proposals of the model's own policy, compared in imagination."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution, gripper_fields
from kairos_env.policies.planners.planning import ActionPlan, Evaluator, ProposingModel, SearchOptions, as_array
from kairos_env.records import Array, RobotSpec


def best_of_n(
    model: ProposingModel,
    state: Any,
    *,
    n: int = 16,
    horizon: int = 12,
    commit: int | None = None,
    margin: float = 0.02,
    confidence: float = 1.0,
    jitter: float = 0.0,
    act_steps: int | None = None,
    initial: Array | None = None,
    **options: Unpack[SearchOptions],
) -> ActionPlan:
    """The best of ``n`` proposals of the model's own policy, each imagined with the policy going on behind it.

    Proposal 0 is what the policy alone would do (so n = 1 is the policy). Another one is executed only if
    its imagined value is better by more than ``margin`` and than ``confidence`` standard errors of the
    paired difference over ``samples`` noise seeds: model noise alone must not make it worse than the policy.

    Args:
        model, state: where to plan, see `Evaluator`.
        n: proposals.
        horizon: imagined steps: the proposal, then the policy's own actions by turns of `act` and `step`.
        commit: how many actions of a chunk are imagined before the policy is asked again; None is the
            whole chunk. Set it to what is executed per decision for the most faithful value.
        margin, confidence: how much better another proposal must be; margin in units of the objective.
        jitter: smooth noise added to all proposals but the policy's own, as a fraction of half of each
            field's range (not to the gripper): for policies that always propose much the same.
        act_steps: denoising steps of the policy; None is the model's default.
        initial: ignored; the proposals come from the model.
        options: see `Evaluator`.
    """
    if n < 1 or horizon < 1 or (commit is not None and commit < 1):
        raise ValueError(f"best_of_n needs n, horizon and commit >= 1; got {n}, {horizon}, {commit}")
    evaluator = Evaluator(model, state, **options)
    own = as_array(model.act(state, steps=act_steps))  # (1, N, A)
    if n == 1:
        return evaluator.plan(own[0], float("nan"), np.full(1, np.nan), chosen=0)

    # Propose: the policy's own chunk first, then chunks from other noise.
    samples, size = evaluator.samples, evaluator.batch_size
    seeds = evaluator.rng.integers(2**31, size=n - 1).tolist()
    others = [
        as_array(model.act(state.fork(len(part)).reseed(part), steps=act_steps))
        for part in (seeds[i : i + size] for i in range(0, n - 1, size))
    ]
    chunks = np.concatenate([own, *others])  # (n, N, A)
    if jitter > 0:
        chunks[1:] = _jittered(model.spec, chunks[1:], jitter, evaluator.rng)

    # Imagine each of them, and on with the policy up to the horizon.
    values = evaluator.in_batches(chunks, lambda part: _play_on(evaluator, part, horizon, commit, act_steps))

    # Select: the policy's own, unless another is clearly better.
    means = values.mean(1)
    chosen = int(np.argmax(means))
    if chosen != 0 and np.isfinite(means[0]):
        gain = values[chosen] - values[0]
        doubt = confidence * gain.std(ddof=1) / np.sqrt(samples) if samples > 1 else 0.0
        if gain.mean() <= margin + doubt:
            chosen = 0
    return evaluator.plan(chunks[chosen], float(means[chosen]), means, chosen)


def _jittered(spec: RobotSpec, chunks: Array, jitter: float, rng: np.random.Generator) -> Array:
    noise = ActionDistribution.around(spec, chunks.shape[1], None, jitter).sample(len(chunks), rng)
    noise -= (spec.action_low + spec.action_high) / 2
    noise[..., gripper_fields(spec)] = 0
    return spec.check_action(chunks + noise)


def _play_on(evaluator: Evaluator, chunks: Array, horizon: int, commit: int | None, act_steps: int | None) -> Array:
    """Values of chunks (K, N, A), each played for ``commit`` actions and then followed by the policy."""
    model: Any = evaluator.model
    state = evaluator.fork(len(chunks))
    actions = np.repeat(chunks, evaluator.samples, axis=0)
    parts, done = [], 0
    while True:
        part = actions[:, : min(commit or actions.shape[1], horizon - done)]
        parts.append(model.imagine(state, part, steps=evaluator.steps))
        state, done = parts[-1].state, done + part.shape[1]
        if done >= horizon:
            return evaluator.score(*parts)
        actions = as_array(model.act(state, steps=act_steps))
