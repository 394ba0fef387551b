"""Columns of parquet files in which many episodes share a file, read by episode."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Array

_ROWS_KEPT = 2_000_000  # rows of numbers that stay in memory
_FOOTERS_KEPT = 10_000  # files


class EpisodeRows:
    """Reads the rows of an episode, which are those with its number in the column ``episode_index``.

    Row groups of numbers read last stay in memory, so that random windows of a file that fits cost nothing.
    Threads may share one reader.

    Args:
        shapes: column of numbers -> shape of one row's value; () for plain numbers.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = {"episode_index": (), **shapes}
        self._footers: OrderedDict[Path, tuple[Any, list[tuple[int, int] | None]]] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, int], dict[str, Array]] = OrderedDict()
        self._kept = 0
        self._lock = threading.Lock()

    def numbers(self, path: Path, index: int) -> dict[str, Array]:
        """Column -> (rows, *shape), in the type in which it is stored.

        Raises:
            BrokenEpisode: the file is damaged, or lacks a column or the episode.
        """
        try:
            parts = [(self._group(path, group), rows) for group, rows in self._places(path, index)]
        except (OSError, pa.ArrowException) as error:
            raise BrokenEpisode(f"{path} is damaged: {error}") from None
        if not parts:
            raise BrokenEpisode(f"{path} holds no row of it")
        if len(parts) == 1:
            group, rows = parts[0]
            return {key: values[rows] for key, values in group.items()}
        return {key: np.concatenate([group[key][rows] for group, rows in parts]) for key in self._shapes}

    def bytes(self, path: Path, index: int, column: str, first: int, count: int) -> list[bytes | None]:
        """Encoded images of ``count`` rows from number ``first`` of the episode on; None where there is none.

        Row groups without any of them are not read. A column of images is ``struct<bytes, path>`` or binary.

        Raises:
            BrokenEpisode: the file is damaged, or lacks the column.
        """
        found: list[bytes | None] = []
        passed = 0
        try:
            for group, rows in self._places(path, index):
                length = rows.stop - rows.start
                begin, end = max(first - passed, 0), min(first + count - passed, length)
                passed += length
                if begin >= end:
                    continue
                with pq.ParquetFile(path, metadata=self._footer(path)[0]) as file:
                    if column not in file.schema_arrow.names:
                        raise BrokenEpisode(f"{path} has no column {column!r}")
                    entries = file.read_row_group(group, columns=[column]).column(column)
                for entry in entries.slice(rows.start + begin, end - begin).to_pylist():
                    found.append(entry.get("bytes") if isinstance(entry, dict) else entry)
        except (OSError, pa.ArrowException) as error:
            raise BrokenEpisode(f"{path} is damaged: {error}") from None
        return found

    def _places(self, path: Path, index: int) -> Iterator[tuple[int, slice]]:
        """Row groups with rows of the episode, and which rows."""
        for group, bounds in enumerate(self._footer(path)[1]):
            if bounds is not None and not bounds[0] <= index <= bounds[1]:
                continue
            own = np.flatnonzero(self._group(path, group)["episode_index"] == index)
            if len(own) == 0:
                continue
            if own[-1] - own[0] + 1 != len(own):
                raise BrokenEpisode(f"its rows in {path} are mixed with those of other episodes")
            yield group, slice(int(own[0]), int(own[-1]) + 1)

    def _footer(self, path: Path) -> tuple[Any, list[tuple[int, int] | None]]:
        """The file's footer, and the first and last episode of each row group where it says so."""
        with self._lock:
            if path in self._footers:
                return self._footers[path]
        footer = pq.read_metadata(path)
        names = [footer.schema.column(i).path for i in range(footer.num_columns)]
        if "episode_index" not in names:
            raise BrokenEpisode(f"{path} has no column 'episode_index'")
        column = names.index("episode_index")
        statistics = [footer.row_group(g).column(column).statistics for g in range(footer.num_row_groups)]
        bounds = [(int(s.min), int(s.max)) if s is not None and s.has_min_max else None for s in statistics]
        with self._lock:
            self._footers[path] = footer, bounds
            if len(self._footers) > _FOOTERS_KEPT:
                self._footers.popitem(last=False)
        return footer, bounds

    def _group(self, path: Path, group: int) -> dict[str, Array]:
        with self._lock:
            if (path, group) in self._groups:
                self._groups.move_to_end((path, group))
                return self._groups[path, group]
        with pq.ParquetFile(path, metadata=self._footer(path)[0]) as file:
            missing = [key for key in self._shapes if key not in file.schema_arrow.names]
            if missing:
                have = ", ".join(file.schema_arrow.names)
                raise BrokenEpisode(f"{path} has no column {', '.join(map(repr, missing))}; it has {have}")
            table = file.read_row_group(group, columns=list(self._shapes))
        read = {key: _array(table.column(key), key, shape) for key, shape in self._shapes.items()}
        with self._lock:
            if (path, group) not in self._groups:
                self._groups[path, group] = read
                self._kept += table.num_rows
            while self._kept > _ROWS_KEPT and len(self._groups) > 1:
                self._kept -= len(self._groups.popitem(last=False)[1]["episode_index"])
        return read


def _array(column: Any, key: str, shape: tuple[int, ...]) -> Array:
    """A column of numbers or (nested) lists of numbers as (rows, *shape)."""
    if column.null_count:
        raise BrokenEpisode(f"{key!r} has {column.null_count} missing values")
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    chunks = []
    for chunk in column.chunks:
        values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        while any(is_list(values.type) for is_list in lists):
            values = values.flatten()
        chunks.append(values.to_numpy(zero_copy_only=False))
    flat = np.concatenate(chunks) if chunks else np.zeros(0)
    if flat.dtype.kind not in "fiub":
        raise BrokenEpisode(f"{key!r} holds {column.type}, not numbers")
    if flat.size != len(column) * int(np.prod(shape)):
        each = flat.size / max(len(column), 1)
        raise BrokenEpisode(f"{key!r} holds {each:g} values a row, info.json says {int(np.prod(shape))}")
    return flat.reshape(len(column), *shape)
