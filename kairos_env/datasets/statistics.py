"""Statistics of long streams of vectors: read once, in any order, by several workers.

Counts and extremes are exact, mean and standard deviation exact up to float64 rounding. Quantiles are
numpy's while no more than `EXACT_ROWS` rows have come. After that the rows are thinned, and the rank of
each quantile is off by at most ``DatasetStatistics.rank_error`` of all rows: a proven bound, not an estimate
(below 0.0001 for a hundred million rows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kairos_env.records import Array

# The names that LeRobot's stats.json uses.
QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
EXACT_ROWS = 2**17

_MOMENTS = ("min", "max", "mean", "std")


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """Statistics of D scalars over ``count`` rows; every array is float64 (D,).

    Args:
        count: rows; 0 if a file did not say.
        min, max, mean, std: of each scalar; the standard deviation divides by ``count``.
        quantiles: name of `QUANTILES` -> values.
        rank_error: a quantile's true rank is within this fraction of all rows; 0 means exact.
    """

    count: int
    min: Array
    max: Array
    mean: Array
    std: Array
    quantiles: Mapping[str, Array] = field(default_factory=dict)
    rank_error: float = 0.0

    def __len__(self) -> int:
        """The number of scalars D."""
        return len(self.mean)

    def take(self, indices: Sequence[int]) -> DatasetStatistics:
        """The same of some scalars, in this order."""
        at = list(indices)
        moments = {name: getattr(self, name)[at] for name in _MOMENTS}
        return DatasetStatistics(self.count, **moments, quantiles=self._quantiles(at), rank_error=self.rank_error)

    def to_dict(self) -> dict[str, Any]:
        """JSON values under LeRobot's names: ``min, max, mean, std, count`` ([n]), ``q01`` ... ``q99``."""
        values = {name: getattr(self, name).tolist() for name in _MOMENTS} | {"count": [self.count]}
        return values | {name: value.tolist() for name, value in self.quantiles.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetStatistics:
        """Reads `to_dict`'s values; arrays of any shape become flat, quantiles and count may be missing.

        Raises:
            ValueError: something else is missing, is not a number, or the lengths differ.
        """
        try:
            arrays: dict[str, Any] = {name: np.asarray(data[name], np.float64).reshape(-1) for name in _MOMENTS}
            quantiles = {name: np.asarray(data[name], np.float64).reshape(-1) for name in QUANTILES if name in data}
            count = int(np.max(data.get("count", 0)))
        except KeyError as error:
            raise ValueError(f"statistics have no {error.args[0]!r}, only {', '.join(data)}") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"statistics are not numbers: {error}") from None
        lengths = {name: len(value) for name, value in (arrays | quantiles).items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"statistics differ in length: {lengths}")
        wrong = [name for name, value in arrays.items() if not np.isfinite(value).all()]
        if wrong:
            raise ValueError(f"statistics hold a value that is not finite in {', '.join(wrong)}")
        _check_order(arrays)
        return cls(count, **arrays, quantiles=quantiles)

    def _quantiles(self, at: list[int]) -> dict[str, Array]:
        return {name: value[at] for name, value in self.quantiles.items()}


def _check_order(moments: Mapping[str, Array]) -> None:
    """Sees to it that min, mean, max and standard deviation can be of the same rows, up to single precision."""
    low, high, mean, std = (moments[name] for name in ("min", "max", "mean", "std"))
    slack = 1e-4 * (np.abs(low) + np.abs(high)) + 1e-6
    wrong = (low > high) | (mean < low - slack) | (mean > high + slack) | (std < 0) | (std > high - low + slack)
    if wrong.any():
        at = int(np.argmax(wrong))
        values = ", ".join(f"{name} {moments[name][at]:g}" for name in _MOMENTS)
        raise ValueError(f"statistics contradict themselves: scalar {at} has {values}")


def of_all_rows(parts: Sequence[DatasetStatistics]) -> DatasetStatistics:
    """Statistics of the same scalars over the rows of all parts; quantiles of several parts cannot be known."""
    if len(parts) == 1:
        return parts[0]
    counts = np.array([part.count for part in parts], np.float64)[:, None]
    share = counts / counts.sum() if counts.sum() else np.full_like(counts, 1 / len(parts))
    mean = (share * np.stack([part.mean for part in parts])).sum(0)
    square = (share * np.stack([part.std**2 + (part.mean - mean) ** 2 for part in parts])).sum(0)
    low, high = np.stack([part.min for part in parts]).min(0), np.stack([part.max for part in parts]).max(0)
    return DatasetStatistics(int(counts.sum()), low, high, mean, np.sqrt(square))


class RunningStatistics:
    """Takes rows as they come; `result` may be asked at any time.

    Means are merged by the formulas of Chan, Golub and LeVeque (1979). Quantiles come from rows that are
    kept in levels: rows of level h stand for 2^h rows each. A full level is sorted, column by column, and
    every second row moves up (Manku, Rajagopalan and Lindsay 1998), which moves the rank of any value by
    at most 2^h.

    Args:
        exact_rows: rows of a level; up to so many rows in all, quantiles are exact.
    """

    def __init__(self, exact_rows: int = EXACT_ROWS) -> None:
        self._capacity = exact_rows
        self._count = 0
        empty: Array = np.zeros(0)
        self._mean, self._squares, self._min, self._max = empty, empty, empty, empty
        self._levels: list[list[Array]] = [[]]
        self._held = [0]  # rows in each level
        self._thinnings = [0]  # of each level; one moves ranks by at most 2^level

    def update(self, values: Array) -> None:
        """Adds rows (..., D); numbers of any type.

        Raises:
            ValueError: another D than before, or a value that is not finite.
        """
        rows = np.array(values, np.float64)  # a copy: rows are kept
        rows = rows.reshape(-1, rows.shape[-1])
        if self._count and rows.shape[1] != len(self._mean):
            raise ValueError(f"rows have {rows.shape[1]} values, those before had {len(self._mean)}")
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise ValueError(f"scalar {column} of row {self._count + row} is {rows[row, column]}")
        if len(rows) == 0:
            return
        mean = rows.mean(0)
        self._merge_moments(len(rows), mean, np.square(rows - mean).sum(0), rows.min(0), rows.max(0))
        for start in range(0, len(rows), self._capacity):
            self._add(0, rows[start : start + self._capacity])

    def merge(self, other: RunningStatistics) -> None:
        """Adds everything that ``other`` has seen.

        Raises:
            ValueError: another D.
        """
        if other._count == 0:
            return
        if self._count and len(self._mean) != len(other._mean):
            raise ValueError(f"statistics of {len(self._mean)} and of {len(other._mean)} scalars do not merge")
        self._merge_moments(other._count, other._mean, other._squares, other._min, other._max)
        for level, (parts, thinnings) in enumerate(zip(other._levels, other._thinnings, strict=True)):
            self._reach(level)
            self._thinnings[level] += thinnings
            for part in parts:
                self._add(level, part)

    def result(self) -> DatasetStatistics:
        """Raises ValueError if no row has come."""
        if self._count == 0:
            raise ValueError("there are no statistics of nothing: no row has come")
        std = np.sqrt(self._squares / self._count)
        quantiles, error = self._read_quantiles()
        return DatasetStatistics(self._count, self._min, self._max, self._mean, std, quantiles, error)

    def _merge_moments(self, count: int, mean: Array, squares: Array, low: Array, high: Array) -> None:
        if self._count == 0:
            self._count, self._mean, self._squares, self._min, self._max = count, mean, squares, low, high
            return
        both = self._count + count
        step = mean - self._mean
        self._squares = self._squares + squares + np.square(step) * (self._count / both * count)
        self._mean = self._mean + step * (count / both)
        self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)
        self._count = both

    def _reach(self, level: int) -> None:
        while level >= len(self._levels):
            self._levels.append([])
            self._held.append(0)
            self._thinnings.append(0)

    def _add(self, level: int, rows: Array) -> None:
        self._reach(level)
        self._levels[level].append(rows)
        self._held[level] += len(rows)
        if self._held[level] <= self._capacity:
            return
        merged = np.sort(np.concatenate(self._levels[level]), axis=0)
        even = len(merged) // 2 * 2
        # The lower and the upper one of each pair in turn, so that errors of one sign do not add up.
        upper = self._thinnings[level] % 2
        self._levels[level] = [merged[even:]] if even < len(merged) else []
        self._held[level] = len(merged) - even
        self._thinnings[level] += 1
        self._add(level + 1, merged[upper:even:2])

    def _read_quantiles(self) -> tuple[dict[str, Array], float]:
        kept = [(np.concatenate(parts), 2**level) for level, parts in enumerate(self._levels) if parts]
        moved = sum(times << level for level, times in enumerate(self._thinnings))
        if moved == 0:
            rows = kept[0][0]
            return {name: np.quantile(rows, q, axis=0) for name, q in QUANTILES.items()}, 0.0
        rows = np.concatenate([part for part, _ in kept])
        weights = np.concatenate([np.full(len(part), weight, np.int64) for part, weight in kept])
        order = np.argsort(rows, axis=0, kind="stable")
        ranks = np.cumsum(weights[order], axis=0)
        columns = np.arange(rows.shape[1])
        quantiles = {}
        for name, q in QUANTILES.items():
            # the first value that has at least the wanted share of the rows up to it
            at = (ranks < q * self._count).sum(0)
            quantiles[name] = rows[order[at, columns], columns]
        return quantiles, (moved + kept[-1][1]) / self._count
