"""The data of a training run: recordings of one or several robots, as the episodes of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from math import floor
from pathlib import Path

from kairos_env.datasets.conform import changes, conform, sampled
from kairos_env.datasets.conformed import ConformedRecording
from kairos_env.datasets.latents.cache import LatentCache
from kairos_env.datasets.layouts import encoded_recording, fingerprint, open_recording, read_as
from kairos_env.datasets.recording import Recording
from kairos_env.datasets.video.captioned import CaptionedFilms
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
        size: height and width to which all pictures are resized, such as 48,64; empty leaves them.
        rate: decisions a second, made of whole steps of each recording; None is the rate of the first.
        captions: share of the episodes that are read with their detailed caption, where they have one, in place of the
            instruction.
        foreign: also mix in robots that share no field with the first one: their pictures and words teach alone.
        labels: use what only a simulator knows (the expert's action and the outcome of every task in every state,
            object positions) where it was recorded; without it, only what any robot's recording has.
    """

    path: str = "runs/record"
    more: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    maps: tuple[str, ...] = ()
    limit: int | None = None
    size: tuple[int, ...] = ()
    rate: float | None = None
    captions: float = 0.0
    foreign: bool = False
    labels: bool = True

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit is a number of episodes, at least 1, got {self.limit}")
        if not 0 <= self.captions <= 1:
            raise ValueError(f"data.captions is a share of the episodes, 0 ... 1, got {self.captions}")

    @property
    def paths(self) -> tuple[str, ...]:
        """All recordings."""
        return (self.path, *self.more)


@dataclass(frozen=True)
class Mixture:
    """Episodes of all recordings as those of one robot, and how often each is drawn (None: all alike).

    ``places`` tells of each its recording and its number there, ``names`` what to call it, see `episode_key`.
    ``digests``: path of each recording -> what changes with its files, see `layouts.fingerprint`.
    """

    episodes: list[Episode]
    spec: RobotSpec
    odds: list[float] | None
    places: list[tuple[Recording, int]]
    names: list[str]
    digests: dict[str, str] = field(default_factory=dict)

    def pictures(self, number: int) -> Episode:
        """An episode with its pictures; where only their latents are, they are read from what was encoded."""
        episode, (recording, index) = self.episodes[number], self.places[number]
        if not isinstance(recording, LatentCache):
            return episode
        encoded = _encoded(recording)
        return replace(episode, images=conform(encoded[recording.numbers[index]], encoded.spec, self.spec).images)


_encoded = cache(encoded_recording)  # opened once


def load_mixture(
    config: DataConfig, say: Callable[[str], None] = lambda text: None, clip: int = 0, robot: RobotSpec | None = None
) -> Mixture:
    """Reads all usable episodes into memory; broken ones are named in warnings.

    Args:
        say: is told how much each recording is and what becomes of its pictures and rate, before it is read.
        clip: observations that some episode must have, to be learned from.
        robot: as whose all are read; None: the first recording's, in the size and at the rate that are asked for.

    Raises:
        FileNotFoundError: nothing there.
        SpecMismatch: recordings of robots that cannot be mixed.
        ValueError: numbers of weights or maps that do not fit the recordings, pictures that do not fit into memory, or
            no episode as long as a clip.
    """
    from tqdm import tqdm

    plain, spec = open_mixture(config, robot)
    paths = config.paths
    recordings = [read_as(r, spec, foreign=config.foreign) for r in plain]  # says what is wrong before it is read
    numbers = [len(r) if config.limit is None else min(config.limit, len(r)) for r in recordings]
    for path, source, wanted in zip(paths, plain, numbers, strict=True):
        becomes = ["films"] if isinstance(source, CaptionedFilms) else changes(source.spec, spec)
        say(f"{path}: {', '.join([f'{wanted} episodes', *becomes])}")
    require_long_enough(recordings, numbers, clip)
    require_memory(sum(map(picture_bytes, recordings, numbers)))
    episodes: list[Episode] = []
    places: list[tuple[Recording, int]] = []
    names: list[str] = []
    odds: list[float] = []
    for number, (path, recording, wanted) in enumerate(zip(paths, recordings, numbers, strict=True)):
        before = len(episodes)
        for index, episode in tqdm(islice(recording.sound(), wanted), total=wanted, desc=path, unit="episode"):
            detailed = floor((index + 1) * config.captions) > floor(index * config.captions)
            episode = replace(episode, instruction=episode.caption) if detailed and episode.caption else episode
            episodes.append(episode if config.labels else replace(episode, labels={}, label_tasks=()))
            places.append(_place(recording, index))
            names.append(episode_key(path, recording, index))
        found = len(episodes) - before
        if not found:
            raise ValueError(f"{path} has no usable episode; the warnings above say what is wrong with them")
        if config.weights:
            odds += [config.weights[number] / found] * found
    digests = {path: fingerprint(path, recording) for path, recording in zip(paths, plain, strict=True)}
    return Mixture(episodes, spec, odds or None, places, names, digests)


def open_mixture(config: DataConfig, robot: RobotSpec | None = None) -> tuple[list[Recording], RobotSpec]:
    """Opens all recordings as they are, and says as whose they will be read; see `load_mixture`."""
    paths = config.paths
    for name, given in (("weights", config.weights), ("maps", config.maps)):
        if given and len(given) != len(paths):
            raise ValueError(f"data.{name} has {len(given)} entries for {len(paths)} recordings: {', '.join(paths)}")
    if config.weights and (min(config.weights) < 0 or not sum(config.weights) > 0):
        raise ValueError(f"data.weights must be >= 0 with a positive sum, got {list(config.weights)}")
    maps = config.maps or [""] * len(paths)
    plain = [open_recording(path, feature_map or None) for path, feature_map in zip(paths, maps, strict=True)]
    spec = sampled(robot or plain[0].spec, config.size, config.rate)
    if not spec.action:
        raise ValueError(
            f"{paths[0]} holds films, which nobody's actions lead on: name a robot's recording first and films in "
            "data.more, or train a curriculum"
        )
    return plain, spec


def _place(recording: Recording, index: int) -> tuple[Recording, int]:
    if isinstance(recording, ConformedRecording):
        return recording.source, recording.numbers[index]
    return recording, index


def picture_bytes(recording: Recording, episodes: int) -> int:
    """Memory that the pictures of the first so many episodes take."""
    if isinstance(_place(recording, 0)[0], LatentCache):
        return 0
    frame = sum(3 * camera.height * camera.width for camera in recording.spec.cameras)
    return frame * sum(length + 1 for length in recording.lengths[:episodes])


def require_long_enough(recordings: Sequence[Recording], episodes: Sequence[int], clip: int) -> None:
    """Raises ValueError if none of the first so many episodes of each recording has ``clip`` observations."""
    longest = max((n + 1 for r, count in zip(recordings, episodes, strict=True) for n in r.lengths[:count]), default=0)
    if 0 < longest < clip:
        raise ValueError(
            f"training clips have {clip} frames, but the longest episode has {longest} observations: shorten the clips "
            "with --loss.frames, make more decisions a second with --data.rate (`kairos data inspect` proposes both), "
            "or record longer episodes"
        )


def require_memory(needed: int) -> None:
    """Raises ValueError if so many bytes of pictures are more than this machine has left."""
    free = free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"the pictures take {needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB of memory are free: resize them "
            "with --data.size, make fewer decisions a second with --data.rate (`kairos data inspect` proposes both), "
            "or read fewer with --data.limit"
        )


def free_memory() -> int | None:
    """Bytes that programs may still take; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def episode_key(path: str, recording: Recording, index: int) -> str:
    """``<whole path>#<number>``: the same from every folder, and for an episode's latents as for its pictures."""
    source, number = _place(recording, index)
    if isinstance(source, LatentCache):
        path, index = source.origin.recording, source.numbers[number]
    return f"{Path(path).resolve() if Path(path).exists() else path}#{index}"


def instructions(episodes: Sequence[Episode]) -> dict[str, str]:
    """Task name -> instruction, of the tasks that the episodes were recorded for.

    A task in several wordings is listed with the first; each episode is learned with its own. What films show is no
    task.
    """
    found: dict[str, str] = {}
    for episode in (e for e in episodes if e.acts):
        found.setdefault(episode.task, episode.instruction)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Split:
    """Numbers of the episodes for training, for validation, and for the starts that ship with the model."""

    training: list[int]
    validation: list[int]
    starts: list[int]


def split(episodes: int, validation: int | None = None, starts: int | None = None) -> Split:
    """Holds episodes out, spread evenly, so that every part of a mixture has its share of them.

    Args:
        validation: None is a fifth, from 1 to 16.
        starts: None is one in twenty, at most 48.

    Raises:
        ValueError: none would be left for training.
    """
    validation = min(16, max(1, episodes // 5)) if validation is None else validation
    starts = min(48, episodes // 20) if starts is None else starts
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
