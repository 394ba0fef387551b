"""`kairos eval`: what scripts read is what people read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kairos_env.cli import main as cli


def told(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    assert cli.main(["eval", *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_run_its_table_and_a_comparison_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    words = ["--policy", "random,expert", "--task", "reach", "--episodes", "2", "--workers", "0", "--out", run]
    found = told(capsys, "closed-loop", *words)
    cells = {cell["policy"]: cell for cell in found["cells"]}
    assert cells["expert"]["successes"] == 2 and cells["random"]["task"] == "reach"
    assert told(capsys, "table", run) == found
    compared = told(capsys, "compare", run, run, "--policy-a", "expert", "--policy-b", "random")
    assert "expert" in json.dumps(compared)


def test_several_runs_need_a_place_for_their_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "table", "a", "b"]) == 2
    assert "say where with --out" in capsys.readouterr().err


def test_dry_run_plays_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policy", "random", "--task", "reach", "--out", str(tmp_path / "run"), "--dry-run"]
    assert cli.main(["eval", "closed-loop", *words]) == 0
    assert "50" in capsys.readouterr().out and not (tmp_path / "run" / "results.jsonl").exists()
