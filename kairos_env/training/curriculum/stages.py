"""A curriculum as a value: stages of one training, each a mixture of data, what learns from it, how, and how long."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kairos_env.runs import did_you_mean
from kairos_env.training.config import Part, TrainConfig
from kairos_env.training.curriculum.values import build
from kairos_env.training.data import DataConfig
from kairos_env.training.gates import Gate
from kairos_env.training.passes import LossConfig
from kairos_env.training.progress import LoopConfig
from kairos_env.world_model.config import get_preset

TOKENIZER: Part = "tokenizer"  # the stage before the others, which trains on all their pictures
Objective = Literal["flow", "preference"]


@dataclass(frozen=True)
class CurriculumStage:
    """One stage of a curriculum. Its model is the moving average of its parameters.

    Args:
        name: of the stage and of its folder.
        learns: parts that learn: text, video, action; empty: all three. The tokenizer is learned before all stages.
        data: the mixture: recordings with weights, ``captions`` for the share of detailed captions, ``size`` of the
            pictures. An empty path: still to be named. Robots are read as the last stage's, films as seen by its
            camera.
        model: optimiser and schedule; its steps are the most that the stage takes.
        batch: clips in a step.
        loss: weights, noise levels, frames of a clip, and ``conditions``, what clips are imagined from.
        gate: what ends the stage before its last step.
        objective: flow; ``preference`` (pairs of good and bad clips) can be declared and planned, not yet run.
        after: the stage whose model it goes on from; empty: the one before.
        assumed: fields (``section.key``) whose values the source of the recipe does not tell; they are ours.
        note: what the source says beside that.
    """

    name: str
    learns: tuple[Part, ...] = ("text", "video")
    data: DataConfig = field(default_factory=lambda: DataConfig(path=""))
    model: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, lr=1e-3))
    batch: int = 12
    loss: LossConfig = field(default_factory=LossConfig)
    gate: Gate = field(default_factory=Gate)
    objective: Objective = "flow"
    after: str = ""
    assumed: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if not self.name or self.name == TOKENIZER or set(self.name) & set("/\\ "):
            raise ValueError(f"a stage's name is a word other than {TOKENIZER!r}, for its folder; got {self.name!r}")
        if "tokenizer" in self.learns:
            raise ValueError(f"stage {self.name!r}: the tokenizer is learned once, before the stages")
        if self.batch < 1:
            raise ValueError(f"stage {self.name!r}: batch must be at least 1, got {self.batch}")


@dataclass(frozen=True)
class Curriculum:
    """Stages in their order, and what is common to them.

    Args:
        stages: each goes on from the one before, or from the one that its ``after`` names.
        train: preset or ``init``, tokenizer, words, validation; what a stage says itself has no effect here.
        frames_per_latent: pictures that share a latent frame: 1 for the small models, 4 for the published tokenizer.
    """

    stages: tuple[CurriculumStage, ...]
    train: TrainConfig = field(default_factory=TrainConfig)
    frames_per_latent: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a curriculum needs at least one stage")
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}")
            if stage.after and stage.after not in seen:
                hint = did_you_mean(stage.after, seen)
                raise ValueError(f"stage {stage.name!r} goes on from {stage.after!r}; {hint}")
            seen.append(stage.name)

    def parent(self, stage: CurriculumStage) -> str:
        """Name of the stage that another goes on from; empty: from the beginning."""
        place = self.stages.index(stage)
        return stage.after or (self.stages[place - 1].name if place else "")

    def config(self, stage: CurriculumStage, out: str, init: str) -> TrainConfig:
        """The training of a stage."""
        own = {name: getattr(stage, name) for name in ("model", "batch", "loss", "gate")}
        learns = stage.learns or ("text", "video", "action")
        return dataclasses.replace(self.train, out=out, init=init, init_tokenizer="keep", learns=learns, **own)

    def tokenizer_config(self, out: str) -> TrainConfig:
        """The training of the tokenizer."""
        return dataclasses.replace(self.train, out=out, learns=(TOKENIZER,))


def from_dict(values: Mapping[str, Any], presets: Mapping[str, Curriculum]) -> Curriculum:
    """A curriculum of a file.

    Args:
        values: the fields of `Curriculum` by name, ``stages`` as a list. With ``base``, the name of a preset, only what
            differs from it: ``stages`` is then a mapping of a stage's name -> what differs there; ``keep`` lists the
            stages that are wanted, in their order.

    Raises:
        ValueError: unknown names or values that are not legal; the message says where.
    """
    values = dict(values)
    if "base" not in values:
        return build(Curriculum, values, "curriculum")
    base = presets.get(name := str(values.pop("base")))
    if base is None:
        raise ValueError(f"base {name!r}; {did_you_mean(name, presets)}")
    known = {stage.name: stage for stage in base.stages}
    changed = values.pop("stages", {})
    if not isinstance(changed, Mapping):
        raise ValueError("with a base, stages is a mapping: name of a stage -> what differs there")
    keep = values.pop("keep", list(known))
    for each in [*changed, *keep]:
        if each not in known:
            raise ValueError(f"{name} has no stage {each!r}; {did_you_mean(str(each), known)}")
    stages = tuple(build(CurriculumStage, changed.get(each, {}), f"stages.{each}", known[each]) for each in keep)
    if unsure := [each for each, count in Counter(keep).items() if count > 1]:
        raise ValueError(f"keep names {', '.join(unsure)} twice")
    kept = set(keep)
    stages = tuple(s if s.after in kept else dataclasses.replace(s, after="") for s in stages)
    return build(Curriculum, values, "curriculum", dataclasses.replace(base, stages=stages))


def require_data(stages: Sequence[CurriculumStage]) -> None:
    """Raises ValueError unless every stage names its data."""
    missing = [stage.name for stage in stages if not stage.data.path]
    if missing:
        raise ValueError(
            f"no data for {', '.join(missing)}: name recordings in a file, such as "
            f"{{base: ..., stages: {{{missing[0]}: {{data: {{path: runs/films}}}}}}}}, or leave stages out with `keep`"
        )


def require_trainable(curriculum: Curriculum) -> None:
    """Raises ValueError for what can be declared and planned, but not yet trained."""
    if not curriculum.train.init:
        get_preset(curriculum.train.preset)
    if curriculum.frames_per_latent != 1:
        raise ValueError(
            f"{curriculum.frames_per_latent} pictures share a latent frame: such models, as the published weights are, "
            "can be planned but not yet trained; set frames_per_latent to 1 and a preset such as small"
        )
    for stage in curriculum.stages:
        if stage.objective != "flow":
            raise ValueError(
                f"stage {stage.name!r} has the objective {stage.objective!r}, which can be planned but not yet "
                "trained; leave it out with `keep`"
            )
