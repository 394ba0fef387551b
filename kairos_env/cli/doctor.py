"""`kairos doctor`: what this machine has, what it lacks, and the command that mends it.

Every check returns findings and none raises, because the doctor is called when something is broken.
For the same reason nothing heavy is imported at the top, and the frames are rendered in processes of
their own: a GL library that is missing or wrong often ends the process instead of raising.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from kairos_env.cli.values import print_json
from kairos_env.sims.findings import GL_REMEDY, Finding, Status, check_drawing, findings_text, last_line

DISTRIBUTION = "kairos-env"
PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
CHECKPOINTS = PACKAGE_FOLDER / "pretrained"
DEFAULT_CHECKPOINT = "kairos-tiny"
GL_BACKENDS = ("egl", "osmesa")


def constraints_file() -> Path | None:
    """The list of tested versions, which a checkout has; None for an installed wheel."""
    path = PACKAGE_FOLDER.parent / "constraints.txt"
    return path if path.is_file() and (PACKAGE_FOLDER.parent / "pyproject.toml").is_file() else None


def tested_versions() -> dict[str, str]:
    """Normalised distribution name -> version in constraints.txt; empty if the file is not there."""
    path = constraints_file()
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    pairs = (line.split("#")[0].strip().split("==") for line in lines)
    return {_normalise(pair[0]): pair[1] for pair in pairs if len(pair) == 2}


def requirements() -> dict[str, list[str]]:
    """Extra name -> its requirement strings; the core's under ``""``.

    Reads the installed metadata, or pyproject.toml where the package runs from a checkout that was
    never installed.
    """
    groups: dict[str, list[str]] = {"": []}
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        project_file = PACKAGE_FOLDER.parent / "pyproject.toml"
        if not project_file.is_file():
            return groups
        import tomllib

        project = tomllib.loads(project_file.read_text(encoding="utf-8"))["project"]
        return {"": project["dependencies"]} | project["optional-dependencies"]
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        groups.setdefault(extra.group(1) if extra else "", []).append(requirement.strip())
    return groups


def check_packages() -> Iterator[Finding]:
    """Python and the core requirements, against their ranges and the tested versions."""
    python_ok = sys.version_info >= (3, 11)
    yield Finding(
        platform.python_implementation(),
        "ok" if python_ok else "problem",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if python_ok else "Kairos needs Python 3.11 or newer: make PYTHON=python3.11 setup",
    )
    tested = tested_versions()
    for requirement in requirements()[""]:
        yield _check_requirement(requirement, tested, missing="problem")


def check_extras() -> Iterator[Finding]:
    """One finding for each extra: complete, or what is missing and the command for it."""
    tested = tested_versions()
    for extra, wanted in sorted(requirements().items()):
        if not extra:
            continue
        found = [_check_requirement(r, tested, missing="note") for r in wanted if _name(r) != DISTRIBUTION]
        lacking = [f"{f.name} ({f.text})" for f in found if f.remedy]
        if lacking:
            yield Finding(extra, "note", "needs " + ", ".join(lacking), _pip(f"'{DISTRIBUTION}[{extra}]'"))
        else:
            yield Finding(extra, "ok", ", ".join(f"{f.name} {f.text}" for f in found))


def check_rendering(backends: Iterable[str] = GL_BACKENDS) -> list[Finding]:
    """One finding for each MuJoCo backend, which draws a frame off-screen; a problem only if none of them works.

    Without MuJoCo, which comes with the extra ``sim``, one note says so.
    """
    if importlib.util.find_spec("mujoco") is None:
        text = "not installed: the simulator is an extra"
        return [Finding("mujoco", "note", text, _pip(f"'{DISTRIBUTION}[sim]'"))]
    chosen = os.environ.get("MUJOCO_GL")
    found = {name: check_drawing(name) for name in (*backends, *filter(None, [chosen]))}
    works = [name for name, finding in found.items() if finding.status == "ok"]
    findings = [finding if name in works else Finding(name, "note", finding.text) for name, finding in found.items()]
    if not works:
        findings.append(Finding("any", "problem", "no backend draws a frame", GL_REMEDY))
    elif chosen and chosen not in works:
        text = f"MUJOCO_GL={chosen} is set, which does not draw here; {' and '.join(works)} would"
        findings.append(Finding("MUJOCO_GL", "problem", text, f"export MUJOCO_GL={works[0]}"))
    elif chosen:
        findings.append(Finding("MUJOCO_GL", "ok", f"{chosen} (set by you)"))
    return findings


def check_device() -> Iterator[Finding]:
    """Processor, memory, and the accelerator that torch sees."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("cpu", "ok", f"{cores} cores, {memory:.0f} GiB memory")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "problem", f"does not import: {last_line(str(error))}", _pip("torch"))
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            text = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
            yield Finding(f"cuda:{index}", "ok", text)
    else:
        text = "none; everything bundled runs on the CPU"
        yield Finding("gpu", "note", text)
    yield check_precision()


def check_precision() -> Finding:
    """What training computes in by default on the best device, and why."""
    import torch

    from kairos_env.training.precision import choose_precision

    precision, why = choose_precision("auto", "cuda" if torch.cuda.is_available() else "cpu")
    return Finding("training", "ok", f"in {precision}: {why}")


def check_engines() -> Iterator[Finding]:
    """Which engines compute attention and the gated delta rule here, and why the others do not."""
    try:
        from kairos_env.world_model.engines import VARIABLES, EngineError, report
    except (ImportError, OSError):
        return  # torch is broken, which `check_device` says
    try:
        statuses = report()
    except EngineError as error:
        yield Finding("chosen", "problem", str(error), f"unset {' '.join(VARIABLES.values())}")
        return
    for status in statuses:
        text = status.reason or "available"
        yield Finding(f"{status.kind} {status.name}", "ok" if status.available else "note", text)


def check_models(root: Path = CHECKPOINTS, needed: str = DEFAULT_CHECKPOINT) -> Iterator[Finding]:
    """The bundled models: the needed one is there, and every tensor file of every one is whole."""
    names = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    for name in sorted(names | {needed}, key=lambda name: (name != needed, name)):
        yield _check_model(root / name)


def _check_model(folder: Path) -> Finding:
    remedy = "check out the repository anew, or train it: kairos train --help"
    tensors = sorted(folder.glob("*.safetensors"))
    if not tensors or not list(folder.glob("*.json")):
        have = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        text = f"pretrained/{folder.name} needs *.json and *.safetensors, but holds {have or 'nothing'}"
        return Finding(folder.name, "problem", text, remedy)
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        return Finding(folder.name, "problem", f"cannot be read: {error}", _pip("safetensors"))
    broken = []
    for path in tensors:
        try:
            with safe_open(path, framework="numpy") as file:
                list(file.keys())
        except (SafetensorError, OSError) as error:
            broken.append(f"{path.name}: {last_line(str(error))}")
    if broken:
        return Finding(folder.name, "problem", "; ".join(broken), remedy)
    size = sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) / 2**20
    return Finding(folder.name, "ok", f"{size:.1f} MiB")


def run(gl_only: bool = False, json: bool = False) -> int:
    """Prints the report; 1 if something that is installed does not work (``--gl-only``: if no frame is rendered).

    Args:
        gl_only: check off-screen rendering and nothing else.
        json: print one JSON list of findings.
    """
    rendering = check_rendering()
    renders = any(finding.status == "ok" for finding in rendering)
    sections = {"Off-screen rendering": rendering}
    if not gl_only:
        python, *packages = check_packages()
        sections = {
            "Python": [python],
            "Packages": packages,
            "Device": [*check_device()],
            "Engines": [*check_engines()],
            "Models": [*check_models()],
            **sections,
            "Extras": [*check_extras()],
        }
    problems = sum(finding.status == "problem" for findings in sections.values() for finding in findings)
    if json:
        print_json([{"section": name} | finding._asdict() for name, found in sections.items() for finding in found])
    else:
        width = max(len(finding.name) for findings in sections.values() for finding in findings)
        for name, findings in sections.items():
            if findings:
                print(f"\n{name}\n{findings_text(findings, width)}")
        if problems:
            verdict = f"{problems} problem(s)."
        elif not renders:
            verdict = "The model works; the simulator is not installed."
        else:
            verdict = "Off-screen rendering works." if gl_only else "Everything that the bundled demo needs works."
        print(f"\n{verdict}")
    return int(problems > 0 or (gl_only and not renders))


def _check_requirement(requirement: str, tested: Mapping[str, str], missing: Status) -> Finding:
    """Compares one requirement string with what is installed; a remedy marks it as not satisfied."""
    name = _name(requirement)
    version = tested.get(_normalise(name), "")
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, missing, "not installed", _pip(f"'{requirement}'"))
    # A local label such as +cpu is another build of the same version.
    public = installed.split("+")[0]
    if not _in_range(requirement, public):
        text = f"{installed}, but {requirement} is needed"
        return Finding(name, missing, text, _pip(f"'{requirement}'"))
    if version and public != version:
        return Finding(name, "note", f"{installed} (tested with {version})")
    return Finding(name, "ok", installed)


def _in_range(requirement: str, version: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # without it ranges cannot be compared; presence was
        return True
    return bool(Requirement(requirement).specifier.contains(version, prereleases=True))


def _pip(what: str) -> str:
    path = constraints_file()
    return f"{sys.executable} -m pip install {f'-c {path} ' if path else ''}{what}"


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match.group(0) if match else requirement


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
