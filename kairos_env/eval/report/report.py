"""The report of any runs, of any simulators, as text, JSON and one page; the same rows give the same bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kairos_env.eval.failures import failure_kind
from kairos_env.eval.report.benchmark_sections import benchmark_sections, benchmark_values, published_sections
from kairos_env.eval.report.benchmark_table import BenchmarkTable, make_tables
from kairos_env.eval.report.page import Figure, Section, data_address, render_page, small_jpeg, text_of
from kairos_env.eval.report.published_results import PublishedBenchmark, published_results
from kairos_env.eval.report.robotwin_sections import (
    EPISODES,
    TASKS,
    is_of_robotwin,
    published_beside,
    robotwin_sections,
)
from kairos_env.eval.report.task_rates import TaskRate, rate_table, task_rates
from kairos_env.eval.report.text import number, plain
from kairos_env.eval.rows import Row, error_kind, unique_rows
from kairos_env.runs import write_json, write_text
from kairos_env.sims.libero.tasks import EVERY_DIMENSION

WORKERS = (1, 64)
"""For how many workers the wall time of a whole benchmark is projected."""
FILMS = 2
"""The page shows at most so many successes, and as many failures, of each policy and group of tasks."""

_TIMING_NOTE = (
    "Hours are projected for the whole benchmark (one trial a task; of RoboTwin 50 tasks of 100 episodes), on so many "
    "workers of the speed measured here; "
    "with several, the longest that it can last when each takes the next job as soon as it is free."
)


@dataclass(frozen=True)
class Report:
    """What runs found.

    Args:
        rows: sorted by job, one for each.
        tables: of the benchmarks of LIBERO: one for each and each policy, scenes that Kairos made apart.
        cells: of all other simulators: each policy on each task.
    """

    rows: tuple[Row, ...]
    tables: tuple[BenchmarkTable, ...]
    cells: tuple[TaskRate, ...]

    @property
    def errors(self) -> list[Row]:
        """The jobs without a result."""
        return [row for row in self.rows if row.status == "error"]

    def cell(self, policy: str, task: str, condition: str = "") -> TaskRate:
        """One policy on one task, under one condition."""
        for cell in self.cells:
            if (cell.policy, cell.task, cell.condition) == (policy, task, condition):
                return cell
        legal = ", ".join("/".join(filter(None, (c.policy, c.task, c.condition))) for c in self.cells)
        named = f" under {condition!r}" if condition else ""
        raise KeyError(f"no results of policy {policy!r} on task {task!r}{named}; there are {legal}")

    def table(self) -> str:
        """All results as aligned text; nothing in it depends on how fast they came."""
        parts = [text_of(self._task_sections), *(text_of(benchmark_sections(table)) for table in self.tables)]
        return "\n\n\n".join(filter(None, parts)) or "no results"

    def published(self) -> str:
        """The benchmarks' results beside those of other methods, as aligned text."""
        return text_of([*published_sections(self.tables), *published_beside(self._of_robotwin)])

    def timing(self) -> str:
        """Measured seconds an episode and the projected wall time of whole benchmarks, as aligned text."""
        return text_of([self._timing_section])

    def to_dict(self) -> dict[str, Any]:
        """All results as JSON values, nan as None; nothing in it depends on how fast they came."""
        names = dict.fromkeys(table.benchmark.name for table in self.tables)
        names |= {"robotwin": None} if self._of_robotwin else {}
        cells = [asdict(cell) for cell in self.cells]
        for cell in cells:
            del cell["decision_ms"]
        return {
            "cells": plain(cells),
            "tables": [plain(benchmark_values(table)) for table in self.tables],
            "published": {name: [asdict(result) for result in published_results(name)] for name in names},
        }

    def save(self, folder: str | Path, runs: Iterable[str | Path] = ()) -> None:
        """Writes ``report.json`` (`to_dict`), ``timing.json`` and ``report.html``.

        Args:
            folder: of the run.
            runs: other folders in which the rows' films are looked for.
        """
        folder = Path(folder)
        write_json(folder / "report.json", self.to_dict())
        write_json(folder / "timing.json", plain(self.times))
        write_text(folder / "report.html", self.html(folder, runs))

    def html(self, folder: str | Path, runs: Iterable[str | Path] = ()) -> str:
        """The page: everything, with the films that are found, by addresses from ``folder``, and strips of them."""
        places = [Path(folder), *map(Path, runs)]
        plain_rows = [row for row in self.rows if not is_of_benchmark(row)]
        sections = [*self._task_sections, _films(plain_rows, places)]
        for table in self.tables:
            sections += [*benchmark_sections(table), _films(table.rows, places)]
        sections += [*published_sections(self.tables), *published_beside(self._of_robotwin), self._timing_section]
        return render_page("Closed-loop evaluation", [section for section in sections if section is not None])

    @cached_property
    def times(self) -> list[dict[str, Any]]:
        """Measured and projected times of each policy, as JSON values (with nan)."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            if not is_of_benchmark(row):
                groups.setdefault((row.job.policy, row.job.simulator), []).append(row)
        found = [_times(policy, simulator, rows) for (policy, simulator), rows in groups.items()]
        for time, rows in zip(found, groups.values(), strict=True):
            if all(map(is_of_robotwin, rows)):
                time["projected_hours"] = {str(n): time["seconds"] * TASKS * EPISODES / n / 3600 for n in WORKERS}
        for table in self.tables:
            if not table.ours:
                hours = {str(workers): table.projected_seconds(workers) / 3600 for workers in WORKERS}
                found.append(_times(table.policy, table.benchmark.name, table.rows) | {"projected_hours": hours})
        return found

    @property
    def _timing_section(self) -> Section:
        header = ["policy", "on", "episodes", "s/episode", "ms/decision"]
        lines = [
            [time["policy"], time["on"], str(time["episodes"]), *map(number, (time["seconds"], time["decision_ms"]))]
            for time in self.times
        ]
        if not any("projected_hours" in time for time in self.times):
            return Section("Time", 2, header=header, lines=lines)
        for line, time in zip(lines, self.times, strict=True):
            line += [number(time.get("projected_hours", {}).get(str(workers), math.nan)) for workers in WORKERS]
        header += [f"h on {workers}" for workers in WORKERS]
        return Section("Time", 2, header=header, lines=lines, notes=[_TIMING_NOTE])

    @cached_property
    def _of_robotwin(self) -> list[Row]:
        return [row for row in self.rows if is_of_robotwin(row)]

    @cached_property
    def _task_sections(self) -> list[Section]:
        sections = robotwin_sections(self._of_robotwin)
        own = {row.job.simulator for row in self._of_robotwin}
        for simulator in dict.fromkeys(cell.simulator for cell in self.cells if cell.simulator not in own):
            cells = [cell for cell in self.cells if cell.simulator == simulator]
            header, lines = rate_table(cells)
            sections.append(Section(simulator, 2, header=header, lines=lines))
        errors: dict[str, int] = {}
        for row in self.errors:
            if not is_of_benchmark(row):
                errors[error_kind(row.message)] = errors.get(error_kind(row.message), 0) + 1
        if errors:
            lines = [[message, str(count)] for message, count in errors.items()]
            sections.append(Section("Errors, not counted", header=["error, not counted", "jobs"], lines=lines))
        return sections


def make_report(rows: Iterable[Row], benchmarks: Mapping[str, PublishedBenchmark] | None = None) -> Report:
    """Summarises rows of any runs, in any order.

    Args:
        rows: of a job with several, a result counts before an error.
        benchmarks: by name; the default is what was published.

    Raises:
        ValueError: rows contradict each other, or what their benchmark consists of.
    """
    unique = unique_rows(rows)
    tables = make_tables([row for row in unique if is_of_benchmark(row)], benchmarks)
    return Report(tuple(unique), tuple(tables), tuple(task_rates(row for row in unique if not is_of_benchmark(row))))


def is_of_benchmark(row: Row) -> bool:
    """The row is of a run of LIBERO or LIBERO-plus as benchmarks, whose tasks have a dimension ("" for none)."""
    return "dimension" in row.extra


def _times(policy: str, where: str, rows: Sequence[Row]) -> dict[str, Any]:
    timed = [row for row in rows if row.seconds > 0]
    decisions = [row.decision_ms for row in timed if row.decision_ms > 0]
    return {
        "policy": policy,
        "on": where,
        "episodes": len(timed),
        "seconds": math.fsum(row.seconds for row in timed) / len(timed) if timed else math.nan,
        "decision_ms": math.fsum(decisions) / len(decisions) if decisions else math.nan,
    }


def _films(rows: Iterable[Row], places: Sequence[Path]) -> Section | None:
    """The films of some rows, by group of tasks, successes first; None if no film is found."""
    found: dict[tuple[str, str, bool], list[Figure]] = {}
    for row in rows:
        film = row.extra.get("film")
        group = row.extra.get("dimension") or row.extra.get("suite") or row.job.task
        shown = found.setdefault((group, row.job.policy, row.status != "success"), [])
        if not film or row.status == "error" or len(shown) >= FILMS:
            continue
        strip = next((place / f"{film}.png" for place in places if (place / f"{film}.png").is_file()), None)
        if strip is None:
            continue
        kind = f", {failure_kind(row.extra)}" if row.status == "failure" and "objects" in row.extra else ""
        name = EVERY_DIMENSION.get(group, row.job.policy if group == row.job.task else group)
        where = ", ".join(filter(None, (row.job.task, row.job.condition, f"initial state {row.job.initial_state}")))
        caption = f"{name}: {row.status}{kind}. {where}"
        video = strip.with_suffix(".mp4")
        address = Path(os.path.relpath(video, places[0])).as_posix() if video.is_file() else ""
        shown.append(Figure(caption, data_address(small_jpeg(strip.read_bytes()), "jpeg"), address))
    figures = [figure for _, shown in sorted(found.items(), key=lambda item: item[0]) for figure in shown]
    return Section("Films", figures=figures) if figures else None
