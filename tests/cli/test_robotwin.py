"""`kairos robotwin seeds`: what the experts solve as a table and as data; no simulator is started for what is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from robotwin_home import note_outcomes, separate_home

from kairos_env.cli import main as cli
from kairos_env.sims.robotwin import seeds
from kairos_env.sims.robotwin.home import RoboTwinHome
from kairos_env.sims.robotwin.planner import VERSION


@pytest.fixture
def home(tmp_path: Path) -> RoboTwinHome:
    return separate_home(tmp_path)


def test_a_table_of_what_is_known(home: RoboTwinHome, capsys: pytest.CaptureFixture[str]) -> None:
    note_outcomes(home, "handover_block", 700, ["solved", "unstable", "no path", "solved", "failed"])
    asked = ["robotwin", "seeds", "--home", str(home.home), "--tasks", "handover_block", "--first", "700"]
    assert cli.main([*asked, "--count", "5"]) == 0
    header, _, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["task", "solved", "%", "solved", "unstable", "no", "path", "failed", "not", "solved"]
    assert line.split() == ["handover_block", "50", "[15,", "85]", "2", "1", "1", "1", "702", "704"]
    assert cli.main([*asked, "--count", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcomes"] == {"handover_block-clean": {"solved": [700], "unstable": [701], "no path": [702]}}
    assert found["planner"] == VERSION and found["robot"] == home.robot_digest


def test_what_is_refused(home: RoboTwinHome, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["robotwin", "seeds", "--home", str(home.home)]
    for more, words in (
        (["--tasks", "handover_blok"], "did you mean 'handover_block'"),
        (["--tasks", "place_shoe"], "does not have: objects/041_shoe"),
        (["--scenes", "randomized", "--tasks", "stack_blocks_two"], "background_texture/seen"),
        (["--count", "0"], "give at least 1 seed"),
    ):
        assert cli.main([*asked, *more]) == 2
        assert words in capsys.readouterr().err


def test_what_ships_is_of_this_planner_and_the_robot_of_the_tests(home: RoboTwinHome) -> None:
    """Else an evaluation asks all of it again: make it anew, `kairos robotwin seeds --again --json`."""
    assert seeds.made_with(home) == seeds._shipped_with()
    for task in home.tasks():
        known = seeds.known_outcomes(home, task, "clean")
        assert (not known) if home.missing(task) else min(known) == 100000
