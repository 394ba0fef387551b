"""What is shown of benchmark tables: groups of tasks, failures, estimates, notes; beside others; times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kairos_env.eval.failures import KINDS
from kairos_env.eval.report.benchmark_table import BenchmarkTable, GroupRate, Reweighted
from kairos_env.eval.report.page import Cell, Section, bar, heat
from kairos_env.eval.report.published_results import published_results
from kairos_env.eval.report.text import number
from kairos_env.eval.statistics import Interval, wilson
from kairos_env.sims.libero.tasks import EVERY_DIMENSION

_WHOLE = "whole benchmark"
_HERE = " (here)"  # marks Kairos's lines among those of others
_INTERVAL_NOTE = (
    "Rates are means over tasks with 95 % intervals (Wilson's, at the effective number of trials). Errors are no "
    "failures and are in no rate."
)


def benchmark_sections(table: BenchmarkTable) -> list[Section]:
    """All of a table but its films."""
    benchmark, groups = table.benchmark, groups_of(table)
    sections = [Section(f"{benchmark.name}, {table.policy}: {table.label}", 2)]
    for kind, cells in groups.items():
        rows: dict[str, GroupRate | Interval] = dict(cells)
        if kind == next(iter(groups)):
            rows |= _totals(table)
        lines = [_line(name, cell) for name, cell in rows.items()]
        sections.append(
            Section(f"By {kind}", header=[kind, "", "success %", "tasks", "episodes", "errors"], lines=lines)
        )
    if len({(suite, dimension) for suite, dimension, _ in benchmark.counts}) > len(benchmark.suites):
        crossed = {d: {s: table.cell(s, d) for s in benchmark.suites} for d in benchmark.dimensions}
        sections.append(_heat_map("Dimension × suite", crossed))
    if len(benchmark.difficulties) > 1:
        rated = {
            d: {str(r or "unrated"): table.cell(None, d, r) for r in benchmark.difficulties}
            for d in benchmark.dimensions
        }
        sections.append(_heat_map("Dimension × difficulty", rated))
    sections += _mishaps(table)
    if estimates := estimates_of(table):
        sections.append(
            Section(
                "Re-weighted estimate",
                header=["", "estimate %", "for tasks"],
                lines=_estimate_lines(table, estimates),
                notes=[_estimate_note(table, estimates)],
            )
        )
    notes = ["; ".join(f"{name}: {', '.join(values)}" for name, values in table.settings.items()) + "."]
    if table.not_official and not table.ours:
        notes.append(f"No official result: {'; '.join(table.not_official)}.")
    return [*sections, Section(notes=[*(notes if table.settings else notes[1:]), _INTERVAL_NOTE])]


def groups_of(table: BenchmarkTable) -> dict[str, dict[str, GroupRate]]:
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
            f"{task.suite}/{task.name}": GroupRate(
                1, int(task.trials > 0), task.successes, task.failures, task.errors, wilson(task.successes, task.trials)
            )
            for task in table.tasks
        }
    if table.ours:  # they are of a few kinds, and there is nothing that they should cover
        groups = {kind: {n: c for n, c in cells.items() if c.trials or c.errors} for kind, cells in groups.items()}
    return groups


def estimates_of(table: BenchmarkTable) -> dict[str, Reweighted]:
    """Re-weighted estimates, for an incomplete table of a benchmark."""
    if table.ours or table.complete:
        return {}
    found = {_WHOLE: table.reweighted()}
    if table.benchmark.dimensions != ("",):
        found |= {name: table.reweighted(dimension=name) for name in table.benchmark.dimensions}
    return found


def benchmark_values(table: BenchmarkTable) -> dict[str, Any]:
    """All of a table as JSON values (with nan); nothing in it depends on how fast the rows came."""
    benchmark, groups = table.benchmark, groups_of(table)
    crossed = {
        dimension: {suite: asdict(table.cell(suite, dimension)) for suite in benchmark.suites}
        for dimension in benchmark.dimensions
        if dimension
    }
    failures = {name: table.failure_kinds(name) for name in benchmark.dimensions if name}
    return {
        "benchmark": benchmark.name,
        "policy": table.policy,
        "label": table.label,
        "official": not table.not_official,
        "not_official": table.not_official,
        "ours": table.ours,
        "settings": table.settings,
        "total": asdict(table.cell()),
        "plain_mean": asdict(table.plain_mean),
        "by": {kind: {name: asdict(cell) for name, cell in cells.items()} for kind, cells in groups.items()},
        "dimension_by_suite": crossed,
        "reweighted": {name: asdict(estimate) for name, estimate in estimates_of(table).items()},
        "failures": {"total": table.failure_kinds()} | failures,
        "errors": table.error_kinds,
    }


def published_sections(tables: Sequence[BenchmarkTable]) -> list[Section]:
    """For each benchmark, the tables beside what others published, from the highest total down, with the sources.

    The scenes that Kairos made are not beside others.
    """
    sections = []
    for name in dict.fromkeys(table.benchmark.name for table in tables):
        mine = [table for table in tables if table.benchmark.name == name]
        results = published_results(name)[::-1]
        columns = [column for column in mine[0].columns if any(column in result.values for result in results)]
        sources = {result.source: result.url for result in results}
        numbers = {source: place for place, source in enumerate(sources, 1)}
        lines = []
        for table in mine:
            if not table.ours:
                rates = [*(table.columns[column].rate.value for column in columns), table.cell().rate.value]
                lines.append([f"{table.policy}{_HERE}, {table.label}", "", *(number(100 * rate) for rate in rates)])
        here = range(len(lines))
        for result in results:
            note = f", {result.note}" if result.note else ""
            values = [*(result.values.get(column, math.nan) for column in columns), result.total]
            lines.append([f"{result.method}{note} [{numbers[result.source]}]", result.training, *map(number, values)])
        notes = [f"[{numbers[source]}] {source}, {url}" for source, url in sources.items()]
        header = ["method", "trained on", *columns, "total"]
        sections.append(Section(f"{name}, success %", 2, header=header, lines=lines, bold=here, notes=notes))
    return sections


def _totals(table: BenchmarkTable) -> dict[str, GroupRate | Interval]:
    """Name -> mean over tasks, and over columns if there are several."""
    totals: dict[str, GroupRate | Interval] = {"mean over tasks": table.cell()}
    count = sum(1 for cell in table.columns.values() if cell.tasks)
    return totals | ({f"mean of {count} columns": table.plain_mean} if count > 1 else {})


def _line(name: str, cell: GroupRate | Interval) -> list[Cell]:
    if isinstance(cell, Interval):
        return [name, bar(cell), cell.format(1, 100), "", "", ""]
    tasks = f"{cell.tasks:,} of {cell.of:,}" if cell.of else f"{cell.tasks:,}"
    return [name, bar(cell.rate), cell.rate.format(1, 100), tasks, f"{cell.trials:,}", f"{cell.errors:,}"]


def _heat_map(title: str, rows: Mapping[str, Mapping[str, GroupRate]]) -> Section:
    lines: list[list[Cell]] = []
    for name, cells in rows.items():
        lines.append([EVERY_DIMENSION.get(name, name)])
        for cell in cells.values():
            if math.isnan(cell.rate.value):
                lines[-1].append("not run" if cell.of or cell.errors else "")
                continue
            note = f"({cell.tasks:,}{f'/{cell.of:,}' if cell.of else ''})"
            lines[-1].append(heat(cell.rate.value, f"{100 * cell.rate.value:.0f}", note))
    return Section(title, header=["", *next(iter(rows.values()))], lines=lines, page_only=True)


def _mishaps(table: BenchmarkTable) -> list[Section]:
    """Failures and errors by kind."""
    sections = []
    if failures := table.failure_kinds():
        kinds = {kind: f"{kind}: {KINDS[kind]}" for kind in failures}
        lines = [[kinds[kind], f"{count:,}"] for kind, count in failures.items()]
        sections.append(Section("Failures", header=["failure", "episodes"], lines=lines))
        if dimensions := [name for name in table.benchmark.dimensions if name]:
            counts = {name: table.failure_kinds(name) for name in dimensions}
            lines = [[text, *(str(counts[d].get(kind, 0)) for d in dimensions)] for kind, text in kinds.items()]
            sections.append(Section("Failures by dimension", header=["kind", *dimensions], lines=lines, page_only=True))
    if table.error_kinds:
        lines = [[kind, f"{count:,}"] for kind, count in table.error_kinds.items()]
        sections.append(Section("Errors, not counted", header=["error, not counted", "jobs"], lines=lines))
    return sections


def _estimate_lines(table: BenchmarkTable, estimates: Mapping[str, Reweighted]) -> list[list[str]]:
    """Those that estimate something."""
    return [
        [name, estimate.rate.format(1, 100), f"{estimate.tasks:,} of {table.benchmark.size(dimension=dimension):,}"]
        for name, estimate in estimates.items()
        for dimension in [None if name == _WHOLE else name]
        if estimate.tasks
    ]


def _estimate_note(table: BenchmarkTable, estimates: Mapping[str, Reweighted]) -> str:
    """What the estimates are, and what they leave out: a dimension without any result by its name alone."""
    names = dict.fromkeys(
        group if table.columns[column].tasks else column
        for group in estimates[_WHOLE].without
        for column in [group.split(", ")[0]]
    )
    left_out = f" It says nothing about {'; '.join(names)}." if names else ""
    return (
        "Re-weighted estimate, not a result: each suite × dimension counts with its share of the benchmark, as if the "
        f"tasks that ran were a fair sample of it.{left_out}"
    )
