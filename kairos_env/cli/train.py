"""`kairos train`: recorded episodes in, a finished model folder out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from kairos_env.cli.options import Fields
from kairos_env.cli.proposal import next_command
from kairos_env.cli.values import read_file
from kairos_env.eval.report.training import training_text, write_training_page
from kairos_env.sims.tabletop.env import make_spec
from kairos_env.training.config import TrainConfig
from kairos_env.training.curriculum.plan import plan_text
from kairos_env.training.curriculum.presets import CURRICULA, get_curriculum
from kairos_env.training.curriculum.run import robot_of, train_curriculum
from kairos_env.training.curriculum.stages import Curriculum, from_dict
from kairos_env.training.data import DataConfig, instructions, load_mixture
from kairos_env.training.launch import LaunchConfig
from kairos_env.training.run import train
from kairos_env.world_model.checkpoint import action_chunk
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.engines import usable_device


@dataclass(frozen=True)
class TrainRun(TrainConfig):
    """A training run and its data."""

    data: DataConfig = field(default_factory=DataConfig)


COMMON = ("out", "seed", "device", "precision", "validation", "starts", "init", "sample_every", "weights")
"""Options that count beside a curriculum, whose own all others are."""


def run(
    config: Fields[TrainRun],
    launch: Fields[LaunchConfig],
    show: bool = False,
    curriculum: str = "",
    plan: bool = False,
) -> int:
    """Trains, or resumes, the run that the options describe.

    Args:
        show: print the resolved configuration and stop.
        curriculum: train its stages instead of one: the name of one (cedc, laptop), or a file of one.
        plan: of a curriculum, print what it takes and stop.
    """
    if curriculum:
        return _curriculum(chosen_curriculum(curriculum, config), launch, show, plan)
    if plan:
        raise ValueError("--plan is of a curriculum: --curriculum NAME or FILE")
    if show:
        print(json.dumps(asdict(config), indent=2))
        return 0
    usable_device(config.device)  # before anything that takes long
    chunk = action_chunk(config.init) if config.init else get_preset(config.preset).action.chunk
    data = load_mixture(config.data, print, config.loss.frames + chunk)
    folder = train(
        config,
        data.episodes,
        data.spec,
        instructions(data.episodes),
        data.odds,
        print,
        data.pictures,
        launch,
        write_training_page,
        data.names,
        data.digests,
    )
    print(f"{training_text(config.out)}\n\nfinished: {folder}")
    feature_map = config.data.maps[0] if config.data.maps else ""
    out = str(Path(config.out) / "imagination")
    print(f"next:     {next_command('eval imagination', str(folder), config.data.path, feature_map, out)}")
    print(f"share:    kairos push {folder} OWNER/NAME")
    return 0


def chosen_curriculum(name: str, config: TrainRun) -> Curriculum:
    """The curriculum of a name or a file, with the options that count beside it.

    Raises:
        ValueError: it is none, or options that are its own.
    """
    found = from_dict(read_file(Path(name)), CURRICULA) if Path(name).is_file() else get_curriculum(name)
    usual, given = TrainRun(), {}
    for field_ in fields(TrainRun):
        value = getattr(config, field_.name)
        if value != getattr(usual, field_.name):
            given[field_.name] = value
    if own := sorted(set(given) - set(COMMON)):
        raise ValueError(
            f"{', '.join(own)} cannot be given beside --curriculum: a file says it of all stages (train) or of one"
        )
    return replace(found, train=replace(found.train, **given))


def _curriculum(curriculum: Curriculum, launch: LaunchConfig, show: bool, only_plan: bool) -> int:
    if show:
        print(json.dumps(asdict(curriculum), indent=2))
        return 0
    named = all(stage.data.path for stage in curriculum.stages)
    print(plan_text(curriculum, robot_of(curriculum) if named else make_spec()))
    if only_plan:
        return 0
    folder = train_curriculum(curriculum, print, launch, write_training_page)
    print(f"\nfinished: {folder}")
    last = curriculum.stages[-1].data
    out = str(Path(curriculum.train.out) / "imagination")
    print(f"next:     {next_command('eval imagination', str(folder), last.path, '', out)}")
    return 0
