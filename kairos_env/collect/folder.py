"""A growing folder of recorded episodes: one part file for each new one, packed into the files of the result.

Both kinds of file appear complete or not at all, so a kill at any time costs no finished episode. A layout says which
file of the result an episode belongs to, and writes it.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kairos_env.collect.plans import EpisodePlan
from kairos_env.datasets.hdf5.files import NewFile
from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.libero_write import LiberoWriter
from kairos_env.datasets.hdf5.recorded import EpisodeFile, EpisodeWriter
from kairos_env.datasets.hdf5.visitor import trust
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Episode, RobotSpec
from kairos_env.runs import append_jsonl, read_jsonl, remove_leftovers

STATES = "simulator_state"  # label (T, S) of an episode: the simulator's state before each action


class Layout(Protocol):
    """A way of storing episodes in files."""

    def file_of(self, plan: EpisodePlan) -> str:
        """The file of the result that an episode belongs to, relative to the folder."""

    def open(self, path: Path, task: str, numbers: Sequence[int]) -> NewFile:
        """A new file for these episodes; ``task`` is that of the first."""

    def add(self, file: Any, number: int, episode: Episode) -> None:
        """Appends an episode to a file of `open`."""

    def name(self, number: int) -> str:
        """Name of an episode in a new file; empty: the next free one."""

    def held(self, path: Path) -> Mapping[int, str]:
        """Number -> name of the episodes in a file.

        Raises:
            BrokenEpisode: it cannot be read.
        """


@dataclass(frozen=True)
class ShardLayout:
    """Kairos's own HDF5: ``demo_<number>`` in shard ``number // per_file``, with every label."""

    spec: RobotSpec
    per_file: int = 50
    metadata: Mapping[str, Any] | None = None
    env_name: str = ""
    env_kwargs: Mapping[str, Any] | None = None

    def file_of(self, plan: EpisodePlan) -> str:
        return f"shard_{plan.number // self.per_file:04d}.hdf5"

    def open(self, path: Path, task: str, numbers: Sequence[int]) -> EpisodeWriter:
        return EpisodeWriter(path, self.spec, self.metadata, self.env_name, self.env_kwargs)

    def add(self, file: EpisodeWriter, number: int, episode: Episode) -> None:
        file.add(episode, self.name(number))

    def name(self, number: int) -> str:
        return f"demo_{number}"

    def held(self, path: Path) -> Mapping[int, str]:
        return {int(name.rpartition("_")[2]): name.rpartition(":")[2] for name in EpisodeFile(path).names}


@dataclass(frozen=True)
class LiberoLayout:
    """LIBERO's own HDF5, a file for each task, with the labels of that task.

    Args:
        env: a simulator of LIBERO's robot; its tasks are named ``benchmark/suite/name``.
        metadata: of every file.
    """

    env: Any
    metadata: Mapping[str, Any]

    def file_of(self, plan: EpisodePlan) -> str:
        _, suite, name = self._split(plan.task)
        return f"{suite}/{name}_demo.hdf5"

    def open(self, path: Path, task: str, numbers: Sequence[int]) -> LiberoWriter:
        benchmark, suite, name = self._split(task)
        catalogue = getattr(self.env, "catalogue", None)
        definition = None if catalogue is None else catalogue.bddl_path(catalogue.task(benchmark, suite, name))
        metadata = {**self.metadata, "benchmark": benchmark, "suite": suite, "episodes": list(numbers)}
        return LiberoWriter(path, self.env.robot_spec, name, self.env.tasks()[task], definition, metadata)

    def add(self, file: LiberoWriter, number: int, episode: Episode) -> None:
        labels = dict(episode.labels)
        states = labels.pop(STATES)
        name = self._split(episode.task)[2]
        file.add(replace(episode, task=name, label_tasks=(name,), labels=labels), states)

    def name(self, number: int) -> str:
        return ""

    def held(self, path: Path) -> Mapping[int, str]:
        with warnings.catch_warnings(action="ignore"):
            found = LiberoFile(path)
        names = [name.rpartition(":")[2] for name in found.names]
        numbers = found.extras(0)["metadata"]["episodes"] if names else []
        if len(names) != len(numbers):
            raise BrokenEpisode(f"{path} holds {len(names)} of {len(numbers)} demonstrations")
        return dict(zip(numbers, names, strict=True))

    @staticmethod
    def _split(task: str) -> list[str]:
        parts = task.split("/")
        if len(parts) != 3:
            raise ValueError(f"LIBERO's layout is for tasks named benchmark/suite/name, got {task!r}")
        return parts


class RecordingFolder:
    """Knows which episodes of a folder are safe on disk and packs them into the files of the result.

    Only one process may own a folder at a time.

    Args:
        folder: holds ``parts/``, ``episodes.jsonl`` (what became of each episode) and the result.
        plans: of all episodes.
        layout: of the result.
    """

    def __init__(self, folder: Path, plans: Sequence[EpisodePlan], layout: Layout) -> None:
        self.folder, self.plans, self.layout = folder, {plan.number: plan for plan in plans}, layout
        self._log = folder / "episodes.jsonl"
        rows = {row["episode"]: row for row in read_jsonl(self._log)}
        self.rows = {number: row for number, row in rows.items() if number in self.plans}
        self._files: dict[Path, list[int]] = {}
        for plan in plans:
            self._files.setdefault(folder / layout.file_of(plan), []).append(plan.number)
        self._where: dict[int, tuple[Path, str]] = {}
        # Results last: after a kill between packing and removing the parts both hold the same episode.
        for path in [*sorted((folder / "parts").glob("*.hdf5")), *filter(Path.exists, self._files)]:
            try:
                held = layout.held(path)
            except BrokenEpisode as error:
                warnings.warn(f"its episodes count as missing: {error}", stacklevel=3)
                continue
            self._where |= {number: (path, name) for number, name in held.items() if number in self.plans}
        for path in self._files:
            remove_leftovers(path.parent)
            self._pack_if_complete(path)

    @property
    def missing(self) -> list[int]:
        """Numbers of the episodes that are neither on disk nor given up."""
        return [number for number in self.plans if number not in self._where and number not in self._given_up]

    @property
    def kept(self) -> list[int]:
        """Numbers of the episodes that are on disk."""
        return sorted(self._where)

    @property
    def _given_up(self) -> set[int]:
        return {number for number, row in self.rows.items() if not row["kept"]}

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """Takes note of an episode: a part that `write_part` has written, or one without success that is given up."""
        self.rows[number] = {"episode": number, **row}
        append_jsonl(self._log, self.rows[number])
        if row["kept"]:
            part = _part(self.folder, number)
            trust(part)
            self._where[number] = (part, self.layout.held(part)[number])
        self._pack_if_complete(self.folder / self.layout.file_of(self.plans[number]))

    def finish(self) -> None:
        """Removes what only a growing folder needs; nothing may be missing."""
        shutil.rmtree(self.folder / "parts", ignore_errors=True)

    def _pack_if_complete(self, path: Path) -> None:
        block = self._files[path]
        given_up = self._given_up
        if not all(number in self._where or number in given_up for number in block):
            return
        block = [number for number in block if number in self._where]
        if any(self._where[number][0] != path for number in block):
            # The sources may include an older, smaller file of the same name: it is replaced at the end.
            with self.layout.open(path, self.plans[block[0]].task, block) as file:
                for number in block:
                    file.copy(*self._where[number], self.layout.name(number))
            self._where |= {number: (path, name) for number, name in self.layout.held(path).items()}
        for number in block:
            _part(self.folder, number).unlink(missing_ok=True)


def write_part(folder: Path, layout: Layout, number: int, episode: Episode) -> None:
    """Puts one finished episode safely into ``folder/parts``; any process may call it."""
    with layout.open(_part(folder, number), episode.task, [number]) as file:
        layout.add(file, number, episode)


def _part(folder: Path, number: int) -> Path:
    return folder / "parts" / f"episode_{number:06d}.hdf5"
