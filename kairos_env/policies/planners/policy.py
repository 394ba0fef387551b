"""A planner as a policy: plan from the newest observation, execute a little, plan again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kairos_env.policies.memory import RememberingPolicy
from kairos_env.policies.planners.action_sampling import continued, stay
from kairos_env.policies.planners.planning import ActionPlan, PlanningModel, option_names
from kairos_env.records import Array, RobotSpec
from kairos_env.sims.simulator import check_names

# whole numbers among the options of planners, checked before an episode begins
_COUNTS = (
    *("horizon", "population", "iterations", "elites", "n", "commit"),
    *("batch_size", "samples", "steps", "act_steps"),
)


class PlannerPolicy(RememberingPolicy):
    """Model-predictive control with any planner of `kairos_env.policies.planners`.

    Example:
        >>> PlannerPolicy(model, cem, task="push", horizon=10, deadline=0.2)  # doctest: +SKIP

    Args:
        model: whatever has the verbs of `PlanningModel`.
        planner: ``plan(model, state, *, initial, deadline, seed, ...) -> ActionPlan``.
        task, instruction: replace the observation's instruction; see `RememberingPolicy`.
        execute: actions executed per plan.
        deadline: seconds for each plan; None is no limit (and makes runs reproducible).
        warm_start: start each plan from the rest of the last one.
        seed: of the sequence from which `reset` without a seed draws.
        options: further arguments of the planner.

    Raises:
        ValueError: an option that the planner does not have, or a count below 1.
    """

    def __init__(
        self,
        model: PlanningModel,
        planner: Callable[..., ActionPlan],
        task: str | None = None,
        instruction: str | None = None,
        execute: int = 1,
        deadline: float | None = None,
        warm_start: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        legal = option_names(planner)
        if legal is not None:
            whose = getattr(planner, "__name__", planner)
            check_names(options, legal, f"option of {whose}")
            low = [f"{name}={options[name]}" for name in _COUNTS if options.get(name) is not None and options[name] < 1]
            if low:
                raise ValueError(f"{whose} needs at least 1: {', '.join(low)}")
        super().__init__(model, task, instruction, execute, seed)
        self.planner = planner
        self.deadline = deadline
        self.warm_start = warm_start
        self.options = options
        self.plan: ActionPlan | None = None  # the newest, to look at
        self._planned_at = 0

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self.plan = None

    def decide(self, state: Any) -> Array:
        initial = None
        if self.plan is not None and self.warm_start:
            initial = shifted(self.model.spec, self.plan.actions, self.observations - self._planned_at)
        seed = int(np.random.SeedSequence([self.seed, self.observations]).generate_state(1)[0])
        self.plan = self.planner(self.model, state, initial=initial, deadline=self.deadline, seed=seed, **self.options)
        self._planned_at = self.observations
        return self.plan.actions


def shifted(spec: RobotSpec, actions: Array, by: int) -> Array:
    """The rest of a plan (Hor, A) ``by`` steps later, continued by staying: (Hor, A)."""
    rest = actions[by:] if by < len(actions) else stay(spec, actions[-1])[None]
    return continued(spec, rest, len(actions))
