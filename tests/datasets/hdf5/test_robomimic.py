"""robomimic's own files: the robot is read from them, the final frame found, and what is broken named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kairos_env.datasets.hdf5.recorded import EpisodeFile, EpisodeWriter
from kairos_env.datasets.hdf5.robomimic import RobomimicFile
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Camera, Field, RobotSpec

STEPS = 6
OSC = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
}
OLD = OSC | {"control_delta": True}  # robosuite 1.4
NEW = {"type": "BASIC", "body_parts": {"right": OSC | {"input_type": "delta", "input_ref_frame": "base"}}}  # 1.5
CAMERAS = {"agentview_image": (8, 8, 3), "robot0_eye_in_hand_image": (6, 4, 3)}
WIDTHS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2, "joint_pos": 7, "joint_vel": 7}


def happened(seed: int, robots: int = 1) -> dict[str, np.ndarray]:
    """All observations of the T + 1 moments, by robomimic's names."""
    rng = np.random.default_rng(seed)
    seen = {key: rng.integers(0, 256, (STEPS + 1, *shape), dtype=np.uint8) for key, shape in CAMERAS.items()}
    for robot in range(robots):
        seen |= {f"robot{robot}_{key}": rng.uniform(-0.04, 0.04, (STEPS + 1, n)) for key, n in WIDTHS.items()}
    return seen | {"object": rng.normal(size=(STEPS + 1, 10))}


def actions(seed: int, robots: int = 1) -> np.ndarray:
    return np.random.default_rng(100 + seed).uniform(-1, 1, (STEPS, 7 * robots))


def write(
    path: Path, demos: int = 1, robots: int = 1, controller: Any = OLD, next_obs: bool = True, env: str = "PickPlaceCan"
) -> Path:
    """As robomimic's dataset_states_to_obs.py writes."""
    kwargs = {"robots": ["Panda"] * robots, "control_freq": 20, "controller_configs": controller}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = demos * STEPS
        data.attrs["env_args"] = json.dumps({"env_name": env, "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs})
        for number in range(demos):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = STEPS, "<mujoco/>"
            demo["actions"], demo["states"] = actions(number, robots), np.zeros((STEPS, 32))
            demo["rewards"] = (np.arange(STEPS) >= STEPS - 2).astype(float)
            demo["dones"] = (np.arange(STEPS) == STEPS - 1).astype(int)
            for key, values in happened(number, robots).items():
                demo[f"obs/{key}"] = values[:-1]
                if next_obs:
                    demo[f"next_obs/{key}"] = values[1:]
        file["mask/train"] = np.array(["demo_0"], dtype="S8")
    return path


def state(seed: int, keys: tuple[str, ...] = ("eef_pos", "eef_quat", "gripper_qpos"), robots: int = 1) -> np.ndarray:
    seen = happened(seed, robots)
    return np.concatenate([seen[f"robot{r}_{key}"] for r in range(robots) for key in keys], axis=1).astype(np.float32)


def test_an_episode_with_next_obs_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "can.hdf5", demos=2)
    episodes = RobomimicFile(path)
    assert episodes.names == [f"{path}:demo_0", f"{path}:demo_1"] and episodes.total == 2 * STEPS
    spec = episodes.spec
    assert spec.cameras == (Camera("agentview", 8, 8), Camera("robot0_eye_in_hand", 6, 4))
    assert (spec.name, spec.control_rate_hz, spec.proprio_dim) == ("robosuite-panda", 20.0, 9)
    assert [f.name for f in spec.action] == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
    assert spec.action[0] == Field("dx", -1, 1, "0.05 m", "delta_position", "world")
    assert spec.action[3].unit == "0.5 rad"
    for seed, episode in enumerate(episodes):
        np.testing.assert_array_equal(episode.actions, actions(seed).astype(np.float32))
        np.testing.assert_array_equal(episode.proprio, state(seed))
        for camera in ("agentview", "robot0_eye_in_hand"):
            np.testing.assert_array_equal(episode.images[camera], happened(seed)[f"{camera}_image"])
        assert episode.success.tolist() == [False] * 4 + [True] * 2
        assert (episode.task, episode.instruction) == ("PickPlaceCan", "pick place can")


def test_without_next_obs_the_last_action_has_no_frame_after_it(tmp_path: Path) -> None:
    episode = RobomimicFile(write(tmp_path / "can.hdf5", next_obs=False))[0]
    assert len(episode) == STEPS - 1
    np.testing.assert_array_equal(episode.actions, actions(0)[:-1].astype(np.float32))
    np.testing.assert_array_equal(episode.proprio, state(0)[:-1])
    np.testing.assert_array_equal(episode.images["agentview"], happened(0)["agentview_image"][:-1])


def test_a_last_action_that_nobody_uses_may_be_anything(tmp_path: Path) -> None:
    for next_obs, left in ((False, 1), (True, 0)):
        path = write(tmp_path / f"{next_obs}.hdf5", next_obs=next_obs)
        with h5py.File(path, "r+") as file:
            file["data/demo_0/actions"][-1] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            episodes = RobomimicFile(path)
        assert len(episodes) == left
        assert left or f"'actions' holds a non-finite value in row {STEPS - 1}" in next(iter(episodes.broken.values()))


def test_a_length_that_the_file_cannot_hold_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "can.hdf5", demos=2)
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/robot0_eef_pos"]
        file.create_dataset("data/demo_0/obs/robot0_eef_pos", (10**10, 3), "f8", chunks=(10**4, 3))
    with pytest.warns(UserWarning, match="should be 240,000,000,000 bytes, but the file holds 0 bytes of it"):
        assert len(RobomimicFile(path)) == 1


def test_two_arms_and_the_newer_controllers(tmp_path: Path) -> None:
    both = {"type": "BASIC", "body_parts": {"right": NEW["body_parts"]["right"]}}  # type: ignore[index]
    spec = RobomimicFile(write(tmp_path / "two.hdf5", robots=2, controller=both)).spec
    assert (spec.action_dim, spec.proprio_dim) == (14, 18)
    assert [spec.action[i].name for i in (0, 6, 7, 13)] == [
        "robot0_dx",
        "robot0_gripper",
        "robot1_dx",
        "robot1_gripper",
    ]
    assert spec.action[7].frame == "base"
    assert RobomimicFile(write(tmp_path / "new.hdf5", controller=NEW)).spec.action[0].frame == "base"


def test_instructions(tmp_path: Path) -> None:
    path = write(tmp_path / "lift.hdf5", demos=2, env="Lift")
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs["ep_meta"] = json.dumps({"lang": "raise the cube", "layout_id": 1})
    assert [e.instruction for e in RobomimicFile(path)] == ["lift", "raise the cube"]
    assert [e.instruction for e in RobomimicFile(path, instruction="go")] == ["go", "go"]


def test_other_observations_and_robots(tmp_path: Path) -> None:
    path = write(tmp_path / "can.hdf5", controller={"type": "JOINT_VELOCITY"})
    with pytest.raises(BrokenEpisode, match="7 actions and 0 OSC_POSE controllers.*pass spec"):
        RobomimicFile(path)
    spec = RobotSpec(
        name="mine",
        cameras=(Camera("agentview", 8, 8),),
        proprio=tuple(Field(f"v{i}", -1, 1, "rad/s") for i in range(7)),
        action=tuple(Field(f"a{i}", -1, 1, "rad/s") for i in range(7)),
        control_rate_hz=20.0,
        instruction="turn",
    )
    episodes = RobomimicFile(path, proprio=["robot0_joint_vel"], spec=spec)
    assert episodes.spec == spec and list(episodes[0].images) == ["agentview"]
    np.testing.assert_array_equal(episodes[0].proprio, state(0, ("joint_vel",)))
    assert episodes[0].instruction == "turn"
    with pytest.warns(UserWarning, match="robot0_eef_pos, robot0_eef_quat.* have 9 values, but 'mine' has 7"):
        RobomimicFile(path, spec=spec)
    path = write(tmp_path / "joints.hdf5")
    assert RobomimicFile(path, proprio=["robot0_joint_pos", "robot0_gripper_qpos"]).spec.proprio_dim == 9
    with pytest.raises(BrokenEpisode, match="meaning of the observation 'robot0_joint_vel'"):
        RobomimicFile(path, proprio=["robot0_joint_vel"])
    absolute = write(tmp_path / "absolute.hdf5", controller=OSC | {"control_delta": False})
    with pytest.raises(BrokenEpisode, match="relative inputs"):
        RobomimicFile(absolute)


def break_in(what: str, file: h5py.File) -> None:
    demo = file["data/demo_1"]
    if what == "camera":
        del demo["obs/agentview_image"]
    elif what == "length":
        short = demo["next_obs/robot0_eef_pos"][1:]
        del demo["next_obs/robot0_eef_pos"]
        demo["next_obs/robot0_eef_pos"] = short
    elif what == "hand":
        del demo["obs/robot0_eef_pos"]
    elif what == "nan":
        demo["actions"][3, 2] = np.nan
    elif what == "count":
        demo.attrs["num_samples"] = STEPS + 1
    elif what == "size":
        del demo["next_obs/agentview_image"]
        demo["next_obs/agentview_image"] = np.zeros((STEPS, 9, 9, 3), np.uint8)
    elif what == "rewards":
        del demo["rewards"]
    elif what == "empty":
        for key in list(demo):
            del demo[key]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("camera", "'obs/agentview_image' is missing"),
        ("length", r"'next_obs/robot0_eef_pos' is float64 \(5, 3\), expected numbers of shape \(6, any\)"),
        ("hand", "'obs/robot0_eef_pos' is missing"),
        ("nan", "'actions' holds a non-finite value"),
        ("count", "num_samples is 7, but it has 6 actions"),
        ("size", r"\(6, 9, 9, 3\), expected uint8 \(6, 8, 8, 3\)"),
        ("rewards", "'rewards' is missing"),
        ("empty", "'actions' is missing"),
    ],
)
def test_a_broken_episode_is_named_and_left_out(tmp_path: Path, what: str, said: str) -> None:
    path = write(tmp_path / "can.hdf5", demos=3)
    with h5py.File(path, "r+") as file:
        break_in(what, file)
    with pytest.warns(UserWarning, match=f"can.hdf5:demo_1: .*{said}"):
        episodes = RobomimicFile(path, verify=True)
    assert list(episodes.broken) == [f"{path}:demo_1"]
    for seed, episode in zip((0, 2), episodes, strict=True):
        np.testing.assert_array_equal(episode.proprio, state(seed))


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    whole, cut = write(tmp_path / "a.hdf5"), write(tmp_path / "b.hdf5")
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="b.hdf5 is not a readable HDF5 file"):
        episodes = RobomimicFile(tmp_path)
    assert episodes.names == [f"{whole}:demo_0"] and list(episodes.broken) == [str(cut)]
    with h5py.File(whole, "r+") as file:
        for key in CAMERAS:
            del file[f"data/demo_0/obs/{key}"]
    with pytest.raises(BrokenEpisode, match=r"no pictures among its observations .*--camera_names"):
        RobomimicFile(whole)
    with h5py.File(whole, "r+") as file:
        del file["data/demo_0/obs"]
    with pytest.raises(BrokenEpisode, match="no observations; extract them"):
        RobomimicFile(whole)
    bare = write(tmp_path / "bare.hdf5")
    with h5py.File(bare, "r+") as file:
        file["data"].attrs["env_args"] = "{"
    with pytest.raises(BrokenEpisode, match="env_args.* does not describe the environment"):
        RobomimicFile(bare)


def test_an_imported_episode_can_be_written_in_our_own_layout(tmp_path: Path) -> None:
    imported = RobomimicFile(write(tmp_path / "can.hdf5"))
    with EpisodeWriter(tmp_path / "ours.hdf5", imported.spec) as writer:
        writer.add(imported[0])
    again = EpisodeFile(tmp_path / "ours.hdf5")
    assert again.spec == imported.spec
    np.testing.assert_array_equal(again[0].images["agentview"], imported[0].images["agentview"])
    np.testing.assert_array_equal(again[0].proprio, imported[0].proprio)
