"""Success of policies on the tasks of a simulator: one cell for each policy, task and condition, with its interval."""

from __future__ import annotations

import math
import statistics as stdlib_statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kairos_env.eval.report.page import Cell, bar
from kairos_env.eval.report.text import number
from kairos_env.eval.rows import Row
from kairos_env.eval.statistics import Interval, wilson


@dataclass(frozen=True)
class TaskRate:
    """One policy on one task.

    Args:
        condition: of the simulator; "" for its usual one.
        rate: of success, among the episodes that ran to their end; Wilson's 95 % interval.
        errors: jobs that crashed or timed out. They are in neither number of the rate.
        median_decisions: of the successes; nan without one.
        mean_return: of successes and failures.
        decision_ms: mean time of a decision.
    """

    simulator: str
    policy: str
    task: str
    condition: str
    successes: int
    failures: int
    errors: int
    rate: Interval
    median_decisions: float
    mean_return: float
    decision_ms: float

    @property
    def trials(self) -> int:
        """Episodes that ran to their end."""
        return self.successes + self.failures


def task_rates(rows: Iterable[Row]) -> list[TaskRate]:
    """The cells of some rows, by simulator, policy, task and condition."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        job = row.job
        groups.setdefault((job.simulator, job.policy, job.task, job.condition), []).append(row)
    cells = []
    for key, mine in sorted(groups.items()):
        won = [row for row in mine if row.status == "success"]
        ended = [row for row in mine if row.status != "error"]
        cells.append(
            TaskRate(
                *key,
                successes=len(won),
                failures=len(ended) - len(won),
                errors=len(mine) - len(ended),
                rate=wilson(len(won), len(ended)),
                median_decisions=stdlib_statistics.median([row.decisions for row in won]) if won else math.nan,
                mean_return=_mean([row.episode_return for row in ended]),
                decision_ms=_mean([row.decision_ms for row in ended]),
            )
        )
    return cells


def rate_table(cells: Sequence[TaskRate]) -> tuple[list[str], list[list[Cell]]]:
    """Header and lines of a table of cells; conditions are a column where there are some."""
    columns: dict[str, Callable[[TaskRate], Cell]] = {
        "policy": lambda cell: cell.policy,
        "task": lambda cell: cell.task,
        "condition": lambda cell: cell.condition or "usual",
        "": lambda cell: bar(cell.rate),
        "success %": lambda cell: cell.rate.format(0, 100),
        "n": lambda cell: str(cell.trials),
        "errors": lambda cell: str(cell.errors),
        "median decisions": lambda cell: number(cell.median_decisions),
        "return": lambda cell: number(cell.mean_return, 2),
    }
    if not any(cell.condition for cell in cells):
        del columns["condition"]
    return list(columns), [[column(cell) for column in columns.values()] for cell in cells]


def _mean(values: Sequence[float]) -> float:
    return stdlib_statistics.fmean(values) if values else math.nan
