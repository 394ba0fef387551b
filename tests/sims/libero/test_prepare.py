"""Task files from the benchmarks' own, without running any of them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from libero_home import libero_home
from small_benchmark import PERTURBED, TASK, write_benchmark

from kairos_env.sims.libero.install import installed_package, prepare_tasks
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
