"""Benchmark tables as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kairos_env.eval.failures import KINDS, failure_kind
from kairos_env.eval.report.lines import (
    CELL_HEADER,
    ESTIMATE_HEADER,
    HERE,
    TIMING_HEADER,
    TIMING_NOTE,
    Lines,
    cell_line,
    estimate_lines,
    estimate_note,
    estimates_of,
    groups_of,
    notes_of,
    published_lines,
    timing_lines,
    totals_of,
)
from kairos_env.eval.report.table import Cell, Table
from kairos_env.eval.statistics import Interval
from kairos_env.sims.libero.tasks import DIMENSIONS

FILMS = 2
"""The page shows at most so many successes, and as many failures, of each column."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left } svg { vertical-align: middle }
.note { color: #666 } .ours { font-weight: bold } .label { background: #fff3cd; padding: .1rem .6rem }
img { max-width: 100% } figure { margin: 1rem 0 } figcaption { color: #444 }
"""


def benchmark_page(tables: Sequence[Table], places: Sequence[Path]) -> str:
    """The page of some tables.

    Args:
        tables: in the order in which they are shown.
        places: folders in which the rows' films are looked for, first that of the page: links are relative to it.
    """
    parts = [_table(table, places) for table in tables]
    for name, (header, lines, sources) in published_lines(tables).items():
        parts.append(f"<h2>{_e(name)}: ours and what others published, success %</h2>")
        parts.append(_lines(header, lines, [row for row, line in enumerate(lines) if HERE in line[0]]))
        parts += [f'<p class="note">{_e(source)}</p>' for source in sources]
    parts.append(f"<h2>Time</h2>{_lines(TIMING_HEADER, timing_lines(tables))}")
    parts.append(f'<p class="note">{_e(TIMING_NOTE)}</p>')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmark</title>'
        f"<style>{_STYLE}</style><body><h1>Benchmark</h1>{''.join(parts)}</body></html>\n"
    )


def _e(text: str) -> str:
    return html.escape(text)


def _lines(header: Sequence[str], lines: Lines, bold: Sequence[int] = ()) -> str:
    rows = ["<tr>" + "".join(f"<th>{_e(cell)}</th>" for cell in header) + "</tr>"]
    for number, line in enumerate(lines):
        mark = ' class="ours"' if number in bold else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{_e(cell)}</td>" for cell in line) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _table(table: Table, places: Sequence[Path]) -> str:
    parts = [f'<h2>{_e(table.benchmark.name)}, {_e(table.policy)}</h2><p class="label">{_e(table.label)}</p>']
    groups = groups_of(table)
    for kind, cells in groups.items():
        rows: dict[str, Cell | Interval] = dict(cells)
        if kind == next(iter(groups)):
            rows |= totals_of(table)
        parts.append(f"<h3>By {kind}</h3>{_cells(kind, rows)}")
    if table.benchmark.dimensions != ("",):
        crossed = {d: {s: table.cell(s, d) for s in table.benchmark.suites} for d in table.benchmark.dimensions}
        parts.append(f"<h3>Dimension × suite</h3>{_heat_map(crossed)}")
        rated = {
            d: {str(r or "unrated"): table.cell(None, d, r) for r in table.benchmark.difficulties}
            for d in table.benchmark.dimensions
        }
        parts.append(f"<h3>Dimension × difficulty</h3>{_heat_map(rated)}")
    if estimates_of(table):
        parts.append("<h3>Re-weighted estimate</h3>" + _lines(ESTIMATE_HEADER, estimate_lines(table)))
        parts.append(f'<p class="note">{_e(estimate_note(table))}</p>')
    if table.failure_kinds():
        parts.append(f"<h3>Failures</h3>{_failures(table)}")
    if table.error_kinds:
        lines = [[kind, str(count)] for kind, count in table.error_kinds.items()]
        parts.append(f"<h3>Errors (not counted)</h3>{_lines(['what happened', 'jobs'], lines)}")
    parts.append("".join(f'<p class="note">{_e(note)}</p>' for note in notes_of(table)))
    parts.append(_films(table, places))
    return "".join(parts)


def _cells(kind: str, cells: Mapping[str, Cell | Interval]) -> str:
    rows = ["<tr>" + "".join(f"<th>{_e(cell)}</th>" for cell in [kind, "", *CELL_HEADER]) + "</tr>"]
    for name, cell in cells.items():
        first, *rest = cell_line(DIMENSIONS.get(name, name), cell)
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


def _failures(table: Table) -> str:
    dimensions = [name for name in table.benchmark.dimensions if name]
    by_dimension = {name: table.failure_kinds(name) for name in dimensions}
    lines = [
        [f"{kind}: {KINDS[kind]}", str(count), *(str(by_dimension[name].get(kind, 0)) for name in dimensions)]
        for kind, count in table.failure_kinds().items()
    ]
    return _lines(["kind", "all", *dimensions], lines)


def _films(table: Table, places: Sequence[Path]) -> str:
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
        caption = f"{DIMENSIONS.get(column, column)}: {outcome}. {row.job.task}, start {row.job.initial_state}"
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
