"""Environments of simulators: archives that stay inside, steps one after another, what is missing."""

from __future__ import annotations

import io
import stat
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kairos_env.runs import FolderInUse, WriteLock
from kairos_env.sims.install import Step, carry_out, check_environment, environment_steps, open_archive, wrong_packages

LINK = tarfile.TarInfo("scenes/a.xml")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"


def pack(path: Path, names: list[str], kind: str) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                packed.writestr(name, "abc")
    else:
        with tarfile.open(path, "w:xz") as tape:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = 3
                tape.addfile(entry, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_files_of_an_archive_can_be_read(tmp_path: Path, kind: str) -> None:
    with open_archive(pack(tmp_path / "archive", ["a/b.xml", "c.png"], kind)) as (names, opened):
        assert sorted(names) == ["a/b.xml", "c.png"]
        assert opened("c.png").read() == b"abc"


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../evil.xml", "assets/../../evil.xml", "/tmp/kairos-evil.xml"])
def test_an_archive_that_writes_elsewhere_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    archive = pack(tmp_path / "archive", ["assets/scenes/a.xml", name], kind)
    with pytest.raises(ValueError, match="outside its folder"), open_archive(archive):
        pass


def test_an_archive_with_links_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive", "w") as packed:
        packed.addfile(LINK)
    with pytest.raises(ValueError, match="links or devices"), open_archive(tmp_path / "archive"):
        pass


def test_steps_are_said_and_made_one_process_at_a_time(tmp_path: Path) -> None:
    told: list[str] = []
    steps = [Step("one", lambda: told.append("made one")), Step("two", lambda: told.append("made two"))]
    carry_out(tmp_path / "home", steps, told.append, only_plan=True)
    assert told == ["one", "two"] and not (tmp_path / "home").exists()
    told.clear()
    carry_out(tmp_path / "home", steps, told.append)
    assert told == ["one", "made one", "two", "made two"]
    with WriteLock(tmp_path), pytest.raises(FolderInUse, match="another process .* is installing into"):
        carry_out(tmp_path, steps, told.append)


def fake_python(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_an_environment_that_is_not_there_is_planned(tmp_path: Path) -> None:
    steps = environment_steps(tmp_path / "env", Path(sys.executable), {"numpy": "2.2.6"}, renew=False)
    assert [step.text.split()[0] for step in steps] == ["a", "packages:"] and "numpy==2.2.6" in steps[1].text
    old = fake_python(tmp_path / "python", "echo 3 10")
    with pytest.raises(ValueError, match=r"is Python 3\.10; the simulator's packages need 3\.11, 3\.12 or 3\.13"):
        environment_steps(tmp_path / "env", old, {}, renew=False)
    (finding,) = check_environment(tmp_path / "env", {}, [], "kairos sims install x")
    assert (finding.status, finding.remedy) == ("problem", "kairos sims install x")
    assert wrong_packages({"packages": {"a": "1", "b": "2"}}, {"a": "1", "b": "3", "c": "1"}) == ["b", "c"]
