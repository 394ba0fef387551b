"""Rates, means, ratios and correlations with their uncertainty. Everything here is seeded and pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    return _score_interval(successes / trials if trials else math.nan, trials, confidence)


def weighted_wilson(
    rates: Sequence[float], trials: Sequence[float], weights: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Wilson's interval of a weighted mean of rates, at Kish's effective number of trials.

    The rates are of separate groups (tasks, columns of a table) with given weights; their mean has the
    effective number of trials ``(sum w)^2 / sum(w^2 / n)`` (Kish, Survey Sampling, 1965). Weights in
    proportion to the trials give `wilson` of the pooled trials. With fixed groups the interval is on the
    safe side, because it counts the spread between groups as chance.

    Args:
        rates: of each group, in [0, 1].
        trials: of each group, positive; an effective number may be a fraction.
        weights: of each group, positive; only their proportions matter.
        confidence: two-sided.
    """
    if any(n <= 0 for n in trials) or any(w <= 0 for w in weights):
        raise ValueError("every group needs trials and a weight; leave groups without trials out")
    if not rates:
        return wilson(0, 0, confidence)
    total = math.fsum(weights)
    value = min(1.0, math.fsum(w * p for w, p in zip(weights, rates, strict=True)) / total)
    return _score_interval(value, effective_trials(trials, weights), confidence)


def effective_trials(trials: Sequence[float], weights: Sequence[float]) -> float:
    """Kish's effective number of trials of a weighted mean over groups; 0 without a group."""
    if not trials:
        return 0.0
    return math.fsum(weights) ** 2 / math.fsum(w * w / n for w, n in zip(weights, trials, strict=True))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p value of the exact McNemar test: do two policies succeed equally often on the same jobs?

    Jobs on which both succeed or both fail say nothing about that. Of the others, each policy wins half
    by chance: twice the smaller tail of Binomial(n, 1/2), at most 1 (McNemar 1947, in its exact form).

    Args:
        only_first: jobs on which only the first one succeeded.
        only_second: jobs on which only the second one did.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts must be >= 0, got {only_first} and {only_second}")
    count = only_first + only_second
    tail, ways = 0, 1
    for k in range(min(only_first, only_second) + 1):
        tail += ways
        ways = ways * (count - k) // (k + 1)
    return min(1.0, 2 * tail / 2**count)  # whole numbers until here: nothing is rounded twice


def paired_difference(only_first: int, only_second: int, pairs: int, confidence: float = 0.95) -> Interval:
    """Difference of two rates of success on the same jobs, first minus second, with Tango's score interval.

    It inverts the score test whose value at no difference is McNemar's statistic, and stays in [-1, 1]
    also with few discordant pairs, where the usual normal interval fails (Tango, Statistics in Medicine
    17, 1998; recommended by Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014).

    Args:
        only_first: jobs on which only the first policy succeeded.
        only_second: jobs on which only the second one did.
        pairs: all jobs that both have played; 0 gives the difference nan.
        confidence: two-sided.
    """
    if min(only_first, only_second) < 0 or only_first + only_second > pairs:
        raise ValueError(f"{only_first} + {only_second} discordant pairs of {pairs}: counts do not fit")
    if pairs == 0:
        return Interval(math.nan, -1.0, 1.0)
    z = _normal_quantile(confidence)

    def statistic(difference: float) -> float:
        """Falls with ``difference``; the interval is where it lies between -z and z."""
        free = 1 - difference
        linear = (2 * pairs - only_first + only_second) * difference - only_first - only_second
        root = math.sqrt(max(0.0, linear * linear + 8 * pairs * only_second * difference * free))
        second = max(0.0, (root - linear) / (4 * pairs))  # the likeliest share of pairs that only the second wins
        variance = pairs * max(0.0, 2 * second + difference * free)
        distance = only_first - only_second - pairs * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    def crossing(level: float) -> float:
        low, high = -1.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if statistic(middle) > level else (low, middle)
        return (low + high) / 2

    value = (only_first - only_second) / pairs
    return Interval(value, min(value, crossing(z)), max(value, crossing(-z)))


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


def _score_interval(rate: float, trials: float, confidence: float) -> Interval:
    z = _normal_quantile(confidence)
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    shrink = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / shrink
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


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
