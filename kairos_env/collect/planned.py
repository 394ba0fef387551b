"""What a planner gets wrong: its plans in the model's imagination, played in the simulator and compared with it.

A planner searches for what the model values most, so it finds where the model is wrong better than any other behaviour
does. Data of these places, with the labels of the simulator and the way out that the expert knows, mend the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kairos_env.collect.movements import Expert
from kairos_env.policies.make import check_name, make_policy, parse_name
from kairos_env.policies.planners import PLANNERS
from kairos_env.policies.planners.objective import as_array
from kairos_env.policies.planners.planning import ActionPlan
from kairos_env.policies.planners.policy import PlannerPolicy
from kairos_env.policies.policy import begin
from kairos_env.records import Array, Episode, Observation
from kairos_env.runs import did_you_mean

BELIEVED = 0.5
"""The model has imagined success where it gives it at least this probability."""


def check_planner(name: str) -> str:
    """Returns the name of a planner over the world model, with its options.

    Raises:
        ValueError: it is none, or has no such option.
    """
    base = parse_name(name)[0]
    if base not in PLANNERS:
        raise ValueError(f"{base!r} is no planner over the world model; {did_you_mean(base, PLANNERS)}")
    check_name(name)
    return name


class PlannerThenExpert:
    """A planner acts until it has solved the task or its time is over, then the expert, where there is one.

    Args:
        env, task, rng: as of every behaviour.
        planner: name with options, as `policies.make` knows it.
        decisions: the planner's time.
        model, device: of the planner.
    """

    def __init__(
        self, env: Any, task: str, rng: np.random.Generator, planner: str, decisions: int, model: str, device: str
    ) -> None:
        policy = make_policy(planner, env, model, device)
        assert isinstance(policy, PlannerPolicy), "see check_planner"
        policy.options["rollout"] = True  # what the model imagines of the plan is what is compared
        self.policy, self.expert, self.left = policy, Expert(env, task, rng), decisions
        self.begun, self.step = False, 0
        self.plan: ActionPlan | None = None
        self.imagined: list[tuple[bool, float, float]] = []
        policy.reset(int(rng.integers(2**31)))

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        if not self.begun:
            begin(self.policy, info)
            self.begun = True
        if info["success"]:
            self.left = 0
        if self.left == 0:
            self.imagined.append((False, 0.0, 0.0))
            return self.expert.act(observation, info)
        self.left -= 1
        action = self.policy.act(observation)
        assert self.policy.plan is not None, "it has planned"
        self.step = self.step + 1 if self.policy.plan is self.plan else 0
        self.plan = self.policy.plan
        future = self.plan.rollout
        reward, success = (float(as_array(values)[0, self.step]) for values in (future.reward, future.success))
        self.imagined.append((True, reward, success))
        return action

    def follow(self, observation: Observation, action: Array) -> None:
        pass  # a planner is told nothing else than what it has chosen

    def labels(self) -> dict[str, Array]:
        """Which decisions were the planner's, and what the model imagined of them.

        Returns:
            ``planned`` bool (T,); ``imagined_rewards``, ``imagined_success`` float32 (T,), 0 where the expert decided.
        """
        planned, rewards, success = zip(*self.imagined, strict=True)
        return {
            "planned": np.array(planned, np.bool_),
            "imagined_rewards": np.array(rewards, np.float32),
            "imagined_success": np.array(success, np.float32),
        }


@dataclass(frozen=True)
class PlannerErrors:
    """What a planner got wrong in an episode.

    Args:
        failed: it did not solve the task in its time.
        surprises: decisions after which the model had imagined success and there was none.
        optimism: imagined minus true reward of a decision, in the mean.
    """

    failed: bool
    surprises: int
    optimism: float

    @property
    def any(self) -> bool:
        return self.failed or self.surprises > 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"optimism": round(self.optimism, 4)}


def planner_errors(episode: Episode) -> PlannerErrors:
    """What the planner of an episode of `PlannerThenExpert` got wrong."""
    planned = np.asarray(episode.labels["planned"])
    success, imagined = episode.success[planned], episode.labels["imagined_success"][planned]
    optimism = episode.labels["imagined_rewards"][planned] - episode.rewards[planned]
    return PlannerErrors(
        failed=not success.any(),
        surprises=int((~success & (imagined >= BELIEVED)).sum()),
        optimism=float(optimism.mean()),
    )
