"""Planning by imagining: one function and one page a planner, over forks of a model's state."""

from __future__ import annotations

from collections.abc import Callable

from kairos_env.policies.planners.best_of_n import best_of_n
from kairos_env.policies.planners.cem import cem
from kairos_env.policies.planners.mppi import mppi
from kairos_env.policies.planners.planning import ActionPlan
from kairos_env.policies.planners.random_shooting import random_shooting

PLANNERS: dict[str, Callable[..., ActionPlan]] = {
    "best_of_n": best_of_n,
    "cem": cem,
    "mppi": mppi,
    "random_shooting": random_shooting,
}

__all__ = ["PLANNERS", "best_of_n", "cem", "mppi", "random_shooting"]
