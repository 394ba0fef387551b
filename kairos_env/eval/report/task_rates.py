"""Success of policies on the tasks of a simulator: one cell for each policy and task, with its interval."""

from __future__ import annotations

import math
import statistics as stdlib_statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kairos_env.eval.report.page import Cell, bar
from kairos_env.eval.report.text import number
from kairos_env.eval.rows import Row
from kairos_env.eval.statistics import Interval, wilson


@dataclass(frozen=True)
class TaskRate:
    """One policy on one task.

    Args:
        rate: of success, among the episodes that ran to their end; Wilson's 95 % interval.
        errors: jobs that crashed or timed out. They are in neither number of the rate.
        median_decisions: of the successes; nan without one.
        mean_return: of successes and failures.
        decision_ms: mean time of a decision.
    """

    simulator: str
    policy: str
    task: str
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


HEADER = ["policy", "task", "", "success %", "n", "errors", "median decisions", "return"]


def task_rates(rows: Iterable[Row]) -> list[TaskRate]:
    """The cells of some rows, by simulator, policy and task."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.job.simulator, row.job.policy, row.job.task), []).append(row)
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


def rate_lines(cells: Iterable[TaskRate]) -> list[list[Cell]]:
    """The columns of `HEADER`."""
    return [
        [
            cell.policy,
            cell.task,
            bar(cell.rate),
            cell.rate.format(0, 100),
            str(cell.trials),
            str(cell.errors),
            number(cell.median_decisions),
            number(cell.mean_return, 2),
        ]
        for cell in cells
    ]


def _mean(values: Sequence[float]) -> float:
    return stdlib_statistics.fmean(values) if values else math.nan
