"""RoboTwin's home for tests: what `make robotwin` installs, with the robot of the test data."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
from libero_home import SIMS
from paths import DATA

from kairos_env.runs import append_jsonl
from kairos_env.sims.robotwin.env import ExpertOutcome
from kairos_env.sims.robotwin.home import RoboTwinHome
from kairos_env.sims.robotwin.planner import VERSION

ROBOTS = DATA / "robotwin" / "embodiment"
CONTRACT = DATA / "robotwin" / "contract"


@functools.cache
def robotwin_home() -> Path:
    """Without the installation or the test data, a test that calls this is skipped."""
    installed = SIMS.absolute() / "robotwin"
    if not (installed / "installed.json").is_file():
        pytest.skip(f"needs RoboTwin in {installed}: `make robotwin`, or set KAIROS_SIMS")
    if not ROBOTS.is_dir():
        pytest.skip("needs RoboTwin's robot under KAIROS_TEST_DATA")
    home = SIMS.absolute() / "robotwin-tests"
    _link(home / "assets" / "embodiments", ROBOTS)
    for name in ("env", "driver", "installed.json"):
        if (installed / name).exists():
            _link(home / name, installed / name)
    return home


def separate_home(folder: Path) -> RoboTwinHome:
    """The same in an empty folder, where notes about seeds are nobody else's."""
    installed = robotwin_home()
    _link(folder / "assets" / "embodiments", ROBOTS)
    for name in ("env", "driver"):
        if (installed / name).exists():
            _link(folder / name, installed / name)
    return RoboTwinHome.open(folder)


def note_outcomes(home: RoboTwinHome, task: str, first: int, outcomes: Sequence[ExpertOutcome]) -> None:
    """As if the expert had been asked about these seeds in clean scenes."""
    path = home.home / "expert_seeds" / f"{home.robot_digest}-{VERSION}" / f"{task}-clean.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed, outcome in enumerate(outcomes, first):
        append_jsonl(path, {"seed": seed, "outcome": outcome})


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.readlink() != target:
        link.unlink(missing_ok=True)
    if not link.is_symlink():
        try:
            link.symlink_to(target)
        except FileExistsError:  # another test process was faster
            assert link.readlink() == target
