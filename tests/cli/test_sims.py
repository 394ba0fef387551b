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


def test_a_simulator_is_held_to_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sims", "check", "point_simulator:Point"]) == 1  # a simulator in 40 lines leaves things out
    out = capsys.readouterr().out
    assert "!! " in out and "ok  spaces" in out
    assert cli.main(["sims", "check", "Kairos-Robosuit-v0"]) == 2
    assert "did you mean 'Kairos-Robosuite-v0'?" in capsys.readouterr().err
