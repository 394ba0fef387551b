"""Does imagining for long cost more? Step latency and memory after 10,000 imagined decisions.

    python benchmarks/streaming.py                   the bundled model
    python benchmarks/streaming.py --preset debug    random weights of a preset

The state is a value: the one of step 100 is kept and stepped in turns with the one of step 10,000, so the
ratio is not about what else the machine did in between. One thread.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from pathlib import Path

import numpy as np
import torch

from kairos_env.env.imagination import load_model
from kairos_env.records import Observation
from kairos_env.runs import describe_machine
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import WorldState

EARLY = 100


def resident_mib() -> float:
    """Memory of this process that is really there."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def first_state(model: WorldModel) -> WorldState:
    if model.starts:
        return model.observe(model.starts[0])
    space = model.spec.observation_space
    space.seed(0)
    return model.observe(Observation.from_gym(space.sample()))


def in_turns(model: WorldModel, states: list[WorldState], pairs: int) -> np.ndarray:
    """CPU seconds of one step from each of ``states``, (pairs, states)."""
    action = np.zeros((1, model.spec.action_dim), np.float32)
    seconds = np.zeros((pairs, len(states)))
    for row in seconds:
        for i in np.random.default_rng(0).permutation(len(states)):
            began = time.process_time()
            model.step(states[i], action)
            row[i] = time.process_time() - began
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="kairos-tiny", help="bundled name, folder or hub id")
    parser.add_argument("--preset", help="random weights of this preset instead")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=1000, help="timed steps of each state")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.preset:
        model = WorldModel.from_preset(options.preset, make_spec(), TASKS)
    else:
        model = load_model(options.model, "cpu")
    rng = np.random.default_rng(0)
    low, high = model.spec.action_low, model.spec.action_high

    state, early, memory = first_state(model), None, {}
    for step in range(1, options.steps + 1):
        state = model.step(state, rng.uniform(low, high)[None]).state
        if step == EARLY:
            early = state
        if step in (EARLY, options.steps // 10, options.steps // 2, options.steps):
            memory[step] = resident_mib()
    if early is None:
        raise SystemExit(f"--steps {options.steps} is less than {EARLY}")
    in_turns(model, [early, state], 5)
    seconds = in_turns(model, [early, state], options.pairs)
    ratios = np.sort(seconds[:, 1] / seconds[:, 0])
    middle, late = np.median(seconds, axis=0), np.percentile(seconds, 99, axis=0)

    machine = describe_machine()
    print(f"{machine['processor']}, one thread, torch {torch.__version__}, model {options.preset or options.model}")
    print(f"{'step':>8} | {'CPU ms a step':>13} | {'state KiB':>9} | {'finite':>6} | {'resident MiB':>12}")
    for number, one, cost in ((EARLY, early, middle[0]), (options.steps, state, middle[1])):
        finite = bool(torch.isfinite(one.latent).all())
        print(f"{number:8} | {1e3 * cost:13.2f} | {one.nbytes / 1024:9.1f} | {finite!s:>6} | {memory[number]:12.1f}")
    print(
        f"latency of step {options.steps} / step {EARLY}: 99th percentile {late[1] / late[0]:.3f} (goal <= 1.05), "
        f"median {middle[1] / middle[0]:.3f}, pairwise median {np.median(ratios):.3f}"
    )
    print(f"size of the state: {'constant' if state.nbytes == early.nbytes else 'NOT CONSTANT'}")
    growth = memory[options.steps] - memory[max(EARLY, options.steps // 10)]
    print(f"memory growth from step {max(EARLY, options.steps // 10)} to {options.steps}: {growth:+.1f} MiB")


if __name__ == "__main__":
    main()
