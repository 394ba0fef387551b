"""Builds and checks a home of RoboTwin (see `home`): environment, Vulkan, assets, and an episode as proof.

``installed.json`` is written last.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kairos_env.runs import atomic_write, file_sha256, write_json
from kairos_env.sims.findings import Finding
from kairos_env.sims.install import Installation, Step, Wheel, carry_out, open_archive
from kairos_env.sims.robotwin.home import ASSETS_ADVICE, CHECKOUT, REVISION, ROBOT, RoboTwinHome
from kairos_env.sims.robotwin.vulkan import check_vulkan, driver_variables, get_driver

PYTHONS = ((3, 11), (3, 12))  # the task code admits 3.10, too, which Kairos does not

# What RoboTwin imports to simulate and draw, without what it lists for point clouds, its GPU planner and downloads
# (torch, open3d, warp, curobo), hence installed without looking at dependencies. mplib needs NumPy 1.
PACKAGES = {
    "sapien": "3.0.3",
    "mplib": "0.2.1",
    "numpy": "1.26.4",
    "scipy": "1.17.1",
    "toppra": "0.6.10",
    "transforms3d": "0.4.2",
    "trimesh": "5.2.0",
    "gymnasium": "1.4.0",
    "opencv-python-headless": "4.11.0.86",
    "pillow": "13.0.0",
    "pyyaml": "6.0.4",
    "certifi": "2026.10.19.post1",
    "charset-normalizer": "3.5.3",
    "cloudpickle": "3.1.3",
    "contourpy": "1.3.3",
    "cycler": "0.12.1",
    "farama-notifications": "0.0.6",
    "fonttools": "4.68.0",
    "idna": "3.20",
    "kiwisolver": "1.5.1",
    "lxml": "6.1.3",
    "matplotlib": "3.11.2",
    "networkx": "3.6.1",
    "packaging": "26.4",
    "pyparsing": "3.3.3",
    "python-dateutil": "4.0.0",
    "requests": "2.34.2",
    "typing-extensions": "4.16.0",
    "urllib3": "2.8.0",
}
TASK_CODE = Wheel("rlinf-robotwin-runtime", "0.1.3", "4a266a64ca26e8c835d25dc83f5203ac908ae8ba187035c51b81c6aa493cb703")
"""RoboTwin's 50 tasks, their configurations and instructions (MIT). A checkout can take its place."""
_ARCHIVES = ("embodiments.zip", "objects.zip", "background_texture.zip")  # of the published assets
_SMOKE = "stack_blocks_two"  # needs no objects


@dataclass(frozen=True)
class RoboTwinRequest:
    """What to install.

    Attributes:
        home: folder to build; it is made.
        python: interpreter for the environment, 3.11; None is this one, or ``python3.11`` if this one is newer.
        assets: a folder with RoboTwin's assets: the published archives, a folder ``assets`` or what is in it, or only
            robots. Archives are unpacked into the home, else the folder is used where it is. None keeps what there is.
        smoke: play an episode at the end, if there are assets for one.
    """

    home: Path
    python: Path | None = None
    assets: Path | None = None
    smoke: bool = True


def install(request: RoboTwinRequest, say: Callable[[str], None] = lambda text: None, only_plan: bool = False) -> None:
    """Builds a home, or completes or repairs one.

    Args:
        request: what to install.
        say: is told each step before it is made.
        only_plan: tells the steps and changes nothing.

    Raises:
        ValueError: the request cannot be met: another system, versions, folders, files in them.
        RuntimeError: a command failed, or nothing draws; what is wrong is in the message.
        FolderInUse: another process installs into the same home.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ValueError(f"RoboTwin's packages are for Linux on x86_64, this is {sys.platform} on {platform.machine()}")
    home, own = request.home, _installation(request.home)
    steps = own.steps(_interpreter(request), renew=request.python is not None)
    steps.append(Step("a Vulkan driver that draws, of this machine or Mesa's", lambda: _provide_drawing(home)))
    if request.assets is not None:
        given = request.assets
        kind = _kind(given)
        steps.append(Step(f"assets from {given}", lambda: _use_assets(home, given, kind, say)))
    steps.append(own.note(more=lambda: {"driver": "of the home" if (home / "driver").is_dir() else "of the machine"}))
    if request.smoke:
        steps.append(Step(f"an episode of {_SMOKE}", lambda: _play(home, say)))
    carry_out(home, steps, say, only_plan)


def check(home: Path, render: bool = True) -> list[Finding]:
    """How an installation stands; raises nothing for what is missing, because that is what it is for.

    Args:
        home: folder of the installation.
        render: also draw a picture (10 s).
    """
    own = _installation(home)
    findings = own.check([*list(PACKAGES)[:3], *(wheel.name for wheel in own.wheels)])
    if len(findings) == 1:
        return findings
    try:
        there = RoboTwinHome.open(home)
        tasks = there.tasks()
    except (FileNotFoundError, ValueError) as error:
        return [*findings, Finding("tasks", "problem", str(error), own.again)]
    lacking = {task: names for task in tasks if (names := there.missing(task))}
    findings.append(Finding("code", "ok", f"{there.code} ({there.layout})"))
    count = f"{len(tasks)}; {len(tasks) - len(lacking)} have all their assets in {there.assets}"
    advice = ASSETS_ADVICE if lacking else ""
    findings.append(Finding("tasks", "ok" if len(lacking) < len(tasks) else "problem", count, advice))
    for task, names in lacking.items():
        findings.append(Finding(f"  {task}", "note", f"lacks {', '.join(names)}"))
    random = [name for name in there.missing(_SMOKE, "randomized") if name not in there.needs(_SMOKE)]
    text = f"lacks {', '.join(random)}" if random else "has all its assets"
    findings.append(Finding("randomized", "note" if random else "ok", text))
    known = there.official_assets
    revision = f"are revision {REVISION[:8]}" if known else f"do not say that they are revision {REVISION[:8]}"
    official = "" if known else ", so that no result is official"
    findings.append(Finding("originals", "ok" if known else "note", f"the assets {revision}{official}"))
    if render:
        findings.append(check_vulkan(there.python, driver_variables(home / "driver")))
    return findings


def _installation(home: Path) -> Installation:
    """Of the package's task code, or of none where a checkout's is used."""
    code = () if os.environ.get(CHECKOUT) else (TASK_CODE,)
    return Installation("robotwin", home, PACKAGES, code, PYTHONS)


def _interpreter(request: RoboTwinRequest) -> Path:
    if request.python is not None:
        return request.python
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return Path(sys.executable)
    return Path(shutil.which("python3.11") or sys.executable)


def _provide_drawing(home: Path) -> None:
    """Leaves the home with a driver of its own only where the machine's do not draw.

    Raises:
        RuntimeError: nothing draws.
    """
    python, driver = home / "env" / "bin" / "python", home / "driver"
    if check_vulkan(python, driver_variables(driver)).status == "ok":
        return
    get_driver(driver)
    found = check_vulkan(python, driver_variables(driver))
    if found.status != "ok":
        raise RuntimeError(f"{found.text}, even with Mesa's driver for processors in {driver}; {found.remedy}")


def _kind(given: Path) -> str:
    """What a folder holds: ``"archives"``, ``"assets"`` (it is one), ``"parent"`` (of ``assets``) or ``"robots"``.

    Raises:
        ValueError: none of these.
    """
    if not given.is_dir():
        raise ValueError(f"--assets {given} is {'no folder' if given.exists() else 'not there'}. {ASSETS_ADVICE}")
    if any((given / name).is_file() for name in _ARCHIVES):
        return "archives"
    for kind, robots in (("assets", "embodiments"), ("parent", "assets/embodiments"), ("robots", "")):
        if (given / robots / ROBOT / "config.yml").is_file():
            return kind
    raise ValueError(
        f"--assets {given} has neither {', '.join(_ARCHIVES)} nor embodiments/{ROBOT}/config.yml, the robot that "
        f"is supported. {ASSETS_ADVICE}"
    )


def _use_assets(home: Path, given: Path, kind: str, say: Callable[[str], None]) -> None:
    assets = home / "assets"
    if kind == "archives":
        with atomic_write(assets) as fresh:
            sums = {}
            for name in (name for name in _ARCHIVES if (given / name).is_file()):
                say(f"  {name}")
                sums[name] = file_sha256(given / name)
                _unpack(given / name, fresh)
            write_json(fresh / "archives.json", sums)
        return
    if assets.is_dir() and not assets.is_symlink() and kind != "robots":
        raise ValueError(f"{assets} has assets already: remove them first, or use them as they are without --assets")
    if assets.is_symlink():
        assets.unlink()
    if kind != "robots":
        assets.symlink_to(given if kind == "assets" else given / "assets")
        return
    assets.mkdir(exist_ok=True)
    robots = assets / "embodiments"
    if robots.is_symlink():
        robots.unlink()
    if robots.exists():
        raise ValueError(f"{robots} is there already: remove it first, or use it as it is without --assets")
    robots.symlink_to(given)


def _unpack(archive: Path, folder: Path) -> None:
    with open_archive(archive) as (names, opened):
        for name in names:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with opened(name) as packed, file.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)


def _play(home: Path, say: Callable[[str], None]) -> None:
    """Plays an episode with RoboTwin's own expert, as far as there are assets for one.

    Raises:
        RuntimeError: it does not succeed.
    """
    from kairos_env.sims.robotwin.env import RoboTwinEnv

    there = RoboTwinHome.open(home)
    if lacking := there.missing(_SMOKE):
        say(f"  not played: {there.assets} lacks {', '.join(lacking)}. {ASSETS_ADVICE}")
        return
    env = RoboTwinEnv(_SMOKE, home=there, observe_images=False, initial_state=0)
    try:
        _, info = env.reset(seed=0)
        plan, _ = env.expert_plan()
        for action in plan:
            _, _, ended, _, info = env.step(action)
            if ended:
                break
    finally:
        env.close()
    if not info["success"]:
        raise RuntimeError(f"the expert's demonstration of {_SMOKE} does not succeed: the simulation is not RoboTwin's")
    say(f"  {_SMOKE}: success after {info['steps']} actions")
