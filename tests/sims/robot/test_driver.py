"""LeRobot's real drivers on fake buses: what goes wrong with them, row by row, and what Kairos does instead."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robot_home import robot_home

from kairos_env.sims.process import SimulatorError, SimulatorProcess
from kairos_env.sims.robot.bounds import UnsafeCommand
from kairos_env.sims.robot.env import RobotEnv
from kairos_env.sims.robot.fake.arms import JOINTS
from kairos_env.sims.robot.fake.robot import FakeRobot
from kairos_env.sims.robot.fake.wire import PING, READ, SYNC_READ, SYNC_WRITE
from kairos_env.sims.robot.safety import NotArmed

ANSWER_S = 0.4  # a loaded machine answers in time
_ROBOTS = ["so101", "koch"]


@pytest.fixture(scope="module", params=_ROBOTS)
def shared(request: pytest.FixtureRequest) -> Iterator[RobotEnv]:
    env = RobotEnv(
        f"fake:{request.param}", rate_hz=30, beats=1, cameras={}, answer_s=ANSWER_S, home=robot_home(), on_stop="relax"
    )
    yield env
    env.close()


@pytest.fixture
def env(shared: RobotEnv) -> RobotEnv:
    """An armed arm at rest, whose bus works."""
    assert shared.fake is not None
    shared.fake.bus.fault = None
    for servo in shared.fake.servos.values():
        servo.status_error = 0
    shared.reset(seed=1)
    shared.fake.goals.clear()
    return shared


def rest(env: RobotEnv) -> Any:
    return env.look()["positions"].copy()


def within(env: RobotEnv) -> None:
    """Every goal that was written is within the calibrated range."""
    assert env.fake is not None
    for goal in env.fake.goals:
        for servo, steps in goal.items():
            low, high = env.fake.arm.ranges[servo - 1]
            assert low <= steps <= high, (JOINTS[servo - 1], steps)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a | {"shoulder_pan.pos": math.nan}, "shoulder_pan is nan"),
        (lambda a: a | {"gripper.pos": math.inf}, "gripper is inf"),
        (lambda a: a | {"wrist.pos": 1.0}, "names wrist"),
        (lambda a: {}, "is empty"),
        (lambda a: a | {"elbow_flex.pos": "3"}, "elbow_flex is '3'"),
        (lambda a: "go", "give 6 numbers"),
    ],
)
def test_a_command_that_is_none_is_one_clear_error_and_nothing_is_sent(env: RobotEnv, change: Any, words: str) -> None:
    action = {f"{name}.pos": float(value) for name, value in zip(JOINTS, rest(env), strict=True)}
    with pytest.raises(UnsafeCommand, match=words):
        env.step(change(action))
    assert env.fake.goals == []
    _, *_, info = env.step(action)
    assert info["state"] == "armed" and info["counts"]["refused"] == 1 and len(env.fake.goals) == 1


def test_angles_outside_the_calibration_and_jumps_are_slow_movements_within_it(env: RobotEnv) -> None:
    start = env.fake.servos[1].get("goal")
    for angle in (200.0, -200.0, 1e5, 170.0):
        for _ in range(12):
            _, *_, info = env.step({"shoulder_pan.pos": angle})
        assert info["clips"]["shoulder_pan"][0] in ("position", "motion", "distance")
    within(env)
    pan = [start, *(goal[1] for goal in env.fake.goals)]
    unit = 4095 / 360 if env.robot_spec.action[0].unit == "deg" else (3250 - 850) / 200
    assert len(pan) == 49 and np.abs(np.diff(pan)).max() <= 120 / 30 * unit + 1


def test_a_partial_action_holds_the_rest_explicitly(env: RobotEnv) -> None:
    here = rest(env)
    _, *_, info = env.step({"elbow_flex.pos": float(here[2] + 1)})
    assert sorted(env.fake.goals[-1]) == [1, 2, 3, 4, 5, 6]
    assert np.allclose(np.delete(info["sent"], 2), np.delete(here, 2), atol=0.2)


def test_a_damaged_answer_holds_then_stops(env: RobotEnv) -> None:
    here = rest(env)
    env.fake.bus.fault = lambda request, out: (
        out[:-1] + bytes([out[-1] ^ 1]) if request.instruction == SYNC_READ else out
    )
    _, *_, info = env.step(here)
    assert (info["state"], info["counts"]["missed"]) == ("holding", 1) and "reading positions failed" in info["reason"]
    with pytest.raises(NotArmed, match="10 beats in a row failed"):
        for _ in range(20):
            env.step(here + 5)
    assert len(env.fake.goals) == 1  # the first one, before the damage was seen
    with pytest.raises(NotArmed, match="a person has to look at it"):
        env.step(here)


def test_lost_answers_are_counted_and_the_arm_goes_on(env: RobotEnv) -> None:
    here, count = rest(env), [0]

    def two_of_three(request: Any, out: bytes) -> bytes:
        count[0] += request.instruction == SYNC_READ and request.address in (56, 132)
        return b"" if request.instruction == SYNC_READ and count[0] % 3 else out

    env.fake.bus.fault = two_of_three
    counts = [env.step(here)[-1]["counts"] for _ in range(9)][-1]
    assert counts["missed"] == 6 and len(env.fake.goals) == 3  # after each answer that came


def test_a_fault_bit_stops_the_arm_and_names_the_joint(env: RobotEnv) -> None:
    here = rest(env)
    env.fake.servos[3].status_error = 0x20 if env.fake.arm.family.name == "feetech" else 0x80
    with pytest.raises(NotArmed, match="elbow_flex: (overload|hardware alert)"):
        env.step(here)
    assert [servo.get("torque") for servo in env.fake.servos.values()] == [0] * 6  # on_stop="relax": all obeyed
    env.fake.servos[3].status_error = 0
    env.arm("tester")
    assert env.step(here)[-1]["state"] == "armed" and env.fake.servos[6].get("torque") == 1


def test_every_motor_is_tried_when_one_does_not_answer(env: RobotEnv) -> None:
    env.fake.servos[2].status_error = 0x20 if env.fake.arm.family.name == "feetech" else 0x80
    env.fake.bus.fault = lambda request, out: b"" if request.servo == 4 else out
    assert env.relax() == ["wrist_flex"]
    assert [servo.get("torque") for servo in env.fake.servos.values()] == [0] * 6  # it obeyed, and could not say so
    env.fake.bus.fault, env.fake.servos[2].status_error = None, 0
    env.arm("tester")


def test_a_stop_ends_a_motion_and_only_a_person_arms_again(env: RobotEnv) -> None:
    here = rest(env)
    env.step(here)
    env.stop()
    with pytest.raises(NotArmed, match="the stop channel was used"):
        for _ in range(200):
            env.step(here)
    with pytest.raises(NotArmed, match="a person"):
        env.step(here)
    env.arm("tester")
    assert env.step(here)[-1]["state"] == "armed"


@pytest.fixture(scope="module")
def worker() -> Iterator[SimulatorProcess]:
    process = SimulatorProcess(robot_home() / "env/bin/python", "kairos_env.sims.robot.worker", {}, 60)
    yield process
    process.close()


@pytest.fixture(params=_ROBOTS)
def fake(request: pytest.FixtureRequest) -> Iterator[FakeRobot]:
    fake = FakeRobot(request.param)
    yield fake
    fake.close()


def test_opening_writes_nothing_and_gives_no_torque(worker: SimulatorProcess, fake: FakeRobot) -> None:
    found = worker.call("open", config=fake.config(), answer_s=ANSWER_S).values
    assert [field["name"] for field in found["fields"]] == [f"{name}.pos" for name in JOINTS]
    assert {request.instruction for request in fake.bus.requests} <= {PING, READ, SYNC_READ}
    assert [servo.get("torque") for servo in fake.servos.values()] == [0] * 6


def test_what_is_wrong_is_said_before_anything_moves_and_can_be_mended(
    worker: SimulatorProcess, fake: FakeRobot, tmp_path: Path
) -> None:
    config = fake.config()

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(SimulatorError, match=words):
            worker.call("open", config=config | changes, answer_s=ANSWER_S)

    refused("there is no port /dev/nowhere", port="/dev/nowhere")
    refused("LeRobot has no robot 'so102_follower'; did you mean 'so101_follower'", type="so102_follower")
    kind = config["type"]
    refused(f"FileNotFoundError: there is no calibration in .*other.json.*--robot.type={kind} ", id="other")
    (tmp_path / "fake.json").write_text("{broken")
    refused("does not take a calibration of", calibration_dir=str(tmp_path))
    with pytest.raises(SimulatorError, match="the configuration has no type"):
        worker.call("open", config={"port": config["port"]}, answer_s=ANSWER_S)
    known = json.loads((fake.calibration_folder / "fake.json").read_text())
    known["elbow_flex"]["range_max"] += 50
    (tmp_path / "fake.json").write_text(json.dumps(known))
    refused("elbow_flex: range_max 3150, in the file 3200", calibration_dir=str(tmp_path))
    lost = fake.bus.chain.servos.pop(3)
    refused("Missing motor IDs: - 3")
    fake.bus.chain.servos[3] = lost
    worker.call("open", config=config | {"max_relative_target": 5}, answer_s=ANSWER_S)  # an int, too
    assert all(request.instruction != SYNC_WRITE for request in fake.bus.requests)


def test_an_unplugged_cable_is_one_error_and_the_robot_can_be_opened_again(worker: SimulatorProcess) -> None:
    first = FakeRobot("so101")
    env = RobotEnv(first.config(), rate_hz=5, beats=1, answer_s=ANSWER_S, home=robot_home())
    try:
        env.arm("tester")
        env.reset()
        first.bus.unplug()
        with pytest.raises(NotArmed, match="was stopped"):
            for _ in range(3):
                env.step(env.look()["positions"])
        with pytest.raises(ConnectionError, match="no port"):
            env.arm("tester")
    finally:
        env.close()
        first.close()
    again = FakeRobot("so101")
    try:
        worker.call("open", config=again.config(), answer_s=ANSWER_S)
    finally:
        again.close()
