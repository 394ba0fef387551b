"""Small synthetic episodes, and a training run on them that takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kairos_env.records import Episode
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.training.config import TrainConfig
from kairos_env.training.loop import LoopConfig
from kairos_env.training.passes import LossConfig
from kairos_env.training.run import train

SPEC = make_spec()


def moving_square(seed: int, steps: int = 12) -> Episode:
    """A red square that the action moves over a grey table; no labels, as in most datasets."""
    rng = np.random.default_rng(seed)
    position = rng.uniform(-0.1, 0.1, 2)
    actions = rng.uniform(SPEC.action_low, SPEC.action_high, (steps, 4)).astype(np.float32)
    images, proprio = [], []
    for step in range(steps + 1):
        image = np.full((64, 64, 3), 90, np.uint8)
        row, column = (32 + 150 * position).astype(int)
        image[row - 5 : row + 5, column - 5 : column + 5] = (220, 30, 30)
        images.append(image)
        proprio.append([*position, 0.05, 0.04])
        if step < steps:
            position = np.clip(position + actions[step, :2], -0.17, 0.17)
    return Episode(
        {"scene": np.stack(images)},
        np.array(proprio, np.float32),
        actions,
        np.linspace(0, 1, steps, dtype=np.float32),
        np.zeros(steps, bool),
        task="push",
        instruction=TASKS["push"],
        seed=seed,
    )


def config(out: Path, steps: int = 12) -> TrainConfig:
    return TrainConfig(
        out=str(out),
        preset="debug",
        precision="fp32",
        validation=2,
        starts=3,
        tokenizer=LoopConfig(steps=steps, lr=2e-3, log_every=1, checkpoint_every=4, warmup=5),
        tokenizer_batch=8,
        model=LoopConfig(steps=steps, lr=2e-3, log_every=1, checkpoint_every=5, warmup=5),
        batch=4,
        loss=LossConfig(frames=8),
        sample_every=6,
    )


def run(out: Path, steps: int = 12) -> Path:
    torch.set_num_threads(1)
    return train(config(out, steps), [moving_square(i) for i in range(12)], SPEC, {"push": TASKS["push"]})
