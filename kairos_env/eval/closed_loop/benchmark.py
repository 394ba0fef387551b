"""Runs LIBERO and LIBERO-plus: many simulators, one durable row an episode, a table that nothing but jobs decides."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kairos_env.eval.closed_loop.benchmark_jobs import BenchmarkConfig, Plan, choose_films, make_plan
from kairos_env.eval.closed_loop.slots import PlayConfig, SlotPlayer, film_stem
from kairos_env.eval.closed_loop.workers import JobQueue, SetupFailed, run_in_slots
from kairos_env.eval.report.benchmark import BenchmarkReport, make_benchmark_report
from kairos_env.eval.report.closed_loop import format_table
from kairos_env.eval.report.published_results import Benchmark
from kairos_env.eval.rows import Job, ResultsFile, Row, read_rows
from kairos_env.policies import make as roster
from kairos_env.policies.policy import Policy
from kairos_env.runs import ConfigMismatch, open_run, write_text
from kairos_env.sims.libero.tasks import Catalogue
from kairos_env.sims.make import make_simulator, spec_of

# seconds on one core: of a simulator step with two pictures of 256 x 256, and of building a scene
_STEP_S = {"official": 0.2, "fast": 0.08}
_BUILD_S = 5.0
_GRACE_S = 120.0  # that a worker gets beyond an episode's own limit before it is taken for dead


def evaluate(
    config: BenchmarkConfig,
    progress: bool = False,
    on_row: Callable[[Row], None] | None = None,
    catalogue: Catalogue | None = None,
    benchmarks: Mapping[str, Benchmark] | None = None,
) -> BenchmarkReport:
    """Runs the jobs that have no result yet and reports on all that the folder holds of the configuration.

    Kill it at any time: what finished is in ``<output>/results*.jsonl``, and the same call goes on.

    Args:
        config: what to evaluate.
        progress: show a bar with rate and time left.
        on_row: called in this process with each new row.
        catalogue: of the tasks; None is that of ``config.home``.
        benchmarks: what the benchmarks consist of, if it is not what was published.

    Raises:
        ValueError: unknown names, nothing that can run, a policy for another robot.
        FileNotFoundError: no installation.
        ConfigMismatch: the folder holds results of other settings.
        SetupFailed: simulator or policy cannot be built.
    """
    from tqdm import tqdm

    config = config.resolved()
    plan = make_plan(config, catalogue or open_catalogue(config))
    folder = Path(config.output)
    versions = _prove(config, plan, to_start=_missing(folder, plan.jobs, config.retry_errors))
    open_run(folder, config.identity() | {"versions": versions}, {"config": dataclasses.asdict(config)})
    lacking = {task.key: list(files) for task, files in plan.not_runnable.items()}
    write_text(folder / "not_runnable.json", json.dumps(lacking, indent=1) + "\n")
    with ResultsFile(folder / _results_name(config)) as results:
        models = config.models()
        _require_models(folder, models)
        missing = _missing(folder, plan.jobs, config.retry_errors)
        bar = tqdm(total=len(plan.jobs), initial=len(plan.jobs) - len(missing), unit="episode", disable=not progress)
        films = choose_films(plan, config.videos)
        with bar:
            for row in _run(config, plan, missing, films):
                row = _complete(row, config, plan, films)
                row.extra.update(mujoco=versions.get("mujoco", ""), model=models[row.job.policy])
                results.append(row)
                bar.update()
                if on_row is not None:
                    on_row(row)
    rows = [row for row in read_rows(folder) if row.job in plan.all_jobs]
    report = make_benchmark_report(rows, benchmarks)
    report.save(folder)
    return report


def summarize(output: str | Path, benchmarks: Mapping[str, Benchmark] | None = None) -> BenchmarkReport:
    """The report over everything that a folder holds, without running anything."""
    return make_benchmark_report(read_rows(output), benchmarks)


def open_catalogue(config: BenchmarkConfig) -> Catalogue:
    """The tasks of the installation that the configuration names."""
    return Catalogue.open(Path(config.home) if config.home else None)


def describe(config: BenchmarkConfig, catalogue: Catalogue | None = None) -> str:
    """What would run, what cannot, and how long it may take, as text."""
    config = config.resolved()
    plan = make_plan(config, catalogue or open_catalogue(config))
    tasks = [plan.tasks[job.task] for job in plan.jobs]
    suites = list(dict.fromkeys(task.suite for task in [*tasks, *plan.not_runnable]))
    dimensions = list(dict.fromkeys(task.dimension for task in [*tasks, *plan.not_runnable]))
    jobs = Counter((task.dimension, task.suite) for task in tasks)
    lacking = Counter((task.dimension, task.suite) for task in plan.not_runnable)
    lines = []
    for dimension in [*dimensions, None]:
        cells = [_cell(_count(jobs, dimension, suite), _count(lacking, dimension, suite)) for suite in [*suites, None]]
        lines.append(["total" if dimension is None else dimension or "unperturbed", *cells])
    rules, settings = config.rules, f"camera {config.camera_size}, action repeat {config.action_repeat}"
    text = [
        f"{config.benchmark}, protocol {config.protocol} ({rules.note}), {settings}, shard {config.shard}",
        "",
        format_table(["jobs (not runnable)", *suites, "total"], lines),
    ]
    if plan.not_runnable:
        files = Counter(file for missing in plan.not_runnable.values() for file in missing)
        listed = ", ".join(f"{file} ({count} tasks)" for file, count in files.most_common(5))
        text.append(f"\n{len(plan.not_runnable):,} tasks cannot run for {len(files):,} missing files: {listed}, ...")
    return "\n".join([*text, "", _projection(config, plan)])


def _count(counts: Counter[tuple[str, str]], dimension: str | None, suite: str | None) -> int:
    return sum(n for (d, s), n in counts.items() if dimension in (None, d) and suite in (None, s))


def _cell(jobs: int, lacking: int) -> str:
    return f"{jobs:,}" + (f" ({lacking:,})" if lacking else "")


def _projection(config: BenchmarkConfig, plan: Plan) -> str:
    places = max(1, config.workers) * config.slots
    measured: dict[str, list[float]] = {}
    for row in read_rows(config.output):
        if row.seconds > 0:
            measured.setdefault(str(row.extra["suite"]), []).append(row.seconds)
    seconds = 0.0
    for job in plan.jobs:
        suite = plan.tasks[job.task].suite
        if suite in measured:
            seconds += sum(measured[suite]) / len(measured[suite])
        else:
            seconds += config.rules.max_steps[suite] * _STEP_S[config.rendering] + _BUILD_S
    guess = "a guess: every episode lasts to its limit, every slot has a core"
    how = "measured in this folder where it has rows" if measured else guess
    return f"about {seconds / 3600 / places:.1f} h with {config.workers} worker(s) of {config.slots} slot(s), {how}"


def _missing(folder: Path, jobs: Sequence[Job], retry_errors: bool) -> list[Job]:
    done = {row.job for row in read_rows(folder) if not (retry_errors and row.status == "error")}
    return [job for job in jobs if job not in done]


def _results_name(config: BenchmarkConfig) -> str:
    number, parts = config.part
    return "results.jsonl" if parts == 1 else f"results-{number}-of-{parts}.jsonl"


def _prove(config: BenchmarkConfig, plan: Plan, to_start: Sequence[Job]) -> dict[str, str]:
    """Starts one simulator before the first episode, so that a broken installation is no series of errors.

    Returns:
        The versions of its packages.

    Raises:
        SetupFailed: it does not start, in any of three scenes.
    """
    try:
        env = make_simulator(config.simulator, **config.simulator_options())
    except (ImportError, RuntimeError) as error:
        raise SetupFailed(f"cannot build the simulator {config.simulator!r}: {error}") from error
    try:
        for name in config.policies:
            robot = roster.robot_of(name, config.model)
            if robot is not None:
                robot.require_same(spec_of(env), f"policy {name!r}", "simulator")
        versions: dict[str, str] = dict(env.versions())
        failed: list[Exception] = []
        for job in list({plan.scene(job): job for job in reversed(to_start)}.values())[::-1][:3]:
            benchmark, suite, task = job.task.split("/", 2)
            options = {"benchmark": benchmark, "suite": suite, "task": task, "initial_state": job.initial_state}
            try:
                env.send_reset(seed=0, options=options)
                env.receive()
                return versions
            except Exception as error:  # noqa: BLE001 (one task may be broken; three are the simulator)
                failed.append(error)
        if failed:
            raise SetupFailed(
                f"the simulator does not start an episode: {type(failed[0]).__name__}: {failed[0]}\n"
                f"`kairos sims check {config.benchmark}` looks for the reason"
            ) from failed[0]
        return versions
    except RuntimeError as error:
        if isinstance(error, SetupFailed):
            raise
        raise SetupFailed(f"the simulator {config.simulator!r} does not start: {error}") from error
    finally:
        env.close()


def _run(config: BenchmarkConfig, plan: Plan, jobs: Sequence[Job], films: frozenset[Job]) -> Iterator[Row]:
    make_policy = functools.partial(policy_for, config)
    play = PlayConfig(
        config.simulator,
        config.simulator_options(),
        config.rules.max_steps,
        make_policy,
        batch=config.batch,
        answer_limit_s=config.answer_limit_s,
        time_limit_s=config.time_limit_s,
        films=films,
        folder=config.output,
    )
    make_player = functools.partial(SlotPlayer, play)
    if config.cluster == "ray":
        from kairos_env.eval.closed_loop.cluster import run_on_ray

        gpus = 1.0 if config.device.startswith("cuda") else 0.0
        return run_on_ray(jobs, make_player, config.workers, config.slots, config.time_limit_s + _GRACE_S, gpus)
    workers = min(config.workers, len(jobs))
    return run_in_slots(JobQueue(jobs, plan.scene), make_player, workers, config.slots, config.time_limit_s + _GRACE_S)


def policy_for(config: BenchmarkConfig, name: str, env: Any) -> Policy:
    """A slot's policy under the rules of the run."""
    return roster.make_policy(name, env, config.model, config.device, execute=config.rules.replan)


def _require_models(folder: Path, models: Mapping[str, str]) -> None:
    """Raises ConfigMismatch if the folder holds results of one of the policies with another model."""
    for row in read_rows(folder):
        there, now = row.extra.get("model", ""), models.get(row.job.policy)
        if now is not None and there != now:
            raise ConfigMismatch(
                f"{folder} holds results of {row.job.policy!r} with the model {there!r}, not {now!r}; choose another "
                "output folder"
            )


def _complete(row: Row, config: BenchmarkConfig, plan: Plan, films: frozenset[Job]) -> Row:
    """The row with everything that tables need; also that of an error, which knows nothing itself."""
    run = {"protocol": config.protocol, "prompt": config.prompt, "rendering": config.rendering}
    film = {"film": f"videos/{film_stem(row.job)}"} if row.job in films and row.status != "error" else {}
    return dataclasses.replace(row, extra=plan.extra(row.job) | run | row.extra | film)
