"""Task files from the benchmarks' own, without running any of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from libero_home import libero_home
from small_benchmark import PERTURBED, TASK, write_benchmark, write_pro

from kairos_env.sims.libero.benchmark_files import BenchmarkFiles
from kairos_env.sims.libero.catalogue import Catalogue
from kairos_env.sims.libero.install import installed_package
from kairos_env.sims.libero.prepare import (
    dimension_of,
    libero_plus_rows,
    libero_pro_rows,
    libero_rows,
    parse_perturbation,
    prepare_tasks,
    prepared_rows,
)
from kairos_env.sims.libero.tasks import DIMENSIONS, PRO_SUITES


@pytest.fixture
def libero(tmp_path: Path) -> BenchmarkFiles:
    return BenchmarkFiles(write_benchmark(tmp_path / "plain", [TASK], plus=False))


@pytest.fixture
def plus(tmp_path: Path) -> Path:
    return write_benchmark(tmp_path / "plus", [f"{TASK}_{suffix}" for suffix in PERTURBED], plus=True)


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
    assert prepare_tasks(home, libero, {"libero-plus": plus}) == {"libero": 1, "libero-plus": 4}
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
    assert prepare_tasks(home, libero, {}) == {"libero": 1, "libero-plus": 4}
    assert {path.name: path.read_bytes() for path in home.glob("*.jsonl")} == before
    assert not list(home.glob(".*partial*"))


def test_prepared_rows_of_the_real_benchmark_say_what_their_names_say() -> None:
    home = libero_home()
    rows = prepared_rows(home, BenchmarkFiles(installed_package(home / "env")))  # compares parameters and names
    assert rows == [json.loads(line) for line in (home / "tasks.jsonl").read_text().splitlines()]
    assert len(rows) == 10030 and all(row["scene"]["scene"] and row["assets"] for row in rows)
    assert all(row["category"] == DIMENSIONS[dimension_of(row["params"])] for row in rows)


def test_files_without_a_classification_have_the_published_one(libero: BenchmarkFiles, plus: Path) -> None:
    (plus / "libero" / "libero" / "benchmark" / "task_classification.json").unlink()
    with pytest.raises(ValueError, match="libero_goal has 4 tasks, LIBERO-plus as it was published has 2591"):
        libero_plus_rows(BenchmarkFiles(plus), libero)


def test_rows_of_libero_pro_name_the_object_that_a_new_one_is_like(libero: BenchmarkFiles, tmp_path: Path) -> None:
    pro = BenchmarkFiles(write_pro(tmp_path / "pro"))
    rows = libero_pro_rows(pro, libero)
    assert len(rows) == 160 and {row["suite"] for row in rows} == set(PRO_SUITES)
    changed = next(row for row in rows if row["suite"] == "libero_goal_object")
    assert changed["category"] == "Object Perturbation" and changed["params"] == {} and changed["difficulty"] is None
    assert changed["scene"]["variants"] == {"green_cup": "red_cup"}
    assert "stable_scanned_objects/green_cup/green_cup.xml" in changed["assets"]
    assert changed["init"] == f"libero_goal_object/{changed['name']}"
    plain = next(row for row in rows if row["suite"] == "libero_goal_lan")
    assert "variants" not in plain["scene"] and plain["instruction_official"] == "Put the  cup on the plate"


@pytest.mark.parametrize(
    ("old", "new"), [('"green_cup"): ...', '"green_cup"): self.spin = 1'), ('obj_name="green', 'obj_name="light_green')]
)
def test_an_object_of_libero_pro_that_does_something_else_is_refused(
    libero: BenchmarkFiles, tmp_path: Path, old: str, new: str
) -> None:
    folder = write_pro(tmp_path / "pro")
    (things,) = folder.rglob("things.py")
    things.write_text(things.read_text().replace(old, new))
    with pytest.raises(ValueError, match="libero_spatial_object/.*: no object of LIBERO behaves like 'green_cup'"):
        libero_pro_rows(BenchmarkFiles(folder), libero)


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
    prepare_tasks(home, libero, {"libero-plus": plus})
    lines = (home / "tasks.jsonl").read_text().splitlines()
    (home / "tasks.jsonl").write_text("\n".join([json.dumps(json.loads(lines[0]) | change), *lines[1:]]))
    with pytest.raises(ValueError, match=f"(?s)line 1: .*{words}"):
        prepared_rows(home, libero)


@pytest.mark.parametrize("suffix", ["", "table", "table_x", "view_0_0_100_0_initstate_1", "rain_3", "table_1_tb_2"])
def test_what_is_no_perturbation_is_refused(suffix: str) -> None:
    with pytest.raises(ValueError, match="does not name a perturbation"):
        parse_perturbation(suffix)
