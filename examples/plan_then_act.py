"""Plan in imagination, look at the plan's film, then act in the real simulator.

python examples/plan_then_act.py [--short]
"""

import os
import sys

import gymnasium as gym
import numpy as np
from PIL import Image

from kairos_env import Observation, WorldModel
from kairos_env.policies import PlannerPolicy, best_of_n

SHORT = "--short" in sys.argv or "KAIROS_EXAMPLE_SHORT" in os.environ
n, horizon, decisions = (2, 2, 2) if SHORT else (16, 12, 24)

model = WorldModel.from_pretrained("kairos-tiny")
# Any planner of kairos_env.policies fits here: best_of_n, cem, mppi, random_shooting.
policy = PlannerPolicy(model, best_of_n, task="push", n=n, horizon=horizon, execute=2, rollout=True)
simulator = gym.make("Kairos-Robosuite-v0", task="push", max_episode_steps=decisions)
model.spec.require_same(simulator.unwrapped.robot_spec)

raw, info = simulator.reset(seed=0)
policy.reset(seed=0)
film, real, over = None, [raw["image_scene"]], False
while not over:
    action = policy.act(Observation.from_gym(raw, info["instruction"]))
    if film is None:  # what the first plan expects to see
        plan = policy.plan
        film = model.decode(plan.rollout.latents)["scene"][0]
        print(f"proposal {plan.chosen} of {n}: value {plan.value:.2f}; the policy's own: {plan.values[0]:.2f}")
    raw, reward, terminated, truncated, info = simulator.step(action)
    real.append(raw["image_scene"])
    over = terminated or truncated
print(f"after {len(real) - 1} real decisions: reward {reward:.2f}, success {info['success']}")

length = min(len(film), len(real) - 1)
rows = [np.concatenate(list(frames[:length]), axis=1) for frames in (film, real[1:])]
Image.fromarray(np.concatenate(rows)).save("plan_and_reality.png")
simulator.close()
