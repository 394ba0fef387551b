"""LIBERO, imagined and real: the model sees the first frame, then only the actions that the expert takes.

Needs the simulator (`kairos sims install libero`). Writes a film strip and prints how far both are apart.
"""

import argparse

import gymnasium as gym
import numpy as np

import kairos_env
from kairos_env.eval.imagination.image_metrics import psnr
from kairos_env.media import film_strip, write_png
from kairos_env.records import Observation

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="kairos-libero")
parser.add_argument("--suite", default="libero_object")
parser.add_argument("--task", type=int, default=0)
parser.add_argument("--initial-state", type=int, default=45, help="the bundled model was trained on 0 to 39")
parser.add_argument("--short", action="store_true")
arguments = parser.parse_args()

model = kairos_env.WorldModel.from_pretrained(arguments.model)
options = {"suite": arguments.suite, "task": arguments.task, "camera_size": 64, "action_repeat": 4}
env = gym.make("Kairos-LIBERO-v0", rendering="fast", **options)
raw, info = env.reset(seed=0, options={"initial_state": arguments.initial_state})
first, frames, actions, done = Observation.from_gym(raw, info["instruction"]), [], [], False
while not done and len(actions) < (3 if arguments.short else 25):
    actions.append(env.unwrapped.expert_action())
    raw, _, terminated, truncated, _ = env.step(actions[-1])
    frames.append(raw["image_agentview"])
    done = terminated or truncated
env.close()

roll = model.imagine(model.observe([first]), np.stack(actions)[None])
imagined, real = model.decode(roll.latents)["agentview"][0], np.stack(frames)
for step in range(0, len(real), 4):
    still = psnr(first.images["agentview"], real[step])
    print(f"decision {step + 1:2d}: imagined {psnr(imagined[step], real[step]):.1f} dB, standing still {still:.1f} dB")
write_png("libero_imagined.png", film_strip({"imagined": imagined, "real": real}))
