"""The parts that planners share: the plan, the objective, the clock, and imagining many candidates at once.

A planner is a function ``(model, state, *, initial, ...) -> ActionPlan`` over the verbs of a world model. The model is
whatever has them: the video world model, the state model, a simulator behind the same verbs.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np

from kairos_env.policies.memory import ObservingModel
from kairos_env.policies.planners.objective import Objective, joined, untouched_motion
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
        chosen: index of the executed proposal (0 is the policy's own); -1 for a plan that the search found.
        rollout: the plan's imagined future (of ``imagine`` with batch 1) if it was asked for.
    """

    actions: Array
    value: float
    evaluations: int
    seconds: float
    values: Array
    chosen: int = -1
    rollout: Any = None


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
    risk: float
    untouched_penalty: float
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
            a rollout that returns values (B,).
        deadline: seconds; the best plan so far is returned when they are over ("anytime"), within the time of one
            step of a batch. What was imagined by then is compared as it is if it is the first batch, which is a small
            one; later batches grow up to ``batch_size`` and count only when complete.
        batch_size: most sequences imagined at once; bounds the memory, does not change the plan.
        samples: noise seeds under which each candidate is imagined.
        risk: how many standard deviations over the samples a candidate is worth less than its mean.
        untouched_penalty: taken from the value for each metre of `untouched_motion`, in which a plan would profit from
            an object that the model has lost.
        steps: denoising steps of the model; None is its default.
        rollout: also return the imagined future of the plan (``model.decode(plan.rollout.latents)``), whose time
            comes on top of the deadline.
        seed: same seed, same state: same plan (without a deadline).
    """

    model: PlanningModel
    state: Any
    objective: Callable[..., Array] | None = None
    deadline: float | None = None
    batch_size: int = 64
    samples: int = 1
    risk: float = 0.0
    untouched_penalty: float = 0.0
    steps: int | None = None
    rollout: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.state.batch_size != 1:
            raise ValueError(
                f"planners plan for one state, got a batch of {self.state.batch_size}; call state.select([i]) for each"
            )
        if self.samples < 1 or self.batch_size < 1:
            raise ValueError(f"samples and batch_size must be >= 1, got {self.samples}, {self.batch_size}")
        for name in ("risk", "untouched_penalty", "deadline"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"{name} is {value!r}; it takes a number >= 0")
        if self.risk and self.samples == 1:
            raise ValueError(f"risk={self.risk} needs several samples to compare: samples=2 or more")
        scored = getattr(self.objective, "reward", self.objective) is not None
        if not scored and "reward" in getattr(self.model, "untrained", ()):
            raise ValueError(
                "nothing taught this model what a state is worth: plan by a reward of your own, such as "
                "objective=Objective(reward=function of a rollout), or GoalImageReward(model, picture)"
            )
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

    def imagine(self, state: Any, actions: Array) -> Any:
        """The rollout of actions (B, Hor, A), or None if the deadline came first and there is something to return.

        Before anything has been evaluated it is a shorter rollout instead, of at least one step.
        """
        if self.deadline is None:
            return self.model.imagine(state, actions, steps=self.steps)
        parts: list[Any] = []
        for t in range(actions.shape[1]):
            if (parts or self.evaluations) and not self.clock.allows_another():
                return None if self.evaluations else joined(parts)
            parts.append(self.model.imagine(state, actions[:, t : t + 1], steps=self.steps))
            state = parts[-1].state
            self.clock.lap()
        return joined(parts)

    def values(self, actions: Array) -> Array:
        """Actions (K, Hor, A) -> values (K, samples); minus infinity for what the deadline left out."""
        return self.in_batches(
            actions, lambda part: self.imagine(self.fork(len(part)), np.repeat(part, self.samples, axis=0))
        )

    def in_batches(self, candidates: Array, play: Callable[[Array], Any]) -> Array:
        """`values` for another way of imagining: ``play`` maps candidates (k, ...) to a rollout, or to None."""
        result = np.full((len(candidates), self.samples), -np.inf)
        start = 0
        while start < len(candidates):
            part = candidates[start : start + self._next_size()]
            rollout = play(part)
            if rollout is None:
                break
            values = self._values_of(rollout).reshape(len(part), self.samples)
            if not np.isfinite(values).any():
                raise FloatingPointError(
                    "no candidate plan has a finite value: the reward or penalty that was given computes none, or the "
                    "model imagined a reward, success or uncertainty that is not finite"
                )
            result[start : start + len(part)] = np.where(np.isfinite(values), values, -np.inf)
            self.evaluations += len(part)
            start += len(part)
        return result

    def _values_of(self, rollout: Any) -> Array:
        values = self.score(rollout)
        if self.untouched_penalty:
            values = values - self.untouched_penalty * untouched_motion(rollout, self.model.spec).sum(1)
        return values

    def _next_size(self) -> int:
        """Candidates of the next batch: with a deadline few at first, so that there is an answer soon."""
        most = self.batch_size if self.deadline is None else min(self.batch_size, max(8, self.evaluations))
        return max(1, most // self.samples)

    def worth(self, values: Array) -> Array:
        """Values (K, samples) -> one each, (K,)."""
        mean = values.mean(1)
        return mean - self.risk * np.where(np.isfinite(values), values, 0).std(1) if self.risk else mean

    def plan(self, actions: Array, value: float, values: Array, chosen: int = -1) -> ActionPlan:
        """The finished plan: ``actions`` (Hor, A), with its imagined future if that was asked for."""
        future = self.model.imagine(self.state, actions[None], steps=self.steps) if self.rollout else None
        actions = np.ascontiguousarray(actions, np.float32)
        return ActionPlan(actions, value, self.evaluations, self.clock.elapsed, values, chosen, future)


def clearly_better(values: Array, own: Array, margin: float, confidence: float = 1.0) -> bool:
    """Whether values (samples,) exceed the policy's ``own`` by more than a margin and than what noise explains.

    Args:
        margin: in units of the objective.
        confidence: how many standard errors of the paired difference must lie beyond the margin.
    """
    if not np.isfinite(own).all():
        return True
    gain = values - own
    doubt = confidence * gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return bool(gain.mean() > margin + doubt)


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
