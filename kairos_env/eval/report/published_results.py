"""What the benchmarks consist of and what others reached on them, read from ``published_results.json``.

The file holds, for each benchmark, its number of tasks by dimension, suite and difficulty (a list: tasks without a
rating, then difficulty 1, 2, ...), the digests of their names, episodes for each task, and results in per cent, each
with its source. Nothing in it is ours.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kairos_env.sims.libero.tasks import EVERY_DIMENSION, PRO_SUITES, SUITES


@dataclass(frozen=True)
class PublishedBenchmark:
    """How many tasks of which kind a benchmark has.

    Args:
        name: ``"libero"``, ``"libero-plus"`` or ``"libero-pro"``.
        counts: (suite, dimension, difficulty) -> tasks; difficulty 0 stands for tasks without a rating.
        keys_sha256: what results are published of, a suite or (``""``) the whole -> `keys_digest` of its tasks.
        trials: episodes of each task, from initial state 0 on.
    """

    name: str
    counts: Mapping[tuple[str, str, int], int]
    keys_sha256: Mapping[str, str]
    trials: int = 1

    @classmethod
    def read(cls, name: str) -> PublishedBenchmark:
        """The benchmark as its makers published it.

        Raises:
            ValueError: no benchmark of this name.
        """
        known = _data()["benchmarks"]
        if name not in known:
            raise ValueError(f"unknown benchmark {name!r}; there are {', '.join(known)}")
        counts = {
            (suite, dimension, difficulty): count
            for dimension, suites in known[name]["counts"].items()
            for suite, ratings in suites.items()
            for difficulty, count in enumerate(ratings)
            if count
        }
        return cls(name, counts, known[name]["keys_sha256"], known[name]["trials"])

    def size(self, suite: str | None = None, dimension: str | None = None, difficulty: int | None = None) -> int:
        """Number of tasks, of those that are named; None is all."""
        wanted = (suite, dimension, difficulty)
        return sum(n for key, n in self.counts.items() if all(w in (None, k) for w, k in zip(wanted, key)))

    def parts(self, suites: Iterable[str]) -> tuple[str, ...]:
        """What results are published of, as far as these suites belong to it: names of suites, or ``""``."""
        begun = set(suites)
        return tuple(part for part in self.keys_sha256 if part in begun or (begun and not part))

    def size_of(self, parts: Iterable[str]) -> int:
        """Number of tasks of some `parts`."""
        return sum(self.size(suite=part or None) for part in parts)

    def has_exactly(self, keys: Iterable[str]) -> bool:
        """Whether these ``suite/name`` are all tasks of their `parts`, and nothing else."""
        wanted = set(keys)
        parts = self.parts(key.split("/", 1)[0] for key in wanted)
        own = {part: [key for key in wanted if part in ("", key.split("/", 1)[0])] for part in parts}
        return all(keys_digest(mine) == self.keys_sha256[part] for part, mine in own.items())

    @cached_property
    def suites(self) -> tuple[str, ...]:
        found = {suite for suite, _, _ in self.counts}
        return tuple(suite for suite in (*SUITES, *PRO_SUITES) if suite in found)

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """The perturbations; ``("",)`` for a benchmark without any."""
        found = {dimension for _, dimension, _ in self.counts}
        return tuple(dimension for dimension in ("", *EVERY_DIMENSION) if dimension in found)

    @cached_property
    def difficulties(self) -> tuple[int, ...]:
        """The ratings, and last 0 for tasks without one."""
        return tuple(sorted({rating for _, _, rating in self.counts}, key=lambda rating: (rating == 0, rating)))


@dataclass(frozen=True)
class PublishedResult:
    """What somebody published, in per cent.

    Args:
        method: name of the policy.
        training: ``"LIBERO"``, ``"LIBERO-plus"``, RoboTwin's protocol ``"A"`` or ``"B"``, or "" where the source does
            not say.
        values: column (dimension, suite, or configuration of RoboTwin) -> success; empty where only the total is known.
        total: as published.
        note: what else must be known to compare.
        source: title and version of the source.
        url: where it is.
    """

    method: str
    training: str
    values: Mapping[str, float]
    total: float
    note: str
    source: str
    url: str


def published_results(benchmark: str) -> list[PublishedResult]:
    """Results of other methods, from the lowest total to the highest."""
    found = []
    for entry in _data()["results"].get(benchmark, []):
        source = _data()["sources"][entry["source"]]
        origin = {"source": f"{source['title']} ({source['version']})", "url": source["url"]}
        found.append(PublishedResult(**{"note": ""} | entry | origin))
    return found


@functools.cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("published_results.json").read_text(encoding="utf-8"))
    return data


def keys_digest(keys: Iterable[str]) -> str:
    """SHA-256 of a set of task keys ``suite/name``, whatever their order."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
