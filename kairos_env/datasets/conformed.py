"""A recording read as that of another robot: smaller pictures, fewer decisions a second, other fields."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from kairos_env.datasets.conform import conform, joined, sampled, steps_per_decision
from kairos_env.datasets.lerobot.reader import LeRobotData
from kairos_env.datasets.recording import Recording
from kairos_env.records import Episode, RobotSpec


class ConformedRecording(Recording):
    """The episodes of a recording as `conform` makes them.

    Of videos only the frames that are kept are converted, each made small as it comes: an episode in the pictures of
    its cameras is never in memory.

    Args:
        source: what is read.
        spec: of the other robot.
        foreign: they may share no field; see `conform`.

    Attributes:
        numbers: of each episode in ``source``.

    Raises:
        SpecMismatch: rates without a whole ratio.
    """

    def __init__(self, source: Recording, spec: RobotSpec, foreign: bool = False) -> None:
        super().__init__()
        self.source, self.spec, self._foreign = source, spec, foreign
        self.broken = source.broken
        self._steps = steps_per_decision(source.spec, spec)
        self._reader = _resized(source, spec) if isinstance(source, LeRobotData) else source
        self.numbers: list[int] = []
        short = {}
        for number, length in enumerate(source.lengths):
            if length < self._steps:
                short[source.names[number]] = f"{length} steps are less than one decision of {self._steps}"
                continue
            self.numbers.append(number)
            self.names.append(source.names[number])
            self.lengths.append(length // self._steps)
        self.leave_out(short)

    def _episode(self, index: int) -> Episode:
        number, reader = self.numbers[index], self._reader
        if not isinstance(reader, LeRobotData) or self._steps == 1:
            return conform(reader[number], reader.spec, self.spec, self._foreign)
        numbers = joined(reader.window(number, 0, reader.lengths[number] + 1, ()), reader.spec.action, self._steps)
        images = {camera.name: reader.frames(number, camera.name, self._steps) for camera in reader.spec.cameras}
        episode = dataclasses.replace(numbers, images={k: v[: len(numbers) + 1] for k, v in images.items()})
        sampled_spec = sampled(reader.spec, rate=self.spec.control_rate_hz)
        return conform(episode, sampled_spec, self.spec, self._foreign)


def _resized(data: LeRobotData, spec: RobotSpec) -> LeRobotData:
    """The same data, the pictures of a robot's cameras made as small as they are there while they are decoded."""
    sizes: dict[str, dict[str, Any]] = {c.name: {"height": c.height, "width": c.width} for c in spec.cameras}
    other = copy.copy(data)
    cameras = tuple(dataclasses.replace(camera, **sizes.get(camera.name, {})) for camera in data.mapping.cameras)
    other.mapping = dataclasses.replace(data.mapping, cameras=cameras)
    other.spec = other.mapping.spec(data.meta)
    return other
