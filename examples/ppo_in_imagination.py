"""PPO that practises in imagination only, and is then judged in the real simulator.

python examples/ppo_in_imagination.py [--short]        needs pip install 'kairos-env[rl]'
"""

import sys

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from kairos_env import Observation
from kairos_env.env.sb3 import SB3VecEnv

TASK, SHORT = "reach", "--short" in sys.argv
num_envs, rollout, decisions, episodes, limit = (2, 8, 16, 1, 3) if SHORT else (32, 24, 60_000, 20, 24)


def evaluate(agent, dream):
    """Share of real episodes solved: real images are encoded, so the agent sees what it saw in imagination."""
    simulator = gym.make("Kairos-Robosuite-v0", task=TASK, max_episode_steps=limit)
    model, solved = dream.env.unwrapped.model, 0
    for seed in range(10_000, 10_000 + episodes):
        (observed, info), state, action, over = simulator.reset(seed=seed), None, None, False
        while not over:
            state = model.observe(Observation.from_gym(observed, info["instruction"]), state, action)
            latent = {"latent": state.latent.cpu().numpy(), "proprio": observed["proprio"][None]}
            action = dream.physical(agent.predict(latent, deterministic=True)[0])
            observed, _, terminated, truncated, info = simulator.step(action[0])
            over = terminated or truncated
        solved += info["success"]
    simulator.close()
    return solved / episodes


settings = {"task": TASK, "observation": "latent", "autoreset_mode": "SameStep"}
dream = SB3VecEnv(gym.make_vec("Kairos-WorldModel-v0", num_envs=num_envs, **settings))
agent = PPO("MultiInputPolicy", VecMonitor(dream), n_steps=rollout, batch_size=num_envs * rollout // 4, seed=0)
print(f"{TASK} in the simulator before: {evaluate(agent, dream):.0%}")
agent.learn(decisions)
print(f"{TASK} in the simulator after {agent.num_timesteps} imagined decisions: {evaluate(agent, dream):.0%}")
