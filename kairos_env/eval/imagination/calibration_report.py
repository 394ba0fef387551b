"""Results of a calibration: expected beside true errors and success, rank correlations, horizons, tables and page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.eval.report.chart import Chart, Curve
from kairos_env.eval.report.page import Section, machine_note, render_page, text_of
from kairos_env.eval.report.text import number, plain
from kairos_env.eval.statistics import Interval, bootstrap, spearman
from kairos_env.records import Array
from kairos_env.runs import describe_machine, write_text

IN_STD = ("proprio", "picture")  # errors in standard deviations; the others are in metres
BINS = 10
LEAST = 8  # values of which a rank correlation within one decision is taken
RESAMPLES = 200


@dataclass(frozen=True)
class Forecasts:
    """What was imagined of N recorded episodes in H decisions, beside what happened; nan beyond an episode's end.

    Args:
        names: of the E errors: hand (``"proprio"``, where that has no position of a hand), objects, picture.
        tasks: of the episodes.
        expected: (N, H, E) root mean squared errors; nan where the model expects none.
        true: (N, H, E) errors.
        uncertainty: (N, H) as environments tell it.
        success: (N, H) imagined probabilities.
        solved: (N, H) whether the task was solved; nan where nobody recorded it.
        strangeness: (N,) of the first observations, see `Familiarity`.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    expected: Array
    true: Array
    uncertainty: Array
    success: Array
    solved: Array
    strangeness: Array

    @property
    def position_error(self) -> Array:
        """(N, H) the largest true error of hand and objects."""
        places = [i for i, name in enumerate(self.names) if name not in IN_STD]
        return np.fmax.reduce(self.true[..., places], axis=-1, initial=math.nan)

    def judged(self, metric: bool) -> Array:
        """(N, H) what `uncertainty` is about: positions, or the picture where the model expects no others."""
        return self.position_error if metric else np.asarray(self.true[..., -1])


@dataclass(frozen=True)
class CalibrationReport:
    """Forecasts, and what they come to.

    Args:
        ends: last decisions of the ranges that the tables tell apart.
        forecasts: condition -> of the same starts; "" is the simulator's usual one, or the given data.
        horizons: task -> decisions up to which imagination may be believed.
        metric: whether the uncertainty is an error of positions.
    """

    ends: tuple[int, ...]
    forecasts: Mapping[str, Forecasts]
    horizons: Mapping[str, int]
    metric: bool

    @property
    def usual(self) -> Forecasts:
        return self.forecasts[""]

    def ranges(self) -> Iterator[tuple[str, slice]]:
        """Names and decisions of the ranges."""
        start = 0
        for end in self.ends:
            yield (f"{start + 1}-{end}" if end > start + 1 else str(end)), slice(start, end)
            start = end

    def errors(self, name: str, part: slice, forecasts: Forecasts | None = None) -> tuple[float, float]:
        """Root mean squares of the true and the expected errors of that name."""
        found = forecasts or self.usual
        column = found.names.index(name)
        return tuple(_rms(x[:, part, column]) for x in (found.true, found.expected))  # type: ignore[return-value]

    def success_error(self, part: slice, forecasts: Forecasts | None = None) -> float:
        """Expected calibration error of success."""
        found = forecasts or self.usual
        return calibration_error(*_pairs(found.success[:, part], found.solved[:, part]))

    def rank(self, forecasts: Forecasts) -> dict[str, Interval]:
        """Rank correlations with the true error: of the uncertainty and of the decision's number, 95 % intervals."""
        true, told = forecasts.judged(self.metric), forecasts.uncertainty
        clock = np.broadcast_to(np.arange(true.shape[1], dtype=np.float64), true.shape)
        return {
            "uncertainty, all decisions": _over_episodes(lambda rows: spearman(*_pairs(told[rows], true[rows])), true),
            "number of the decision alone": _over_episodes(
                lambda rows: spearman(*_pairs(clock[rows], true[rows])), true
            ),
            "uncertainty, within a decision": _over_episodes(lambda rows: _within(told[rows], true[rows]), true),
        }

    def sections(self) -> list[Section]:
        """Tables and charts."""
        return [
            self._errors(),
            self._reliability(),
            self._success(),
            self._ranks(),
            self._conditions(),
            self._horizons(),
        ]

    def table(self) -> str:
        """Everything as aligned text."""
        return text_of(self.sections())

    def _errors(self) -> Section:
        lines, curves = [], []
        for colour, name in enumerate(self.usual.names):
            scale, what = in_unit(name)
            found = [[scale * x for x in self.errors(name, part)] for _, part in self.ranges()]
            for kind, values in zip(("true", "expected"), zip(*found, strict=True), strict=True):
                lines.append([f"{name}, {what}, {kind}", *(number(value, 2) for value in values)])
            for kind, errors in (("true", self.usual.true), ("expected", self.usual.expected)):
                points = [(t + 1.0, scale * _rms(errors[:, t, colour])) for t in range(errors.shape[1])]
                curves.append(Curve(f"{name} {kind}", points, kind == "expected", colour))
        chart = Chart("root mean squared errors (cm; picture in standard deviations)", curves, "decision", True)
        notes = [f"{len(self.usual.tasks)} held-out episodes, imagined from their first frames under their actions."]
        header = ["errors, by decision", *(name for name, _ in self.ranges())]
        return Section("Expected and true errors", 2, header, lines, notes=notes, charts=[chart])

    def _reliability(self) -> Section:
        lines, charts = [], []
        for name in self.usual.names:
            column = self.usual.names.index(name)
            expected, true = _pairs(self.usual.expected[..., column], self.usual.true[..., column])
            points = error_bins(expected, true)
            if not points:
                continue
            scale, unit = in_unit(name)
            cells = [f"{scale * e:.2f} → {scale * t:.2f}" for e, t in points]
            lines.append([f"{name}, {unit}", *cells, *["–"] * (5 - len(cells))])
            diagonal = [(scale * e, scale * e) for e, _ in points]
            curve = Curve("true", [(scale * e, scale * t) for e, t in points])
            charts.append(Chart(name, [curve, Curve("as expected", diagonal, True, 5)], "expected error"))
        header = ["expected → true, by fifths of the expected error", "1st", "2nd", "3rd", "4th", "5th"]
        return Section("Reliability of the expected errors", 2, header, lines, charts=charts)

    def _success(self) -> Section:
        curves, lines = [Curve("as expected", [(0, 0), (1, 1)], True, 5)], []
        cells: dict[str, list[str]] = {"ECE": [], "solved": [], "expected": [], "values": []}
        for colour, (name, part) in enumerate(self.ranges()):
            p, y = _pairs(self.usual.success[:, part], self.usual.solved[:, part])
            for key, value in zip(cells, (calibration_error(p, y), _mean(y), _mean(p)), strict=False):
                cells[key].append(number(value, 3))
            cells["values"].append(str(len(p)))
            curves.append(Curve(f"decisions {name}", [(b, s) for b, s, _ in success_bins(p, y)], False, colour))
        lines = [[key, *values] for key, values in cells.items()]
        header = ["success, by decision", *(name for name, _ in self.ranges())]
        chart = Chart("solved, by expected probability", curves, "expected probability")
        note = f"ECE: mean distance of expected and true share over {BINS} bins of the probability, by their weight."
        return Section("Success", 2, header, lines, notes=[note], charts=[chart])

    def _ranks(self) -> Section:
        found = {_named(condition): self.rank(f) for condition, f in self.forecasts.items()}
        rows = [[what, *(ranks[what].format() for ranks in found.values())] for what in next(iter(found.values()))]
        if len(self.forecasts) > 1:
            pooled = self._pooled()
            rows.append(["uncertainty, all decisions and conditions", pooled.format(), *["–"] * (len(found) - 1)])
        about = "the larger of the errors of hand and objects" if self.metric else "the error of the picture"
        return Section("Rank correlation with the true error", 2, ["", *found], rows, notes=[f"True error: {about}."])

    def _pooled(self) -> Interval:
        told = np.concatenate([f.uncertainty for f in self.forecasts.values()])
        true = np.concatenate([f.judged(self.metric) for f in self.forecasts.values()])
        return _over_episodes(lambda rows: spearman(*_pairs(told[rows], true[rows])), true)

    def _conditions(self) -> Section:
        lines = []
        for condition, f in self.forecasts.items():
            true, told = f.judged(self.metric), f.uncertainty
            familiar = _mean(1 / f.strangeness)
            lines.append([_named(condition), *(number(x, 3) for x in (familiar, _rms(told), _rms(true)))])
        unit = "m" if self.metric else "std"
        header = ["", "familiarity of the start", f"uncertainty, {unit}", f"true error, {unit}"]
        return Section("Unlike the training data", 2, header, lines)

    def _horizons(self) -> Section:
        if not self.horizons:
            return Section("Horizon of trust", 2, notes=["Too few episodes of each task, or no position of the hand."])
        most = self.usual.true.shape[1]
        lines = []
        for task, count in self.horizons.items():
            rows = [i for i, name in enumerate(self.usual.tasks) if name == task]
            median = 100 * np.nanmedian(self.usual.position_error[rows], 0)
            reached = f"{count} or more" if count == most else str(count)
            lines.append([task, str(len(rows)), reached, *(number(float(median[end - 1]), 1) for end in self.ends)])
        header = ["task", "episodes", "decisions", *(f"cm at {end}" for end in self.ends)]
        note = (
            "Imagination may be believed up to the last decision up to which the larger of the errors of hand and "
            "objects is below 3 cm in half of the episodes; beside it the medians."
        )
        return Section("Horizon of trust", 2, header, lines, notes=[note])

    def to_dict(self) -> dict[str, Any]:
        """JSON values: every figure of the tables, and every episode's values."""
        ranges = dict(self.ranges())
        errors = {name: {r: self.errors(name, part) for r, part in ranges.items()} for name in self.usual.names}
        bins = {
            name: error_bins(*_pairs(self.usual.expected[..., i], self.usual.true[..., i]))
            for i, name in enumerate(self.usual.names)
        }
        ranks = {
            _named(c): {what: vars(interval) for what, interval in self.rank(f).items()}
            for c, f in self.forecasts.items()
        }
        return {
            "trust_horizon": dict(self.horizons),
            "units": {name: in_unit(name) for name in self.usual.names},  # of the tables; the values are in m and std
            "errors": {
                name: {r: dict(zip(("true", "expected"), v)) for r, v in e.items()} for name, e in errors.items()
            },
            "reliability": bins,
            "success_ece": {r: self.success_error(part) for r, part in ranges.items()},
            "rank_correlation": ranks | ({"pooled": vars(self._pooled())} if len(self.forecasts) > 1 else {}),
            "forecasts": {_named(c): _listed(f) for c, f in self.forecasts.items()},
        }

    def save(self, folder: str | Path) -> None:
        """Writes ``calibration.json`` and ``report.html``."""
        folder, machine = Path(folder), describe_machine()
        values = plain(self.to_dict() | {"machine": machine})
        write_text(folder / "calibration.json", json.dumps(values) + "\n")
        write_text(folder / "report.html", render_page("Calibration", self.sections(), machine_note(machine)))


def in_unit(name: str) -> tuple[float, str]:
    """Factor and unit in which tables show an error."""
    return (1.0, "std") if name in IN_STD else (100.0, "cm")


def calibration_error(probability: Array, outcome: Array) -> float:
    """Expected calibration error of probabilities (n,) of outcomes (n,) that are 0 or 1; nan of none."""
    bins = success_bins(probability, outcome)
    total = sum(count for _, _, count in bins)
    return sum(count * abs(p - y) for p, y, count in bins) / total if total else math.nan


def success_bins(probability: Array, outcome: Array) -> list[tuple[float, float, int]]:
    """Mean probability, share of outcomes and number of values in each of `BINS` equal bins that has any."""
    which = np.minimum((np.asarray(probability) * BINS).astype(int), BINS - 1)
    inside = [which == number for number in range(BINS)]
    return [(float(probability[i].mean()), float(outcome[i].mean()), int(i.sum())) for i in inside if i.any()]


def error_bins(expected: Array, true: Array, bins: int = 5) -> list[tuple[float, float]]:
    """Root mean squares of expected and true errors (n,) in groups of equal number, by rising expected error."""
    order = np.argsort(expected, kind="stable")
    return [(_rms(expected[part]), _rms(true[part])) for part in np.array_split(order, bins) if len(part)]


def _within(told: Array, true: Array) -> float:
    """Mean over decisions of the rank correlation over episodes."""
    found = [spearman(*_pairs(told[:, t], true[:, t])) for t in range(true.shape[1])]
    enough = [np.isfinite(true[:, t]).sum() >= LEAST for t in range(true.shape[1])]
    return _mean(np.array([r for r, known in zip(found, enough, strict=True) if known]))


def _over_episodes(statistic: Callable[[Array], float], values: Array) -> Interval:
    """A statistic of rows, resampled over episodes."""
    rows = np.arange(len(values), dtype=np.float64)
    return bootstrap(lambda picks: np.array([statistic(p.astype(int)) for p in picks]), rows, resamples=RESAMPLES)


def _pairs(one: Array, other: Array) -> tuple[Array, Array]:
    """Both, flat, where both are known."""
    known = np.isfinite(one) & np.isfinite(other)
    return np.asarray(one)[known], np.asarray(other)[known]


def _rms(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.square(known).mean())) if len(known) else math.nan


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _named(condition: str) -> str:
    return condition or "usual"


def _listed(forecasts: Forecasts) -> dict[str, Any]:
    values: dict[str, Any] = {"names": list(forecasts.names), "tasks": list(forecasts.tasks)}
    columns: Sequence[str] = ("expected", "true", "uncertainty", "success", "solved", "strangeness")
    return values | {name: np.round(getattr(forecasts, name), 5).tolist() for name in columns}
