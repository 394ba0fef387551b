"""A benchmark table cut into what is shown of it: groups of tasks, lines of text, notes; ours beside others; times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kairos_env.eval.report.published_results import published_results
from kairos_env.eval.report.table import Cell, Reweighted, Table
from kairos_env.eval.statistics import Interval, wilson

WORKERS = (1, 64)
"""For how many workers the wall time of the whole benchmark is projected."""

Lines = list[list[str]]

CELL_HEADER = ["success %", "tasks", "episodes", "errors"]
ESTIMATE_HEADER = ["", "estimate %", "for tasks"]
TIMING_HEADER = ["policy", "benchmark", "episodes", "s/episode", "ms/decision", *(f"h on {n}" for n in WORKERS)]
HERE = " (here)"
"""Marks our lines among those of others."""
_WHOLE = "whole benchmark"


def groups_of(table: Table) -> dict[str, dict[str, Cell]]:
    """What tasks are grouped by -> name of a group -> its summary."""
    benchmark = table.benchmark
    groups = {}
    if benchmark.dimensions != ("",):
        groups["dimension"] = {name: table.cell(dimension=name) for name in benchmark.dimensions}
    groups["suite"] = {name: table.cell(suite=name) for name in benchmark.suites}
    if len(benchmark.difficulties) > 1:
        ratings = {rating: str(rating or "unrated") for rating in benchmark.difficulties}
        groups["difficulty"] = {text: table.cell(difficulty=rating) for rating, text in ratings.items()}
    if benchmark.dimensions == ("",):
        groups["task"] = {
            f"{task.suite}/{task.name}": Cell(
                1, int(task.trials > 0), task.successes, task.failures, task.errors, wilson(task.successes, task.trials)
            )
            for task in table.tasks
        }
    if table.ours:  # they are of a few kinds, and there is nothing that they should cover
        groups = {kind: {n: c for n, c in cells.items() if c.trials or c.errors} for kind, cells in groups.items()}
    return groups


def totals_of(table: Table) -> dict[str, Cell | Interval]:
    """Name -> mean over tasks, and over columns if there are several."""
    totals: dict[str, Cell | Interval] = {"mean over tasks": table.cell()}
    count = sum(1 for cell in table.columns.values() if cell.tasks)
    return totals | ({f"mean of {count} columns": table.plain_mean} if count > 1 else {})


def estimates_of(table: Table) -> dict[str, Reweighted]:
    """Re-weighted estimates, for an incomplete table of a benchmark."""
    if table.ours or table.complete:
        return {}
    found = {_WHOLE: table.reweighted()}
    if table.benchmark.dimensions != ("",):
        found |= {name: table.reweighted(dimension=name) for name in table.benchmark.dimensions}
    return found


def cell_line(name: str, cell: Cell | Interval) -> list[str]:
    """Name and the columns of `CELL_HEADER`."""
    if isinstance(cell, Interval):
        return [name, cell.format(1, 100), "", "", ""]
    tasks = f"{cell.tasks:,} of {cell.of:,}" if cell.of else f"{cell.tasks:,}"
    return [name, cell.rate.format(1, 100), tasks, f"{cell.trials:,}", f"{cell.errors:,}"]


def estimate_lines(table: Table) -> Lines:
    """Those of `estimates_of` that estimate something."""
    return [
        [name, estimate.rate.format(1, 100), f"{estimate.tasks:,} of {table.benchmark.size(dimension=dimension):,}"]
        for name, estimate in estimates_of(table).items()
        for dimension in [None if name == _WHOLE else name]
        if estimate.tasks
    ]


def estimate_note(table: Table) -> str:
    """What the estimates are, and what they leave out: a dimension without any result by its name alone."""
    names = dict.fromkeys(
        group if table.columns[column].tasks else column
        for group in estimates_of(table)[_WHOLE].without
        for column in [group.split(", ")[0]]
    )
    left_out = f" It says nothing about {'; '.join(names)}." if names else ""
    return (
        "Re-weighted estimate, not a result: each suite × dimension counts with its share of the benchmark, as if the "
        f"tasks that ran were a fair sample of it.{left_out}"
    )


_INTERVAL_NOTE = (
    "Rates are means over tasks with 95 % intervals (Wilson's, at the effective number of trials). Errors are no "
    "failures and are in no rate."
)


def notes_of(table: Table) -> list[str]:
    """What a reader must know to believe the table."""
    notes = []
    if table.settings:
        notes.append("; ".join(f"{name}: {', '.join(values)}" for name, values in table.settings.items()) + ".")
    if table.not_official and not table.ours:
        notes.append(f"No official result: {'; '.join(table.not_official)}.")
    return [*notes, _INTERVAL_NOTE]


def published_lines(tables: Sequence[Table]) -> dict[str, tuple[list[str], Lines, list[str]]]:
    """Benchmark -> header and lines of the table with others, and the sources that the lines refer to by number.

    Ours come first, then what others published from the highest total down; scenes of ours are not beside others.
    """
    names = dict.fromkeys(table.benchmark.name for table in tables)
    return {name: _published([table for table in tables if table.benchmark.name == name]) for name in names}


def _published(tables: Sequence[Table]) -> tuple[list[str], Lines, list[str]]:
    results = published_results(tables[0].benchmark.name)[::-1]
    columns = [name for name in tables[0].columns if any(name in result.values for result in results)]
    sources = {result.source: result.url for result in results}
    numbers = {source: number for number, source in enumerate(sources, 1)}
    lines = []
    for table in tables:
        if not table.ours:
            rates = [*(table.columns[name].rate.value for name in columns), table.cell().rate.value]
            lines.append([f"{table.policy}{HERE}, {table.label}", "", *(_number(100 * rate) for rate in rates)])
    for result in results:
        note = f", {result.note}" if result.note else ""
        values = [*(result.values.get(name, math.nan) for name in columns), result.total]
        lines.append([f"{result.method}{note} [{numbers[result.source]}]", result.training, *map(_number, values)])
    listed = [f"[{numbers[source]}] {source}, {url}" for source, url in sources.items()]
    return ["method", "trained on", *columns, "total"], lines, listed


def timing_of(table: Table) -> dict[str, Any]:
    """Measured and projected times as JSON values."""
    timed = [row for row in table.rows if row.seconds > 0]
    decisions = [row.decision_ms for row in timed if row.decision_ms > 0]
    return {
        "benchmark": table.benchmark.name,
        "policy": table.policy,
        "ours": table.ours,
        "episodes": len(timed),
        "seconds": math.fsum(row.seconds for row in timed) / len(timed) if timed else math.nan,
        "decision_ms": math.fsum(decisions) / len(decisions) if decisions else math.nan,
        "projected_hours": {str(workers): table.projected_seconds(workers) / 3600 for workers in WORKERS},
    }


TIMING_NOTE = (
    "Hours are projected for the whole benchmark, one trial a task, on so many workers of the speed measured here; "
    "with several, the longest that it can last when each takes the next job as soon as it is free."
)


def timing_lines(tables: Sequence[Table]) -> Lines:
    """The columns of `TIMING_HEADER` for each benchmark and policy."""
    lines = []
    for table in tables:
        if table.ours:
            continue
        time = timing_of(table)
        numbers = [time["seconds"], time["decision_ms"], *time["projected_hours"].values()]
        lines.append([table.policy, table.benchmark.name, str(time["episodes"]), *map(_number, numbers)])
    return lines


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"
