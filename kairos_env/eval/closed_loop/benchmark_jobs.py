"""What a benchmark run consists of: settings, the rules of published evaluations, and the jobs that follow.

A job's initial state and seed are functions of task and trial, so a job means the same on every machine, in every
shard and sample.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kairos_env.eval.report.published_results import Benchmark, keys_digest
from kairos_env.eval.rows import Job
from kairos_env.policies import make as roster
from kairos_env.runs import did_you_mean
from kairos_env.sims.libero.env import MAX_STEPS, Rendering
from kairos_env.sims.libero.tasks import ASSETS_ADVICE, SUITES, Catalogue, LiberoTask, Prompt

SIMULATOR = "Kairos-LIBERO-v0"
_FOUR_SUITES = SUITES[:4]  # what "LIBERO" means in published tables


@dataclass(frozen=True)
class Rules:
    """How a published evaluation plays its episodes.

    Args:
        note: what else is to be known.
        max_steps: suite -> simulator steps after which an episode has failed.
        wait_steps: steps without motion at the start.
        replan: actions executed before a policy that proposes chunks decides again; None leaves it to the policy.
        trials: benchmark -> episodes for each task.
    """

    note: str
    max_steps: Mapping[str, int]
    wait_steps: int
    replan: int | None = None
    trials: Mapping[str, int] = field(default_factory=lambda: {"libero": 50, "libero-plus": 1})


PROTOCOLS: Mapping[str, Rules] = {
    "published": Rules("limits that most publications use", MAX_STEPS, wait_steps=10),
    "kairos-published": Rules(
        "Kairos's published run: each dimension's tasks of all suites pooled, hence one limit, which is short for "
        "libero_10; the pooled suite itself is not in the public benchmark",
        dict.fromkeys(SUITES, 520),
        wait_steps=30,
        replan=10,
    ),
    "kairos-suites": Rules(
        "Kairos's published runner, suite by suite",
        dict.fromkeys(SUITES, 400) | {"libero_10": 700, "libero_90": 700},
        wait_steps=30,
        replan=10,
    ),
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to evaluate.

    Args:
        output: the folder of the run; an existing one of the same settings is continued.
        policies: names, see `kairos_env.policies.make`; all meet the same starts and luck.
        model: checkpoint of the learned policies and planners.
        device: of the model.
        benchmark: "libero" or "libero-plus".
        suites: none: libero_spatial, libero_object, libero_goal and libero_10.
        dimensions: of the perturbation, LIBERO-plus only; none: all.
        difficulties: 1 to 5, LIBERO-plus only; none: all, also tasks without a rating.
        ours: scenes of ours (light, background, robot) in the place of the benchmark's; never counted as its own.
        trials: episodes for each task; 0: as many as the protocol says. May be raised later.
        first_state: initial state of a task's first trial; the others follow. Published evaluations begin with 0, a
            model that was trained on those is better asked about later ones.
        sample: so many tasks only, evenly from every suite and dimension; the same ones every time.
        limit: only so many jobs.
        shard: i/n, the i-th of n parts; all parts may write to one folder.
        protocol: published, kairos-published or kairos-suites.
        official: refuse to run what would not be a result of the whole benchmark as published.
        prompt: which instruction: official as the benchmark makes it (in LIBERO-plus mostly with the perturbation's
            name at its end), bddl of the task definition, base of the unperturbed task.
        rendering: official as the benchmark draws, or fast, without shadows and multisampling.
        camera_size: height and width of the pictures; 0: as the policy needs them, else 256.
        action_repeat: simulator steps for which an action is held; 0: as the policy needs it, else 1.
        seed: of everything random in policies and simulator, together with task and initial state.
        workers: processes that each load the policy. The results do not depend on it.
        slots: simulators for each worker. The results do not depend on it.
        batch: episodes that one pass of the model decides for. Above 1 it is faster on a GPU, and the last bits of
            an action, hence sometimes an outcome, depend on the company in a pass.
        time_limit_s: an episode that takes longer is an error.
        answer_limit_s: a simulator that does not answer for so long hangs: an error, and a new process.
        videos: for how many jobs of each policy, suite and dimension to write an mp4 and a film strip.
        retry_errors: run the jobs again that ended in an error.
        dry_run: only say what would run.
        cluster: local processes, or ray.
        home: folder of the installed simulator; empty: the default one.
        simulator: Gymnasium id, or module:factory.
    """

    output: str = "runs/benchmark"
    policies: tuple[str, ...] = ("policy",)
    model: str = "kairos-tiny"
    device: str = "cpu"
    benchmark: str = "libero-plus"
    suites: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    difficulties: tuple[int, ...] = ()
    ours: bool = False
    trials: int = 0
    first_state: int = 0
    sample: int = 0
    limit: int = 0
    shard: str = "1/1"
    protocol: str = "published"
    official: bool = False
    prompt: Prompt = "official"
    rendering: Rendering = "official"
    camera_size: int = 0
    action_repeat: int = 0
    seed: int = 0
    workers: int = 1
    slots: int = 1
    batch: int = 1
    time_limit_s: float = 1800.0
    answer_limit_s: float = 300.0
    videos: int = 0
    retry_errors: bool = False
    dry_run: bool = False
    cluster: Literal["local", "ray"] = "local"
    home: str = ""
    simulator: str = SIMULATOR

    def __post_init__(self) -> None:
        counts = ("trials", "first_state", "sample", "limit", "camera_size", "action_repeat", "seed", "workers")
        for name in (*counts, "videos"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("slots", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("time_limit_s", "answer_limit_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not self.policies:
            raise ValueError("nothing to evaluate: no policies")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}; {did_you_mean(self.protocol, PROTOCOLS)}")
        if self.benchmark == "libero" and not self.ours and (self.dimensions or self.difficulties):
            raise ValueError("LIBERO's tasks are unperturbed; dimensions and difficulties are those of libero-plus")
        if self.ours and (self.difficulties or self.official):
            raise ValueError("scenes of ours have no difficulty and are no official result")
        for name in self.policies:
            roster.parse_name(name)
        self.part  # noqa: B018 - says what is wrong

    @property
    def rules(self) -> Rules:
        return PROTOCOLS[self.protocol]

    @property
    def part(self) -> tuple[int, int]:
        """``shard`` as numbers: (i, n) with 1 <= i <= n."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"shard is {self.shard!r}; expected i/n with i from 1 to n, such as 2/8")
        return int(match[1]), int(match[2])

    def resolved(self) -> BenchmarkConfig:
        """With the camera size and action repeat that the policies need.

        Raises:
            ValueError: policies need different ones, or another than was asked for.
        """
        size, repeat = self.camera_size, self.action_repeat
        for name in self.policies:
            robot = roster.robot_of(name, self.model)
            if robot is None:
                continue
            needs = robot.cameras[0].height, max(1, round(20 / robot.control_rate_hz))
            for what, asked, needed in zip(("camera_size", "action_repeat"), (size, repeat), needs, strict=True):
                if asked not in (0, needed):
                    raise ValueError(
                        f"the policy {name!r} was made for {what} {needed}, not {asked}: leave {what} out"
                        f"{'' if len(self.policies) == 1 else ', or evaluate it in a run of its own'}"
                    )
            size, repeat = needs
        return dataclasses.replace(self, camera_size=size or 256, action_repeat=repeat or 1)

    def simulator_options(self) -> dict[str, Any]:
        """Arguments of the simulator's constructor."""
        unseen = not self.videos and all(map(roster.is_blind, self.policies))
        return ({"observe_images": False} if unseen else {}) | {
            "camera_size": self.camera_size,
            "action_repeat": self.action_repeat,
            "prompt": self.prompt,
            "rendering": self.rendering,
            "wait_steps": self.rules.wait_steps,
            "max_episode_steps": max(self.rules.max_steps.values()),  # the runner has the limit of each suite
            "home": self.home or None,
            "time_limit_s": self.answer_limit_s,
        }

    def identity(self) -> dict[str, Any]:
        """The settings on which rows depend; which jobs there are, and how they are spread, is left out.

        So is the model, on which only some policies depend: their rows name it, see `models`.
        """
        names = ("benchmark", "protocol", "prompt", "rendering", "camera_size", "action_repeat", "batch", "simulator")
        rules = dataclasses.asdict(self.rules)
        return {name: getattr(self, name) for name in names} | {
            n: rules[n] for n in ("max_steps", "wait_steps", "replan")
        }

    def models(self) -> dict[str, str]:
        """Policy -> name and digest of its model, "" for one that has none."""
        digest = roster.model_digest(self.model) if any(map(roster.uses_model, self.policies)) else ""
        named = f"{Path(self.model).name} {digest}".strip()
        return {name: named if roster.uses_model(name) else "" for name in self.policies}


@dataclass(frozen=True)
class Plan:
    """The jobs of a run.

    Args:
        jobs: of this shard, those of one scene side by side.
        all_jobs: of all shards.
        tasks: `Job.task` -> task, of all jobs.
        not_runnable: tasks that were wanted, with the assets that are missing.
        assets: ``"original"``, or ``"with stand-ins"``.
    """

    jobs: tuple[Job, ...]
    all_jobs: frozenset[Job]
    tasks: Mapping[str, LiberoTask]
    not_runnable: Mapping[LiberoTask, Sequence[str]]
    assets: str

    def scene(self, job: Job) -> str:
        """Jobs that share it follow each other cheaply in one simulator."""
        return _scene(self.tasks[job.task])

    def extra(self, job: Job) -> dict[str, Any]:
        """What a row says about its task."""
        task = self.tasks[job.task]
        names = ("suite", "base_task", "dimension", "difficulty", "params")
        return {name: getattr(task, name) for name in names} | {
            "init_state": job.initial_state,
            "ours": bool(task.params.get("ours")),
            "assets": self.assets,
        }


def make_plan(config: BenchmarkConfig, catalogue: Catalogue) -> Plan:
    """The jobs that a configuration asks for.

    Raises:
        ValueError: unknown suites or dimensions, nothing that can run, or ``official`` was asked for and is impossible.
    """
    suites, dimensions = config.suites or _FOUR_SUITES, config.dimensions or None
    if config.ours:
        wanted = catalogue.ours(suites, dimensions)
    else:
        wanted = catalogue.tasks(config.benchmark, suites, dimensions, config.difficulties or None)
    lacking = {task: missing for task in wanted if (missing := catalogue.missing(task))}
    runnable = [task for task in wanted if task not in lacking]
    stand_ins = (catalogue.assets / "SUBSTITUTES.txt").exists()
    assets = "with stand-ins" if stand_ins else "original"
    if config.official:
        _require_official(config, wanted, lacking, assets)
    if not runnable:
        raise ValueError(_nothing_runs(config, lacking, catalogue.assets))
    if config.sample:
        runnable = stratified(runnable, config.sample)
    runnable.sort(key=lambda task: (SUITES.index(task.suite), task.base_task, _scene(task), task.index))
    jobs = [
        Job(policy, config.simulator, task_name(task), state, seed)
        for task in runnable
        for state, seed in starts(config, catalogue, task)
        for policy in config.policies
    ]
    jobs = jobs[: config.limit or None]
    tasks = {task_name(task): task for task in runnable}
    number, parts = config.part
    # every n-th task: suites have episodes of different length, and a shard should not get only the long ones
    chosen = set(list(dict.fromkeys(job.task for job in jobs))[number - 1 :: parts])
    mine = tuple(job for job in jobs if job.task in chosen)
    return Plan(mine, frozenset(jobs), {job.task: tasks[job.task] for job in jobs}, lacking, assets)


def task_name(task: LiberoTask) -> str:
    """A task as jobs name it: ``<benchmark>/<suite>/<name>``."""
    return task.qualified_name


def starts(config: BenchmarkConfig, catalogue: Catalogue, task: LiberoTask) -> list[tuple[int, int]]:
    """(initial state, seed) of each trial: the benchmark's states in turn; when they are used up, with another seed."""
    trials = range(config.first_state, config.first_state + (config.trials or config.rules.trials[config.benchmark]))
    states = 1 if trials == range(1) else len(catalogue.init_states(task))
    return [(trial % states, config.seed + trial // states) for trial in trials]


def stratified(tasks: Sequence[LiberoTask], count: int) -> list[LiberoTask]:
    """``count`` tasks, as evenly as possible from every suite and dimension, or all if there are fewer.

    Which tasks follows from their names alone, so samples of different machines overlap as far as their assets do.
    """
    groups: dict[tuple[str, str], list[LiberoTask]] = {}
    for task in sorted(tasks, key=lambda task: hashlib.sha256(task_name(task).encode()).digest()):
        groups.setdefault((task.suite, task.dimension), []).append(task)
    chosen: list[LiberoTask] = []
    rank = 0
    while len(chosen) < min(count, len(tasks)):
        layer = [groups[key][rank] for key in sorted(groups) if rank < len(groups[key])]
        chosen += layer[: count - len(chosen)]
        rank += 1
    return chosen


def choose_films(plan: Plan, count: int) -> frozenset[Job]:
    """``count`` jobs of each policy, suite and dimension, by their names alone."""
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in sorted(plan.all_jobs, key=lambda job: (hashlib.sha256(job.task.encode()).digest(), job)):
        task = plan.tasks[job.task]
        groups.setdefault((job.policy, task.suite, task.dimension), []).append(job)
    return frozenset(job for jobs in groups.values() for job in jobs[:count])


def _scene(task: LiberoTask) -> str:
    return f"{task.bddl} {json.dumps(task.scene, sort_keys=True)}"


def _nothing_runs(config: BenchmarkConfig, lacking: Mapping[LiberoTask, Sequence[str]], assets: Path) -> str:
    if not lacking:
        return f"no task of {config.benchmark} is in these suites, dimensions and difficulties"
    files = sorted({file for missing in lacking.values() for file in missing})
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return (
        f"none of the {len(lacking)} tasks can run: {assets} lacks {', '.join(files[:3])}{more}. "
        f"{ASSETS_ADVICE[config.benchmark]}; `kairos sims check {config.benchmark}` says where they belong"
    )


def _require_official(
    config: BenchmarkConfig, wanted: Iterable[LiberoTask], lacking: Mapping[LiberoTask, Any], assets: str
) -> None:
    """Raises ValueError with every reason why the run would not be the whole benchmark as published."""
    benchmark, tasks = Benchmark.published(config.benchmark), list(wanted)
    trials = config.rules.trials[config.benchmark]
    reasons = {
        f"{config.benchmark} has no official list of trials": not benchmark.keys_sha256,
        f"{len(tasks):,} of {benchmark.size():,} tasks are asked for": len(tasks) != benchmark.size(),
        "the tasks' names are not the benchmark's": len(tasks) == benchmark.size()
        and bool(benchmark.keys_sha256)
        and keys_digest(task.key for task in tasks) != benchmark.keys_sha256,
        f"{len(lacking):,} tasks lack assets": bool(lacking),
        "some assets are stand-ins": assets != "original",
        "sample and limit leave tasks out": bool(config.sample or config.limit),
        f"its trials begin with initial state {config.first_state}": bool(config.first_state),
        f"it has {trials} trials for each task": config.trials not in (0, trials),
        "prompt must be official": config.prompt != "official",
        "rendering must be official": config.rendering != "official",
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ValueError("this would be no official result:\n  " + "\n  ".join(found))
