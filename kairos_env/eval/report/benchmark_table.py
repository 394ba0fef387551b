"""The numbers of a benchmark run: success by dimension, suite and difficulty, and what was covered.

Everything is computed from rows, in any order. A row's job names its task as ``<benchmark>/<suite>/<name>``; its
``extra`` holds

    dimension, difficulty       of the task, as in `LiberoTask`; needed in every row, also of an error
    ours or params["ours"]      true for a scene that we made: it is never counted as the benchmark's
    prompt, rendering, assets   under which the episode ran; "official", "official" and "original" (the benchmark's
                                own files, no stand-ins) are what an official number needs
    protocol, mujoco            shown with the table
    objects, other_lifted       of a failure, see `kairos_env.eval.failures`
    film                        path without suffix of a ``.png`` strip and an ``.mp4``, from the folder of the run

A task counts once, by its rate of success over its trials: the published average is the mean over tasks. Errors are
no failures; a task of which every trial is an error has no result, like one that never ran.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kairos_env.eval.failures import KINDS, failure_kind
from kairos_env.eval.report.published_results import PublishedBenchmark
from kairos_env.eval.rows import Row, error_kind, unique_rows
from kairos_env.eval.statistics import Interval, effective_trials, weighted_wilson
from kairos_env.runs import did_you_mean

OFFICIAL = {"prompt": "official", "rendering": "official", "assets": "original"}
"""What the rows of an official number say."""
SETTINGS = ("protocol", "prompt", "rendering", "assets", "mujoco")
"""Fields of a row that tell under what it came about."""


@dataclass(frozen=True)
class TaskResult:
    """What came of one task; ``difficulty`` is 0 where the benchmark gives none."""

    suite: str
    name: str
    dimension: str
    difficulty: int
    successes: int
    failures: int
    errors: int

    @property
    def trials(self) -> int:
        """Episodes that ran to their end."""
        return self.successes + self.failures


@dataclass(frozen=True)
class GroupRate:
    """What came of a group of tasks.

    Args:
        of: tasks that the benchmark has in this group.
        tasks: those that have a result.
        successes: episodes.
        failures: episodes.
        errors: jobs that crashed or timed out; in none of the other numbers.
        rate: of success, mean over the tasks that have a result, with a 95 % interval (`weighted_wilson`).
    """

    of: int
    tasks: int
    successes: int
    failures: int
    errors: int
    rate: Interval

    @property
    def trials(self) -> int:
        return self.successes + self.failures


@dataclass(frozen=True)
class Reweighted:
    """An estimate of the mean over all tasks of a group from those that ran.

    Each suite x dimension counts with its number of tasks in the benchmark, as if the tasks that ran were a fair
    sample of it. They need not be: which assets are missing is no chance.

    Args:
        rate: the estimate, with a 95 % interval.
        tasks: of the benchmark, in the suite x dimension groups that have a result.
        without: the groups that have none, ``"light, libero_goal"``; the estimate says nothing about them.
    """

    rate: Interval
    tasks: int
    without: tuple[str, ...]


@dataclass(frozen=True)
class BenchmarkTable:
    """The results of one policy on one benchmark.

    Args:
        policy: its name.
        benchmark: which.
        rows: sorted by job, one for each.
        ours: the rows are of scenes that we made, not of the benchmark.
    """

    policy: str
    benchmark: PublishedBenchmark
    rows: tuple[Row, ...]
    ours: bool = False

    @cached_property
    def tasks(self) -> tuple[TaskResult, ...]:
        """What came of each task that was tried."""
        by_key: dict[str, list[Row]] = {}
        for row in self.rows:
            by_key.setdefault(row.job.task, []).append(row)
        results = []
        for key, rows in by_key.items():
            _, suite, name = key.split("/", 2)
            extra = rows[0].extra
            count = Counter(row.status for row in rows)
            results.append(
                TaskResult(
                    suite,
                    name,
                    extra["dimension"],
                    extra.get("difficulty") or 0,
                    count["success"],
                    count["failure"],
                    count["error"],
                )
            )
        return tuple(results)

    def cell(self, suite: str | None = None, dimension: str | None = None, difficulty: int | None = None) -> GroupRate:
        """The summary of some tasks; None is all."""
        mine = [
            task
            for task in self.tasks
            if suite in (None, task.suite)
            and dimension in (None, task.dimension)
            and difficulty in (None, task.difficulty)
        ]
        ended = [task for task in mine if task.trials]
        rate = weighted_wilson([t.successes / t.trials for t in ended], [t.trials for t in ended], [1] * len(ended))
        return GroupRate(
            of=0 if self.ours else self.benchmark.size(suite, dimension, difficulty),
            tasks=len(ended),
            successes=sum(task.successes for task in mine),
            failures=sum(task.failures for task in mine),
            errors=sum(task.errors for task in mine),
            rate=rate,
        )

    @cached_property
    def columns(self) -> dict[str, GroupRate]:
        """The columns that results are published in: dimensions, or suites where nothing is perturbed."""
        if self.benchmark.dimensions == ("",):
            return {suite: self.cell(suite=suite) for suite in self.benchmark.suites}
        return {dimension: self.cell(dimension=dimension) for dimension in self.benchmark.dimensions}

    @cached_property
    def plain_mean(self) -> Interval:
        """Mean over the columns that have results, which all count alike; compare `cell` for the mean over tasks."""
        rates, trials = [], []
        for name, cell in self.columns.items():
            ended = [task.trials for task in self.tasks if task.trials and name in (task.suite, task.dimension)]
            if ended:
                rates.append(cell.rate.value)
                trials.append(effective_trials(ended, [1] * len(ended)))
        return weighted_wilson(rates, trials, [1] * len(rates))

    def reweighted(self, dimension: str | None = None) -> Reweighted:
        """The estimate for all tasks of a dimension or (None) the benchmark."""
        rates, trials, weights, without = [], [], [], []
        for d in self.benchmark.dimensions if dimension is None else (dimension,):
            for s in self.benchmark.suites:
                size = self.benchmark.size(s, d)
                ended = [t for t in self.tasks if t.trials and (t.suite, t.dimension) == (s, d)]
                if not ended:
                    without += [", ".join(filter(None, (d, s)))] if size else []
                    continue
                rates.append(math.fsum(t.successes / t.trials for t in ended) / len(ended))
                trials.append(effective_trials([t.trials for t in ended], [1] * len(ended)))
                weights.append(size)
        return Reweighted(weighted_wilson(rates, trials, weights), sum(weights), tuple(without))

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """What of the benchmark results are published of and was begun: suites, or ``""`` for the whole."""
        return self.benchmark.parts(task.suite for task in self.tasks)

    @cached_property
    def complete(self) -> bool:
        """Every task of what was begun has a result."""
        return not self.ours and self._count() == self.benchmark.size_of(self.parts)

    @cached_property
    def not_official(self) -> tuple[str, ...]:
        """Why this is no official result of the benchmark, or of the suites that were begun; empty if it is one."""
        if self.ours:
            return ("scenes of ours",)
        reasons = []
        size = self.benchmark.size_of(self.parts)
        if not self.complete:
            reasons.append(f"{size - self._count():,} of {size:,} tasks have no result")
        elif not self.benchmark.has_exactly(f"{task.suite}/{task.name}" for task in self.tasks if task.trials):
            reasons.append("the tasks' names are not the benchmark's")
        if other := self._other_trials():
            reasons.append(f"{other:,} tasks were not tried once from each of initial states 0 ... {self._last_trial}")
        # what is published suite by suite is comparable under the usual limits of steps only
        usual = {} if "" in self.parts else {"protocol": "published"}
        for name, wanted in (OFFICIAL | usual).items():
            if self.settings.get(name) != (wanted,):
                reasons.append(f"{name}: {', '.join(self.settings.get(name, ('not recorded',)))}")
        return tuple(reasons)

    @property
    def label(self) -> str:
        """What the numbers may be called: ``"official"``, or why not."""
        count, size = self._count(), self.benchmark.size_of(self.parts)
        suites = "" if set(self.parts) == self.benchmark.keys_sha256.keys() else ", ".join(self.parts)
        if self.ours:
            return f"scenes of ours: {count:,} tasks, not the benchmark's"
        if not self.complete:
            return f"subset{suites and f' of {suites}'}: {count:,} of {size:,}"
        if self.not_official:
            return f"all {size:,}{suites and f' of {suites}'}, not official: {'; '.join(self.not_official)}"
        return f"official{suites and f' for {suites}'}"

    def _count(self) -> int:
        return sum(1 for task in self.tasks if task.trials)

    @property
    def _last_trial(self) -> int:
        return self.benchmark.trials - 1

    def _other_trials(self) -> int:
        """How many tasks have a result, but not just one from each of the benchmark's initial states."""
        states: dict[str, list[int]] = {}
        for row in self.rows:
            if row.status != "error":
                states.setdefault(row.job.task, []).append(row.job.initial_state)
        return sum(sorted(found) != list(range(self.benchmark.trials)) for found in states.values())

    @cached_property
    def settings(self) -> dict[str, tuple[str, ...]]:
        """Field of `SETTINGS` -> the values in rows with a result, "not recorded" where one lacks it."""
        ended = [row.extra for row in self.rows if row.status != "error"]
        found = {name: {str(extra.get(name, "not recorded")) for extra in ended} for name in SETTINGS}
        return {name: tuple(sorted(values)) for name, values in found.items() if values - {"not recorded"}}

    def failure_kinds(self, dimension: str | None = None) -> dict[str, int]:
        """How often episodes failed in which way, see `KINDS`; kinds that did not occur are left out."""
        failed = [r for r in self.rows if r.status == "failure" and dimension in (None, r.extra["dimension"])]
        count = Counter(failure_kind(row.extra) for row in failed)
        return {kind: count[kind] for kind in KINDS if count[kind]}

    @cached_property
    def error_kinds(self) -> dict[str, int]:
        """What errors said (the first line, without numbers) -> how often, most frequent first."""
        count = Counter(error_kind(row.message) for row in self.rows if row.status == "error")
        return dict(sorted(count.items(), key=lambda item: (-item[1], item[0])))

    def projected_seconds(self, workers: int) -> float:
        """Wall time that the whole benchmark takes at the measured rate, one trial a task; nan without a rate.

        A row's ``seconds`` are those for which its episode held a place among the workers. Each suite x dimension
        counts with its own mean (without rows: that of its suite, else of everything). With several workers, who
        take the next job when they are free, it is the longest that this can last: an even share of the work, and
        at the end all may have to wait for one that has just begun the longest episode (Graham 1966).
        """
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        timed = [row for row in self.rows if row.seconds > 0]
        if not timed:
            return math.nan
        groups: dict[tuple[str | None, str | None], list[float]] = {}
        for row in timed:
            suite = row.job.task.split("/", 2)[1]
            for key in ((suite, row.extra["dimension"]), (suite, None), (None, None)):
                groups.setdefault(key, []).append(row.seconds)
        work = 0.0
        for suite, dimension in sorted({(s, d) for s, d, _ in self.benchmark.counts}):
            seen = groups.get((suite, dimension)) or groups.get((suite, None)) or groups[None, None]
            work += self.benchmark.size(suite, dimension) * math.fsum(seen) / len(seen)
        return work / workers + (1 - 1 / workers) * max(row.seconds for row in timed)


def make_tables(
    rows: Iterable[Row], benchmarks: Mapping[str, PublishedBenchmark] | None = None
) -> list[BenchmarkTable]:
    """A table for each benchmark and policy, scenes of ours in tables of their own after the benchmark's.

    Args:
        rows: in any order; of a job with several, a result counts before an error.
        benchmarks: by name; the default is what was published.

    Raises:
        ValueError: a row is of no task of its benchmark, lacks a needed field, or contradicts another of its job.
    """
    chosen: dict[tuple[str, str, bool], list[Row]] = {}
    for row in unique_rows(rows):
        name = row.job.task.split("/", 1)[0]
        chosen.setdefault((name, row.job.policy, is_ours(row)), []).append(row)
    tables = []
    for (name, policy, ours), mine in sorted(chosen.items()):
        # scenes of ours perturb tasks of LIBERO along the dimensions of LIBERO-plus
        known = "libero-plus" if ours else name
        benchmark = (benchmarks or {}).get(known) or PublishedBenchmark.read(known)
        _check(mine, benchmark, ours)
        tables.append(BenchmarkTable(policy, benchmark, tuple(mine), ours))
    return tables


def is_ours(row: Row) -> bool:
    """The scene is of our making."""
    return bool(row.extra.get("ours") or (row.extra.get("params") or {}).get("ours"))


def _check(rows: Sequence[Row], benchmark: PublishedBenchmark, ours: bool) -> None:
    for row in rows:
        parts = row.job.task.split("/", 2)
        if len(parts) != 3:
            raise ValueError(f"job.task must be <benchmark>/<suite>/<name>, got {row.job.task!r}")
        if "dimension" not in row.extra:
            raise ValueError(f"row of {row.job.task!r}: extra needs 'dimension', also of an error")
        given = (parts[1], row.extra["dimension"], row.extra.get("difficulty") or 0)
        for what, value, legal in zip(
            ("suite", "dimension", "difficulty"),
            given,
            (benchmark.suites, benchmark.dimensions, benchmark.difficulties),
        ):
            if value not in legal and not (ours and what == "difficulty"):
                raise ValueError(f"row of {row.job.task!r}: unknown {what} {value!r}; {did_you_mean(value, legal)}")
        if not ours and given not in benchmark.counts:
            raise ValueError(f"row of {row.job.task!r}: {benchmark.name} has no task of {', '.join(map(str, given))}")
    if ours:
        return
    tasks = {row.job.task: row.extra for row in rows}
    seen = Counter((k.split("/", 2)[1], e["dimension"], e.get("difficulty") or 0) for k, e in tasks.items())
    for key, count in sorted(seen.items()):
        if count > benchmark.counts[key]:
            raise ValueError(
                f"rows of {count} tasks of {', '.join(map(str, filter(None, key)))}, but {benchmark.name} has "
                f"{benchmark.counts[key]}: some of them are not its own"
            )
