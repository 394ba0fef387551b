"""Files and folders written whole or not at all, and files of JSON lines."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file or folder that appears at ``path``, in place of an older one, only when it is whole and on the disk.

    Yields:
        where to write it: ``.<name>.<process id>.tmp`` beside ``path``. If the block raises, it is removed.
    """
    temporary = temporary_for(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        _remove(temporary)


def temporary_for(path: str | os.PathLike[str]) -> Path:
    """The path for writing what `put_in_place` then moves to ``path``; leftovers of killed processes are removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():  # killed between the two renamings of a folder
        old.rename(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = leftover.name.split(".")[-2]
        if owner.isdigit() and not _alive(int(owner)):
            _remove(leftover)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def put_in_place(temporary: Path, path: str | os.PathLike[str]) -> None:
    """Makes a file or folder durable and gives it its name; an older one of that name is replaced."""
    path = Path(path)
    for part in (*temporary.rglob("*"), temporary):
        if part.is_file() and not part.is_symlink():
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
    if temporary.is_dir() and os.path.lexists(path):
        old = path.with_name(f".{path.name}.old")
        _remove(old)
        path.rename(old)
        temporary.rename(path)
        _remove(old)
    else:
        os.replace(temporary, path)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left of files that were being written; only for the owner of ``folder``."""
    for leftover in Path(folder).glob(".*.tmp"):
        _remove(leftover)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file so that it is there completely or, after a crash, as it was before."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Like `write_text`, for bytes."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Like `write_text`, for a JSON value, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_jsonl(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Appends a row to a file of JSON lines, durably; a last line torn by a kill is cut off first."""
    with open(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none if it is not there. A last line torn by a kill is left out.

    Raises:
        ValueError: another line is no JSON object; the message names file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no row ({error!r}); delete that line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is no row but {row!r}; delete that line")
        rows.append(row)
    return rows


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name != "nt":  # there, signal 0 would end it
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # of another user
    return True
