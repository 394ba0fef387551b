"""A configuration resolved once: the jobs of a run, and all that decides how they are played."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kairos_env.eval.closed_loop.config import EvalConfig
from kairos_env.eval.closed_loop.films import choose_films
from kairos_env.eval.rows import Job, missing_jobs
from kairos_env.policies.make import check_name, known_instructions, model_digest, robot_of, weights_of
from kairos_env.records import RobotSpec
from kairos_env.runs import INITIAL_STATES, did_you_mean
from kairos_env.sims.make import make_simulator, spec_of
from kairos_env.sims.simulator import AsyncSimulator, require_condition


class SetupFailed(RuntimeError):
    """A simulator or a policy could not be built; every job would fail alike, so none is recorded."""


@dataclass(frozen=True)
class EvalPlan:
    """What a run does; all that a worker is told.

    Args:
        config: what was asked for.
        jobs: of this shard, in the order in which they are begun.
        robot: that the policies were made for; None if they take any.
        simulator_options: arguments of the simulator's constructor.
        identity: the settings on which rows depend. What may differ between launches is left out, and so are the
            models, on which only some policies depend: their rows name them.
        max_decisions: task -> decisions after which an episode has failed; else the simulator says.
        replan: actions of a chunk executed before a policy decides again, unless its name says it.
        scenes: task -> what takes long to build; jobs of one scene are played one after another.
        labels: task -> what each of its rows says beside the result.
        films: the jobs of which a film is written.
        not_runnable: tasks that were wanted -> what they lack.
        versions: of the simulator's packages.
        in_process: the simulator runs in the worker itself, which nobody can wake while it simulates.
    """

    config: EvalConfig
    jobs: tuple[Job, ...]
    robot: RobotSpec | None
    simulator_options: Mapping[str, Any]
    identity: Mapping[str, Any]
    max_decisions: Mapping[str, int] = field(default_factory=dict)
    replan: int | None = None
    scenes: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    films: frozenset[Job] = frozenset()
    not_runnable: Mapping[str, Sequence[str]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    in_process: bool = True

    @property
    def folder(self) -> Path:
        return Path(self.config.output)

    def scene(self, job: Job) -> str:
        """Jobs that share it follow each other cheaply in one simulator."""
        return self.scenes.get(job.task, "")

    def missing(self) -> list[Job]:
        """The jobs that have no result yet."""
        return missing_jobs(self.folder, self.jobs, self.config.retry_errors)

    def weights(self) -> dict[str, str]:
        """Policy -> name and digest of the weights that it acts by; "" for one that has none."""
        config = self.config
        return {name: weights_of(name, config.model, config.state_model) for name in config.policies}


def common_robot(config: EvalConfig) -> RobotSpec | None:
    """The robot that all policies of a run were made for; None if they take any.

    Raises:
        ValueError: a policy has no such option.
        SpecMismatch: they were made for different ones.
        FileNotFoundError: there is no such model.
    """
    found: dict[str, RobotSpec] = {}
    for name in config.policies:
        check_name(name)
        robot = robot_of(name, config.model)
        if robot is not None:
            found[name] = robot
    for name, robot in found.items():
        first = next(iter(found))
        found[first].require_same(robot, f"policy {first!r}", f"policy {name!r}")
    return next(iter(found.values()), None)


@contextlib.contextmanager
def open_simulator(config: EvalConfig, robot: RobotSpec | None, options: Mapping[str, Any]) -> Iterator[Any]:
    """The simulator of a run, for the robot of its policies.

    Raises:
        ValueError, FileNotFoundError: what was asked for does not exist, or is of another robot.
        SetupFailed: it does not work here.
    """
    try:
        env = make_simulator(config.simulator, robot, **options)
    except (ValueError, FileNotFoundError):
        raise
    except Exception as error:
        raise SetupFailed(
            f"cannot build the simulator {config.simulator!r}: {type(error).__name__}: {error}"
        ) from error
    try:
        yield env
    finally:
        env.close()


def prove(plan: EvalPlan, env: Any) -> EvalPlan:
    """The plan with what only its simulator knows, after that has started an episode.

    A broken installation is thus no series of errors. One start may be broken, three (in different scenes, where
    there are some) are the simulator.

    Raises:
        SetupFailed: it does not start any of the first three.
    """
    to_start = {plan.scene(job) or (job.task, job.initial_state): job for job in reversed(plan.missing())}
    failed: list[Exception] = []
    for job in list(to_start.values())[::-1][:3]:
        try:
            env.reset(seed=0, options=job.start)
            failed.clear()
            break
        except Exception as error:  # noqa: BLE001 (raised again if it is not the task's)
            failed.append(error)
    if failed:
        raise SetupFailed(
            f"the simulator {plan.config.simulator!r} does not start an episode: "
            f"{type(failed[0]).__name__}: {failed[0]}\n`kairos sims check` and `kairos doctor` look for the reason"
        ) from failed[0]
    versions = dict(env.versions()) if hasattr(env, "versions") else {}
    return dataclasses.replace(
        plan,
        versions=versions,
        identity={**plan.identity, "versions": versions},
        in_process=not isinstance(env, AsyncSimulator),
    )


def plan_tasks(config: EvalConfig, robot: RobotSpec | None, env: Any) -> EvalPlan:
    """The plan of a run on a simulator that is open: every policy on every task, from the same initial states.

    Raises:
        ValueError: an unknown task or condition, or a limit that the simulator does not keep.
    """
    for condition in config.conditions:
        require_condition(condition, env, config.simulator)
    tasks, count = _chosen_tasks(config, env.tasks()), config.episodes
    states_of = getattr(env, "initial_states", lambda task: None)
    starts = {task: episode_starts(config.first_initial_state, count, states_of(task), config.seed) for task in tasks}
    jobs = [
        Job(policy, config.simulator, task, *starts[task][number], condition)
        for number in range(count)  # so that a run that is stopped early has looked at everything
        for condition in config.conditions or ("",)
        for task in tasks
        for policy in config.policies
    ][: config.limit or None]
    spec = spec_of(env)
    identity = {
        "simulator": config.simulator,
        "simulator_options": config.simulator_options,
        "robot": {
            "name": spec.name,
            "cameras": {camera.name: [camera.height, camera.width] for camera in spec.cameras},
            "control_rate_hz": spec.control_rate_hz,
        },
        "max_decisions": config.max_decisions,
        "batch": config.batch,
    }
    imagined_by = config.simulator_options.get("model")
    if isinstance(imagined_by, str):
        identity["imagined_by"] = model_digest(imagined_by)
    limit = _decision_limit(config, env)
    return EvalPlan(
        config,
        of_shard(config, jobs, lambda job: (job.task, job.initial_state, job.seed)),
        robot,
        config.simulator_options,
        identity,
        max_decisions=dict.fromkeys(tasks, limit) if limit else {},
        films=choose_films(jobs, config.videos, lambda job: (job.task, job.condition)),
    )


def episode_starts(first: int | None, episodes: int, states: int | None, seed: int) -> list[tuple[int, int]]:
    """(initial state, seed) of each episode of a task.

    Args:
        first: initial state of the first episode; None: as `EvalConfig` says.
        episodes: how many.
        states: how many initial states the task has: they are taken in turn, and when they are used up, with another
            seed. None: any number is one.
        seed: of the first round.
    """
    if states is None:
        first = INITIAL_STATES["evaluation"].start if first is None else first
        return [(first + number, seed) for number in range(episodes)]
    numbers = range(first or 0, (first or 0) + episodes)
    return [(number % states, seed + number // states) for number in numbers]


def of_shard(config: EvalConfig, jobs: Sequence[Job], part: Callable[[Job], Hashable]) -> tuple[Job, ...]:
    """The jobs of this shard, which gets every n-th part, so that no shard gets only the long ones."""
    number, shards = config.part
    mine = set(list(dict.fromkeys(map(part, jobs)))[number - 1 :: shards])
    return tuple(job for job in jobs if part(job) in mine)


def _chosen_tasks(config: EvalConfig, known: Mapping[str, str]) -> list[str]:
    for task in config.tasks:
        if task not in known:
            raise ValueError(f"{config.simulator} has no task {task!r}; {did_you_mean(task, known)}")
    if config.tasks:
        return list(config.tasks)
    models = config.model, config.state_model
    learned = [words for name in config.policies for words in known_instructions(name, *models)]
    return [task for task, words in known.items() if words in learned] or list(known)


def _decision_limit(config: EvalConfig, env: Any) -> int:
    """The limit for the engine; 0 leaves it to the simulator."""
    limit = getattr(env, "max_episode_steps", None)
    if not config.max_decisions and limit is None:
        raise ValueError(f"{config.simulator} does not end its episodes: say after how many decisions, max_decisions")
    if limit is not None and limit < config.max_decisions:
        raise ValueError(
            f"{config.simulator} ends its episodes after {limit} decisions, before max_decisions "
            f"{config.max_decisions}: ask for fewer, or give simulator_options={{'max_episode_steps': n}}"
        )
    return config.max_decisions
