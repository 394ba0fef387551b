"""Recordings of two robots that can be mixed, with random contents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.records import Camera, Episode, Field, RobotSpec
from kairos_env.sims.tabletop.env import make_spec

SPEC = make_spec(image_size=64)
# twice the rate, one field less and one more, a further camera and a further action
OTHER = dataclasses.replace(
    SPEC,
    name="other",
    cameras=(Camera("scene", 64, 64), Camera("top", 64, 64)),
    proprio=(*SPEC.proprio[1:], Field("force", -1, 1, "N")),
    action=(*SPEC.action, Field("twist", -1, 1, "rad", "delta_rotation")),
    control_rate_hz=10.0,
)


def episode(rng: np.random.Generator, task: str = "reach", steps: int = 12, spec: RobotSpec = SPEC) -> Episode:
    low, high = spec.action_low, spec.action_high
    return Episode(
        images={c.name: rng.integers(0, 256, (steps + 1, 64, 64, 3), np.uint8) for c in spec.cameras},
        proprio=spec.clip_proprio(rng.normal(0, 0.1, (steps + 1, spec.proprio_dim))),
        actions=rng.uniform(low, high, (steps, spec.action_dim)).astype(np.float32),
        rewards=rng.random(steps, np.float32),
        success=np.zeros(steps, np.bool_),
        task=task,
        instruction=f"please {task}",
    )


def write_recording(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    with EpisodeWriter(folder / "shard_0.hdf5", SPEC) as writer:
        for task in ("reach", "push", "reach", "push", "reach"):
            writer.add(episode(rng, task))
    return folder


def write_other_recording(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    with EpisodeWriter(folder / "other.hdf5", OTHER) as writer:
        for _ in range(4):
            writer.add(episode(rng, "twist", 24, OTHER))
    return folder / "other.hdf5"
