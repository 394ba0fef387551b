from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from kairos_env.eval.statistics import (
    Interval,
    bootstrap,
    effective_trials,
    mcnemar,
    mean,
    paired_difference,
    paired_pearson,
    pearson,
    ratio,
    spearman,
    weighted_wilson,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_agrees_with_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert interval.value == successes / trials
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_of_nothing_says_nothing() -> None:
    interval = wilson(0, 0)
    assert math.isnan(interval.value) and (interval.low, interval.high) == (0, 1)
    assert str(interval) == "–"
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_wilson_covers_the_true_rate() -> None:
    counts = np.random.default_rng(0).binomial(50, 0.9, 2000)
    covered = np.mean([wilson(int(k), 50).low <= 0.9 <= wilson(int(k), 50).high for k in counts])
    assert 0.92 <= covered <= 0.98


def test_weighted_wilson_is_wilson_where_weights_follow_the_trials() -> None:
    assert weighted_wilson([0.5, 0.75, 1.0], [4, 8, 2], [4, 8, 2]) == wilson(10, 14)
    assert effective_trials([4, 8, 2], [4, 8, 2]) == 14
    # a rare group that counts as much as a frequent one leaves 4 / (1/2 + 1/50) trials of the 52
    assert effective_trials([2, 50], [1, 1]) == pytest.approx(4 / (1 / 2 + 1 / 50))
    interval = weighted_wilson([1.0, 0.5], [2, 50], [1, 1])
    assert interval.value == 0.75 and interval.low < wilson(39, 52).low
    assert weighted_wilson([], [], []).low == 0 and math.isnan(weighted_wilson([], [], []).value)
    with pytest.raises(ValueError, match="leave groups without trials out"):
        weighted_wilson([0.5], [0], [1])


def test_weighted_wilson_covers_the_true_mean() -> None:
    generator = np.random.default_rng(0)
    rates, trials, weights = np.array([0.95, 0.6, 0.2]), np.array([10, 40, 20]), np.array([0.5, 0.2, 0.3])
    drawn = generator.binomial(trials, rates, (2000, 3)) / trials
    intervals = [weighted_wilson(list(row), list(trials), list(weights)) for row in drawn]
    covered = np.mean([i.low <= rates @ weights <= i.high for i in intervals])
    assert covered >= 0.94, "on the safe side"


@pytest.mark.parametrize("first", [0, 1, 3, 10, 40])
@pytest.mark.parametrize("second", [0, 2, 10, 33])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    # independently: every outcome of fair coins that is no likelier than the one observed
    n = first + second
    chance = [Fraction(math.factorial(n), math.factorial(k) * math.factorial(n - k) * 2**n) for k in range(n + 1)]
    expected = sum(p for p in chance if p <= chance[first])
    assert mcnemar(first, second) == pytest.approx(float(expected), rel=1e-12)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_of_thousands() -> None:
    assert mcnemar(5000, 5000) == 1
    assert 0 < mcnemar(4000, 5000) < 1e-24
    with pytest.raises(ValueError, match=">= 0"):
        mcnemar(-1, 3)


def test_paired_difference_agrees_with_a_published_interval() -> None:
    # Fagerland, Lydersen and Laake 2014: airway data, 1 and 7 discordant of 21 pairs
    interval = paired_difference(1, 7, 21)
    assert interval.value == pytest.approx(-6 / 21)
    assert (interval.low, interval.high) == (pytest.approx(-0.517, abs=6e-4), pytest.approx(-0.026, abs=6e-4))


@pytest.mark.parametrize(("first", "second", "pairs"), [(1, 7, 21), (12, 3, 40), (0, 4, 30), (25, 20, 60), (0, 0, 9)])
def test_paired_difference_inverts_the_score_test(first: int, second: int, pairs: int) -> None:
    # The restricted likelihood by brute force: among all splits with a given difference, the likeliest one.
    def score(difference: float) -> float:
        b = np.linspace(max(difference, 0), (1 + difference) / 2, 200_001)
        c = b - difference
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = [n * np.log(p) if n else np.zeros_like(p) for n, p in ((first, b), (second, c))]
            terms.append((pairs - first - second) * np.log(1 - b - c))
        best = int(np.nanargmax(np.sum(terms, axis=0)))
        variance = pairs * (b[best] + c[best] - difference**2)
        return (first - second - pairs * difference) / math.sqrt(variance)

    interval = paired_difference(first, second, pairs)
    assert score(interval.low) == pytest.approx(1.95996, abs=2e-3)
    assert score(interval.high) == pytest.approx(-1.95996, abs=2e-3)
    mirrored = paired_difference(second, first, pairs)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-interval.high), pytest.approx(-interval.low))


def test_paired_difference_at_the_ends() -> None:
    assert paired_difference(20, 0, 20).high == pytest.approx(1)
    assert paired_difference(0, 20, 20).low == pytest.approx(-1)
    assert math.isnan(paired_difference(0, 0, 0).value)
    with pytest.raises(ValueError, match="do not fit"):
        paired_difference(3, 3, 5)


def test_bootstrap_of_a_mean_is_as_wide_as_theory() -> None:
    values = np.random.default_rng(0).normal(3, 2, 200)
    interval = mean(values)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.1)
    assert mean(values) == interval, "the same seed gives the same interval"


def test_mean_leaves_out_what_is_not_there() -> None:
    assert mean(np.array([1.0, np.nan, 3.0])).value == 2
    assert math.isnan(mean(np.array([np.nan])).value)


def test_ratio_is_of_means_over_the_same_episodes() -> None:
    interval = ratio(np.array([4.0, 8.0, np.nan]), np.array([1.0, 2.0, 5.0]))
    assert interval == Interval(4.0, pytest.approx(4.0), pytest.approx(4.0))


def test_bootstrap_resamples_rows_together() -> None:
    x = np.arange(20.0)
    interval = bootstrap(lambda a, b: np.abs(a - b).max(1), x, x.copy())
    assert (interval.low, interval.high) == (0, 0)
    with pytest.raises(ValueError, match=r"one length, got \[2, 3\]"):
        bootstrap(lambda a, b: a.mean(1), np.zeros(2), np.zeros(3))


def test_pearson_and_spearman_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(1)
    x = generator.normal(size=30).round(1)  # rounding makes ties
    y = np.exp(x) + generator.normal(size=30).round(1)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(pearson(x, np.ones(30)))


def test_paired_pearson_widens_with_fewer_episodes() -> None:
    generator = np.random.default_rng(2)
    rates = np.linspace(0, 1, 8)[:, None]

    def outcomes(episodes: int) -> Interval:
        x, y = (generator.random((8, episodes)) < rates for _ in range(2))
        return paired_pearson(x.astype(float), y.astype(float), resamples=500)

    few, many = outcomes(5), outcomes(200)
    assert many.value > 0.97
    assert many.high - many.low < few.high - few.low
    assert many.low <= many.value <= many.high


def test_paired_pearson_counts_complete_pairs_only() -> None:
    x = np.array([[0.0, np.nan], [1.0, 1.0]])
    y = np.array([[0.0, 1.0], [1.0, 1.0]])
    assert paired_pearson(x, y, resamples=50).value == pytest.approx(1)
    with pytest.raises(ValueError, match="one shape"):
        paired_pearson(x, y[:, :1])
