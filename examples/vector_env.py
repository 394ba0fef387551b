"""Imagine many robots in one batch, and ask what would happen from one and the same moment.

python examples/vector_env.py [--short]
"""

import sys
import time

import gymnasium as gym
import numpy as np

import kairos_env  # noqa: F401  (registers the environments)

num_envs, steps = (4, 3) if "--short" in sys.argv else (32, 50)
envs = gym.make_vec("Kairos-WorldModel-v0", num_envs=num_envs, task="push")
observations, infos = envs.reset(seed=0)
print("observations", {key: column.shape for key, column in observations.items()})

successes, episodes, began = 0, 0, time.perf_counter()
for _ in range(steps):
    observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
    successes, episodes = successes + terminated.sum(), episodes + (terminated | truncated).sum()
seconds = time.perf_counter() - began
print(f"{num_envs * steps / seconds:.0f} imagined steps/s; random actions solved {successes} of {episodes} episodes")
envs.close()

# Counterfactuals: one moment, four futures.
env = gym.make("Kairos-WorldModel-v0", task="push")
env.reset(seed=1)
futures = env.unwrapped.fork(4)
moves = np.array([[0.05, 0, 0, 0], [-0.05, 0, 0, 0], [0, 0.05, 0, 0], [0, -0.05, 0, 0]], np.float32)
for _ in range(3):
    observations, *_ = futures.step(moves)
for move, end in zip(("+x", "-x", "+y", "-y"), observations["proprio"], strict=True):
    print(f"{move} ends with the gripper at {end[:3].round(3)} m")
env.close()
