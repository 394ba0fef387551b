"""`kairos robot` on fake arms: look, run, record by a leader, replay."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from robot_home import SIMS, robot_home

from kairos_env.cli import main as cli
from kairos_env.cli.robot_session import Opening, opened
from kairos_env.datasets.layouts import open_recording
from kairos_env.sims.robot.fake.robot import FakeRobot


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    robot_home()
    monkeypatch.setenv("KAIROS_SIMS", os.fspath(SIMS.absolute()))


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Path]:
    fake = FakeRobot("so101")
    file = tmp_path / "arm.json"
    file.write_text(json.dumps(fake.config()))
    yield file
    fake.close()


def test_find_lists_and_opens_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["robot", "find", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"ports", "cameras"}


def test_a_fake_is_run_recorded_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, log = tmp_path / "recorded", tmp_path / "safety.jsonl"
    words = [
        "robot",
        "run",
        "fake:so101",
        "--policy",
        "random",
        "--decisions",
        "6",
        "--out",
        str(out),
        "--log",
        str(log),
    ]
    assert cli.main(words) == 0
    recording = open_recording(out)
    episode = recording[0]
    assert recording.spec.action[0].unit == "deg" and len(episode) >= 5
    assert not np.allclose(episode.actions, episode.labels["commanded"])  # what was sent, and what was asked for
    assert "clip" in {json.loads(line)["event"] for line in log.read_text().splitlines()}
    assert cli.main(["robot", "replay", "fake:so101", "--data", str(out), "--log", str(log)]) == 0
    assert cli.main(["robot", "run", "fake:so101", "--log", str(log)]) == 2  # the bundled model is of another robot
    assert "nothing was moved" in capsys.readouterr().err


def test_the_script_of_a_fake_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, log = str(tmp_path / "shown"), str(tmp_path / "log")
    words = ["robot", "record", "fake:so101", "--leader", "expert", "--out", out, "--log", log, "--episodes", "2"]
    words += ["--seconds", "1.5", "--rate-hz", "10", "--disturb", "0.1", "--cameras", "front", "--size", "16,16"]
    assert cli.main(words) == 0
    assert "success: 2 of 2" in capsys.readouterr().out
    recording = open_recording(out)
    episode = recording[1]
    assert len(episode) == 15 and episode.success[-2:].all()  # it goes on past the success
    assert list(episode.images) == ["front"] and episode.instruction == "move the gripper to the red block"
    expert = episode.labels["expert_actions"][:, 0]
    astray = np.abs(expert[:-1] - episode.actions).max(1) > 1
    assert expert.shape == (16, 6) and astray.any() and not astray.all()
    assert cli.main(["robot", "record", "arm.json", "--leader", "expert"]) == 2
    assert "scenes of fakes only" in capsys.readouterr().err


def test_nobody_arms_a_robot_by_accident(arm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["robot", "run", str(arm), "--policy", "random", "--log", str(arm.parent / "log")]) == 2
    assert "--armed-by" in capsys.readouterr().err
    assert cli.main(["robot", "check", str(arm), "--beats", "5"]) in (0, 1)
    assert "shoulder_pan.pos" in capsys.readouterr().out


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, words in (("{", "is no JSON"), ("[]", "holds a list")):
        file = tmp_path / "arm.json"
        file.write_text(text)
        assert cli.main(["robot", "check", str(file)]) == 2
        told = capsys.readouterr().err
        assert str(file) in told and words in told


def test_a_port_in_use_is_refused(arm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(str(arm), Opening(), rate_hz=30.0, beats=1):
        assert cli.main(["robot", "check", str(arm)]) == 2
        assert "is in use" in capsys.readouterr().err


def test_a_leader_is_followed_and_recorded(arm: Path, tmp_path: Path) -> None:
    leader = FakeRobot("so101")
    try:
        config = leader.config() | {"type": "so101_leader"}
        del config["cameras"]
        (tmp_path / "leader.json").write_text(json.dumps(config))
        words = [
            "robot",
            "record",
            str(arm),
            "--leader",
            str(tmp_path / "leader.json"),
            "--out",
            str(tmp_path / "shown"),
        ]
        words += [
            "--episodes",
            "1",
            "--seconds",
            "1",
            "--rate-hz",
            "5",
            "--armed-by",
            "tester",
            "--instruction",
            "wave",
        ]
        (tmp_path / "limits.json").write_text(json.dumps({"observation_s": 5, "command_s": 5, "late_beats": 100}))
        words += ["--limits", str(tmp_path / "limits.json"), "--log", str(tmp_path / "log")]
        assert cli.main(words) == 0
        assert open_recording(tmp_path / "shown")[0].instruction == "wave"
    finally:
        leader.close()
