"""A policy of a fake arm behind a policy server with a slow line: success, time, and jumps of the goals.

    python benchmarks/arm_latency.py --model runs/robot/tuned/model --episodes 50

The policy is served by `kairos serve` in a process of its own; every goal goes through the safety layer and LeRobot's
own driver to the servos of the fake. The line's delay is counted in beats of the arm (50 ms), so that the table is the
same on every machine: *waits* asks, stands still for the delay, then executes; the others act while the next chunk is
on its way (`kairos_env.policies.realtime`). All have the same time. A joint step is the change of a joint's goal from
one control step to the next, in degrees, the largest of all episodes: where chunks meet, and inside chunks.
"""

from __future__ import annotations

import argparse
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from kairos_env.eval.statistics import wilson
from kairos_env.policies import Policy
from kairos_env.policies.chunking import ChunkExecution
from kairos_env.policies.realtime import RealTimeExecution
from kairos_env.policies.remote.client import ServerLost
from kairos_env.policies.remote.policy import RemotePolicy, connect, robot_served
from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.sims.robot.env import RobotEnv
from kairos_env.sims.robot.spec import require_drivable

BEATS = 20  # a second


@dataclass
class Trial:
    """One episode: whether it succeeded, after how long [s], and the goals (T, A) of its control steps."""

    success: bool
    seconds: float
    goals: Array
    seams: list[int]


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server of a model's policy, inside the block."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "kairos_env.cli", "serve", "--model", model, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        address, end = f"ws://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                connect(address).close()
                break
            except ServerLost:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


class SlowLine:
    """One arm, and a policy that is some beats away."""

    def __init__(self, env: RobotEnv, spec: RobotSpec, policy: Policy, task: str, seconds: float) -> None:
        self.env, self.spec, self.policy, self.task, self.beats = env, spec, policy, task, round(seconds * BEATS)
        self.each = round(BEATS / spec.control_rate_hz)  # beats of a control step

    def play(self, seed: int, delay_s: float, mode: str, execute: int) -> Trial:
        late = round(delay_s * BEATS)
        if mode == "waits":
            acting: Policy = ChunkExecution(self.policy, execute)
        else:
            acting = RealTimeExecution(self.policy, self.spec, math.ceil(late / self.each), mode, execute)  # type: ignore[arg-type]
        raw, info = self.env.reset(seed=seed, options={"task": self.task, "initial_state": 1_000_000 + seed})
        acting.reset(seed)
        self._left, self._success = self.beats, False
        goals: list[Array] = []
        while self._left > 0 and not self._success:
            seen = Observation.from_gym(raw, info["instruction"])
            goal = acting.act(seen)
            if mode == "waits" and len(goals) % execute == 0:
                self._follow(goals[-1] if goals else seen.proprio, late)
            raw = self._follow(goal, self.each) or raw
            goals.append(goal)
        seams = list(range(0, len(goals), execute)) if mode == "waits" else acting.seams  # type: ignore[attr-defined]
        return Trial(self._success, (self.beats - self._left) / BEATS, np.stack(goals), seams)

    def _follow(self, goal: Array, beats: int) -> dict[str, Array] | None:
        """Sends a goal for some beats; what is seen then."""
        raw = None
        for _ in range(min(beats, self._left)):
            if not self._success:
                raw, _, _, _, info = self.env.step(np.clip(goal, self.env.action_space.low, self.env.action_space.high))
                self._left, self._success = self._left - 1, bool(info["success"])
        return raw


def joint_steps(trial: Trial) -> tuple[float, float]:
    """The largest change of a joint's goal at seams, and inside chunks; the gripper is left out."""
    change = np.abs(np.diff(trial.goals, axis=0))[:, :-1].max(1, initial=0)
    at = {seam - 1 for seam in trial.seams if 0 < seam < len(trial.goals)}
    split = [float(c) for i, c in enumerate(change) if i in at], [float(c) for i, c in enumerate(change) if i not in at]
    return max(split[0], default=0.0), max(split[1], default=0.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--robot", default="fake:so101")
    parser.add_argument("--task", default="reach")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=4.0, help="of an episode")
    parser.add_argument("--delays", default="0,50,100,200", help="milliseconds")
    parser.add_argument("--modes", default="waits,guided", help="waits, guided, inpaint, blend, switch")
    parser.add_argument("--execute", type=int, default=2, help="control steps of a chunk")
    options = parser.parse_args(arguments)
    with served(options.model) as address:
        with connect(address) as client:
            spec = robot_served(client.about)
        cameras = {c.name: (c.height, c.width) for c in spec.cameras}
        env = RobotEnv(options.robot, BEATS, 1, options.task, cameras=cameras, max_episode_steps=10**9)
        try:
            require_drivable(spec, env.robot_spec)
            policy = RemotePolicy(spec, address)
            line = SlowLine(env, spec, policy, options.task, options.seconds)
            print(f"{options.task}, {options.episodes} episodes of {options.seconds:g} s each", flush=True)
            print("delay   mode     success             seconds  largest joint step at seams / inside chunks")
            for delay in map(int, options.delays.split(",")):
                for mode in options.modes.split(","):
                    if mode != "waits" and not delay:
                        continue  # nothing to bridge
                    seeds = range(options.episodes)
                    trials = [line.play(seed, delay / 1000, mode, options.execute) for seed in seeds]
                    won = sum(trial.success for trial in trials)
                    steps = np.max([joint_steps(trial) for trial in trials], axis=0)
                    print(
                        f"{delay:4d} ms {mode:8} {wilson(won, len(trials))!s:18}  "
                        f"{np.mean([trial.seconds for trial in trials]):7.2f}  {steps[0]:.1f} / {steps[1]:.1f} degrees",
                        flush=True,
                    )
            policy.close()
        finally:
            env.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
