"""Checksums in an HDF5 file: an attribute ``sha256`` of each array, and of each group for its members and attributes.

Files whose group ``data`` has one are complete with them; files of others and of earlier versions have none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import h5py
import numpy as np

from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Array

SHA256 = "sha256"


def seal(group: h5py.Group, anew: bool = False) -> None:
    """Gives all that is in a group, and the group itself, their checksums; what has one keeps it, if not `anew`."""
    for item in group.values():
        if isinstance(item, h5py.Group):
            seal(item, anew)
        elif anew or SHA256 not in item.attrs:
            item.attrs[SHA256] = _array_sha256(item, item[()])
    if anew or SHA256 not in group.attrs:
        group.attrs[SHA256] = _group_sha256(group)


def sealed(file: h5py.File) -> bool:
    """Whether everything in a file has a checksum."""
    return isinstance(file.get("data"), h5py.Group) and SHA256 in file["data"].attrs


def verified(array: h5py.Dataset) -> Array:
    """The whole array, compared with its checksum if it has one.

    Raises:
        BrokenEpisode: it differs, or it is the only one in its file that has none.
    """
    values = np.asarray(array[()])
    _compare(array, lambda: _array_sha256(array, values))
    return values


def verify_group(group: h5py.Group, deep: bool = True) -> None:
    """Compares the members and attributes of a group, and of those in it, with their checksums; arrays are not read.

    Raises:
        BrokenEpisode: see `verified`.
    """
    if SHA256 not in group.attrs and not sealed(group.file):
        return
    _compare(group, lambda: _group_sha256(group))
    for name in group if deep else ():
        item = group[name]  # `values` and `get` would pass over what cannot be opened
        if isinstance(item, h5py.Group):
            verify_group(item)


def verify_all(group: h5py.Group) -> None:
    """Compares everything in a group with its checksum; see `verified`."""
    verify_group(group, deep=False)
    for name in group:
        item = group[name]
        if isinstance(item, h5py.Group):
            verify_all(item)
        else:
            verified(item)


def _compare(item: h5py.HLObject, computed: Callable[[], str]) -> None:
    stored = item.attrs.get(SHA256)
    if stored is None and not sealed(item.file):
        return
    if stored != computed():
        raise BrokenEpisode(f"{item.name!r} is damaged: its checksum {'is missing' if stored is None else 'differs'}")


def _array_sha256(array: h5py.Dataset, values: Array) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()


def _group_sha256(group: h5py.Group) -> str:
    digest = hashlib.sha256(repr(sorted(group)).encode())
    for name in sorted(group.attrs):
        if name != SHA256:
            value = group.attrs[name]
            array = np.asarray(value)
            raw = repr(value).encode() if array.dtype.kind in "OUS" else array.tobytes()
            digest.update(f"\n{name} {array.dtype.kind} {array.shape} ".encode() + raw)
    return digest.hexdigest()
