"""The configuration of a recording, and the plan of each of its episodes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from kairos_env.collect.behaviours import check_behaviour, disturbed
from kairos_env.collect.planned import check_planner
from kairos_env.runs import INITIAL_STATES, check_initial_states, did_you_mean, split_initial_states
from kairos_env.sims.simulator import require_condition, start_options

HELD_OUT = "held-out"
MIXTURE = {
    "expert": 0.1,
    "noisy_expert": 0.3,
    "recovery": 0.25,
    "mixed": 0.1,
    "attracted": 0.1,
    "random": 0.05,
    "still": 0.1,
}
"""Who acts in a recording that names nobody -> weight."""
_MAY_CHANGE = ("out", "episodes", "per_task", "workers", "device")


@dataclass(frozen=True)
class RecordConfig:
    """Settings of a recording.

    Args:
        out: the folder of the recording; an existing one of the same configuration is continued.
        simulator: a Gymnasium id, or module:factory.
        options: of the simulator's constructor, such as image_size=128,cameras=['scene','wrist'].
        episodes: how many; may be raised later to record more of the same.
        per_task: episodes of each task, in the order of the tasks, instead of ``episodes`` that mix them.
        workers: processes, each with a simulator of its own.
        seed: everything random follows from it and the episode's number.
        decisions: length of an episode; 0 is the simulator's own limit.
        after_success: decisions recorded after success; -1: all of them.
        tasks: task name -> weight; names may have wildcards (libero_object/*). Empty: those that the simulator names
            for this, or all of them.
        conditions: condition of the simulator -> weight, one being drawn for each episode; empty: its usual one.
        behaviours: who acts -> weight: expert, noisy_expert, recovery, mixed, attracted, random, still, or a policy as
            in kairos eval; with disturbed_ before it, its motion is disturbed.
        noise: the largest disturbance, as a standard deviation in units of the largest action.
        from_planner: a planner in the imagination of ``model``, such as cem(horizon=8;execute=4), acts in the place of
            ``behaviours``. Only the episodes in which it fails, or in which the model has imagined a success that did
            not come, are kept. After its time, the simulator's limit, the expert goes on as long again.
        keep: all episodes, or the successes only: a failure is tried again from the same initial state, disturbed.
        attempts: after which an episode without success is given up.
        model: world model that acts where a behaviour is a policy; the simulator's pictures and rate are then its own.
        device: of the model.
        first_initial_state: episode i starts from initial state ``first_initial_state + i``. Keep the
            ranges of training and held-out data apart.
        initial_states: of a simulator that has a fixed number of them: those to start from in turn, such as 0-39 or
            0,5,9. Empty: the first four fifths; held-out: the others, which are for evaluation.
        layout: kairos for its own HDF5, libero for LIBERO's, a file for each task (kairos data export: LeRobot).
        episodes_per_file: size of a finished shard.
    """

    out: str
    simulator: str = "Kairos-Robosuite-v0"
    options: dict[str, Any] = field(default_factory=dict)
    episodes: int = 100
    per_task: int = 0
    workers: int = 2
    seed: int = 0
    decisions: int = 0
    after_success: int = -1
    tasks: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, float] = field(default_factory=dict)
    behaviours: dict[str, float] = field(default_factory=lambda: dict(MIXTURE))
    from_planner: str = ""
    noise: float = 0.2
    keep: Literal["all", "successes"] = "all"
    attempts: int = 3
    model: str = ""
    device: str = "cpu"
    first_initial_state: int = INITIAL_STATES["training"].start
    initial_states: str = ""
    layout: Literal["kairos", "libero"] = "kairos"
    episodes_per_file: int = 50

    def __post_init__(self) -> None:
        for name in ("episodes", "workers", "attempts", "episodes_per_file"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "decisions", "per_task", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        check_initial_states(self.first_initial_state, self.episodes)
        _numbers(self.initial_states)
        for name in ("tasks", "conditions", "behaviours"):
            weights = getattr(self, name)
            if weights and (min(weights.values()) < 0 or not 0 < sum(weights.values()) < float("inf")):
                raise ValueError(f"{name} needs weights >= 0 with a positive sum, got {dict(weights)}")
        if not self.behaviours:
            raise ValueError("behaviours is empty: nobody would act")
        for name in self.behaviours:
            check_behaviour(name)
        if self.from_planner:
            check_planner(self.from_planner)
            self._require_planner_alone()

    @property
    def acting_model(self) -> str:
        """The model whose robot the simulator must be; "" if none acts."""
        return self.model or ("kairos-tiny" if self.from_planner else "")

    def _require_planner_alone(self) -> None:
        """Raises ValueError for what a recording from a planner would ignore."""
        ignored = {"behaviours": self.behaviours != MIXTURE, "keep": self.keep != "all"}
        for name in (name for name, given in ignored.items() if given):
            raise ValueError(
                f"{name}={getattr(self, name)!r} with from_planner={self.from_planner!r}: the planner acts, and what "
                f"it gets wrong is kept; leave {name} out"
            )
        if self.layout != "kairos":
            raise ValueError(f"layout={self.layout!r} has no place for what a planner imagined: give layout=kairos")

    def split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """JSON values: those that the episodes depend on, and those that may change when a recording is continued."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {k: v for k, v in values.items() if k not in _MAY_CHANGE}, {k: values[k] for k in _MAY_CHANGE}


@dataclass(frozen=True)
class EpisodePlan:
    """Everything that decides one episode."""

    number: int
    seed: int
    task: str
    behaviour: str
    initial_state: int
    condition: str = ""

    @property
    def start(self) -> dict[str, Any]:
        """Options of the simulator's reset."""
        return start_options(self.task, self.initial_state, self.condition)

    def again(self, attempt: int) -> EpisodePlan:
        """The plan of the attempt of that number, 0 being the first; later ones are disturbed."""
        if attempt == 0:
            return self
        seed = int(np.random.default_rng([self.seed, attempt]).integers(2**31))
        return dataclasses.replace(self, seed=seed, behaviour=disturbed(self.behaviour))


def plan_episodes(config: RecordConfig, env: Any) -> list[EpisodePlan]:
    """The plans of all episodes, each a pure function of the configuration and its number.

    Args:
        config: what to record.
        env: the simulator, for its tasks and their initial states.

    Raises:
        ValueError: unknown tasks or conditions, or initial states that a task does not have.
    """
    for name in config.conditions:
        require_condition(name, env, config.simulator)
    tasks = _tasks(config.tasks or getattr(env, "task_mixture", {}), env.tasks())
    states = {task: _states(config, env, task) for task in tasks}
    names, plans = list(tasks), []
    for number in range(config.per_task * len(tasks) or config.episodes):
        rng = np.random.default_rng([config.seed, number])
        task = names[number % len(names)] if config.per_task else _draw(rng, tasks)
        behaviour, seed = config.from_planner or _draw(rng, config.behaviours), int(rng.integers(2**31))
        turn, known = number // len(names) if config.per_task else number, states[task]
        state = config.first_initial_state + number if known is None else known[turn % len(known)]
        condition = _draw(rng, config.conditions) if config.conditions else ""
        plans.append(EpisodePlan(number, seed, task, behaviour, state, condition))
    return plans


def _draw(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    p = np.array(list(weights.values()), float)
    return str(rng.choice(list(weights), p=p / p.sum()))


def _tasks(wanted: Mapping[str, float], known: Mapping[str, str]) -> dict[str, float]:
    """Every task that is wanted -> its weight; a pattern's weight is shared by the tasks that it fits."""
    found: dict[str, float] = {}
    for pattern, weight in (wanted or dict.fromkeys(known, 1.0)).items():
        fits = [pattern] if pattern in known else [n for n in known if fnmatchcase(n, pattern)]
        fits = fits or [name for name in known if fnmatchcase(name, f"*/{pattern}")]
        if not fits:
            raise ValueError(f"unknown task {pattern!r}; {did_you_mean(pattern, known)}")
        found |= {name: found.get(name, 0) + weight / len(fits) for name in fits}
    return found


def _states(config: RecordConfig, env: Any, task: str) -> list[int] | None:
    """The initial states of a task to start from in turn; None: any number is one."""
    count, wanted = env.initial_states(task), _numbers(config.initial_states)
    if count is None:
        return wanted
    training, held_out = split_initial_states(count)
    if config.initial_states == HELD_OUT:
        return list(held_out)
    if wanted is None:
        return list(training)
    if max(wanted) >= count:
        raise ValueError(f"initial_states is {config.initial_states!r}, but {task} has {count}: 0 ... {count - 1}")
    return wanted


def _numbers(text: str) -> list[int] | None:
    """``0-39`` or ``0,5,9`` in numbers; None if it is empty."""
    if text == HELD_OUT:
        return None
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"initial_states is {text!r}; expected numbers and ranges, such as 0-39 or 0,5,9")
        found += range(int(first), int(last or first) + 1)
    if text and (not found or len(set(found)) < len(found)):
        raise ValueError(f"initial_states is {text!r}, which is empty or names a state twice")
    return found or None
