"""A process that opens HDF5 files before this one does: a damaged file crashes or hangs it, and not what matters.

It is started when the first file is opened, is asked once for every file, and ends with the process that asks.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from kairos_env.datasets.recording import BrokenEpisode

START_S = 60.0  # the longest that the process may take to be there
SILENCE_S = 20.0  # the longest that it may work on a file without a sign of life

_Key = tuple[str, int, int]
_sound: set[_Key] = set()  # files that were opened without harm: path, size, time of change
_lock = threading.Lock()
_current: _Visitor | None = None


def visit(path: Path) -> None:
    """Sees to it that a file can be opened without harm; files that were seen and have not changed are not looked at.

    Raises:
        BrokenEpisode: it crashes libhdf5, or keeps it busy for ever.
    """
    global _current
    key = _key(path)
    with _lock:
        if key in _sound:
            return
        if _current is None or not _current.is_mine():
            _current = _Visitor()
        fault = _current.visit(path)
        if fault:
            _current = None
            raise BrokenEpisode(f"{path} is damaged: {fault}; copy or download it again")
        _sound.add(key)


def trust(path: Path) -> None:
    """Takes note of a file that Kairos has just written: nobody has to look at it first."""
    with _lock:
        _sound.add(_key(path))


def _key(path: Path) -> _Key:
    about = path.stat()
    return str(path.absolute()), about.st_size, about.st_mtime_ns


class _Visitor:
    """The process that opens files."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        program = Path(__file__).with_name("visited.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for its parent, whose end it notices
        )
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._ready = self._next(START_S) == b"ready"
        if not self._ready:
            self._end()
            warnings.warn(
                "the process that tries HDF5 files first cannot be started; a damaged file may end this one",
                stacklevel=4,
            )

    def is_mine(self) -> bool:
        """Whether it belongs to this process, not to one that this was forked from, and lives."""
        return self._owner == os.getpid() and (not self._ready or self._process.poll() is None)

    def visit(self, path: Path) -> str:
        """What is wrong with a file; empty if nothing is, or if nobody can tell."""
        if not self._ready:
            return ""
        stdin: Any = self._process.stdin
        try:
            stdin.write(os.fsencode(path.absolute()).hex().encode() + b"\n")
            stdin.flush()
        except OSError:
            pass  # it has just died, which the next line finds
        while (answer := self._next(SILENCE_S)) == b"busy":
            pass
        if answer == b"done":
            return ""
        if answer is None:
            self._end()
            return f"libhdf5 does not come to an end with it (stopped after {SILENCE_S:g} s)"
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"libhdf5 crashes when it is opened ({how})"

    def _listen(self) -> None:
        stdout: Any = self._process.stdout
        for line in stdout:
            self._answers.put(line.strip())
        self._answers.put(b"")  # it has ended

    def _next(self, seconds: float) -> bytes | None:
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
