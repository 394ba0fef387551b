"""A curriculum run: every stage a run of the one trainer in a folder of its own, from the model of the one before.

The folder::

    config.json  launches.jsonl     the curriculum; who launched it
    0-tokenizer/                    the tokenizer, of the pictures of all stages
    1-<stage>/ ... n-<stage>/       runs of `training.run.train`, each with its log, checkpoints and model
    model/                          the model of the last stage

Whatever moment it is stopped at, the same call goes on: finished stages have a model, the one that was running has a
checkpoint, and a stage's first step follows from its seed and its parent's model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kairos_env.datasets.latents.cache import LatentCache
from kairos_env.datasets.layouts import read_as
from kairos_env.datasets.recording import Recording
from kairos_env.datasets.video.captioned import CaptionedFilms
from kairos_env.records import RobotSpec, SpecMismatch
from kairos_env.runs import ConfigMismatch, WriteLock, atomic_write, open_run
from kairos_env.training.config import TrainConfig
from kairos_env.training.curriculum.stages import TOKENIZER, Curriculum, require_data, require_trainable
from kairos_env.training.data import DataConfig, instructions, load_mixture, open_mixture
from kairos_env.training.launch import LaunchConfig, flat, stored_config
from kairos_env.training.run import train
from kairos_env.world_model.checkpoint import CONFIG, read, resolve
from kairos_env.world_model.config import WorldModelConfig, get_preset
from kairos_env.world_model.engines import usable_device
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.text.small import to_bytes, to_words

Say = Callable[[str], None]


def train_curriculum(
    curriculum: Curriculum,
    say: Say = lambda text: None,
    launch: LaunchConfig | None = None,
    report: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Runs all stages, or goes on with them, in ``curriculum.train.out``.

    Args:
        say: is told what each stage does.
        launch: options of this launch alone, handed to every stage.
        report: is called with a stage's folder whenever there is something to draw.

    Raises:
        ValueError: what `robot_of` and `check_curriculum` refuse.
        ConfigMismatch: the folder holds another curriculum.
        TrainingStopped, FloatingPointError, FolderInUse: as `train`.

    Returns:
        the folder of the last stage's model.
    """
    robot = robot_of(curriculum)
    check_curriculum(curriculum, robot)
    usable_device(curriculum.train.device)
    folder = Path(curriculum.train.out)
    folder.mkdir(parents=True, exist_ok=True)
    with WriteLock(folder, "training into"):
        open_curriculum(folder, curriculum)
        models = {"": Path(curriculum.train.init)} if curriculum.train.init else {}
        if not models:
            config = curriculum.tokenizer_config(str(folder / f"0-{TOKENIZER}"))
            models[""] = _run(config, all_data(curriculum), robot, say, launch, report)
        for number, stage in enumerate(curriculum.stages, 1):
            parent = models[curriculum.parent(stage)]
            config = curriculum.config(stage, str(folder / f"{number}-{stage.name}"), str(parent))
            models[stage.name] = _run(config, stage.data, robot, say, launch, report)
        with atomic_write(folder / "model") as part:
            shutil.copytree(models[curriculum.stages[-1].name], part, dirs_exist_ok=True)
    return folder / "model"


def _run(
    config: TrainConfig,
    data: DataConfig,
    robot: RobotSpec,
    say: Say,
    launch: LaunchConfig | None,
    report: Callable[[Path], object],
) -> Path:
    """Trains a stage, unless its model is there."""
    folder = Path(config.out)
    if (folder / "model" / CONFIG).exists():
        say(f"{folder.name}: done before")
        return folder / "model"
    say(f"{folder.name}: learning {', '.join(sorted(config.learned))} from {', '.join(data.paths)}")
    clip = 0 if config.learned == {TOKENIZER} else config.loss.frames + _shapes(config).action.chunk
    mixture = load_mixture(data, say, clip, robot)
    known = dict(read(resolve(config.init)).tasks) if config.init else {}
    return train(
        config,
        mixture.episodes,
        mixture.spec,
        known | instructions(mixture.episodes),
        mixture.odds,
        say,
        mixture.pictures,
        launch,
        report,
        mixture.names,
        mixture.digests,
    )


def _shapes(config: TrainConfig) -> WorldModelConfig:
    return read(resolve(config.init)).config if config.init else get_preset(config.preset)


def open_curriculum(folder: Path, curriculum: Curriculum) -> None:
    """Creates or re-opens the folder of a curriculum, which may have been moved.

    Raises:
        ConfigMismatch: it began with another one; the message lists every difference.
    """
    now = json.loads(json.dumps(dataclasses.asdict(curriculum)))
    stored = stored_config(folder)
    before, after = _named(stored), _named(now)
    before["train.out"] = after["train.out"]
    lines = [
        f"{key}: {json.dumps(before.get(key))} there, {json.dumps(after.get(key))} now"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]
    if stored and lines:
        raise ConfigMismatch(f"{folder} holds another curriculum; choose another `out`:\n  " + "\n  ".join(lines))
    open_run(folder, stored or now)


def _named(curriculum: Mapping[str, Any]) -> dict[str, Any]:
    """All values of a stored curriculum, those of a stage under its place and name."""
    stages = {f"stages.{i}": stage for i, stage in enumerate(curriculum.get("stages", ()), 1)}
    return flat({**curriculum, "stages": {}} | stages)


# before the first step ------------------------------------------------------------------------------------------------


def robot_of(curriculum: Curriculum) -> RobotSpec:
    """The robot that all stages are read as: that of the last stage's first recording.

    Raises:
        ValueError: a stage without data, or a last stage without a robot.
    """
    require_data(curriculum.stages)
    last = curriculum.stages[-1]
    try:
        return open_mixture(last.data)[1]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"stage {last.name!r}: {error}") from None


def all_data(curriculum: Curriculum) -> DataConfig:
    """The recordings of all stages, each once, those of the last one first: what the tokenizer learns from."""
    maps: dict[str, str] = {}
    limits = [stage.data.limit for stage in curriculum.stages]
    for data in (stage.data for stage in reversed(curriculum.stages)):
        for path, feature_map in zip(data.paths, data.maps or [""] * len(data.paths), strict=True):
            maps.setdefault(path, feature_map)
    first, *more = maps
    used = tuple(maps.values()) if any(maps.values()) else ()
    limit = None if None in limits else max(n for n in limits if n is not None)
    return DataConfig(first, tuple(more), maps=used, limit=limit, foreign=True)


def check_curriculum(curriculum: Curriculum, robot: RobotSpec) -> None:
    """Looks at everything that can be wrong before anything is trained.

    Raises:
        ValueError: what cannot be trained yet, several processes, mixtures that cannot be met, captions that the model
            cannot read, or latents of another tokenizer.
    """
    require_trainable(curriculum)
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"this is one of {processes} processes (WORLD_SIZE), but a training runs in one, which uses all cores: "
            "start it without torchrun"
        )
    train = curriculum.train
    shapes = _shapes(train)
    encoder = _encoder(curriculum)
    for stage in curriculum.stages:
        try:
            plain, spec = open_mixture(stage.data, robot)
            clip = stage.loss.frames + shapes.action.chunk
            for path, recording, weight in zip(
                stage.data.paths, plain, stage.data.weights or [1.0] * len(plain), strict=True
            ):
                _check_recording(path, read_as(recording, spec, foreign=stage.data.foreign), weight, clip)
                _check_words(path, recording, shapes)
                _check_latents(path, recording, encoder)
        except (SpecMismatch, FileNotFoundError, ValueError) as error:
            raise type(error)(f"stage {stage.name!r}: {error}") from None


def _check_recording(path: str, recording: Recording, weight: float, clip: int) -> None:
    longest = max(recording.lengths, default=-1) + 1
    if weight > 0 and longest < clip:
        raise ValueError(
            f"its mixture cannot be met: clips have {clip} frames, and the longest episode of {path} has {longest} "
            "observations; shorten the clips with loss.frames, or leave it out"
        )


def _check_words(path: str, recording: Recording, shapes: WorldModelConfig) -> None:
    """Raises ValueError for a caption that the model's text encoder cannot read."""
    if not isinstance(recording, CaptionedFilms):
        return
    text = shapes.text
    try:
        if text.unit == "word":
            to_words(recording.texts, text.tokens)
        else:
            to_bytes(recording.texts, text.max_bytes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_latents(path: str, recording: Recording, encoder: str) -> None:
    """Raises ValueError for cached latents that the curriculum's tokenizer did not make."""
    if isinstance(recording, LatentCache) and recording.origin.encoder != encoder:
        whose = f"that of train.init is {encoder[:12]}" if encoder else "the curriculum trains one of its own"
        raise ValueError(
            f"the latents of {path} are of another tokenizer: they were made by {recording.origin.encoder[:12]} "
            f"(sha256), and {whose}; encode again, or name the recording itself"
        )


def _encoder(curriculum: Curriculum) -> str:
    """What identifies the tokenizer that the curriculum goes on with; empty where it trains one."""
    caches = any((Path(path) / "zarr.json").exists() for stage in curriculum.stages for path in stage.data.paths)
    if not (caches and curriculum.train.init):
        return ""
    return str(WorldModel.from_pretrained(curriculum.train.init).encoder_sha256)
