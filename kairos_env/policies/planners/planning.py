"""The parts that planners share: the plan, the objective, the clock, and imagining many candidates at once.

A planner is a function ``(model, state, *, initial, ...) -> ActionPlan`` over the verbs of a world model. The model is
whatever has them: the video world model, the state model, a simulator behind the same verbs.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np

from kairos_env.policies.memory import ObservingModel
from kairos_env.records import Array


class PlanningModel(ObservingModel, Protocol):
    """The verbs that planners use."""

    def imagine(self, state: Any, actions: Any, steps: int | None = None) -> Any:
        """Actions (B, Hor, A) -> an object with reward, success, uncertainty (B, Hor) and state."""


class ProposingModel(PlanningModel, Protocol):
    """A planning model that also proposes actions, as `best_of_n` needs."""

    def act(self, state: Any, steps: int | None = None) -> Any:
        """(B, N, A), physical units; another proposal for another seed of the state."""


@dataclass(frozen=True)
class ActionPlan:
    """The result of a planner.

    Args:
        actions: float32 (Hor, A), physical units.
        value: predicted value of ``actions`` under the `Objective`.
        evaluations: imagined action sequences that it took.
        seconds: wall-clock time that it took.
        values: (K,) values of the last round's candidates; in `best_of_n`, of all proposals in order,
            minus infinity where the deadline came first.
        chosen: `best_of_n`: index of the executed proposal (0 is the policy's own); else -1.
        rollout: the plan's imagined future (of ``imagine`` with batch 1) if it was asked for.
    """

    actions: Array
    value: float
    evaluations: int
    seconds: float
    values: Array
    chosen: int = -1
    rollout: Any = None


@dataclass(frozen=True)
class Objective:
    """The discounted sum of an imagined future's rewards.

    Success is absorbing in the model's own reward: after it, every step counts as reward 1, whatever the model
    imagines next, because the real episode ends there. A ``reward`` of one's own replaces all of that: only what it
    says counts, and what `success_value` and `uncertainty_penalty` ask for.

    Args:
        discount: weight of a reward one step later.
        success_value: added, discounted, for the probability of having succeeded within the horizon; None is 1 for
            the model's own reward, 0 for another one.
        terminal_weight: the last step's reward counts this many times more, standing for all the steps
            behind the horizon.
        uncertainty_penalty: subtracted per unit of predicted uncertainty and step: do not trust plans
            that lead where the model does not know.
        reward: computes (B, Hor) rewards from the rollout (a cost: minus it) in place of the model's own.

    Example:
        >>> def near(rollout): return -(rollout.proprio[..., :3] - target).norm(dim=-1)
        >>> PlannerPolicy(model, cem, objective=Objective(reward=near))  # doctest: +SKIP
    """

    discount: float = 0.95
    success_value: float | None = None
    terminal_weight: float = 0.0
    uncertainty_penalty: float = 0.0
    reward: Callable[[Any], Any] | None = None

    def __call__(self, *parts: Any) -> Array:
        """Values (B,) of rollouts with reward, success and uncertainty (B, Hor).

        Several arguments are one future that was imagined in consecutive parts.
        """
        rewards = [part.reward if self.reward is None else self.reward(part) for part in parts]
        return self.value(
            np.concatenate([as_array(r) for r in rewards], axis=1),
            np.concatenate([as_array(part.success) for part in parts], axis=1),
            np.concatenate([as_array(part.uncertainty) for part in parts], axis=1),
        )

    def value(self, reward: Array, success: Array, uncertainty: Array) -> Array:
        """Arrays (K, Hor) -> values (K,)."""
        earned, success = np.asarray(reward, np.float64), np.clip(np.asarray(success, np.float64), 0, 1)
        still_open = np.cumprod(1 - success, axis=1)
        bonus = self.success_value
        if self.reward is None:
            earned = still_open * earned + (1 - still_open)
            bonus = 1.0 if bonus is None else bonus
        earned = earned - self.uncertainty_penalty * np.asarray(uncertainty, np.float64)
        weight = self.discount ** np.arange(earned.shape[1])
        total = earned @ weight + self.terminal_weight * weight[-1] * earned[:, -1]
        if bonus:
            newly_succeeded = -np.diff(still_open, axis=1, prepend=1.0)
            total = total + bonus * (newly_succeeded @ weight)
        return total


class Clock:
    """A deadline that is kept by not starting what would probably not end in time.

    Args:
        seconds: None is no deadline.
    """

    def __init__(self, seconds: float | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._start = self._last = now()
        self._seconds = seconds
        self._longest = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the planner started."""
        return self._now() - self._start

    def lap(self) -> None:
        """A unit of work has ended."""
        now = self._now()
        self._longest = max(self._longest, now - self._last)
        self._last = now

    def allows_another(self) -> bool:
        """Whether one more unit of work, as long as the longest yet, would end before the deadline."""
        return self._seconds is None or self.elapsed + self._longest <= self._seconds


class SearchOptions(TypedDict, total=False):
    """The keyword arguments that every planner hands to `Evaluator`, which describes them."""

    objective: Callable[..., Array] | None
    deadline: float | None
    batch_size: int
    samples: int
    steps: int | None
    rollout: bool
    seed: int


@dataclass
class Evaluator:
    """Values candidate action sequences by imagining them from forks of one state, batch by batch.

    All candidates share the state's noise seed, so that they are compared under the same luck.

    Args:
        model: imagines.
        state: where all candidates start; batch size 1.
        objective: how imagined futures are scored: an `Objective` (the default one if None), or any function of
            rollouts that returns values (B,).
        deadline: seconds; the best plan so far is returned when they are over ("anytime").
        batch_size: most sequences imagined at once; bounds the memory, does not change the plan.
        samples: noise seeds under which each candidate is imagined.
        steps: denoising steps of the model; None is its default.
        rollout: also return the imagined future of the plan (``model.decode(plan.rollout.latents)``).
        seed: same seed, same state: same plan (without a deadline).
    """

    model: PlanningModel
    state: Any
    objective: Callable[..., Array] | None = None
    deadline: float | None = None
    batch_size: int = 64
    samples: int = 1
    steps: int | None = None
    rollout: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.state.batch_size != 1:
            raise ValueError(
                f"planners plan for one state, got a batch of {self.state.batch_size}; call state.select([i]) for each"
            )
        if self.samples < 1 or self.batch_size < 1:
            raise ValueError(f"samples and batch_size must be >= 1, got {self.samples} and {self.batch_size}")
        self.score = self.objective or Objective()
        self.clock = Clock(self.deadline)
        self.rng = np.random.default_rng(self.seed)
        self.evaluations = 0

    def fork(self, count: int) -> Any:
        """``count * samples`` copies of the state, candidate-major; every candidate has the same seeds."""
        forked = self.state.fork(count * self.samples)
        if self.samples == 1:
            return forked
        seeds = np.random.SeedSequence([self.seed, 1]).generate_state(self.samples).tolist()
        return forked.reseed(seeds * count)

    def values(self, actions: Array) -> Array:
        """Actions (K, Hor, A) -> values (K, samples); minus infinity for what the deadline left out.

        The first batch is always evaluated.
        """

        def imagine(part: Array) -> Array:
            roll = self.model.imagine(self.fork(len(part)), np.repeat(part, self.samples, axis=0), steps=self.steps)
            return self.score(roll)

        return self.in_batches(actions, imagine)

    def in_batches(self, candidates: Array, judge: Callable[[Array], Array]) -> Array:
        """`values` for another way of imagining: ``judge`` maps candidates (k, ...) to values (k * samples,)."""
        result = np.full((len(candidates), self.samples), -np.inf)
        size = max(1, self.batch_size // self.samples)
        for start in range(0, len(candidates), size):
            if self.evaluations and not self.clock.allows_another():
                break
            part = candidates[start : start + size]
            values = judge(part).reshape(len(part), self.samples)
            if not np.isfinite(values).any():
                raise FloatingPointError(
                    "the model imagined a non-finite reward, success or uncertainty for every candidate plan"
                )
            result[start : start + size] = np.where(np.isfinite(values), values, -np.inf)
            self.evaluations += len(part)
            self.clock.lap()
        return result

    def plan(self, actions: Array, value: float, values: Array, chosen: int = -1) -> ActionPlan:
        """The finished plan: ``actions`` (Hor, A), with its imagined future if that was asked for."""
        future = self.model.imagine(self.state, actions[None], steps=self.steps) if self.rollout else None
        actions = np.ascontiguousarray(actions, np.float32)
        return ActionPlan(actions, value, self.evaluations, self.clock.elapsed, values, chosen, future)


def option_names(planner: Callable[..., ActionPlan]) -> list[str] | None:
    """Names of all options of a planner, from its signature; None if it takes any."""
    names: list[str] = []
    for parameter in inspect.signature(planner).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            names.append(parameter.name)
        elif parameter.kind is parameter.VAR_KEYWORD:
            if SearchOptions.__name__ not in str(parameter.annotation):
                return None
            names += SearchOptions.__annotations__
    return names


def as_array(values: Any) -> Array:
    """A tensor of any device, or an array, as a numpy array; torch is not imported for it."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
