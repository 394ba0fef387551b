"""The table-top simulator: spaces, determinism, exact state, pictures, rewards and experts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import kairos_env
from kairos_env.collect.behaviours import BEHAVIOURS
from kairos_env.records import Observation, RobotSpec
from kairos_env.sims.rendering import RenderingUnavailable, choose_backend
from kairos_env.sims.tabletop.env import CAMERAS, TASKS, RobosuiteEnv, make_spec
from kairos_env.sims.tabletop.experts import expert_action
from kairos_env.sims.tabletop.tasks import PUSH_RADIUS, TaskState, measure

NOTHING = Observation({}, np.zeros(4, np.float32))  # what those that read the true state see


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter; an empty value removes a variable."""
    variables = {k: v for k, v in (os.environ | environment).items() if v}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=120)


@pytest.fixture(scope="module")
def env() -> Iterator[RobosuiteEnv]:
    env = RobosuiteEnv(cameras=CAMERAS, render_mode="rgb_array")
    yield env
    env.close()


@pytest.fixture(scope="module")
def blind() -> Iterator[RobosuiteEnv]:
    env = RobosuiteEnv(observe_images=False)
    yield env
    env.close()


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# -- without a simulator ---------------------------------------------------------------------------------------


def test_spec_and_package_need_neither_simulator_nor_torch() -> None:
    done = python(
        "import sys, kairos_env, gymnasium as gym\n"
        "from kairos_env.sims.tabletop.env import make_spec, TASKS\n"
        "spec = make_spec(('scene', 'wrist'), 32)\n"
        "assert list(spec.observation_space.spaces) == ['image_scene', 'image_wrist', 'proprio']\n"
        "assert {'Kairos-Robosuite-v0', 'Kairos-WorldModel-v0'} <= set(gym.registry)\n"
        "print([m for m in ('torch', 'robosuite', 'mujoco') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names() -> None:
    assert kairos_env.RobotSpec is RobotSpec
    assert kairos_env.RobosuiteEnv is RobosuiteEnv
    assert set(kairos_env.__all__) <= set(dir(kairos_env))
    with pytest.raises(AttributeError, match="WorldModelEnv"):
        kairos_env.no_such_name  # noqa: B018


def test_spec_describes_decisions_in_physical_units() -> None:
    spec = make_spec()
    np.testing.assert_allclose(spec.action_high, [0.05, 0.05, 0.05, 1.0])
    np.testing.assert_allclose(spec.action_low, -spec.action_high)
    assert [f.name for f in spec.proprio] == ["eef_x", "eef_y", "eef_z", "gripper_width"]
    assert spec.control_rate_hz == 5.0
    assert spec.observation_space["image_scene"].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cameras": ("side",)}, r"scene.*wrist"),
        ({"cameras": ()}, "one or more"),
        ({"cameras": ("scene", "scene")}, "different"),
        ({"image_size": 4}, "16"),
        ({"task": "juggle"}, r"juggle.*reach"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"max_episode_steps": 0}, "at least 1"),
    ],
)
def test_bad_arguments_say_what_is_legal(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobosuiteEnv(**arguments)


def state_at(eef: tuple[float, float, float], cube: tuple[float, float, float], opening: float = 0.08) -> TaskState:
    return TaskState(np.array(eef), np.array(cube), np.array([0.13, 0.0, 0.0]), opening)


def test_success_and_rewards_of_chosen_states() -> None:
    rest, above = (-0.05, 0.02, 0.02), (-0.05, 0.02, 0.10)
    _, success = measure(state_at(rest, rest))
    assert success == {"reach": True, "push": False, "lift": False, "place": False}
    _, success = measure(state_at(above, above, opening=0.04))
    assert success == {"reach": True, "push": False, "lift": True, "place": False}
    on_disc = (0.13 - PUSH_RADIUS + 0.001, 0.0, 0.02)
    _, success = measure(state_at((0.0, 0.0, 0.1), on_disc))
    assert success["push"] and success["place"], "set down, and the open hand is away"
    assert not measure(state_at((0.0, 0.0, 0.1), on_disc, opening=0.0))[1]["place"]
    held_over_disc = (0.13, 0.0, 0.06)
    assert not measure(state_at(held_over_disc, held_over_disc, 0.04))[1]["push"], "a carried cube is not pushed"


def test_rewards_rise_along_the_way() -> None:
    cube = (-0.05, 0.0, 0.02)
    far, near, around = ((0.1, 0.1, 0.2), (-0.05, 0.0, 0.1), (-0.05, 0.0, 0.02))
    lift = [measure(state_at(p, cube))[0]["lift"] for p in (far, near, around)]
    lift.append(measure(state_at(around, cube, opening=0.04))[0]["lift"])
    lift.append(measure(state_at((-0.05, 0.0, 0.06), (-0.05, 0.0, 0.06), 0.04))[0]["lift"])
    reach = [measure(state_at(p, cube))[0]["reach"] for p in (far, near, around)]
    push = [measure(state_at((-0.10, 0.0, 0.02), cube))[0]["push"]]
    push += [measure(state_at((x - 0.035, 0.0, 0.02), (x, 0.0, 0.02)))[0]["push"] for x in (0.0, 0.05, 0.1)]
    place = [measure(state_at(p, cube))[0]["place"] for p in (far, near, around)]
    place.append(measure(state_at(around, cube, opening=0.04))[0]["place"])
    place += [measure(state_at((x, 0.0, 0.06), (x, 0.0, 0.06), 0.04))[0]["place"] for x in (0.0, 0.08)]
    disc = (0.13, 0.0, 0.02)
    place += [measure(state_at((0.13, 0.0, z), disc, width))[0]["place"] for z, width in ((0.02, 0.04), (0.08, 0.08))]
    for rewards in (lift, reach, push, place):
        assert rewards == sorted(rewards)
        assert len(set(rewards)) == len(rewards)
    assert reach[-1] == push[-1] == place[-1] == 1.0


# -- the environment -------------------------------------------------------------------------------------------


def test_gymnasium_checker_passes(env: RobosuiteEnv) -> None:
    check_env(env, skip_render_check=True)


def test_is_made_by_its_id() -> None:
    env = gym.make("Kairos-Robosuite-v0", task="push", observe_images=False)
    assert env.reset(seed=0)[1]["instruction"] == TASKS["push"]
    assert env.unwrapped.robot_spec == make_spec()  # type: ignore[attr-defined]
    env.close()


def test_info_has_every_task(env: RobosuiteEnv) -> None:
    _, info = env.reset(seed=4, options={"task": "push", "initial_state": 12})
    assert (info["task"], info["instruction"], info["seed"], info["initial_state"]) == (
        "push",
        TASKS["push"],
        4,
        12,
    )
    assert set(info["task_rewards"]) == set(info["task_success"]) == set(TASKS)
    true = info["privileged"]
    assert list(true["objects"]) == true["interest"] == ["cube", "goal"]
    assert all(o["position"].shape == (3,) and o["rotation"].shape == (3, 3) for o in true["objects"].values())
    assert true["eef_position"].shape == (3,) and 0 <= true["gripper_opening"] <= 0.085
    _, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
    assert 0 <= info["task_rewards"]["push"] == reward + 1 < 1.0  # shaped
    assert not terminated and not truncated and not info["success"]


def test_start_is_a_function_of_its_id_alone(env: RobosuiteEnv) -> None:
    first, info = env.reset(seed=1, options={"initial_state": 7, "task": "lift"})
    env.step(np.full(4, 0.05, np.float32))
    again, again_info = env.reset(seed=2, options={"initial_state": 7, "task": "reach"})
    other, _ = env.reset(seed=2, options={"initial_state": 8})
    assert same(first, again)
    assert not same(first, other)
    assert info["initial_state"] == again_info["initial_state"] == 7


def test_seed_draws_the_start_and_repeats_the_trajectory(env: RobosuiteEnv) -> None:
    actions = np.random.default_rng(0).uniform(env.action_space.low, env.action_space.high, (5, 4))
    runs = []
    for _ in range(2):
        observation, info = env.reset(seed=33)
        rows = [observation] + [env.step(a)[0] for a in actions]
        runs.append((info["initial_state"], rows))
    assert runs[0][0] == runs[1][0]
    assert all(same(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert env.reset()[1]["initial_state"] != runs[0][0], "without a seed the next start is drawn"


def test_starts_are_legal_and_varied(blind: RobosuiteEnv) -> None:
    cubes, goals = [], []
    for i in range(40):
        observation, info = blind.reset(options={"initial_state": i})
        state = blind.state
        cubes.append(state.cube)
        goals.append(state.goal)
        assert blind.observation_space.contains(observation)
        assert state.goal_distance > 0.078
        assert not any(info["task_success"].values())
        assert abs(state.height) < 0.002
    assert np.ptp(cubes, axis=0)[:2].min() > 0.10
    assert np.ptp(goals, axis=0)[:2].min() > 0.04


@pytest.mark.parametrize("axis", range(3))
def test_a_decision_moves_the_gripper_by_the_commanded_distance(blind: RobosuiteEnv, axis: int) -> None:
    blind.reset(options={"initial_state": 3})
    for sign in (1, -1):
        before = blind.state.eef
        action = np.zeros(4, np.float32)
        action[axis], action[3] = sign * 0.04, -1.0
        blind.step(action)
        moved = blind.state.eef - before
        assert abs(moved[axis] - sign * 0.04) < 0.004
        assert np.abs(np.delete(moved, axis)).max() < 0.004


def test_gripper_stays_in_the_workspace_and_still_when_told(blind: RobosuiteEnv) -> None:
    blind.reset(options={"initial_state": 3})
    for direction in ([0.05, 0.05, -0.05], [-0.05, -0.05, 0.05]):
        for _ in range(12):
            observation = blind.step(np.array([*direction, 1.0], np.float32))[0]
            assert blind.observation_space.contains(observation)
    blind.step(np.array([0, 0, 0, 1.0], np.float32))
    before = blind.state
    blind.step(np.array([0, 0, 0, 1.0], np.float32))
    assert np.abs(blind.state.eef - before.eef).max() < 0.001
    assert before.opening < 0.005


def test_state_is_exact(env: RobosuiteEnv) -> None:
    env.reset(seed=5, options={"task": "push"})
    for _ in range(4):
        env.step(env.expert_action())
    state = env.get_state()
    actions = [env.expert_action()] + [env.action_space.sample() for _ in range(4)]
    first = [env.step(a)[:4] for a in actions]
    end = env.get_state()
    env.reset(seed=6, options={"task": "lift"})
    env.set_state(state)
    assert env.task == "push"
    second = [env.step(a)[:4] for a in actions]
    assert all(same(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first, second, strict=True))
    assert same(end, env.get_state())
    with pytest.raises(ValueError, match="physics"):
        env.set_state(state | {"physics": np.zeros(3)})


def test_truncates_at_the_limit() -> None:
    env = RobosuiteEnv(task="lift", max_episode_steps=3, observe_images=False)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.close()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), "dx, dy, dz, gripper"),
        (np.zeros((2, 4)), r"takes \(4,\)"),
        (np.array([0, np.nan, 0, 0]), "non-finite"),
        (["left", 0, 0, 0], "numeric"),
    ],
)
def test_bad_actions_move_nothing(blind: RobosuiteEnv, action: object, message: str) -> None:
    blind.reset(options={"initial_state": 0})
    before = blind.get_state()
    with pytest.raises(ValueError, match=message):
        blind.step(action)  # type: ignore[arg-type]
    assert same(before, blind.get_state())


def test_misuse_is_reported(blind: RobosuiteEnv) -> None:
    for options, message in (
        ({"task": "juggle"}, "juggle"),
        ({"goal": 1}, "unknown reset option .goal.; legal: task, initial_state, condition"),
        ({"initial_state_id": 1}, "the reset option 'initial_state_id' is called 'initial_state' now"),
        ({"initial_state": 1.5}, "initial_state=1.5: give an integer"),
        ({"initial_state": -3}, "initial_state=-3: give an integer from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            blind.reset(options=options)
    fresh = RobosuiteEnv(observe_images=False)
    with pytest.raises(gym.error.ResetNeeded):
        fresh.step(np.zeros(4, np.float32))
    fresh.reset(seed=0)
    state = fresh.get_state()
    fresh.close()
    fresh.close()
    for use in (fresh.reset, fresh.get_state, fresh.expert_action, lambda: fresh.set_state(state)):
        with pytest.raises(gym.error.ClosedEnvironmentError):
            use()


# -- pictures --------------------------------------------------------------------------------------------------


def reddish(image: np.ndarray) -> np.ndarray:
    pixels = image.astype(int)
    return (pixels[..., 0] > 90) & (pixels[..., 0] > 2 * pixels[..., 1]) & (pixels[..., 0] > 2 * pixels[..., 2])


def greenish(image: np.ndarray) -> np.ndarray:
    pixels = image.astype(int)
    return (pixels[..., 1] > 1.5 * pixels[..., 0]) & (pixels[..., 1] > 1.5 * pixels[..., 2])


def test_cube_disc_and_gripper_are_several_pixels_wide(env: RobosuiteEnv) -> None:
    for i in range(8):
        observation, _ = env.reset(options={"initial_state": i})
        env.step(np.array([0, 0, 0.05, -1], np.float32))
        image = env.step(np.array([-0.05, 0, 0.05, -1], np.float32))[0]["image_scene"]
        columns = np.flatnonzero(reddish(image).any(axis=0))
        assert 4 <= np.ptp(columns) + 1 <= 11
        assert np.ptp(np.flatnonzero(greenish(image).any(axis=0))) + 1 >= 9
        pale = image.min(axis=-1) > 140  # the hand is the only white thing
        assert pale.sum() > 40
        assert observation["image_wrist"].std() > 5


def test_frames_show_what_moves_and_are_never_blank(env: RobosuiteEnv) -> None:
    env.reset(options={"initial_state": 2, "task": "push"})
    previous = env.observe()["image_scene"]
    for _ in range(8):
        image = env.step(env.expert_action())[0]["image_scene"]
        assert image.std() > 10
        assert (np.abs(image.astype(int) - previous).max(axis=-1) > 20).sum() > 15
        previous = image


def test_leaving_out_unseen_meshes_changes_no_pixel(env: RobosuiteEnv) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        env.reset(options={"initial_state": i})
        corner = np.sign(rng.normal(size=3)) * 0.05
        for step in range(9):
            observation = env.step(np.array([*corner, -1], np.float32))[0]
            if step % 4 == 0:
                for camera in CAMERAS:
                    assert np.array_equal(observation[f"image_{camera}"], env.draw(camera, 64, show_unseen=True))


def test_render_is_a_larger_picture_of_the_same_scene(env: RobosuiteEnv) -> None:
    observation, _ = env.reset(options={"initial_state": 1})
    frame = env.render()
    assert frame is not None
    assert (frame.shape, frame.dtype) == ((256, 256, 3), np.uint8)
    small = frame.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - observation["image_scene"]).mean() < 4
    with pytest.raises(ValueError, match="512x512"):
        env.draw("scene", 512)
    with pytest.raises(ValueError, match="wrist"):
        env.draw("side")


def test_images_can_be_left_out(blind: RobosuiteEnv) -> None:
    observation, _ = blind.reset(seed=0)
    assert list(observation) == ["proprio"]
    assert blind.render() is None


_DRAW = (
    "from kairos_env.sims.tabletop.env import RobosuiteEnv\n"
    "env = RobosuiteEnv()\n"
    "print('brightness', int(env.reset(seed=0)[0]['image_scene'].mean()))\n"
)


@pytest.mark.parametrize("backend", ["", "osmesa"])
def test_draws_silently_in_a_fresh_process(backend: str) -> None:
    done = python(_DRAW, MUJOCO_GL=backend, PYOPENGL_PLATFORM="")
    if backend and "RenderingUnavailable" in done.stderr:
        pytest.skip("OSMesa is not installed here")
    assert done.stdout.startswith("brightness "), done.stderr
    assert done.stderr == "", "no warnings of robosuite, no complaint of the GL context at exit"


def test_without_gl_the_error_names_the_packages() -> None:
    done = python(_DRAW, MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="99", PYOPENGL_PLATFORM="")
    assert done.returncode != 0
    for package in ("libegl1", "libegl-mesa0", "libgl1-mesa-dri", "libosmesa6"):
        assert package in done.stderr


def test_unknown_backend_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "magic")
    with pytest.raises(RenderingUnavailable, match=r"'magic'.*osmesa"):
        choose_backend()


# -- experts ---------------------------------------------------------------------------------------------------


def solve(env: RobosuiteEnv, steps: int = 24) -> bool:
    return any(env.step(env.expert_action())[2] for _ in range(steps))


@pytest.mark.parametrize("task", TASKS)
def test_expert_solves_its_task(blind: RobosuiteEnv, task: str) -> None:
    solved = []
    for i in range(6):
        blind.reset(options={"initial_state": 500 + i, "task": task})
        solved.append(solve(blind))
    assert all(solved)


@pytest.mark.parametrize("task", TASKS)
def test_expert_recovers_from_anywhere(blind: RobosuiteEnv, task: str) -> None:
    """From states that play left behind: gripper closed, cube moved or between the fingers of another task."""
    solved = []
    for i, kind in enumerate(("attracted", "random", "noisy_expert", "noisy_expert")):
        _, info = blind.reset(options={"initial_state": 600 + i, "task": "lift"})
        play = BEHAVIOURS[kind](blind, "lift", np.random.default_rng(i))
        for _ in range(10):
            info = blind.step(play.act(NOTHING, info))[-1]
        blind.task = task
        solved.append(measure(blind.state)[1][task] or solve(blind))
    assert all(solved)


def test_push_expert_leaves_the_cubes_edge() -> None:
    """Closed fingers that stand on the cube's rear edge would press it down for ever: they go up and back."""
    cube, goal = np.array([0.0, 0.0, 0.02]), np.array([0.13, 0.0, 0.0])
    action = expert_action("push", TaskState(np.array([-0.014, 0.004, 0.044]), cube, goal, 0.002))
    assert action[2] > 0.03 and action[0] < 0.005 and action[3] > 0.9
    carried = TaskState(np.array([0.0, 0.0, 0.09]), np.array([0.0, 0.0, 0.09]), goal, 0.04)
    action = expert_action("push", carried)
    assert action[2] < -0.03 and action[3] > 0.5, "a carried cube is set down before it is let go"
    low = TaskState(cube, cube, goal, 0.04)
    assert expert_action("push", low)[3] < -0.9


def test_expert_is_stateless_and_in_range() -> None:
    rng = np.random.default_rng(1)
    spec = make_spec()
    for _ in range(300):
        eef, cube = rng.uniform([-0.2, -0.18, 0.01], [0.2, 0.18, 0.2]), rng.uniform([-0.2, -0.2, 0.02], [0.2, 0.2, 0.1])
        goal = np.append(rng.uniform([0.1, -0.03], [0.16, 0.03]), 0.0)
        state = TaskState(eef, cube, goal, rng.uniform(0, 0.08))
        for task in TASKS:
            action = expert_action(task, state)
            assert action.dtype == np.float32 and spec.action_space.contains(action)
            assert np.array_equal(action, expert_action(task, state))
    with pytest.raises(ValueError, match="juggle"):
        expert_action("juggle", state)


def test_expert_changes_smoothly_with_the_state() -> None:
    """Half a millimetre never turns a step around: a network with 64 pixels could not follow."""
    rng = np.random.default_rng(2)
    jumps = []
    for _ in range(400):
        eef, cube = rng.uniform([-0.18, -0.15, 0.02], [0.15, 0.15, 0.15]), rng.uniform([-0.12, -0.08], [0.04, 0.08])
        state = TaskState(eef, np.append(cube, 0.02), np.array([0.13, 0.0, 0.0]), 0.08)
        nudged = TaskState(eef + rng.normal(0, 0.0003, 3), state.cube, state.goal, 0.08)
        jumps += [np.abs(expert_action(t, state) - expert_action(t, nudged))[:3].max() for t in TASKS]
    assert np.quantile(jumps, 0.99) < 0.006


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_behaviours_repeat_under_their_seed(blind: RobosuiteEnv, kind: str) -> None:
    runs = []
    for _ in range(2):
        _, info = blind.reset(options={"initial_state": 9, "task": "push"})
        behaviour = BEHAVIOURS[kind](blind, "push", np.random.default_rng(4))
        actions = []
        for _ in range(8):
            actions.append(behaviour.act(NOTHING, info))
            info = blind.step(actions[-1])[-1]
        runs.append(np.array(actions))
    assert np.array_equal(runs[0], runs[1])
    assert all(blind.action_space.contains(a) for a in runs[0])


def test_play_is_smooth_and_attraction_makes_contact(blind: RobosuiteEnv) -> None:
    moved = {}
    for kind in ("random", "attracted"):
        moved[kind] = 0
        for i in range(6):
            _, info = blind.reset(options={"initial_state": 700 + i})
            start = blind.state.cube
            behaviour = BEHAVIOURS[kind](blind, "push", np.random.default_rng(i))
            actions = []
            for _ in range(20):
                actions.append(behaviour.act(NOTHING, info)[:3])
                info = blind.step(np.append(actions[-1], 1.0).astype(np.float32))[-1]
            moved[kind] += bool(np.linalg.norm((blind.state.cube - start)[:2]) > 0.01)
            assert np.ptp(actions) > 0.01
    assert moved["attracted"] >= 4 > moved["random"]
