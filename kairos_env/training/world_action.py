"""Stage 2: everything but the tokenizer, on clips of latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kairos_env.training.batches import Clips
from kairos_env.training.config import TrainConfig
from kairos_env.training.log import TrainingLog
from kairos_env.training.loop import Averaged, Hook, Metrics, load_values, optimise, swapped
from kairos_env.training.losses import world_model_loss
from kairos_env.world_model.model import WorldModel

SHOWN = 128  # frames of a step, all of different clips, in which objects are learnt to be seen

ModelHook = tuple[int, Callable[[WorldModel, int], Mapping[str, float]]]
"""(interval, callback): after every so many steps it is called with (model as averaged so far, step), see `Hook`."""


def train_world_action(
    model: WorldModel,
    clips: Clips,
    config: TrainConfig,
    log: TrainingLog,
    hooks: Sequence[ModelHook] = (),
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Trains text encoder, both experts and the heads, or those of them that ``config.learns`` names.

    The model is left with the average of its parameters.
    """
    parts = "text", "mixture", "heads", "reader", "renderer"
    trained = nn.ModuleDict({name: getattr(model, name) for name in parts if hasattr(model, name)})
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(part_of(name) in config.learned)
    length = config.loss.frames + model.chunk_length
    losses = config.taught

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        batch = clips.sample(config.batch, length, generator, losses.tasks).to(model.device)
        turn, rest = divmod(step, config.video_every)
        joint = rest == 0 and turn % config.joint_every == 0
        shown = clips.sample(SHOWN, 1, generator).to(model.device) if model.objects else None
        return world_model_loss(model, batch, losses, generator, horizon(config, step), rest == 0, joint, shown)

    def averaged_first(interval: int, call: Callable[[WorldModel, int], Mapping[str, float]]) -> Hook:
        def hook(step: int, averaged: Averaged) -> Mapping[str, float]:
            with swapped(trained, averaged):
                return call(model.eval(), step)

        return interval, hook

    wrapped = [averaged_first(*hook) for hook in hooks]

    def ended() -> bool:
        return bool(config.gate.metric) and config.gate.ended(log.rows("model"))

    averaged = optimise("model", trained, loss, config.model, log, config.seed, config.precision, wrapped, say, ended)
    load_values(trained, averaged)


def part_of(parameter: str) -> str:
    """The part of a model, see `training.config.Part`, that a parameter of stage 2 belongs to."""
    if parameter.startswith("text."):
        return "text"
    return "action" if parameter.startswith("mixture.action_dit.") else "video"


def horizon(config: TrainConfig, step: int) -> int:
    """Frames that a clip is imagined from the model's own predictions at this step of stage 2.

    One, told the truth, until ``own_from``; from there two, growing evenly to the whole clip at ``own_whole``.
    """
    done = step / config.model.steps
    if done < config.own_from:
        return 1
    grown = (done - config.own_from) / max(config.own_whole - config.own_from, 1e-9)
    return min(config.loss.frames, 2 + int(grown * (config.loss.frames - 2)))
