"""What a decision of the table-top simulator costs, and how often its experts succeed.

    python benchmarks/simulator.py                  milliseconds per decision
    python benchmarks/simulator.py --compare        beside robosuite's own environment and camera
    python benchmarks/simulator.py --experts 60     success of the scripted experts

CPU milliseconds of one process: they count what was computed, whoever else was using the machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from kairos_env.collect.behaviours import BEHAVIOURS
from kairos_env.eval.statistics import wilson
from kairos_env.records import Observation
from kairos_env.sims.tabletop.arm import WORKSPACE_HIGH
from kairos_env.sims.tabletop.env import TASKS, RobosuiteEnv
from kairos_env.sims.tabletop.tasks import measure


def cpu_ms(run: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median and quartiles of the CPU milliseconds of ``run``."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        spent.append(1000 * (time.process_time() - start))
    low, middle, high = np.percentile(spent, [25, 50, 75])
    return float(middle), float(low), float(high)


def show(what: str, figures: tuple[float, float, float]) -> None:
    print(f"{what:52s} {figures[0]:7.1f} ms  ({figures[1]:.1f} ... {figures[2]:.1f})", flush=True)


def step_cost(env: RobosuiteEnv, repeats: int) -> tuple[float, float, float]:
    """Cost of a decision in play that keeps meeting the cube; resets are not counted."""
    rng = np.random.default_rng(0)
    spent = []
    for i in range(max(1, repeats // 24)):
        _, info = env.reset(options={"initial_state": i})
        behaviour = BEHAVIOURS["attracted"](env, "push", rng)
        for _ in range(24):
            action = behaviour.act(info)
            start = time.process_time()
            info = env.step(action)[-1]
            spent.append(1000 * (time.process_time() - start))
    low, middle, high = np.percentile(spent, [25, 50, 75])
    return float(middle), float(low), float(high)


def measure_costs(repeats: int) -> None:
    for label, arguments in (
        ("decision without images", {"observe_images": False}),
        ("decision with the scene camera, 64 px", {}),
        ("decision with scene and wrist camera, 64 px", {"cameras": ("scene", "wrist")}),
        ("decision with the scene camera, 128 px", {"image_size": 128}),
    ):
        env = RobosuiteEnv(**arguments)  # type: ignore[arg-type]
        show(label, step_cost(env, repeats))
        if label.endswith("camera, 64 px") and "wrist" not in label:
            show("  of which drawing", cpu_ms(env.draw, repeats))
            show("  drawing with the unseen meshes too", cpu_ms(partial(env.draw, show_unseen=True), repeats // 4))
            show("  reset", cpu_ms(env.reset, repeats // 8))
        env.close()


def measure_robosuite(repeats: int) -> None:
    """Robosuite's own Lift with its controller and a 64 px camera: four control steps, the last one observed."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    logging.disable(logging.WARNING)
    import robosuite

    for cameras in (False, True):
        env = robosuite.make(
            "Lift",
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=cameras,
            use_camera_obs=cameras,
            camera_heights=64,
            camera_widths=64,
            control_freq=20 if not cameras else 5,  # with a camera: one observation in the time of four steps
            hard_reset=False,
            horizon=10**6,
        )
        env.reset()
        action = np.zeros(env.action_dim)

        def decision(env: object = env, action: np.ndarray = action, steps: int = 1 if cameras else 4) -> None:
            for _ in range(steps):
                env.step(action)  # type: ignore[attr-defined]

        decision()
        label = "with its camera, 64 px" if cameras else "without images"
        show(f"robosuite's own Lift, 0.2 s {label}", cpu_ms(decision, max(repeats // 6, 4)))
        env.close()


def measure_experts(episodes: int) -> None:
    """Plain; with action noise; and taking over after ten decisions of another actor."""
    env = RobosuiteEnv(observe_images=False)
    print(f"\n{'expert':8s} {'start':26s} {'success':>9s}  95 % interval   median decisions")
    for task in TASKS:
        for start in ("initial states", "noise of 1.2 cm", "after another's decisions"):
            skipped, lengths = 0, []
            for i in range(episodes):
                rng = np.random.default_rng(i)
                _, info = env.reset(options={"initial_state": 10_000 + i, "task": task})
                if start.startswith("after"):
                    kind, other_task = str(rng.choice(["noisy_expert", "attracted"])), str(rng.choice(list(TASKS)))
                    other = BEHAVIOURS[kind](env, other_task, rng)
                    for _ in range(10):
                        info = env.step(other.act(Observation({}, np.zeros(0)), info))[-1]
                    reachable = np.all(np.abs(env.state.cube[:2]) < WORKSPACE_HIGH[:2])
                    if measure(env.state)[1][task] or not reachable:
                        skipped += 1  # solved already, or pushed out of the arm's reach
                        continue
                for step in range(24):
                    action = env.expert_action()
                    if start.startswith("noise"):
                        action = action + rng.normal(0, [0.012] * 3 + [0.3]).astype(np.float32)
                    if env.step(action)[2]:
                        lengths.append(step + 1)
                        break
            rate = wilson(len(lengths), episodes - skipped)
            print(
                f"{task:8s} {start:26s} {len(lengths):4d}/{episodes - skipped:<4d}  {rate.low:.2f} ... {rate.high:.2f}"
                f"    {np.median(lengths):.0f}",
                flush=True,
            )
    env.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=240, help="decisions that are timed")
    parser.add_argument("--compare", action="store_true", help="also time robosuite's own environment")
    parser.add_argument("--experts", type=int, default=0, metavar="N", help="episodes per expert and kind of start")
    arguments = parser.parse_args()
    measure_costs(arguments.decisions)
    if arguments.compare:
        measure_robosuite(arguments.decisions)
    if arguments.experts:
        measure_experts(arguments.experts)


if __name__ == "__main__":
    main()
