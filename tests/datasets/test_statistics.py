"""Running statistics against numpy on the whole array, whatever the order and the cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos_env.datasets.statistics import QUANTILES, DatasetStatistics, RunningStatistics


def running(parts: list[np.ndarray], exact_rows: int = 2**17) -> RunningStatistics:
    statistics = RunningStatistics(exact_rows)
    for part in parts:
        statistics.update(part)
    return statistics


def assert_is(result: DatasetStatistics, rows: np.ndarray) -> None:
    assert result.count == len(rows)
    np.testing.assert_array_equal(result.min, rows.min(0))
    np.testing.assert_array_equal(result.max, rows.max(0))
    np.testing.assert_allclose(result.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.std, rows.std(0), rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_cut_gives_the_statistics_of_the_whole(cut: list[int], dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(rng.normal(0, 100, dim), 1, (sum(cut), dim)).astype(np.float32).astype(np.float64)
    result = running(np.split(rows, np.cumsum(cut)[:-1])).result()
    assert_is(result, rows)
    assert result.rank_error == 0
    for name, q in QUANTILES.items():
        np.testing.assert_array_equal(result.quantiles[name], np.quantile(rows, q, axis=0))


def test_a_small_spread_far_from_zero_is_kept() -> None:
    rows = 1e6 + np.random.default_rng(0).normal(0, 1e-3, (5000, 1))
    assert_is(running(np.split(rows, 50)).result(), rows)


@pytest.mark.parametrize("order", ["random", "rising", "blocks"])
def test_thinned_quantiles_stay_within_their_bound(order: str) -> None:
    rng = np.random.default_rng(1)
    rows = np.stack([rng.normal(size=40_001), rng.exponential(size=40_001), rng.integers(0, 3, 40_001)], 1)
    if order == "rising":
        rows = np.sort(rows, axis=0)
    if order == "blocks":
        rows = np.concatenate(sorted(np.array_split(rows, 13), key=lambda part: part[0, 0]))
    result = running(np.array_split(rows, 97), exact_rows=1000).result()
    assert_is(result, rows)
    assert 0 < result.rank_error < 0.008
    for name, q in QUANTILES.items():
        for column, value in zip(rows.T, result.quantiles[name]):
            # the ranks that this value has, from the first row like it to the last
            low, high = (column < value).mean(), (column <= value).mean()
            assert low - result.rank_error <= q <= high + result.rank_error, (name, value)


def test_merging_is_seeing_both() -> None:
    rows = np.random.default_rng(2).normal(size=(9000, 3))
    parts = [running([part], exact_rows=512) for part in np.array_split(rows, 5)]
    for part in parts[1:]:
        parts[0].merge(part)
    parts[0].merge(RunningStatistics())
    result = parts[0].result()
    assert_is(result, rows)
    assert result.rank_error < 0.03
    for name, q in QUANTILES.items():
        ranks = (rows <= result.quantiles[name]).mean(0)
        np.testing.assert_allclose(ranks, q, atol=result.rank_error + 1e-3)
    exact = running([rows[:10]])
    exact.merge(running([rows[10:30]]))
    assert exact.result().rank_error == 0
    np.testing.assert_array_equal(exact.result().quantiles["q90"], np.quantile(rows[:30], 0.9, axis=0))


def test_the_bound_for_a_long_stream() -> None:
    statistics = RunningStatistics(2**10)
    for _ in range(1000):
        statistics.update(np.zeros((2**10, 1)))
    # levels h = 0 ... 10 are emptied about n / (2^10 2^h) times, by 2^h each
    assert statistics.result().rank_error < 11 / 2**10


def test_values_of_other_types_and_shapes() -> None:
    statistics = running([np.array([[True], [False]]), np.array([[[3]], [[4]]], np.int64)])
    assert statistics.result().mean.tolist() == [2.0]
    assert statistics.result().count == 4


def test_json_and_back_and_parts() -> None:
    rows = np.random.default_rng(3).normal(size=(50, 3))
    result = running([rows]).result()
    read = DatasetStatistics.from_dict(json.loads(json.dumps(result.to_dict())))
    assert set(result.to_dict()) == {"min", "max", "mean", "std", "count", *QUANTILES}
    assert result.to_dict()["count"] == [50]
    assert_is(read, rows)
    picked = read.take([2, 0])
    assert len(picked) == 2
    assert_is(picked, rows[:, [2, 0]])
    np.testing.assert_allclose(picked.quantiles["q50"], np.median(rows, axis=0)[[2, 0]], rtol=1e-12)


def test_bad_input_is_refused() -> None:
    statistics = running([np.zeros((2, 3))])
    with pytest.raises(ValueError, match="rows have 4 values, those before had 3"):
        statistics.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="scalar 1 of row 3 is nan"):
        statistics.update(np.array([[0, 0, 0], [0, np.nan, 0]]))
    with pytest.raises(ValueError, match="3 and of 1 scalars"):
        statistics.merge(running([np.zeros((1, 1))]))
    with pytest.raises(ValueError, match="nothing"):
        RunningStatistics().result()
    with pytest.raises(ValueError, match="no 'std'"):
        DatasetStatistics.from_dict({"min": [0], "max": [1], "mean": [0]})
    with pytest.raises(ValueError, match="differ in length"):
        DatasetStatistics.from_dict({"min": [0], "max": [1, 2], "mean": [0], "std": [1]})
    with pytest.raises(ValueError, match="not finite in max"):
        DatasetStatistics.from_dict({"min": [0], "max": [float("inf")], "mean": [0], "std": [1]})
