"""What behaviours earn in a simulator, by each form of the reward: does solving a task pay more than not solving it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kairos_env.collect.behaviours import make_behaviour
from kairos_env.collect.movements import Behaviour, Expert, Hold
from kairos_env.eval.report.text import format_table
from kairos_env.policies.planners.action_sampling import stay
from kairos_env.records import Array, Observation
from kairos_env.runs import INITIAL_STATES, did_you_mean
from kairos_env.sims.make import make_simulator
from kairos_env.sims.reward import REWARD_FORMS, RewardForm, step_reward


@dataclass(frozen=True)
class RewardsConfig:
    """Settings of a comparison of behaviours by what they earn.

    Args:
        simulator: Gymnasium id or ``module:factory``.
        tasks: names of the tasks; empty: all.
        behaviours: those of recordings and policies by name; ``hover``, which stays just short of success, and
            ``still``, which never moves.
        episodes: of each behaviour and task, from the same initial states.
        decisions: an episode is cut off after so many.
        discount: of the discounted returns.
        first_initial_state: the others follow.
        options: of the simulator's constructor.
    """

    simulator: str = "Kairos-Robosuite-v0"
    tasks: tuple[str, ...] = ()
    behaviours: tuple[str, ...] = ("expert", "hover", "attracted", "random", "still")
    episodes: int = 20
    decisions: int = 24
    discount: float = 0.95
    first_initial_state: int = INITIAL_STATES["evaluation"].start
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.decisions < 1 or not 0 < self.discount <= 1:
            raise ValueError(
                f"episodes={self.episodes}, decisions={self.decisions}, discount={self.discount}: give at least one "
                "episode and decision, and a discount in (0, 1]"
            )


@dataclass(frozen=True)
class Earnings:
    """One episode: dense reward and success after each decision, (T,) each; it ends in success or is cut off."""

    task: str
    behaviour: str
    initial_state: int
    dense: Array
    success: Array

    @property
    def solved(self) -> bool:
        return bool(self.success.any())

    def total(self, form: RewardForm, discount: float = 1.0) -> float:
        """The (discounted) sum of what its decisions earn."""
        return float(step_reward(self.dense, self.success, form) @ discount ** np.arange(len(self.dense)))


class Hover(Expert):
    """The expert, except that it never takes the step that would succeed: it stays where it is, just short of it.

    Nothing else that does not solve the task earns so much. Needs a simulator with ``get_state`` and ``set_state``.
    """

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        action = super().act(observation, info)
        before = self.env.get_state()
        solves = self.env.step(action)[4]["success"]
        self.env.set_state(before)
        return stay(self.env.robot_spec, action) if solves else action


_OWN: dict[str, Callable[[Any, str, np.random.Generator], Behaviour]] = {"hover": Hover, "still": Hold}


def compare_rewards(config: RewardsConfig) -> list[Earnings]:
    """Plays every behaviour in every task."""
    env = make_simulator(config.simulator, observe_images=False, reward="dense", **config.options)
    try:
        for task in config.tasks:
            if task not in env.tasks():
                raise ValueError(f"unknown task {task!r}; {did_you_mean(task, env.tasks())}")
        return list(_played(config, env))
    finally:
        env.close()


def _played(config: RewardsConfig, env: Any) -> Iterator[Earnings]:
    for task in config.tasks or tuple(env.tasks()):
        for name in config.behaviours:
            for number in range(config.episodes):
                state = config.first_initial_state + number
                raw, info = env.reset(seed=state, options={"task": task, "initial_state": state})
                rng = np.random.default_rng(state)
                behaviour = _OWN[name](env, task, rng) if name in _OWN else make_behaviour(name, env, task, rng)
                yield Earnings(task, name, state, *_outcomes(env, behaviour, raw, info, config.decisions))


def _outcomes(env: Any, behaviour: Behaviour, raw: Any, info: Mapping[str, Any], decisions: int) -> tuple[Array, Array]:
    dense: list[float] = []
    success: list[bool] = []
    while len(dense) < decisions and not any(success):
        seen = Observation({}, raw["proprio"], info["instruction"])
        action = behaviour.act(seen, info)
        behaviour.follow(seen, action)
        raw, reward, _, _, info = env.step(action)
        dense.append(reward)
        success.append(info["success"])
    return np.array(dense), np.array(success)


def rewards_table(config: RewardsConfig, played: list[Earnings]) -> str:
    """Mean returns of each behaviour and task; the discounted ones in brackets."""
    header = ["task", "behaviour", "solved", *(f"{form} (x{config.discount:g})" for form in REWARD_FORMS)]
    lines = []
    for task, behaviour in dict.fromkeys((e.task, e.behaviour) for e in played):
        mine = [e for e in played if (e.task, e.behaviour) == (task, behaviour)]
        sums = {
            form: [np.mean([e.total(form, weight) for e in mine]) for weight in (1.0, config.discount)]
            for form in REWARD_FORMS
        }
        earned = [f"{plain:.1f} ({weighted:.1f})" for plain, weighted in sums.values()]
        lines.append([task, behaviour, f"{np.mean([e.solved for e in mine]):.0%}", *earned])
    return format_table(header, lines)
