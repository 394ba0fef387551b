"""Stage 1: pictures to latents and back, and the statistics of the latents, which travel with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kairos_env.records import Episode
from kairos_env.training.batches import camera_latents
from kairos_env.training.config import TrainConfig
from kairos_env.training.log import TrainingLog
from kairos_env.training.loop import Metrics, load_values, optimise
from kairos_env.training.pixels import median_image, pixel_weights
from kairos_env.world_model.interface import ModelStatistics
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.tokenizers.image import FARTHEST, to_unit

LATENT_NOISE = 0.1  # makes the decoder forgive the errors that a predicted latent has


def train_tokenizer(
    model: WorldModel, episodes: Sequence[Episode], config: TrainConfig, log: TrainingLog, say: Callable[[str], None]
) -> None:
    """Trains the model's tokenizer on the pictures of all episodes, then sets the model's statistics."""
    cameras = [camera.name for camera in model.spec.cameras]
    views = [[e.images[name] for e in episodes if name in e.images] for name in cameras]
    frames = torch.from_numpy(np.concatenate([images for view in views for images in view]))
    ends = torch.tensor([sum(map(len, view)) for view in views]).cumsum(0)
    usual = torch.stack([median_image(part) for part in frames.tensor_split(ends[:-1])])
    noise_shape = (config.tokenizer_batch, *model.latent_shape[:2], model.latent_shape[2] // len(cameras))

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        drawn = torch.randint(len(frames), (config.tokenizer_batch,), generator=generator)
        images = frames[drawn]
        weights = pixel_weights(images, usual[torch.bucketize(drawn, ends, right=True)], config.pixels)
        noise = LATENT_NOISE * torch.randn(noise_shape, generator=generator)
        rows, columns = torch.randint(-FARTHEST, FARTHEST + 1, (2,), generator=generator).tolist()
        device = model.device
        return model.tokenizer.loss(to_unit(images).to(device), weights.to(device), noise.to(device), (rows, columns))

    averaged = optimise(
        "tokenizer", model.tokenizer, loss, config.tokenizer, log, config.seed, config.precision, say=say
    )
    load_values(model.tokenizer, averaged)
    model.set_statistics(ModelStatistics.identity(model.latent_shape[0], model.spec.proprio_dim))
    latents = torch.cat([torch.cat(camera_latents(model, e), -1) for e in episodes])
    mean, std = latents.mean((0, 2, 3)).tolist(), latents.std((0, 2, 3)).tolist()
    model.set_statistics(ModelStatistics(tuple(mean), tuple(std), *moments(episodes)))


def moments(episodes: Sequence[Episode]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each field of the proprioception, over the episodes that know it.

    Of a field that none knows: its value in the place of what is missing, and 1.
    """
    if all(e.proprio_mask is None for e in episodes):
        rows = np.concatenate([e.proprio for e in episodes])
        return tuple(rows.mean(0).tolist()), tuple((rows.std(0) + 1e-6).tolist())
    found = []
    for column in range(episodes[0].proprio.shape[1]):
        known = [e.proprio[:, column] for e in episodes if e.proprio_mask is None or e.proprio_mask[column]]
        values = np.concatenate(known) if known else episodes[0].proprio[:, column]
        found.append((float(values.mean()), float(values.std()) + 1e-6 if known else 1.0))
    mean, std = zip(*found, strict=True)
    return mean, std
