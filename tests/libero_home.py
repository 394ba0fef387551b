"""A simulator home for tests: what `make libero` installs from the registry, with smaller pictures."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
from paths import ROOT

SIMS = Path(os.environ.get("KAIROS_SIMS", ROOT / ".sims"))


@functools.cache
def original_home() -> Path:
    """What `make libero` installed: three benchmarks, original assets. Without it a test that calls this is skipped."""
    from kairos_env.sims.libero.assets import registry_folder
    from kairos_env.sims.libero.catalogue import TASK_FILES, Catalogue

    home = SIMS.absolute() / "libero"
    there = all((home / name).is_file() for name in ("env/bin/python", "installed.json", *TASK_FILES.values()))
    if not there or Catalogue(home).assets != registry_folder(home / "env"):
        pytest.skip(f"needs LIBERO, LIBERO-plus and LIBERO-Pro in {home}: `make libero`, or set KAIROS_SIMS")
    return home


@functools.cache
def libero_home() -> Path:
    """The same with small assets, which take half the memory and two thirds of the time to build a scene.

    It is made once for all test processes, beside the original one, and again when what it is made of changes.
    """
    original = original_home()
    home = SIMS.absolute() / f"libero-tests-{_digest(original)}"
    with (SIMS / ".libero-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "installed.json").exists():
            for older in SIMS.absolute().glob("libero-tests-*"):
                if older.stat().st_mtime < time.time() - 86400:
                    shutil.rmtree(older)
            _build(home, original)
    return home


def _build(home: Path, original: Path) -> None:
    from kairos_env.sims.libero.assets import use_registry
    from kairos_env.sims.libero.catalogue import TASK_FILES
    from kairos_env.sims.libero.install import installed_package, write_config

    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name in ("env", "bddl", "init_states.npz", *TASK_FILES.values()):
        (home / name).symlink_to(original / name)
    use_registry(home, small=True)
    write_config(home, installed_package(home / "env"))
    shutil.copyfile(original / "installed.json", home / "installed.json")


def _digest(original: Path) -> str:
    assets = ROOT / "kairos_env" / "sims" / "libero" / "assets.py"
    parts = [str(original), *(source.read_text(encoding="utf-8") for source in (Path(__file__), assets))]
    return hashlib.sha256("\n".join([*parts, (original / "installed.json").read_text()]).encode()).hexdigest()[:12]
