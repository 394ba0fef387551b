"""A curriculum of two stages on small films and episodes, which takes seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from moving_square import SPEC, config, moving_square

from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.media import write_mp4
from kairos_env.training.curriculum.run import train_curriculum
from kairos_env.training.curriculum.stages import Curriculum, CurriculumStage
from kairos_env.training.data import DataConfig
from kairos_env.training.gates import Gate
from kairos_env.training.passes import Conditions, LossConfig
from kairos_env.training.progress import LoopConfig


def write_films(folder: Path, count: int = 6) -> Path:
    """Films of the moving square at 5 pictures a second, with captions."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        write_mp4(folder / f"{i}.mp4", moving_square(100 + i, 14).images["scene"], SPEC.control_rate_hz)
        rows.append({"video": f"{i}.mp4", "caption": f"a red square wanders, film {i}", "instruction": "wander"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_robot(folder: Path, count: int = 8) -> Path:
    with EpisodeWriter(folder / "shard_0.hdf5", SPEC) as writer:
        for i in range(count):
            writer.add(moving_square(i))
    return folder


def small_curriculum(data: Path, out: Path, steps: int = 6) -> Curriculum:
    """Films, until the gate after three steps, then films and robot; the data are written if they are not there."""
    films, robot = data / "films", data / "robot"
    if not films.exists():
        write_films(films)
        write_robot(robot)
    loop = LoopConfig(steps=steps, lr=2e-3, log_every=1, checkpoint_every=3, warmup=2)
    loss = LossConfig(frames=4)
    given = Conditions(t2v=0.2, ti2v=0.4, i2v=0.2, null2v=0.2, images=0.1)
    stages = (
        CurriculumStage(
            "films",
            ("text", "video"),
            DataConfig(path=str(films), captions=1.0),
            loop,
            batch=4,
            loss=dataclasses.replace(loss, conditions=given),
            gate=Gate("validation_video", bar=100.0),
        ),
        CurriculumStage(
            "robot", (), DataConfig(path=str(robot), more=(str(films),), weights=(0.7, 0.3)), loop, 4, loss
        ),
    )
    train = dataclasses.replace(config(out, steps), words=True, validation=1, starts=1, sample_every=3)
    return Curriculum(stages, train)


def run(data: Path, out: Path) -> Path:
    torch.set_num_threads(1)
    return train_curriculum(small_curriculum(data, out))
