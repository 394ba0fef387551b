"""Columns of parquet tables as arrays, with a note on every row that does not hold what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Array

_EXPLAINED = 1000  # bad rows of a column whose fault is kept in words


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers.

    Args:
        values: (rows, *shape) in the type in which they are stored; rows that are bad hold anything.
        bad: (rows,) whether a row is missing, of another shape, or not finite; None if no row is.
        why: what is wrong with the first bad rows, by number.
    """

    values: Array
    bad: Array | None
    why: dict[int, str]

    def fault(self, first: int, stop: int) -> tuple[int, str] | None:
        """The first bad row of ``first ... stop - 1`` and what is wrong with it; None if all are good."""
        if self.bad is None or not self.bad[first:stop].any():
            return None
        row = first + int(np.argmax(self.bad[first:stop]))
        return row, self.why.get(row, "is not what info.json declares")


def number_column(column: pa.ChunkedArray, key: str, shape: tuple[int, ...]) -> NumberColumn:
    """A column of numbers or (nested) lists of numbers.

    Args:
        column: of any number of rows.
        key: its name.
        shape: of one row's value; () and (1,) for plain numbers. Rows may also hold it as one flat list.

    Raises:
        BrokenEpisode: it does not hold numbers at all.
    """
    whole = column.combine_chunks()
    array = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    depth, leaf = _nesting(array.type)
    if not (pa.types.is_integer(leaf) or pa.types.is_floating(leaf) or pa.types.is_boolean(leaf)):
        raise BrokenEpisode(f"{key!r} holds {column.type}, not numbers")
    levels = _levels(depth, shape)
    if levels is None:
        raise BrokenEpisode(f"{key!r} holds {column.type}, which cannot be of the shape {shape} in info.json")
    flat, bad = _flat(array, levels)
    if flat.dtype.kind == "f":
        bad = bad | ~np.isfinite(flat).all(1)
    values = flat.reshape(len(array), *shape)
    if not bad.any():
        return NumberColumn(values, None, {})
    rows = np.flatnonzero(bad)[:_EXPLAINED].tolist()
    return NumberColumn(values, bad, {row: _explained(array[row].as_py(), levels) for row in rows})


def _nesting(kind: pa.DataType) -> tuple[int, pa.DataType]:
    """How deep lists are nested, and the type of what they hold."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth, kind


def _levels(depth: int, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The length of the lists of each level; None if lists of that depth cannot hold ``shape``."""
    if depth <= 1:
        return (prod(shape),) if depth else () if prod(shape) == 1 else None
    if depth == len(shape):
        return shape
    long = [n for n in shape if n > 1]  # an axis of one may be left out or added
    return (1,) * (depth - len(long)) + tuple(long) if len(long) <= depth else None


def _flat(array: Any, levels: Sequence[int]) -> tuple[Array, Array]:
    """Values (rows, all of a row's), and which rows are missing or of another shape."""
    if not levels:
        bad = np.asarray(array.is_null(nan_is_null=False))
        filled = array.fill_null(False if pa.types.is_boolean(array.type) else 0) if bad.any() else array
        return filled.to_numpy(zero_copy_only=False).reshape(-1, 1), bad
    good = np.asarray(pc.fill_null(pc.equal(pc.list_value_length(array), levels[0]), False))
    if array.null_count:
        good = good & ~np.asarray(array.is_null())
    kept = array if good.all() else array.filter(pa.array(good))
    inner, inner_bad = _flat(kept.flatten(), levels[1:])
    inner, inner_bad = inner.reshape(int(good.sum()), prod(levels)), inner_bad.reshape(int(good.sum()), levels[0])
    if good.all():
        return inner, np.asarray(inner_bad.any(1))
    values = np.zeros((len(array), prod(levels)), inner.dtype)
    values[good] = inner
    bad = ~good
    bad[good] = inner_bad.any(1)
    return values, bad


def _explained(value: Any, levels: Sequence[int]) -> str:
    """What is wrong with a bad row."""
    wanted = " x ".join(map(str, levels)) or "1"
    if value is None:
        return "is missing (null)"
    if not isinstance(value, list):
        return f"is {value}"
    found = np.array(value, object)
    if any(isinstance(part, list) for part in found.reshape(-1)):
        return f"has parts of differing lengths, info.json says {wanted}"
    if found.shape != tuple(levels):
        return f"holds {' x '.join(map(str, found.shape))} values, info.json says {wanted}"
    at = next(i for i, entry in enumerate(found.reshape(-1)) if entry is None or not np.isfinite(entry))
    entry = found.reshape(-1)[at]
    return f"holds {'a missing value (null)' if entry is None else entry} at place {at}"
