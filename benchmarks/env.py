"""Imagined against simulated environment steps, and what the environment itself costs.

    python benchmarks/env.py                               the bundled model
    python benchmarks/env.py --engines traced openvino     by several engines, see `kairos doctor`
    python benchmarks/env.py --preset tiny                 its architecture with random weights: as fast

One thread. Simulator and imagination take turns, so that a busy machine slows all of them alike; steps per
CPU-second count what was computed, whoever else was running.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kairos_env.env.env import WorldModelEnv
from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.records import Observation
from kairos_env.runs import describe_machine
from kairos_env.sims.tabletop.env import TASKS, RobosuiteEnv, make_spec
from kairos_env.world_model.compiled import PATIENCE
from kairos_env.world_model.compiled_step import use_engine
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel

# What the bundled model must reach, by what is seen and the number of environments.
GOALS = {("pixels", 1): "60 / s", ("latent", 64): "10x", ("pixels", 64): "8x"}
OVERHEAD_GOAL = 40  # microseconds


def make_model(name: str, preset: str | None, engine: str | None) -> WorldModel:
    if preset is None:
        return WorldModel.from_pretrained(name, "cpu", engine=engine)
    config = dataclasses.replace(get_preset(preset), objects=("object", "goal"))
    model = WorldModel(config, make_spec(), TASKS).eval()
    use_engine(model, engine)
    space = model.spec.observation_space
    space.seed(0)
    model.starts = (Observation.from_gym(space.sample()),)
    return model


class Clock:
    """CPU and wall seconds of a repeated block, with its environment steps."""

    def __init__(self, run: Callable[[], object], steps: int) -> None:
        self.run, self.steps = run, steps
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def tick(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.run()
        self.cpu.append((time.process_time() - cpu) / self.steps)
        self.wall.append((time.perf_counter() - wall) / self.steps)

    def per_cpu_second(self) -> tuple[float, float, float]:
        """Median and quartiles."""
        low, middle, high = np.percentile(1 / np.array(self.cpu), [25, 50, 75])
        return float(middle), float(low), float(high)


def simulator_clock(count: int) -> tuple[Clock, Callable[[], None]]:
    simulator = RobosuiteEnv(max_episode_steps=10**9)
    simulator.reset(seed=0)
    rng = np.random.default_rng(0)

    def run() -> None:
        for _ in range(count):
            simulator.step(rng.uniform(simulator.action_space.low, simulator.action_space.high))

    return Clock(run, count), simulator.close


def imagined_clock(model: WorldModel, num_envs: int, count: int, seen: Any) -> Clock:
    envs = WorldModelVectorEnv(num_envs, model, observation=seen, success_threshold=None)
    envs.reset(seed=0)

    def run() -> None:
        for _ in range(count):
            envs.step(envs.action_space.sample())

    return Clock(run, num_envs * count)


def free_model(model: WorldModel) -> WorldModel:
    """The model, but its verbs return what they returned first: what a step still costs is the environment's."""
    free = copy.copy(model)
    for verb in ("step", "decode"):
        returned: list[Any] = []

        def run(*args: Any, verb: str = verb, returned: list[Any] = returned, **kwargs: Any) -> Any:
            if not returned:
                returned.append(getattr(model, verb)(*args, **kwargs))
            return returned[0]

        setattr(free, verb, run)
    return free


def overhead_microseconds(model: WorldModel, seen: Any, rounds: int = 200, count: int = 50) -> tuple[float, float]:
    """CPU time of a step beyond the model's verbs: median and 90th percentile of ``rounds`` times ``count`` steps."""
    env = WorldModelEnv(free_model(model), observation=seen, success_threshold=None)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(count)]
    clock = Clock(lambda: [env.step(action) for action in actions], count)
    for _ in range(rounds):
        clock.tick()
    middle, high = np.percentile(clock.cpu, [50, 90])
    return 1e6 * float(middle), 1e6 * float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="kairos-tiny", help="bundled name, folder or hub id")
    parser.add_argument("--preset", help="random weights of this preset instead")
    parser.add_argument("--engines", nargs="+", default=["automatic"], help="eager, traced, openvino")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {
        name: make_model(options.model, options.preset, None if name == "automatic" else name)
        for name in options.engines
    }

    simulator, close = simulator_clock(10)
    rows, goals = {"simulator, one camera rendered": simulator}, {}
    for engine, model in models.items():
        for seen in ("pixels", "latent"):
            for num_envs in options.batch:
                name = f"imagined, {seen}, B = {num_envs}, {engine}"
                rows[name] = imagined_clock(model, num_envs, max(1, 32 // num_envs), seen)
                goals[name] = GOALS.get((seen, num_envs), "")
    for clock in rows.values():
        for _ in range(PATIENCE + 2):  # warm-up: kernels, renderer, caches, compilers
            clock.run()
    for _ in range(options.rounds):
        for clock in rows.values():
            clock.tick()
    close()

    machine = describe_machine()
    print(f"{machine['processor']}, one thread, torch {torch.__version__}, model {options.preset or options.model}")
    columns = f"{'per CPU-second (quartiles)':>28} | {'per second':>10} | {'x simulator':>11} | goal"
    print(f"{'environment steps':38} | {columns}")
    base = simulator.per_cpu_second()[0]
    for name, clock in rows.items():
        middle, low, high = clock.per_cpu_second()
        wall = 1 / float(np.median(clock.wall))
        rate = f"{middle:.1f} ({low:.1f} ... {high:.1f})"
        print(f"{name:38} | {rate:>28} | {wall:10.1f} | {middle / base:10.1f}x | {goals.get(name, '')}")
    for seen in ("pixels", "latent"):
        middle, high = overhead_microseconds(next(iter(models.values())), seen)
        print(
            f"WorldModelEnv.step without the model's step and decoder, {seen}: {middle:.0f} CPU-us "
            f"(90 % below {high:.0f} us), goal {OVERHEAD_GOAL} us; wrappers of gym.make come on top"
        )


if __name__ == "__main__":
    main()
