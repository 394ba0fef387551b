"""What a folder of published weights says about the robot that they were fine-tuned on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kairos_env.records import Observation
from kairos_env.world_model.checkpoint import CONFIG, STARTS, read_config, read_starts, write_starts
from kairos_env.world_model.normalisation import Normaliser
from kairos_env.world_model.published.robot_settings import SETTINGS, RobotSettings
from kairos_env.world_model.weights import CheckpointError, Source, stored_tensors, write_tensors

ADDITIONS = "additions.safetensors"


@dataclass(frozen=True)
class RobotPart:
    """The robot, and what was learnt of it.

    Args:
        settings: how they see and drive it.
        normaliser: by the statistics of the fine-tuning; None if nobody gave them.
        tasks: task name -> instruction.
        starts: real observations from which imagination can start.
        additions: weights of the parts that streaming adds, by the names of `WorldModel`; () as published.
    """

    settings: RobotSettings
    normaliser: Normaliser | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    starts: Sequence[Observation] = ()
    additions: Source = field(default_factory=dict)

    @classmethod
    def of_release(cls, name: str) -> RobotPart | None:
        """Of a published release or its miniature; None for weights that know no robot."""
        release = name.removesuffix("-miniature")
        return next((cls(settings) for settings in SETTINGS.values() if settings.release == release), None)

    @classmethod
    def read(cls, folder: str | os.PathLike[str], statistics: str | os.PathLike[str] | None = None) -> RobotPart | None:
        """The robot of a model folder; None if its weights know none.

        Args:
            statistics: file in the published layout, instead of the folder's own.

        Raises:
            CheckpointError: it cannot be read.
        """
        folder = Path(folder)
        data = read_config(folder)
        part = cls.of_release(str(data["model"]["name"]))
        try:
            if data.get("settings"):
                part = cls(RobotSettings.from_dict(data["settings"]))
            if part is None:
                return None
            normaliser = data.get("normalisation") and Normaliser.from_dict(data["normalisation"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / CONFIG}: cannot read the robot: {error!r}") from None
        if statistics is not None:
            normaliser = Normaliser.from_file(str(statistics), part.settings.normalisation)
        added = folder / ADDITIONS
        return dataclasses.replace(
            part,
            normaliser=normaliser,
            tasks=data.get("tasks") or {},
            starts=read_starts(folder / STARTS, part.settings.spec),
            additions=stored_tensors(added) if added.exists() else {},
        )

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the files of this part; returns what goes into ``config.json``."""
        write_starts(folder / STARTS, self.starts, self.settings.spec)
        if self.additions:
            write_tensors(folder / ADDITIONS, self.additions, {"format": "pt"})
        return {
            "robot": self.settings.spec.to_dict(),
            "imagined_robot": self.settings.imagined_spec.to_dict(),
            "settings": self.settings.to_dict(),
            "normalisation": self.normaliser and self.normaliser.to_dict(),
            "tasks": dict(self.tasks),
        }
