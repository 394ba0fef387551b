"""LIBERO's files written here: read back exactly, and what training makes of their labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kairos_env.collect.export import ExportConfig, export
from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.libero_write import LiberoWriter
from kairos_env.datasets.layouts import open_recording
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.embodiments import libero_panda
from kairos_env.records import Episode, SpecMismatch

SIDE, REPEAT = 8, 4
SPEC = libero_panda(SIDE, REPEAT)
MILK = ("pick_up_the_milk_and_place_it_in_the_basket", "pick up the milk, please")
BUTTER = ("pick_up_the_butter_and_place_it_in_the_basket", "pick up the butter, please")
BDDL = "(define (problem LIBERO_Floor_Manipulation)\n  (:domain robosuite)\n)"


def episode(seed: int = 0, steps: int = 6, task: tuple[str, str] = MILK) -> Episode:
    rng = np.random.default_rng(seed)
    success = np.arange(steps) >= steps - 2
    return Episode(
        {c.name: rng.integers(0, 256, (steps + 1, SIDE, SIDE, 3), np.uint8) for c in SPEC.cameras},
        rng.uniform(-0.04, 0.04, (steps + 1, 8)).astype(np.float32),
        rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        success.astype(np.float32),
        success,
        task=task[0],
        instruction=task[1],
        source="noisy_expert",
        seed=seed,
        initial_state=seed + 3,
        labels={
            "expert_actions": rng.uniform(-1, 1, (steps + 1, 1, 7)).astype(np.float32),
            "object_position": rng.uniform(-1, 1, (steps + 1, 3)).astype(np.float32),
        },
        label_tasks=(task[0],),
    )


def states_of(e: Episode) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(len(e), 30))


def write(path: Path, episodes: list[Episode], bddl: Path | None = None) -> Path:
    with LiberoWriter(path, SPEC, *MILK, bddl, {"rendering": "fast"}) as writer:
        for one in episodes:
            writer.add(one, states_of(one))
    return path


def assert_same(got: Episode, want: Episode) -> None:
    for key in ("proprio", "actions", "rewards", "success"):
        np.testing.assert_array_equal(getattr(got, key), getattr(want, key))
        assert getattr(got, key).dtype == getattr(want, key).dtype
    for name in want.images:
        np.testing.assert_array_equal(got.images[name], want.images[name])
    assert set(got.labels) == set(want.labels)
    for name in want.labels:
        np.testing.assert_array_equal(got.labels[name], want.labels[name])
    for key in ("task", "instruction", "source", "seed", "initial_state", "label_tasks"):
        assert getattr(got, key) == getattr(want, key)


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    wanted = [episode(0), episode(1, steps=1), replace(episode(2), labels={}, label_tasks=())]
    found = open_recording(write(tmp_path / "renamed.hdf5", wanted))
    assert isinstance(found, LiberoFile) and found.spec == SPEC and found.total == 13
    for got, want in zip(found, wanted, strict=True):
        assert_same(got, want)


def test_libero_finds_its_own_layout(tmp_path: Path) -> None:
    (tmp_path / "libero_object").mkdir()
    bddl = tmp_path / "libero_object" / f"{MILK[0]}.bddl"
    bddl.write_text(BDDL)
    e = episode()
    with h5py.File(write(tmp_path / f"{MILK[0]}_demo.hdf5", [e], bddl)) as file:
        data, demo = file["data"], file["data/demo_0"]
        assert (data.attrs["num_demos"], data.attrs["total"], data.attrs["tag"]) == (1, 6, "libero-v1")
        assert data.attrs["bddl_file_name"] == f"libero_object/{MILK[0]}.bddl"
        assert data.attrs["bddl_file_content"] == BDDL and data.attrs["macros_image_convention"] == "opengl"
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == MILK[1]
        assert json.loads(data.attrs["env_args"])["problem_name"] == "libero_floor_manipulation"
        assert demo.attrs["num_samples"] == 6
        np.testing.assert_array_equal(demo.attrs["init_state"], states_of(e)[0])
        np.testing.assert_array_equal(demo["states"], states_of(e))
        np.testing.assert_array_equal(demo["obs/joint_states"], states_of(e)[:, 1:8])
        np.testing.assert_array_equal(demo["obs/agentview_rgb"], e.images["agentview"][:-1, ::-1, ::-1])
        np.testing.assert_array_equal(demo["obs/ee_states"], e.proprio[:-1, :6])
        np.testing.assert_array_equal(demo["dones"], [0, 0, 0, 0, 0, 1])
        assert {k: len(v) for k, v in demo["obs"].items()} == dict.fromkeys(
            ("agentview_rgb", "eye_in_hand_rgb", "ee_pos", "ee_ori", "ee_states", "gripper_states", "joint_states"), 6
        )
        robot = demo["robot_states"][()]
        np.testing.assert_array_equal(robot[:, :5], e.proprio[:-1, [6, 7, 0, 1, 2]])
        w = robot[:, 8]  # the axis-angle of a quaternion x y z w is 2 acos(w) along x y z
        np.testing.assert_allclose(np.linalg.norm(e.proprio[:-1, 3:6], axis=1), 2 * np.arccos(w), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(robot[:, 5:], axis=1), 1, atol=1e-12)


def test_they_become_a_lerobot_dataset_with_all_they_know(tmp_path: Path) -> None:
    both = [episode(0), episode(1, task=BUTTER)]
    for e, task in zip(both, (MILK, BUTTER), strict=True):
        with LiberoWriter(tmp_path / "libero" / f"{task[0]}_demo.hdf5", SPEC, *task) as writer:
            writer.add(e, states_of(e))
    export(ExportConfig(str(tmp_path / "lerobot"), (str(tmp_path / "libero"),), images="png"), progress=False)
    found = open_recording(tmp_path / "lerobot")
    assert found.spec == SPEC
    for got, want in zip(found, sorted(both, key=lambda e: e.task), strict=True):
        assert_same(got, want)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "other"}, "of the task 'other'"),
        ({"rewards": np.full(6, 0.5, np.float32)}, "not 1 for success"),
        ({"label_tasks": ("a", "b")}, "expert_actions has shape"),
        ({"actions": np.full((6, 7), np.nan, np.float32)}, "non-finite"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    bad = replace(episode(), **change)
    with LiberoWriter(tmp_path / "a.hdf5", SPEC, *MILK) as writer:
        with pytest.raises(BrokenEpisode, match=said):
            writer.add(bad, states_of(bad))
        with pytest.raises(BrokenEpisode, match="states has shape"):
            writer.add(episode(), np.zeros((5, 30)))
        writer.add(episode(), states_of(episode()))
    assert len(LiberoFile(tmp_path / "a.hdf5")) == 1
    with pytest.raises(SpecMismatch, match="layout"):
        LiberoWriter(tmp_path / "b.hdf5", replace(SPEC, proprio=SPEC.proprio[:3]), "t", "i")
    assert not (tmp_path / "b.hdf5").exists()
