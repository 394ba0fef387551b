"""What can go wrong between a policy and an arm, and what must not arrive at the servos then."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded

from kairos_env.records import RobotSpec
from kairos_env.sims.process import SimulatorCrashed
from kairos_env.sims.robot.bounds import UnsafeCommand
from kairos_env.sims.robot.env import RobotEnv
from kairos_env.sims.robot.fake.arms import JOINTS
from kairos_env.sims.robot.fake.robot import FakeRobot
from kairos_env.sims.robot.fake.wire import BusRequest
from kairos_env.sims.robot.safety import NotArmed

BEATS = 10
RATE = 30  # goals a second
VELOCITY, STEP = (120, 120, 120, 120, 120, 250), (15, 15, 15, 15, 15, 40)  # per second; units of the fields


def unsafe_packets(fake: FakeRobot, spec: RobotSpec, rate: float = RATE) -> list[str]:
    """Goals that arrived outside the limits: of range, of speed, of distance from the measured place."""
    found: list[str] = []
    if not fake.goals:
        return found
    last: dict[int, int] = {}
    then, earlier = 0, fake.places[0]
    for goal, place, now in zip(fake.goals, fake.places, fake.times, strict=True):
        passed, then = max(1, now - then) / rate, now  # a goal that got lost on its way leaves time to the next one
        for servo, steps in goal.items():
            low, high = fake.arm.ranges[servo - 1]
            unit = spec.action[servo - 1].unit
            scale = 4095 / 360 if unit == "deg" else (high - low) / (200 if unit == "normalised" else 100)
            # as it was measured: where it is, or where it was a beat ago, if an answer came late
            known = {min(max(known[servo], low), high) for known in (place, earlier)}
            here = min(known, key=lambda at, steps=steps: abs(steps - at))
            nearer = servo in last and abs(steps - here) <= abs(last[servo] - here) + 1
            if not low <= steps <= high:
                found.append(f"{JOINTS[servo - 1]} {steps} is outside {low} ... {high}")
            if abs(steps - here) > STEP[servo - 1] * scale + 2 and not nearer:
                found.append(f"{JOINTS[servo - 1]} {steps} is far from {here}")
            before = last.get(servo, here)
            if abs(steps - before) > VELOCITY[servo - 1] * passed * scale + 2 and not nearer and abs(steps - here) > 2:
                found.append(f"{JOINTS[servo - 1]} jumps from {before} to {steps}")
            last[servo] = steps
        earlier = place
    return found


def adversary(rng: np.random.Generator, low: Any, high: Any) -> Any:
    """What a broken policy might decide."""
    action = rng.uniform(low, high)
    kind = int(rng.integers(12))
    if kind == 0:
        action[rng.integers(6)] = rng.choice([np.nan, np.inf, -np.inf])
    if kind == 1:
        action *= 10.0 ** rng.integers(1, 30)
    if kind == 2:
        return rng.choice([low, high])
    if kind == 3:
        return {f"{rng.choice(JOINTS)}.pos": float(rng.uniform(-400, 400)), "other.pos": 1.0}
    if kind == 4:
        return {f"{rng.choice(JOINTS)}.pos": float(rng.uniform(-400, 400))}
    if kind == 5:
        return rng.choice([0.0, 1e308, -1e308], 6)
    if kind == 6:
        return action[: rng.integers(6)]
    if kind == 7:
        return ["stop", None, [], "3"][int(rng.integers(4))]
    return action


class Noise:
    """A cable that drops, damages, doubles and cuts packets, in both directions."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.level = rng, 0.0

    def deaf(self, request: BusRequest) -> bool:
        return bool(self.rng.random() < self.level)

    def fault(self, request: BusRequest, out: bytes) -> bytes:
        if not out or self.rng.random() >= self.level:
            return out
        place = int(self.rng.integers(len(out)))
        changed = out[:place] + bytes([out[place] ^ int(self.rng.integers(1, 256))]) + out[place + 1 :]
        return (b"", out[:place], changed, out + out)[int(self.rng.integers(4))]


def faulty_decisions(robot: str, decisions: int, seed: int, home: Any) -> Counter[str]:
    """Drives a fake in lockstep by an adversary over a noisy cable, with everything else that can happen in between.

    Somebody pushes the arm, servos report faults, a person stops it, the worker is killed, the cable is pulled out.
    After every end it is looked whether anything moves before a person arms the arm again.

    Returns:
        What happened, how often: moved, refused, stopped, crashed, and ``packets`` that arrived.

    Raises:
        AssertionError: a packet was unsafe, or one came after an end.
    """
    rng, told = np.random.default_rng(seed), Counter[str]()
    env, noise = _armed(robot, home), Noise(rng)
    low, high = np.array(env.limits["low"]), np.array(env.limits["high"])
    try:
        env.reset(seed=seed)
        env.fake.bus.fault, env.fake.bus.deaf = noise.fault, noise.deaf
        for decision in range(decisions):
            noise.level = float(rng.choice([0, 0, 0, 0, 0, 0.01, 0.1]))
            _happens(env, decision, rng)
            try:
                env.step(adversary(rng, low, high))
                told["moved"] += 1
            except UnsafeCommand:
                told["refused"] += 1
            except (NotArmed, SimulatorCrashed, ConnectionError) as error:
                told["crashed" if isinstance(error, SimulatorCrashed) else "stopped"] += 1
                noise.level = 0.0
                _nothing_goes_on(env, low)
                if decision % 150 == 149:  # the cable was pulled out: another arm on another port
                    told["packets"] += _checked(env)
                    env.close()
                    env = _armed(robot, home)
                    env.reset(seed=decision)
                    env.fake.bus.fault, env.fake.bus.deaf = noise.fault, noise.deaf
                elif isinstance(error, SimulatorCrashed):
                    env.reset(seed=decision)  # a new worker
                else:
                    env.arm("tester")
        told["packets"] += _checked(env)
    finally:
        env.close()
    return told


def _armed(robot: str, home: Any) -> RobotEnv:
    return RobotEnv(f"fake:{robot}", rate_hz=RATE / BEATS, beats=BEATS, cameras={}, answer_s=0.05, home=home)


def _happens(env: RobotEnv, decision: int, rng: np.random.Generator) -> None:
    """What is no command and no noise."""
    assert env.fake is not None
    if decision % 100 == 50:  # somebody pushes the arm
        env.fake.move_by_hand(env.fake.twin.angles() + rng.uniform(-0.3, 0.3, 6) * [1, 1, 1, 1, 1, 0])
    if decision % 90 == 30:
        env.fake.servos[int(rng.integers(1, 7))].status_error = 0xA0
    if decision % 120 == 70:
        env.stop()
    if decision % 300 == 200:
        assert env._process is not None
        os.kill(env._process.pid, signal.SIGKILL)
    if decision % 150 == 149:
        env.fake.bus.unplug()


def _nothing_goes_on(env: RobotEnv, action: Any) -> None:
    """After an end the next command is refused, and no packet comes of it."""
    assert env.fake is not None
    count = len(env.fake.goals)
    for servo in env.fake.servos.values():
        servo.status_error = 0
    try:
        env.step(action)
    except (NotArmed, ResetNeeded):
        pass
    else:
        raise AssertionError("it went on by itself")
    assert len(env.fake.goals) == count, "something was sent after the end"


def _checked(env: RobotEnv) -> int:
    """The number of packets that arrived, once all are known to be safe."""
    fake = env.fake
    assert fake is not None and fake.bus.error is None
    found = unsafe_packets(fake, env.robot_spec)
    assert not found, found[:5]
    return len(fake.goals)
