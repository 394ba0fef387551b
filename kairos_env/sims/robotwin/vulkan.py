"""The Vulkan driver that SAPIEN draws with: the machine's own where one draws, else Mesa's for processors.

The latter comes from the distribution's package ``mesa-vulkan-drivers``, from the mirror that apt is configured for,
with apt's signatures checked. It is unpacked into a folder; no package of the system changes, and nobody need be root.
Debian 12 has the package in its backports; its own one (Mesa 22) does not draw with SAPIEN.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kairos_env.runs import atomic_write, write_json
from kairos_env.sims.findings import Finding, last_line

PACKAGE = "mesa-vulkan-drivers"
REMEDY = "`kairos sims install robotwin` gets a driver for processors (Debian, Ubuntu; elsewhere: Mesa 24 or newer)"
_KEPT = re.compile(
    r"libc6|libgcc-s1|gcc-\d+-base|libstdc\+\+6|libcrypt1|libtinfo6|.*-data|.*-base|tzdata|debconf|dpkg|perl.*"
)
"""Packages of a system without which nothing runs at all; a driver must use the present ones."""


def driver_variables(driver: Path) -> dict[str, str]:
    """Variables that make a process use the driver of a folder; none if there is none: the machine's own is used."""
    manifest = driver / "driver.json"
    if not manifest.is_file():
        return {}
    found = {"VK_ICD_FILENAMES": str(manifest), "VK_DRIVER_FILES": str(manifest), "LP_NUM_THREADS": "1"}
    if folders := (driver / "libraries.txt").read_text(encoding="utf-8").split():
        inherited = os.environ.get("LD_LIBRARY_PATH", "").split(":")
        found["LD_LIBRARY_PATH"] = ":".join(filter(None, [*(str(driver / name) for name in folders), *inherited]))
    return found


def check_vulkan(python: Path, variables: Mapping[str, str], time_limit_s: float = 120.0) -> Finding:
    """Draws a picture in a process of its own: a driver that is wrong may hang, or end its process.

    Args:
        python: RoboTwin's interpreter.
        variables: see `driver_variables`.
        time_limit_s: until it counts as hanging.
    """
    program = Path(__file__).with_name("draw_check.py")
    command = [str(python), "-I", "-W", "ignore", str(program)]
    try:
        done = subprocess.run(
            command, env=os.environ | dict(variables), capture_output=True, text=True, timeout=time_limit_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"no picture within {time_limit_s:g} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        return Finding("drawing", "problem", f"Vulkan: {reason}", REMEDY)
    try:
        seen = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        said = last_line(done.stderr) or f"exit {done.returncode}"
        return Finding("drawing", "problem", f"Vulkan does not draw: {said}", REMEDY)
    red, green, _ = seen["colour"]
    device = seen["device"].splitlines()[0].strip()
    if not (red > 0.4 and green < 0.2):
        return Finding("drawing", "problem", f"Vulkan draws a red box as {seen['colour']} ({device})", REMEDY)
    return Finding("drawing", "ok", f"Vulkan draws ({device})")


def get_driver(driver: Path) -> None:
    """Unpacks Mesa's driver for processors, and what it needs and the machine lacks, into a folder.

    Args:
        driver: its folder, which is replaced.

    Raises:
        RuntimeError: no apt, no such package, or libraries are still missing; the message says what to do.
    """
    for program in ("apt-get", "apt-cache", "dpkg-deb", "ldd"):
        if shutil.which(program) is None:
            raise RuntimeError(f"no device draws with Vulkan here, and there is no {program} to get a driver: {REMEDY}")
    with atomic_write(driver) as fresh:
        apt = _Apt(fresh / "apt")
        apt.unpack([PACKAGE], fresh)
        library = _library(fresh)
        for other in fresh.glob("unpacked/**/libvulkan_*.so"):
            if other != library:
                other.unlink()  # drivers of graphics cards
        folders: list[str] = []
        if _missing_libraries(library, []):
            apt.unpack([name for name in apt.needed() if not _KEPT.fullmatch(name)], fresh)
            folders = sorted({str(path.parent.relative_to(fresh)) for path in fresh.glob("unpacked/**/*.so*")})
        missing = _missing_libraries(library, [fresh / name for name in folders])
        if missing:
            raise RuntimeError(f"{PACKAGE} lacks {', '.join(missing)} here: `apt-get install {PACKAGE}` gets them")
        shutil.rmtree(fresh / "apt")
        (fresh / "libraries.txt").write_text("".join(f"{name}\n" for name in folders), encoding="utf-8")
        target = driver.absolute() / library.relative_to(fresh)
        entry = {"api_version": "1.3.0", "library_path": str(target)}
        write_json(fresh / "driver.json", {"file_format_version": "1.0.0", "ICD": entry})


class _Apt:
    """apt with lists and cache of its own, below a folder, and the system's mirror with its backports or updates."""

    def __init__(self, folder: Path) -> None:
        release = _release()
        mirror, key = _mirror(release), Path(f"/usr/share/keyrings/{release['ID']}-archive-keyring.gpg")
        codename = release["VERSION_CODENAME"]
        for name in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d", "debs"):
            (folder / name).mkdir(parents=True)
        signed = f"[signed-by={key}] " if key.is_file() else ""
        suites = [codename, *([f"{codename}-backports"] if release["ID"] == "debian" else [f"{codename}-updates"])]
        parts = "main" if release["ID"] == "debian" else "main universe"
        (folder / "sources.list").write_text("".join(f"deb {signed}{mirror} {suite} {parts}\n" for suite in suites))
        (folder / "status").touch()
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": folder / "etc/preferences.d",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "1",
            "APT::Default-Release": suites[1],
        }
        self._options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        self._debs = folder / "debs"
        self._run("apt-get", "-qq", "update")

    def needed(self) -> list[str]:
        """Names of the packages that the driver needs on a machine that has none."""
        planned = self._run("apt-get", "-s", "--no-install-recommends", "install", PACKAGE)
        return [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]

    def unpack(self, packages: Sequence[str], into: Path) -> None:
        """Downloads packages, and unpacks them into ``into/unpacked``."""
        self._run("apt-get", "-qq", "download", *packages)
        for package in self._debs.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, into / "unpacked"], check=True, capture_output=True)
            package.unlink()

    def _run(self, program: str, *arguments: str) -> str:
        command = [program, *self._options, *arguments]
        done = subprocess.run(command, cwd=self._debs, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-6:])
            raise RuntimeError(f"`{program} {' '.join(arguments)}` for {PACKAGE} failed:\n  {lines}")
        return done.stdout


def _release() -> dict[str, str]:
    """What /etc/os-release says: ID (debian, ubuntu), VERSION_CODENAME."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    found = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    if found.get("ID") not in ("debian", "ubuntu") or "VERSION_CODENAME" not in found:
        raise RuntimeError(f"no driver is known for {found.get('PRETTY_NAME', 'this system')}: {REMEDY}")
    return found


def _mirror(release: Mapping[str, str]) -> str:
    """Where apt gets the packages of this distribution from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in listed.splitlines():
        site, _, suite = line.partition(" ")
        if suite == release["VERSION_CODENAME"]:
            return site
    raise RuntimeError(f"apt has no source of {release['VERSION_CODENAME']}: {REMEDY}")


def _library(folder: Path) -> Path:
    found = sorted(folder.glob("unpacked/**/libvulkan_lvp.so"))
    if not found:
        raise RuntimeError(f"{PACKAGE} has no libvulkan_lvp.so: {REMEDY}")
    return found[0]


def _missing_libraries(library: Path, folders: Sequence[Path]) -> list[str]:
    paths = ":".join([*map(str, folders), *filter(None, [os.environ.get("LD_LIBRARY_PATH", "")])])
    variables = os.environ | ({"LD_LIBRARY_PATH": paths} if paths else {})
    listed = subprocess.run(["ldd", library], env=variables, capture_output=True, text=True, check=False).stdout
    return [line.split()[0] for line in listed.splitlines() if "not found" in line]
