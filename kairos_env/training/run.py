"""One training run in a folder of its own: data -> tokenizer -> world-action model, resumable at any step."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from kairos_env.records import Episode, Observation, RobotSpec
from kairos_env.runs import ConfigMismatch, WriteLock, atomic_write, write_json
from kairos_env.training.batches import Clips, check_encoder, object_names
from kairos_env.training.calibration import calibrate
from kairos_env.training.card import write_card
from kairos_env.training.config import TrainConfig
from kairos_env.training.data import split
from kairos_env.training.estimate import estimate
from kairos_env.training.launch import LaunchConfig, open_training, stored_config
from kairos_env.training.lineage import write_lineage
from kairos_env.training.log import TrainingLog, open_trackers
from kairos_env.training.precision import choose_precision
from kairos_env.training.summary import read_summary, write_summary
from kairos_env.training.tokenizer import train_tokenizer
from kairos_env.training.transfer import GOOD_DB, initialise_from, reconstruction, tokenizer_verdict
from kairos_env.training.validation import Validation
from kairos_env.training.world_action import ModelHook, train_world_action
from kairos_env.world_model.config import WorldModelConfig, get_preset
from kairos_env.world_model.engines import usable_device
from kairos_env.world_model.interface import SmallInterface
from kairos_env.world_model.model import WorldModel


def train(
    config: TrainConfig,
    episodes: Sequence[Episode],
    spec: RobotSpec,
    tasks: Mapping[str, str],
    weights: Sequence[float] | None = None,
    say: Callable[[str], None] = lambda text: None,
    pictures: Callable[[int], Episode] | None = None,
    launch: LaunchConfig | None = None,
    report: Callable[[Path], object] = lambda folder: None,
    names: Sequence[str] = (),
    digests: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Runs both stages and writes the finished model to ``<out>/model``.

    Args:
        episodes: all of them; ``validation + starts``, evenly spaced over the sequence, are held out of training. Those
            that have latents instead of pictures need ``init``, the model that made the latents.
        tasks: task name -> instruction.
        weights: how often each episode is drawn, relative to the others.
        say: is told what a model that goes on from another took over (also in ``<out>/transfer.json``), and what the
            data do not teach.
        pictures: number of a held-out episode -> the same with pictures, for ``episodes`` that have latents instead.
        launch: options of this launch alone.
        report: is called with the run's folder after each validation and at the end, to draw it.
        names: of the episodes; the model's ``training.json`` says which of them were held out.
        digests: of the recordings, for the model's lineage.

    Raises:
        ValueError: too few episodes, a folder of another run, or latents of another model.
        ImportError: a tracker of the launch is not installed.
        FolderInUse: another process trains into the same folder.
        FloatingPointError: the training diverged; the last checkpoint is intact.
        TrainingStopped: SIGTERM or Ctrl-C asked to stop; a checkpoint was written.

    Returns:
        the folder of the finished model, for `WorldModel.from_pretrained`.
    """
    usable_device(config.device)
    parts, launch = split(len(episodes), config.validation, config.starts), launch or LaunchConfig()
    config = dataclasses.replace(config, validation=len(parts.validation), starts=len(parts.starts))
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    with WriteLock(folder, "training into"):
        wanted = stored_config(folder).get("precision", "auto") if config.precision == "auto" else config.precision
        precision, why = choose_precision(wanted, config.device)
        config = dataclasses.replace(config, precision=precision)
        say(f"precision {precision}: {why}")
        trackers = open_trackers(launch.log, folder, dataclasses.asdict(config))
        open_training(folder, config, launch, {"threads": torch.get_num_threads(), "precision": why})
        held_out = sorted({*parts.validation, *parts.starts})
        _require_same_data(folder, episodes, [names[i] for i in held_out] if names else [])
        chosen = [episodes[i] for i in parts.training]
        with_pictures = pictures or episodes.__getitem__
        validation = [with_pictures(i) for i in parts.validation]
        acting = (i for i in parts.starts or parts.validation if episodes[i].acts)
        starts = [with_pictures(i).observation(0) for i in acting]
        if not (all(e.images for e in validation) and all(o.images for o in starts)):
            raise ValueError("held-out episodes need pictures, for film strips and as starts: pass `pictures`")

        with TrainingLog(folder, trackers) as log:
            source, model = _new_model(config, chosen, spec, tasks)
            write_lineage(folder, config, digests)
            _train_encoder(source, model, config, chosen, log, say)
            if config.learned != {"tokenizer"}:
                odds = weights and [weights[i] for i in parts.training]
                clips = Clips(model, chosen, odds, config.pixels)  # all latents once
                mark_untrained(model, clips, say)
                say_short(clips, config.loss.frames, model.chunk_length, say)
                checks = Validation(model, validation, config, folder / "strips")
                checks.require_gate(model)
                hooks: list[ModelHook] = [(config.sample_every, checks.measure)]
                if launch.snapshot_every:
                    hooks.append((launch.snapshot_every, _snapshots(folder, starts, config)))
                hooks.append((config.sample_every, _reports(report, folder)))
                train_world_action(model, clips, config, log, hooks, say)
                whole = (e for e in map(with_pictures, held_out) if e.acts and len(e.images) == len(spec.cameras))
                model.set_statistics(calibrate(model, whole))
        _write_model(model, starts, config, folder, folder / "model")
        report(folder)
    return folder / "model"


def _snapshots(
    run: Path, starts: Sequence[Observation], config: TrainConfig
) -> Callable[[WorldModel, int], Mapping[str, float]]:
    """A hook that keeps the model as it is as a whole folder ``snapshots/step_<number>`` of the run."""

    def snapshot(model: WorldModel, step: int) -> Mapping[str, float]:
        _write_model(model, starts, config, run, run / "snapshots" / f"step_{step:06d}")
        return {}

    return snapshot


def _reports(report: Callable[[Path], object], run: Path) -> Callable[[WorldModel, int], Mapping[str, float]]:
    """A hook that draws the run as far as it is."""

    def draw(model: WorldModel, step: int) -> Mapping[str, float]:
        report(run)
        return {}

    return draw


def _write_model(
    model: WorldModel, starts: Sequence[Observation], config: TrainConfig, run: Path, folder: Path
) -> None:
    """Writes a model folder, whole or not at all: those of the starts that have every camera, log and card with it."""
    whole = [start for start in starts if len(start.images) == len(model.spec.cameras)]
    finished = WorldModel(model.config, model.spec, model.tasks, model.statistics, whole)
    finished.load_state_dict(model.state_dict())
    with atomic_write(folder) as part:
        finished.save_pretrained(part, getattr(torch, config.weights))
        write_summary(read_summary(run), part)
        write_card(part, run.resolve().name)


def _new_model(
    config: TrainConfig, episodes: Sequence[Episode], spec: RobotSpec, tasks: Mapping[str, str]
) -> tuple[WorldModel | None, WorldModel]:
    """The model of ``config.init``, if there is one, and a new one of the robot."""
    source = WorldModel.from_pretrained(config.init, config.device) if config.init else None
    if source is not None and not isinstance(source.interface, SmallInterface):
        raise ValueError(
            f"{config.init} has published weights, which can be run but not yet fine-tuned: `init` takes a small model"
        )
    if source is not None:
        check_encoder(source, episodes, config.init)
    elif any(episode.latents for episode in episodes):
        raise ValueError("cached latents are of use only to the model that made them: go on from it with `init`")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        base = source.config if source else get_preset(config.preset)
        if source is None or source.spec.diff(spec):  # nothing has learned to read anything of this robot
            base = dataclasses.replace(base, objects=(), untrained=("reward", "success"))
        words = config.words or (source is not None and base.one_pass and base.video.words)
        shapes = one_pass_config(base, object_names(episodes), words)
        return source, WorldModel(shapes, spec, tasks).to(config.device)


def _train_encoder(
    source: WorldModel | None,
    model: WorldModel,
    config: TrainConfig,
    episodes: Sequence[Episode],
    log: TrainingLog,
    say: Callable[[str], None],
) -> None:
    """Makes the model's tokenizer and statistics final: trains them, or takes those of ``config.init`` over."""
    if source is not None:
        transfer = initialise_from(source, model, episodes, config.init)
        write_json(log.folder / "transfer.json", dataclasses.asdict(transfer))
        say(str(transfer))
    trains = "tokenizer" in config.learned and (source is None or trains_tokenizer(model, episodes, config, say))
    if not (log.folder / "model.pt").exists():  # a run that goes on tells its pace
        say(estimate(config, model, episodes, trains))
    if trains:
        train_tokenizer(model, episodes, config, log, say)
    model.tokenizer.requires_grad_(False)


def trains_tokenizer(
    model: WorldModel, episodes: Sequence[Episode], config: TrainConfig, say: Callable[[str], None]
) -> bool:
    """Whether the tokenizer that a model took over is trained, too; says how well it gives these pictures back."""
    if (Path(config.out) / "tokenizer.pt").exists():
        return True  # it was, before this launch
    if any(episode.latents for episode in episodes):
        if config.init_tokenizer == "train":
            raise ValueError("cached latents are of the tokenizer that made them: train another on the pictures")
        return False
    found = reconstruction(model, episodes)
    poor = min(found.values()) < GOOD_DB
    trains = config.init_tokenizer == "train" or (poor and config.init_tokenizer == "auto")
    does = "it is trained on them, too" if trains else "it is kept"
    bound = ", and imagination can look no better" if poor and not trains else ""
    say(f"{tokenizer_verdict(model, episodes, config.init)}: {does}{bound}")
    return trains


def mark_untrained(model: WorldModel, clips: Clips, say: Callable[[str], None]) -> None:
    """Notes in the model's configuration what neither these clips teach nor did those of the model it goes on from."""
    missing = clips.untrained_readouts()
    for sentence in dict.fromkeys(missing.values()):
        say(sentence)
    untrained = tuple(name for name in model.untrained if name in missing)
    model.config = dataclasses.replace(model.config, untrained=untrained)
    if "success" in untrained:
        model.heads.silence_outcome()


def say_short(clips: Clips, frames: int, chunk: int, say: Callable[[str], None]) -> None:
    """Says how many episodes are too short to cut a clip from, which has an action chunk more than ``frames``."""
    short = [length for length in clips.lengths if length < frames + chunk]
    if short:
        say(
            f"{len(short)} of {len(clips)} episodes have fewer than the {frames + chunk} frames of a clip, and teach "
            f"the tokenizer alone; --loss.frames {max(2, min(short) - chunk)} uses all that can be used"
        )


def one_pass_config(config: WorldModelConfig, objects: tuple[str, ...], words: bool = False) -> WorldModelConfig:
    """The configuration of a model to be trained: imagines in one pass, and reads the objects that are labelled.

    Those that it reads already stay, also where only some of them are labelled.
    """
    video = dataclasses.replace(config.video, words=words)
    objects = config.objects if set(objects) <= set(config.objects) else objects
    untrained = (*config.untrained, *(name for name in objects if name not in config.objects))
    return dataclasses.replace(config, one_pass=True, objects=objects, untrained=untrained, video=video)


def _require_same_data(folder: Path, episodes: Sequence[Episode], held_out: Sequence[str]) -> None:
    """Raises `ConfigMismatch` if the run began with other data, by numbers of episodes, tasks and behaviours."""
    path = folder / "data.json"
    now: dict[str, Any] = {
        "episodes": len(episodes),
        "decisions": sum(map(len, episodes)),
        "behaviours": dict(sorted(Counter(episode.source for episode in episodes).items())),
        "tasks": dict(sorted(Counter(episode.task for episode in episodes).items())),
    }
    before = json.loads(path.read_text()) if path.exists() else now
    if any(before.get(key) != value for key, value in now.items()):
        raise ConfigMismatch(f"{folder} was trained on {before}, but now there are {now}: choose another `out`")
    write_json(path, now | {"held_out": list(held_out)})
