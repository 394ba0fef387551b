"""LIBERO-plus's perturbations: formulas against slow references, then each of them in the real simulator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from libero_home import libero_home

from kairos_env.sims.libero.catalogue import Catalogue
from kairos_env.sims.libero.env import LiberoEnv
from kairos_env.sims.libero.perturbations import NO_VIEW, camera_pose, robot_qpos
from kairos_env.sims.libero.tasks import LiberoTask

PIVOT = np.array([0.0, 0.0, 0.8])
POSITION, QUATERNION = (0.6586, 0.1, 1.6104), (0.638, 0.3048, 0.3048, 0.638)
VIEWS = [(30, 0, 100, 0, 0), (346, 15, 100, 0, 0), (0, 0, 175, 0, 0), (0, 0, 100, 8, 352), (290, 15, 130, 354, 6)]


# -- camera ---------------------------------------------------------------------------------------------------------


def matrix(quaternion: Any) -> np.ndarray:
    w, x, y, z = np.asarray(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def turned(axis: str, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    if axis == "z":
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def test_view_of_unperturbed_tasks_changes_nothing_but_is_rounded_as_published() -> None:
    position, quaternion = camera_pose(POSITION, QUATERNION, NO_VIEW, decimals=None)
    np.testing.assert_allclose(position, POSITION, atol=1e-9)
    np.testing.assert_allclose(quaternion, QUATERNION / np.linalg.norm(QUATERNION), atol=1e-9)
    exact = (0.6586131746834771, 0.0, 1.6103500240372423)
    assert camera_pose(exact, QUATERNION)[0].tolist() == [0.6586, 0.0, 1.6104]


@pytest.mark.parametrize("view", VIEWS)
def test_camera_pose_is_the_published_chain_of_turns(view: tuple[int, ...]) -> None:
    horizontal, vertical, scale, turn, tilt = view
    about = turned("z", horizontal) @ turned("y", -vertical)
    position, quaternion = camera_pose(POSITION, QUATERNION, view, decimals=None)
    expected = PIVOT + about @ (np.array(POSITION) - PIVOT) * scale / 100
    np.testing.assert_allclose(position, expected, atol=1e-12)
    spot = turned("y", -tilt) @ turned("z", turn)
    np.testing.assert_allclose(matrix(quaternion), spot @ about @ matrix(QUATERNION), atol=1e-12)
    distance = np.linalg.norm(position - PIVOT) / np.linalg.norm(np.array(POSITION) - PIVOT)
    assert distance == pytest.approx(scale / 100)
    rounded = camera_pose(POSITION, QUATERNION, view)
    np.testing.assert_allclose(rounded[0], position, atol=3e-4)
    np.testing.assert_allclose(rounded[1], quaternion, atol=3e-4)
    np.testing.assert_array_equal(rounded[0], np.round(rounded[0], 4))


@pytest.mark.parametrize("view", [(0, 0, 100), (0, 0, 0, 0, 0)])
def test_a_view_that_cannot_be_is_refused(view: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="view="):
        camera_pose(POSITION, QUATERNION, view)


# -- robot ----------------------------------------------------------------------------------------------------------


def test_robot_states_are_the_published_ones() -> None:
    assert robot_qpos(0) is None
    published = {
        1: [0.02097405, -0.16687568, 0.02734903, -2.38028663, -0.00988726, 2.21686563, 0.85208136],
        12: [-0.0115717, -0.15748621, -0.07691969, -2.45309886, 0.01382039],
        500: [-0.11827633, -0.04802337, 0.42756544, -2.2644154, -0.01062499, 2.18628575, 0.7065925],
    }
    for index, joints in published.items():
        assert robot_qpos(index)[: len(joints)].tolist() == joints  # type: ignore[index]
    default = np.array([0, -0.161037389, 0, -2.44459747, 0, 2.2267522, np.pi / 4])
    for index in (1, 100, 101, 250, 301, 500):
        moved = np.linalg.norm(robot_qpos(index) - default)
        assert moved == pytest.approx(0.1 * (1 + (index - 1) // 100), abs=1e-7)
    for index in (-1, 501):
        with pytest.raises(ValueError, match="500"):
            robot_qpos(index)


# -- in the simulator -----------------------------------------------------------------------------------------------

BASE = 3  # of the object suite: every kind of perturbation is there and needs no other assets
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (3, 7)).astype(np.float32)


class Run(NamedTuple):
    """A start and what three steps come to."""

    pictures: dict[str, np.ndarray]
    starts: dict[str, np.ndarray]
    state: np.ndarray
    joints: np.ndarray
    objects: dict[str, np.ndarray]
    info: dict[str, Any]


STAND_IN = """<mujoco model="stand-in"><worldbody><body name="object">
<geom type="box" size=".02 .02 .04" group="0" density="200"/>
<geom type="box" size=".02 .02 .04" group="1" contype="0" conaffinity="0" rgba=".9 .2 .9 1"/>
<site name="bottom_site" pos="0 0 -.04" size=".005" rgba="0 0 0 0"/>
<site name="top_site" pos="0 0 .04" size=".005" rgba="0 0 0 0"/>
<site name="horizontal_radius_site" pos=".02 .02 0" size=".005" rgba="0 0 0 0"/>
</body></worldbody></mujoco>"""


def added_objects(catalogue: Catalogue) -> LiberoTask:
    """A task with objects that LIBERO does not know."""
    return next(t for t in catalogue.tasks("libero-plus", ["libero_object"], ["layout"]) if "_add_" in t.name)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiberoEnv]:
    """On a home whose assets have stand-ins for the objects of one task."""
    installed = Catalogue.open(libero_home())
    home, assets = (tmp_path_factory.mktemp(name) for name in ("home", "assets"))
    for folder, source in ((home, installed.home), (assets, installed.assets)):
        for entry in source.iterdir():
            if entry.name not in ("assets", "assets.path"):
                (folder / entry.name).symlink_to(entry)
    (home / "assets.path").write_text(str(assets), encoding="utf-8")
    for file in installed.missing(added_objects(installed)):
        (assets / file).parent.mkdir(parents=True)
        (assets / file).write_text(STAND_IN, encoding="utf-8")
    env = LiberoEnv("libero_object", BASE, home=home, camera_size=64, wait_steps=2, time_limit_s=500)
    yield env
    env.close()


def run(env: LiberoEnv, benchmark: str, task: str | int, perturbation: str | None = None, seed: int = 0) -> Run:
    options = {"benchmark": benchmark, "suite": "libero_object", "task": task, "perturbation": perturbation}
    start, info = env.reset(seed=seed, options=options | {"initial_state": 0})
    joints = env.simulator_state()["joints"]
    places = {k: v["position"].copy() for k, v in info["privileged"]["objects"].items()}
    for action in ACTIONS:
        seen = env.step(action)[0]
    state = env.simulator_state()["state"]
    return Run(
        {k: seen[k] for k in ("image_agentview", "image_eye_in_hand")},
        {k: start[k] for k in ("image_agentview", "image_eye_in_hand")},
        state,
        joints,
        places,
        info,
    )


@pytest.fixture(scope="module")
def base(env: LiberoEnv) -> Run:
    return run(env, "libero", BASE)


def perturbed(env: LiberoEnv, dimension: str, pattern: str = "") -> LiberoTask:
    """The first task of LIBERO-plus that perturbs the base task so, and that the assets at hand allow."""
    base_task = env.catalogue.task("libero", "libero_object", BASE).name
    for task in env.catalogue.tasks("libero-plus", ["libero_object"], [dimension]):
        if task.base_task == base_task and re.search(pattern, task.name) and not env.catalogue.missing(task):
            return task
    raise AssertionError(f"no task {pattern!r} of {dimension}")


def differs(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.abs(a.astype(float) - b.astype(float))))


def test_camera_moves_the_agent_view_alone(env: LiberoEnv, base: Run) -> None:
    for pattern in (r"view_\d+_15_", "view_0_0_1[1-9]", "view_0_0_100_[1-9]"):
        seen = run(env, "libero-plus", perturbed(env, "camera", pattern).name)
        assert np.array_equal(seen.state, base.state)
        assert np.array_equal(seen.pictures["image_eye_in_hand"], base.pictures["image_eye_in_hand"])
        assert differs(seen.pictures["image_agentview"], base.pictures["image_agentview"]) > 3


def test_noise_is_on_the_agent_view_alone(env: LiberoEnv, base: Run) -> None:
    task = perturbed(env, "noise", "_noise_4[1-9]$")
    seen, again, other = (run(env, "libero-plus", task.name, seed=seed) for seed in (0, 0, 1))
    assert seen.info["params"]["noise"] == task.params["noise"] > 40
    assert np.array_equal(seen.pictures["image_agentview"], again.pictures["image_agentview"])
    assert not np.array_equal(seen.pictures["image_agentview"], other.pictures["image_agentview"])
    for found in (seen, again, other):
        assert np.array_equal(found.state, base.state)
        assert np.array_equal(found.pictures["image_eye_in_hand"], base.pictures["image_eye_in_hand"])
        assert differs(found.pictures["image_agentview"], base.pictures["image_agentview"]) > 3


def test_language_changes_the_words_alone(env: LiberoEnv, base: Run) -> None:
    seen = run(env, "libero-plus", perturbed(env, "language").name)
    assert seen.info["instruction"] != base.info["instruction"]
    assert np.array_equal(seen.state, base.state)
    assert np.array_equal(seen.pictures["image_eye_in_hand"], base.pictures["image_eye_in_hand"])
    # the camera's rounded pose moves the picture by much less than a pixel
    assert differs(seen.pictures["image_agentview"], base.pictures["image_agentview"]) < 0.3


def test_robot_starts_elsewhere_and_objects_stay(env: LiberoEnv, base: Run) -> None:
    seen = run(env, "libero-plus", perturbed(env, "robot", r"initstate_4\d\d").name)
    assert np.linalg.norm(seen.joints - base.joints) > 0.01
    for name, place in base.objects.items():
        np.testing.assert_allclose(seen.objects[name], place, atol=1e-4)
    assert not np.array_equal(seen.starts["image_eye_in_hand"], base.starts["image_eye_in_hand"])


def test_substitute_robot_states_keep_the_whole_displacement(env: LiberoEnv, base: Run) -> None:
    seen = run(env, "libero", BASE, "ours_robot_whole_3")
    assert np.linalg.norm(seen.joints - base.joints) == pytest.approx(0.3, rel=0.25)  # after two steps at rest
    for name, place in base.objects.items():
        np.testing.assert_allclose(seen.objects[name], place, atol=1e-4)


def test_layout_moves_objects_and_not_the_robot(env: LiberoEnv, base: Run) -> None:
    seen = run(env, "libero-plus", perturbed(env, "layout", "level").name)
    moved = [np.linalg.norm(seen.objects[name] - base.objects[name]) for name in base.objects if name in seen.objects]
    assert max(moved) > 0.02
    np.testing.assert_allclose(seen.joints, base.joints, atol=0.05)
    assert differs(seen.starts["image_agentview"], base.starts["image_agentview"]) > 1


@pytest.mark.parametrize("which", ["published", "ours_background_room_2", "ours_background_surface_4"])
def test_background_changes_pictures_alone(which: str, env: LiberoEnv, base: Run) -> None:
    if which == "published":
        seen = run(env, "libero-plus", perturbed(env, "background").name)
        assert "ours" not in seen.info["params"]
    else:
        seen = run(env, "libero", BASE, which)
        assert seen.info["params"]["ours"]
        assert seen.info["benchmark"] == "libero"
    assert np.array_equal(seen.state, base.state)
    for camera in base.pictures:
        assert differs(seen.pictures[camera], base.pictures[camera]) > 3


@pytest.mark.parametrize("kind", ["intensity", "color", "direction", "shadow"])
def test_substitute_light_changes_pictures_alone(kind: str, env: LiberoEnv, base: Run) -> None:
    seen = run(env, "libero", BASE, f"ours_light_{kind}_4")
    assert seen.info["dimension"] == "light"
    assert seen.info["instruction"] == base.info["instruction"]
    assert np.array_equal(seen.state, base.state)
    assert differs(seen.pictures["image_agentview"], base.pictures["image_agentview"]) > 3
    bright = seen.pictures["image_agentview"].mean((0, 1)) / base.pictures["image_agentview"].mean((0, 1))
    if kind == "intensity":
        assert max(bright) < 0.8
    if kind == "color":
        assert bright[1] > 1.2 * max(bright[0], bright[2])


def test_added_objects_come_from_the_benchmarks_own_files(env: LiberoEnv) -> None:
    """With stand-ins for the objects, whose real files are in LIBERO-plus's archive only."""
    task = added_objects(env.catalogue)
    new = {file for file in task.assets if file.startswith("new_objects/")}
    assert new == set(Catalogue.open(libero_home()).missing(task))
    # The benchmark's initial state fits only if the scene has exactly the published objects.
    _, info = env.reset(options={"benchmark": "libero-plus", "suite": "libero_object", "task": task.name})
    names = {re.sub(r"(__\d+)?_\d+$", "", name) for name in info["privileged"]["objects"]}
    assert {file.split("/")[1] for file in new} <= names
