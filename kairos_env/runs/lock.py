"""One writer at a time for a folder or file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Self


class FolderInUse(RuntimeError):
    """Another process writes there."""


class WriteLock:
    """Keeps every other process from writing a folder or file until `release`, the end of the block, or of the process.

    Args:
        path: a folder that exists is locked by ``.lock`` in it; a file, or what is not there yet, by a file beside it.
        doing: what the owner does with it, for the refusal: ``"recording into"``.

    Raises:
        FolderInUse: another process holds it; the message names its id.
    """

    def __init__(self, path: str | os.PathLike[str], doing: str = "writing") -> None:
        from filelock import FileLock, Timeout  # the interpreters of simulators read this module and lack it

        path = Path(path)
        self._file = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._file, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise FolderInUse(
                f"another process{self._owner()} is {doing} {path}; wait for it or choose another place"
            ) from None
        with suppress(OSError):  # Windows lets nobody write a locked file: the refusal then names no owner
            self._file.write_text(str(os.getpid()))

    def release(self) -> None:
        """Lets others write. Calling it again does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._file.unlink()
            self._lock.release()

    def _owner(self) -> str:
        with suppress(OSError):
            if owner := self._file.read_text().strip():
                return f" ({owner})"
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
