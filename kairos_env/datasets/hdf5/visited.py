"""The program of `visitor`: opens the HDF5 files that it is told of and looks at all that readers look at.

It imports nothing of Kairos, so that it starts fast. Errors of libhdf5 are of no interest here: the reader meets them,
too, and names them. What counts is to survive.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5o, h5s

_SMALL = 2**16  # bytes: arrays that are read whole
_MEMORY = 6 * 2**30  # bytes: a damaged length must not take all of the machine's
_FAULTS = (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError, AttributeError, OverflowError)


class _Walk:
    """A walk through one file that gives a sign of life every second."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file.id
        self._said = time.monotonic()

    def all(self) -> None:
        """Every object that hard links lead to, once."""
        self._look_at(b".")
        h5o.visit(self._file, self._look_at)

    def _look_at(self, name: bytes) -> None:
        self._sign_of_life()
        with contextlib.suppress(*_FAULTS):
            found = h5o.open(self._file, name)
            for number in range(h5a.get_num_attrs(found)):
                self._attribute(h5a.open(found, index=number))
            if isinstance(found, h5d.DatasetID):
                self._array(found)

    def _attribute(self, attribute: Any) -> None:
        if attribute.dtype.hasobject:  # its text lies on the heap
            attribute.read(np.empty(attribute.shape, attribute.dtype))

    def _array(self, array: Any) -> None:
        """All of it where it is small or lies on the heap, else its index of chunks and its first and last row."""
        if array.get_create_plist().get_layout() == h5d.CHUNKED:
            array.chunk_iter(lambda chunk: self._sign_of_life())
        count = int(np.prod(array.shape))
        if array.dtype.hasobject or count * array.dtype.itemsize <= _SMALL:
            array.read(h5s.ALL, h5s.ALL, np.empty(array.shape, array.dtype))
        elif array.shape:
            rows = h5py.Dataset(array)
            rows[0], rows[-1]

    def _sign_of_life(self) -> None:
        if time.monotonic() - self._said > 1:
            self._said = time.monotonic()
            _say("busy")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    """Answers "done" to every path (in hexadecimal) on a line of standard input, until that ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    _say("ready")
    for line in sys.stdin:
        with contextlib.suppress(*_FAULTS), h5py.File(os.fsdecode(bytes.fromhex(line)), "r") as file:
            _Walk(file).all()
        _say("done")


if __name__ == "__main__":
    main()
