"""The folder of a run: its resolved configuration, and who launched it where.

``config.json`` is what the results depend on; a run is continued only under the same one. Everything
that may differ between two launches of it (workers, versions, commit, machine) is a line of
``launches.jsonl``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from kairos_env.runs.files import append_jsonl, write_json

_VERSIONS = "kairos-env torch numpy gymnasium mujoco robosuite h5py zarr av transformers diffusers".split()


class ConfigMismatch(ValueError):
    """An output folder holds results of another configuration."""


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


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    """The commit of the source tree, with ``+`` if files were changed; empty for an installed package."""
    root = Path(__file__).resolve().parents[2]
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
