"""Metadata as people and scripts write them."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import damaged
from lerobot_layouts import sample, write_v2, write_v3

from kairos_env.cli import main as cli
from kairos_env.datasets.lerobot.documents import DatasetError
from kairos_env.datasets.lerobot.mapping import MapError
from kairos_env.datasets.lerobot.reader import LeRobotData

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return write_v2(tmp_path / "v2", sample((4, 5), video=False))


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return write_v3(tmp_path / "v3", sample((4, 5)))


def rewrite(path: Path, change: Callable[[list[Any]], Any]) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def words(root: Path) -> list[str]:
    return [episode.instruction for episode in LeRobotData(root)]


def test_a_byte_order_mark_and_line_separators_do_no_harm(v2: Path) -> None:
    """U+2028 in a task ended a line; editors on Windows write the mark."""
    for path in (v2 / "meta").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    text = (v2 / "meta/tasks.jsonl").read_text(encoding="utf-8")
    (v2 / "meta/tasks.jsonl").write_text(text.replace("lift the", "lift\u2028the"), encoding="utf-8")
    assert words(v2) == ["lift\u2028the cube", "push it"]


def test_another_encoding_is_named_with_its_line(v2: Path) -> None:
    path = v2 / "meta/tasks.jsonl"
    path.write_bytes(path.read_bytes().replace(b"push", b"d\xe9placer"))
    with pytest.raises(DatasetError, match="tasks.jsonl, line 2, is not UTF-8: byte 0xe9.*iconv"):
        LeRobotData(v2)


def test_tasks_may_be_a_single_text_or_missing(v2: Path, v3: Path) -> None:
    rewrite(v2 / "meta/episodes.jsonl", lambda rows: rows[0].update(tasks="lift the cube") or rows[1].pop("tasks"))
    data = LeRobotData(v2)
    assert [episode.tasks for episode in data.stored] == [("lift the cube",), ()]
    path = v3 / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("tasks")
    pq.write_table(table.set_column(at, "tasks", pa.array(["lift the cube", None])), path)
    assert [episode.tasks for episode in LeRobotData(v3).stored] == [("lift the cube",), ()]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_task_without_text_is_no_instruction(v2: Path, v3: Path, missing: float | None) -> None:
    rewrite(v2 / "meta/tasks.jsonl", lambda rows: rows[1].update(task=missing))
    assert words(v2) == ["lift the cube", ""]
    if missing is None:
        table = pa.table({"task_index": [0, 1], "task": ["lift the cube", None]})
        pq.write_table(table, v3 / "meta/tasks.parquet")
        assert words(v3) == ["lift the cube", ""]


@pytest.mark.parametrize(
    "name", ["meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"]
)
def test_pointers_of_git_lfs_are_recognised(v3: Path, name: str) -> None:
    (v3 / name).write_bytes(LFS)
    with pytest.raises(DatasetError, match=f"{Path(name).name} is a pointer of Git LFS.*`git lfs pull`"):
        LeRobotData(v3)


def test_pointers_of_git_lfs_among_data_and_films_are_recognised(v3: Path) -> None:
    for kind in ("parquet", "mp4"):
        copy = write_v3(v3.parent / kind, sample((4, 5)), episodes_per_file=1)
        for path in (copy / "data" if kind == "parquet" else copy / "videos").rglob(f"file-001.{kind}"):
            path.write_bytes(LFS)
        with pytest.warns(UserWarning, match=f"file-001.{kind} is a pointer of Git LFS"):
            assert len(list(LeRobotData(copy))) == 1


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("length", None, "row 1: 'length' is missing"),
        ("length", -5, "row 1: 'length' is -5, expected a whole number"),
        ("episode_index", 0, "lists episode 0 twice"),
        ("data/file_index", -1, "row 1: 'data/file_index' is -1"),
    ],
)
def test_rows_of_the_episode_table_that_make_no_sense_are_named(
    v3: Path, column: str, value: int | None, said: str
) -> None:
    """lerobot#2283: tools that merge or split datasets leave NaN in the table."""
    path = v3 / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    values = [float(v) for v in table[column].to_pylist()]
    kind, at = pa.float64() if value is None else pa.int64(), table.schema.get_field_index(column)
    changed = pa.array([values[0], float("nan")]) if value is None else pa.array([int(values[0]), value], kind)
    pq.write_table(table.set_column(at, column, changed), path)
    with pytest.raises(DatasetError, match=said):
        LeRobotData(v3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(min=[9, 9, 9]), "'action': statistics contradict themselves: scalar 0 has min 9, max"),
        (lambda s: s.update(mean=[0, 99, 0]), "scalar 1 has .*mean 99"),
        (lambda s: s.update(std=[0.1, 0.1, -1]), "scalar 2 has .*std -1"),
        (lambda s: s.update(max=[float("nan")] * 3), "not finite in max"),
    ],
)
def test_statistics_that_contradict_themselves_are_refused(
    v3: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    path = v3 / "meta/stats.json"
    stats = json.loads(path.read_text())
    change(stats["action"])
    path.write_text(json.dumps(stats))
    with pytest.raises(DatasetError, match=f"stats.json: .*{said}.*remove meta/stats.json"):
        LeRobotData(v3)


def test_statistics_of_features_that_are_not_used_do_not_matter(v3: Path) -> None:
    path = v3 / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["next.reward"] = {"min": [float("nan")], "max": [0], "mean": [0], "std": [0]}
    path.write_text(json.dumps(stats))
    assert len(LeRobotData(v3)) == 2


@pytest.mark.parametrize(("write", "video"), [(write_v3, True), (write_v2, True), (write_v3, False)])
def test_damage_is_named_or_does_not_matter(
    tmp_path: Path, write: Callable[..., Path], video: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """No crash, no hang, no error but the reader's own; more files of this kind were tried by hand."""
    root, rng, read = write(tmp_path / "data", sample((4, 5), video=video)), random.Random(3), 0
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for seed in range(40):
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert cli.main(["data", "inspect", str(root)]) in (0, 1, 2)
            try:
                read += len(list(LeRobotData(root)))
            except (DatasetError, MapError) as error:
                assert str(error)
        path.write_bytes(whole)
    assert "Traceback" not in capsys.readouterr().err and read > 5
