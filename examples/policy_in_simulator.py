"""The world model's own policy in the real simulator: images in, actions out, no video imagined.

python examples/policy_in_simulator.py [--short]
"""

import os
import sys
import time

import gymnasium as gym

from kairos_env import Observation, WorldModel
from kairos_env.policies import WorldModelPolicy

SHORT = "--short" in sys.argv or "KAIROS_EXAMPLE_SHORT" in os.environ
episodes, decisions = (1, 2) if SHORT else (5, 24)

model = WorldModel.from_pretrained("kairos-tiny")
simulator = gym.make("Kairos-Robosuite-v0", max_episode_steps=decisions)
model.spec.require_same(simulator.unwrapped.robot_spec)

for task, instruction in model.tasks.items():
    policy = WorldModelPolicy(model, instruction=instruction, execute=2)
    solved, thinking, taken = 0, 0.0, 0
    for episode in range(episodes):
        raw, info = simulator.reset(seed=episode, options={"task": task})
        policy.reset(seed=episode)
        over = False
        while not over:
            began = time.perf_counter()
            action = policy.act(Observation.from_gym(raw, instruction))
            thinking, taken = thinking + time.perf_counter() - began, taken + 1
            raw, _, terminated, truncated, info = simulator.step(action)
            over = terminated or truncated
        solved += info["success"]
    print(f"{task:6s} {solved} of {episodes} solved, {1000 * thinking / taken:.0f} ms a decision")
simulator.close()
