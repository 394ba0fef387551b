from __future__ import annotations

import math

import numpy as np
import pytest

from kairos_env.eval.statistics import (
    Interval,
    bootstrap,
    mean,
    paired_pearson,
    pearson,
    ratio,
    spearman,
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
