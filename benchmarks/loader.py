"""How fast do training data come: latents from a cache, Kairos's video importer, LeRobot's own loader.

    python benchmarks/loader.py
    python benchmarks/loader.py --lerobot-python envs/lerobot/bin/python --data datasets/my-arm

All three cut random clips of ``--frames`` frames out of the same LeRobotDataset (by default one of a scene drawn
here, 64 x 64 pixels), without transforms, one thread each, in turns: whatever else the machine does slows all of them
alike. From the cache they come as in training, by the same code (`training.batches.Clips`): whole batches with
actions, action chunks, outcomes and masks. LeRobot runs in its own environment, with the video decoder that it
chooses. Frames per CPU-second count what was computed, whoever else was running. At last, what share of a training
step on a CPU is spent on its data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from kairos_env.collect.encode import EncodeConfig, encode
from kairos_env.datasets.lerobot.reader import LeRobotData
from kairos_env.datasets.lerobot.writer import LeRobotWriter
from kairos_env.records import Episode
from kairos_env.runs import describe_machine
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.training.batches import Clips
from kairos_env.training.config import TrainConfig
from kairos_env.training.loop import step_generator
from kairos_env.training.losses import world_model_loss
from kairos_env.world_model.model import WorldModel

# Runs where LeRobot is installed: (root, cameras, fps, frames, seconds, seed) -> versions, then its share of a table.
LEROBOT = """
import importlib.metadata, json, random, sys, time
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, cameras, fps, frames, seconds, seed = json.loads(sys.argv[1])
torch.set_num_threads(1)
times = [i / fps for i in range(frames)]
data = LeRobotDataset("benchmark/data", root=root, delta_timestamps={c: times for c in cameras})
rng, count = random.Random(seed), 0
for _ in range(20):
    data[rng.randrange(len(data))]
wall, cpu = time.perf_counter(), time.process_time()
while time.perf_counter() - wall < seconds:
    item = data[rng.randrange(len(data))]
    count += frames
assert all(len(item[c]) == frames for c in cameras)
decoder = getattr(data, "_video_backend", None) or getattr(data, "video_backend", "")
name = f"LeRobot {importlib.metadata.version('lerobot')} ({decoder})"
print(json.dumps([name, count, time.perf_counter() - wall, time.process_time() - cpu]))
"""


@dataclass
class Rate:
    """Frames, wall and CPU seconds of each round."""

    rounds: list[tuple[int, float, float]] = field(default_factory=list)

    def per_second(self, which: int) -> float:
        """Median over rounds of frames per second: 1 wall, 2 CPU."""
        return float(np.median([row[0] / row[which] for row in self.rounds]))


def drawn(seed: int, steps: int, speckle: float) -> Episode:
    """A red block and its shadow move over a table with ``speckle`` grey levels of texture, before a noisy camera."""
    spec, rng = make_spec(), np.random.default_rng(seed)
    table = rng.normal(120, speckle, (64, 64, 3)) + np.linspace(-40, 40, 64)[:, None, None]
    path = np.clip(np.cumsum(rng.normal(0, 1.2, (steps + 1, 2)), 0) + 32, 6, 57).astype(int)
    images = np.repeat(table[None], steps + 1, 0)
    for image, (row, column) in zip(images, path, strict=True):
        image[row - 3 : row + 6, column - 3 : column + 6] -= 40
        image[row - 5 : row + 4, column - 5 : column + 4] = (200, 40, 40)
    noisy = np.clip(images + rng.normal(0, 1, images.shape), 0, 255).astype(np.uint8)
    low, high = spec.action_low, spec.action_high
    return Episode(
        {"scene": noisy},
        spec.clip_proprio(rng.normal(0, 0.1, (steps + 1, spec.proprio_dim))),
        rng.uniform(low, high, (steps, spec.action_dim)).astype(np.float32),
        np.zeros(steps, np.float32),
        np.zeros(steps, np.bool_),
        task="push",
        instruction=TASKS["push"],
    )


def make_dataset(folder: Path, episodes: int, steps: int, speckle: float) -> Path:
    with LeRobotWriter(folder, make_spec()) as writer:
        for seed in range(episodes):
            writer.add(drawn(seed, steps, speckle))
    return folder


def timed(step: Callable[[int], int], seconds: float) -> tuple[int, float, float]:
    """Calls ``step(number)``, which returns how many frames it made, for so long."""
    wall, cpu, count, number = time.perf_counter(), time.process_time(), 0, 0
    while time.perf_counter() - wall < seconds:
        count += step(number)
        number += 1
    return count, time.perf_counter() - wall, time.process_time() - cpu


def from_cache(clips: Clips, cameras: int, frames: int, batch: int, seconds: float) -> tuple[int, float, float]:
    def step(number: int) -> int:
        drawn = clips.sample(batch, frames, step_generator(0, number))
        return cameras * drawn.latents.shape[0] * drawn.latents.shape[1]

    for number in range(20):
        step(number)
    return timed(step, seconds)


def from_videos(data: LeRobotData, frames: int, seconds: float, seed: int) -> tuple[int, float, float]:
    rng = np.random.default_rng(seed)
    long_enough = [i for i, episode in enumerate(data.stored) if episode.length >= frames]

    def step(number: int) -> int:
        index = long_enough[rng.integers(len(long_enough))]
        seen = data.window(index, int(rng.integers(data.stored[index].length - frames + 1)), frames)
        return sum(map(len, seen.images.values()))

    for number in range(20):
        step(number)
    return timed(step, seconds)


def from_lerobot(python: str, data: LeRobotData, frames: int, seconds: float, seed: int) -> tuple[str, tuple]:
    cameras = [camera.feature for camera in data.mapping.cameras]
    request = json.dumps([str(data.meta.root), cameras, data.meta.fps, frames, seconds, seed])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([python, "-c", LEROBOT, request], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"LeRobot failed:\n{done.stderr}")
    name, count, wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return name, (count * len(cameras), wall, cpu)


def data_wait(model: WorldModel, clips: Clips, steps: int) -> tuple[float, float, float, float]:
    """Medians over training steps as `kairos train` does them: wall and CPU seconds of data and of the whole step."""
    config = TrainConfig()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    rows = []
    for number in range(steps + 1):
        generator = step_generator(0, number)
        begun = time.perf_counter(), time.process_time()
        batch = clips.sample(config.batch, config.loss.frames + model.chunk_length, generator)
        loaded = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = world_model_loss(model.train(), batch, config.loss, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        ended = time.perf_counter(), time.process_time()
        rows.append([loaded[0] - begun[0], loaded[1] - begun[1], ended[0] - begun[0], ended[1] - begun[1]])
    return tuple(np.median(rows[1:], 0))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of a LeRobotDataset with videos; by default one is drawn")
    parser.add_argument("--speckle", type=float, default=3, help="texture of the drawn pictures: the more, the larger")
    parser.add_argument("--model", default="kairos-tiny", help="whose tokenizer and training step")
    parser.add_argument("--lerobot-python", help="interpreter with the LeRobot library")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32, help="clips drawn at once from the cache")
    parser.add_argument("--seconds", type=float, default=5, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed training steps; 0 leaves them out")
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        where = Path(options.data) if options.data else make_dataset(Path(folder) / "data", 20, 150, options.speckle)
        data = LeRobotData(where)
        cache = encode(EncodeConfig(str(where), str(Path(folder) / "cache"), options.model))
        model = WorldModel.from_pretrained(options.model)
        clips = Clips(model, list(cache))
        rates = {"latents from the cache": Rate(), "Kairos, from the videos": Rate()}
        for number in range(options.rounds):
            cached = from_cache(clips, len(data.spec.cameras), options.frames, options.batch, options.seconds)
            rates["latents from the cache"].rounds.append(cached)
            decoded = from_videos(data, options.frames, options.seconds, number)
            rates["Kairos, from the videos"].rounds.append(decoded)
            if options.lerobot_python:
                name, row = from_lerobot(options.lerobot_python, data, options.frames, options.seconds, number)
                rates.setdefault(f"{name}, from the videos", Rate()).rounds.append(row)
        frames = sum(episode.length for episode in data.stored) * len(data.spec.cameras)
        size = sum(file.stat().st_size for file in where.glob("videos/**/*.mp4")) / frames
        wait = data_wait(model, clips, options.steps) if options.steps else None

    machine = describe_machine()
    pixels = ", ".join(f"{c.height} x {c.width}" for c in data.spec.cameras)
    print(f"{machine['processor']}, {machine['cores']} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(
        f"{len(data)} episodes, cameras of {pixels} pixels, {size:.0f} bytes a frame in the videos, clips of "
        f"{options.frames} frames, one thread each"
    )
    print(f"{'':43} | {'frames per CPU-s':>16} | {'frames per wall-s':>17} | {'CPU us a frame':>14}")
    for name, rate in rates.items():
        cpu, wall = rate.per_second(2), rate.per_second(1)
        print(f"{name:43} | {cpu:16,.0f} | {wall:17,.0f} | {1e6 / cpu:14.1f}")
    own, *others = (rate.per_second(2) for name, rate in rates.items() if "videos" in name)
    for other in others:
        print(f"Kairos decodes {own / other:.1f} times as many frames per CPU-second as LeRobot (goal >= 2)")
    if wait:
        share, cpu_share = 100 * wait[0] / wait[2], 100 * wait[1] / wait[3]
        print(
            f"training step of {options.model}: {wait[3]:.2f} CPU-s ({wait[2]:.2f} s wall), of which data "
            f"{1e3 * wait[1]:.1f} ms: {cpu_share:.2f} % of CPU, {share:.2f} % of wall time (goal <= 2 %)"
        )


if __name__ == "__main__":
    main()
