"""Success tables as text, JSON and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import math
import statistics as stdlib_statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairos_env.eval.rows import Row
from kairos_env.eval.statistics import Interval, wilson
from kairos_env.runs import describe_machine, write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .8rem; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left }
img { max-width: 100%; image-rendering: pixelated } .note { color: #666 }
"""


@dataclass(frozen=True)
class Cell:
    """One policy on one task.

    Args:
        rate: of success, among the episodes that ran to their end; Wilson's 95 % interval.
        errors: jobs that crashed or timed out. They are in neither number of the rate.
        median_decisions: of the successes; nan without one.
        mean_return: of successes and failures.
        decision_ms: mean time of a decision.
    """

    policy: str
    task: str
    successes: int
    failures: int
    errors: int
    rate: Interval
    median_decisions: float
    mean_return: float
    decision_ms: float


@dataclass(frozen=True)
class Report:
    """What an evaluation found: rows (sorted by job) and their summary."""

    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]

    def cell(self, policy: str, task: str) -> Cell:
        """The summary of one policy on one task."""
        for cell in self.cells:
            if (cell.policy, cell.task) == (policy, task):
                return cell
        legal = ", ".join(f"{c.policy}/{c.task}" for c in self.cells)
        raise KeyError(f"no results of policy {policy!r} on task {task!r}; there are {legal}")

    @property
    def errors(self) -> list[Row]:
        """The jobs without a result."""
        return [row for row in self.rows if row.status == "error"]

    def table(self) -> str:
        """The success table as aligned text, with a line for each kind of error below."""
        text = format_table(_HEADER, _lines(self.cells))
        messages: dict[str, int] = {}
        for row in self.errors:
            messages[row.message] = messages.get(row.message, 0) + 1
        return text + "".join(f"\n{count} × error, not counted: {message}" for message, count in messages.items())

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values; nan becomes None."""
        return {"cells": [plain(dataclasses.asdict(cell)) for cell in self.cells], "machine": describe_machine()}

    def save(self, folder: str | Path) -> None:
        """Writes ``report.json`` and ``report.html`` (with the folder's film strips)."""
        folder = Path(folder)
        write_text(folder / "report.json", json.dumps(self.to_dict(), indent=2) + "\n")
        strips = {path.stem: path.read_bytes() for path in sorted((folder / "videos").glob("*.png"))}
        tables = {"Success": (_HEADER, _lines(self.cells))}
        if self.errors:
            lines = [[r.job.policy, r.job.task, str(r.job.initial_state), r.message] for r in self.errors]
            tables["Errors (not counted)"] = (["policy", "task", "start", "what happened"], lines)
        write_text(folder / "report.html", html_page("Closed-loop evaluation", tables, strips))


def make_report(rows: Iterable[Row], policies: Sequence[str], tasks: Sequence[str]) -> Report:
    """Summarises rows; the order of ``rows`` does not matter."""
    ordered = tuple(sorted(rows, key=lambda row: row.job))
    cells = []
    for policy in policies:
        for task in tasks:
            mine = [row for row in ordered if (row.job.policy, row.job.task) == (policy, task)]
            won = [row for row in mine if row.status == "success"]
            ended = [row for row in mine if row.status != "error"]
            cells.append(
                Cell(
                    policy,
                    task,
                    successes=len(won),
                    failures=len(ended) - len(won),
                    errors=len(mine) - len(ended),
                    rate=wilson(len(won), len(ended)),
                    median_decisions=_median([row.decisions for row in won]),
                    mean_return=_mean([row.episode_return for row in ended]),
                    decision_ms=_mean([row.decision_ms for row in ended]),
                )
            )
    return Report(ordered, tuple(cells))


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns of text: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def form(line: Sequence[str]) -> str:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        return "  ".join(cells).rstrip()

    return "\n".join([form(header), "  ".join("-" * width for width in widths), *map(form, lines)])


def html_page(
    title: str,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    pictures: Mapping[str, bytes] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """One page that needs no other file.

    Args:
        title: of the page.
        tables: caption -> (header, lines).
        pictures: caption -> PNG.
        notes: paragraphs below the tables.
    """
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = f"{machine['time']} · {machine['processor']}, {machine['cores']} cores · {versions}"
    if machine["commit"]:
        where += f" · commit {machine['commit'][:12]}"
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="note">{html.escape(where)}</p>']
    for caption, (header, lines) in tables.items():
        rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
        rows += ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
        parts.append(f"<h2>{html.escape(caption)}</h2><table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    for caption, png in (pictures or {}).items():
        data = base64.b64encode(png).decode()
        parts.append(
            f'<h3>{html.escape(caption)}</h3><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def plain(value: Any) -> Any:
    """JSON values: nan and infinities, which JSON lacks, become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


_HEADER = ["policy", "task", "success %", "n", "errors", "median decisions", "return", "ms/decision"]


def _lines(cells: Iterable[Cell]) -> list[list[str]]:
    return [
        [
            cell.policy,
            cell.task,
            cell.rate.format(0, 100),
            str(cell.successes + cell.failures),
            str(cell.errors),
            _number(cell.median_decisions, 1),
            _number(cell.mean_return, 2),
            _number(cell.decision_ms, 1),
        ]
        for cell in cells
    ]


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _median(values: Sequence[float]) -> float:
    return float(stdlib_statistics.median(values)) if values else math.nan


def _mean(values: Sequence[float]) -> float:
    return float(stdlib_statistics.fmean(values)) if values else math.nan
