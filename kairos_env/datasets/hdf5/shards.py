"""A growing folder of recorded episodes: one part file for each new one, packed into larger shards.

Both kinds of file appear complete or not at all, so a kill at any time costs no finished episode. Episodes
are known by their number: ``demo_<number>``, in shard ``number // per_file``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kairos_env.datasets.hdf5.recorded import EpisodeFile, EpisodeWriter
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Episode, RobotSpec
from kairos_env.runs import remove_leftovers


def write_part(folder: Path, number: int, episode: Episode, spec: RobotSpec) -> None:
    """Puts one finished episode safely into ``folder/parts``; any process may call it."""
    with EpisodeWriter(_part(folder, number), spec) as writer:
        writer.add(episode, f"demo_{number}")


def _part(folder: Path, number: int) -> Path:
    return folder / "parts" / f"episode_{number:06d}.hdf5"


class ShardFolder:
    """Knows which episodes of a folder are safe on disk and packs complete blocks of them into shards.

    Only one process may own a folder at a time.

    Args:
        folder: holds ``parts/`` and ``shard_<k>.hdf5``.
        episodes: how many there shall be.
        per_file: episodes in a shard.
        metadata, env_kwargs: stored in every shard, see `EpisodeWriter`.
    """

    def __init__(
        self,
        folder: Path,
        episodes: int,
        per_file: int,
        metadata: Mapping[str, Any] | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.episodes, self.per_file = folder, episodes, per_file
        self._metadata, self._env_kwargs = metadata, env_kwargs
        self._where: dict[int, Path] = {}
        # Shards last: after a kill between packing and removing the parts both hold the same episode.
        for path in [*sorted((folder / "parts").glob("*.hdf5")), *sorted(folder.glob("shard_*.hdf5"))]:
            try:
                names = EpisodeFile(path).names
            except BrokenEpisode as error:
                warnings.warn(f"its episodes count as missing: {error}", stacklevel=3)
                continue
            self._where |= {int(name.rpartition("_")[2]): path for name in names}
        for shard in range(-(-episodes // per_file)):
            self._pack_if_complete(shard)

    @property
    def missing(self) -> list[int]:
        """Numbers of the episodes that are not on disk."""
        return [number for number in range(self.episodes) if number not in self._where]

    def add(self, number: int) -> None:
        """Takes note of a part that `write_part` has written."""
        self._where[number] = _part(self.folder, number)
        self._pack_if_complete(number // self.per_file)

    def finish(self) -> None:
        """Removes what only a growing folder needs; nothing may be missing."""
        for rest in (self.folder / "parts").iterdir():
            rest.unlink()
        remove_leftovers(self.folder)
        (self.folder / "parts").rmdir()

    def _pack_if_complete(self, shard: int) -> None:
        block = range(shard * self.per_file, min((shard + 1) * self.per_file, self.episodes))
        if not all(number in self._where for number in block):
            return
        path = self.folder / f"shard_{shard:04d}.hdf5"
        if any(self._where[number] != path for number in block):
            spec = EpisodeFile(self._where[block[0]]).spec
            # The sources may include an older, smaller shard of the same name: it is replaced at the end.
            with EpisodeWriter(path, spec, self._metadata, env_kwargs=self._env_kwargs) as writer:
                for number in block:
                    writer.copy(self._where[number], f"demo_{number}")
            self._where |= dict.fromkeys(block, path)
        for number in block:
            _part(self.folder, number).unlink(missing_ok=True)
