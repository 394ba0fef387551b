"""Step an imagined robot like any Gymnasium environment, and look at what it imagined.

python examples/step_world_model.py [--short]
"""

import sys

import gymnasium as gym
import numpy as np
from PIL import Image

import kairos_env  # noqa: F401  (registers the environments)

steps = 3 if "--short" in sys.argv else 24
env = gym.make("Kairos-WorldModel-v0", task="lift", render_mode="rgb_array")
print("observation", {key: (space.shape, space.dtype) for key, space in env.observation_space.items()})
print("action     ", [(field.name, field.low, field.high, field.unit) for field in env.unwrapped.model.spec.action])

observation, info = env.reset(seed=0)  # a real camera image; everything after it is imagined
print(f"task: {info['instruction']}")
action = np.array([0.03, 0.0, -0.02, -1.0], np.float32)  # 3 cm forward, 2 cm down, gripper open
strip = [env.render()]
for _ in range(steps):
    observation, reward, terminated, truncated, info = env.step(action)
    strip.append(env.render())
    print(
        f"{info['imagined_step']:3d}  reward {reward:5.2f}  success {info.get('success_probability', 0):.2f}  "
        f"uncertainty {info['uncertainty']:.2f}  gripper at {observation['proprio'][:3].round(3)} m"
    )
    if terminated or truncated:
        break

Image.fromarray(np.concatenate(strip[::3], axis=1)).save("imagined.png")
print("imagined.png: every third frame")
env.close()
