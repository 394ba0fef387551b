"""Whatever policies, cables and processes do, nothing unsafe arrives at the servos, and the arm ends safely."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_faults import faulty_decisions
from paths import ROOT
from robot_home import robot_home

from kairos_env.sims.robot.env import RobotEnv
from kairos_env.sims.robot.fake.robot import FakeRobot
from kairos_env.sims.robot.safety import NotArmed


@pytest.mark.parametrize("robot", ["so101", "koch"])
def test_an_adversary_on_a_noisy_cable_sends_nothing_unsafe(robot: str) -> None:
    """The short form of `tests/fault_campaign.py`."""
    told = faulty_decisions(robot, 75, 0, robot_home())
    assert min(told[what] for what in ("moved", "refused", "stopped")) > 0 and told["packets"] > 150, told


@pytest.fixture
def fake() -> Any:
    fake = FakeRobot("so101")
    yield fake
    fake.close()


def torques(fake: FakeRobot) -> list[int]:
    return [servo.get("torque") for servo in fake.servos.values()]


def waits_for(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_policy_that_falls_silent_is_held_then_stopped(fake: FakeRobot, tmp_path: Path) -> None:
    log = tmp_path / "safety.jsonl"
    limits = {"command_s": 0.4, "stop_s": 0.4, "observation_s": 2}
    env = RobotEnv(fake.config(), 10, 1, limits=limits, on_stop="relax", answer_s=0.5, log=log, home=robot_home())
    try:
        with pytest.raises(NotArmed, match="nobody has armed"):
            env.reset()
        assert torques(fake) == [0] * 6 and fake.goals == []
        env.arm("tester")
        env.reset()
        env.step(env.look()["positions"])
        assert torques(fake) == [1] * 6
        assert waits_for(lambda: torques(fake) == [0] * 6, 5)  # in 0.8 s on an idle machine
        with pytest.raises(NotArmed, match="no command came for"):
            env.step(env.look()["positions"])
        rows = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert rows[0] == "arm" and {"hold", "stop"} <= set(rows)
    finally:
        env.close()


_POLICY = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from kairos_env.sims.robot.env import RobotEnv
limits = {"observation_s": 5, "command_s": 5}
env = RobotEnv(json.loads(sys.argv[1]), 10, 1, limits=limits, on_exit=sys.argv[2], answer_s=0.5)
env.arm("tester"); env.reset(); print(env._process.pid, flush=True)
while True:
    env.step(env.look()["positions"])
"""


@pytest.mark.parametrize(("number", "on_exit"), [(signal.SIGKILL, "relax"), (signal.SIGINT, "hold")])
def test_a_policy_that_is_killed_leaves_the_arm_as_configured(fake: FakeRobot, number: int, on_exit: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KAIROS_SIMS": str(robot_home().parent)}
    command = [sys.executable, "-c", _POLICY, json.dumps(fake.config()), on_exit]
    policy = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert policy.stdout is not None
    worker = int(policy.stdout.readline())
    assert waits_for(lambda: len(fake.goals) > 3, 20) and torques(fake) == [1] * 6
    policy.send_signal(number)
    policy.wait(20)
    assert waits_for(lambda: not Path(f"/proc/{worker}").exists(), 10)
    assert torques(fake) == ([0] * 6 if on_exit == "relax" else [1] * 6)
    goals = [servo.get("goal") for servo in fake.servos.values()]
    assert np.abs(np.subtract(goals, [servo.get("present") for servo in fake.servos.values()])).max() < 15 * 4095 / 360
