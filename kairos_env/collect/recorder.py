"""Records episodes of any simulator in parallel, so that nothing that was recorded is ever lost.

A recording owns one folder::

    config.json  launches.jsonl  episodes.jsonl  parts/episode_<i>.hdf5 (while it runs)
    shard_<k>.hdf5, or <suite>/<task>_demo.hdf5 (the result)

Every episode is planned by its number alone (`plan_episodes`), so the data do not depend on the number of
workers, on their speed, or on how often the recording was killed and started again. A worker writes each
episode to a file of its own and puts it in place in one step; the main process packs finished parts into
files of the result. A kill costs at most the episodes in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.collect.behaviours import make_behaviour
from kairos_env.collect.folder import STATES, Layout, LiberoLayout, RecordingFolder, ShardLayout, write_part
from kairos_env.collect.movements import Behaviour
from kairos_env.collect.planned import PlannerThenExpert, planner_errors
from kairos_env.collect.plans import EpisodePlan, RecordConfig, plan_episodes
from kairos_env.collect.pool import WorkerDied, in_workers
from kairos_env.policies.make import model_digest, robot_of
from kairos_env.records import Array, Episode, Observation
from kairos_env.runs import WriteLock, describe_machine, open_run, single_threaded_workers
from kairos_env.sims.make import make_simulator as make
from kairos_env.sims.process import SimulatorCrashed, SimulatorTimeout

MakeEnv = Callable[[RecordConfig], Any]

MAX_FAILURES = 10  # a recording in which more episodes fail is stopped: something is wrong with all of them
MAX_DEATHS = 3  # of the simulator's process in one episode


class NoSimulator(RuntimeError):
    """A recording process could not start its simulator."""


def record_episode(env: Any, plan: EpisodePlan, config: RecordConfig) -> Episode:
    """Plays one episode, labelled at every state for every task that the simulator judges.

    Args:
        env: a `Simulator` that can be stepped on after success.
        plan: what to do and from where.
        config: its length, and what behaviours need.
    """
    rng = np.random.default_rng([plan.seed, 1])
    raw, info = env.reset(seed=plan.seed, options=plan.start)
    tasks = tuple(info.get("task_success", (plan.task,)))
    limit = env.max_episode_steps
    behaviour: Behaviour
    if config.from_planner:
        behaviour = PlannerThenExpert(
            env, plan.task, rng, config.from_planner, limit, config.acting_model, config.device
        )
    else:
        behaviour = make_behaviour(plan.behaviour, env, plan.task, rng, config.noise, config.model, config.device)
    teaches, has_states = hasattr(env, "expert_action"), config.layout == "libero"
    seen, infos = [Observation.from_gym(raw, info["instruction"])], [info]
    actions: list[Array] = []
    experts = [[env.expert_action(task) for task in tasks]] if teaches else []
    states: list[Array] = []
    left = config.decisions or (2 * limit if config.from_planner else limit)
    while left:
        if has_states:
            states.append(env.simulator_state()["state"])
        action = env.robot_spec.check_action(behaviour.act(seen[-1], info))
        behaviour.follow(seen[-1], action)
        solved = info["success"]
        raw, _, _, _, info = env.step(action)
        actions.append(action)
        seen.append(Observation.from_gym(raw, info["instruction"]))
        infos.append(info)
        if teaches:
            experts.append([env.expert_action(task) for task in tasks])
        left -= 1
        if config.after_success >= 0 and info["success"] and not solved:
            left = min(left, config.after_success)
    labels = _labels(infos, tasks)
    if isinstance(behaviour, PlannerThenExpert):
        labels |= behaviour.labels()
    if teaches:
        labels["expert_actions"] = np.array(experts, np.float32)
    if has_states:
        labels[STATES] = np.array(states)
    own = tasks.index(plan.task)
    success = [i["task_success"][plan.task] if "task_success" in i else i["success"] for i in infos[1:]]
    rewards = labels["task_rewards"][:, own] if "task_rewards" in labels else np.array(success, np.float32)
    return Episode(
        images={camera.name: np.stack([o.images[camera.name] for o in seen]) for camera in env.robot_spec.cameras},
        proprio=np.stack([o.proprio for o in seen]),
        actions=np.stack(actions),
        rewards=rewards,
        success=np.array(success, np.bool_),
        task=plan.task,
        instruction=info["instruction"],
        source=plan.behaviour,
        seed=plan.seed,
        initial_state=plan.initial_state,
        condition=plan.condition,
        labels=labels,
        label_tasks=tasks,
    )


def make_simulator(config: RecordConfig) -> Any:
    """The simulator that ``config`` describes; with a model, one of its robot."""
    spec = robot_of(config.from_planner or "policy", config.acting_model) if config.acting_model else None
    return make(config.simulator, spec, **config.options)


@dataclass(frozen=True)
class Recorded:
    """Outcome of a recording: task -> episodes kept and episodes planned, and attempts in all.

    ``selective``: only what a planner got wrong was to be kept, so that nothing is missing.
    """

    folder: Path
    tasks: Mapping[str, tuple[int, int]]
    attempts: int
    selective: bool = False

    @property
    def short(self) -> list[str]:
        """Tasks of which episodes are missing, because no attempt succeeded."""
        return [] if self.selective else [task for task, (kept, wanted) in self.tasks.items() if kept < wanted]

    def table(self) -> str:
        """One line for each task."""
        width = max(len(task) for task in self.tasks)
        lines = [f"{task:<{width}}  {kept:4d} of {wanted:4d}" for task, (kept, wanted) in self.tasks.items()]
        total = sum(kept for kept, _ in self.tasks.values())
        return "\n".join([*lines, f"{total} episodes of {self.attempts} attempts in {self.folder}"])


def record(config: RecordConfig, make_env: MakeEnv = make_simulator, progress: bool = True) -> Recorded:
    """Records what is missing.

    Args:
        config: what to record.
        make_env: builds a worker's simulator; a function at the top level of a module.
        progress: show a bar with rate and time left.

    Raises:
        ValueError: unknown tasks or states, tasks that the layout cannot hold, or the folder holds a recording of
            another configuration.
        NoSimulator: a simulator does not start (the message says why).
        RuntimeError: another process is recording into the folder, a worker died, or episodes failed.
            What was recorded is kept; the same call goes on from there.
    """
    from tqdm import tqdm

    out = Path(config.out)
    env = _started(make_env, config)
    try:
        plans, layout = plan_episodes(config, env), make_layout(config, env)
        for plan in plans:
            layout.file_of(plan)  # says what it cannot hold, before anything is written
        (out / "parts").mkdir(parents=True, exist_ok=True)
        with WriteLock(out, "recording into"), single_threaded_workers():
            decisive, others = config.split()
            if config.acting_model:  # episodes of other weights under the same name are no more of the same
                decisive["model_digest"] = model_digest(config.acting_model)
            open_run(out, decisive, others)
            folder = RecordingFolder(out, plans, layout)
            missing = [folder.plans[number] for number in folder.missing]
            bar = tqdm(total=len(plans), initial=len(plans) - len(missing), unit="episode", disable=not progress)
            with bar:
                failed = _play(config, missing, make_env, folder, bar.update)
            if failed:
                raise RuntimeError(
                    f"{len(failed)} episode(s) failed; the others are safe in {out}, and the same command tries the "
                    "missing ones again:\n  " + "\n  ".join(failed)
                )
            folder.finish()
    finally:
        env.close()
    return _summary(folder, bool(config.from_planner))


def make_layout(config: RecordConfig, env: Any) -> Layout:
    """The layout that ``config`` names, for a simulator; the same in every process."""
    versions = env.versions() | describe_machine()["versions"]
    metadata = {"config": config.split()[0], "versions": versions}
    if config.layout == "libero":
        return LiberoLayout(env, metadata)
    return ShardLayout(env.robot_spec, config.episodes_per_file, metadata, config.simulator, config.options)


def _play(
    config: RecordConfig,
    missing: list[EpisodePlan],
    make_env: MakeEnv,
    folder: RecordingFolder,
    advance: Callable[[], object],
) -> list[str]:
    """Records the missing episodes and returns what is wrong with those that failed."""
    failed: list[str] = []
    workers = min(config.workers, len(missing))
    if workers == 0:
        return failed
    # a task at a time: some simulators take long to build another scene
    missing = sorted(missing, key=lambda plan: (folder.layout.file_of(plan), plan.number))
    try:
        for plan, future in in_workers(_record_part, missing, workers, _start_worker, config, make_env):
            error = future.exception()
            if isinstance(error, NoSimulator):
                raise error
            if error is None:
                folder.add(plan.number, future.result())
                advance()
            else:
                failed.append(f"{plan}: {error!r}")
            if len(failed) == MAX_FAILURES:
                break
    except WorkerDied as error:
        raise RuntimeError(f"{error}. Finished episodes are safe in {config.out}; run the same command again") from None
    return failed


_worker: tuple[RecordConfig, Any, Layout] | str = "the pool's initializer has not run"


def _start_worker(config: RecordConfig, make_env: MakeEnv) -> None:
    global _worker
    try:
        env = make_env(config)
        _worker = (config, env, make_layout(config, env))
    except Exception as error:  # noqa: BLE001 - whatever it is, the recording must name it
        # An initializer that raises breaks the pool and hides why; the first episode reports it instead.
        _worker = f"{type(error).__name__}: {error}"


def _record_part(plan: EpisodePlan) -> dict[str, Any]:
    """Records an episode in this worker and returns its row."""
    if isinstance(_worker, str):
        raise NoSimulator(f"a worker could not start its simulator; {_worker}")
    config, env, layout = _worker
    found: dict[str, Any] = {}
    for attempt in range(config.attempts if config.keep == "successes" else 1):
        now = plan.again(attempt)
        episode = _survived(env, now, config)
        success = bool(episode.success.any())
        kept = success or config.keep == "all"
        if config.from_planner:
            errors = planner_errors(episode)
            kept, found = errors.any, errors.to_dict()
        if kept:
            write_part(Path(config.out), layout, plan.number, episode)
            break
    row = {"task": now.task, "behaviour": now.behaviour, "initial_state": now.initial_state, "seed": now.seed}
    if now.condition:
        row["condition"] = now.condition
    return row | {"attempts": attempt + 1, "success": success, "kept": kept, "decisions": len(episode)} | found


def _survived(env: Any, plan: EpisodePlan, config: RecordConfig) -> Episode:
    """The episode, begun anew where the simulator's process dies; its next reset starts another."""
    for _ in range(MAX_DEATHS - 1):
        try:
            return record_episode(env, plan, config)
        except (SimulatorCrashed, SimulatorTimeout):
            continue
    return record_episode(env, plan, config)


def _started(make_env: MakeEnv, config: RecordConfig) -> Any:
    try:
        return make_env(config)
    except FileNotFoundError:  # a model or an installation: the message says which
        raise
    except (OSError, RuntimeError, ImportError) as error:
        raise NoSimulator(f"the simulator does not start; {type(error).__name__}: {error}") from error


def _summary(folder: RecordingFolder, selective: bool) -> Recorded:
    kept = set(folder.kept)
    wanted: dict[str, tuple[int, int]] = {}
    for number, plan in sorted(folder.plans.items()):
        have, planned = wanted.get(plan.task, (0, 0))
        wanted[plan.task] = (have + (number in kept), planned + 1)
    attempts = sum(int(folder.rows.get(number, {}).get("attempts", 1)) for number in folder.plans)
    return Recorded(folder.folder, wanted, attempts, selective)


def _labels(infos: list[Mapping[str, Any]], tasks: tuple[str, ...]) -> dict[str, Array]:
    """Positions of the objects in every state, and reward and success of every task after each action."""
    labels: dict[str, Array] = {}
    for key, kind in (("task_rewards", np.float32), ("task_success", np.bool_)):
        if key in infos[0]:
            labels[key] = np.array([[info[key][task] for task in tasks] for info in infos[1:]], kind)
    truth = [info["privileged"] for info in infos]
    if truth[0].get("interest"):
        wanted = truth[0]["interest"][0]
        labels["object_position"] = np.array([t["objects"][wanted]["position"] for t in truth], np.float32)
    if "goal" in truth[0]["objects"]:
        labels["goal_position"] = np.array([t["objects"]["goal"]["position"] for t in truth], np.float32)
    return labels
