"""Whether plans come true: ``python benchmarks/planning.py --policies 'cem,cem(proposals=6)' --task push --starts 20``.

From each real start one plan is made and executed to its end, without looking, in the simulator. Both futures are
valued alike, by the discounted reward with success absorbing: a planner that exploits its model imagines more than it
gets. Starts are none of the training's.
"""

from __future__ import annotations

import argparse
import time

import gymnasium as gym
import numpy as np
import torch

from kairos_env import Observation
from kairos_env.eval.statistics import mean, pearson
from kairos_env.policies import Objective, PlannerPolicy
from kairos_env.policies.make import make_policy
from kairos_env.records import Array

FIRST_START = 900_000
VALUE = Objective()
PLANNERS = ("cem", "cem(untouched_penalty=10)", "cem(proposals=6;prior_weight=0)", "cem(proposals=6)")


def outcome(env: gym.Env, task: str, start: int, actions: Array) -> tuple[float, bool]:
    """True value of a plan's actions from a start, and whether the task is solved on the way."""
    env.reset(seed=0, options={"initial_state": start, "task": task})
    infos = [env.unwrapped.step(action)[4] for action in actions]
    reward = np.array([[info["task_rewards"][task] for info in infos]])
    success = np.array([[float(info["task_success"][task]) for info in infos]])
    return float(VALUE.value(reward, success, np.zeros_like(reward))[0]), bool(success.any())


def measure(name: str, env: gym.Env, task: str, starts: range, model: str) -> None:
    """One row of the table."""
    policy = make_policy(name, env, model)
    if not isinstance(policy, PlannerPolicy):
        raise SystemExit(f"{name} is no planner")
    policy.options["rollout"] = True
    imagined, true, solved, seconds, evaluations = [], [], [], 0.0, 0
    for start in starts:
        raw, info = env.reset(seed=0, options={"initial_state": start, "task": task})
        policy.reset(seed=start)
        begin = time.process_time()
        policy.act(Observation.from_gym(raw, info["instruction"]))
        seconds += time.process_time() - begin
        plan = policy.plan
        assert plan is not None
        evaluations += plan.evaluations
        imagined.append(float(VALUE(plan.rollout)[0]))
        value, success = outcome(env, task, start, plan.actions)
        true.append(value)
        solved.append(success)
    found = mean(np.array(true))
    print(
        f"{name:<58}{np.mean(imagined):>9.2f}{found.value:>8.2f} [{found.low:.2f}, {found.high:.2f}]"
        f"{pearson(np.array(imagined), np.array(true)):>6.2f}{np.mean(solved):>8.0%}{seconds / len(starts):>8.2f}"
        f"{evaluations / seconds:>8.0f}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default=",".join(PLANNERS))
    parser.add_argument("--task", default="push")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--model", default="kairos-tiny")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    simulator = gym.make("Kairos-Robosuite-v0", task=settings.task)
    print(
        f"{'value of a plan':<58}{'imagined':>9}{'true':>8} {'95 %':<12}{'r':>6}{'solved':>8}{'CPU s':>8}{'plans/s':>8}"
    )
    for policy_name in settings.policies.split(","):
        chosen = range(FIRST_START, FIRST_START + settings.starts)
        measure(policy_name, simulator, settings.task, chosen, settings.model)
    simulator.close()
