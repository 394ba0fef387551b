"""RoboTwin's real tasks: pictures as RoboTwin's own, demonstrations that succeed, and what is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from robotwin_home import CONTRACT, robotwin_home, separate_home

from kairos_env.embodiments import ROBOTWIN_ALOHA, ROBOTWIN_CAMERAS, robotwin_aloha
from kairos_env.records import SpecMismatch
from kairos_env.sims.check import check_simulator
from kairos_env.sims.process import SimulatorError
from kairos_env.sims.robotwin.env import RoboTwinEnv
from kairos_env.sims.vector import SimulatorVectorEnv

TASKS = ("stack_blocks_three", "blocks_ranking_rgb", "blocks_ranking_size", "handover_block")


@pytest.fixture(scope="module")
def env() -> Iterator[RoboTwinEnv]:
    """One simulator for the module: the first picture of a process takes 8 processor seconds."""
    env = RoboTwinEnv(home=robotwin_home(), cameras=ROBOTWIN_CAMERAS)
    yield env
    env.close()


@pytest.mark.slow
def test_seed_0_is_what_robotwin_itself_observes(env: RoboTwinEnv) -> None:
    stored = np.load(CONTRACT / "get_obs_sample_stack_blocks_two_seed0.npz")
    observation, info = env.reset(seed=3, options={"initial_state": 0})
    for camera in ROBOTWIN_CAMERAS:
        assert np.array_equal(observation[f"image_{camera}"], stored[f"observation/{camera}_camera/rgb"]), camera
    assert np.allclose(observation["proprio"], stored["joint_action/vector"], atol=1e-6)
    assert (info["config"], info["initial_state"], info["steps"], info["physics_steps"]) == ("clean", 0, 0, 0)
    assert not info["success"] and list(info["privileged"]["objects"]) == ["block1", "block2"]
    height = [thing["position"][2] for thing in info["privileged"]["objects"].values()]
    assert np.allclose(height, 0.765, atol=2e-3)  # 5 cm blocks on a table of 0.74 m


@pytest.mark.slow
def test_a_demonstration_succeeds_and_can_be_restored(env: RoboTwinEnv) -> None:
    env.draw_every = 1000
    _, info = env.reset(seed=0, options={"task": "stack_blocks_two", "initial_state": 0})
    assert "red block" in info["instruction"] and "green block" in info["instruction"]
    plan, success = env.expert_plan()
    assert success and plan.shape[1] == 14 and 60 < len(plan) < 200
    state: dict[str, Any] = {}
    for action in plan:
        assert np.array_equal(env.expert_action(), env.robot_spec.check_action(action))
        observation, reward, ended, truncated, info = env.step(action)
        assert -1 <= reward <= 0 and 0 < info["seconds"] == info["physics_steps"] / 250
        if info["steps"] == 3:
            state = env.get_state()
        if ended:
            break
    assert ended and not truncated and info["success"] and reward == 0
    placed = [thing["position"] for thing in info["privileged"]["objects"].values()]
    assert np.allclose(placed[1] - placed[0], [0, 0, 0.05], atol=0.025)
    steps = info["steps"]
    assert env.step(plan[0])[4]["steps"] == steps + 1  # nothing moves any more, and nothing breaks
    assert np.allclose(env.set_state(state)["proprio"], plan[2], atol=1e-6)
    assert env.step(plan[3])[4]["steps"] == 4


@pytest.mark.slow
def test_telling_the_instruction_does_not_play_the_expert(env: RoboTwinEnv) -> None:
    """RoboTwin's ``get_info`` does in these two tasks, on the scene that the policy is to be given."""
    env.draw_every = 1
    for task, words in (("blocks_ranking_size", "large block"), ("stack_blocks_three", "blue block")):
        _, info = env.reset(seed=1, options={"task": task, "initial_state": 0})
        assert words in info["instruction"] and not info["success"] and info["task"] == task
        assert np.allclose(info["privileged"]["joints"][[6, 13]], 1)


@pytest.mark.slow
def test_the_simulator_keeps_the_contract_with_pictures() -> None:
    findings = check_simulator("Kairos-RoboTwin-v0", vector=False, home=robotwin_home(), cameras=("head",))
    assert [f for f in findings if f.status != "ok"] == []
    assert {"state", "expert"} <= {f.name for f in findings}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_other_tasks_keep_the_contract(task: str) -> None:
    """The vector form, too, of one: without pictures, of which the first costs each process 8 processor seconds."""
    vector = task == TASKS[0]
    findings = check_simulator(
        "Kairos-RoboTwin-v0", vector=vector, home=robotwin_home(), task=task, observe_images=False
    )
    assert [f for f in findings if f.status != "ok"] == []
    assert ("vector form" in {f.name for f in findings}) == vector


@pytest.mark.slow
def test_a_killed_and_a_hung_simulator_take_nothing_else_down() -> None:
    envs = SimulatorVectorEnv(
        RoboTwinEnv, 2, home=robotwin_home(), observe_images=False, autoreset_mode="Disabled", time_limit_s=120
    )
    try:
        _, infos = envs.reset(seed=5)
        assert infos["initial_state"][0] != infos["initial_state"][1]
        home = np.zeros((2, 14), np.float32)
        os.kill(envs.envs[0]._process.pid, signal.SIGKILL)
        _, rewards, _, truncated, infos = envs.step(home)
        assert "SIGKILL" in infos["error"][0] and truncated.tolist() == [True, False] and rewards[0] == -1
        envs.reset(options={"reset_mask": np.array([True, False])})
        envs.time_limit_s = envs.envs[1].time_limit_s = 1
        os.kill(envs.envs[1]._process.pid, signal.SIGSTOP)
        envs.envs[0].time_limit_s = 60
        _, _, _, truncated, infos = envs.step(home)
        assert truncated[1] and "SimulatorTimeout" in infos["error"][1]
    finally:
        envs.close()


@pytest.mark.slow
def test_hands_are_moved() -> None:
    env = RoboTwinEnv(home=robotwin_home(), action="ee", observe_images=False, episodes_per_process=1)
    try:
        env.reset(seed=0)
        worker = env._process
        env.reset(seed=0)
        assert env._process is not worker and env._episodes == 1  # its memory is given back
        wanted = env._stay()
        wanted[2] += 0.05
        before = env.step(env._stay())[4]["privileged"]["hands"]
        after = env.step(wanted)[4]["privileged"]["hands"]
        assert np.allclose(after[0, :3] - before[0, :3], [0, 0, 0.05], atol=0.01)
        assert np.allclose(after[1, :3], before[1, :3], atol=0.005)
        assert env.expert_action().shape == (16,)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "stack_block_two"}, "did you mean 'stack_blocks_two'"),
        ({"config": "randomised"}, "did you mean 'randomized'"),
        ({"action": "delta"}, "unknown action 'delta'"),
        ({"cameras": ("wrist",)}, "unknown camera 'wrist'"),
        ({"wording": "sen"}, "did you mean 'seen'"),
        ({"draw_every": 0}, "draw_every=0: give at least 1"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RoboTwinEnv(home=robotwin_home(), **options)


def test_missing_assets_are_named_before_anything_is_set_up() -> None:
    with pytest.raises(FileNotFoundError, match=r"place_shoe \(clean\) needs .* does not have: objects/041_shoe\."):
        RoboTwinEnv("place_shoe", home=robotwin_home())
    env = gym.make("Kairos-RoboTwin-v0", home=robotwin_home()).unwrapped
    assert env.max_episode_steps == 800 and set(env.tasks()) == {"stack_blocks_two", *TASKS}
    with pytest.raises(FileNotFoundError, match="background_texture/seen"):
        env.reset(options={"config": "randomized"})
    with pytest.raises(ValueError, match="did you mean 'handover_block'"):
        env.reset(options={"task": "handover_blok"})
    env.close()


@pytest.mark.slow
def test_a_machine_that_cannot_draw_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = separate_home(tmp_path)
    (tmp_path / "driver").unlink(missing_ok=True)
    for variable in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(variable, str(tmp_path / "none.json"))
    env = RoboTwinEnv(home=home)
    with pytest.raises(SimulatorError, match=r"rendering device: `kairos sims install robotwin` gets a driver"):
        env.reset(seed=0)
    env.close()


def test_arguments_for_a_robot() -> None:
    assert RoboTwinEnv.arguments_for(ROBOTWIN_ALOHA) == {"cameras": ("head", "left", "right"), "action": "qpos"}
    assert RoboTwinEnv.arguments_for(robotwin_aloha(("front",), "ee")) == {"cameras": ("front",), "action": "ee"}
    with pytest.raises(SpecMismatch, match="control_rate_hz"):
        import dataclasses

        RoboTwinEnv.arguments_for(dataclasses.replace(ROBOTWIN_ALOHA, control_rate_hz=10))
