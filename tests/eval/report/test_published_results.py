from __future__ import annotations

from collections import Counter

import pytest
from benchmark_rows import PLUS
from libero_home import original_home

from kairos_env.eval.report.published_results import PublishedBenchmark, published_results
from kairos_env.sims.libero.catalogue import Catalogue
from kairos_env.sims.libero.tasks import BENCHMARKS, PRO_DIMENSIONS, PRO_SUITES


def test_counts_are_the_published_ones() -> None:
    assert PLUS.size() == 10_030
    assert [PLUS.size(suite=s) for s in PLUS.suites] == [2402, 2518, 2591, 2519]
    assert {d: PLUS.size(dimension=d) for d in PLUS.dimensions} == {
        "camera": 1599,
        "robot": 1550,
        "language": 1537,
        "light": 1142,
        "background": 1076,
        "noise": 1601,
        "layout": 1525,
    }
    assert PLUS.difficulties == (1, 2, 3, 4, 5, 0)
    assert PLUS.size("libero_goal", "light", 0) == PLUS.size(difficulty=0) == 121
    base, pro = PublishedBenchmark.read("libero"), PublishedBenchmark.read("libero-pro")
    assert base.size() == 130 and base.size(suite="libero_90") == 90
    assert pro.size() == 160 and [pro.size(dimension=d) for d in PRO_DIMENSIONS] == [40] * 4
    assert pro.suites == tuple(PRO_SUITES) and (base.trials, pro.trials, PLUS.trials) == (50, 50, 1)
    with pytest.raises(ValueError, match="there are libero, libero-plus, libero-pro"):
        PublishedBenchmark.read("libero-x")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_counts_and_names_are_those_of_the_task_files(name: str) -> None:
    tasks, benchmark = Catalogue.open(original_home()).tasks(name), PublishedBenchmark.read(name)
    assert Counter((task.suite, task.dimension, task.difficulty or 0) for task in tasks) == benchmark.counts
    keys = [task.key for task in tasks]
    assert benchmark.has_exactly(keys) and not benchmark.has_exactly(keys[1:])
    assert not benchmark.has_exactly([*keys[1:], f"{tasks[0].suite}/mine"])
    assert benchmark.size_of(benchmark.parts(benchmark.suites)) == len(tasks)


def test_published_totals_are_means_over_tasks() -> None:
    weights = {d: PLUS.size(dimension=d) for d in PLUS.dimensions}
    apart = {}
    for result in published_results("libero-plus"):
        assert result.url.startswith("https://") and result.source
        if not result.values or "tasks" in result.note:
            continue
        weighted = sum(result.values[d] * n for d, n in weights.items()) / 10_030
        if abs(weighted - result.total) >= 0.1:
            apart[result.method] = round(weighted, 1)
    # the only ones whose published total does not follow from their published columns
    assert apart == {"UniVLA": 42.9, "ProGAL-VLA": 85.2, "VLANeXt": 84.2}
    for result in published_results("libero"):
        assert result.total == pytest.approx(sum(result.values.values()) / 4, abs=0.06)
