"""SAC that practises in imagination only, then acts in the real simulator, which it sees through the model.

python examples/sac_in_imagination.py [TASK] [--short]        needs pip install 'kairos-env[rl]'
"""

import sys

import gymnasium as gym

import kairos_env  # noqa: F401  (registers the environments)
from kairos_env.env.perceived import PerceivedEnv
from kairos_env.env.practice import PracticeConfig, practise

SHORT = "--short" in sys.argv
task = next((word for word in sys.argv[1:] if not word.startswith("--")), "reach")
amounts = {"starts": 2, "robots": 2, "demonstrations": 4, "decisions": 8, "horizon": 3} if SHORT else {}
episodes, limit = (1, 3) if SHORT else (20, 24)

agent = practise(PracticeConfig(task=task, algorithm="sac", **amounts))
imagined = agent.get_env()
print(f"{task}: practised {agent.num_timesteps} imagined decisions")

simulator = gym.make("Kairos-Robosuite-v0", task=task, max_episode_steps=limit)
robot, solved = PerceivedEnv(simulator, imagined.env.model), 0
for number in range(episodes):
    seen, info = robot.reset(seed=number, options={"initial_state": 300_000 + number})
    earned, ended = 0.0, False
    while not ended:
        action = imagined.physical(agent.predict(seen, deterministic=True)[0])
        seen, reward, terminated, truncated, info = robot.step(action)
        earned, ended = earned + reward, terminated or truncated
    solved += info["success"]
    print(f"episode {number}: solved {info['success']} after {info['steps']} decisions, earned {earned:.1f}")
print(f"{task} in the simulator: {solved} of {episodes}")
robot.close()
