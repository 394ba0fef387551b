"""Files as bad days leave them: a bit turned over, the end cut off, a block of zeros, a block from elsewhere."""

from __future__ import annotations

import h5py
import numpy as np

KINDS = ("flip", "cut", "zeros", "moved")


def damaged(data: bytes, seed: int) -> bytes:
    """``data`` with one fault that follows from ``seed``; half of the faults are single bits."""
    rng = np.random.default_rng(seed)
    kind = KINDS[int(rng.integers(len(KINDS)))] if rng.random() < 0.5 else "flip"
    at, found = int(rng.integers(len(data))), bytearray(data)
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        found[at] ^= 1 << int(rng.integers(8))
    else:
        size = int(rng.integers(1, 4097))
        block = bytes(size) if kind == "zeros" else data[(start := int(rng.integers(len(data)))) : start + size]
        found[at : at + len(block)] = block
        del found[len(data) :]
    return bytes(found)


def without_checksums(file: h5py.File) -> h5py.File:
    """A file as earlier versions wrote it, to be changed."""
    data = file["data"]
    data.visititems(lambda name, item: item.attrs.pop("sha256", None) and None)
    data.attrs.pop("sha256", None)
    return file
