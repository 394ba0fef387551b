"""LIBERO's files: which frame belongs to which action, how pictures are turned, and what is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import paths
import pytest

from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.recorded import EpisodeFile, EpisodeWriter
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.embodiments import LIBERO_PANDA
from kairos_env.records import Camera, SpecMismatch

DATA = paths.DATA / "libero"
TASK = "pick_up_the_milk_and_place_it_in_the_basket"
STEPS, SKIPPED, SIDE = 12, 5, 8


class Truth(NamedTuple):
    """What happened: N actions and what was seen at the N + 1 moments around them; pictures as models see them."""

    actions: np.ndarray
    joints: np.ndarray
    proprio: np.ndarray
    agentview: np.ndarray
    eye_in_hand: np.ndarray
    states: np.ndarray


def happened(seed: int, steps: int = STEPS, side: int = SIDE) -> Truth:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, 7))
    joints = np.cumsum(rng.normal(scale=0.05, size=(steps + 1, 7)), axis=0)
    pictures = rng.integers(0, 256, (2, steps + 1, side, side, 3), dtype=np.uint8)
    rest = rng.normal(size=(steps + 1, 11))
    states = np.concatenate([np.arange(steps + 1)[:, None] / 20, joints, rest], axis=1)
    return Truth(actions, joints, rng.normal(scale=0.02, size=(steps + 1, 8)), pictures[0], pictures[1], states)


def write_rows(demo: h5py.Group, truth: Truth, acted: slice, seen: slice, stored: tuple[int, int] = (-1, -1)) -> None:
    """One row for each action of ``acted`` with the observation of ``seen``, pictures turned by ``stored``."""
    rows = len(truth.actions[acted])
    demo["actions"], demo["states"] = truth.actions[acted], truth.states[:-1][acted]
    demo["rewards"] = demo["dones"] = (np.arange(rows) == rows - 1).astype(np.uint8)
    demo["robot_states"] = np.zeros((rows, 9))
    obs, turn = demo.create_group("obs"), (slice(None), slice(None, None, stored[0]), slice(None, None, stored[1]))
    obs["ee_pos"], obs["ee_ori"], obs["gripper_states"] = np.split(truth.proprio[seen], [3, 6], axis=1)
    obs["ee_states"], obs["joint_states"] = truth.proprio[seen][:, :6], truth.joints[seen]
    for name, images in (("agentview", truth.agentview), ("eye_in_hand", truth.eye_in_hand)):
        obs.create_dataset(f"{name}_rgb", data=images[seen][turn])


def write_original(path: Path, seeds: list[int], side: int = SIDE, convention: str = "opengl") -> Path:
    """As LIBERO writes: the first five steps are dropped, each action is played before its observation is stored."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps(
            {"language_instruction": list('"Pick the milk"'), "domain_name": "robosuite"}
        )
        data.attrs["bddl_file_name"] = f"libero/libero/bddl_files/libero_object/{TASK}.bddl"
        data.attrs["macros_image_convention"] = convention
        data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Libero_Floor_Manipulation", "env_kwargs": {}})
        for number, seed in enumerate(seeds):
            demo = data.create_group(f"demo_{number}")
            stored = (-1, -1) if convention == "opengl" else (1, -1)
            write_rows(demo, happened(seed, side=side), slice(SKIPPED, None), slice(SKIPPED + 1, None), stored)
            demo.attrs["num_samples"] = STEPS - SKIPPED
            demo.attrs["model_file"] = "<mujoco/>"
    return path


def write_regenerated(path: Path, seeds: list[int]) -> Path:
    """As replay scripts write: observation first, then the action; the arm settled after the first state was taken."""
    with h5py.File(path, "w") as file:
        for number, seed in enumerate(seeds):
            truth = happened(seed)
            truth.states[0, 1:8] += 0.2
            write_rows(file.create_group(f"data/demo_{number}"), truth, slice(None), slice(None, -1))
    return path


def assert_is(episode: object, truth: Truth, decisions: slice, observations: slice) -> None:
    np.testing.assert_array_equal(episode.actions, truth.actions[decisions].astype(np.float32))
    np.testing.assert_array_equal(episode.proprio, truth.proprio[observations].astype(np.float32))
    np.testing.assert_array_equal(episode.images["agentview"], truth.agentview[observations])
    np.testing.assert_array_equal(episode.images["eye_in_hand"], truth.eye_in_hand[observations])
    assert episode.success.tolist() == [False] * (len(episode) - 1) + [True]
    assert episode.rewards.tolist() == [0.0] * (len(episode) - 1) + [1.0]


def test_original_files_lose_their_first_action(tmp_path: Path) -> None:
    path = write_original(tmp_path / f"{TASK}_demo.hdf5", [0, 1])
    episodes = LiberoFile(path)
    assert (len(episodes), episodes.total, episodes.broken) == (2, 2 * (STEPS - SKIPPED - 1), {})
    assert episodes.names == [f"{path}:demo_0", f"{path}:demo_1"]
    assert episodes.spec.cameras == (Camera("agentview", SIDE, SIDE), Camera("eye_in_hand", SIDE, SIDE))
    assert (episodes.spec.proprio, episodes.spec.action) == (LIBERO_PANDA.proprio, LIBERO_PANDA.action)
    for seed, episode in enumerate(episodes):
        # frame 6 was seen after action 5: the first action between two frames is number 6
        assert_is(episode, happened(seed), slice(SKIPPED + 1, None), slice(SKIPPED + 1, None))
    assert episodes[0].instruction == "pick up the milk and place it in the basket"
    assert (episodes[0].task, episodes[0].source) == (TASK, "human")


def test_regenerated_files_lose_their_last_action(tmp_path: Path) -> None:
    episodes = LiberoFile(write_regenerated(tmp_path / f"{TASK}_demo.hdf5", [0, 1]))
    for seed, episode in enumerate(episodes):
        assert_is(episode, happened(seed), slice(None, -1), slice(None, -1))
    assert episodes[1].instruction == "pick up the milk and place it in the basket"


def test_an_action_that_is_left_out_may_be_anything(tmp_path: Path) -> None:
    for write, unused in ((write_original, 0), (write_regenerated, -1)):
        path = write(tmp_path / f"{write.__name__}_demo.hdf5", [0])
        with h5py.File(path, "r+") as file:
            rows = len(file["data/demo_0/actions"])
            file["data/demo_0/actions"][unused] = np.nan
        assert len(LiberoFile(path)[0]) == rows - 1
        with h5py.File(path, "r+") as file:
            file["data/demo_0/actions"][2, 3] = np.nan
        with pytest.warns(UserWarning, match="demo_0: 'actions' holds a non-finite value in row 2"):
            assert len(LiberoFile(path)) == 0


def test_an_instruction_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = write_original(tmp_path / f"{TASK}_demo.hdf5", [0])
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = np.bytes_('{"language_instruction": "déplacer"}'.encode("latin-1"))
    with pytest.raises(BrokenEpisode, match="a text in it, line 1, is not UTF-8: byte 0xe9"):
        LiberoFile(path, prompt="bddl")
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = np.array(['{"language_instruction": "déplacer"}'], object)
    assert LiberoFile(path, prompt="bddl")[0].instruction == "déplacer"


def test_which_kind_it_is_can_be_said_and_must_be_where_nothing_tells(tmp_path: Path) -> None:
    path = write_original(tmp_path / f"{TASK}_demo.hdf5", [0])
    with h5py.File(path, "r+") as file:
        file["data/demo_0/states"][:, 1:8] = 0
    with pytest.warns(UserWarning, match="demo_0: cannot tell .* pass observed='before' or 'after'"):
        assert len(LiberoFile(path)) == 0
    after, before = (LiberoFile(path, observed=kind)[0] for kind in ("after", "before"))
    np.testing.assert_array_equal(after.actions[:-1], before.actions[1:])
    np.testing.assert_array_equal(after.proprio, before.proprio)
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/states"]
    assert len(LiberoFile(path, observed="after")) == 1
    with pytest.warns(UserWarning, match="'states' is missing"):
        assert len(LiberoFile(path)) == 0


def test_pictures_are_turned_as_models_see_them(tmp_path: Path) -> None:
    # a red pixel at the left top of what the renderer draws upside down is at the right bottom for models
    path = write_regenerated(tmp_path / f"{TASK}_demo.hdf5", [0])
    with h5py.File(path, "r+") as file:
        pictures = file["data/demo_0/obs/agentview_rgb"]
        pictures[...] = np.zeros(pictures.shape, np.uint8)
        pictures[:, 0, 0] = (255, 0, 0)
    assert LiberoFile(path)[0].images["agentview"][3, -1, -1].tolist() == [255, 0, 0]
    assert LiberoFile(path, pictures="opencv")[0].images["agentview"][3, 0, -1].tolist() == [255, 0, 0]
    assert LiberoFile(path, pictures="turned")[0].images["agentview"][3, 0, 0].tolist() == [255, 0, 0]
    upright = LiberoFile(write_original(tmp_path / "b_demo.hdf5", [0], convention="opencv"))
    assert_is(upright[0], happened(0), slice(SKIPPED + 1, None), slice(SKIPPED + 1, None))
    with h5py.File(tmp_path / "b_demo.hdf5", "r+") as file:
        file["data"].attrs["macros_image_convention"] = "sideways"
    with pytest.raises(BrokenEpisode, match="'sideways'.*pass pictures="):
        LiberoFile(tmp_path / "b_demo.hdf5")


def test_instructions(tmp_path: Path) -> None:
    def said(name: str, **options: object) -> str:
        path = write_original(tmp_path / name, [0])
        return LiberoFile(path, **options)[0].instruction  # type: ignore[arg-type]

    assert said("KITCHEN_SCENE10_close_the_top_drawer_demo.hdf5") == "close the top drawer"
    assert said("renamed.hdf5") == "pick up the milk and place it in the basket"
    assert said("open_it_demo.hdf5", prompt="bddl") == "Pick the milk"
    assert said("open_it_demo.hdf5", instruction="do it") == "do it"
    for name in ("open_it_view_0_0_100_0_0_initstate_1_demo.hdf5", "open_it_language_4_demo.hdf5"):
        with pytest.raises(BrokenEpisode, match="perturbation of LIBERO-plus"):
            said(name)
        assert said(name, prompt="bddl") == "Pick the milk"
    path = write_regenerated(tmp_path / "open_it_demo.hdf5", [0])
    with pytest.raises(BrokenEpisode, match="problem_info"):
        LiberoFile(path, prompt="bddl")


@pytest.mark.parametrize("option", ["observed", "pictures", "prompt"])
def test_options_that_do_not_exist(tmp_path: Path, option: str) -> None:
    path = write_regenerated(tmp_path / "open_it_demo.hdf5", [0])
    with pytest.raises(ValueError, match=f"{option} is 'both', expected"):
        LiberoFile(path, **{option: "both"})  # type: ignore[arg-type]


def break_in(what: str, file: h5py.File) -> None:
    demo = file["data/demo_1"]
    if what == "camera":
        del demo["obs/eye_in_hand_rgb"]
    elif what == "length":
        short = demo["obs/agentview_rgb"][:-1]
        del demo["obs/agentview_rgb"]
        demo["obs/agentview_rgb"] = short
    elif what == "nan":
        demo["obs/ee_ori"][2, 1] = np.nan
    elif what == "width":
        del demo["actions"]
        demo["actions"] = np.zeros((STEPS - SKIPPED, 6))
    elif what == "count":
        demo.attrs["num_samples"] = 99
    elif what == "one row":
        del file["data/demo_1"]
        write_rows(file.create_group("data/demo_1"), happened(1, steps=1), slice(None), slice(None, -1))
    elif what == "no group":
        del file["data/demo_1"]
        file["data/demo_1"] = 3
    elif what == "type":
        floats = demo["obs/agentview_rgb"][()] / 255
        del demo["obs/agentview_rgb"]
        demo["obs/agentview_rgb"] = floats


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("camera", "'obs/eye_in_hand_rgb' is missing"),
        ("length", r"'obs/agentview_rgb' is uint8 \(6, 8, 8, 3\), expected uint8 \(7, 8, 8, 3\)"),
        ("nan", "'obs/ee_ori' holds a non-finite value"),
        ("width", r"'actions' is float64 \(7, 6\), expected numbers of shape \(any, 7\)"),
        ("count", "num_samples is 99, but it has 7 actions"),
        ("one row", "1 row, too few"),
        ("no group", "'actions' is missing"),
        ("type", "expected uint8"),
    ],
)
def test_a_broken_episode_is_named_and_left_out(tmp_path: Path, what: str, said: str) -> None:
    path = write_original(tmp_path / f"{TASK}_demo.hdf5", [0, 1, 2])
    with h5py.File(path, "r+") as file:
        break_in(what, file)
    with pytest.warns(UserWarning, match=f"_demo.hdf5:demo_1: .*{said}"):
        episodes = LiberoFile(path)
    assert list(episodes.broken) == [f"{path}:demo_1"]
    for seed, episode in zip((0, 2), episodes, strict=True):
        assert_is(episode, happened(seed), slice(SKIPPED + 1, None), slice(SKIPPED + 1, None))


def test_folders_of_suites_and_files_that_are_cut_off(tmp_path: Path) -> None:
    for suite, seed in (("libero_goal", 0), ("libero_object", 1)):
        (tmp_path / suite).mkdir()
        write_original(tmp_path / suite / "open_it_demo.hdf5", [seed])
    cut = write_original(tmp_path / "libero_object" / "shut_it_demo.hdf5", [2])
    cut.write_bytes(cut.read_bytes()[:4000])
    with pytest.warns(UserWarning, match="shut_it_demo.hdf5 is not a readable HDF5 file"):
        episodes = LiberoFile(tmp_path)
    assert len(episodes) == 2 and list(episodes.broken) == [str(cut)]
    with pytest.raises(BrokenEpisode, match="shut_it"):
        LiberoFile(cut)
    write_original(tmp_path / "libero_goal" / "large_demo.hdf5", [3], side=16)
    with pytest.raises(SpecMismatch, match="open them separately"):
        LiberoFile(tmp_path / "libero_goal")
    with h5py.File(tmp_path / "blind_demo.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
    with pytest.raises(BrokenEpisode, match="no episode has pictures"):
        LiberoFile(tmp_path / "blind_demo.hdf5")


def test_damaged_pixels_are_found_when_they_are_read(tmp_path: Path) -> None:
    path = write_original(tmp_path / f"{TASK}_demo.hdf5", [0, 1])
    with h5py.File(path, "r+") as file:
        obs = file["data/demo_0/obs"]
        pictures = obs["agentview_rgb"][()]
        del obs["agentview_rgb"]
        checked = obs.create_dataset("agentview_rgb", data=pictures, chunks=(1, SIDE, SIDE, 3), fletcher32=True)
        chunk = checked.id.get_chunk_info(2)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset] ^= 0xFF
    path.write_bytes(raw)
    episodes = LiberoFile(path)
    with pytest.warns(UserWarning, match="demo_0: damaged"):
        assert len(list(episodes)) == 1
    with pytest.warns(UserWarning, match="demo_0: damaged"):
        assert LiberoFile(path, verify=True).names == [f"{path}:demo_1"]


def test_an_imported_episode_can_be_written_in_our_own_layout(tmp_path: Path) -> None:
    imported = LiberoFile(write_original(tmp_path / f"{TASK}_demo.hdf5", [0]))
    with EpisodeWriter(tmp_path / "ours.hdf5", imported.spec) as writer:
        writer.add(imported[0])
    again = EpisodeFile(tmp_path / "ours.hdf5")
    assert again.spec == imported.spec
    np.testing.assert_array_equal(again[0].images["eye_in_hand"], imported[0].images["eye_in_hand"])
    assert again[0].instruction == imported[0].instruction


@pytest.mark.skipif(not DATA.is_dir(), reason="needs LIBERO's initial states under KAIROS_TEST_DATA")
def test_real_states_begin_with_the_arms_joints(tmp_path: Path) -> None:
    """What tells the two kinds of files apart holds in all scenes: the rest pose stands in columns 1 to 7."""
    import io
    import tarfile

    with tarfile.open(DATA / "libero_plus_data.tar.xz") as archive:
        member = archive.extractfile("libero_plus_data/init_states.npz")
        assert member is not None
        states = np.load(io.BytesIO(member.read()))
    rest = np.array([0, -0.161, 0, -2.445, 0, 2.227, 0.785])
    for name in states.files[::40]:
        first = states[name].reshape(-1, states[name].shape[-1])[0]
        assert np.abs(first[1:8] - rest).max() < 0.2, name
