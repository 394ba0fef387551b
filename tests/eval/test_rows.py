from __future__ import annotations

import json
from pathlib import Path

import pytest

from kairos_env.eval.rows import Job, ResultsFile, Row, missing_jobs, read_rows
from kairos_env.runs import ConfigMismatch, open_run, write_text


def row(number: int, status: str = "success", **more: object) -> Row:
    return Row(Job("random", "sim", "push", number, 0), status, decisions=number, **more)  # type: ignore[arg-type]


def test_rows_come_back_sorted_whatever_the_order(tmp_path: Path) -> None:
    for name, order in (("a", [2, 0, 1]), ("b", [1, 2, 0])):
        with ResultsFile(tmp_path / name) as file:
            for number in order:
                file.append(row(number, extra={"note": "x"}))
    assert read_rows(tmp_path / "a") == read_rows(tmp_path / "b") == [row(i, extra={"note": "x"}) for i in range(3)]


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        file.append(row(0))
        file.append(row(1))
    whole = path.read_bytes()
    for cut in range(1, len(whole) - whole.index(b"\n")):
        path.write_bytes(whole[:-cut])
        assert read_rows(path) == [row(0)]
    with ResultsFile(path) as file:
        assert missing_jobs(path, [row(0).job, row(1).job]) == [row(1).job]
        file.append(row(1))
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(row(0).to_dict())}\nnonsense\n{json.dumps(row(1).to_dict())}\n")
    with pytest.raises(ValueError, match=r"results.jsonl, line 2 .* delete that line"):
        read_rows(path)


def test_a_job_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        file.append(row(0))
        with pytest.raises(ValueError, match="counted once"):
            file.append(row(0, "failure"))
        assert missing_jobs(path, [row(0).job, row(1).job, row(1).job]) == [row(1).job]
    path.write_text(path.read_text() + json.dumps(row(0, "failure").to_dict()) + "\n")
    assert read_rows(path) == [row(0)]


def test_an_error_may_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        file.append(row(0, "error", message="boom"))
        assert missing_jobs(path, [row(0).job]) == []
        assert missing_jobs(path, [row(0).job], retry_errors=True) == [row(0).job]
        file.append(row(0, "failure"))
    assert read_rows(path) == [row(0, "failure")]


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "r"), pytest.raises(RuntimeError, match="another process"):
        ResultsFile(tmp_path / "r")
    ResultsFile(tmp_path / "r").close()


def test_rows_of_the_old_spelling_are_read() -> None:
    old = row(7).to_dict()
    old["initial_state_id"] = old.pop("initial_state")
    assert Row.from_dict(old) == row(7)


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="success, failure, error, got 'won'"):
        row(0, "won")


def test_a_run_is_continued_only_under_its_own_settings(tmp_path: Path) -> None:
    open_run(tmp_path, {"model": "a", "seed": 0}, {"workers": 1})
    open_run(tmp_path, {"model": "a", "seed": 0}, {"workers": 2})
    launches = [json.loads(line) for line in (tmp_path / "launches.jsonl").read_text().splitlines()]
    assert [launch["workers"] for launch in launches] == [1, 2]
    assert launches[0]["versions"]["numpy"]
    with pytest.raises(ConfigMismatch, match='model: "a" there, "b" now'):
        open_run(tmp_path, {"model": "b", "seed": 0})


def test_files_appear_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "x" / "a.json", "one")
    write_text(tmp_path / "x" / "a.json", "two")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a.json"]
    assert (tmp_path / "x" / "a.json").read_text() == "two"
