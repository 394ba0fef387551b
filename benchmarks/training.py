"""Training throughput per CPU-second, beside that of the recipe before.

    python benchmarks/training.py                       the default recipe with the preset tiny
    python benchmarks/training.py --precision fp32      in another precision

One thread. Steps of stage 2 are spread evenly over a run, since what a step does depends on how far the run is. They
take turns with a yardstick, a training step of PyTorch's own transformer layers, so that a busy machine slows both
alike; CPU-seconds count what was computed, whoever else was running. The recipe before this one (two streams of every
frame, one task a clip, bfloat16; commit fedf494) was measured beside the same yardstick: `BEFORE`. Rates are given per
CPU-second and per yardstick, and the latter are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import nn

from kairos_env.records import Episode
from kairos_env.runs import describe_machine
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.training.batches import Clips
from kairos_env.training.config import TrainConfig
from kairos_env.training.log import TrainingLog
from kairos_env.training.precision import choose_precision
from kairos_env.training.progress import cpu_seconds
from kairos_env.training.run import one_pass_config
from kairos_env.training.world_action import train_world_action
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel

BEFORE = {"frames": 73.5, "labels": 73.5}
"""Frames of clips, and labels of (frame, task), that the recipe before learned from in the time of a yardstick."""


def yardstick() -> Callable[[], object]:
    """A training step of four transformer layers on 48 sequences of 64 tokens, float32."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(192, 6, 768, dropout=0.0, batch_first=True, norm_first=True)
    layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    optimiser = torch.optim.AdamW(layers.parameters(), lr=1e-4)
    x = torch.randn(48, 64, 192)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        layers(x).square().mean().backward()
        optimiser.step()

    return step


def drawn_episode(seed: int, steps: int = 40) -> Episode:
    """Noise with every label that the table top's recordings have."""
    rng, spec = np.random.default_rng(seed), make_spec()
    shape = (steps + 1, len(TASKS))
    labels = {
        "object_position": rng.uniform(-0.1, 0.1, (steps + 1, 3)),
        "goal_position": rng.uniform(-0.1, 0.1, (steps + 1, 3)),
        "task_rewards": rng.uniform(0, 1, (steps, len(TASKS))),
        "task_success": rng.random((steps, len(TASKS))) < 0.1,
        "expert_actions": rng.uniform(spec.action_low, spec.action_high, (*shape, spec.action_dim)),
    }
    return Episode(
        {"scene": rng.integers(0, 256, (steps + 1, 64, 64, 3), dtype=np.uint8)},
        spec.clip_proprio(rng.normal(0, 0.1, (steps + 1, spec.proprio_dim))),
        rng.uniform(spec.action_low, spec.action_high, (steps, spec.action_dim)).astype(np.float32),
        rng.uniform(0, 1, steps).astype(np.float32),
        np.zeros(steps, np.bool_),
        task="push",
        instruction=TASKS["push"],
        labels={name: np.asarray(value, np.float32) for name, value in labels.items()},
        label_tasks=tuple(TASKS),
    )


class TimedClips:
    """Clips that time what happens between two calls, a step of training, and run the yardstick meanwhile."""

    def __init__(self, clips: Clips, yardstick: Callable[[], object]) -> None:
        self._clips, self._yardstick = clips, yardstick
        self._began = 0.0
        self.steps: list[float] = []
        self.yardsticks: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clips, name)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        now = cpu_seconds()
        if self._began:
            self.steps.append(now - self._began)
        self._yardstick()
        self._began = cpu_seconds()
        self.yardsticks.append(self._began - now)
        return self._clips.sample(*args, **kwargs)


def timed(model: WorldModel, clips: Clips, config: TrainConfig, steps: int) -> TimedClips:
    """A run of stage 2 of so many steps, in a folder that is thrown away."""
    short = dataclasses.replace(config, model=dataclasses.replace(config.model, steps=steps + 1))
    with_clock = TimedClips(clips, yardstick())
    with tempfile.TemporaryDirectory() as folder:
        train_world_action(model, with_clock, short, TrainingLog(Path(folder)))  # type: ignore[arg-type]
    return with_clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--rounds", type=int, default=24, help="steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    precision, why = choose_precision(options.precision, "cpu")
    config = TrainConfig(preset=options.preset, precision=precision)
    torch.manual_seed(0)
    model = WorldModel(one_pass_config(get_preset(options.preset), ("object", "goal")), make_spec(), TASKS)
    clips = Clips(model, [drawn_episode(seed) for seed in range(32)])
    timed(model, clips, config, 3)  # every kind of step once: kernels, caches
    found = timed(model, clips, config, options.rounds)

    frames = config.batch * (config.loss.frames + model.chunk_length)
    counts = {"frames": frames, "labels": frames * config.loss.tasks}
    step, unit = fmean(found.steps), median(found.yardsticks)
    machine = describe_machine()
    print(f"{machine['processor']}, one thread, torch {torch.__version__}, preset {options.preset}")
    print(f"precision {precision}: {why}")
    print(f"a step {step:.3f} CPU-seconds, the yardstick {unit:.3f}")
    print(f"{'learned from':24} | {'per CPU-second':>14} | {'per yardstick':>13} | {'x the recipe before':>19}")
    for name, count in counts.items():
        rate = count / step
        print(f"{name:24} | {rate:14.1f} | {rate * unit:13.1f} | {rate * unit / BEFORE[name]:18.2f}x")


if __name__ == "__main__":
    main()
