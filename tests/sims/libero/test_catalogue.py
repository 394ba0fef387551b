"""The catalogue of a home, against the benchmarks' published counts and their own code."""

from __future__ import annotations

import collections
import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from libero_home import libero_home

from kairos_env.sims.libero.catalogue import Catalogue, home_folder
from kairos_env.sims.libero.styles import texture_file
from kairos_env.sims.libero.tasks import DIMENSIONS, PRO_DIMENSIONS, PRO_SUITES, SUITES, instruction_of_name

# LIBERO-plus's task_classification.json: spatial, object, goal, 10
COUNTS = {
    "camera": (376, 396, 408, 419),
    "robot": (350, 398, 409, 393),
    "language": (390, 354, 410, 383),
    "light": (292, 297, 279, 274),
    "background": (258, 248, 281, 289),
    "noise": (351, 422, 379, 449),
    "layout": (385, 403, 425, 312),
}
SOUP = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.open(libero_home())


def in_simulator(catalogue: Catalogue, program: str, *arguments: str) -> object:
    """What a program prints as JSON, run by the simulator's interpreter."""
    command = [str(catalogue.home / "env" / "bin" / "python"), "-I", "-c", program, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_liberos_suites_are_in_the_benchmarks_own_order(catalogue: Catalogue) -> None:
    program = (
        "import glob, json, runpy, sys; found = runpy.run_path(glob.glob(sys.argv[1])[0])\n"
        "print(json.dumps(found['libero_task_map']))"
    )
    pattern = str(catalogue.home / "env/lib/python3*/site-packages/libero/libero/benchmark/libero_suite_task_map.py")
    known = in_simulator(catalogue, program, pattern)
    assert isinstance(known, dict)
    for suite in SUITES:
        tasks = catalogue.tasks("libero", [suite])
        assert [task.name for task in tasks] == known[suite]
        assert [task.index for task in tasks] == list(range(90 if suite == "libero_90" else 10))
        assert all(catalogue.task("libero", suite, task.index) is task for task in tasks)
    assert len(catalogue.tasks("libero")) == 130


def test_libero_plus_has_the_published_numbers_of_tasks(catalogue: Catalogue) -> None:
    tasks = catalogue.tasks("libero-plus")
    found = collections.Counter((task.dimension, task.suite) for task in tasks)
    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    assert found == {(dim, suite): n for dim, row in COUNTS.items() for suite, n in zip(suites, row)}
    assert len(tasks) == len({task.key for task in tasks}) == 10030
    unrated = [task for task in tasks if task.difficulty is None]
    assert len(unrated) == 121 and {task.dimension for task in unrated} == {"light"}
    assert {task.difficulty for task in tasks} == {None, 1, 2, 3, 4, 5}
    for suite in suites:
        of_suite = [task.index for task in tasks if task.suite == suite]
        assert of_suite == list(range(len(of_suite)))


def test_libero_pro_has_sixteen_suites_of_ten(catalogue: Catalogue) -> None:
    tasks = catalogue.tasks("libero-pro")
    assert collections.Counter(task.suite for task in tasks) == dict.fromkeys(PRO_SUITES, 10)
    assert {task.dimension for task in tasks} == set(PRO_DIMENSIONS)
    assert len(catalogue.tasks("libero-pro", dimensions=["position"])) == 40
    for task in tasks:
        plain = catalogue.task("libero", task.base_suite, task.index)
        assert (task.name, task.index, task.base_suite) == (plain.name, plain.index, plain.suite)
        assert catalogue.init_states(task).shape[0] == 50
    with pytest.raises(ValueError, match="libero-pro has no dimension 'camera'; legal:"):
        catalogue.tasks("libero-pro", dimensions=["camera"])


def test_libero_pros_instructions_are_its_definitions(catalogue: Catalogue) -> None:
    """Its code makes them of file names, which are LIBERO's: then nothing would be perturbed (its issue 14)."""
    tasks = catalogue.tasks("libero-pro")
    assert all(task.instructions["official"] == task.instructions["bddl"] for task in tasks)
    said = {task.key: task.instructions for task in tasks}
    semantic = said["libero_goal_lan/turn_on_the_stove"]
    assert (semantic["official"], semantic["base"]) == ("switch on the stove", "turn on the stove")
    assert said["libero_goal_task/turn_on_the_stove"]["official"] == "turn off the stove"


def test_a_name_that_several_suites_have_stays_in_its_suite(catalogue: Catalogue) -> None:
    assert catalogue.suite_of("libero-pro", "turn_on_the_stove", "libero_goal_task") == "libero_goal_task"
    assert catalogue.suite_of("libero-pro", "turn_on_the_stove", "libero_10_lan") == "libero_goal_lan"
    assert catalogue.suite_of("libero", "turn_on_the_stove", "libero_object") == "libero_goal"
    assert catalogue.suite_of("libero", "no such task", "libero_object") == "libero_object"


def test_filters(catalogue: Catalogue) -> None:
    tasks = catalogue.tasks("libero-plus", ["libero_goal"], ["Camera Viewpoints", "noise"], [1, 2])
    assert tasks and all(t.suite == "libero_goal" and t.dimension in ("camera", "noise") for t in tasks)
    assert {t.difficulty for t in tasks} == {1, 2}
    assert len(catalogue.tasks("libero-plus", difficulties=[None])) == 121


def test_sentences_are_what_liberos_own_reader_gives(catalogue: Catalogue, tmp_path: Path) -> None:
    # hf-libero's bddl_utils joins the words that bddl.parsing gives it
    program = (
        "import json, sys; from bddl.parsing import scan_tokens\n"
        "print(json.dumps([' '.join(next(g[1:] for g in scan_tokens(filename=f) if g[0] == ':language'))"
        " for f in open(sys.argv[1]).read().split()]))"
    )
    tasks = catalogue.tasks("libero") + catalogue.tasks("libero-plus", dimensions=["language"])
    listed = tmp_path / "listed.txt"
    listed.write_text("\n".join(str(catalogue.bddl_path(task)) for task in tasks))
    assert in_simulator(catalogue, program, str(listed)) == [task.instructions["bddl"] for task in tasks]
    assert all(t.instructions["official"] == t.instructions["bddl"] for t in tasks if t.dimension == "language")


def test_official_instruction_tells_the_perturbation(catalogue: Catalogue) -> None:
    tasks = catalogue.tasks("libero-plus")
    leaking = [t for t in tasks if t.instructions["official"] == f"{t.instructions['base']} {spaced(t.perturbation)}"]
    assert len(leaking) == 8493 == 10030 - sum(COUNTS["language"])
    plain = catalogue.task("libero", "libero_10", 4)
    assert plain.instructions["official"] == plain.instructions["base"] == instruction_of_name(plain.name)
    assert plain.instructions["base"][0].islower() and "SCENE" not in plain.instructions["base"]


def spaced(text: str) -> str:
    return text.replace("_", " ")


@pytest.mark.parametrize(
    ("suite", "perturbation", "params"),
    [
        ("libero_object", "table_1", {"kind": "table", "index": 1}),
        ("libero_object", "light_1", {"kind": "light", "index": 1}),
        ("libero_object", "level2_sample2", {"level": 2, "sample": 2}),
        ("libero_goal", "moved_level1_sample1", {"level": 1, "sample": 1}),
        ("libero_10", "add_18", {"kind": "add", "index": 18}),
        ("libero_spatial", "tb_3", {"kind": "tb", "index": 3}),
        ("libero_spatial", "view_314_0_100_0_0_initstate_0", {"view": [314, 0, 100, 0, 0], "robot": 0, "noise": 0}),
        ("libero_spatial", "view_0_0_100_0_0_initstate_351", {"view": [0, 0, 100, 0, 0], "robot": 351, "noise": 0}),
        ("libero_spatial", "view_0_0_100_0_0_initstate_0_noise_3", {"view": [0, 0, 100, 0, 0], "robot": 0, "noise": 3}),
        (
            "libero_spatial",
            "language_34_view_0_0_100_0_0_initstate_0",
            {"language": 34, "view": [0, 0, 100, 0, 0], "robot": 0, "noise": 0},
        ),
    ],
)
def test_a_perturbation_of_a_base_task(catalogue: Catalogue, suite: str, perturbation: str, params: dict) -> None:
    for base in catalogue.tasks("libero", [suite]):
        name = f"{base.name}_{perturbation}"
        if any(task.name == name for task in catalogue.tasks("libero-plus", [suite])):
            break
    else:
        pytest.fail(f"no task of {suite} has {perturbation}")
    found = catalogue.task("libero-plus", suite, base.index, perturbation)
    assert found.name == name and found.perturbation == perturbation and found.params == params
    assert found == catalogue.task("libero-plus", suite, base.name, perturbation)
    assert found == catalogue.task("libero-plus", suite, name)
    assert found == catalogue.task("libero-plus", suite, found.index)
    assert found == catalogue.task("libero-plus", suite, name, perturbation)
    assert catalogue.bddl_path(found).is_file() and hash(found) == hash(dataclasses.replace(found))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("libero_plus", "libero_object", 0), "did you mean 'libero-plus'"),
        (("libero", "libero_objects", 0), "did you mean 'libero_object'"),
        (("libero-plus", "libero_90", 0), "no suite 'libero_90'"),
        (("libero", "libero_object", 10), "0 ... 9, not 10"),
        (("libero", "libero_object", -1), "0 ... 9, not -1"),
        (("libero-plus", "libero_object", 2518), "0 ... 2517, not 2518"),
        (("libero", "libero_object", SOUP.replace("soup", "soop")), f"did you mean '{SOUP}'"),
        (("libero-plus", "libero_object", 0, "table_999"), "did you mean 'table_"),
        (("libero-plus", "libero_object", SOUP, "rain"), "no perturbation 'rain'; legal:"),
        (("libero-plus", "libero_object", 11, "table_1"), "0 ... 9, not 11"),
        (("libero", "libero_object", 0, "table_1"), "only tasks of the benchmark 'libero-plus'"),
        (("libero-pro", "libero_object_swap", 0, "table_1"), "LIBERO-Pro has a suite for each kind"),
        (("libero-pro", "libero_object", 0), "libero-pro has no suite 'libero_object'"),
    ],
)
def test_wrong_names_are_answered_with_the_right_ones(catalogue: Catalogue, arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match="(?s).*") as caught:
        catalogue.task(*arguments)
    assert words in str(caught.value)


def test_libero_itself_has_no_dimensions(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match="belong to 'libero-plus' and 'libero-pro'"):
        catalogue.tasks("libero", dimensions=["camera"])


def test_initial_states(catalogue: Catalogue) -> None:
    plain = catalogue.task("libero", "libero_object", 0)
    states = catalogue.init_states(plain)
    assert states.shape[0] == 50 and states.dtype == np.float64 and np.isfinite(states).all()
    for dimension in DIMENSIONS:
        task = catalogue.tasks("libero-plus", ["libero_object"], [dimension])[0]
        own = catalogue.init_states(task)
        if dimension == "layout":
            assert own.shape[0] == 1
        else:
            base = catalogue.task("libero", "libero_object", task.base_task)
            np.testing.assert_array_equal(own, catalogue.init_states(base))
    with pytest.raises(ValueError, match="no states 'libero_object/none'"):
        catalogue.init_states(dataclasses.replace(plain, init="libero_object/none"))


def test_missing_assets_are_named(catalogue: Catalogue) -> None:
    """The registry has the assets of 7,045 tasks of LIBERO-plus, and no light scene; of LIBERO and LIBERO-Pro all."""
    tasks = catalogue.tasks("libero-plus")
    whole = collections.Counter(task.dimension for task in tasks if not catalogue.missing(task))
    assert whole == {"camera": 1599, "robot": 1550, "language": 1537, "noise": 1601, "layout": 696, "background": 62}
    light = catalogue.tasks("libero-plus", ["libero_object"], ["light"])[0]
    assert catalogue.missing(light) == [light.scene["scene"]]
    for other in ("libero", "libero-pro"):
        assert not any(catalogue.missing(task) for task in catalogue.tasks(other))


def test_missing_looks_into_the_files_that_an_asset_names(catalogue: Catalogue, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "assets" / "scenes").mkdir(parents=True)
    (home / "assets" / "textures").mkdir()
    (home / "assets" / "textures" / "a.png").touch()
    (home / "assets" / "scenes" / "s.xml").write_text(
        '<mujoco><!-- <mesh file="no.stl"/> --><texture file="../textures/a.png"/><mesh file="b/c.msh"/></mujoco>'
    )
    task = dataclasses.replace(catalogue.task("libero", "libero_goal", 0), assets=("scenes/s.xml", "textures/z.png"))
    assert Catalogue(home).missing(task) == ["scenes/b/c.msh", "textures/z.png"]
    (home / "assets.path").write_text(f"{tmp_path / 'elsewhere'}\n")
    assert Catalogue(home).missing(task) == ["scenes/s.xml", "textures/z.png"]


def test_textures_of_styles_are_the_files_that_libero_names(catalogue: Catalogue) -> None:
    program = (
        "import glob, json, runpy, sys; found = runpy.run_path(glob.glob(sys.argv[1])[0])\n"
        "print(json.dumps([found['FLOOR_STYLE'], found['WALL_STYLE']]))"
    )
    pattern = str(catalogue.home / "env/lib/python3*/site-packages/libero/libero/envs/arenas/style.py")
    floors, walls = in_simulator(catalogue, program, pattern)  # type: ignore[misc]
    assert {style: texture_file("floor", style) for style in floors} == {k: f"textures/{v}" for k, v in floors.items()}
    assert {style: texture_file("wall", style) for style in walls} == {k: f"textures/{v}" for k, v in walls.items()}
    assert texture_file("floor", "CarbonFiber001_COL_6K") == "textures/CarbonFiber001_COL_6K.png"


def test_home_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAIROS_SIMS", str(tmp_path))
    assert home_folder() == tmp_path / "libero"
    with pytest.raises(FileNotFoundError, match="kairos sims install libero`"):
        Catalogue.open()
    with pytest.raises(FileNotFoundError, match=f"kairos sims install libero --home {tmp_path / 'other'}"):
        Catalogue.open(tmp_path / "other")
    monkeypatch.delenv("KAIROS_SIMS")
    assert home_folder() == Path.home() / ".cache" / "kairos" / "sims" / "libero"


def test_a_home_without_the_perturbed_tasks_says_how_to_get_them(catalogue: Catalogue, tmp_path: Path) -> None:
    for name in ("libero_tasks.jsonl", "init_states.npz", "bddl"):
        (tmp_path / name).symlink_to(catalogue.home / name)
    plain = Catalogue.open(tmp_path)
    assert len(plain.tasks("libero")) == 130 and plain.versions == {}
    with pytest.raises(FileNotFoundError, match="tasks of libero-plus: run `kairos sims install libero-plus --home"):
        plain.task("libero-plus", "libero_object", 0)


def test_damaged_task_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bddl").mkdir()
    (tmp_path / "init_states.npz").touch()
    (tmp_path / "libero_tasks.jsonl").write_text('{"suite": "libero_goal"}\n')
    with pytest.raises(ValueError, match="libero_tasks.jsonl is damaged.*install it again"):
        Catalogue.open(tmp_path).tasks("libero")


def test_versions_are_recorded(catalogue: Catalogue) -> None:
    assert catalogue.versions["hf-libero"] == "0.1.4" and catalogue.versions["python"].startswith("3.")
