from __future__ import annotations

import dataclasses
import html.parser
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from benchmark_rows import PLUS, row, several

from kairos_env.eval.report.benchmark_table import make_tables
from kairos_env.eval.report.report import make_report
from kairos_env.eval.rows import ResultsFile, Row
from kairos_env.media import write_png


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
