"""The folder of a run: resolved configuration, one writer at a time, files written whole or not at all.

``config.json`` is what the results depend on; a run is continued only under the same one. Everything
that may differ between two launches of it (workers, versions, commit, machine) is a line of
``launches.jsonl``.
"""

from __future__ import annotations

import ctypes
import difflib
import glob
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Self

_VERSIONS = "kairos-env torch numpy gymnasium mujoco robosuite h5py zarr av transformers diffusers".split()
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

INITIAL_STATES: Mapping[str, range] = {
    "benchmark": range(100_000),  # a benchmark's own numbering, such as LIBERO's 0 ... 49
    "training": range(100_000, 300_000),
    "evaluation": range(300_000, 310_000),
    "imagination": range(310_000, 320_000),
    "correlation": range(320_000, 330_000),
    "theory": range(330_000, 340_000),
    "export": range(340_000, 440_000),  # imagined episodes, which are training data
    "other": range(440_000, 1_000_000),  # recordings of special tasks
    "validation": range(1_000_000, 1_100_000),
}
"""Purpose -> the initial states that are its own. No two overlap, so nothing is tested where it was trained."""


class ConfigMismatch(ValueError):
    """An output folder holds results of another configuration."""


class FolderInUse(RuntimeError):
    """Another process writes there."""


# ---- the folder


def open_run(
    folder: str | os.PathLike[str], config: Mapping[str, Any], launch: Mapping[str, Any] | None = None
) -> Path:
    """Creates or re-opens the folder of a run.

    Args:
        folder: created if it is not there.
        config: JSON values; everything that the results depend on.
        launch: JSON values that may differ from launch to launch, stored beside versions and commit.

    Raises:
        ConfigMismatch: the folder was started under another config; the message lists every difference.
        ValueError: its ``config.json`` is damaged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    new = json.loads(json.dumps(config))
    if path.exists():
        try:
            old = json.loads(path.read_text())
            if not isinstance(old, dict):
                raise ValueError(f"{old!r} is no mapping")
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); choose another output folder or delete this one") from None
        lines = [
            f"{key}: {json.dumps(old.get(key))} there, {json.dumps(new.get(key))} now"
            for key in sorted(old | new)
            if old.get(key) != new.get(key)
        ]
        if lines:
            other = " or another version of Kairos" if set(old) != set(new) else ""
            problem = f"{folder} holds results of another configuration{other}, which can be read but not continued"
            raise ConfigMismatch(f"{problem}; choose another output folder:\n  " + "\n  ".join(lines))
    else:
        write_json(path, new)
    append_jsonl(folder / "launches.jsonl", describe_machine() | dict(launch or {}))
    return folder


def describe_machine() -> dict[str, Any]:
    """Time, versions, processor and git commit: what a number should be quoted with."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


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


# ---- files


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


# ---- words and numbers


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """The end of a message about an unknown word: the nearest known ones, or what is legal.

    Dotted words are also compared by their last parts, since people forget the section of a key.
    """
    names = [str(name) for name in known]
    tails = {_last_part(name): name for name in names}
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    close += [tails[tail] for tail in difflib.get_close_matches(_last_part(str(word)), tails, n=1, cutoff=0.75)]
    if close:
        return f"did you mean {' or '.join(repr(name) for name in dict.fromkeys(close))}?"
    return f"legal: {', '.join(names[:24]) or 'none'}" + (f" and {len(names) - 24} more" if len(names) > 24 else "")


def _last_part(name: str) -> str:
    return name.rpartition(".")[2].lstrip("-")


def split_initial_states(count: int) -> tuple[range, range]:
    """The initial states of a simulator that has ``count`` of them: those for training, and the held-out last fifth."""
    first = max(1, count * 4 // 5)
    return range(first), range(first, count)


def check_initial_states(first: int, count: int) -> None:
    """Checks that ``count`` initial states from ``first`` on belong to one purpose.

    Raises:
        ValueError: they are negative or reach into the range of another purpose of `INITIAL_STATES`.
    """
    if first < 0:
        raise ValueError(f"initial states are numbered from 0, got {first}")
    for purpose, states in INITIAL_STATES.items():
        if first in states and first + count > states.stop:
            raise ValueError(
                f"initial states {first} ... {first + count - 1} reach beyond those for {purpose} "
                f"({states.start} ... {states.stop - 1}) into another purpose's: choose fewer, or another first one"
            )


# ---- worker processes


def exit_with_parent() -> None:
    """Ends this worker within seconds of its parent's death, whatever it computes; to be called when it starts.

    A killed parent cannot stop its workers. A thread waits for its end; where the kernel can (Linux), it also kills
    this process, which helps against C code that never lets the thread run.
    """
    parent = multiprocessing.parent_process()
    number = os.getppid() if parent is None else parent.pid
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        ended: Sequence[object] = ()
        while not ended and (os.name == "nt" or os.getppid() == number):
            if parent is None:
                time.sleep(1.0)
            else:
                ended = multiprocessing.connection.wait([parent.sentinel], 1.0)
        os._exit(1)

    threading.Thread(target=watch, name="exit_with_parent", daemon=True).start()


@contextmanager
def single_threaded_workers() -> Iterator[None]:
    """Processes started in this block compute on one thread each.

    Threads on top of busy workers only fight over the cores, and sums over threads would make results depend on
    the machine's load.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    """The commit of the source tree, with ``+`` if files were changed; empty for an installed package."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        # a fixed program with fixed arguments; S603 has nothing to find here
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if commit and git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
