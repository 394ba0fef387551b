"""Records episodes of a simulator in parallel, so that nothing that was recorded is ever lost.

A recording owns one folder::

    config.json  versions.json  parts/episode_<i>.hdf5 (while it runs)  shard_<k>.hdf5 (the result)

Every episode is planned by its number alone (`plan_episode`), so the data do not depend on the number of
workers, on their speed, or on how often the recording was killed and started again. A worker writes each
episode to a file of its own and puts it in place in one step; the main process packs finished parts into
shards. A kill at any time costs at most the episodes in flight.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import multiprocessing
import platform
import subprocess
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.hdf5.shards import ShardFolder, write_part
from kairos_env.records import Episode, Observation
from kairos_env.runs import (
    INITIAL_STATES,
    WriteLock,
    check_initial_states,
    exit_with_parent,
    remove_leftovers,
    single_threaded_workers,
    write_json,
)
from kairos_env.sims.tabletop.behaviours import BEHAVIOURS

MakeEnv = Callable[["RecordConfig"], Any]

MAX_FAILURES = 10  # a recording in which more episodes fail is stopped: something is wrong with all of them


class NoSimulator(RuntimeError):
    """A recording process could not start its simulator."""


@dataclass(frozen=True)
class RecordConfig:
    """What to record.

    Args:
        out: the folder of the recording; an existing one of the same configuration is continued.
        episodes: how many; may be raised later to record more of the same.
        workers: processes, each with a simulator of its own.
        seed: everything random follows from it and the episode's number.
        decisions: length of every episode; recording goes on after success.
        tasks: task name -> weight.
        behaviours: who acts -> weight, see `sims.behaviours`.
        cameras: names of the cameras to render.
        image_size: height and width of their images in pixels.
        first_initial_state: episode i starts from initial state ``first_initial_state + i``. Keep the
            ranges of training and held-out data apart.
        episodes_per_file: size of a finished shard.
    """

    out: str
    episodes: int = 100
    workers: int = 2
    seed: int = 0
    decisions: int = 24
    tasks: dict[str, float] = field(default_factory=lambda: {"reach": 0.2, "push": 0.5, "lift": 0.3})
    behaviours: dict[str, float] = field(
        default_factory=lambda: {"expert": 0.15, "noisy_expert": 0.5, "attracted": 0.2, "random": 0.15}
    )
    cameras: tuple[str, ...] = ("scene",)
    image_size: int = 64
    first_initial_state: int = INITIAL_STATES["training"].start
    episodes_per_file: int = 50

    def __post_init__(self) -> None:
        for name in ("episodes", "workers", "decisions", "image_size", "episodes_per_file"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        check_initial_states(self.first_initial_state, self.episodes)
        for name in ("tasks", "behaviours"):
            weights = getattr(self, name)
            if not weights or min(weights.values()) < 0 or not 0 < sum(weights.values()) < float("inf"):
                raise ValueError(f"{name} needs weights >= 0 with a positive sum, got {dict(weights)}")
        unknown = sorted(set(self.behaviours) - set(BEHAVIOURS))
        if unknown:
            raise ValueError(f"unknown behaviour {', '.join(unknown)}; choose among {', '.join(BEHAVIOURS)}")


@dataclass(frozen=True)
class EpisodePlan:
    """Everything that decides one episode."""

    index: int
    seed: int
    task: str
    behaviour: str
    initial_state: int


def plan_episode(config: RecordConfig, index: int) -> EpisodePlan:
    """The plan of episode ``index``: a pure function of the seed, the mixtures and the index."""
    rng = np.random.default_rng([config.seed, index])

    def draw(weights: Mapping[str, float]) -> str:
        p = np.array(list(weights.values()), float)
        return str(rng.choice(list(weights), p=p / p.sum()))

    task, behaviour = draw(config.tasks), draw(config.behaviours)
    return EpisodePlan(index, int(rng.integers(2**31)), task, behaviour, config.first_initial_state + index)


def record_episode(env: Any, plan: EpisodePlan, decisions: int) -> Episode:
    """Plays one episode of ``decisions`` decisions, labelled for every task at every state.

    Args:
        env: a simulator with ``robot_spec``, ``expert_action(task)`` and, in ``info``, ``privileged``,
            ``task_rewards`` and ``task_success``, that can be stepped on after success.
        plan: what to do and from where.
        decisions: length T of the episode.
    """
    rng = np.random.default_rng([plan.seed, 1])
    observation, info = env.reset(
        seed=plan.seed, options={"initial_state": plan.initial_state, "task": plan.task}
    )
    tasks = tuple(info["task_success"])
    behaviour = BEHAVIOURS[plan.behaviour](env, plan.task, rng)
    observations, infos, actions = [observation], [info], []
    experts = [[env.expert_action(task) for task in tasks]]
    for _ in range(decisions):
        action = env.robot_spec.check_action(behaviour.act(info))
        observation, _, _, _, info = env.step(action)
        actions.append(action)
        observations.append(observation)
        infos.append(info)
        experts.append([env.expert_action(task) for task in tasks])
    seen = [Observation.from_gym(o) for o in observations]
    rewards = np.array([[i["task_rewards"][t] for t in tasks] for i in infos[1:]], np.float32)
    success = np.array([[i["task_success"][t] for t in tasks] for i in infos[1:]], np.bool_)
    own = tasks.index(plan.task)
    return Episode(
        images={camera.name: np.stack([o.images[camera.name] for o in seen]) for camera in env.robot_spec.cameras},
        proprio=np.stack([o.proprio for o in seen]),
        actions=np.stack(actions),
        rewards=rewards[:, own],
        success=success[:, own],
        task=plan.task,
        instruction=info["instruction"],
        source=plan.behaviour,
        seed=plan.seed,
        initial_state=plan.initial_state,
        labels={
            "expert_actions": np.array(experts, np.float32),
            "task_rewards": rewards,
            "task_success": success,
            "object_position": np.array([i["privileged"]["objects"]["cube"]["position"] for i in infos], np.float32),
            "goal_position": np.array([i["privileged"]["objects"]["goal"]["position"] for i in infos], np.float32),
        },
        label_tasks=tasks,
    )


def make_simulator(config: RecordConfig) -> Any:
    """The robosuite table-top environment that ``config`` describes."""
    from kairos_env.sims.tabletop.env import TASKS, RobosuiteEnv

    unknown = sorted(set(config.tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"unknown task {', '.join(unknown)}; choose among {', '.join(TASKS)}")
    # One decision more than is recorded: the time limit is never part of the data.
    return RobosuiteEnv(cameras=config.cameras, image_size=config.image_size, max_episode_steps=config.decisions + 1)


def record(config: RecordConfig, make_env: MakeEnv = make_simulator, progress: bool = True) -> Path:
    """Records what is missing of ``config.episodes`` and returns the folder.

    Args:
        config: what to record.
        make_env: builds a worker's simulator; a function at the top level of a module.
        progress: show a bar with rate and time left.

    Raises:
        ValueError: the folder holds a recording of another configuration.
        NoSimulator: a worker's simulator does not start (the message says why).
        RuntimeError: another process is recording into the folder, a worker died, or episodes failed.
            What was recorded is kept; the same call goes on from there.
    """
    from tqdm import tqdm

    out = Path(config.out)
    with locked(out), single_threaded_workers():
        may_change = ("out", "episodes", "workers")
        versions = open_folder(out, config, may_change)
        metadata = {"config": identity(config, may_change), "versions": versions}
        env_kwargs = {"cameras": list(config.cameras), "image_size": config.image_size}
        shards = ShardFolder(out, config.episodes, config.episodes_per_file, metadata, env_kwargs)
        missing = shards.missing
        failed: list[str] = []
        bar = tqdm(total=config.episodes, initial=config.episodes - len(missing), unit="episode", disable=not progress)
        with bar:
            for index, error in _play(config, missing, make_env, out):
                if error:
                    failed.append(f"{plan_episode(config, index)}: {error!r}")
                else:
                    shards.add(index)
                    bar.update()
                if len(failed) == MAX_FAILURES:
                    break
        if failed:
            raise RuntimeError(
                f"{len(failed)} episode(s) failed; the others are safe in {out}, and the same command tries the "
                "missing ones again:\n  " + "\n  ".join(failed)
            )
        shards.finish()
    return out


def _play(
    config: RecordConfig, missing: list[int], make_env: MakeEnv, out: Path
) -> Iterator[tuple[int, BaseException | None]]:
    """Yields (index, error or None) as episodes finish."""
    workers = min(config.workers, len(missing))
    if workers == 0:
        return
    # spawn: a forked child would inherit the parent's GL context and threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(config, make_env))
    try:
        futures: dict[Future[None], int] = {pool.submit(_record_part, index): index for index in missing}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, NoSimulator):
                raise error
            if isinstance(error, BrokenProcessPool):
                raise RuntimeError(
                    f"a recording process died (killed, out of memory, or no simulator; see above). Finished "
                    f"episodes are safe in {out}; run the same command again to go on."
                )
            yield futures[future], error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[RecordConfig, Any] | str = "the pool's initializer has not run"


def _start_worker(config: RecordConfig, make_env: MakeEnv) -> None:
    global _worker
    exit_with_parent()
    try:
        _worker = (config, make_env(config))
    except Exception as error:  # noqa: BLE001 - whatever it is, the recording must name it
        # An initializer that raises breaks the pool and hides why; the first episode reports it instead.
        _worker = f"{type(error).__name__}: {error}"


def _record_part(index: int) -> None:
    if isinstance(_worker, str):
        raise NoSimulator(f"a worker could not start its simulator; {_worker}")
    config, env = _worker
    episode = record_episode(env, plan_episode(config, index), config.decisions)
    write_part(Path(config.out), index, episode, env.robot_spec)


def identity(config: Any, may_change: Collection[str]) -> dict[str, Any]:
    """The fields of a config dataclass that must stay the same when a recording is continued, as JSON values."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    return {key: value for key, value in values.items() if key not in may_change}


def open_folder(out: Path, config: Any, may_change: Collection[str]) -> dict[str, str]:
    """Checks or writes the folder's configuration and returns the versions that it was begun with.

    Raises:
        ValueError: it holds a recording of another configuration.
    """
    now = identity(config, may_change)
    path = out / "config.json"
    if path.exists():
        before = json.loads(path.read_text())
        wrong = [f"{k}: {before.get(k)!r} there, {v!r} given" for k, v in now.items() if before.get(k) != v]
        if wrong:
            raise ValueError(
                f"{out} holds a recording of another configuration; give the same one or another folder:\n  "
                + "\n  ".join(wrong)
            )
    write_json(path, identity(config, ("out", "workers")))
    versions = _versions()
    path = out / "versions.json"
    if path.exists():
        begun = json.loads(path.read_text())
        if begun != versions:
            warnings.warn(f"{out} was begun with {begun}, now running {versions}", stacklevel=3)
        return begun
    write_json(path, versions)
    return versions


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("kairos-env", "numpy", "gymnasium", "h5py", "mujoco", "robosuite"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        versions["git_commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        versions["git_commit"] = "unknown"
    return versions


def locked(out: Path) -> WriteLock:
    """Makes the folder and keeps every other recording out of it.

    Raises:
        FolderInUse: another process is recording there.
    """
    (out / "parts").mkdir(parents=True, exist_ok=True)
    lock = WriteLock(out, "recording into")
    remove_leftovers(out)
    return lock
