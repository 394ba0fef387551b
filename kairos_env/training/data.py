"""The data of a training run: recordings of one or several robots, as the episodes of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

from kairos_env.datasets.conform import conform, steps_per_decision
from kairos_env.datasets.latents.cache import LatentCache
from kairos_env.datasets.layouts import encoded_recording, open_recording
from kairos_env.datasets.recording import Recording
from kairos_env.records import Episode, RobotSpec


@dataclass(frozen=True)
class DataConfig:
    """The recordings to learn from.

    Args:
        path: a recording of `kairos record`, a LeRobot dataset (folder or owner/name on the hub), an HDF5 file or
            folder of LIBERO, RoboTwin or robomimic, or latents of `kairos data encode`. Its robot is the model's.
        more: further recordings; another robot's fields and cameras are matched by name, missing ones are masked.
        weights: how often each recording is drawn, relative to the others; as many as recordings. Empty: by size.
        maps: JSON files that say what the features of LeRobot datasets mean (`kairos data inspect --save`), in the
            order of the recordings; "" guesses.
        limit: use at most so many episodes of each.
        labels: use what only a simulator knows (the expert's action and the outcome of every task in every state,
            object positions) where it was recorded; without it, only what any robot's recording has.
    """

    path: str = "runs/record"
    more: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    maps: tuple[str, ...] = ()
    limit: int | None = None
    labels: bool = True


@dataclass(frozen=True)
class Mixture:
    """Episodes of all recordings as those of one robot, and how often each is drawn (None: all alike).

    ``places`` tells of each its recording and its number there.
    """

    episodes: list[Episode]
    spec: RobotSpec
    odds: list[float] | None
    places: list[tuple[Recording, int]]

    def pictures(self, number: int) -> Episode:
        """An episode with its pictures; where only their latents are, they are read from what was encoded."""
        episode, (recording, index) = self.episodes[number], self.places[number]
        if not isinstance(recording, LatentCache):
            return episode
        encoded = _encoded(recording)
        return replace(episode, images=conform(encoded[recording.numbers[index]], encoded.spec, self.spec).images)


_encoded = cache(encoded_recording)  # opened once


def load_mixture(config: DataConfig) -> Mixture:
    """Reads all usable episodes into memory; broken ones are named in warnings.

    Raises:
        FileNotFoundError: nothing there.
        SpecMismatch: recordings of robots that cannot be mixed.
        ValueError: numbers of weights or maps that do not fit the recordings.
    """
    from tqdm import tqdm

    paths = [config.path, *config.more]
    for name, given in (("weights", config.weights), ("maps", config.maps)):
        if given and len(given) != len(paths):
            raise ValueError(f"data.{name} has {len(given)} entries for {len(paths)} recordings: {', '.join(paths)}")
    if config.weights and (min(config.weights) < 0 or not sum(config.weights) > 0):
        raise ValueError(f"data.weights must be >= 0 with a positive sum, got {list(config.weights)}")
    maps = config.maps or [""] * len(paths)
    recordings = [open_recording(path, feature_map or None) for path, feature_map in zip(paths, maps, strict=True)]
    spec = recordings[0].spec
    episodes: list[Episode] = []
    places: list[tuple[Recording, int]] = []
    odds: list[float] = []
    for number, (path, recording) in enumerate(zip(paths, recordings, strict=True)):
        steps_per_decision(recording.spec, spec)  # says what is wrong before anything is read
        wanted = len(recording) if config.limit is None else min(config.limit, len(recording))
        before = len(episodes)
        for index, episode in tqdm(islice(recording.sound(), wanted), total=wanted, desc=path, unit="episode"):
            seen = episode if config.labels else replace(episode, labels={}, label_tasks=())
            episodes.append(conform(seen, recording.spec, spec))
            places.append((recording, index))
        found = len(episodes) - before
        if not found:
            raise ValueError(f"{path} has no usable episode; the warnings above say what is wrong with them")
        if config.weights:
            odds += [config.weights[number] / found] * found
    return Mixture(episodes, spec, odds or None, places)


def instructions(episodes: Sequence[Episode]) -> dict[str, str]:
    """Task name -> instruction, of the tasks that the episodes were recorded for.

    A task in several wordings is listed with the first; each episode is learned with its own.
    """
    found: dict[str, str] = {}
    for episode in episodes:
        found.setdefault(episode.task, episode.instruction)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Split:
    """Numbers of the episodes for training, for validation, and for the starts that ship with the model."""

    training: list[int]
    validation: list[int]
    starts: list[int]


def split(episodes: int, validation: int, starts: int) -> Split:
    """Holds episodes out, spread evenly, so that every part of a mixture has its share of them.

    Raises:
        ValueError: none would be left for training.
    """
    held_out = validation + starts
    if episodes <= held_out:
        raise ValueError(
            f"{episodes} episodes are too few: {validation} are kept for validation and {starts} as starts; record "
            "more, or lower `validation` and `starts`"
        )
    chosen = [(2 * i + 1) * episodes // (2 * held_out) for i in range(held_out)]
    # every so many of the chosen ones is for validation
    checked = {chosen[(2 * i + 1) * held_out // (2 * validation)] for i in range(validation)}
    rest = [i for i in range(episodes) if i not in set(chosen)]
    return Split(rest, sorted(checked), [i for i in chosen if i not in checked])
