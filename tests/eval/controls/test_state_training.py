from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.eval.controls.state_training import StateTrainingConfig, run_state_training
from kairos_env.policies.planners.state_model import StateModel
from kairos_env.records import Camera, Episode, Field, RobotSpec

SPEC = RobotSpec(
    name="glider",
    cameras=(Camera("scene", 8, 8),),
    proprio=tuple(Field(f"eef_{axis}", -0.4, 0.4, "m", "position") for axis in "xyz"),
    action=tuple(Field(f"d{axis}", -0.05, 0.05, "m", "delta_position") for axis in "xyz"),
    control_rate_hz=5,
)


def episode(seed: int, task: str, length: int = 6) -> Episode:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-0.05, 0.05, (length, 3)).astype(np.float32)
    eef = np.concatenate([np.zeros((1, 3)), actions.cumsum(0)]).astype(np.float32)
    cube = np.tile(rng.uniform(-0.1, 0.1, 3), (length + 1, 1)).astype(np.float32)
    near = np.linalg.norm(eef - cube, axis=1)[1:]
    labels = {
        "object_position": cube,
        "goal_position": np.zeros_like(cube),
        "task_rewards": np.stack([near, 1 - near], 1).astype(np.float32),
        "task_success": np.stack([near < 0.03, near > 0.3], 1),
    }
    images = {"scene": np.zeros((length + 1, 8, 8, 3), np.uint8)}
    words = {"near": "go to the cube", "far": "leave the cube"}
    own = list(words).index(task)
    rewards, success = labels["task_rewards"][:, own], labels["task_success"][:, own]
    more = {"labels": labels, "label_tasks": tuple(words)}
    return Episode(images, eef, actions, rewards, success, task, words[task], **more)  # type: ignore[arg-type]


def test_a_recording_becomes_a_model_with_its_tasks_and_errors(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "recording.hdf5", SPEC) as writer:
        for seed in range(12):
            writer.add(episode(seed, ("near", "far")[seed % 2]))
    config = StateTrainingConfig(str(tmp_path / "recording.hdf5"), str(tmp_path / "out"), updates=20, batch=8)
    _, report = run_state_training(config)
    model = StateModel.load(tmp_path / "out")
    assert model.tasks == {"near": "go to the cube", "far": "leave the cube"} and model.spec == SPEC
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert report["train_episodes"] == 11 and report["5"]["object_still_cm"] == 0


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="held_out must be in 0 ... 1 without 1, got inf"):
        StateTrainingConfig(held_out=float("inf"))
    with pytest.raises(ValueError, match="near_weight must be at least 1, got 0"):
        StateTrainingConfig(near_weight=0)
    with pytest.raises(ValueError, match="updates must be at least 3, got 2"):
        StateTrainingConfig(updates=2)
