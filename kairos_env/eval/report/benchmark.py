"""Benchmark tables as text, JSON and a page; the same rows give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kairos_env.eval.failures import KINDS
from kairos_env.eval.report.closed_loop import format_table, plain
from kairos_env.eval.report.lines import (
    CELL_HEADER,
    ESTIMATE_HEADER,
    TIMING_HEADER,
    cell_line,
    estimate_lines,
    estimate_note,
    estimates_of,
    groups_of,
    notes_of,
    published_lines,
    timing_lines,
    timing_of,
    totals_of,
)
from kairos_env.eval.report.page import benchmark_page
from kairos_env.eval.report.published_results import Benchmark, published_results
from kairos_env.eval.report.table import Cell, Table, make_tables
from kairos_env.eval.rows import Row
from kairos_env.runs import write_text


@dataclass(frozen=True)
class BenchmarkReport:
    """What the runs of benchmarks found: a table for each benchmark and policy, scenes of ours apart."""

    tables: tuple[Table, ...]

    @property
    def errors(self) -> list[Row]:
        """The jobs without a result."""
        return [row for table in self.tables for row in table.rows if row.status == "error"]

    def table(self) -> str:
        """All results as aligned text; nothing in it depends on how fast they came."""
        return "\n\n\n".join(_text(table) for table in self.tables) or "no results"

    def published(self) -> str:
        """Results of other methods, ours among them, as aligned text."""
        parts = []
        for name, (header, lines, sources) in published_lines(self.tables).items():
            parts += [f"{name}, success %", format_table(header, lines), "\n".join(sources)]
        return "\n\n".join(parts)

    def timing(self) -> str:
        """Measured seconds an episode and the projected wall time of whole benchmarks, as aligned text."""
        return format_table(TIMING_HEADER, timing_lines(self.tables))

    def to_dict(self) -> dict[str, Any]:
        """All results as JSON values, nan as None; nothing in it depends on how fast they came."""
        names = dict.fromkeys(table.benchmark.name for table in self.tables)
        return {
            "tables": [plain(_table_dict(table)) for table in self.tables],
            "published": {name: [asdict(result) for result in published_results(name)] for name in names},
        }

    def save(self, folder: str | Path, runs: Iterable[str | Path] = ()) -> None:
        """Writes ``report.json`` (`to_dict`), ``timing.json`` and ``report.html``.

        Args:
            folder: of the run.
            runs: other folders in which the rows' films are looked for.
        """
        folder = Path(folder)
        timing = [plain(timing_of(table)) for table in self.tables]
        write_text(folder / "report.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "timing.json", json.dumps(timing, indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "report.html", self.html(folder, runs))

    def html(self, folder: str | Path, runs: Iterable[str | Path] = ()) -> str:
        """The page: everything, with small strips of the films that are found and links from ``folder`` to them."""
        return benchmark_page(self.tables, [Path(folder), *map(Path, runs)])


def make_benchmark_report(rows: Iterable[Row], benchmarks: Mapping[str, Benchmark] | None = None) -> BenchmarkReport:
    """Summarises rows of any benchmarks and policies, in any order; see `make_tables`."""
    return BenchmarkReport(tuple(make_tables(rows, benchmarks)))


def _text(table: Table) -> str:
    groups = groups_of(table)
    totals = [cell_line(name, cell) for name, cell in totals_of(table).items()]
    parts = [f"{table.benchmark.name}, {table.policy}: {table.label}"]
    for kind, cells in groups.items():
        lines = [cell_line(name, cell) for name, cell in cells.items()]
        parts.append(format_table([kind, *CELL_HEADER], lines + (totals if kind == next(iter(groups)) else [])))
    failures = {f"{kind}: {KINDS[kind]}": count for kind, count in table.failure_kinds().items()}
    for caption, kinds in (("failures", failures), ("errors, not counted", table.error_kinds)):
        if kinds:
            parts.append("\n".join([caption, *(f"{count:>7,}  {kind}" for kind, count in kinds.items())]))
    if estimates_of(table):
        parts.append(f"{estimate_note(table)}\n{format_table(ESTIMATE_HEADER, estimate_lines(table))}")
    return "\n\n".join([*parts, "\n".join(notes_of(table))])


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return asdict(cell) | {"rate": asdict(cell.rate)}


def _table_dict(table: Table) -> dict[str, Any]:
    benchmark = table.benchmark
    crossed = {
        dimension: {suite: _cell_dict(table.cell(suite, dimension)) for suite in benchmark.suites}
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
        "total": _cell_dict(table.cell()),
        "plain_mean": asdict(table.plain_mean),
        "by": {k: {name: _cell_dict(cell) for name, cell in cells.items()} for k, cells in groups_of(table).items()},
        "dimension_by_suite": crossed,
        "reweighted": {name: asdict(estimate) for name, estimate in estimates_of(table).items()},
        "failures": {"total": table.failure_kinds()} | failures,
        "errors": table.error_kinds,
    }
