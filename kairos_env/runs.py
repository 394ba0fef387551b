"""The folder of one run: its resolved configuration, where it ran, and files written whole or not at all.

``config.json`` is what the results depend on; a run is continued only under the same one. Everything
that may differ between two launches of it (workers, versions, commit, machine) is a line of
``launches.jsonl``.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_VERSIONS = ("kairos-env", "torch", "numpy", "gymnasium", "mujoco", "robosuite", "av", "transformers", "diffusers")


class ConfigMismatch(ValueError):
    """An output folder holds results of another configuration."""


def open_run(folder: str | Path, config: Mapping[str, Any], launch: Mapping[str, Any] | None = None) -> Path:
    """Creates or re-opens the folder of a run.

    Args:
        folder: created if it is not there.
        config: JSON values; everything that the results depend on.
        launch: JSON values that may differ from launch to launch, stored beside versions and commit.

    Raises:
        ConfigMismatch: the folder was started under another config; the message lists every difference.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    new = json.loads(json.dumps(config))
    if path.exists():
        old = json.loads(path.read_text())
        lines = [
            f"{key}: {json.dumps(old.get(key))} there, {json.dumps(new.get(key))} now"
            for key in sorted(old | new)
            if old.get(key) != new.get(key)
        ]
        if lines:
            raise ConfigMismatch(
                f"{folder} holds results of another configuration; choose another output folder or delete it:\n  "
                + "\n  ".join(lines)
            )
    else:
        write_text(path, json.dumps(new, indent=2) + "\n")
    with open(folder / "launches.jsonl", "a") as file:
        file.write(json.dumps(describe_machine() | dict(launch or {})) + "\n")
    return folder


def describe_machine() -> dict[str, Any]:
    """Time, versions, processor and git commit: what a number should be quoted with."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


def write_text(path: str | Path, text: str) -> None:
    """Writes a file so that it is there completely or, after a crash, as it was before."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Like `write_text`, for bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def exit_with_parent() -> None:
    """Ends this worker process at once when its parent is gone, whatever it computes; to be called when it starts.

    A killed parent cannot stop its workers. A thread waits for its end; where the kernel can (Linux), it also kills
    this process, which helps against C code that never lets the thread run.
    """
    parent, number = multiprocessing.parent_process(), os.getppid()
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
        while os.getppid() == number and parent is None:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="exit_with_parent", daemon=True).start()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
