"""Benchmark tables as text, JSON and one self-contained HTML page; the same rows give the same bytes."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kairos_env.eval.benchmark_compare import Comparison, compare
from kairos_env.eval.benchmark_table import Cell, Reweighted, Table, make_tables
from kairos_env.eval.failures import KINDS, failure_kind
from kairos_env.eval.published_results import Benchmark, published_results
from kairos_env.eval.report import format_table, plain
from kairos_env.eval.results import Row, read_rows
from kairos_env.eval.run_folder import write_text
from kairos_env.eval.statistics import Interval, wilson
from kairos_env.sims.libero_tasks import DIMENSIONS

WORKERS = (1, 64)
"""For how many workers the wall time of the whole benchmark is projected."""
FILMS = 2
"""The page shows at most so many successes, and as many failures, of each column."""

Lines = list[list[str]]


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
        for name, (header, lines, sources) in self._published().items():
            parts += [f"{name}, success %", format_table(header, lines), "\n".join(sources)]
        return "\n\n".join(parts)

    def timing(self) -> str:
        """Measured seconds an episode and the projected wall time of whole benchmarks, as aligned text."""
        return format_table(_TIMING_HEADER, _timing_lines(self.tables))

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
        timing = [plain(_timing(table)) for table in self.tables]
        write_text(folder / "report.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "timing.json", json.dumps(timing, indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "report.html", self.html(folder, runs))

    def html(self, folder: str | Path, runs: Iterable[str | Path] = ()) -> str:
        """The page: everything, with small strips of the films that are found and links from ``folder`` to them."""
        places = [Path(folder), *map(Path, runs)]
        parts = [_html_table(table, places) for table in self.tables]
        for name, (header, lines, sources) in self._published().items():
            parts.append(f"<h2>{_e(name)}: ours and what others published, success %</h2>")
            parts.append(_html_lines(header, lines, [row for row, line in enumerate(lines) if _HERE in line[0]]))
            parts += [f'<p class="note">{_e(source)}</p>' for source in sources]
        parts.append(f"<h2>Time</h2>{_html_lines(_TIMING_HEADER, _timing_lines(self.tables))}")
        parts.append(f'<p class="note">{_e(_TIMING_NOTE)}</p>')
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmark</title>'
            f"<style>{_STYLE}</style><body><h1>Benchmark</h1>{''.join(parts)}</body></html>\n"
        )

    def _published(self) -> dict[str, tuple[list[str], Lines, list[str]]]:
        """Benchmark -> header, lines and sources of the table of published results, with ours."""
        found = {}
        for name in dict.fromkeys(table.benchmark.name for table in self.tables):
            found[name] = _published_lines([table for table in self.tables if table.benchmark.name == name])
        return found


def make_benchmark_report(rows: Iterable[Row], benchmarks: Mapping[str, Benchmark] | None = None) -> BenchmarkReport:
    """Summarises rows of any benchmarks and policies, in any order; see `make_tables`."""
    return BenchmarkReport(tuple(make_tables(rows, benchmarks)))


def read_runs(folders: Iterable[str | Path]) -> list[Row]:
    """The rows of run folders (the shards of a run, or several runs) together.

    Raises:
        FileNotFoundError: a folder holds no results.
    """
    rows = []
    for folder in folders:
        path = Path(folder) / "results.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no folder of a run: {path} is not there")
        rows += read_rows(path)
    return rows


def compare_runs(
    first: str | Path, second: str | Path, first_policy: str | None = None, second_policy: str | None = None
) -> Comparison:
    """Compares one policy of a run folder with one of another (or of the same).

    Settings in the folders' ``config.json`` that differ are part of the comparison.

    Raises:
        FileNotFoundError: a folder holds no results.
        ValueError: a run has no such policy, or several and none was named; or nothing can be paired.
    """
    sides = []
    for folder, policy in ((first, first_policy), (second, second_policy)):
        rows = read_runs([folder])
        policies = sorted({row.job.policy for row in rows})
        if policy is not None and policy not in policies:
            raise ValueError(f"{folder} has no policy {policy!r}; it has {', '.join(policies) or 'no results'}")
        sides.append([row for row in rows if policy in (None, row.job.policy)])
    comparison = compare(*sides)
    configs = [_config(folder) for folder in (first, second)]
    differing = {
        name: (json.dumps(configs[0].get(name)), json.dumps(configs[1].get(name)))
        for name in sorted(configs[0].keys() | configs[1].keys())
        if configs[0].get(name) != configs[1].get(name)
    }
    return replace(comparison, settings=differing | dict(comparison.settings))


def _config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return config


def comparison_text(comparison: Comparison) -> str:
    """A comparison of two runs as aligned text."""
    first, second = comparison.first, comparison.second
    if first == second:
        first, second = f"{first} (1)", f"{second} (2)"
    header = ["", "jobs", f"{first} %", f"{second} %", "only the first", "only the second", "difference", "p"]
    lines = []
    for name, pairing in comparison.groups.items():
        rates = [f"{100 * rate:.1f}" for rate in pairing.rates]
        discordant = [str(pairing.only_first), str(pairing.only_second)]
        difference = pairing.difference.format(1, 100)
        lines.append([name, str(pairing.pairs), *rates, *discordant, difference, _p_value(pairing.p_value)])
    notes = [
        f"On the jobs that ended in both runs; {comparison.unpaired[0]} of the first and {comparison.unpaired[1]} of "
        "the second have no partner.",
        "Difference in points with Tango's 95 % interval; p of the exact McNemar test, not corrected for the number of "
        "lines.",
    ]
    notes += [f"The runs differ in {name}: {a} | {b}." for name, (a, b) in comparison.settings.items()]
    return "\n".join([format_table(header, lines), "", *notes])


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """A comparison of two runs as JSON values."""
    groups = {
        name: asdict(pairing)
        | {"pairs": pairing.pairs, "rates": pairing.rates}
        | {"difference": asdict(pairing.difference), "p_value": pairing.p_value}
        for name, pairing in comparison.groups.items()
    }
    values: dict[str, Any] = plain(asdict(comparison) | {"groups": groups})
    return values


# -- the parts of a table ------------------------------------------------------------------------------------------

_CELL_HEADER = ["success %", "tasks", "episodes", "errors"]


def _groups(table: Table) -> dict[str, dict[str, Cell]]:
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


def _totals(table: Table) -> dict[str, Cell | Interval]:
    totals: dict[str, Cell | Interval] = {"mean over tasks": table.cell()}
    count = sum(1 for cell in table.columns.values() if cell.tasks)
    return totals | ({f"mean of {count} columns": table.plain_mean} if count > 1 else {})


def _estimates(table: Table) -> dict[str, Reweighted]:
    """Re-weighted estimates, for an incomplete table of a benchmark."""
    if table.ours or table.complete:
        return {}
    found = {_WHOLE: table.reweighted()}
    if table.benchmark.dimensions != ("",):
        found |= {name: table.reweighted(dimension=name) for name in table.benchmark.dimensions}
    return found


def _cell_line(name: str, cell: Cell | Interval) -> list[str]:
    if isinstance(cell, Interval):
        return [name, cell.format(1, 100), "", "", ""]
    tasks = f"{cell.tasks:,} of {cell.of:,}" if cell.of else f"{cell.tasks:,}"
    return [name, cell.rate.format(1, 100), tasks, f"{cell.trials:,}", f"{cell.errors:,}"]


def _estimate_lines(table: Table) -> Lines:
    return [
        [name, estimate.rate.format(1, 100), f"{estimate.tasks:,} of {table.benchmark.size(dimension=dimension):,}"]
        for name, estimate in _estimates(table).items()
        for dimension in [None if name == _WHOLE else name]
        if estimate.tasks
    ]


def _estimate_note(table: Table) -> str:
    """What the estimates are, and what they leave out: a dimension without any result by its name alone."""
    names = dict.fromkeys(
        group if table.columns[column].tasks else column
        for group in _estimates(table)[_WHOLE].without
        for column in [group.split(", ")[0]]
    )
    left_out = f" It says nothing about {'; '.join(names)}." if names else ""
    return (
        "Re-weighted estimate, not a result: each suite × dimension counts with its share of the benchmark, as if the "
        f"tasks that ran were a fair sample of it.{left_out}"
    )


_WHOLE = "whole benchmark"
_ESTIMATE_HEADER = ["", "estimate %", "for tasks"]
_INTERVAL_NOTE = (
    "Rates are means over tasks with 95 % intervals (Wilson's, at the effective number of trials). Errors are no "
    "failures and are in no rate."
)


def _notes(table: Table) -> list[str]:
    notes = []
    if table.settings:
        notes.append("; ".join(f"{name}: {', '.join(values)}" for name, values in table.settings.items()) + ".")
    if table.not_official and not table.ours:
        notes.append(f"No official result: {'; '.join(table.not_official)}.")
    return [*notes, _INTERVAL_NOTE]


def _title(table: Table) -> str:
    return f"{table.benchmark.name}, {table.policy}: {table.label}"


def _text(table: Table) -> str:
    groups = _groups(table)
    totals = [_cell_line(name, cell) for name, cell in _totals(table).items()]
    parts = [_title(table)]
    for kind, cells in groups.items():
        lines = [_cell_line(name, cell) for name, cell in cells.items()]
        parts.append(format_table([kind, *_CELL_HEADER], lines + (totals if kind == next(iter(groups)) else [])))
    failures = {f"{kind}: {KINDS[kind]}": count for kind, count in table.failure_kinds().items()}
    for caption, kinds in (("failures", failures), ("errors, not counted", table.error_kinds)):
        if kinds:
            parts.append("\n".join([caption, *(f"{count:>7,}  {kind}" for kind, count in kinds.items())]))
    if _estimates(table):
        parts.append(f"{_estimate_note(table)}\n{format_table(_ESTIMATE_HEADER, _estimate_lines(table))}")
    return "\n\n".join([*parts, "\n".join(_notes(table))])


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
        "by": {k: {name: _cell_dict(cell) for name, cell in cells.items()} for k, cells in _groups(table).items()},
        "dimension_by_suite": crossed,
        "reweighted": {name: asdict(estimate) for name, estimate in _estimates(table).items()},
        "failures": {"total": table.failure_kinds()} | failures,
        "errors": table.error_kinds,
    }


# -- beside others, and time ---------------------------------------------------------------------------------------

_HERE = " (here)"  # marks our lines among those of others


def _published_lines(tables: Sequence[Table]) -> tuple[list[str], Lines, list[str]]:
    """Ours first, then what others published from the highest total down; scenes of ours are not beside others.

    Returns:
        Header, lines, and the sources with the numbers that the lines refer to.
    """
    results = published_results(tables[0].benchmark.name)[::-1]
    columns = [name for name in tables[0].columns if any(name in result.values for result in results)]
    sources = {result.source: result.url for result in results}
    numbers = {source: number for number, source in enumerate(sources, 1)}
    lines = []
    for table in tables:
        if not table.ours:
            rates = [*(table.columns[name].rate.value for name in columns), table.cell().rate.value]
            lines.append([f"{table.policy}{_HERE}, {table.label}", "", *(_number(100 * rate) for rate in rates)])
    for result in results:
        note = f", {result.note}" if result.note else ""
        values = [*(result.values.get(name, math.nan) for name in columns), result.total]
        lines.append([f"{result.method}{note} [{numbers[result.source]}]", result.training, *map(_number, values)])
    listed = [f"[{numbers[source]}] {source}, {url}" for source, url in sources.items()]
    return ["method", "trained on", *columns, "total"], lines, listed


def _timing(table: Table) -> dict[str, Any]:
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


_TIMING_HEADER = ["policy", "benchmark", "episodes", "s/episode", "ms/decision", *(f"h on {n}" for n in WORKERS)]
_TIMING_NOTE = (
    "Hours are projected for the whole benchmark, one trial a task, on so many workers of the speed measured here; "
    "with several, the longest that it can last when each takes the next job as soon as it is free."
)


def _timing_lines(tables: Sequence[Table]) -> Lines:
    lines = []
    for table in tables:
        if table.ours:
            continue
        time = _timing(table)
        numbers = [time["seconds"], time["decision_ms"], *time["projected_hours"].values()]
        lines.append([table.policy, table.benchmark.name, str(time["episodes"]), *map(_number, numbers)])
    return lines


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


# -- the page --------------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left } svg { vertical-align: middle }
.note { color: #666 } .ours { font-weight: bold } .label { background: #fff3cd; padding: .1rem .6rem }
img { max-width: 100% } figure { margin: 1rem 0 } figcaption { color: #444 }
"""


def _e(text: str) -> str:
    return html.escape(text)


def _html_lines(header: Sequence[str], lines: Lines, bold: Sequence[int] = ()) -> str:
    rows = ["<tr>" + "".join(f"<th>{_e(cell)}</th>" for cell in header) + "</tr>"]
    for number, line in enumerate(lines):
        mark = ' class="ours"' if number in bold else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{_e(cell)}</td>" for cell in line) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _html_table(table: Table, places: Sequence[Path]) -> str:
    parts = [f'<h2>{_e(table.benchmark.name)}, {_e(table.policy)}</h2><p class="label">{_e(table.label)}</p>']
    groups = _groups(table)
    for kind, cells in groups.items():
        rows: dict[str, Cell | Interval] = dict(cells)
        if kind == next(iter(groups)):
            rows |= _totals(table)
        parts.append(f"<h3>By {kind}</h3>{_html_cells(kind, rows)}")
    if table.benchmark.dimensions != ("",):
        crossed = {d: {s: table.cell(s, d) for s in table.benchmark.suites} for d in table.benchmark.dimensions}
        parts.append(f"<h3>Dimension × suite</h3>{_heat_map(crossed)}")
        rated = {
            d: {str(r or "unrated"): table.cell(None, d, r) for r in table.benchmark.difficulties}
            for d in table.benchmark.dimensions
        }
        parts.append(f"<h3>Dimension × difficulty</h3>{_heat_map(rated)}")
    if _estimates(table):
        parts.append("<h3>Re-weighted estimate</h3>" + _html_lines(_ESTIMATE_HEADER, _estimate_lines(table)))
        parts.append(f'<p class="note">{_e(_estimate_note(table))}</p>')
    if table.failure_kinds():
        parts.append(f"<h3>Failures</h3>{_html_failures(table)}")
    if table.error_kinds:
        lines = [[kind, str(count)] for kind, count in table.error_kinds.items()]
        parts.append(f"<h3>Errors (not counted)</h3>{_html_lines(['what happened', 'jobs'], lines)}")
    parts.append("".join(f'<p class="note">{_e(note)}</p>' for note in _notes(table)))
    parts.append(_html_films(table, places))
    return "".join(parts)


def _html_cells(kind: str, cells: Mapping[str, Cell | Interval]) -> str:
    rows = ["<tr>" + "".join(f"<th>{_e(cell)}</th>" for cell in [kind, "", *_CELL_HEADER]) + "</tr>"]
    for name, cell in cells.items():
        first, *rest = _cell_line(DIMENSIONS.get(name, name), cell)
        bar = _bar(cell if isinstance(cell, Interval) else cell.rate)
        rows.append(f"<tr><td>{_e(first)}</td><td>{bar}</td>" + "".join(f"<td>{_e(c)}</td>" for c in rest) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _bar(interval: Interval) -> str:
    """A rate on a line from 0 to 1, with its interval."""
    if math.isnan(interval.value):
        return ""
    low, value, high = (f"{160 * x:.1f}" for x in (interval.low, interval.value, interval.high))
    return (
        f'<svg width="160" height="12" role="img" aria-label="{_e(interval.format(1, 100))}">'
        '<rect width="160" height="12" fill="#eee"/>'
        f'<line x1="{low}" x2="{high}" y1="6" y2="6" stroke="#7aa6d6" stroke-width="6"/>'
        f'<line x1="{value}" x2="{value}" y1="0" y2="12" stroke="#123" stroke-width="2"/></svg>'
    )


def _heat_map(rows: Mapping[str, Mapping[str, Cell]]) -> str:
    names = list(next(iter(rows.values())))
    lines = ["<tr><th></th>" + "".join(f"<th>{_e(name)}</th>" for name in names) + "</tr>"]
    for row, cells in rows.items():
        line = f"<td>{_e(DIMENSIONS.get(row, row))}</td>"
        for cell in cells.values():
            if math.isnan(cell.rate.value):
                line += f"<td>{'not run' if cell.of or cell.errors else ''}</td>"
                continue
            red, green = round(255 - 150 * cell.rate.value), round(255 - 75 * cell.rate.value)
            of = f"/{cell.of:,}" if cell.of else ""
            line += (
                f'<td style="background:rgb({red},{green},255)">{100 * cell.rate.value:.0f} '
                f"<small>({cell.tasks:,}{of})</small></td>"
            )
        lines.append(f"<tr>{line}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _html_failures(table: Table) -> str:
    dimensions = [name for name in table.benchmark.dimensions if name]
    by_dimension = {name: table.failure_kinds(name) for name in dimensions}
    lines = [
        [f"{kind}: {KINDS[kind]}", str(count), *(str(by_dimension[name].get(kind, 0)) for name in dimensions)]
        for kind, count in table.failure_kinds().items()
    ]
    return _html_lines(["kind", "all", *dimensions], lines)


def _html_films(table: Table, places: Sequence[Path]) -> str:
    shown: dict[tuple[str, str], int] = {}
    figures = []
    for row in table.rows:
        film = row.extra.get("film")
        column = row.extra["dimension"] or row.job.task.split("/", 2)[1]
        if not film or row.status == "error" or shown.get((column, row.status), 0) >= FILMS:
            continue
        strip = next((place / f"{film}.png" for place in places if (place / f"{film}.png").is_file()), None)
        if strip is None:
            continue
        shown[column, row.status] = shown.get((column, row.status), 0) + 1
        outcome = row.status if row.status == "success" else f"failure, {failure_kind(row.extra)}"
        caption = f"{DIMENSIONS.get(column, column)}: {outcome}. {row.job.task}, start {row.job.initial_state_id}"
        video = strip.with_suffix(".mp4")
        link = f' <a href="{_e(_relative(video, places[0]))}">film</a>' if video.is_file() else ""
        data = base64.b64encode(_small(strip.read_bytes())).decode()
        picture = f'<img alt="{_e(caption)}" src="data:image/jpeg;base64,{data}">'
        figures.append((column, row.status, f"<figure><figcaption>{_e(caption)}{link}</figcaption>{picture}</figure>"))
    if not figures:
        return ""
    order = list(table.columns)
    figures.sort(key=lambda figure: (order.index(figure[0]), figure[1] != "success"))
    return "<h3>Films</h3>" + "".join(figure for _, _, figure in figures)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _small(png: bytes, width: int = 900) -> bytes:
    """A strip as a JPEG of at most this width: the page holds dozens of them."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        picture = image.convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
