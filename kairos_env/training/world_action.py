"""Stage 2: everything but the tokenizer, on clips of latents."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kairos_env.training.batches import Clips
from kairos_env.training.config import TrainConfig
from kairos_env.training.loop import Metrics, load_values, optimise, swapped
from kairos_env.training.losses import world_model_loss
from kairos_env.training.validation import Validation
from kairos_env.world_model.model import WorldModel


def train_world_action(
    model: WorldModel, clips: Clips, validation: Validation, config: TrainConfig, folder: Path
) -> None:
    """Trains text encoder, both experts and the heads; the model is left with the average of its parameters."""
    trained = nn.ModuleDict({"text": model.text, "mixture": model.mixture, "heads": model.heads})
    length = config.loss.frames + model.chunk_length

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        batch = clips.sample(config.batch, length, generator).to(model.device)
        turn, rest = divmod(step, config.video_every)
        imagined = step >= config.imagined_from * config.model.steps and turn % 3 == 0 and rest == 0
        return world_model_loss(model, batch, config.loss, generator, imagined, rest == 0)

    def check(step: int, averaged: dict[str, Tensor]) -> dict[str, float]:
        with swapped(trained, averaged):
            return validation.measure(model.eval(), step)

    every = (config.sample_every, check)
    averaged = optimise("model", trained, loss, config.model, folder, config.seed, config.precision, every)
    load_values(trained, averaged)
