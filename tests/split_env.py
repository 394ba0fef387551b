"""A simulator in a process of its own that starts in no time, and a catalogue of its tasks: for tests of the runner.

A point on a line shall reach 0. In a task ``<what>_trouble`` something goes wrong: ``raise``, ``die``, ``hang``,
``kill`` (of the process that drives it), ``once`` (raises unless it was tried before).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.eval.report.published_results import PublishedBenchmark, keys_digest
from kairos_env.records import Camera, Field, RobotSpec
from kairos_env.sims.libero.tasks import DIMENSIONS, LiberoTask

SERVER = """
import hashlib, json, os, random, sys, time
sys.stdout.write("{}\\n")
for line in sys.stdin:
    request = json.loads(line)
    if "task" in request:
        task, state, seed = request["task"], request["initial_state"], request["seed"]
        chance = random.Random(f"{task} {state} {seed}")
        x, steps = 3 if task.endswith("_trouble") else chance.uniform(-1, 1), 0
    else:
        time.sleep(float(os.environ.get("SPLIT_ENV_STEP_S", "0")))
        if steps == 2:
            if task.startswith("die"):
                os._exit(3)
            if task.startswith("hang"):
                time.sleep(600)
        x += max(-0.3, min(0.3, request["action"])) + chance.gauss(0, 0.02)
        steps += 1
    sys.stdout.write(json.dumps({"x": x, "steps": steps}) + "\\n")
    sys.stdout.flush()
"""

SPEC = RobotSpec("point", (Camera("scene", 16, 16),), (Field("x", -9, 9, "m"),), (Field("dx", -0.3, 0.3, "m"),), 20.0)


class SplitPoint:
    """The environment; see `sims.simulator.AsyncSimulator`."""

    def __init__(self, **options: Any) -> None:
        self.robot_spec, self.options, self.unwrapped = SPEC, options, self
        self.process: Any = None
        self.x = 0.0

    def versions(self) -> dict[str, str]:
        return {"mujoco": "0.0"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.send_reset(seed=seed, options=options)
        observation, *_, info = self.receive()
        return observation, info

    def send_reset(self, *, seed: int | None = None, options: Any = None) -> None:
        self.now = dict(options)
        _, self.now["suite"], self.now["task"] = options["task"].split("/")
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-u", "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self.process.stdout.readline()
        self.waits, self.seed = "reset", seed
        self._send({"task": self.now["task"], "initial_state": self.now["initial_state"], "seed": seed})

    def send_step(self, action: Any) -> None:
        self.waits = "step"
        self._send({"action": float(SPEC.check_action(action)[0])})

    def _send(self, request: Any) -> None:
        self.process.stdin.write((json.dumps(request) + "\n").encode())
        self.process.stdin.flush()

    def fileno(self) -> int:
        return self.process.stdout.fileno()

    def receive(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the simulator died with exit code {self.process.wait()}")
        answer = json.loads(line)
        self.x, steps, task = answer["x"], answer["steps"], self.now["task"]
        if steps == 2:
            self._trouble(task)
        image = np.full((16, 16, 3), int(100 + 10 * np.clip(self.x, -9, 9)), np.uint8)
        success = abs(self.x) < 0.1
        info = {
            "success": success,
            "steps": steps,
            "instruction": f"do {task}",
            "suite": self.now["suite"],
            "base_task": task,
            "initial_state": self.now["initial_state"],
            "privileged": {
                "eef_position": np.array([self.x, 0, 0]),
                "objects": {"cup": {"position": np.zeros(3)}},
                "interest": ["cup"],
            },
        }
        reward = float(np.exp(-abs(self.x)))
        return {"image_scene": image, "proprio": np.array([self.x], np.float32)}, reward, success, False, info

    def _trouble(self, task: str) -> None:
        if task.startswith("raise"):
            raise FloatingPointError("the physics exploded")
        if task.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if task.startswith("once"):
            mark = Path(tempfile.gettempdir()) / f"{os.environ['SPLIT_ENV_MARK']}-{task}"
            if not mark.exists():
                mark.touch()
                raise OSError("only the first time")

    def expert_action(self, task: str | None = None) -> np.ndarray:
        return SPEC.check_action([-self.x])

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


class BrokenEnv(SplitPoint):
    """No episode starts."""

    def send_reset(self, *, seed: int | None = None, options: Any = None) -> None:
        raise RuntimeError("no GL on this machine")


class Points:
    """A catalogue: 2 suites, all 7 dimensions, ``each`` tasks of each; more tasks by name, in the dimension noise."""

    def __init__(self, each: int = 2, extra: tuple[str, ...] = (), lacking: tuple[str, ...] = ()) -> None:
        self.assets = Path("no assets")
        self.lacking = lacking
        self.all: list[LiberoTask] = []
        for suite in ("libero_spatial", "libero_object"):
            names = [(f"t{i}_{dimension}", dimension) for dimension in DIMENSIONS for i in range(each)]
            names += [(name, "noise") for name in extra if suite == "libero_object"]
            for index, (name, dimension) in enumerate(names):
                bddl = f"{suite}/scene{index % 3}.bddl"
                words = dict.fromkeys(("official", "bddl", "base"), name)
                task = LiberoTask(
                    "libero-plus", suite, index, name, "base", bddl, name, words, dimension, 1 + index % 5
                )
                self.all.append(task)

    @property
    def benchmarks(self) -> dict[str, PublishedBenchmark]:
        return {"libero-plus": benchmark_of(self.all)}

    def tasks(self, benchmark: str, suites: Any = None, dimensions: Any = None, difficulties: Any = None) -> Any:
        def wanted(task: LiberoTask) -> bool:
            given = ((task.suite, suites), (task.dimension, dimensions), (task.difficulty, difficulties))
            return all(legal is None or value in legal for value, legal in given)

        return list(filter(wanted, self.all))

    def substitute_tasks(self, suites: Any = None, dimensions: Any = None) -> Any:
        found = self.tasks("libero-plus", suites, dimensions)
        return [replace(task, benchmark="libero", difficulty=None, params={"ours": True}) for task in found]

    def files(self, task: LiberoTask) -> list[str]:
        return []

    def missing(self, task: LiberoTask) -> list[str]:
        return ["scenes/lost.xml"] if task.dimension in self.lacking else []

    def init_states(self, task: LiberoTask) -> np.ndarray:
        return np.zeros((3, 1))


def benchmark_of(tasks: Any) -> PublishedBenchmark:
    """LIBERO-plus as if it had these tasks."""
    counts = Counter((task.suite, task.dimension, task.difficulty or 0) for task in tasks)
    digest = keys_digest(f"{task.suite}/{task.name}" for task in tasks)
    return PublishedBenchmark("libero-plus", dict(counts), {"": digest})
