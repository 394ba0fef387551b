"""`kairos sims`: which simulators are there, also for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kairos_env.cli import main as cli


def test_list_and_check_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sims", "list", "--home", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["robosuite"] == listed["robosuite"] | {"id": "Kairos-Robosuite-v0", "installed": True, "tasks": 4}
    assert not listed["libero"]["installed"] and "kairos sims install libero-plus" in listed["libero-plus"]["remedy"]
    assert cli.main(["sims", "check", "libero", "--home", str(tmp_path), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert any(finding["status"] == "problem" and finding["remedy"] for finding in findings)
