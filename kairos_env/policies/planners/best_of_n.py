"""Best of n: proposals of the model's own policy, compared in imagination."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution, gripper_fields
from kairos_env.policies.planners.planning import ActionPlan, Evaluator, ProposingModel, SearchOptions, clearly_better
from kairos_env.policies.planners.proposals import first_chunks, play_on
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
        margin, confidence: how much better another proposal must be, see `clearly_better`.
        jitter: smooth noise added to all proposals but the policy's own, as a fraction of half of each
            field's range (not to the gripper): for policies that always propose much the same.
        act_steps: denoising steps of the policy; None is the model's default.
        initial: ignored; the proposals come from the model.
        options: see `Evaluator`.
    """
    if n < 1 or horizon < 1 or (commit is not None and commit < 1):
        raise ValueError(f"best_of_n needs n, horizon and commit >= 1; got {n}, {horizon}, {commit}")
    evaluator = Evaluator(model, state, **options)
    chunks = first_chunks(evaluator, n, act_steps)  # (n, N, A)
    if n == 1:
        return evaluator.plan(chunks[0], float("nan"), np.full(1, np.nan), chosen=0)
    if jitter > 0:
        chunks[1:] = _jittered(model.spec, chunks[1:], jitter, evaluator.rng)

    # Imagine each of them, and on with the policy up to the horizon.
    def play(part: Array) -> Any:
        actions = np.repeat(part, evaluator.samples, axis=0)
        return play_on(evaluator, evaluator.fork(len(part)), actions, horizon, commit, act_steps)[0]

    values = evaluator.in_batches(chunks, play)

    # Select: the policy's own, unless another is clearly better.
    worth = evaluator.worth(values)
    chosen = int(np.argmax(worth))
    if chosen != 0 and not clearly_better(values[chosen], values[0], margin, confidence):
        chosen = 0
    return evaluator.plan(chunks[chosen], float(worth[chosen]), worth, chosen)


def _jittered(spec: RobotSpec, chunks: Array, jitter: float, rng: np.random.Generator) -> Array:
    noise = ActionDistribution.around(spec, chunks.shape[1], None, jitter).sample(len(chunks), rng)
    noise -= (spec.action_low + spec.action_high) / 2
    noise[..., gripper_fields(spec)] = 0
    return spec.check_action(chunks + noise)
