"""A simulator home for tests: the environment that `make libero` builds, and tasks and assets of the test data."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("KAIROS_TEST_DATA", ROOT.parent / "shared" / "data"), "libero")
SIMS = Path(os.environ.get("KAIROS_SIMS", ROOT / ".sims"))
ARCHIVES = ("libero_plus_data.tar.xz", "libero_assets40_512.tar.xz")


@functools.cache
def libero_home() -> Path:
    """The folder; a test that calls this is skipped where there is no simulator, or no test data.

    It is built once for all test processes, beside the simulator's own home, and again when what it is made of changes.
    """
    environment = SIMS.absolute() / "libero" / "env"
    if not (environment / "bin" / "python").exists() or not (environment.parent / "installed.json").exists():
        pytest.skip(f"needs LIBERO's simulator in {environment}: `make libero`, or set KAIROS_SIMS to another folder")
    for name in ARCHIVES:
        if not (DATA / name).is_file():
            pytest.skip(f"needs {name} in the folder libero under KAIROS_TEST_DATA")
    home = SIMS.absolute() / f"libero-tests-{_digest(environment)}"
    with (SIMS / ".libero-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "installed.json").exists():
            for older in SIMS.absolute().glob("libero-tests-*"):
                if older.stat().st_mtime < time.time() - 86400:
                    shutil.rmtree(older)
            _build(home, environment)
    return home


def _build(home: Path, environment: Path) -> None:
    from kairos_env.sims.libero import install
    from kairos_env.sims.libero.prepare import BenchmarkFiles

    home.mkdir(parents=True)
    (home / "env").symlink_to(environment, target_is_directory=True)
    package = install.installed_package(environment)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(DATA / ARCHIVES[0]) as packed:
        packed.extractall(folder, filter="data")
        prepared = next(path.parent for path in Path(folder).rglob("tasks.jsonl"))
        install.prepare_tasks(home, BenchmarkFiles(package), prepared)
    install.use_assets(home, DATA / ARCHIVES[1])
    install.write_config(home, package)
    shutil.copyfile(environment.parent / "installed.json", home / "installed.json")


def _digest(environment: Path) -> str:
    parts = [f"{name} {(DATA / name).stat().st_size} {(DATA / name).stat().st_mtime_ns}" for name in ARCHIVES]
    prepare = ROOT / "kairos_env" / "sims" / "libero" / "prepare.py"
    sources = (Path(__file__), prepare, environment.parent / "installed.json")
    parts += [source.read_text(encoding="utf-8") for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
