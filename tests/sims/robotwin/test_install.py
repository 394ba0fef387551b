"""Building a home of RoboTwin: plans, assets, and what is refused. Pip itself is left to `make robotwin`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from robotwin_home import ROBOTS, robotwin_home

from kairos_env.cli import main as cli
from kairos_env.sims.robotwin import install as module
from kairos_env.sims.robotwin.install import PACKAGES, RoboTwinRequest, check, install


def robots(folder: Path) -> Path:
    (folder / "aloha-agilex").mkdir(parents=True)
    (folder / "aloha-agilex" / "config.yml").write_text("robot: yes")
    return folder


def plan(request: RoboTwinRequest) -> list[str]:
    told: list[str] = []
    install(request, told.append, only_plan=True)
    return told


def test_a_plan_for_a_new_home(tmp_path: Path) -> None:
    told = plan(RoboTwinRequest(tmp_path / "home", assets=robots(tmp_path / "robots")))
    first = ["a virtual", "packages: sapien==3.0.3,", "packages: the", "a Vulkan", "assets from", "a note", "an epi"]
    assert [line[: len(start)] for line, start in zip(told, first, strict=True)] == first
    assert f"{len(PACKAGES) - 4} more" in told[1] and "rlinf-robotwin-runtime 0.1.3" in told[2]
    assert not (tmp_path / "home").exists()


def test_a_plan_for_a_finished_home_installs_nothing() -> None:
    assert [line.split()[1] for line in plan(RoboTwinRequest(robotwin_home(), smoke=False))] == ["Vulkan", "note"]


def test_requests_that_cannot_be_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="neither embodiments.zip.* nor embodiments/aloha-agilex/config.yml"):
        plan(RoboTwinRequest(tmp_path / "home", assets=tmp_path))
    with pytest.raises(
        ValueError, match=r"--assets nowhere is not there\. RoboTwin's robots and objects are on the hub"
    ):
        plan(RoboTwinRequest(tmp_path / "home", assets=Path("nowhere")))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3 12\n")
    python.chmod(0o755)
    with pytest.raises(ValueError, match=r"is Python 3\.12; the simulator's packages need 3\.11: add --python"):
        plan(RoboTwinRequest(tmp_path / "home", python=python))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(ValueError, match="for Linux on x86_64, this is linux on aarch64"):
        plan(RoboTwinRequest(tmp_path / "home"))


@pytest.mark.parametrize("kind", ["robots", "assets", "parent"])
def test_folders_of_assets_are_used_where_they_are(kind: str, tmp_path: Path) -> None:
    below = {"robots": "", "assets": "embodiments", "parent": "assets/embodiments"}[kind]
    given, home = tmp_path / "given", tmp_path / "home"
    robots(given / below)
    home.mkdir()
    assert module._kind(given) == kind
    for _ in range(2):  # again is no error
        module._use_assets(home, given, kind, lambda text: None)
        assert (home / "assets" / "embodiments" / "aloha-agilex" / "config.yml").is_file()
    assert (home / "assets").is_symlink() != (kind == "robots")


def test_published_archives_are_unpacked(tmp_path: Path) -> None:
    home, given = tmp_path / "home", tmp_path / "given"
    given.mkdir()
    home.mkdir()
    for name, file in (("embodiments", "embodiments/aloha-agilex/config.yml"), ("objects", "objects/041_shoe/a.glb")):
        with zipfile.ZipFile(given / f"{name}.zip", "w") as packed:
            packed.writestr(file, "content")
    told: list[str] = []
    module._use_assets(home, given, module._kind(given), told.append)
    assert [line.strip() for line in told] == ["embodiments.zip", "objects.zip"]
    assert (home / "assets" / "objects" / "041_shoe" / "a.glb").read_text() == "content"
    with zipfile.ZipFile(given / "objects.zip", "w") as packed:
        packed.writestr("../outside", "content")
    with pytest.raises(ValueError, match="wants to write outside"):
        module._use_assets(home, given, "archives", told.append)
    assert (home / "assets" / "objects").is_dir()  # the old ones are still there


def test_check_names_what_each_task_lacks(tmp_path: Path) -> None:
    (finding,) = check(tmp_path)
    assert finding.status == "problem" and finding.remedy == f"kairos sims install robotwin --home {tmp_path}"
    findings = {finding.name.strip(): finding for finding in check(robotwin_home(), render=False)}
    assert findings["tasks"].text.startswith("50; 5 have all their assets")
    assert findings["place_can_basket"].text == "lacks objects/071_can, objects/110_basket"
    assert "stack_blocks_two" not in findings
    assert findings["originals"].status == "note" and "no result is official" in findings["originals"].text
    assert "background_texture/seen" in findings["randomized"].text
    assert findings["packages"].text.startswith("sapien 3.0.3, mplib 0.2.1, numpy 1.26.4, rlinf-robotwin-runtime 0.1.3")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAIROS_SIMS", str(tmp_path))
    assert cli.main(["sims", "list"]) == 0
    assert "not installed: kairos sims install robotwin" in capsys.readouterr().out
    assert cli.main(["sims", "check", "robotwin"]) == 1
    assert f"kairos sims install robotwin --home {tmp_path / 'robotwin'}" in capsys.readouterr().out
    assert cli.main(["sims", "install", "robotwin", "--mujoco", "3.3.2"]) == 2
    assert "--mujoco is LIBERO's" in capsys.readouterr().err
    if ROBOTS.is_dir():
        assert cli.main(["sims", "install", "robotwin", "--assets", str(ROBOTS), "--dry-run"]) == 0
        assert f"- assets from {ROBOTS}" in capsys.readouterr().out
    assert cli.main(["sims", "list", "--home", str(robotwin_home())]) == 0
    assert "50 tasks, 5 with all assets" in capsys.readouterr().out
