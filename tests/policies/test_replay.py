"""Recorded demonstrations, found by the task and the initial state of an episode."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from point_simulator import SPEC

from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.policies.policy import example_observation
from kairos_env.policies.replay import DemonstrationPolicy, NoDemonstration
from kairos_env.records import Episode


def test_demonstrations_are_replayed_by_task_and_start(tmp_path: Path) -> None:
    actions = np.array([[0.1, 0.0], [0.2, 0.0]], np.float32)
    spec = dataclasses.replace(SPEC, control_rate_hz=20.0)
    np.savez(tmp_path / "libero_object_0.npz", instruction="pick up the cup", actions_4=actions)
    policy = DemonstrationPolicy(tmp_path, spec)
    info = {"suite": "libero_object", "base_task": "pick_up_the_cup", "task": "a/b/c", "initial_state": 4}
    with pytest.raises(RuntimeError, match="begin"):
        policy.act(None)  # type: ignore[arg-type]
    policy.begin(info)
    assert [float(policy.act(None)[0]) for _ in range(2)] == pytest.approx([0.1, 0.2])  # type: ignore[arg-type]
    for change in ({"initial_state": 5}, {"base_task": "other"}, {"suite": "libero_goal"}):
        with pytest.raises(NoDemonstration, match="initial state"):
            policy.begin(info | change)
    with pytest.raises(ValueError, match="needs action_repeat 1"):
        DemonstrationPolicy(tmp_path, SPEC).begin(info)
    with pytest.raises(FileNotFoundError, match="no folder"):
        DemonstrationPolicy(tmp_path / "x", SPEC)


def test_a_recording_of_any_simulator_is_replayed(tmp_path: Path) -> None:
    """As `kairos record` writes it; an older file calls the initial state ``initial_state_id``."""
    with EpisodeWriter(tmp_path / "part" / "episodes.hdf5", SPEC) as writer:
        for state, (task, move) in enumerate([("near", 0.1), ("far", -0.2)]):
            images = {"scene": np.zeros((2, 16, 16, 3), np.uint8)}
            proprio, actions = np.zeros((2, 2), np.float32), np.full((1, 2), move, np.float32)
            earned, done = np.zeros(1, np.float32), np.zeros(1, bool)
            writer.add(Episode(images, proprio, actions, earned, done, task=task, seed=0, initial_state=state))
    policy = DemonstrationPolicy(tmp_path, SPEC)
    policy.begin({"task": "far", "initial_state": 1})
    observation = example_observation(SPEC)
    assert policy.act(observation) == pytest.approx([-0.2, -0.2])
    assert policy.act(observation) == pytest.approx([-0.2, -0.2])  # absolute targets: it stays there
    with pytest.raises(NoDemonstration, match=r"of far from initial state 0; there are those from \[1\]"):
        policy.begin({"task": "far", "initial_state": 0})
