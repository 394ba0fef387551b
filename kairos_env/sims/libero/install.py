"""Builds and checks a home of LIBERO and LIBERO-plus (see `tasks`): environment, task files, assets.

``installed.json`` is written last.
"""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from kairos_env.runs import atomic_write, did_you_mean, write_json, write_text
from kairos_env.sims.findings import GL_REMEDY, Finding, check_drawing
from kairos_env.sims.install import (
    Step,
    carry_out,
    check_environment,
    environment_steps,
    installed,
    open_archive,
    wrong_packages,
)
from kairos_env.sims.libero.prepare import (
    BenchmarkFiles,
    Row,
    copy_definitions,
    libero_plus_rows,
    libero_rows,
    prepared_rows,
    states_of_rows,
    write_rows,
    write_states,
)
from kairos_env.sims.libero.tasks import ASSETS_ADVICE, BENCHMARKS, DIMENSIONS, SUITES, Catalogue

MUJOCOS = ((3, 2, 0), (3, 9, 0))  # robosuite 1.4.1 runs with these; from, below

# Everything that the simulator imports, and nothing that LIBERO merely lists (robomimic, wandb, transformers, keyboard
# drivers that need a compiler), so it is installed without looking at dependencies. MuJoCo decodes textures as sRGB
# from 3.3.3 on, which makes LIBERO's floor 28 % darker: results of different versions are not comparable.
PACKAGES = {
    "numpy": "2.2.6",
    "mujoco": "3.3.7",
    "robosuite": "1.4.1",
    "hf-libero": "0.1.4",
    "bddl": "1.0.1",
    "gymnasium": "1.4.0",
    "absl-py": "2.5.1",
    "cloudpickle": "3.1.2",
    "contourpy": "1.3.3",
    "cycler": "0.12.1",
    "easydict": "1.14",
    "etils": "1.15.0",
    "farama-notifications": "0.0.6",
    "fonttools": "4.68.0",
    "fsspec": "2026.9.0",
    "future": "1.0.0",
    "glfw": "2.11.0",
    "kiwisolver": "1.5.1",
    "llvmlite": "0.50.0",
    "matplotlib": "3.11.2",
    "numba": "0.68.1",
    "opencv-python-headless": "5.0.0.93",
    "packaging": "26.3",
    "pillow": "13.0.0",
    "pyopengl": "3.1.10",
    "pyparsing": "3.3.3",
    "python-dateutil": "4.0.0",
    "pyyaml": "6.0.3",
    "scipy": "1.17.1",
    "six": "1.17.0",
    "termcolor": "3.3.0",
    "typing-extensions": "4.16.0",
    "zipp": "4.1.2",
}


@dataclass(frozen=True)
class InstallRequest:
    """What to install.

    Attributes:
        benchmark: ``"libero"``, or ``"libero-plus"`` for both.
        home: folder to build; it is made.
        python: interpreter for the environment, 3.11 to 3.13; None is this one.
        mujoco: version; the published LIBERO-plus run of Kairos had 3.3.2.
        source: for LIBERO-plus, a checkout of its repository, or a prepared folder (``tasks.jsonl``, ``bddl``,
            ``init_states.npz``); None keeps the tasks that the home has.
        assets: folder, zip or tar of meshes, textures and scenes; None keeps what the home has. A folder is used where
            it is, an archive is unpacked into the home.
    """

    benchmark: str
    home: Path
    python: Path | None = None
    mujoco: str = PACKAGES["mujoco"]
    source: Path | None = None
    assets: Path | None = None

    @property
    def packages(self) -> dict[str, str]:
        return PACKAGES | {"mujoco": self.mujoco}


def install(request: InstallRequest, say: Callable[[str], None] = lambda text: None, only_plan: bool = False) -> None:
    """Builds a home, or completes or repairs one.

    Args:
        request: what to install.
        say: is told each step before it is made.
        only_plan: tells the steps and changes nothing.

    Raises:
        ValueError: the request cannot be met: versions, folders, files in them.
        RuntimeError: a command failed; its last lines are in the message.
        FolderInUse: another process installs into the same home.
    """
    carry_out(request.home, _plan(request, say), say, only_plan)


def prepare_tasks(home: Path, libero: BenchmarkFiles, source: Path | None) -> dict[str, int]:
    """Writes the task files of a home.

    Args:
        home: folder, which is there.
        libero: LIBERO's own files.
        source: see `InstallRequest`.

    Returns:
        benchmark -> number of tasks.

    Raises:
        ValueError: the files are not what they should be.
    """
    base = libero_rows(libero)
    states = states_of_rows(base, libero)
    definitions = {row["bddl"]: libero.package / "bddl_files" / row["bddl"] for row in base}
    source = source or (home if (home / "tasks.jsonl").is_file() else None)
    plus: list[Row] = []
    if source is not None and (source / "tasks.jsonl").is_file():
        plus = prepared_rows(source, libero)
        states = _archived_states(source / "init_states.npz", {row["init"] for row in plus} - states.keys()) | states
        definitions = {row["bddl"]: source / "bddl" / row["bddl"] for row in plus} | definitions
    elif source is not None:
        benchmark = BenchmarkFiles(source)
        plus = libero_plus_rows(benchmark, libero)
        states = states_of_rows((row for row in plus if row["init"] not in states), benchmark) | states
        definitions = {row["bddl"]: benchmark.package / "bddl_files" / row["bddl"] for row in plus} | definitions
    copy_definitions(home / "bddl", definitions)
    write_states(home / "init_states.npz", states)
    if plus:
        write_rows(home / "tasks.jsonl", plus)
    write_rows(home / "libero_tasks.jsonl", base)
    return {"libero": len(base)} | ({"libero-plus": len(plus)} if plus else {})


def use_assets(home: Path, assets: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """Makes a home use these assets.

    Args:
        home: folder, which is there.
        assets: a folder, which stays where it is, or a zip or tar, which is unpacked into the home. Both may hold the
            assets deeper down.
        say: is told how far the unpacking is.

    Returns:
        The folder of the assets.

    Raises:
        ValueError: neither, or no assets in it, or an archive that wants to write elsewhere.
    """
    pointer = home / "assets.path"
    if assets.is_dir():
        files = (path.relative_to(assets).as_posix() for path in assets.rglob("*.xml"))
        found = (assets / _root(files, assets)).absolute()
        write_text(pointer, f"{found}\n")
        return found
    target = home / "assets"
    with atomic_write(target) as fresh, open_archive(assets) as (names, opened):
        root = _root(names, assets)
        inside = [name for name in names if PurePosixPath(name).is_relative_to(root)]
        for number, name in enumerate(inside):
            file = fresh / PurePosixPath(name).relative_to(root)
            file.parent.mkdir(parents=True, exist_ok=True)
            with opened(name) as packed, file.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
            if number % 2000 == 1999:
                say(f"  {number + 1} of {len(inside)} files")
    pointer.unlink(missing_ok=True)
    return target


def write_config(home: Path, package: Path) -> None:
    """What the ``libero`` package reads when it is imported; without it, it asks a question on the terminal.

    Args:
        home: folder, which is there.
        package: folder of the installed package.
    """
    config = {
        "benchmark_root": package,
        "bddl_files": home / "bddl",
        "init_states": home,
        "datasets": home,
        "assets": Catalogue(home).assets,
    }
    (home / "config").mkdir(exist_ok=True)
    lines = (f"{key}: {json.dumps(str(path))}\n" for key, path in config.items())
    (home / "config" / "config.yaml").write_text("".join(lines), encoding="utf-8")


def installed_package(environment: Path) -> Path:
    """The folder of hf-libero's ``libero`` package in a virtual environment.

    Raises:
        ValueError: it is not there.
    """
    found = sorted(environment.glob("lib/python3*/site-packages/libero/libero"))
    if not found:
        raise ValueError(f"{environment} has no hf-libero: run `kairos sims install libero` again")
    return found[0]


def check(home: Path, benchmark: str, render: bool = True) -> list[Finding]:
    """How an installation stands; raises nothing for what is missing, because that is what it is for.

    Args:
        home: folder of the installation.
        benchmark: ``"libero"`` or ``"libero-plus"``.
        render: also draw a frame, and start the simulator if a task has its assets (10 to 30 s).
    """
    _check_benchmark(benchmark)
    again = f"kairos sims install {benchmark} --home {home}"
    packages = _recorded(home).get("packages", PACKAGES)
    findings = check_environment(home / "env", packages, list(PACKAGES)[:4], again)
    if len(findings) == 1:
        return findings
    try:
        catalogue = Catalogue.open(home)
        tasks = catalogue.tasks(benchmark)
    except (FileNotFoundError, ValueError) as error:
        return [*findings, Finding("tasks", "problem", str(error), again)]
    runnable = [task for task in tasks if not catalogue.missing(task)]
    findings.append(Finding("tasks", "ok", f"{len(tasks)}; {len(runnable)} have all their assets"))
    kinds = SUITES if benchmark == "libero" else DIMENSIONS
    for kind in kinds:
        of_kind = [task for task in tasks if kind in (task.suite, task.dimension)]
        whole = sum(not catalogue.missing(task) for task in of_kind)
        if of_kind:
            status: Literal["ok", "note"] = "ok" if whole == len(of_kind) else "note"
            findings.append(Finding(f"  {kind}", status, f"{whole} of {len(of_kind)} can be run"))
    findings.append(_check_assets(catalogue, benchmark, again))
    if render:
        findings.append(_check_drawing(home / "env" / "bin" / "python"))
        if findings[-1].status == "ok" and runnable:
            findings.append(_check_simulator(home, benchmark, runnable[0].suite, runnable[0].name))
    return findings


def _plan(request: InstallRequest, say: Callable[[str], None]) -> list[Step]:
    home, environment = request.home, request.home / "env"
    _check_benchmark(request.benchmark)
    version = _version(request.mujoco)
    if not MUJOCOS[0] <= version < MUJOCOS[1]:
        raise ValueError(f"MuJoCo {request.mujoco}: robosuite {PACKAGES['robosuite']} runs with 3.2 to 3.8")
    if request.source is None and request.benchmark == "libero-plus" and not (home / "tasks.jsonl").is_file():
        raise ValueError(
            "the tasks of LIBERO-plus come with its repository: `git clone https://github.com/sylvestf/LIBERO-plus`, "
            "then add --benchmark LIBERO-plus"
        )
    for option, path in (("--benchmark", request.source), ("--assets", request.assets)):
        if path is not None and not path.exists():
            raise ValueError(f"{option} {path} is not there")
    if request.source is not None and not (request.source / "tasks.jsonl").is_file():
        BenchmarkFiles(request.source)

    python = Path(request.python or sys.executable)
    steps = environment_steps(environment, python, request.packages, renew=request.python is not None)
    source = request.source or (home if (home / "tasks.jsonl").is_file() else None)
    counts: dict[str, int] = {}
    steps.append(
        Step(
            "task files of LIBERO" + (f", and of LIBERO-plus from {source}" if source else ""),
            lambda: counts.update(prepare_tasks(home, BenchmarkFiles(installed_package(environment)), request.source)),
        )
    )
    if request.assets is not None:
        assets = request.assets
        steps.append(Step(f"assets from {assets}", lambda: use_assets(home, assets, say)))
    steps.append(Step("configuration, and a note of the versions", lambda: _finish(request, counts)))
    return steps


def _finish(request: InstallRequest, counts: dict[str, int]) -> None:
    home, environment = request.home, request.home / "env"
    write_config(home, installed_package(environment))
    found = installed(environment)
    wrong = wrong_packages(found, request.packages)
    if wrong:
        raise RuntimeError(f"pip finished, but these packages are not as they should be: {', '.join(wrong)}")
    record = {
        "python": found["python"],
        "packages": {name: found["packages"][name] for name in request.packages},
        "tasks": counts,
        "source": str(request.source) if request.source else _recorded(home).get("source", ""),
    }
    write_json(home / "installed.json", record)


def _recorded(home: Path) -> dict[str, Any]:
    try:
        found = json.loads((home / "installed.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_benchmark(benchmark: str) -> None:
    if benchmark not in BENCHMARKS:
        raise ValueError(f"no simulator {benchmark!r} to install; {did_you_mean(benchmark, BENCHMARKS)}")


def _version(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise ValueError(f"MuJoCo {text!r}: give a whole version such as {PACKAGES['mujoco']}")
    return tuple(map(int, text.split(".")))


def _archived_states(path: Path, keys: set[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: np.atleast_2d(archive[key]).astype(np.float64, copy=False) for key in sorted(keys)}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not hold the initial states of the tasks beside it: {error}") from error


def _root(names: Iterator[str] | list[str], where: Path) -> PurePosixPath:
    """The folder, seen from ``where``, that holds ``scenes/*.xml``: the one least deep."""
    parents = {PurePosixPath(name).parent for name in names if name.endswith(".xml")}
    found = [parent.parent for parent in parents if parent.name == "scenes"]
    if not found:
        raise ValueError(f"{where} holds no assets of LIBERO: a folder scenes with .xml files is expected in it")
    return min(found, key=lambda root: (len(root.parts), str(root)))


def _check_assets(catalogue: Catalogue, benchmark: str, again: str) -> Finding:
    lost = list(dict.fromkeys(file for task in catalogue.tasks(benchmark) for file in catalogue.missing(task)))
    if not lost:
        return Finding("assets", "ok", f"all in {catalogue.assets}")
    folders = collections.Counter(file.split("/")[0] for file in lost)
    counts = ", ".join(f"{count} of {folder}" for folder, count in folders.most_common())
    text = f"{len(lost)} files are not in {catalogue.assets}: {counts}; for example {', '.join(lost[:3])}"
    remedy = f"{ASSETS_ADVICE[benchmark]}; then `{again} --assets FILE_OR_FOLDER`"
    return Finding("assets", "note" if catalogue.assets.is_dir() else "problem", text, remedy)


def _check_drawing(python: Path) -> Finding:
    backend = os.environ.get("MUJOCO_GL", "egl")
    found = check_drawing(backend, python, timeout=120)
    return found._replace(name="drawing", text=f"MUJOCO_GL={backend} {found.text}")


def _check_simulator(home: Path, benchmark: str, suite: str, name: str) -> Finding:
    from kairos_env.sims.libero.env import LiberoEnv

    try:
        env = LiberoEnv(
            suite=suite, task=name, benchmark=benchmark, home=home, camera_size=64, wait_steps=0, time_limit_s=600
        )
        try:
            observation, _ = env.reset(seed=0)
        finally:
            env.close()
    except (RuntimeError, OSError, ValueError) as error:
        return Finding("simulator", "problem", f"{suite}/{name}: {error}")
    spread = min(float(image.std()) for key, image in observation.items() if key.startswith("image_"))
    if spread < 1:
        return Finding("simulator", "problem", f"{suite}/{name}: a blank picture", GL_REMEDY)
    return Finding("simulator", "ok", f"{suite}/{name} starts and draws both cameras")
