"""Faults between a policy and a fake arm, by the thousand: nothing unsafe arrives, and the arm ends safely in time.

    python tests/fault_campaign.py                            10,000 beats of an SO-101, 3,000 of a Koch, live faults
    python tests/fault_campaign.py --beats 1000 --rounds 1    shorter

First an adversary decides over a noisy cable, in lockstep (`arm_faults`): commands that are not finite, jump, lack
joints or have others, packets that are lost, damaged, doubled and cut, pushes, faults of servos, stops, killed workers
and pulled cables. Then a policy on a server drives the arm in real time, and one of its parts dies, hangs or goes: the
table says how long after that the last goal changed, and what is promised. Ends with 1 if a packet was unsafe or a
promise broken.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arm_faults import BEATS, STEP, faulty_decisions, unsafe_packets
from paths import ROOT, TESTS
from robot_home import robot_home

from kairos_env.records import RobotSpec
from kairos_env.sims.robot.env import RobotEnv
from kairos_env.sims.robot.fake.arms import ARMS
from kairos_env.sims.robot.fake.robot import FakeRobot

LIMITS = {"command_s": 0.5, "stop_s": 1.0, "late_beats": 1000, "missed_beats": 30, "observation_s": 2.0}
SILENCE_S = 1.25 * LIMITS["command_s"]  # the watchdog looks four times in that time

_SERVER = """
import sys, time
import numpy as np
from serving import serving
from kairos_env.policies.remote.server import PolicyServer, ServeConfig
from kairos_env.records import ActionChunk, RobotSpec
import json
spec = RobotSpec.from_dict(json.loads(sys.argv[1]))

class Wave:
    def reset(self, seed=None): self.step = 0
    def act(self, seen): return self.chunk(seen).actions[0]
    def chunk(self, seen):
        self.step += 1
        middle, width = (spec.action_high + spec.action_low) / 2, (spec.action_high - spec.action_low) / 2
        way = 0.25 * width * np.sin(0.4 * self.step + np.arange(len(width)))
        return ActionChunk((middle + way * [1, 1, 1, 1, 1, 0])[None].astype(np.float32))

about = {"protocol": 1, "policy": "wave", "weights": "", "execute": 1, "remembers": False}
with serving(PolicyServer(Wave, spec, about, ServeConfig(port=0))) as address:
    print(address, flush=True)
    time.sleep(1000)
"""

_POLICY = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from kairos_env.policies.remote.policy import RemotePolicy
from kairos_env.records import Observation
from kairos_env.sims.robot.env import RobotEnv
config, limits = json.loads(sys.argv[1]), json.loads(sys.argv[2])
env = RobotEnv(config, 10, 3, limits=limits, on_stop=sys.argv[4], on_exit=sys.argv[4], answer_s=0.3)
policy = RemotePolicy(env.robot_spec, sys.argv[3])
env.arm("campaign")
raw, info = env.reset()
policy.reset(0)
print(env._process.pid, flush=True)
while True:
    raw, _, _, _, info = env.step(policy.act(Observation.from_gym(raw, info["instruction"])))
"""


@dataclass
class Chain:
    """An arm that moves, and the processes behind it."""

    fake: FakeRobot
    server: subprocess.Popen[str]
    policy: subprocess.Popen[str]
    worker: int


# Fault -> what it does, and seconds until the last goal has changed, on an idle machine. Where nothing can be sent any
# more, servos keep the goal that they have.
FAULTS: dict[str, tuple[Callable[[Chain], Any], float]] = {
    "the policy falls silent": (lambda c: c.policy.send_signal(signal.SIGSTOP), SILENCE_S),
    "the server falls silent": (lambda c: c.server.send_signal(signal.SIGSTOP), SILENCE_S),
    "the server is killed": (lambda c: c.server.kill(), SILENCE_S),
    "the policy is killed": (lambda c: c.policy.kill(), 0.3),
    "the policy gets SIGTERM": (lambda c: c.policy.terminate(), 0.5),
    "the policy gets Ctrl-C": (lambda c: c.policy.send_signal(signal.SIGINT), 0.5),
    "the worker is killed": (lambda c: os.kill(c.worker, signal.SIGKILL), 0.1),
    "the worker gets SIGTERM": (lambda c: os.kill(c.worker, signal.SIGTERM), 0.3),
    "the stop channel is used": (lambda c: os.kill(c.worker, signal.SIGUSR1), 0.1),
    "the cable is pulled out": (lambda c: c.fake.bus.unplug(), 0.0),
    "the worker's clock jumps": (lambda c: _freeze(c.worker, 1.0), SILENCE_S),
}
UNABLE = ("the worker is killed", "the cable is pulled out")  # nobody is left who could switch torque off


def _freeze(process: int, seconds: float) -> None:
    os.kill(process, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(process, signal.SIGCONT)


@functools.cache
def described(robot: str) -> RobotSpec:
    """The robot as LeRobot's driver tells it."""
    env = RobotEnv(f"fake:{robot}", 10, cameras={}, home=robot_home())
    env.close()
    return env.robot_spec


@contextmanager
def moving(robot: str, on_exit: str) -> Iterator[Chain]:
    """An arm that a served policy moves, inside the block."""
    fake, spec = FakeRobot(robot), described(robot)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{TESTS}", "KAIROS_SIMS": str(robot_home().parent)}

    def start(code: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=told, text=True)

    told = tempfile.TemporaryFile("w+")
    server = start(_SERVER, json.dumps(spec.to_dict()))
    policy = None
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        policy = start(_POLICY, json.dumps(fake.config()), json.dumps(LIMITS), address, on_exit)
        assert policy.stdout is not None
        worker = int(policy.stdout.readline() or 0)
        if not worker:
            told.seek(0)
            raise RuntimeError(f"the policy did not start: {told.read()[-2000:]}")
        end = time.monotonic() + 30
        while len(fake.goals) < 20:
            assert time.monotonic() < end, "the arm does not move"
            time.sleep(0.01)
        yield Chain(fake, server, policy, worker)
    finally:
        for process in filter(None, (policy, server)):
            process.kill()
            process.wait(30)
        fake.close()
        told.close()


def last_change(fake: FakeRobot, since: float, seconds: float) -> float:
    """When a goal changed last, watched for some seconds [s after ``since``]."""
    known, changed = None, since
    while time.monotonic() < since + seconds:
        goals = [servo.get("goal") for servo in fake.servos.values()]
        if known is not None and np.abs(np.subtract(goals, known)).max() > 1:
            changed = time.monotonic()
        known = goals
        time.sleep(0.005)
    return changed - since


def live_fault(robot: str, name: str, on_exit: str, slack: float) -> tuple[float, int, list[str]]:
    """How long after a fault the last goal changed, packets in all, and what was wrong."""
    fault, promised = FAULTS[name]
    with moving(robot, on_exit) as chain:
        fake = chain.fake
        began = time.monotonic()
        fault(chain)
        took = last_change(fake, began, promised + slack + LIMITS["stop_s"] + 1)
        wrong = unsafe_packets(fake, described(robot))
        if name == "the worker's clock jumps":
            return took, len(fake.goals), wrong  # it goes on, and no faster than before
        if took > promised + slack:
            wrong.append(f"the last goal changed after {took:.2f} s, promised are {promised:.2f} s")
        torque = [servo.get("torque") for servo in fake.servos.values()]
        away = [abs(servo.get("goal") - servo.get("present")) for servo in fake.servos.values()]
        if on_exit == "relax" and name not in UNABLE and any(torque):
            wrong.append(f"torque is {torque}")
        if on_exit == "hold" and max(away) > max(STEP) * 4096 / 360:
            wrong.append(f"goals are up to {max(away)} steps away")
        return took, len(fake.goals), wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robots", default=",".join(ARMS))
    parser.add_argument("--beats", type=int, default=10_000, help="of the first robot in lockstep; 3/10 of the others")
    parser.add_argument("--rounds", type=int, default=2, help="of the live faults")
    parser.add_argument("--faults", default="", help="those whose name has this part")
    parser.add_argument("--slack", type=float, default=0.5, help="seconds that a busy machine may take longer")
    options = parser.parse_args(arguments)
    home: Path = robot_home()
    bad, packets = 0, 0
    for number, robot in enumerate(options.robots.split(",")):
        beats = options.beats if number == 0 else 3 * options.beats // 10
        if beats:
            told = faulty_decisions(robot, beats // BEATS, 0, home)
            packets += told["packets"]
            print(f"{robot}: {beats} beats of an adversary on a noisy cable, {dict(told)}, 0 unsafe", flush=True)
        for name in [name for name in FAULTS if options.faults in name]:
            for round_number in range(options.rounds):
                on_exit = ("hold", "relax")[round_number % 2]
                took, count, wrong = live_fault(robot, name, on_exit, options.slack)
                packets, bad = packets + count, bad + bool(wrong)
                what = "; ".join(wrong[:3]) or f"last goal after {took:.2f} s (promised {FAULTS[name][1]:.2f})"
                print(f"{robot}: {name}, {on_exit}: {count} packets, {what}", flush=True)
    print(f"{packets} packets with goals arrived; {bad} runs were unsafe or late")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
