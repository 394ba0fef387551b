"""Environments for simulators whose packages clash with Kairos's: an interpreter, pinned packages, checks, a note.

Every step leaves what is there usable and says what it does, so that an installation that was stopped goes on when it
is asked for again. What a particular simulator needs beside packages is in the ``install.py`` of its folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kairos_env.runs import WriteLock, write_json
from kairos_env.sims.findings import Finding

Pythons = tuple[tuple[int, int], tuple[int, int]]  # from, below
PYTHONS: Pythons = ((3, 11), (3, 14))
_NOTE = "installed.json"

_INSTALLED_PROGRAM = """
import json, importlib.metadata, platform
found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
print(json.dumps({"python": platform.python_version(), "packages": found}))
"""


@dataclass(frozen=True)
class Wheel:
    """A package file of the registry; nothing with another SHA-256 is taken for it."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"the registry's {self.name} {self.version}"


@dataclass(frozen=True)
class Step:
    """Something to do, in words that follow a dash, and how."""

    text: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Installation:
    """A simulator's home: a folder with a virtual environment, ``env``, of exactly these packages, and notes of them.

    Attributes:
        simulator: its word in ``kairos sims install``.
        home: the folder.
        packages: normalised name -> version; installed without looking at what they depend on.
        wheels: files of the registry that are installed beside them.
        pythons: versions of Python that all of them run with.
    """

    simulator: str
    home: Path
    packages: Mapping[str, str]
    wheels: tuple[Wheel, ...] = ()
    pythons: Pythons = PYTHONS

    @property
    def environment(self) -> Path:
        return self.home / "env"

    @property
    def _wanted(self) -> dict[str, str]:
        return dict(self.packages) | {wheel.name: wheel.version for wheel in self.wheels}

    def steps(self, python: Path, renew: bool) -> list[Step]:
        """What is missing of the environment; see `environment_steps`."""
        steps = environment_steps(self.environment, python, self.packages, renew, self.pythons)
        return steps + self.wheel_steps(self.wheels, lambda lacking: f"packages: {', '.join(map(str, lacking))}")

    def wheel_steps(self, wheels: Sequence[Wheel], told: Callable[[Sequence[Wheel]], str]) -> list[Step]:
        """A step that installs those of these files that are not, in the words of ``told``; [] if all are."""
        have = installed(self.environment).get("packages", {})
        lacking = [wheel for wheel in wheels if have.get(wheel.name) != wheel.version]
        return [Step(told(lacking), lambda: install_wheels(self.environment.resolve(), lacking))] if lacking else []

    def note(self, text: str = "a note of the versions", more: Callable[[], Mapping[str, Any]] = dict) -> Step:
        """The step that ends an installation: checks its versions, and notes them with what ``more`` says."""

        def run() -> None:
            added, found = more(), installed(self.environment)
            if wrong := wrong_packages(found, self._wanted):
                raise RuntimeError(f"pip finished, but these packages are not as they should be: {', '.join(wrong)}")
            packages = {name: found["packages"][name] for name in self._wanted}
            write_json(self.home / _NOTE, {"python": found["python"], "packages": packages, **added})

        return Step(text, run)

    @property
    def again(self) -> str:
        """The command that builds, completes or repairs it."""
        return f"kairos sims install {self.simulator} --home {self.home}"

    def check(self, main: Sequence[str]) -> list[Finding]:
        """Whether the environment is there with these packages; versions of the ``main`` ones are told."""
        return check_environment(self.environment, self._wanted, main, self.again)


def noted(home: Path) -> dict[str, Any]:
    """What an installation wrote down last: ``python``, ``packages``, and its own; {} if it did not, or unreadable."""
    try:
        found = json.loads((home / _NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def default_home(simulator: str) -> Path:
    """Where a simulator is installed unless said otherwise: $KAIROS_SIMS/<name>, or ~/.cache/kairos/sims/<name>."""
    return Path(os.environ.get("KAIROS_SIMS") or "~/.cache/kairos/sims").expanduser().absolute() / simulator


def carry_out(home: Path, steps: Sequence[Step], say: Callable[[str], None], only_plan: bool = False) -> None:
    """Makes the steps of an installation into ``home``, one process at a time, and says each before.

    Args:
        home: folder, which is made.
        steps: in their order.
        say: is told each step.
        only_plan: tells the steps and changes nothing.

    Raises:
        FolderInUse: another process installs into the same folder.
    """
    if only_plan:
        for step in steps:
            say(step.text)
        return
    home.mkdir(parents=True, exist_ok=True)
    with WriteLock(home, "installing into"):
        for step in steps:
            say(step.text)
            step.run()


def environment_steps(
    environment: Path, python: Path, packages: Mapping[str, str], renew: bool, pythons: Pythons = PYTHONS
) -> list[Step]:
    """What is missing of a virtual environment with exactly these packages.

    Args:
        environment: its folder.
        python: interpreter that makes it, if it is not there.
        packages: normalised name -> version; installed without looking at what they depend on.
        renew: make it anew if it is of another version of Python.
        pythons: versions of Python that the packages run with.

    Raises:
        ValueError: no such interpreter, or of a version that is not supported.
    """
    found, steps = installed(environment), []
    if not found or (renew and not found["python"].startswith(f"{python_version(python, pythons)}.")):
        python_version(python, pythons)
        steps.append(Step(f"a virtual environment of {python} in {environment}", lambda: _make(python, environment)))
        found = {}
    wrong = wrong_packages(found, packages)
    if wrong:
        needed = [f"{name}=={packages[name]}" for name in wrong]
        what = ", ".join(needed[:4]) + (f" and {len(needed) - 4} more" if len(needed) > 4 else "")
        steps.append(Step(f"packages: {what}", lambda: _pip(environment, needed)))
    return steps


def check_environment(environment: Path, packages: Mapping[str, str], main: Sequence[str], again: str) -> list[Finding]:
    """Whether an environment is there with these packages; versions of the ``main`` ones are told.

    Args:
        environment: its folder.
        packages: normalised name -> version.
        main: names of the packages to tell.
        again: the command that installs it.
    """
    found = installed(environment)
    if not found:
        return [
            Finding("environment", "problem", f"{environment} is not there, or its interpreter does not run", again)
        ]
    wrong = wrong_packages(found, packages)
    text = ", ".join(f"{name} {found['packages'].get(name, '-')}" for name in main)
    if wrong:
        packed = Finding("packages", "problem", f"{text}; not as installed: {', '.join(wrong)}", again)
    else:
        packed = Finding("packages", "ok", text)
    return [Finding("environment", "ok", f"Python {found['python']} in {environment}"), packed]


def installed(environment: Path) -> dict[str, Any]:
    """``python`` (version) and ``packages`` (name -> version) of a virtual environment; {} if it is broken."""
    python = environment / "bin" / "python"
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _INSTALLED_PROGRAM], capture_output=True, text=True, timeout=120, check=True
        )
        found = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    return found | {"packages": {_normalised(name): version for name, version in found["packages"].items()}}


def install_wheels(environment: Path, wheels: Sequence[Wheel], again: bool = False) -> None:
    """Installs package files into a virtual environment; ``again``: anew, where their files may be damaged."""
    with _requirements(wheels) as listed:
        _pip(environment, [*(["--force-reinstall"] if again else []), "--require-hashes", "-r", str(listed)])


@contextlib.contextmanager
def unpacked_wheel(environment: Path, wheel: Wheel) -> Iterator[Path]:
    """A folder with the files of a package, which is not installed; it is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder, _requirements([wheel]) as listed:
        options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        command = [str(environment / "bin" / "python"), "-m", "pip", "download", *options]
        _run([*command, "-r", str(listed), "-d", folder], _REGISTRY_HINT)
        (packed,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(packed) as archive:
            _check_names(packed, archive.namelist())
            archive.extractall(Path(folder, "files"))
        yield Path(folder, "files")


@contextlib.contextmanager
def _requirements(wheels: Sequence[Wheel]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "requirements.txt")
        listed.write_text("".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels))
        yield listed


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """Names of the files in a zip or tar, all of which stay inside it, and how to open one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            names = [entry.filename for entry in packed.infolist() if not entry.is_dir()]
            _check_names(path, names)
            yield names, packed.open
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tape:
            members = {member.name: member for member in tape if not member.isdir()}
            odd = [name for name, member in members.items() if not member.isreg()]
            if odd:
                raise ValueError(f"{path} holds links or devices, which assets do not need: {odd[0]}")
            _check_names(path, list(members))

            def opened(name: str) -> IO[bytes]:
                stream = tape.extractfile(members[name])
                assert stream is not None  # a regular file
                return stream

            yield list(members), opened
    else:
        raise ValueError(f"{path} is neither a folder nor a zip or tar file")


def _check_names(path: Path, names: list[str]) -> None:
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise ValueError(f"{path} wants to write outside its folder ({name}); nothing was unpacked")


def python_version(python: Path, pythons: Pythons = PYTHONS) -> str:
    """``"3.11"`` of an interpreter; ValueError if it does not run, or is not supported."""
    program = "import sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, timeout=60, check=True)
        version = tuple(map(int, answer.stdout.split()))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ValueError(f"--python {python} is no Python interpreter that runs ({error})") from error
    found = ".".join(map(str, version))
    if not pythons[0] <= version < pythons[1]:
        legal = [f"{major}.{minor}" for major, last in [pythons[1]] for minor in range(pythons[0][1], last)]
        needed = " or ".join(filter(None, [", ".join(legal[:-1]), legal[-1]]))
        raise ValueError(f"{python} is Python {found}; the simulator's packages need {needed}: add --python")
    return found


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wrong_packages(found: Mapping[str, Any], wanted: Mapping[str, str]) -> list[str]:
    """Names of the packages that `installed` does not have in the wanted version."""
    have = found.get("packages", {})
    return [name for name, version in wanted.items() if have.get(name) != version]


def _make(python: Path, environment: Path) -> None:
    if environment.is_symlink():
        raise ValueError(f"{environment} is a link to {os.readlink(environment)}: remove it, or mend what it names")
    _run([str(python), "-m", "venv", "--clear", str(environment)], "Debian and Ubuntu: apt-get install python3-venv")


_REGISTRY_HINT = "it needs the Python package index, or a mirror that pip is configured for. The same command goes on"


def _pip(environment: Path, requirements: list[str]) -> None:
    command = [str(environment / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--quiet"]
    _run([*command, "--disable-pip-version-check", *requirements], _REGISTRY_HINT)


def _run(command: list[str], hint: str) -> None:
    # what our own interpreter was told about packages is not meant for the other one
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    answer = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if answer.returncode:
        lines = [line for line in answer.stdout.splitlines() if line.strip() and not line.startswith("WARNING")]
        shown = "\n  ".join(lines[-12:])
        raise RuntimeError(f"{' '.join(command[:4])} ... failed ({hint}):\n  {shown}")
