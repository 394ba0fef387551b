"""Films in which episodes have their parts, and whether these parts can be theirs.

The table of episodes says where in a film each one begins. Where it contradicts itself or the film, nobody knows whose
frames are whose, and no frame is read.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kairos_env.datasets.lerobot.episodes import FilmWindow, StoredEpisode
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.datasets.video.reader import BrokenVideo, FilmFacts, VideoFrames
from kairos_env.records import Array

Part = tuple[FilmWindow, StoredEpisode]

_REMEDY = "; the episode table (meta/episodes) is wrong: write it anew from the lengths of the films"


class EpisodeFilms:
    """The films of a dataset.

    Args:
        root: the dataset's folder.
        fps: frames per second.
        episodes: all that the metadata list.
        tolerance: how far from its time a frame may lie, in frames.
    """

    def __init__(self, root: Path, fps: float, episodes: Sequence[StoredEpisode], tolerance: float) -> None:
        self._root, self._fps, self._tolerance = root, fps, tolerance
        self._frames = VideoFrames()
        self._parts: dict[tuple[str, Path], list[Part]] = defaultdict(list)
        self._faults: dict[tuple[str, Path], dict[int, str]] = {}
        for episode in episodes:
            for key, window in episode.videos.items():
                self._parts[key, window.file].append((window, episode))

    def facts(self, stored: StoredEpisode, key: str) -> FilmFacts | None:
        """What the header of an episode's film says; None if it cannot be read, which reading it will explain."""
        try:
            return self._frames.facts(stored.videos[key].file)
        except (KeyError, BrokenVideo):
            return None

    def read(self, stored: StoredEpisode, key: str, times: Array, picture: Callable[[Array], Array]) -> Array:
        """Frames of an episode.

        Args:
            stored: the episode.
            key: the camera's feature.
            times: seconds since the episode began, rising.
            picture: what to make of each frame, as it comes.

        Raises:
            BrokenEpisode: its part of the film cannot be its own.
            BrokenVideo: the film is damaged, or has no frame at one of the times.
        """
        window = stored.videos[key]
        fault = self._faults_of(key, window.file).get(stored.index)
        if fault:
            raise BrokenEpisode(f"{key!r}: {fault}")
        return self._frames.read(
            window.file, window.begin + times.astype(np.float64), self._tolerance / self._fps, picture
        )

    def _faults_of(self, key: str, file: Path) -> dict[int, str]:
        if (key, file) not in self._faults:
            frames, name = self._frames.facts(file).frames, file.relative_to(self._root)
            clock = functools.cache(lambda: self._frames.clock(file))
            self._faults[key, file] = film_faults(self._parts[key, file], frames, self._fps, name, clock)
        return self._faults[key, file]


def film_faults(
    parts: Sequence[Part], frames: int, fps: float, name: Path, clock: Callable[[], Array]
) -> dict[int, str]:
    """Episodes whose part of a film cannot be theirs, or that share frames with others: index -> what is wrong.

    A part that is longer than its episode is taken, as LeRobot does, as long as nobody else has a claim on it.

    Args:
        parts: all of the film, with their episodes.
        frames: of the film; 0 if it does not say.
        fps: frames per second.
        name: of the film, for messages.
        clock: the times of all its frames, rising; looked up only where a part is suspected.
    """
    wrong: dict[int, str] = {}
    for window, episode in parts:
        count = window.frames(fps)
        if window.begin < 0 or (count is not None and count < episode.length - 0.5):
            end = "its end" if window.end is None else f"{window.end:g} s"
            wrong[episode.index] = (
                f"its part of {name}, from {window.begin:g} s to {end}, is shorter than its {episode.length} frames"
            )
    ordered = sorted(parts, key=lambda part: part[0].begin)
    furthest = ordered[0]
    for part in ordered[1:]:
        wrong |= _overlap(furthest, part, fps, name)
        furthest = max(furthest, part, key=lambda part: _reach(part, fps))
    if frames == sum(episode.length for _, episode in parts):
        shifted = _shifted(ordered, fps, name, clock)
        wrong |= {index: why for index, why in shifted.items() if index not in wrong}
    return {index: why + _REMEDY for index, why in wrong.items()}


def longer_parts(episodes: Sequence[StoredEpisode], fps: float) -> Iterator[tuple[StoredEpisode, str]]:
    """Episodes with a part of a film that is longer than they are, and what is odd about it."""
    for episode in episodes:
        for key, window in episode.videos.items():
            count = window.frames(fps)
            if count is not None and count > episode.length + 0.5:
                yield (
                    episode,
                    f"{key!r}: its part of {window.file.name}, from {window.begin:g} s to {window.end:g} s, is "
                    f"{count:.1f} frames long, but it has {episode.length}",
                )


def _overlap(before: Part, after: Part, fps: float, name: Path) -> dict[int, str]:
    """Who is wrong where two parts overlap: the episode whose part has not its length, else both."""
    end, begin = _reach(before, fps), after[0].begin
    if (end - begin) * fps < 0.5:
        return {}
    odd = [part for part in (before, after) if not _fits(part, fps)]
    text = (
        f"the parts of episodes {before[1].index} and {after[1].index} in {name} overlap by "
        f"{(end - begin) * fps:.1f} frames: one ends at {end:g} s, the other begins at {begin:g} s"
    )
    for window, episode in odd:
        text += (
            f"; that of episode {episode.index} is {window.frames(fps):.1f} frames long, but it has {episode.length}"
        )
    return {episode.index: text for _, episode in odd or (before, after)}


def _shifted(ordered: Sequence[Part], fps: float, name: Path, clock: Callable[[], Array]) -> dict[int, str]:
    """Episodes that do not begin where they must, in a film that holds nothing but them."""
    wrong, before = {}, 0
    for window, episode in ordered:
        if abs(window.begin * fps - before) > 0.5:
            # films that were put together may have gaps between the episodes, so that frame 600 is not at 20 s
            times = clock()
            begin = times[before] if before < len(times) else before / fps
            if abs(window.begin - begin) * fps > 0.5:
                wrong[episode.index] = (
                    f"its part of {name} begins at {window.begin:g} s, but {before} frames come before it, which end "
                    f"at {begin:g} s"
                )
        before += episode.length
    return wrong


def _reach(part: Part, fps: float) -> float:
    """The second at which a part ends, by its table or by its episode's length."""
    window, episode = part
    own = window.begin + episode.length / fps
    return own if window.end is None else max(own, window.end)


def _fits(part: Part, fps: float) -> bool:
    count = part[0].frames(fps)
    return count is None or abs(count - part[1].length) <= 0.5
