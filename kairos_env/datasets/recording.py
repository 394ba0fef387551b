"""The interface of every reader of recorded episodes, and the check of an episode that is to be written."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from kairos_env.records import Episode, RobotSpec

_SHOWN = 20  # broken episodes that one warning names


class BrokenEpisode(ValueError):
    """An episode that cannot be used: where it is and what is wrong."""


class Recording(Sequence[Episode], ABC):
    """The usable episodes of one robot, read lazily.

    Opening looks at everything that is cheap to look at. Broken episodes are named in a warning, collected in `broken`
    and left out. One that turns out to be damaged only when it is read is added to `broken` by iteration, which goes
    on; indexing it raises `BrokenEpisode`.

    Attributes:
        spec: the robot of all episodes.
        names: of each episode, in order, as messages call it.
        lengths: decisions of each episode.
        broken: name -> what is wrong.
    """

    spec: RobotSpec

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.broken: dict[str, str] = {}

    @abstractmethod
    def _episode(self, index: int) -> Episode:
        """The whole episode ``index`` (0 ... len - 1); a `BrokenEpisode` begins with its name."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Notes of the recorder on the whole recording (configuration, versions); empty where there are none."""
        return {}

    @property
    def total(self) -> int:
        """Decisions in all usable episodes."""
        return sum(self.lengths)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...
    def __getitem__(self, index: int | slice) -> Episode | list[Episode]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._episode(range(len(self))[index])

    def __iter__(self) -> Iterator[Episode]:
        return (episode for _, episode in self.sound())

    def sound(self) -> Iterator[tuple[int, Episode]]:
        """The episodes that can be read, with their numbers."""
        for index in range(len(self)):
            try:
                yield index, self._episode(index)
            except BrokenEpisode as error:
                self.leave_out({self.names[index]: str(error)})

    def leave_out(self, broken: Mapping[str, str]) -> None:
        """Takes note of broken episodes and warns of them: name -> what is wrong."""
        if not broken:
            return
        new = {name: why.removeprefix(f"{name}: ") for name, why in broken.items()}
        self.broken |= new
        lines = [f"{name}: {why}" for name, why in list(new.items())[:_SHOWN]]
        lines += [f"and {len(new) - _SHOWN} more"] if len(new) > _SHOWN else []
        lines = [f"left out {len(new)} broken episode{'s' if len(new) > 1 else ''}:", *lines]
        warnings.warn("\n  ".join(lines), stacklevel=3)


def episode_problem(episode: Episode, spec: RobotSpec) -> str:
    """The first fault of an episode in memory that is to be written; empty if there is none."""
    steps = len(episode)
    if steps == 0:
        return "it has no decisions"
    for camera in spec.cameras:
        frames = (steps + 1, camera.height, camera.width, 3)
        image = np.asarray(episode.images.get(camera.name, np.zeros(0)))
        if image.shape != frames or image.dtype != np.uint8:
            return f"images[{camera.name!r}] is {image.dtype} {image.shape}, expected uint8 {frames}"
    for key, value, shape in (
        ("proprio", episode.proprio, (steps + 1, spec.proprio_dim)),
        ("actions", episode.actions, (steps, spec.action_dim)),
    ):
        if np.shape(value) != shape:
            return f"{key} has shape {np.shape(value)}, expected {shape}"
    numbers = {"proprio": episode.proprio, "actions": episode.actions, "rewards": episode.rewards}
    for key, value in (numbers | {f"labels[{k!r}]": v for k, v in episode.labels.items()}).items():
        if not np.isfinite(np.asarray(value, np.float64)).all():
            return f"{key} holds a non-finite value"
    return ""
