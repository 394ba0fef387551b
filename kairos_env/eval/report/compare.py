"""Two runs on the same jobs: which one succeeds more often, by how much, and could that be chance?

Pairs of outcomes on the same task, condition, initial state and seed tell more than two tables: what is hard for both
cancels.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kairos_env.eval.report.benchmark_table import SETTINGS, is_ours
from kairos_env.eval.report.text import format_table, plain
from kairos_env.eval.rows import Row, read_runs, unique_rows
from kairos_env.eval.statistics import Interval, mcnemar, paired_difference
from kairos_env.sims.libero.tasks import EVERY_DIMENSION, PRO_SUITES, SUITES


@dataclass(frozen=True)
class Pairing:
    """Two policies on the same jobs.

    Args:
        both: jobs on which both succeeded.
        only_first: only the first one.
        only_second: only the second one.
        neither: none of them.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def pairs(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def rates(self) -> tuple[float, float]:
        """Success of the first and of the second; nan without a pair."""
        if not self.pairs:
            return math.nan, math.nan
        return (self.both + self.only_first) / self.pairs, (self.both + self.only_second) / self.pairs

    @property
    def difference(self) -> Interval:
        """First minus second, with Tango's 95 % interval."""
        return paired_difference(self.only_first, self.only_second, self.pairs)

    @property
    def p_value(self) -> float:
        """Of the exact McNemar test."""
        return mcnemar(self.only_first, self.only_second)


@dataclass(frozen=True)
class Comparison:
    """Two runs on the jobs (task, initial state, seed) that both have a result of.

    Args:
        first: policy of the first run.
        second: of the second.
        groups: ``"total"``, then those that have pairs of a benchmark's dimensions and suites or of another simulator's
            tasks, then ``"scenes of ours"`` if there are any: these are in no other group.
        unpaired: jobs that have a result in one run only, of the first and of the second.
        settings: those in which the runs differ: name -> values of the first and of the second.
    """

    first: str
    second: str
    groups: Mapping[str, Pairing]
    unpaired: tuple[int, int]
    settings: Mapping[str, tuple[str, str]]


def compare(first: Iterable[Row], second: Iterable[Row]) -> Comparison:
    """Compares two runs of one policy each.

    Raises:
        ValueError: a run has no row, or of several policies; or they have no job in common.
    """
    sides = [unique_rows(first), unique_rows(second)]
    names = []
    for which, option, rows in zip(("first", "second"), ("--policy-a", "--policy-b"), sides, strict=True):
        policies = sorted({row.job.policy for row in rows})
        if len(policies) != 1:
            listed = f"policies {', '.join(policies)}; say which one with {option}" if policies else "no results"
            raise ValueError(f"the {which} run has {listed}")
        names.append(policies[0])
    ended = [{_place(row): row for row in rows if row.status != "error"} for rows in sides]
    common = sorted(ended[0].keys() & ended[1].keys())
    if not common:
        examples = " and ".join(str(min(side)) if side else "nothing" for side in ended)
        raise ValueError(f"the runs have no job in common that ended in both; they hold, for example, {examples}")
    counts: dict[str, Counter[tuple[bool, bool]]] = {}
    for place in common:
        row = ended[0][place]
        outcome = (row.status == "success", ended[1][place].status == "success")
        for group in _groups(row):
            counts.setdefault(group, Counter())[outcome] += 1
    tasks = sorted({_task(row) for row in ended[0].values()})
    order = ["total", *EVERY_DIMENSION, *SUITES, *PRO_SUITES, *tasks, "scenes of ours"]
    pairings = {
        group: Pairing(count[True, True], count[True, False], count[False, True], count[False, False])
        for group, count in sorted(counts.items(), key=lambda item: order.index(item[0]))
    }
    settings = {}
    for name in SETTINGS:
        values = [", ".join(sorted({str(side[p].extra.get(name, "not recorded")) for p in common})) for side in ended]
        if values[0] != values[1]:
            settings[name] = (values[0], values[1])
    unpaired = (len(ended[0]) - len(common), len(ended[1]) - len(common))
    return Comparison(names[0], names[1], pairings, unpaired, settings)


def _groups(row: Row) -> list[str]:
    """What a job counts in: of a benchmark its dimension and suite, else its task and condition."""
    if is_ours(row):
        return ["scenes of ours"]
    if "dimension" in row.extra:
        return ["total", *filter(None, [row.extra["dimension"]]), row.job.task.split("/", 2)[1]]
    return ["total", _task(row)]


def _task(row: Row) -> str:
    return f"{row.job.task}, {row.job.condition}" if row.job.condition else row.job.task


def _place(row: Row) -> tuple[str, str, str, int, int, bool]:
    job = row.job
    return job.simulator, job.task, job.condition, job.initial_state, job.seed, is_ours(row)


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


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
