"""``SHA256SUMS``: the checksums of a folder's files, in the form that ``sha256sum --check`` reads.

A folder of an earlier version, or of others, has none. It is read as it is, which is said once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from kairos_env.runs.files import write_text

MANIFEST = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+(?:/[^/\0]+)*)")

logger = logging.getLogger(__name__)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Writes the checksums of files of a folder, of which ``names`` are the paths in it."""
    folder = Path(folder)
    write_text(folder / MANIFEST, "".join(f"{file_sha256(folder / name)}  {name}\n" for name in sorted(names)))


def stored_checksums(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Path in the folder -> checksum; empty where nothing states them.

    Raises:
        ValueError: a line is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").split("\n")[:-1], 1):
        if not (match := _LINE.fullmatch(line)):
            raise ValueError(f"{path}, line {number} is no checksum and a name")
        found[match[2]] = match[1]
    if not found:
        raise ValueError(f"{path} is empty")
    return found


def damaged_files(folder: str | os.PathLike[str]) -> list[str]:
    """A line for each file of a folder that is missing or differs from its checksum.

    Raises:
        ValueError: the checksums themselves are damaged.
    """
    folder, stored = Path(folder), stored_checksums(folder)
    there = [name for name in stored if (folder / name).is_file()]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter: the parts of a large model side by side
        found = dict(zip(there, pool.map(lambda name: file_sha256(folder / name), there), strict=True))
    lines = [f"{folder / name} is missing" for name in stored if name not in found]
    return lines + [f"{folder / name} differs from its checksum" for name in there if found[name] != stored[name]]


def require_sound(folder: str | os.PathLike[str], whole: bool = True) -> None:
    """Checks a folder whose files are about to be read; one without checksums is named in the log, once.

    Args:
        whole: no file may be missing.

    Raises:
        ValueError: a file is missing or differs from its checksum, and what to do.
    """
    if not (Path(folder) / MANIFEST).exists():
        _say_unchecked(str(folder))
    elif lines := [line for line in damaged_files(folder) if whole or not line.endswith(" is missing")]:
        raise ValueError(
            f"{'; '.join(lines)}: fetch or write it again, or, if it was changed on purpose, state its checksums anew "
            f"by `kairos verify-files {folder} --write`"
        )


@cache
def _say_unchecked(folder: str) -> None:
    logger.warning(
        "%s has no checksums (an earlier version wrote none): it is read as it is; `kairos verify-files %s --write` "
        "adds them",
        folder,
        folder,
    )
