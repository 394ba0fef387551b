"""The benchmark table: hand-computed numbers, honest labels, pairs, and a page that is the same whatever the order."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import os
import random
import re
import tarfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from libero_home import ARCHIVES, DATA

from kairos_env.cli import main as cli
from kairos_env.eval.report.benchmark_table import OFFICIAL, BenchmarkTable, make_tables
from kairos_env.eval.report.compare import compare
from kairos_env.eval.report.published_results import PublishedBenchmark, keys_digest, published_results
from kairos_env.eval.report.report import make_report
from kairos_env.eval.rows import Job, ResultsFile, Row
from kairos_env.eval.statistics import paired_difference, wilson
from kairos_env.media import write_png
from kairos_env.sims.libero.tasks import DIMENSIONS

PLUS = PublishedBenchmark.read("libero-plus")


def row(
    name: str = "a",
    status: str = "success",
    suite: str = "libero_object",
    dimension: str = "camera",
    difficulty: int | None = 1,
    policy: str = "expert",
    state: int = 0,
    benchmark: str = "libero-plus",
    seconds: float = 10.0,
    message: str = "",
    **extra: Any,
) -> Row:
    task = {"dimension": dimension, "difficulty": difficulty, "base_task": "pick"}
    job = Job(policy, "Kairos-LIBERO-v0", f"{benchmark}/{suite}/{name}", state, 0)
    return Row(job, status, 50, 1.0, message, 5.0, seconds, task | extra)


def several(count: int, successes: int, start: str, **kwargs: Any) -> list[Row]:
    """Tasks ``start0``, ``start1``, ... of which the first succeed."""
    return [row(f"{start}{i}", "success" if i < successes else "failure", **kwargs) for i in range(count)]


def table(rows: list[Row]) -> BenchmarkTable:
    (only,) = make_tables(rows)
    return only


# -- the benchmark --------------------------------------------------------------------------------------------------


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
    base = PublishedBenchmark.read("libero")
    assert base.size() == 130 and base.size(suite="libero_90") == 90
    with pytest.raises(ValueError, match="there are libero, libero-plus"):
        PublishedBenchmark.read("libero-pro")


def test_counts_and_names_are_those_of_the_task_files() -> None:
    path = DATA / ARCHIVES[0]
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder libero under KAIROS_TEST_DATA")
    with tarfile.open(path) as packed:
        member = next(item for item in packed if item.name.endswith("tasks.jsonl"))
        lines = packed.extractfile(member).read().splitlines()  # type: ignore[union-attr]
    short = {name: word for word, name in DIMENSIONS.items()}
    tasks = [
        SimpleNamespace(suite=t["suite"], name=t["name"], dimension=short[t["category"]], difficulty=t["difficulty"])
        for t in map(json.loads, lines)
    ]
    assert PublishedBenchmark.of_tasks("libero-plus", tasks) == PLUS


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


# -- the table ------------------------------------------------------------------------------------------------------


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
    assert found.label == "subset: 2 of 130"


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


# -- labels ---------------------------------------------------------------------------------------------------------


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
    return PublishedBenchmark("libero-plus", counts, keys_digest(f"{s}/{n}" for n, s, _ in tasks)), rows


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
        (row(benchmark="libero-pro"), "unknown benchmark 'libero-pro'"),
    ],
)
def test_rows_of_something_else_are_refused(wrong: Row, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_tables([row("b"), wrong])


def test_more_tasks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of 3 tasks of libero_object, light, 1, but libero-plus has 2"):
        make_tables(several(3, 3, "x", dimension="light"))


# -- the same bytes from the same rows -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A run with films, failures of several kinds, errors, scenes of ours and names that are HTML."""
    folder = tmp_path_factory.mktemp("run")
    bowl = {"nearest": 0.5, "moved": 0.0, "lifted": 0.0, "end_lifted": 0.0, "end_distance": 0.5}
    far, dropped = {"objects": {"bowl": bowl}}, {"objects": {"bowl": bowl | {"moved": 0.2, "lifted": 0.2}}}
    rows = several(5, 3, "c", film="videos/camera") + several(3, 3, "d", suite="libero_goal", seconds=20.0)
    rows += [row("<b>x</b>&y", "failure", dimension="noise", film="videos/<i>&", **far)]
    rows += [row("n2", "failure", dimension="noise", **dropped), row("n3", "failure", dimension="noise", **far)]
    rows += [row("n4", "error", dimension="noise", message="<script>worker 17 died</script>\nat line 3")]
    rows += [row("n5", "error", dimension="noise", message="<script>worker 8 died</script>")]
    rows += [row("light", dimension="light", ours=True), row("c0", "failure", policy="<policy>")]
    rows += [row("soup", dimension="", difficulty=None, benchmark="libero", state=i) for i in range(3)]
    picture = np.random.default_rng(0).integers(0, 255, (40, 1300, 3), np.uint8)
    write_png(folder / "videos" / "camera.png", picture)
    write_png(folder / "videos" / "<i>&.png", picture)
    (folder / "videos" / "camera.mp4").write_bytes(b"film")
    with ResultsFile(folder / "results.jsonl") as results:
        for item in rows:
            results.append(item)
    return folder, rows


def test_order_of_rows_does_not_matter(run_folder: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, rows = run_folder
    again = [*rows, row("c0", "error")]  # a retried job: the error is out
    pages, numbers, texts, times = set(), set(), set(), set()
    for seed in range(4):
        shuffled = list(again)
        random.Random(seed).shuffle(shuffled)
        report = make_report(shuffled)
        report.save(tmp_path, [folder])
        pages.add((tmp_path / "report.html").read_bytes())
        numbers.add((tmp_path / "report.json").read_bytes())
        times.add((tmp_path / "timing.json").read_bytes())
        texts.add(report.table() + report.published() + report.timing())
    assert [len(found) for found in (pages, numbers, texts, times)] == [1, 1, 1, 1]
    assert json.loads(numbers.pop())["tables"][0]["benchmark"] == "libero"


def test_results_do_not_depend_on_speed(run_folder: tuple[Path, list[Row]]) -> None:
    _, rows = run_folder
    slower = [dataclasses.replace(r, seconds=3 * r.seconds, decision_ms=1.0) for r in rows]
    assert make_report(rows).to_dict() == make_report(slower).to_dict()
    assert make_report(rows).table() == make_report(slower).table()


def test_contradicting_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="a success and a failure"):
        make_tables([row(), row(status="failure")])


class Loads(html.parser.HTMLParser):
    """What a browser would fetch for a page, and what it shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.videos: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        sources = [values[key] or "" for key in ("src", "srcset", "data", "poster", "href") if key in values]
        (self.videos if tag == "video" else self.sources).extend(sources)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_self_contained_and_escaped(run_folder: tuple[Path, list[Row]]) -> None:
    folder, rows = run_folder
    page = make_report(rows).html(folder)
    loads = Loads(page)
    assert loads.tags & {"script", "link", "iframe", "object", "b", "i", "policy"} == set()
    assert loads.sources and all(source.startswith("data:image/jpeg;base64,") for source in loads.sources)
    assert loads.videos == ["videos/camera.mp4"] * 4, "two successes and two failures of the camera"
    style = re.findall(r"url\(|@import", page)
    assert not style and len(page) < 1_500_000
    shown = "".join(loads.text)
    for text in ("<b>x</b>&y", "<script>worker … died</script>", "<policy>", "never near", "Camera Viewpoints"):
        assert text in shown
    assert "svg" in loads.tags and "failure, never near" in shown


def test_films_are_found_from_another_folder(run_folder: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder, rows = run_folder
    report = make_report(rows)
    assert "<h3>Films" not in report.html(tmp_path)
    (link, *_) = Loads(report.html(tmp_path, [folder])).videos
    assert (tmp_path / link).resolve() == (folder / "videos" / "camera.mp4").resolve()


def test_failures_and_errors_are_counted_by_kind(run_folder: tuple[Path, list[Row]]) -> None:
    plus = next(t for t in make_tables(run_folder[1]) if t.benchmark.name == "libero-plus" and t.policy == "expert")
    assert plus.failure_kinds("noise") == {"never near": 2, "dropped": 1}
    assert plus.failure_kinds("camera") == {"unknown": 2} and plus.failure_kinds("robot") == {}
    assert plus.error_kinds == {"<script>worker … died</script>": 2}


def test_ours_stand_beside_the_others(run_folder: tuple[Path, list[Row]]) -> None:
    text = make_report(run_folder[1]).published()
    lines = [line for line in text.splitlines() if line]
    ours = next(i for i, line in enumerate(lines) if line.startswith("expert (here), subset: 11 of 10,030"))
    best = next(i for i, line in enumerate(lines) if line.startswith("Kairos (joint)"))
    assert ours < best and lines[best].endswith("90.8")
    assert any("arxiv.org/abs/2606.16533" in line for line in lines)


# -- time -----------------------------------------------------------------------------------------------------------


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


# -- two runs -------------------------------------------------------------------------------------------------------


def outcomes(pairs: str, policy: str, which: int, **kwargs: Any) -> Iterator[Row]:
    """Rows of one policy from pairs such as ``"sf sf ff"``."""
    for i, pair in enumerate(pairs.split()):
        yield row(f"t{i}", {"s": "success", "f": "failure", "e": "error"}[pair[which]], policy=policy, **kwargs)


def test_comparison_on_common_jobs() -> None:
    pairs = "ss ss sf sf sf sf sf sf fs ff ff se es ee"
    first = [*outcomes(pairs, "new", 0), row("only", policy="new")]
    found = compare(reversed(first), outcomes(pairs, "old", 1))
    total = found.groups["total"]
    assert (total.both, total.only_first, total.only_second, total.neither, total.pairs) == (2, 6, 1, 2, 11)
    assert total.rates == (8 / 11, 3 / 11)
    assert total.difference == paired_difference(6, 1, 11)
    # by hand: of seven fair coins, no more than one or at least six show the same side
    assert total.p_value == pytest.approx(float(Fraction(2 * (1 + 7), 2**7)))
    assert found.unpaired == (2, 1), "the partner of an error stays alone"
    assert list(found.groups) == ["total", "camera", "libero_object"]
    assert (found.first, found.second) == ("new", "old")


def test_comparison_keeps_scenes_of_ours_apart() -> None:
    first = [*outcomes("sf ff", "new", 0), row("x", policy="new", dimension="light", ours=True)]
    second = [*outcomes("sf ff", "old", 1), row("x", "failure", policy="old", dimension="light", ours=True)]
    found = compare(first, second)
    assert list(found.groups) == ["total", "camera", "libero_object", "scenes of ours"]
    assert found.groups["total"].pairs == 2 and found.groups["scenes of ours"].only_first == 1


def test_comparison_refuses_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="the first run has policies a, b; say which one"):
        compare([row(policy="a"), row(policy="b")], [row(policy="c")])
    with pytest.raises(ValueError, match="no job in common"):
        compare([row(state=1)], [row(state=2)])
    with pytest.raises(ValueError, match="the second run has no results"):
        compare([row()], [])


def write_run(folder: Path, rows: list[Row], **config: Any) -> Path:
    with ResultsFile(folder / "results.jsonl") as results:
        for item in rows:
            results.append(item)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = "ss sf sf fs ff"
    a = write_run(tmp_path / "a", list(outcomes(pairs, "new", 0, prompt="bddl")), wait_steps=10)
    b = write_run(tmp_path / "b", list(outcomes(pairs, "old", 1, prompt="official")), wait_steps=30)
    assert cli.main(["eval", "compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "20.0 [" in text and "1.000" in text, "2 against 1 of 5 pairs"
    assert "differ in wait_steps: 10 | 30" in text and "differ in prompt: bddl | official" in text
    assert cli.main(["eval", "compare", str(a), str(b), "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert groups["total"]["only_first"] == 2 and groups["total"]["p_value"] == 1.0

    assert cli.main(["eval", "table", str(a), str(b)]) == 2
    assert "say where with --out" in capsys.readouterr().err
    assert cli.main(["eval", "table", str(a), str(b), "--out", str(tmp_path / "all"), "--published"]) == 0
    text = capsys.readouterr().out
    assert "libero-plus, new: subset: 5 of 10,030" in text and "Kairos (joint)" in text and "h on 64" in text
    assert sorted(os.listdir(tmp_path / "all")) == ["report.html", "report.json", "timing.json"]

    assert cli.main(["eval", "compare", str(a), str(tmp_path / "none")]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    assert cli.main(["eval", "compare", str(a), str(b), "--policy-a", "newer"]) == 2
    assert "no policy 'newer'; it has new" in capsys.readouterr().err


def test_ten_thousand_tasks_are_quick() -> None:
    rows = []
    for (suite, dimension, difficulty), count in PLUS.counts.items():
        rows += several(
            count, count // 2, f"{dimension}{difficulty}_", suite=suite, dimension=dimension, difficulty=difficulty
        )
    report = make_report(rows)
    (full,) = report.tables
    assert full.label.startswith("all 10,030, not official: the tasks' names")
    assert full.cell().tasks == 10_030 and report.table() and report.to_dict()
