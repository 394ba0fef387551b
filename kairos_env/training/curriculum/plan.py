"""What a curriculum will take, before it starts: tokens, operations, memory and time of every stage.

Of models that this machine trains, a step of each stage is taken and measured. Of larger ones everything is calculated
from the number of parameters, which is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kairos_env.datasets.conform import sampled
from kairos_env.records import Episode, RobotSpec
from kairos_env.training.config import TrainConfig
from kairos_env.training.curriculum.stages import TOKENIZER, Curriculum, CurriculumStage
from kairos_env.training.estimate import memory, model_cost, tokenizer_cost
from kairos_env.training.run import one_pass_config
from kairos_env.training.world_action import part_of
from kairos_env.world_model.checkpoint import read, resolve
from kairos_env.world_model.config import WorldModelConfig, get_preset
from kairos_env.world_model.model import WorldModel

MEASURED_BELOW = 100e6  # parameters of a model of which steps are taken
GPU_FLOPS = 0.4 * 989e12  # a second, of an H100 in bfloat16 at two fifths of its peak
GPUS = 8
_STATE = 16  # bytes of a parameter that learns: weight, average, two moments, 4 each; the gradient comes on top
_GRADIENT, _FROZEN = 4, 4


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes at most: gates may end it earlier.

    Args:
        name: of the stage.
        learns, data: in words.
        steps, clips, frames: of the optimiser; seen in all of them; latent frames of a clip.
        tokens: of the video expert, in all steps; pictures where the tokenizer learns.
        flops: floating-point operations forward and back.
        memory: bytes; of a calculated plan without activations.
        seconds: of this machine's processor, of its GPU, or of `GPUS` H100 where they are calculated.
        assumed: fields whose values the source of the recipe does not tell.
    """

    name: str
    learns: str
    data: str
    steps: int
    clips: int
    frames: int
    tokens: float
    flops: float
    memory: float
    seconds: float
    assumed: Sequence[str] = ()


@dataclass(frozen=True)
class CurriculumPlan:
    """Plans of all stages, and whether they were measured here (else calculated)."""

    stages: Sequence[StagePlan]
    parameters: int
    measured: bool
    clock: str

    def __str__(self) -> str:
        head = ("stage", "learns", "data", "steps", "clips", "frames", "tokens", "FLOP", "memory", "time")
        rows = [head, *map(self._row, self.stages)]
        total = sum(s.flops for s in self.stages), sum(s.seconds for s in self.stages)
        rows.append(("all", "", "", "", "", "", "", f"{total[0]:.2g}", "", _duration(total[1])))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        how = "measured by a step of each stage" if self.measured else "calculated, memory without activations"
        size = f"{self.parameters / 1e6:.3g} M parameters"
        lines.append(f"{size}; at most, without validation; {how}; time: {self.clock}")
        told = {each: None for stage in self.stages for each in stage.assumed}
        if told:
            lines.append(f"* the source does not tell {', '.join(told)} (of some or all stages): these values are ours")
        return "\n".join(lines)

    def _row(self, s: StagePlan) -> tuple[str, ...]:
        name = s.name + "*" * bool(s.assumed)
        counts = f"{s.steps}", f"{s.clips:.3g}" if s.clips > 1e6 else f"{s.clips}", f"{s.frames}", f"{s.tokens:.2g}"
        return name, s.learns, s.data, *counts, f"{s.flops:.2g}", f"{s.memory / 2**30:.3g} GB", _duration(s.seconds)


def make_plan(curriculum: Curriculum, robot: RobotSpec) -> CurriculumPlan:
    """The plan of a curriculum for a robot, whose pictures a stage may resize."""
    shapes = read(resolve(curriculum.train.init)).config if curriculum.train.init else None
    shapes = one_pass_config(shapes or get_preset(curriculum.train.preset), (), curriculum.train.words)
    sizes = _sizes(shapes, robot)
    parameters = sum(sizes.values())
    measured = parameters < MEASURED_BELOW and curriculum.frames_per_latent == 1
    stages = [_tokenizer(curriculum, shapes, robot)] if measured and not curriculum.train.init else []
    stages += [_stage(curriculum, stage, shapes, robot, None if measured else sizes) for stage in curriculum.stages]
    if not measured:
        clock = f"of {GPUS} H100 at {GPU_FLOPS:.2g} FLOP/s each"
    else:
        clock = "of the processor" if curriculum.train.device == "cpu" else f"of {curriculum.train.device}"
    return CurriculumPlan(stages, parameters, measured, clock)


def _tokenizer(curriculum: Curriculum, shapes: WorldModelConfig, robot: RobotSpec) -> StagePlan:
    config = curriculum.tokenizer_config("")
    steps, pictures = config.tokenizer.steps, config.tokenizer.steps * config.tokenizer_batch
    cost = tokenizer_cost(config, WorldModel(shapes, robot, {}).to(config.device), count=True)
    spent = steps * cost.flops, float(memory()), steps * cost.seconds
    return StagePlan(TOKENIZER, TOKENIZER, "pictures of all stages", steps, pictures, 1, pictures, *spent)


def _stage(
    curriculum: Curriculum,
    stage: CurriculumStage,
    shapes: WorldModelConfig,
    robot: RobotSpec,
    sizes: Mapping[str, int] | None,
) -> StagePlan:
    """The plan of a stage; calculated from the ``sizes`` of the parts, or without them measured."""
    config = curriculum.config(stage, "", curriculum.parent(stage) or TOKENIZER)
    spec = sampled(robot, stage.data.size, stage.data.rate)
    frames = 1 + (config.loss.frames - 1) // curriculum.frames_per_latent
    if stage.loss.conditions.images == 1:
        frames = 1
    cells = shapes.video.patch * 8  # pixels of a token's side
    tokens = sum(-(-c.height // cells) * -(-c.width // cells) for c in spec.cameras)
    clips = stage.model.steps * stage.batch
    seen = float(clips * frames * tokens)
    spent = _measured(config, shapes, spec) if sizes is None else _calculated(config, sizes, seen)
    learns = ", ".join(sorted(stage.learns)) or "all but the tokenizer"
    data = ", ".join(stage.data.paths) if stage.data.path else "still to be named"
    assumed = stage.assumed
    return StagePlan(stage.name, learns, data, stage.model.steps, clips, frames, seen, *spent, assumed)


def _measured(config: TrainConfig, shapes: WorldModelConfig, spec: RobotSpec) -> tuple[float, float, float]:
    """Operations, bytes and seconds of a stage, by a step on an episode of black pictures."""
    model = WorldModel(shapes, spec, {}).to(config.device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in config.learned)
    steps = config.loss.frames + model.chunk_length
    black = Episode(
        {c.name: np.zeros((steps + 1, c.height, c.width, 3), np.uint8) for c in spec.cameras},
        np.zeros((steps + 1, spec.proprio_dim), np.float32),
        np.zeros((steps, spec.action_dim), np.float32),
        np.zeros(steps, np.float32),
        np.zeros(steps, np.bool_),
    )
    cost = model_cost(config, model, black, count=True)
    return config.model.steps * cost.flops, float(memory()), config.model.steps * cost.seconds


def _sizes(shapes: WorldModelConfig, robot: RobotSpec) -> dict[str, int]:
    """Parameters of every part."""
    with torch.device("meta"):
        model = WorldModel(shapes, robot, {})
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = TOKENIZER if name.startswith("tokenizer.") else part_of(name)
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    return sizes


def _calculated(config: TrainConfig, sizes: Mapping[str, int], tokens: float) -> tuple[float, float, float]:
    """The same by rule: 2 operations a parameter and token forward, twice that back, and no attention."""
    learned = sum(size for part, size in sizes.items() if part in config.learned and part != TOKENIZER)
    flops = tokens * (2 * sizes["video"] + 4 * min(learned, sizes["video"]))
    held = learned * (_STATE + _GRADIENT) + (sum(sizes.values()) - learned) * _FROZEN
    return flops, float(held), flops / (GPUS * GPU_FLOPS)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f} min"
    return f"{minutes / 60:.3g} h"


def plan_text(curriculum: Curriculum, robot: RobotSpec) -> str:
    """The plan in words, on a machine that need not have the device; gates and notes of the stages below it."""
    here = curriculum.train.device.partition(":")[0] == "cpu" or torch.cuda.is_available()
    train = curriculum.train if here else dataclasses.replace(curriculum.train, device="cpu")
    lines = [str(make_plan(dataclasses.replace(curriculum, train=train), robot))]
    for stage in curriculum.stages:
        parent = curriculum.parent(stage) or curriculum.train.init or TOKENIZER
        lines.append(f"{stage.name}: from {parent}; until {stage.gate}" + (f"; {stage.note}" if stage.note else ""))
    return "\n".join(lines)
