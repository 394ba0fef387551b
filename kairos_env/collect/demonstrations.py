"""`kairos record-libero`: demonstrations of LIBERO's tasks by the scripted expert, in LIBERO's own files.

A recording owns one folder::

    config.json  versions.json  attempts/<suite>/<task>.jsonl  parts/<suite>/<task>/attempt_<k>.hdf5 (while it runs)
    <suite>/<task>_demo.hdf5 (the result)

Attempt k at a task starts from the k-th of the wanted initial states, and everything random in it follows from the
seed, the task and k. The first attempts that succeed are kept, so the data do not depend on the number of workers, nor
on how often the recording was killed and started again. A kill costs at most the attempts in flight.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kairos_env.collect.recorder import identity, locked, open_folder
from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.libero_write import LiberoWriter
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.policies.policy import Policy, follow
from kairos_env.records import Array, Episode, Observation
from kairos_env.runs import append_jsonl, read_jsonl, remove_leftovers

MakeEnv = Callable[["RecordLiberoConfig"], Any]

MAX_FAILURES = 3  # attempts of one task that may raise; the simulator starts anew after each
HOPELESS = 8  # attempts without any success after which a task is given up
_MAY_CHANGE = ("out", "suites", "tasks", "per_task", "workers")
_NOISE = np.array([1, 1, 1, 0.1, 0.1, 0.1, 0])  # a turn of the hand disturbs far more than a shift


@dataclass(frozen=True)
class RecordLiberoConfig:
    """What to record.

    Args:
        out: the folder of the recording; an existing one of the same configuration is continued.
        suites: of LIBERO; the expert knows libero_object and libero_spatial.
        tasks: indices in each suite; empty: all.
        states: initial states to start from, such as 0-39 or 0,5,9; keep others for evaluation.
        per_task: demonstrations wanted of each task; may be raised later to record more of the same.
        noisy: share of the attempts in which the expert is disturbed; its undisturbed actions are kept as labels.
        noise: the largest disturbance, as a standard deviation in units of the largest action.
        seed: everything random follows from it, the task and the attempt.
        camera_size: height and width of the pictures in pixels.
        action_repeat: simulator steps for which an action is held; LIBERO's own data have 1.
        rendering: official as the benchmark draws, or fast, without shadows and multisampling.
        max_steps: simulator steps after which an attempt has failed.
        after: decisions recorded after success.
        actor: folder of a trained model that acts in the expert's place. The expert's actions are the labels, so the
            model is taught in states that it gets into itself (dataset aggregation, Ross et al. 2011), and every
            attempt is kept. Empty: the expert acts, and successes are kept.
        workers: simulators at work at a time, each on a task of its own.
        home: folder of the installed simulator; empty: the default one.
    """

    out: str
    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    tasks: tuple[int, ...] = ()
    states: str = "0-39"
    per_task: int = 20
    noisy: float = 0.5
    noise: float = 0.2
    seed: int = 0
    camera_size: int = 64
    action_repeat: int = 4
    rendering: Literal["official", "fast"] = "fast"
    max_steps: int = 400
    after: int = 2
    actor: str = ""
    workers: int = 2
    home: str = ""

    def __post_init__(self) -> None:
        for name in ("per_task", "camera_size", "action_repeat", "max_steps", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.noisy <= 1 or self.noise < 0 or self.seed < 0 or self.after < 0:
            raise ValueError(
                f"noisy must be in 0 ... 1, and noise, seed and after at least 0; got {self.noisy}, {self.noise}, "
                f"{self.seed} and {self.after}"
            )
        if not self.suites:
            raise ValueError("suites is empty; give for example libero_object,libero_spatial")
        self.initial_states  # noqa: B018 - says what is wrong

    @property
    def initial_states(self) -> list[int]:
        """``states`` in numbers."""
        found: list[int] = []
        for part in self.states.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdigit() or (dash and not last.isdigit()):
                raise ValueError(f"states is {self.states!r}; expected numbers and ranges, such as 0-39 or 0,5,9")
            found += range(int(first), int(last or first) + 1)
        if not found or len(set(found)) < len(found):
            raise ValueError(f"states is {self.states!r}, which is empty or names a state twice")
        return found

    @property
    def attempts(self) -> int:
        """Attempts after which a task is given up; those that begin the states anew are all disturbed."""
        return max(len(self.initial_states), 2 * self.per_task)


@dataclass(frozen=True)
class DemoTask:
    """A task to demonstrate; ``bddl`` is the file that defines it."""

    suite: str
    name: str
    instruction: str
    bddl: Path | None = None


@dataclass(frozen=True)
class AttemptPlan:
    """Everything that decides one attempt."""

    number: int
    seed: int
    initial_state: int
    noise: float  # 0: the actor acts undisturbed
    actor: str = "expert"

    @property
    def source(self) -> str:
        return f"noisy_{self.actor}" if self.noise else self.actor


def plan_attempt(config: RecordLiberoConfig, task: DemoTask, number: int) -> AttemptPlan:
    """The plan of an attempt: a pure function of the seed, the task and the number."""
    states = config.initial_states
    rng = np.random.default_rng([config.seed, zlib.crc32(f"{task.suite}/{task.name}".encode()), number])
    seed, chance, level = int(rng.integers(2**31)), rng.random(), rng.uniform(0.25, 1.0)
    disturbed = chance < config.noisy or number >= len(states)
    disturbance = float(level * config.noise) if disturbed else 0.0
    actor = "policy" if config.actor else "expert"
    return AttemptPlan(number, seed, states[number % len(states)], disturbance, actor)


class Stopped(Exception):
    """The recording was interrupted in the middle of an attempt."""


def demonstrate(
    env: Any,
    task: DemoTask,
    plan: AttemptPlan,
    after: int = 0,
    stop: threading.Event | None = None,
    policy: Policy | None = None,
) -> tuple[Episode, Array]:
    """Plays one attempt until ``after`` decisions past success, or until the time limit.

    Args:
        env: `sims.libero.LiberoEnv`, or what has its ``robot_spec``, ``reset``, ``step``, ``expert_action`` and
            ``simulator_state``.
        task, plan: what to do, and from where.
        after: decisions.
        stop: raises `Stopped` once it is set.
        policy: acts; None: the expert does.

    Returns:
        The episode, labelled with the expert's action at every frame; and the states (T, S) before each action.
    """
    rng = np.random.default_rng([plan.seed, 1])
    options = {
        "benchmark": "libero",
        "suite": task.suite,
        "task": task.name,
        "initial_state": plan.initial_state,
    }
    raw, info = env.reset(seed=plan.seed, options=options)
    seen = [Observation.from_gym(raw, task.instruction)]
    actions, experts, states, success = [], [env.expert_action()], [], []
    if policy is not None:
        policy.reset(plan.seed)
    objects = [_object_position(info)]
    noise: Array = np.zeros(7)
    left = None  # decisions until the end, known once the task has succeeded
    while left != 0:
        if stop is not None and stop.is_set():
            raise Stopped
        noise = 0.6 * noise + 0.8 * rng.normal(size=7)  # smooth, of unit variance
        states.append(env.simulator_state()["state"])
        wanted = experts[-1] if policy is None else policy.act(seen[-1])
        actions.append(env.robot_spec.check_action(wanted + plan.noise * _NOISE * noise))
        if policy is not None and plan.noise:
            follow(policy, seen[-1], actions[-1])
        raw, _, _, truncated, info = env.step(actions[-1])
        seen.append(Observation.from_gym(raw, task.instruction))
        experts.append(env.expert_action())
        objects.append(_object_position(info))
        success.append(bool(info["success"]))
        if left is not None:
            left -= 1
        elif success[-1]:
            left = after
        elif truncated:
            break
    episode = Episode(
        images={c.name: np.stack([o.images[c.name] for o in seen]) for c in env.robot_spec.cameras},
        proprio=np.stack([o.proprio for o in seen]),
        actions=np.stack(actions),
        rewards=np.array(success, np.float32),
        success=np.array(success, np.bool_),
        task=task.name,
        instruction=task.instruction,
        source=plan.source,
        seed=plan.seed,
        initial_state=plan.initial_state,
        labels={"expert_actions": np.array(experts, np.float32)[:, None], "object_position": np.array(objects)},
        label_tasks=(task.name,),
    )
    return episode, np.array(states)


def _object_position(info: Mapping[str, Any]) -> Array:
    """(3,) float32: where the first of the task's objects is, the one to be moved."""
    true = info["privileged"]
    return np.asarray(true["objects"][true["interest"][0]]["position"], np.float32)


class TaskFolder:
    """What is known of one task's attempts, and the demonstrations that are safe on disk; one thread owns it."""

    def __init__(self, config: RecordLiberoConfig, task: DemoTask, versions: Mapping[str, str]) -> None:
        self.config, self.task = config, task
        self._metadata = {"config": identity(config, _MAY_CHANGE), "versions": dict(versions), "suite": task.suite}
        out = Path(config.out)
        self.file = out / task.suite / f"{task.name}_demo.hdf5"
        self._parts = out / "parts" / task.suite / task.name
        self._log = out / "attempts" / task.suite / f"{task.name}.jsonl"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.tried: dict[int, bool] = self._read_log()
        remove_leftovers(self.file.parent)
        packed = _demonstrations(self.file)
        kept = [number for number, good in sorted(self.tried.items()) if good]
        # The result holds the first successes in their order; what came after it lies in parts.
        self._where = {number: (self.file, name) for number, name in zip(kept, packed, strict=False)}
        for number in kept[len(packed) :]:
            if _demonstrations(self._part(number)):
                self._where[number] = (self._part(number), "demo_0")
            else:
                del self.tried[number]  # lost: it is tried again

    @property
    def kept(self) -> list[int]:
        """Attempts whose demonstrations are on disk, at most as many as are wanted."""
        return sorted(self._where)[: self.config.per_task]

    @property
    def next(self) -> int | None:
        """The attempt to make; None if the task is finished or given up."""
        if len(self.kept) >= self.config.per_task or (len(self.tried) >= HOPELESS and not any(self.tried.values())):
            return None
        return next((number for number in range(self.config.attempts) if number not in self.tried), None)

    def add(self, plan: AttemptPlan, episode: Episode, states: Array, env: Any) -> None:
        """Notes an attempt in ``env``; a success is written first."""
        good = bool(self.config.actor) or bool(episode.success.any())
        if good:
            with self._writer(self._part(plan.number), env) as writer:
                writer.add(episode, states)
            self._where[plan.number] = (self._part(plan.number), "demo_0")
        self.tried[plan.number] = good
        append_jsonl(self._log, {"success": good, "decisions": len(episode), **dataclasses.asdict(plan)})

    def finish(self, env: Any) -> None:
        """Puts the demonstrations into one file."""
        with self._writer(self.file, env) as writer:
            for number in self.kept:
                writer.copy(*self._where[number])
        self._where = {number: (self.file, f"demo_{i}") for i, number in enumerate(self.kept)}
        shutil.rmtree(self._parts, ignore_errors=True)

    @property
    def packed(self) -> bool:
        """Whether all that is kept is in the result."""
        return all(self._where[number][0] == self.file for number in self.kept)

    def _part(self, number: int) -> Path:
        return self._parts / f"attempt_{number:04d}.hdf5"

    def _writer(self, path: Path, env: Any) -> LiberoWriter:
        metadata = self._metadata | {"simulator": env.versions()}
        return LiberoWriter(path, env.robot_spec, self.task.name, self.task.instruction, self.task.bddl, metadata)

    def _read_log(self) -> dict[int, bool]:
        return {int(row["number"]): bool(row["success"]) for row in read_jsonl(self._log)}


def _demonstrations(path: Path) -> list[str]:
    """Names of a file's usable demonstrations; none if it is not there or damaged."""
    if not path.exists():
        return []
    try:
        with warnings.catch_warnings(action="ignore"):
            return [name.rpartition(":")[2] for name in LiberoFile(path).names]
    except BrokenEpisode:
        return []


def libero_tasks(config: RecordLiberoConfig) -> list[DemoTask]:
    """The tasks that the configuration names, in the order of the suites.

    Raises:
        ValueError: an index that a suite does not have, or initial states that a task does not have.
    """
    from kairos_env.sims.libero.tasks import Catalogue

    catalogue = Catalogue.open(Path(config.home) if config.home else None)
    found = []
    for suite in config.suites:
        indices = config.tasks or range(len(catalogue.tasks("libero", [suite])))
        for index in indices:
            task = catalogue.task("libero", suite, index)
            states = len(catalogue.init_states(task))
            if max(config.initial_states) >= states:
                raise ValueError(f"states is {config.states!r}, but {task.key} has {states}: 0 ... {states - 1}")
            found.append(DemoTask(suite, task.name, task.instructions["official"], catalogue.bddl_path(task)))
    return found


def make_actor(config: RecordLiberoConfig, env: Any) -> Policy | None:
    """One worker's actor; None if the expert acts.

    Raises:
        SpecMismatch: the model is of another robot: other pictures, or another rate.
    """
    if not config.actor:
        return None
    from kairos_env.policies.world_model import WorldModelPolicy
    from kairos_env.world_model.model import WorldModel

    model = WorldModel.from_pretrained(config.actor)
    model.spec.require_same(env.robot_spec, "actor", "simulator")
    return WorldModelPolicy(model)


def make_simulator(config: RecordLiberoConfig) -> Any:
    """One worker's simulator."""
    from kairos_env.sims.libero.env import LiberoEnv

    return LiberoEnv(
        suite=config.suites[0],
        camera_size=config.camera_size,
        action_repeat=config.action_repeat,
        rendering=config.rendering,
        max_episode_steps=-(-config.max_steps // config.action_repeat),
        home=config.home or None,
    )


@dataclass(frozen=True)
class Recorded:
    """What came of a recording: for each task its demonstrations and attempts, over all runs."""

    folder: Path
    wanted: int
    tasks: Mapping[DemoTask, tuple[int, int]]

    @property
    def short(self) -> list[DemoTask]:
        """Tasks with fewer demonstrations than wanted."""
        return [task for task, (kept, _) in self.tasks.items() if kept < self.wanted]

    def table(self) -> str:
        """One line for each task."""
        width = max(len(task.name) for task in self.tasks)
        lines = [
            f"{task.name:<{width}}  {kept:3d} kept, {tried - kept:3d} failed"
            for task, (kept, tried) in self.tasks.items()
        ]
        total = [sum(column) for column in zip(*self.tasks.values(), strict=True)]
        return "\n".join([*lines, f"{total[0]} demonstrations of {total[1]} attempts in {self.folder}"])


def record_libero(
    config: RecordLiberoConfig,
    make_env: MakeEnv = make_simulator,
    tasks: Sequence[DemoTask] | None = None,
    progress: bool = True,
) -> Recorded:
    """Records what is missing.

    Args:
        config: what to record.
        make_env: builds a worker's simulator, see `demonstrate`; it has ``versions()`` and ``close()``, too.
        tasks: those of the configuration, if they are not to be looked up.
        progress: show a bar with rate and time left.

    Raises:
        ValueError: unknown tasks or states, or the folder holds a recording of another configuration.
        RuntimeError: another process is recording into the folder, or a task's attempts raised. What was recorded is
            kept; the same call goes on from there.
    """
    from tqdm import tqdm

    tasks = libero_tasks(config) if tasks is None else tasks
    out = Path(config.out)
    stop, errors = threading.Event(), []
    with locked(out):
        versions = open_folder(out, config, _MAY_CHANGE)
        folders = [TaskFolder(config, task, versions) for task in tasks]
        waiting = [folder for folder in reversed(folders) if folder.next is not None or not folder.packed]
        have = sum(len(folder.kept) for folder in folders)
        bar = tqdm(total=config.per_task * len(tasks), initial=have, unit="demo", disable=not progress)

        def work() -> None:
            env = make_env(config)
            try:
                policy = make_actor(config, env)
                while not stop.is_set():
                    try:
                        folder = waiting.pop()
                    except IndexError:
                        return
                    try:
                        _record_task(config, folder, env, policy, stop, bar)
                    except (RuntimeError, OSError) as error:
                        errors.append(f"{folder.task.suite}/{folder.task.name}: {type(error).__name__}: {error}")
            except Stopped:
                return
            finally:
                env.close()

        with bar, ThreadPoolExecutor(max(1, min(config.workers, len(waiting)))) as pool:
            running = [pool.submit(work) for _ in range(min(config.workers, len(waiting)))]
            try:
                for future in running:
                    future.result()
            finally:
                stop.set()
        if errors:
            raise RuntimeError(
                f"{len(errors)} task(s) failed; what was recorded is safe in {out}, and the same command goes on:\n  "
                + "\n  ".join(errors)
            )
        for place in (*(out / "parts").iterdir(), out / "parts"):
            if not any(place.iterdir()):
                place.rmdir()
    return Recorded(out, config.per_task, {f.task: (len(f.kept), len(f.tried)) for f in folders})


def _record_task(
    config: RecordLiberoConfig,
    folder: TaskFolder,
    env: Any,
    policy: Policy | None,
    stop: threading.Event,
    bar: Any,
) -> None:
    failures = 0
    while (number := folder.next) is not None:
        plan = plan_attempt(config, folder.task, number)
        try:
            episode, states = demonstrate(env, folder.task, plan, config.after, stop, policy)
        except RuntimeError:  # a simulator that died or hung: the next reset starts another
            failures += 1
            if failures == MAX_FAILURES:
                raise
            continue
        folder.add(plan, episode, states, env)
        bar.update(int(episode.success.any()))
    if folder.kept:
        folder.finish(env)
