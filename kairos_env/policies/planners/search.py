"""The planners, one page each: cross-entropy method, MPPI, random shooting, best of n proposals.

All are functions ``plan(model, state, ...) -> Plan`` with the same last arguments:

    objective    how imagined futures are scored
    initial      (Hor, A) a first guess, usually the last plan shifted (warm start)
    deadline     seconds; the best plan so far is returned when they are over ("anytime")
    batch_size   most sequences imagined at once; bounds the memory, does not change the plan
    samples      noise seeds under which each candidate is imagined
    steps        denoising steps of the model; None is its default
    rollout      also return the imagined future of the plan (``model.decode(plan.rollout.latents)``)
    seed         same seed, same state: same plan (without a deadline)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kairos_env.policies.planners.action_sampling import ActionDistribution, continued, gripper_fields
from kairos_env.policies.planners.planning import (
    Clock,
    Evaluator,
    Objective,
    Plan,
    PlanningModel,
    ProposingModel,
    as_array,
)
from kairos_env.records import Array, RobotSpec


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
    objective: Objective | None = None,
    initial: Array | None = None,
    deadline: float | None = None,
    batch_size: int = 64,
    samples: int = 1,
    steps: int | None = None,
    rollout: bool = False,
    seed: int = 0,
) -> Plan:
    """Cross-entropy method: sample, refit the distribution to the best, repeat; returns the best seen.

    Beside the arguments that all planners share (top of this page):
        population, iterations: candidates per round, rounds.
        elites: how many of the best the distribution is refitted to.
        keep: how many of the best compete again in the next round (they are not imagined again).
        spread, smoothness, stickiness: see `ActionDistribution.around`.
        momentum: see `ActionDistribution.fit`.
        proposals: (K, N, A) further candidates of the first round, for example a policy's chunks.
    """
    if not 1 <= elites <= population or iterations < 1 or not 0 <= keep <= elites:
        raise ValueError(
            f"cem needs 1 <= elites <= population, iterations >= 1 and 0 <= keep <= elites; got elites={elites}, "
            f"population={population}, iterations={iterations}, keep={keep}"
        )
    clock, rng, spec = Clock(deadline), np.random.default_rng(seed), model.spec
    evaluator = Evaluator(model, state, objective or Objective(), clock, batch_size, samples, steps, seed)
    distribution = ActionDistribution.around(spec, horizon, initial, spread, smoothness, stickiness)
    best = np.empty((0, horizon, spec.action_dim), np.float32)
    best_values = np.empty(0)

    for _ in range(iterations):
        # The mean is always a candidate: it is the warm start at first, and the least noisy plan later.
        fresh = [distribution.mode()[None], distribution.sample(population - 1, rng)]
        if proposals is not None and not len(best):
            fresh.insert(0, np.stack([continued(spec, p, horizon) for p in proposals]))
        candidates = np.concatenate(fresh)
        values = np.concatenate([best_values[:keep], evaluator.values(candidates).mean(1)])
        candidates = np.concatenate([best[:keep], candidates])

        order = np.argsort(-values, kind="stable")[:elites]
        order = order[np.isfinite(values[order])]
        best, best_values = candidates[order], values[order]
        distribution = distribution.fit(best, momentum=momentum)
        if not clock.allows_another():
            break
    return _plan(evaluator, best[0], float(best_values[0]), values, rollout)


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
    objective: Objective | None = None,
    initial: Array | None = None,
    deadline: float | None = None,
    batch_size: int = 64,
    samples: int = 1,
    steps: int | None = None,
    rollout: bool = False,
    seed: int = 0,
) -> Plan:
    """Model-predictive path integral control: the exponentially weighted mean of all samples, repeated.

    Returns that mean, unless its own imagined value falls behind the best sample's.

    Beside the arguments that all planners share (top of this page):
        temperature: in standard deviations of the round's values; small follows the best sample.
    """
    if population < 2 or iterations < 1 or temperature <= 0:
        raise ValueError(
            f"mppi needs population >= 2, iterations >= 1 and temperature > 0; got {population}, {iterations}, "
            f"{temperature}"
        )
    clock, rng, spec = Clock(deadline), np.random.default_rng(seed), model.spec
    evaluator = Evaluator(model, state, objective or Objective(), clock, batch_size, samples, steps, seed)
    distribution = ActionDistribution.around(spec, horizon, initial, spread, smoothness, stickiness)
    best, best_value = distribution.mode(), -np.inf

    for _ in range(iterations):
        candidates = np.concatenate([distribution.mode()[None], distribution.sample(population - 1, rng)])
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
        if not clock.allows_another():
            break

    mean = distribution.mode()
    mean_value = float(evaluator.values(mean[None]).mean())
    if mean_value >= best_value:
        best, best_value = mean, mean_value
    return _plan(evaluator, best, best_value, values, rollout)


def random_shooting(
    model: PlanningModel,
    state: Any,
    *,
    horizon: int = 8,
    population: int = 512,
    spread: float = 0.8,
    smoothness: float = 0.6,
    stickiness: float = 0.9,
    objective: Objective | None = None,
    initial: Array | None = None,
    deadline: float | None = None,
    batch_size: int = 64,
    samples: int = 1,
    steps: int | None = None,
    rollout: bool = False,
    seed: int = 0,
) -> Plan:
    """The best of ``population`` random action sequences, ``initial`` among them: the baseline planner."""
    if population < 1:
        raise ValueError(f"random_shooting needs population >= 1, got {population}")
    clock, rng, spec = Clock(deadline), np.random.default_rng(seed), model.spec
    evaluator = Evaluator(model, state, objective or Objective(), clock, batch_size, samples, steps, seed)
    # Sampled around the middle of the bounds, not around the guess: this one is meant to be unprejudiced.
    distribution = ActionDistribution.around(spec, horizon, None, spread, smoothness, stickiness)
    candidates = distribution.sample(population, rng)
    if initial is not None:
        candidates[0] = continued(spec, initial, horizon)
    values = evaluator.values(candidates).mean(1)
    best = int(np.argmax(values))
    return _plan(evaluator, candidates[best], float(values[best]), values, rollout)


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
    objective: Objective | None = None,
    initial: Array | None = None,
    deadline: float | None = None,
    batch_size: int = 64,
    samples: int = 1,
    steps: int | None = None,
    rollout: bool = False,
    seed: int = 0,
) -> Plan:
    """The best of ``n`` proposals of the model's own policy, each imagined with the policy going on behind it.

    Proposal 0 is what the policy alone would do (so n = 1 is the policy). Another one is executed only if
    its imagined value is better by more than ``margin`` and than ``confidence`` standard errors of the
    paired difference over ``samples`` noise seeds: model noise alone must not make it worse than the policy.

    Beside the arguments that all planners share (top of this page):
        horizon: imagined steps: the proposal, then the policy's own actions by turns of `act` and `step`.
        commit: how many actions of a chunk are imagined before the policy is asked again; None is the
            whole chunk. Set it to what is executed per decision for the most faithful value.
        margin: in units of the objective.
        jitter: smooth noise added to all proposals but the policy's own, as a fraction of half of each
            field's range (not to the gripper): for policies that always propose much the same.
        act_steps: denoising steps of the policy; None is the model's default.
        initial: ignored; the proposals come from the model.
    """
    if n < 1 or horizon < 1 or (commit is not None and commit < 1):
        raise ValueError(f"best_of_n needs n, horizon and commit >= 1; got {n}, {horizon}, {commit}")
    clock, rng = Clock(deadline), np.random.default_rng(seed)
    evaluator = Evaluator(model, state, objective or Objective(), clock, batch_size, samples, steps, seed)
    own = as_array(model.act(state, steps=act_steps))  # (1, N, A)
    if n == 1:
        future = evaluator.rollout(own[0]) if rollout else None
        return Plan(own[0], float("nan"), 0, clock.elapsed, np.full(1, np.nan), 0, future)

    # Propose: the policy's own chunk first, then chunks from other noise.
    seeds = rng.integers(2**31, size=n - 1).tolist()
    others = [
        as_array(model.act(state.fork(len(part)).reseed(part), steps=act_steps))
        for part in (seeds[i : i + batch_size] for i in range(0, n - 1, batch_size))
    ]
    chunks = np.concatenate([own, *others])  # (n, N, A)
    if jitter > 0:
        chunks[1:] = _jittered(model.spec, chunks[1:], jitter, rng)

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
    return _plan(evaluator, chunks[chosen], float(means[chosen]), means, rollout, chosen)


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
            return evaluator.objective(*parts)
        actions = as_array(model.act(state, steps=act_steps))


def _plan(evaluator: Evaluator, actions: Array, value: float, values: Array, rollout: bool, chosen: int = -1) -> Plan:
    future = evaluator.rollout(actions) if rollout else None
    actions = np.ascontiguousarray(actions, np.float32)
    return Plan(actions, value, evaluator.evaluations, evaluator.clock.elapsed, values, chosen, future)


# For command lines: the name of each planner.
PLANNERS: dict[str, Callable[..., Plan]] = {
    "cem": cem,
    "mppi": mppi,
    "random_shooting": random_shooting,
    "best_of_n": best_of_n,
}
