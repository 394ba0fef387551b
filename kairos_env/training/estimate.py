"""How long a training will take and how much memory, measured by a step of each stage before anything long."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from kairos_env.records import Episode
from kairos_env.training.batches import Clips
from kairos_env.training.config import TrainConfig
from kairos_env.training.losses import world_model_loss
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.tokenizers.image import to_unit


@dataclass(frozen=True)
class StepCost:
    """One step forward and back: seconds (of the processor, on a CPU), and floating-point operations if counted."""

    seconds: float
    flops: int


def estimate(config: TrainConfig, model: WorldModel, episodes: Sequence[Episode], tokenizer: bool) -> str:
    """A sentence on a whole training, without validation.

    Args:
        config: of the training, its precision chosen.
        model: new; a copy of it takes the steps.
        episodes: the longest of them gives the clips.
        tokenizer: whether stage 1 is run.
    """
    parts, total = [], 0.0
    costs = {"tokenizer": tokenizer_cost(config, model)} if tokenizer else {}
    if config.learned != {"tokenizer"}:
        costs["model"] = model_cost(config, model, max(episodes, key=len))
    for name, cost in costs.items():
        steps = getattr(config, name).steps
        parts.append(f"{name} {steps} x {cost.seconds:.2g} s")
        total += steps * cost.seconds
    clock = "CPU-" if model.device.type == "cpu" else ""
    minutes = f"estimate: about {max(1, round(total / 60))} {clock}minutes ({', '.join(parts)}), without validation"
    return f"{minutes}; {memory() / 2**30:.1f} GB of memory" if memory() else minutes


def model_cost(config: TrainConfig, model: WorldModel, episode: Episode, count: bool = False) -> StepCost:
    """A step of stage 2 that imagines whole clips of an episode, taken by a copy of the model."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    clips = Clips(model, [episode])
    frames = config.loss.frames + model.chunk_length

    def loss() -> torch.Tensor:
        batch = clips.sample(config.batch, frames, generator, config.loss.tasks).to(model.device)
        return world_model_loss(model, batch, config.taught, generator, config.loss.frames, joint=False)[0]

    return _cost(loss, config, model, count)


def tokenizer_cost(config: TrainConfig, model: WorldModel, count: bool = False) -> StepCost:
    """A step of stage 1, taken by a copy of the model."""
    model = copy.deepcopy(model)
    height, width = model.spec.cameras[0].height, model.spec.cameras[0].width
    images = to_unit(torch.zeros(config.tokenizer_batch, height, width, 3, dtype=torch.uint8)).to(model.device)
    noise = torch.zeros(config.tokenizer_batch, *model.latent_shape[:2], width // 8, device=model.device)
    weights = torch.ones(config.tokenizer_batch, 1, height, width, device=model.device)
    return _cost(lambda: model.tokenizer.loss(images, weights, noise, (1, 1))[0], config, model, count)


def memory() -> int:
    """The most bytes that the process ever had; 0 where systems do not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cost(loss: Callable[[], torch.Tensor], config: TrainConfig, model: WorldModel, count: bool) -> StepCost:
    """Of one step forward and back, after another one that prepares it, in which operations are counted."""
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    began, counter = 0.0, FlopCounterMode(display=False)
    for counted in (counter if count else nullcontext(), nullcontext()):
        began = clock()
        with counted:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                value = loss()
            value.backward()  # type: ignore[no-untyped-call]
        float(value.detach())  # a GPU's work is over when it is read
    return StepCost(clock() - began, counter.get_total_flops())
