from __future__ import annotations

import dataclasses
import math
import re

import pytest
from benchmark_rows import row, several, table
from libero_home import original_home

from kairos_env.eval.report.benchmark_table import OFFICIAL, BenchmarkTable, make_tables
from kairos_env.eval.report.published_results import PublishedBenchmark, keys_digest
from kairos_env.eval.report.report import make_report
from kairos_env.eval.rows import Job, Row
from kairos_env.eval.statistics import wilson
from kairos_env.sims.libero.catalogue import Catalogue


def test_hand_computed_table() -> None:
    rows = several(4, 3, "c", difficulty=1)  # object, camera: 3 of 4
    rows += several(2, 0, "d", difficulty=2, suite="libero_goal")  # goal, camera: 0 of 2
    rows += several(2, 2, "n", dimension="noise", difficulty=5)  # object, noise: 2 of 2
    rows += [row("e0", "error", dimension="noise")]
    rows += [row("e1", "error", dimension="light", difficulty=None, suite="libero_goal")]
    found = table(rows)
    total = found.cell()
    assert (total.of, total.tasks, total.successes, total.failures, total.errors) == (10_030, 8, 5, 3, 2)
    assert total.rate == wilson(5, 8)
    camera = found.cell(dimension="camera")
    assert (camera.of, camera.tasks, camera.rate) == (1599, 6, wilson(3, 6))
    assert found.cell(dimension="noise").rate == wilson(2, 2) and found.cell(dimension="noise").errors == 1
    assert math.isnan(found.cell(dimension="robot").rate.value)
    assert found.cell(suite="libero_object").rate == wilson(5, 6)
    assert found.cell(difficulty=2).rate == wilson(0, 2) and found.cell(difficulty=0).errors == 1
    assert found.cell("libero_object", "camera", 1).rate == wilson(3, 4)
    # two columns have results: 1/2 and 1; the mean over tasks is 5/8
    assert found.plain_mean.value == pytest.approx(0.75)
    assert found.label == "subset: 8 of 10,030"


def test_reweighted_estimate_is_named_and_says_what_it_leaves_out() -> None:
    rows = several(4, 3, "c") + several(2, 0, "d", suite="libero_goal") + several(2, 2, "n", dimension="noise")
    found = table(rows)
    estimate = found.reweighted()
    object_camera, goal_camera, object_noise = 396, 408, 422
    size = object_camera + goal_camera + object_noise
    assert estimate.tasks == size
    assert estimate.rate.value == pytest.approx((0.75 * object_camera + 0 * goal_camera + 1 * object_noise) / size)
    assert len(estimate.without) == 28 - 3 and "light, libero_goal" in estimate.without
    camera = found.reweighted(dimension="camera")
    assert camera.rate.value == pytest.approx(0.75 * 396 / 804) and camera.without == (
        "camera, libero_spatial",
        "camera, libero_10",
    )
    text = make_report(rows).table()
    assert "Re-weighted estimate, not a result" in text and "light; background" in text


def test_a_task_counts_once_whatever_its_trials() -> None:
    def trials(name: str, outcomes: str) -> list[Row]:
        status = {"s": "success", "f": "failure", "e": "error"}
        return [
            row(name, status[o], dimension="", difficulty=None, benchmark="libero", state=i)
            for i, o in enumerate(outcomes)
        ]

    found = table(trials("a", "ssss") + trials("b", "sfe") + trials("c", "ee"))
    cell = found.cell()
    assert (cell.of, cell.tasks, cell.successes, cell.failures, cell.errors) == (130, 2, 5, 1, 3)
    assert cell.rate.value == pytest.approx((1 + 0.5) / 2), "the mean over tasks, not 5 of 6"
    by_task = make_report(found.rows).to_dict()["tables"][0]["by"]["task"]
    assert {name: (c["successes"], c["failures"], c["errors"], c["tasks"]) for name, c in by_task.items()} == {
        "libero_object/a": (4, 0, 0, 1),
        "libero_object/b": (1, 1, 1, 1),
        "libero_object/c": (0, 0, 2, 0),
    }
    assert list(found.columns) == ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]
    assert found.label == "subset of libero_object: 2 of 10"


def test_scenes_of_ours_are_never_the_benchmarks() -> None:
    rows = several(3, 3, "c")
    ours = [row("light_1", dimension="light", ours=True)]
    ours += [row("light_2", "failure", dimension="light", params={"ours": True})]
    theirs, mine = make_tables(rows + ours)
    assert (theirs.ours, mine.ours) == (False, True)
    assert theirs.cell().tasks == 3 and theirs.cell(dimension="light").tasks == 0
    assert mine.label == "scenes of ours: 2 tasks, not the benchmark's" and mine.cell().rate == wilson(1, 2)
    assert mine.not_official and mine.cell(dimension="light").of == 0
    assert "not the benchmark's" in make_report(rows + ours).table()


@pytest.fixture(scope="module")
def small() -> tuple[PublishedBenchmark, list[Row]]:
    """A benchmark of six tasks, and complete rows of it that say everything an official result says."""
    tasks = [
        (f"{dimension}{i}", suite, dimension)
        for dimension in ("camera", "noise")
        for suite in ("libero_object", "libero_goal")
        for i in range(1 if dimension == "camera" else 2)
    ]
    rows = [row(n, "success" if i % 2 else "failure", s, d, 1, **OFFICIAL) for i, (n, s, d) in enumerate(tasks)]
    counts = {("libero_object", "camera", 1): 1, ("libero_goal", "camera", 1): 1}
    counts |= {("libero_object", "noise", 1): 2, ("libero_goal", "noise", 1): 2}
    return PublishedBenchmark("libero-plus", counts, {"": keys_digest(f"{s}/{n}" for n, s, _ in tasks)}), rows


def labelled(benchmark: PublishedBenchmark, rows: list[Row]) -> BenchmarkTable:
    (only,) = make_tables(rows, {"libero-plus": benchmark})
    return only


def test_official_needs_every_task_and_the_original_assets(small: tuple[PublishedBenchmark, list[Row]]) -> None:
    benchmark, rows = small
    assert labelled(benchmark, rows).label == "official"
    assert labelled(benchmark, rows).reweighted().rate.value == labelled(benchmark, rows).cell().rate.value == 0.5
    less = labelled(benchmark, rows[:-1])
    assert less.label == "subset: 5 of 6" and less.not_official == ("1 of 6 tasks have no result",)
    broken = labelled(benchmark, [*rows[:-1], dataclasses.replace(rows[-1], status="error")])
    assert broken.label == "subset: 5 of 6", "a job that only ended in an error has no result"


@pytest.mark.parametrize(("name", "value"), [("assets", "stand-ins"), ("prompt", "bddl"), ("rendering", "fast")])
def test_official_is_refused(small: tuple[PublishedBenchmark, list[Row]], name: str, value: str) -> None:
    benchmark, rows = small
    changed = dataclasses.replace(rows[0], extra=rows[0].extra | {name: value})
    found = labelled(benchmark, [changed, *rows[1:]])
    assert found.label.startswith("all 6, not official: ") and f"{name}: " in found.label and value in found.label
    silent = dataclasses.replace(rows[0], extra={k: v for k, v in rows[0].extra.items() if k != name})
    assert "not recorded" in labelled(benchmark, [silent, *rows[1:]]).label


def test_suites_of_libero_are_official_one_by_one() -> None:
    """Its results are published suite by suite, of 50 trials each, under the usual limits of steps."""
    tasks = Catalogue.open(original_home()).tasks("libero", ["libero_object"])
    official = OFFICIAL | {"protocol": "published"}

    def rows(states: range, **changes: str) -> list[Row]:
        said = {"dimension": "", "difficulty": None, "benchmark": "libero"} | official | changes
        return [row(task.name, state=state, **said) for task in tasks for state in states]

    (whole,) = make_tables(rows(range(50)))
    assert whole.label == "official for libero_object" and whole.not_official == ()
    (few,) = make_tables(rows(range(10)))
    assert few.label.startswith("all 10 of libero_object, not official: 10 tasks were not tried once from each of init")
    (later,) = make_tables(rows(range(40, 50)))
    assert len(later.not_official) == 1
    (other,) = make_tables(rows(range(50), protocol="kairos-suites"))
    assert other.not_official == ("protocol: kairos-suites",)
    (less,) = make_tables(rows(range(50))[:-50])
    assert less.label == "subset of libero_object: 9 of 10"
    one = row("x", suite="libero_goal", dimension="", difficulty=None, benchmark="libero")
    (begun,) = make_tables([*rows(range(50)), one])
    assert begun.label == "subset of libero_object, libero_goal: 11 of 20"


def test_official_needs_the_benchmarks_own_names(small: tuple[PublishedBenchmark, list[Row]]) -> None:
    benchmark, rows = small
    other = dataclasses.replace(rows[0], job=dataclasses.replace(rows[0].job, task="libero-plus/libero_object/mine"))
    found = labelled(benchmark, [other, *rows[1:]])
    assert found.label == "all 6, not official: the tasks' names are not the benchmark's"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row(suite="libero_objects"), "did you mean 'libero_object'"),
        (row(dimension="camrea"), "did you mean 'camera'"),
        (row(difficulty=7), "unknown difficulty 7"),
        (row(dimension="noise", difficulty=None), "no task of libero_object, noise, 0"),
        (dataclasses.replace(row(), extra={}), "needs 'dimension'"),
        (dataclasses.replace(row(), job=Job("p", "s", "libero-plus/a", 0, 0)), "<benchmark>/<suite>/<name>"),
        (row(benchmark="libero-x"), "unknown benchmark 'libero-x'"),
        (row(benchmark="libero-pro"), "unknown suite 'libero_object'"),
    ],
)
def test_rows_of_something_else_are_refused(wrong: Row, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_tables([row("b"), wrong])


def test_more_tasks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of 3 tasks of libero_object, light, 1, but libero-plus has 2"):
        make_tables(several(3, 3, "x", dimension="light"))


def test_projected_time() -> None:
    rows = several(2, 2, "c", seconds=10.0) + several(2, 2, "d", suite="libero_goal", seconds=30.0)
    found = table(rows)
    # object and goal at their own rates, the other suites at the mean of all
    expected = 2518 * 10 + 2591 * 30 + (2402 + 2519) * 20
    assert found.projected_seconds(1) == pytest.approx(expected)
    assert found.projected_seconds(64) == pytest.approx(expected / 64 + 30 * 63 / 64)
    assert math.isnan(table([row(seconds=0.0)]).projected_seconds(1))
    with pytest.raises(ValueError, match="at least 1"):
        found.projected_seconds(0)
    assert f"{expected / 3600:.1f}" in make_report(rows).timing()
