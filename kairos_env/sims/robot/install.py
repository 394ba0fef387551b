"""Builds and checks the environment in which LeRobot's drivers run: LeRobot with what they need, and no torch.

Both lines that the registry has are known: 0.6.1 for Python 3.12 and later, 0.4.4 for 3.11.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from kairos_env.sims.findings import Finding
from kairos_env.sims.install import Installation, carry_out, default_home, installed, python_version

NAME = "lerobot-robots"
_LEROBOT = {"3.11": "0.4.4"}  # version of Python -> the newest LeRobot for it
_NEWEST = "0.6.1"
_SHARED = {
    "absl-py": "2.5.1",
    "cachebox": "6.2.10",
    "certifi": "2026.10.19.post1",
    "charset-normalizer": "3.5.3",
    "cloudpickle": "3.1.3",
    "deepdiff": "9.1.0",
    "draccus": "0.11.6",
    "dynamixel-sdk": "3.8.4",
    "etils": "1.15.0",
    "farama-notifications": "0.0.6",
    "feetech-servo-sdk": "1.0.0",
    "filelock": "4.3.1",
    "fsspec": "2026.9.0",
    "gymnasium": "1.4.0",
    "huggingface-hub": "0.35.3",
    "idna": "3.20",
    "importlib-resources": "7.1.0",
    "mergedeep": "1.3.4",
    "mujoco": "3.9.0",
    "mypy-extensions": "1.2.0",
    "numpy": "2.2.6",
    "opencv-python-headless": "5.0.0.93",
    "orderly-set": "5.5.0",
    "packaging": "26.4",
    "pyopengl": "3.1.10",
    "pyserial": "3.5",
    "pyyaml": "6.0.4",
    "pyyaml-include": "2.2",
    "pyzmq": "27.3.0",
    "requests": "2.34.2",
    "toml": "0.10.2",
    "tqdm": "4.70.1",
    "typing-extensions": "4.16.0",
    "typing-inspect": "0.9.0",
    "urllib3": "2.8.0",
    "zipp": "4.1.2",
    "glfw": "2.11.0",
}


def home_folder() -> Path:
    """Where it is installed unless said otherwise: $KAIROS_SIMS/lerobot-robots, or in ~/.cache/kairos/sims."""
    return default_home(NAME)


def interpreter(home: Path | None = None) -> Path:
    """The Python that drives robots.

    Raises:
        FileNotFoundError: it is not installed.
    """
    home = home or home_folder()
    found = home / "env" / "bin" / "python"
    if not (found.exists() and (home / "installed.json").exists()):
        raise FileNotFoundError(
            f"LeRobot's drivers are not installed in {home}: `kairos sims install {NAME}`, or set KAIROS_SIMS"
        )
    return found


def packages_for(python: Path) -> dict[str, str]:
    """Packages for an interpreter; ValueError if it is none that is supported."""
    return {"lerobot": _LEROBOT.get(python_version(python), _NEWEST)} | _SHARED


def install(
    home: Path, python: Path | None = None, say: Callable[[str], None] = lambda text: None, only_plan: bool = False
) -> None:
    """Builds a home, or completes or repairs it.

    Args:
        home: folder, which is made.
        python: interpreter, 3.11 to 3.13; by default what is there, else Python 3.13 or 3.12 if there is one that runs,
            because they get the newest LeRobot, else this one.
        say: is told each step before it is made.
        only_plan: tells the steps and changes nothing.
    """
    own = home / "env" / "bin" / "python"
    chosen = python or (own if installed(home / "env") else _newest_python())
    packages = packages_for(chosen)
    maker = chosen if chosen != own else Path(sys.executable)

    robots = Installation(NAME, home, packages)
    carry_out(home, [*robots.steps(maker, renew=python is not None), robots.note()], say, only_plan)


def check(home: Path) -> list[Finding]:
    """How an installation stands."""
    python = home / "env" / "bin" / "python"
    packages = packages_for(python) if python.exists() else _SHARED
    main = ["lerobot", "feetech-servo-sdk", "dynamixel-sdk", "pyserial"]
    return Installation(NAME, home, packages).check(main)


def _newest_python() -> Path:
    for name in ("python3.13", "python3.12"):
        found = shutil.which(name)
        if found is not None:
            try:
                python_version(Path(found))
            except ValueError:
                continue  # a shim of a version manager, which is not switched on
            return Path(found)
    return Path(sys.executable)
