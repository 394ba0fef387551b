"""Data -> tokenizer -> world-action model, in one resumable run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kairos_env.records import Array, Episode, RobotSpec
from kairos_env.runs import write_json
from kairos_env.training.batches import Batch, Clips
from kairos_env.training.loop import LoopConfig, optimise
from kairos_env.training.losses import LossConfig, world_model_loss
from kairos_env.world_model.checkpoint import load, save
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import Statistics, WorldModel
from kairos_env.world_model.tokenizers.image import to_unit

# (imagined, real) uint8 (T, H, W, 3) of one episode, and the PNG to write
StripWriter = Callable[[Array, Array, Path], None]


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        out: run folder; an existing one is resumed.
        preset: model size (debug, tiny, small); unused with ``init``, which has its own.
        seed: fixes initialisation, clips and noise.
        device: cpu or cuda.
        precision: bf16 (autocast) or fp32.
        validation: episodes kept out of training, for the validation rows and strips.
        tokenizer, tokenizer_batch: stage 1, images per step.
        model, batch: stage 2, clips per step.
        loss: weights and noise of stage 2.
        imagined_from: share of stage 2 after which a third of the steps see imagined history.
        video_every: of so many steps of stage 2 one learns all modes; the others learn policy, reward and success from
            observed frames alone, for less than half the time.
        sample_every: steps between validation rollouts with film strips.
        starts: held-out first observations that ship with the model.
        init: bundled name or folder of a model to go on from; its tokenizer and latent statistics are kept and
            stage 1 is skipped. What depends on fields or cameras that differ starts anew, as `Transfer` tells.
        weights: float16 or float32, how the finished model is stored.
    """

    out: str = "runs/tiny"
    preset: str = "tiny"
    seed: int = 0
    device: str = "cpu"
    precision: str = "bf16"
    validation: int = 16
    tokenizer: LoopConfig = field(default_factory=lambda: LoopConfig(steps=2000, lr=2e-3, ema=0.995))
    tokenizer_batch: int = 64
    model: LoopConfig = field(default_factory=lambda: LoopConfig(steps=2400, lr=1.5e-3, warmup=150))
    batch: int = 12
    loss: LossConfig = field(default_factory=LossConfig)
    imagined_from: float = 0.25
    video_every: int = 1
    sample_every: int = 400
    starts: int = 48
    init: str = ""
    weights: Literal["float16", "float32"] = "float16"


@dataclass(frozen=True)
class Transfer:
    """What a model that goes on from another took over.

    Args:
        source: name or folder of the other model.
        kept: number of tensors taken over.
        fresh: names of those that start anew, since shapes, fields or cameras differ.
        differences: of the two robots, in words; empty for the same robot.
    """

    source: str
    kept: int
    fresh: tuple[str, ...]
    differences: tuple[str, ...]

    def __str__(self) -> str:
        if not self.fresh:
            return f"goes on from {self.source}: all {self.kept} tensors kept"
        return (
            f"goes on from {self.source}: {self.kept} tensors kept, {len(self.fresh)} start anew "
            f"({', '.join(self.fresh)}), because the robots differ: {'; '.join(self.differences)}"
        )


def train(
    config: TrainConfig,
    episodes: Sequence[Episode],
    spec: RobotSpec,
    tasks: Mapping[str, str],
    strip: StripWriter | None = None,
    weights: Sequence[float] | None = None,
    say: Callable[[str], None] = lambda text: None,
    pictures: Callable[[int], Episode] | None = None,
) -> Path:
    """Runs both stages and writes the finished model to ``<out>/model``.

    Args:
        episodes: all of them; ``validation + starts``, evenly spaced over the sequence, are held out of training. Those
            that have latents instead of pictures need ``init``, the model that made the latents.
        tasks: task name -> instruction.
        strip: writes validation film strips, if given.
        weights: how often each episode is drawn, relative to the others.
        say: is told what a model that goes on from another took over; also written to ``<out>/transfer.json``.
        pictures: number of a held-out episode -> the same with pictures, for ``episodes`` that have latents instead.

    Raises:
        ValueError: too few episodes, a folder of another run, or latents of another model.

    Returns:
        the folder of the finished model, for `WorldModel.from_pretrained`.
    """
    training, held_out, first_frames = split(len(episodes), config.validation, config.starts)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    _describe(config, folder, len(episodes))
    device = torch.device(config.device)
    source = load(config.init, device) if config.init else None
    learned = [episodes[i] for i in training]
    _require_own_latents(source, config.init, learned)
    look = pictures or episodes.__getitem__
    validation = [look(i) for i in held_out]
    starts = [look(i).observation(0) for i in first_frames]
    if not (all(e.images for e in validation) and all(o.images for o in starts)):
        raise ValueError("held-out episodes need pictures, for film strips and as starts: pass `pictures`")

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        model = WorldModel(source.config if source else get_preset(config.preset), spec, tasks).to(device)

    if source is None:
        _train_tokenizer(config, model, learned, folder)
    else:
        transfer = go_on_from(source, model, learned, config.init)
        write_json(folder / "transfer.json", dataclasses.asdict(transfer))
        say(str(transfer))
    model.tokenizer.requires_grad_(False)

    def clips_of(chosen: Sequence[Episode], odds: Sequence[float] | None = None) -> Clips:
        return Clips(
            chosen,
            [_views(model, e) for e in chosen],  # all latents once
            spec,
            tasks,
            model.chunk_length,
            lambda a: model.normalise_actions(a).cpu(),
            lambda p: (p - model.proprio_mean.cpu()) / model.proprio_std.cpu(),
            odds,
        )

    clips = clips_of(learned, weights and [weights[i] for i in training])
    unseen = clips_of(validation)

    # stage 2: world-action model
    length = config.loss.frames + model.chunk_length

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        batch = clips.sample(config.batch, length, generator)
        turn, rest = divmod(step, config.video_every)
        imagined = step >= config.imagined_from * config.model.steps and turn % 3 == 0 and rest == 0
        return world_model_loss(model, _to(batch, device), config.loss, generator, imagined, rest == 0)  # type: ignore[return-value]

    trained = nn.ModuleDict({"text": model.text, "mixture": model.mixture, "heads": model.heads})

    def check(step: int, ema: dict[str, Tensor]) -> dict[str, float]:
        with _swapped(trained, ema):
            metrics = validate(model.eval(), validation, folder / "strips" / f"step_{step:06d}", strip)
            return metrics | validation_losses(model, unseen, config, length)

    averaged = optimise(
        "model", trained, loss, config.model, folder, config.seed, config.precision, (config.sample_every, check)
    )
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(averaged[name])
    whole = [start for start in starts if len(start.images) == len(spec.cameras)]
    finished = WorldModel(model.config, spec, tasks, model.statistics, whole)
    finished.load_state_dict(model.state_dict())
    save(finished, folder / "model", getattr(torch, config.weights))
    return folder / "model"


def _train_tokenizer(config: TrainConfig, model: WorldModel, episodes: Sequence[Episode], folder: Path) -> None:
    """Stage 1, and the statistics of the latents that come out of it."""
    spec, channels = model.spec, model.config.tokenizer.latent_channels
    views = [e.images[camera.name] for camera in spec.cameras for e in episodes if camera.name in e.images]
    frames = torch.from_numpy(np.concatenate(views))
    averaged = optimise(
        "tokenizer",
        model.tokenizer,
        _tokenizer_loss(model, frames, _typical(frames), config.tokenizer_batch, model.device),
        config.tokenizer,
        folder,
        config.seed,
        config.precision,
    )
    with torch.no_grad():
        for name, parameter in model.tokenizer.named_parameters():
            parameter.copy_(averaged[name])
    model.set_statistics(Statistics.identity(channels, spec.proprio_dim))
    latents = torch.cat([torch.cat(_views(model, e), -1) for e in episodes])
    model.set_statistics(
        Statistics(
            tuple(latents.mean((0, 2, 3)).tolist()),
            tuple(latents.std((0, 2, 3)).tolist()),
            *_moments(np.concatenate([e.proprio for e in episodes])),
        )
    )


def split(episodes: int, validation: int, starts: int) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the episodes for training, for validation, and for the starts that ship with the model.

    The last two are spread evenly, so that every part of a mixture has its share of them.
    """
    held_out = validation + starts
    if episodes <= held_out:
        raise ValueError(
            f"{episodes} episodes are too few: {validation} are kept for validation and {starts} as starts; record "
            "more, or lower `validation` and `starts`"
        )
    chosen = [(2 * i + 1) * episodes // (2 * held_out) for i in range(held_out)]
    # every so many of the chosen ones is for validation
    checked = {chosen[(2 * i + 1) * held_out // (2 * validation)] for i in range(validation)}
    rest = [i for i in range(episodes) if i not in set(chosen)]
    return rest, sorted(checked), [i for i in chosen if i not in checked]


def go_on_from(source: WorldModel, model: WorldModel, episodes: Sequence[Episode], name: str) -> Transfer:
    """Copies what fits from a finished model into one of the same configuration for a robot that may differ.

    A field of the same place but another meaning does not fit either: embeddings and read-outs of actions or
    proprioception are kept only if all their fields are the same.
    """
    old, new = source.spec, model.spec
    unlike = {"action": old.action != new.action, "proprio": old.proprio != new.proprio}
    bound = {"action": ("action_embedding", "action_encoder", "action_dit.head."), "proprio": ("proprio_",)}
    have, kept, fresh = source.state_dict(), {}, []
    for key, tensor in model.state_dict().items():
        other = any(unlike[what] and part in key for what, parts in bound.items() for part in parts)
        if not other and key in have and have[key].shape == tensor.shape:
            kept[key] = have[key]
        else:
            fresh.append(key)
    model.load_state_dict(kept, strict=False)
    statistics = source.statistics
    if unlike["proprio"]:
        mean, std = _moments(np.concatenate([e.proprio for e in episodes]))
        statistics = dataclasses.replace(statistics, proprio_mean=mean, proprio_std=std)
    model.set_statistics(statistics)
    differences = [f"{what} fields {_names(old, what)} -> {_names(new, what)}" for what in unlike if unlike[what]]
    if len(old.cameras) != len(new.cameras):
        differences.append(f"cameras {[c.name for c in old.cameras]} -> {[c.name for c in new.cameras]}")
    return Transfer(name, len(kept), tuple(fresh), tuple(differences))


def _names(spec: RobotSpec, what: str) -> str:
    return ", ".join(f"{f.name} [{f.low:g}, {f.high:g}] {f.unit}" for f in getattr(spec, what))


def _moments(values: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(values.mean(0).tolist()), tuple((values.std(0) + 1e-6).tolist())


@torch.no_grad()
def validation_losses(model: WorldModel, clips: Clips, config: TrainConfig, length: int) -> dict[str, float]:
    """Losses of every mode on the held-out episodes, over the same clips and noise each time."""
    if not any(n >= length for n in clips.lengths):
        return {}
    generator = torch.Generator().manual_seed(0)
    batch = _to(clips.sample(max(8, config.batch), length, generator), model.device)
    _, losses = world_model_loss(model, batch, config.loss, generator)
    return {f"validation_{name}": float(value) for name, value in losses.items()}


@torch.no_grad()
def validate(
    model: WorldModel, episodes: Sequence[Episode], folder: Path, strip: StripWriter | None
) -> dict[str, float]:
    """Open-loop rollouts from the first frames under the recorded actions: PSNR beside copy-last, at some horizons."""
    if not episodes:
        return {}
    camera = model.spec.cameras[0].name
    steps = min(len(e) for e in episodes)
    state = model.observe([e.observation(0) for e in episodes])
    roll = model.imagine(state, np.stack([e.actions[:steps] for e in episodes]))
    imagined = model.decode(roll.latents)[camera].astype(np.float32)
    real = np.stack([e.images[camera][1 : steps + 1] for e in episodes]).astype(np.float32)
    first = np.stack([e.images[camera][:1] for e in episodes]).astype(np.float32)
    metrics = {}
    for horizon in (1, 5, 10, 20):
        if horizon <= steps:
            at = horizon - 1
            metrics[f"psnr_{horizon}"] = _psnr(imagined[:, at], real[:, at])
            metrics[f"psnr_{horizon}_copy"] = _psnr(first[:, 0], real[:, at])
    gripper = roll.proprio[:, :, :3].cpu().numpy() - np.stack([e.proprio[1 : steps + 1, :3] for e in episodes])
    metrics["proprio_error_last"] = float(np.linalg.norm(gripper[:, -1], axis=-1).mean())
    if strip is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(min(4, len(episodes))):
            strip(imagined[i].astype(np.uint8), real[i].astype(np.uint8), folder / f"{i}.png")
    return metrics


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB."""
    error = np.square(a - b).reshape(len(a), -1).mean(1)
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-6))).mean())


def _typical(frames: Tensor) -> Tensor:
    """Median image (H, W, 3) of a sample of uint8 frames: what is there when nothing is there."""
    chosen = torch.linspace(0, len(frames) - 1, min(500, len(frames))).long()
    return frames[chosen].float().median(0).values


def _tokenizer_loss(model: WorldModel, frames: Tensor, typical: Tensor, batch: int, device: torch.device):  # type: ignore[no-untyped-def]
    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        chosen = frames[torch.randint(len(frames), (batch,), generator=generator)]
        unusual = (chosen.float() - typical).abs().amax(-1) > 40
        weights = 1 + 4 * unusual.float()
        # colour separates the object from the metal of the robot, which moves as well
        spread = chosen.amax(-1).float() - chosen.amin(-1).float()
        weights = weights + 10 * (unusual & (spread > 80)).float()
        weights = (weights / weights.mean()).unsqueeze(1).to(device)
        noise = torch.randn((batch, *model.latent_shape[:2], model.latent_shape[1]), generator=generator) * 0.1
        return model.tokenizer.loss(to_unit(chosen).to(device), weights, noise.to(device))  # type: ignore[return-value]

    return loss


@torch.no_grad()
def _views(model: WorldModel, episode: Episode) -> list[Tensor]:
    """Each camera's normalised latents (T + 1, C, h, w) of an episode, on the CPU; zero where a camera is missing."""
    views = []
    for camera in model.spec.cameras:
        if camera.name in episode.latents:
            views.append(torch.from_numpy(episode.latents[camera.name]))
        elif camera.name in episode.images:
            image = torch.from_numpy(np.asarray(episode.images[camera.name])).to(model.device)
            views.append(model.encode_view(image).cpu())
        else:
            width = model.latent_shape[2] // len(model.spec.cameras)
            views.append(torch.zeros(1, *model.latent_shape[:2], width).expand(len(episode) + 1, -1, -1, -1))
    return views


def _require_own_latents(source: WorldModel | None, name: str, episodes: Sequence[Episode]) -> None:
    """Raises ValueError if episodes hold latents that another model than ``source`` made."""
    makers = {episode.encoder for episode in episodes if episode.latents}
    if makers and source is None:
        raise ValueError("cached latents are of use only to the model that made them: go on from it with `init`")
    if source is not None and makers - {source.encoder_sha256}:
        theirs = ", ".join(sorted(maker[:12] for maker in makers))
        raise ValueError(
            f"the cached latents were made by the encoder {theirs}, but that of {name} is {source.encoder_sha256[:12]} "
            f"(sha256): encode again with `kairos data encode --model {name}`"
        )


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved = {f.name: getattr(batch, f.name).to(device) for f in dataclasses.fields(batch) if f.name != "texts"}
    return Batch(**moved, texts=batch.texts)


@contextlib.contextmanager
def _swapped(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Temporarily gives ``module`` other parameter values."""
    kept = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(values[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(kept[name])


def _describe(config: TrainConfig, folder: Path, episodes: int) -> None:
    """Writes the resolved configuration and versions; a different configuration in the folder is an error."""
    versions = {n: importlib.metadata.version(n) for n in ("torch", "numpy", "gymnasium", "einops")}
    resolved = dataclasses.asdict(config) | {"episodes": episodes}
    path = folder / "config.json"
    if path.exists():
        # a key that the run does not know yet had its default
        old = dataclasses.asdict(TrainConfig()) | json.loads(path.read_text())["config"]
        changed = {k: (old.get(k), v) for k, v in resolved.items() if old.get(k) != json.loads(json.dumps(v))}
        if changed:
            raise ValueError(
                f"{folder} holds a run with another configuration (there, here): {changed}. Choose another `out`, "
                "or resume with the same settings."
            )
        return
    write_json(
        path,
        {
            "config": resolved,
            "versions": versions | {"python": platform.python_version()},
            "threads": torch.get_num_threads(),
        },
    )
