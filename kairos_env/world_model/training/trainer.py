"""Data -> tokenizer -> world-action model, in one resumable run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kairos_env.records import Array, Episode, Observation, RobotSpec
from kairos_env.world_model.checkpoint import load, save
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import Statistics, WorldModel
from kairos_env.world_model.tokenizer import to_unit
from kairos_env.world_model.training.batches import Batch, Clips
from kairos_env.world_model.training.loop import LoopConfig, optimise
from kairos_env.world_model.training.losses import LossConfig, world_model_loss

# (imagined, real) uint8 (T, H, W, 3) of one episode, and the PNG to write
StripWriter = Callable[[Array, Array, Path], None]


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        out: run folder; an existing one is resumed.
        preset: model size (debug, tiny, small).
        seed: fixes initialisation, clips and noise.
        device: cpu or cuda.
        precision: bf16 (autocast) or fp32.
        validation: episodes kept out of training, for the validation rows and strips.
        tokenizer, tokenizer_batch: stage 1, images per step.
        model, batch: stage 2, clips per step.
        loss: weights and noise of stage 2.
        imagined_from: share of stage 2 after which a third of the steps see imagined history.
        sample_every: steps between validation rollouts with film strips.
        starts: held-out first observations that ship with the model.
        init: bundled name or folder of a model to go on from; its tokenizer and statistics are kept and stage 1 is
            skipped.
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
    sample_every: int = 400
    starts: int = 48
    init: str = ""
    weights: Literal["float16", "float32"] = "float16"


def train(
    config: TrainConfig,
    episodes: Sequence[Episode],
    spec: RobotSpec,
    tasks: Mapping[str, str],
    strip: StripWriter | None = None,
) -> Path:
    """Runs both stages and writes the finished model to ``<out>/model``.

    Args:
        episodes: all of them; the last ``validation + starts`` are held out of training.
        tasks: task name -> instruction.
        strip: writes validation film strips, if given.

    Returns:
        the folder of the finished model, for `WorldModel.from_pretrained`.
    """
    held_out = config.validation + config.starts
    if len(episodes) <= held_out:
        raise ValueError(
            f"{len(episodes)} episodes are too few: {config.validation} are kept for validation and {config.starts} "
            "as starts; record more, or lower `validation` and `starts`"
        )
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    _describe(config, folder, len(episodes))
    device = torch.device(config.device)
    training, validation = episodes[:-held_out], episodes[-held_out : len(episodes) - config.starts]
    first = [_start(e) for e in episodes[len(episodes) - config.starts :]] if config.starts else []

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        model = WorldModel(get_preset(config.preset), spec, tasks).to(device)

    if config.init:
        _continue_from(load(config.init, device), model)
    else:
        _train_tokenizer(config, model, training, folder)
    model.tokenizer.requires_grad_(False)
    raw = [_encode(model, e) for e in training]  # all latents once
    clips = Clips(
        training,
        raw,
        spec,
        tasks,
        model.chunk_length,
        lambda a: model.normalise_actions(a).cpu(),
        lambda p: (p - model.proprio_mean.cpu()) / model.proprio_std.cpu(),
    )

    # stage 2: world-action model
    length = config.loss.frames + model.chunk_length

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        batch = clips.sample(config.batch, length, generator)
        imagined = step >= config.imagined_from * config.model.steps and step % 3 == 0
        return world_model_loss(model, _to(batch, device), config.loss, generator, imagined)  # type: ignore[return-value]

    trained = nn.ModuleDict({"text": model.text, "mixture": model.mixture, "heads": model.heads})

    def check(step: int, ema: dict[str, Tensor]) -> dict[str, float]:
        with _swapped(trained, ema):
            return validate(model.eval(), validation, folder / "strips" / f"step_{step:06d}", strip)

    averaged = optimise(
        "model", trained, loss, config.model, folder, config.seed, config.precision, (config.sample_every, check)
    )
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(averaged[name])
    finished = WorldModel(model.config, spec, tasks, model.statistics, first)
    finished.load_state_dict(model.state_dict())
    save(finished, folder / "model", getattr(torch, config.weights))
    return folder / "model"


def _train_tokenizer(config: TrainConfig, model: WorldModel, episodes: Sequence[Episode], folder: Path) -> None:
    """Stage 1, and the statistics of the latents that come out of it."""
    spec, channels = model.spec, model.config.tokenizer.latent_channels
    frames = torch.from_numpy(np.concatenate([e.images[c.name] for c in spec.cameras for e in episodes]))
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
    proprio = np.concatenate([e.proprio for e in episodes])
    model.set_statistics(Statistics.identity(channels, spec.proprio_dim))
    latents = torch.cat([_encode(model, e) for e in episodes])
    model.set_statistics(
        Statistics(
            tuple(latents.mean((0, 2, 3)).tolist()),
            tuple(latents.std((0, 2, 3)).tolist()),
            tuple(proprio.mean(0).tolist()),
            tuple((proprio.std(0) + 1e-6).tolist()),
        )
    )


def _continue_from(source: WorldModel, model: WorldModel) -> None:
    """Copies weights and statistics of a finished model of the same preset and robot."""
    model.spec.require_same(source.spec, "recording", "model to go on from")
    if source.config != model.config:
        raise ValueError(f"cannot go on from preset {source.config.preset!r} with preset {model.config.preset!r}")
    model.load_state_dict(source.state_dict())
    model.set_statistics(source.statistics)


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
def _encode(model: WorldModel, episode: Episode) -> Tensor:
    """Normalised latents (T + 1, C, h, w) of an episode, on the CPU."""
    images = {name: torch.from_numpy(np.asarray(image)).to(model.device) for name, image in episode.images.items()}
    return model.encode_images(images).cpu()


def _start(episode: Episode) -> Observation:
    return episode.observation(0)


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
    part = path.with_suffix(".part")
    part.write_text(
        json.dumps(
            {
                "config": resolved,
                "versions": versions | {"python": platform.python_version()},
                "threads": torch.get_num_threads(),
            },
            indent=2,
        )
    )
    os.replace(part, path)
