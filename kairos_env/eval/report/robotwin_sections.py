"""RoboTwin's tables: each policy on each task, the mean over tasks, how it was run, and others' results beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kairos_env.eval.report.page import Section, bar
from kairos_env.eval.report.published_results import published_results
from kairos_env.eval.report.task_rates import TaskRate, task_rates
from kairos_env.eval.report.text import number
from kairos_env.eval.rows import Row
from kairos_env.eval.statistics import Interval, weighted_wilson

TASKS, EPISODES = 50, 100  # of the whole benchmark, and of each task
_PROTOCOLS = {
    "A": "protocol A: trained on 50 clean demonstrations of the one task",
    "B": "protocol B: trained on all tasks together, clean and randomised",
}
_SETTINGS = ("protocol", "config", "wording", "rendering", "assets", "expert_check")


def is_of_robotwin(row: Row) -> bool:
    """The row is of `kairos eval robotwin`."""
    return "expert_check" in row.extra


def robotwin_sections(rows: Sequence[Row]) -> list[Section]:
    """A table for each policy and way of running it; none without rows."""
    sections = []
    for (policy, settings), mine in _runs(rows).items():
        cells = task_rates(mine)
        left_out = {row.job.task: row.extra.get("seeds_left_out", {}) for row in mine}
        lines = [
            [
                cell.task,
                bar(cell.rate),
                cell.rate.format(0, 100),
                str(cell.trials),
                str(cell.errors),
                ", ".join(f"{count} {why}" for why, count in left_out[cell.task].items()) or "none",
                number(cell.median_decisions),
            ]
            for cell in cells
        ]
        mean = macro_mean(cells)
        lines.append(["mean over tasks", bar(mean), mean.format(1, 100), "", "", "", ""])
        header = ["task", "", "success %", "episodes", "errors", "seeds left out", "median decisions"]
        known = dict(zip(_SETTINGS, settings, strict=True))
        title = f"RoboTwin 2.0, {policy}: {_PROTOCOLS.get(known['protocol'], 'no protocol')}, {known['config']}"
        notes = [
            f"instructions: {known['wording']}; rendering: {known['rendering']}; assets: {known['assets']}; seeds "
            f"{'checked' if known['expert_check'] == 'True' else 'not checked'} by the expert.",
            f"No official result: {'; '.join(reasons)}."
            if (reasons := _not_official(known, cells))
            else "As RoboTwin evaluates.",
            "95 % intervals (Wilson's; of the mean at the effective number of trials). Errors are no failures and are "
            "in no rate.",
        ]
        sections.append(Section(title, 2, header=header, lines=lines, bold=[len(lines) - 1], notes=notes))
    return sections


def published_beside(rows: Sequence[Row]) -> list[Section]:
    """RoboTwin's results beside what others published, from the highest average down, with the sources."""
    if not rows:
        return []
    lines = []
    for (policy, settings), mine in _runs(rows).items():
        known, cells = dict(zip(_SETTINGS, settings, strict=True)), task_rates(mine)
        rate = number(macro_mean(cells).value * 100)
        tasks = sum(cell.trials > 0 for cell in cells)
        columns = ["–" if known["config"] != name else rate for name in ("clean", "randomized")]
        lines.append([f"{policy} (here), {tasks} of {TASKS} tasks", known["protocol"], *columns, "–"])
    here, sources = range(len(lines)), {}
    for result in published_results("robotwin")[::-1]:
        sources[result.source] = result.url
        columns = [number(result.values.get(name, math.nan)) for name in ("clean", "randomized")]
        note = f", {result.note}" if result.note else ""
        lines.append([f"{result.method}{note}", result.training, *columns, number(result.total)])
    notes = [f"{source}, {url}" for source, url in sources.items()]
    notes.append("Means over all 50 tasks; an empty protocol means that the source does not tell.")
    header = ["method", "protocol", "clean", "randomized", "average"]
    return [Section("RoboTwin 2.0, success %", 2, header=header, lines=lines, bold=here, notes=notes)]


def macro_mean(cells: Sequence[TaskRate]) -> Interval:
    """The mean of the tasks' rates, each of the same weight; tasks without an episode are not in it."""
    begun = [cell for cell in cells if cell.trials]
    return weighted_wilson([c.rate.value for c in begun], [c.trials for c in begun], [1.0] * len(begun))


def _runs(rows: Sequence[Row]) -> dict[tuple[str, tuple[str, ...]], list[Row]]:
    """(policy, values of the settings) -> rows."""
    found: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.job):
        settings = tuple(str(row.extra.get(name, "")) for name in _SETTINGS)
        found.setdefault((row.job.policy, settings), []).append(row)
    return found


def _not_official(known: dict[str, str], cells: Sequence[TaskRate]) -> list[str]:
    fewest = min(cell.trials for cell in cells)
    wrong = {
        f"the assets are {known['assets']}": known["assets"] != "published",
        f"rendering is {known['rendering']}": known["rendering"] != "official",
        f"{len(cells)} of {TASKS} tasks": len(cells) != TASKS,
        f"{fewest} episodes of a task, not {EPISODES}": fewest != EPISODES,
        "seeds are not checked by the expert": known["expert_check"] != "True",
        "no protocol says what the policy was trained on": known["protocol"] not in _PROTOCOLS,
    }
    return [reason for reason, holds in wrong.items() if holds]
