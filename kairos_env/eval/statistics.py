"""Rates, means, ratios and correlations with their uncertainty. Everything here is seeded and pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kairos_env.records import Array


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; ``nan`` where there was nothing to estimate from."""

    value: float
    low: float
    high: float

    def format(self, digits: int = 2, scale: float = 1.0) -> str:
        """For example ``"0.84 [0.71, 0.92]"``; ``scale`` 100 turns rates into per cent."""
        if math.isnan(self.value):
            return "–"
        value, low, high = (f"{x * scale:.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return self.format()


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate. Unlike the normal one it stays in [0, 1] and is honest at 0 and 1.

    Args:
        successes: how many of the trials succeeded.
        trials: 0 gives the rate nan and the interval [0, 1].
        confidence: two-sided.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be in 0..trials, got {successes} of {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    shrink = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / shrink
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap(
    statistic: Callable[..., Array],
    *samples: Array,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over episodes, which all ``samples`` share and are resampled along together.

    Args:
        statistic: takes arrays (resamples, n) and returns (resamples,); all resamples at once, because a
            report holds hundreds of intervals. A nan (a degenerate resample) is left out.
        *samples: arrays (n,); element i of each belongs to the same episode.
        resamples: how many resamples.
        confidence: two-sided.
        seed: of the resampling; the same seed gives the same interval.
    """
    arrays = [np.asarray(s, np.float64) for s in samples]
    lengths = {len(a) for a in arrays}
    if len(lengths) != 1:
        raise ValueError(f"samples are resampled together and need one length, got {sorted(lengths)}")
    (count,) = lengths
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    value = float(statistic(*(a[None] for a in arrays))[0])
    picks = np.random.default_rng(seed).integers(0, count, (resamples, count))
    return Interval(value, *_percentiles(statistic(*(a[picks] for a in arrays)), confidence))


def mean(values: Array, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrapped mean of the finite ones of (n,) values: one value an episode."""
    array = np.asarray(values, np.float64)
    return bootstrap(lambda x: x.mean(1), array[np.isfinite(array)], confidence=confidence, seed=seed)


def ratio(numerator: Array, denominator: Array, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Ratio of two means over the same episodes, bootstrapped over episodes: ``mean(a) / mean(b)``.

    Args:
        numerator: (n,), one value an episode.
        denominator: (n,), of the same episodes.
        confidence: two-sided.
        seed: of the resampling.
    """
    a, b = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    both = np.isfinite(a) & np.isfinite(b)

    def statistic(x: Array, y: Array) -> Array:
        below = y.mean(1)
        return np.divide(x.mean(1), below, out=np.full(len(x), math.nan), where=below > 0)

    return bootstrap(statistic, a[both], b[both], confidence=confidence, seed=seed)


def pearson(x: Array, y: Array) -> float:
    """Pearson's r of two (n,) arrays; nan if one of them is constant or n < 2."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if len(a) > 1 and size > 1e-12 else math.nan


def spearman(x: Array, y: Array) -> float:
    """Spearman's rank correlation of two (n,) arrays: Pearson's r of the ranks, ties sharing their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def paired_pearson(x: Array, y: Array, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Pearson's r over policies of their mean outcomes, with both sources of chance in its interval.

    A resample draws policies with replacement and, inside each, episodes with replacement (an episode
    keeps its pair of outcomes, because both started from the same state).

    Args:
        x: (policies, episodes), for example imagined success 0 or 1; nan marks a missing episode.
        y: (policies, episodes), real success of the same starts.
        resamples: how many resamples.
        confidence: two-sided.
        seed: of the resampling.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two arrays of one shape (policies, episodes), got {a.shape} and {b.shape}")
    pairs = [np.stack([p, q], 1)[np.isfinite(p) & np.isfinite(q)] for p, q in zip(a, b, strict=True)]
    pairs = [p for p in pairs if len(p)]
    if len(pairs) < 2:
        return Interval(math.nan, math.nan, math.nan)
    means = np.array([p.mean(0) for p in pairs])
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(pairs), len(pairs))
        drawn = np.array([pairs[i][generator.integers(0, len(pairs[i]), len(pairs[i]))].mean(0) for i in chosen])
        values.append(pearson(drawn[:, 0], drawn[:, 1]))
    return Interval(pearson(means[:, 0], means[:, 1]), *_percentiles(np.array(values), confidence))


def _percentiles(values: Array, confidence: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse].astype(np.float64)
