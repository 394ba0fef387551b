"""Building a simulator home: plans, task files, assets, and what is refused. Pip itself is left to `make libero`."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from libero_home import libero_home

from kairos_env.cli import main as cli
from kairos_env.runs import FolderInUse, WriteLock
from kairos_env.sims.install import (
    PACKAGES,
    InstallRequest,
    check,
    install,
    installed_package,
    prepare_tasks,
    use_assets,
    write_config,
)
from kairos_env.sims.libero.prepare import (
    BenchmarkFiles,
    libero_plus_rows,
    libero_rows,
    parse_perturbation,
    prepared_rows,
    read_definition,
    read_init_states,
)
from kairos_env.sims.libero.tasks import Catalogue

TASK = "put_the_cup_on_the_plate"
DEFINITION = """(define (problem LIBERO_Desk) ; a comment (with brackets)
  (:domain robosuite)
  (:language {sentence})
  (:regions (r (:target desk) (:ranges ((0 0 1 1)))))
  (:fixtures
    desk - table
  )
  (:objects
    cup_1 cup_2 - red_cup
    plate_1 - plate{more}
  )
  (:goal (And (On cup_1 plate_1))))
"""
PROBLEMS = """
@register_problem
class Libero_Desk(BDDLBaseDomain):
    def __init__(self, bddl_file_name, *args, **kwargs):
        raise SystemExit("nobody runs this")
        kwargs.update({"scene_xml": "scenes/desk.xml"})
        kwargs.update({"scene_properties": {"floor_style": "light-gray", "wall_style": "white"}})
"""
OBJECTS = """
class GoogleScannedObject(MujocoXMLObject):
    def __init__(self, name, obj_name): ...

class RedCup(GoogleScannedObject):
    def __init__(self, name="red_cup", obj_name="cup_red"): ...

class Plate(GoogleScannedObject):
    def __init__(self, name="plate", obj_name="plate"): ...
"""
# what LIBERO-plus adds
PROBLEMS_PLUS = """
class Libero_Desk_Stone(Libero_Desk):
    def __init__(self, bddl_file_name, *args, **kwargs):
        kwargs.update({"scene_xml": "scenes/desk_stone.xml"})
"""
OBJECTS_PLUS = """
class AlarmClock_1(CustomObjects):
    def __init__(self, name="alarm_clock__1", obj_name="alarm_clock__1"):
        path = os.path.join(str(absolute_path), f"assets/new_objects/clock/clock.xml")
"""
PERTURBED = {
    "table_1": ("Background Textures", 2),
    "view_0_15_100_2_352_initstate_0": ("Camera Viewpoints", 3),
    "language_3_view_0_0_100_0_0_initstate_0": ("Language Instructions", 5),
    "add_4": ("Objects Layout", None),
}


def write_benchmark(folder: Path, names: list[str], plus: bool) -> Path:
    """A small benchmark in the layout of LIBERO's repository."""
    package = folder / "libero" / "libero"
    for part in ("benchmark", "bddl_files/libero_goal", "init_files/libero_goal", "envs/problems", "envs/objects"):
        (package / part).mkdir(parents=True)
    (package / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = { ({'libero_goal': names}) }\n")
    (package / "envs" / "problems" / "desk.py").write_text(PROBLEMS + (PROBLEMS_PLUS if plus else ""))
    (package / "envs" / "objects" / "things.py").write_text(OBJECTS + (OBJECTS_PLUS if plus else ""))
    states = np.arange(12.0).reshape(3, 4)
    torch.save(states, package / "init_files" / "libero_goal" / f"{TASK}.pruned_init")
    (package / "bddl_files" / "libero_goal" / f"{TASK}.bddl").write_text(
        DEFINITION.format(sentence="Put the  cup on the plate", more="")
    )
    if plus:
        own = package / "init_files" / "libero_newobj" / "libero_goal"
        own.mkdir(parents=True)
        torch.save(states[0], own / f"{TASK}_add_4.pruned_init")
        for name, sentence, more in (
            (f"{TASK}_table_1", "Put the cup", ""),
            (f"{TASK}_language_3", "Now  be Kind", ""),
            (f"{TASK}_add_4", "Put the cup", "\n    c - alarm_clock__1"),
        ):
            text = DEFINITION.format(sentence=sentence, more=more)
            text = text.replace("LIBERO_Desk", "Libero_Desk_Stone") if "table" in name else text
            (package / "bddl_files" / "libero_goal" / f"{name}.bddl").write_text(text)
        entries = [
            {"id": i, "name": f"{TASK}_{suffix}", "category": category, "difficulty_level": level}
            for i, (suffix, (category, level)) in enumerate(PERTURBED.items(), start=1)
        ]
        (package / "benchmark" / "task_classification.json").write_text(json.dumps({"libero_goal": entries}))
    return folder


@pytest.fixture
def libero(tmp_path: Path) -> BenchmarkFiles:
    return BenchmarkFiles(write_benchmark(tmp_path / "plain", [TASK], plus=False))


@pytest.fixture
def plus(tmp_path: Path) -> Path:
    return write_benchmark(tmp_path / "plus", [f"{TASK}_{suffix}" for suffix in PERTURBED], plus=True)


# -- task files -----------------------------------------------------------------------------------------------------


def test_rows_come_from_the_benchmarks_files_without_running_them(libero: BenchmarkFiles, plus: Path) -> None:
    (row,) = libero_rows(libero)
    assert row["scene"] == {"scene": "scenes/desk.xml", "floor": "light-gray", "wall": "white"}
    assert row["assets"] == [
        "scenes/desk.xml",
        "textures/light-gray-floor-tile.png",
        "textures/white_wall.png",
        "stable_scanned_objects/cup_red/cup_red.xml",
        "stable_scanned_objects/plate/plate.xml",
    ]
    table, camera, language, layout = libero_plus_rows(BenchmarkFiles(plus), libero)
    assert [r["task_id"] for r in (table, camera, language, layout)] == [0, 1, 2, 3]
    assert table["base_problem"] == "Libero_Desk" and table["problem"] == "Libero_Desk_Stone"
    assert table["scene"] == {"scene": "scenes/desk_stone.xml", "floor": "light-gray", "wall": "white"}
    assert camera["bddl"] == f"libero_goal/{TASK}.bddl" and camera["params"]["view"] == [0, 15, 100, 2, 352]
    assert language["instruction_official"] == "Now  be Kind" and language["difficulty"] == 5
    assert language["init"] == f"libero_goal/{TASK}" and layout["init"] == f"libero_goal/{TASK}_add_4"
    assert "new_objects/clock/clock.xml" in layout["assets"] and layout["difficulty"] is None


def test_a_home_from_a_checkout_and_again_from_itself(libero: BenchmarkFiles, plus: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert prepare_tasks(home, libero, plus) == {"libero": 1, "libero-plus": 4}
    catalogue = Catalogue.open(home)
    task = catalogue.task("libero-plus", "libero_goal", 0, "language_3_view_0_0_100_0_0_initstate_0")
    assert task.instructions == {
        "official": "now be kind",
        "bddl": "now be kind",
        "base": "put the cup on the plate",
    }
    assert catalogue.init_states(task).shape == (3, 4)
    assert catalogue.init_states(catalogue.task("libero-plus", "libero_goal", 0, "add_4")).shape == (1, 4)
    assert all(catalogue.bddl_path(task).is_file() for task in catalogue.tasks("libero-plus"))
    before = {path.name: path.read_bytes() for path in home.glob("*.jsonl")}
    assert prepare_tasks(home, libero, None) == {"libero": 1, "libero-plus": 4}
    assert {path.name: path.read_bytes() for path in home.glob("*.jsonl")} == before
    assert not list(home.glob(".*partial*"))


def test_prepared_rows_of_the_real_benchmark_say_what_their_names_say() -> None:
    home = libero_home()
    rows = prepared_rows(home, BenchmarkFiles(installed_package(home / "env")))  # compares parameters and names
    assert rows == [json.loads(line) for line in (home / "tasks.jsonl").read_text().splitlines()]
    assert len(rows) == 10030 and all(row["scene"]["scene"] and row["assets"] for row in rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"params": {"kind": "table", "index": 2}}, "does not say"),
        ({"category": "Weather"}, "'Weather'"),
        ({"name": None}, "AttributeError"),
        ({"bddl": "libero_goal/nothing.bddl"}, "nothing.bddl is not there"),
    ],
)
def test_a_wrong_prepared_row_is_named(
    libero: BenchmarkFiles, plus: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    prepare_tasks(home, libero, plus)
    lines = (home / "tasks.jsonl").read_text().splitlines()
    (home / "tasks.jsonl").write_text("\n".join([json.dumps(json.loads(lines[0]) | change), *lines[1:]]))
    with pytest.raises(ValueError, match=f"(?s)line 1: .*{words}"):
        prepared_rows(home, libero)


@pytest.mark.parametrize("suffix", ["", "table", "table_x", "view_0_0_100_0_initstate_1", "rain_3", "table_1_tb_2"])
def test_what_is_no_perturbation_is_refused(suffix: str) -> None:
    with pytest.raises(ValueError, match="does not name a perturbation"):
        parse_perturbation(suffix)


def test_a_folder_that_is_no_benchmark_is_refused(tmp_path: Path, libero: BenchmarkFiles) -> None:
    with pytest.raises(ValueError, match="libero_suite_task_map.py"):
        BenchmarkFiles(tmp_path)
    with pytest.raises(ValueError, match="only LIBERO-plus has it"):
        libero_plus_rows(libero, libero)
    (tmp_path / "a.bddl").write_text("(define (domain x))")
    with pytest.raises(ValueError, match="a.bddl is not a task definition"):
        read_definition(tmp_path / "a.bddl")


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/kairos-was-here",)


@pytest.mark.parametrize("what", [Evil(), {"a": 1}, np.array(["x"]), np.arange(3)], ids=["code", "dict", "text", "int"])
def test_initial_states_are_numbers_or_nothing(tmp_path: Path, what: object) -> None:
    torch.save(what, tmp_path / "x.pruned_init")
    with pytest.raises(ValueError, match="x.pruned_init holds"):
        read_init_states(tmp_path / "x.pruned_init")
    (tmp_path / "y.pruned_init").write_bytes(pickle.dumps(np.zeros(3), protocol=2))
    with pytest.raises(ValueError, match="y.pruned_init holds no initial states"):
        read_init_states(tmp_path / "y.pruned_init")
    assert not Path("/tmp/kairos-was-here").exists()


# -- assets ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", ["../evil.xml", "assets/../../evil.xml", "/tmp/kairos-evil.xml"])
def test_an_archive_that_writes_elsewhere_is_refused(tmp_path: Path, write: object, name: str) -> None:
    archive = write(tmp_path / "archive", ["assets/scenes/a.xml", name])  # type: ignore[operator]
    (tmp_path / "home").mkdir()
    with pytest.raises(ValueError, match="outside its folder"):
        use_assets(tmp_path / "home", archive)
    assert list(tmp_path.rglob("*.xml")) == [] and not Path("/tmp/kairos-evil.xml").exists()


def test_an_archive_with_links_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("scenes/a.xml")
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "archive", "w") as packed:
        packed.addfile(entry)
    with pytest.raises(ValueError, match="links or devices"):
        use_assets(tmp_path, tmp_path / "archive")


def test_what_holds_no_assets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a folder nor a zip or tar"):
        use_assets(tmp_path, tmp_path / "text")
    for source in (tmp_path / "empty", write_zip(tmp_path / "z", ["a/b.xml"])):
        with pytest.raises(ValueError, match="holds no assets of LIBERO"):
            use_assets(tmp_path, source)


# -- plans and checks -----------------------------------------------------------------------------------------------


def plan(request: InstallRequest) -> list[str]:
    told: list[str] = []
    install(request, told.append, only_plan=True)
    assert not request.home.exists() or not (request.home / ".lock").exists()
    return told


def test_a_plan_for_a_new_home(tmp_path: Path, plus: Path) -> None:
    told = plan(InstallRequest("libero-plus", tmp_path / "home", mujoco="3.3.2", source=plus, assets=tmp_path))
    assert [line.split(":")[0].split(" ")[0] for line in told] == ["a", "packages", "task", "assets", "configuration,"]
    assert "numpy==2.2.6, mujoco==3.3.2" in told[1] and f"{len(PACKAGES) - 4} more" in told[1]
    assert not (tmp_path / "home").exists()


def test_a_plan_for_a_finished_home_installs_nothing(tmp_path: Path) -> None:
    home = libero_home()
    told = plan(InstallRequest("libero-plus", home))
    assert [line.split()[0] for line in told] == ["task", "configuration,"]
    assert f"of LIBERO-plus from {home}" in told[0]
    assert "packages: mujoco==3.3.2" in plan(InstallRequest("libero", home, mujoco="3.3.2"))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (InstallRequest("libreo", Path("home")), "no simulator 'libreo'"),
        (InstallRequest("libero", Path("home"), mujoco="3.9"), "give a whole version"),
        (InstallRequest("libero", Path("home"), mujoco="4.0.0"), "runs with 3.2 to 3.8"),
        (InstallRequest("libero-plus", Path("home")), "git clone"),
        (InstallRequest("libero-plus", Path("home"), source=Path("nowhere")), "--benchmark nowhere is not there"),
        (InstallRequest("libero", Path("home"), assets=Path("nowhere")), "--assets nowhere is not there"),
        (InstallRequest("libero", Path("home"), python=Path("nowhere")), "no Python interpreter that runs"),
        (InstallRequest("libero-plus", Path("home"), source=Path()), "no folder of LIBERO"),
    ],
)
def test_requests_that_cannot_be_met(
    request_: InstallRequest, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        install(request_)
    assert list(tmp_path.iterdir()) == []


def fake_python(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is Python 3\.10; the simulator's packages need 3\.11, 3\.12 or 3\.13"):
        install(InstallRequest("libero", tmp_path / "home", python=fake_python(tmp_path / "python", "echo 3 10")))


def test_a_step_that_fails_shows_the_end_of_its_output(tmp_path: Path) -> None:
    python = fake_python(tmp_path / "python", 'case "$*" in *venv*) echo No space left; exit 3;; esac; echo 3 11')
    told: list[str] = []
    with pytest.raises(RuntimeError, match="(?s)venv.*python3-venv.*No space left"):
        install(InstallRequest("libero", tmp_path / "home", python=python), told.append)
    assert len(told) == 1 and not (tmp_path / "home" / "installed.json").exists()


def test_two_installations_do_not_meet(tmp_path: Path) -> None:
    with WriteLock(tmp_path), pytest.raises(FolderInUse, match="another process .* is installing into"):
        install(InstallRequest("libero", tmp_path, python=Path(sys.executable)))


def test_config_is_what_libero_reads(tmp_path: Path) -> None:
    home = tmp_path / 'a "quoted" folder'
    home.mkdir()
    write_config(home, Path("/package"))
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((home / "config" / "config.yaml").read_text())
    assert found.keys() == {"benchmark_root", "bddl_files", "init_states", "datasets", "assets"}
    assert found["bddl_files"] == str(home / "bddl") and found["benchmark_root"] == "/package"


def test_check_of_nothing_names_the_command(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, "libero")
    assert finding.status == "problem" and finding.remedy == f"kairos sims install libero --home {tmp_path}"


def test_check_counts_what_can_be_run() -> None:
    findings = {finding.name.strip(): finding for finding in check(libero_home(), "libero-plus", render=False)}
    assert findings["tasks"].text == "10030; 7045 have all their assets"
    assert findings["camera"].text == "1599 of 1599 can be run" and findings["camera"].status == "ok"
    assert findings["light"].text == "0 of 1142 can be run" and findings["light"].status == "note"
    assert "1506 of scenes" in findings["assets"].text and "assets.zip" in findings["assets"].remedy
    assert findings["packages"].status == "ok" and "hf-libero 0.1.4" in findings["packages"].text


@pytest.mark.slow
def test_check_draws_a_frame_of_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = check(libero_home(), "libero")
    assert findings[-1].name == "simulator" and [f.name for f in findings if f.status == "problem"] == []
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    found = check(libero_home(), "libero")[-1]
    assert found.status == "problem" and "nonsense" in found.text and "apt-get" in found.remedy


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAIROS_SIMS", str(tmp_path))
    assert cli.main(["sims", "list"]) == 0
    assert "not installed: kairos sims install libero-plus" in capsys.readouterr().out
    assert cli.main(["sims", "check", "libero"]) == 1
    assert f"kairos sims install libero --home {tmp_path / 'libero'}" in capsys.readouterr().out
    assert cli.main(["sims", "install", "libero", "--dry-run"]) == 0
    assert f"- a virtual environment of {sys.executable} in {tmp_path / 'libero' / 'env'}" in capsys.readouterr().out
    assert cli.main(["sims", "install", "libero-plus"]) == 2
    assert "git clone" in capsys.readouterr().err
    assert cli.main(["sims", "list", "--home", str(libero_home())]) == 0
    assert "10030 tasks in 4 suites, 7045 with all assets" in capsys.readouterr().out
