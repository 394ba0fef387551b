"""Random windows of cached latents as torch tensors, at training speed.

What a step gets is a pure function of the seed and the step's number: a resumed run sees the same windows as one that
was never stopped, and a background thread may read ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kairos_env.datasets.latents.cache import CacheError, LatentCache
from kairos_env.records import Episode

Result = TypeVar("Result")


@dataclass(frozen=True)
class Windows:
    """B windows of F observations; physical units.

    latents (B, F, C, h, w) float32, normalised, cameras side by side along the width, zero where one is missing, and
    cameras (B, cameras), False there; proprio (B, F, P); actions (B, F - 1, A), between the observations, and their
    rewards and success (B, F - 1); instructions, one each.
    """

    latents: Tensor
    cameras: Tensor
    proprio: Tensor
    actions: Tensor
    rewards: Tensor
    success: Tensor
    instructions: tuple[str, ...]


class LatentWindows:
    """Draws windows of several caches of one robot and one tokenizer.

    A window is drawn by its cache's weight, and evenly among all windows of that cache.

    Args:
        caches: what to draw from.
        frames: F; shorter episodes are never drawn.
        batch: B.
        seed: with the step it decides everything.
        weights: how often each cache is drawn, relative to the others; by default by its number of windows.
        held: episodes whose numbers are kept in memory, those used last; latents stay on disk (and in the system's
            cache of files).

    Raises:
        ValueError: no cache, weights that are not legal, no episode of ``frames`` observations where one is wanted, or
            cameras of different sizes.
        SpecMismatch: caches of different robots.
        CacheError: of different tokenizers.
    """

    def __init__(
        self,
        caches: Sequence[LatentCache],
        frames: int,
        batch: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        held: int = 4096,
    ) -> None:
        if not caches or frames < 1 or batch < 1:
            raise ValueError(f"windows need caches, frames and a batch, got {len(caches)}, {frames} and {batch}")
        first = caches[0]
        for other in caches[1:]:
            first.spec.require_same(other.spec, str(first.folder), str(other.folder))
            if first.origin.encoder != other.origin.encoder:
                raise CacheError(f"{first.folder} and {other.folder} hold latents of different tokenizers")
        sizes = {(camera.height, camera.width) for camera in first.spec.cameras}
        if len(sizes) != 1:
            raise ValueError(f"cameras of different sizes ({sorted(sizes)}) do not stand side by side")
        self.caches, self.frames, self.batch, self.seed = tuple(caches), frames, batch, seed
        # windows in all episodes up to each one
        self._ends = [np.cumsum([max(0, n - frames + 1) for n in cache.frames]) for cache in caches]
        counts = np.array([ends[-1] for ends in self._ends], np.float64)
        odds = counts if weights is None else np.array(weights, np.float64)
        if odds.shape != counts.shape or not (np.isfinite(odds).all() and odds.min() >= 0 and odds.sum() > 0):
            raise ValueError(f"{len(caches)} caches need as many weights >= 0, one of them above, got {weights}")
        for cache, count, odd in zip(caches, counts, odds, strict=True):
            if count == 0 and odd > 0:
                raise ValueError(
                    f"windows have {frames} frames, but the longest episode of {cache.folder} has {max(cache.frames)}"
                )
        self._odds = odds / odds.sum()
        self._episode = lru_cache(held)(self._read)

    def __getitem__(self, step: int) -> Windows:
        """The windows of a step, 0 ... (there is no last one).

        Raises:
            BrokenEpisode: one of the episodes is damaged; it is named.
        """
        rng = np.random.default_rng([self.seed, step])
        rows = []
        for cache in rng.choice(len(self.caches), self.batch, p=self._odds):
            ends = self._ends[cache]
            place = int(rng.integers(ends[-1]))
            index = int(np.searchsorted(ends, place, side="right"))
            start = place - int(ends[index - 1]) if index else place
            rows.append((self._episode(int(cache), index), start))
        return self._stacked(rows)

    def stream(self, first: int = 0, ahead: int = 8) -> Iterator[Windows]:
        """The windows of steps ``first``, ``first + 1``, ... for ever, read in the background.

        Args:
            first: the step to begin with; a resumed run gives its own.
            ahead: at most so many steps are held ready.
        """
        return read_ahead(self.__getitem__, first, ahead)

    def _read(self, cache: int, index: int) -> Episode:
        return self.caches[cache][index]

    def _stacked(self, rows: Sequence[tuple[Episode, int]]) -> Windows:
        length, cameras = self.frames, self.caches[0].spec.cameras
        _, channels, height, width = next(iter(rows[0][0].latents.values())).shape
        latents = torch.zeros(len(rows), length, channels, height, width * len(cameras))
        there = torch.zeros(len(rows), len(cameras), dtype=torch.bool)
        for row, (episode, start) in enumerate(rows):
            for place, camera in enumerate(cameras):
                if camera.name in episode.latents:
                    view = torch.from_numpy(episode.latents[camera.name][start : start + length])
                    latents[row, ..., place * width : (place + 1) * width] = view
                    there[row, place] = True

        def stacked(key: str, count: int) -> Tensor:
            return torch.from_numpy(np.stack([getattr(e, key)[start : start + count] for e, start in rows]))

        return Windows(
            latents,
            there,
            proprio=stacked("proprio", length),
            actions=stacked("actions", length - 1),
            rewards=stacked("rewards", length - 1),
            success=stacked("success", length - 1),
            instructions=tuple(episode.instruction for episode, _ in rows),
        )


def read_ahead(make: Callable[[int], Result], first: int, ahead: int) -> Iterator[Result]:
    """``make(first)``, ``make(first + 1)``, ... for ever; up to ``ahead`` of them are made in a background thread.

    Closing the iterator stops the thread. An error in ``make`` is raised where its result is asked for.
    """
    if ahead < 1:
        raise ValueError(f"at least one result must be held ready, got ahead={ahead}")
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        waiting: deque[Future[Result]] = deque(thread.submit(make, first + i) for i in range(ahead))
        following = first + ahead
        try:
            while True:
                result = waiting.popleft().result()
                waiting.append(thread.submit(make, following))
                following += 1
                yield result
        finally:
            for future in waiting:
                future.cancel()
