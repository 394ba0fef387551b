"""Recording: complete, labelled, the same for any number of workers, and safe against a kill.

A small kinematic table-top stands in for the simulator, so that the recorder itself is what is tested.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kairos_env.collect.recorder import NoSimulator, RecordConfig, plan_episode, record, record_episode
from kairos_env.datasets.hdf5.recorded import EpisodeFile
from kairos_env.records import Array, Camera, Episode, Field, RobotSpec
from kairos_env.sims.tabletop.behaviours import BEHAVIOURS

SPEC = RobotSpec(
    name="stand-in",
    cameras=(Camera("scene", 16, 16),),
    proprio=(
        *(Field(f"eef_{axis}", -0.3, 0.3, "m", "position", "world") for axis in "xyz"),
        Field("gripper_width", 0.0, 0.08, "m"),
    ),
    action=(
        *(Field(f"d{axis}", -0.05, 0.05, "m", "delta_position", "world") for axis in "xyz"),
        Field("gripper", -1.0, 1.0, "", "gripper"),
    ),
    control_rate_hz=5.0,
)


class StandIn:
    """A gripper that moves exactly as told and drags the object along when it is close."""

    robot_spec = SPEC

    def __init__(self, pause: float = 0.0, fails_at: int = -1) -> None:
        self.pause, self.fails_at = pause, fails_at

    def reset(self, seed: int, options: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
        if options["initial_state"] == self.fails_at:
            raise ArithmeticError("the simulation diverged")
        rng = np.random.default_rng(options["initial_state"])
        self.task = options["task"]
        self.eef, self.width = np.array([0.0, 0.0, 0.1]), 0.08
        self.object = np.array([*rng.uniform(-0.1, 0.1, 2), 0.02])
        self.goal = np.array([*rng.uniform(-0.1, 0.1, 2), 0.0])
        return self._observe()

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        time.sleep(self.pause)
        near = np.linalg.norm(self.eef - self.object) < 0.03
        self.eef = np.clip(self.eef + action[:3], -0.3, 0.3)
        if near:
            self.object[:2] = self.eef[:2]
        observation, info = self._observe()
        return observation, info["task_rewards"][self.task], info["success"], False, info

    def expert_action(self, task: str | None = None) -> Array:
        reached = np.linalg.norm(self.eef - self.object) < 0.03
        target = self.goal + np.array([0, 0, 0.02]) if (task or self.task) == "push" and reached else self.object
        return np.append(np.clip(target - self.eef, -0.05, 0.05), 1.0).astype(np.float32)

    def _observe(self) -> tuple[dict[str, Array], dict[str, Any]]:
        image = np.zeros((16, 16, 3), np.uint8)
        for channel, point in enumerate((self.object, self.goal, self.eef)):
            x, y = np.clip((point[:2] + 0.3) / 0.6 * 15, 0, 15).astype(int)
            image[y, x, channel] = 255
        away = {"reach": self.eef - self.object, "push": (self.object - self.goal)[:2]}
        success = {task: bool(np.linalg.norm(d) < 0.02) for task, d in away.items()}
        info = {
            "success": success[self.task],
            "instruction": f"please {self.task}",
            "task_success": success,
            "task_rewards": {task: float(np.exp(-10 * np.linalg.norm(d))) for task, d in away.items()},
            "privileged": {
                "objects": {"cube": {"position": self.object.copy()}, "goal": {"position": self.goal.copy()}},
                "eef_position": self.eef.copy(),
                "gripper_opening": self.width,
            },
        }
        return {"image_scene": image, "proprio": np.float32([*self.eef, self.width])}, info


def make_stand_in(config: RecordConfig) -> StandIn:
    return StandIn()


def make_slow(config: RecordConfig) -> StandIn:
    return StandIn(pause=0.02)


def make_failing(config: RecordConfig) -> StandIn:
    return StandIn(fails_at=config.first_initial_state + 2)


def make_nothing(config: RecordConfig) -> StandIn:
    raise OSError("no display")


def config_for(out: Path, **changes: Any) -> RecordConfig:
    config = RecordConfig(
        out=str(out),
        episodes=6,
        workers=1,
        decisions=6,
        tasks={"reach": 1, "push": 1},
        image_size=16,
        episodes_per_file=4,
    )
    return replace(config, **changes)


def record_quietly(config: RecordConfig, make_env: Any = make_stand_in) -> Path:
    return record(config, make_env, progress=False)


def contents(episode: Episode) -> list[Any]:
    arrays = [episode.proprio, episode.actions, episode.rewards, *episode.images.values(), *episode.labels.values()]
    facts = [episode.task, episode.instruction, episode.source, episode.seed, episode.initial_state]
    return [a.tobytes() for a in arrays] + facts


def test_a_recording_is_complete_and_labelled_for_every_task(tmp_path: Path) -> None:
    folder = record_quietly(config_for(tmp_path / "run"))
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "shard_0000.hdf5",
        "shard_0001.hdf5",
        "versions.json",
    ]
    assert json.loads((folder / "config.json").read_text())["decisions"] == 6
    assert "numpy" in json.loads((folder / "versions.json").read_text())
    episodes = EpisodeFile(folder)
    assert len(episodes) == 6
    assert episodes.spec == SPEC
    assert episodes.metadata["config"]["seed"] == 0
    for index, episode in enumerate(episodes):
        plan = plan_episode(config_for(tmp_path), index)
        assert (episode.task, episode.source, episode.seed) == (plan.task, plan.behaviour, plan.seed)
        assert episode.initial_state == 100_000 + index
        assert episode.instruction == f"please {plan.task}"
        assert {k: v.shape for k, v in episode.labels.items()} == {
            "expert_actions": (7, 2, 4),
            "task_rewards": (6, 2),
            "task_success": (6, 2),
            "object_position": (7, 3),
            "goal_position": (7, 3),
        }
        own = list(episode.label_tasks).index(plan.task)
        np.testing.assert_array_equal(episode.rewards, episode.labels["task_rewards"][:, own])
        np.testing.assert_array_equal(episode.success, episode.labels["task_success"][:, own])
        assert np.all(np.abs(episode.actions) <= SPEC.action_high)
        # the label of a state is what the expert would do there, and the expert does it
        if episode.source == "expert":
            np.testing.assert_array_equal(episode.actions, episode.labels["expert_actions"][:-1, own])


def test_the_data_do_not_depend_on_workers_or_interruptions(tmp_path: Path) -> None:
    one = EpisodeFile(record_quietly(config_for(tmp_path / "one")))
    record_quietly(config_for(tmp_path / "two", episodes=3))
    two = EpisodeFile(record_quietly(config_for(tmp_path / "two", workers=2)))
    assert [contents(e) for e in one] == [contents(e) for e in two]


def test_every_behaviour_plays_the_full_length_and_no_two_alike(tmp_path: Path) -> None:
    env = StandIn()
    first = plan_episode(config_for(tmp_path), 0)
    played = {name: record_episode(env, replace(first, behaviour=name), 24) for name in BEHAVIOURS}
    assert all(len(episode) == 24 for episode in played.values())
    assert len({episode.actions.tobytes() for episode in played.values()}) == len(BEHAVIOURS)
    assert played["expert"].success.any()
    assert not played["expert"].success.all()


def test_mixtures_follow_their_weights(tmp_path: Path) -> None:
    config = config_for(tmp_path, tasks={"reach": 1, "push": 3}, behaviours={"expert": 1, "random": 1})
    plans = [plan_episode(config, i) for i in range(2000)]
    assert abs(np.mean([p.task == "push" for p in plans]) - 0.75) < 0.04
    assert abs(np.mean([p.behaviour == "expert" for p in plans]) - 0.5) < 0.04
    assert len({p.seed for p in plans}) == len(plans)


def test_a_killed_recording_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run", episodes=12, workers=2)
    process = multiprocessing.get_context("spawn").Process(target=record_quietly, args=(config, make_slow))
    process.start()
    folder = tmp_path / "run"
    deadline = time.monotonic() + 300
    while not (folder / "shard_0000.hdf5").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    files = [p for pattern in ("*.hdf5", "parts/*.hdf5") for p in folder.glob(pattern)]
    before = {path: [contents(e) for e in EpisodeFile(path)] for path in files}
    saved = sum(len(v) for v in before.values())
    assert 4 <= saved < 12
    shard = (folder / "shard_0000.hdf5").stat().st_mtime_ns

    episodes = EpisodeFile(record_quietly(config))
    assert (folder / "shard_0000.hdf5").stat().st_mtime_ns == shard
    assert len(episodes) == 12
    now = [contents(e) for e in episodes]
    assert all(old in now for episodes_of_file in before.values() for old in episodes_of_file)
    whole = EpisodeFile(record_quietly(replace(config, out=str(tmp_path / "whole"))))
    assert now == [contents(e) for e in whole]
    assert sorted(p.suffix for p in folder.iterdir()) == [".hdf5", ".hdf5", ".hdf5", ".json", ".json"]


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    record_quietly(config_for(tmp_path, episodes=1))
    with pytest.raises(ValueError, match="decisions: 6 there, 7 given"):
        record_quietly(config_for(tmp_path, episodes=1, decisions=7))


def test_a_failing_episode_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    with pytest.raises(RuntimeError, match=r"1 episode\(s\) failed.*(?s:.)*index=2.*the simulation diverged"):
        record_quietly(config, make_failing)
    assert len(list((tmp_path / "parts").glob("*.hdf5"))) + len(EpisodeFile(tmp_path / "shard_0001.hdf5")) == 5
    assert len(EpisodeFile(record_quietly(config))) == 6


def test_a_simulator_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NoSimulator, match="OSError: no display"):
        record_quietly(config_for(tmp_path), make_nothing)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"first_initial_state": 299_999}, "reach beyond those for training"),
        ({"behaviours": {"expret": 1.0}}, "unknown behaviour expret; choose among expert"),
        ({"tasks": {"reach": 0.0}}, "positive sum"),
        ({"tasks": {"reach": -1.0, "push": 2.0}}, "weights >= 0"),
    ],
)
def test_bad_configurations_say_what_is_legal(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RecordConfig(out="unused", **changes)


def test_the_real_simulator_is_recorded_beyond_success(tmp_path: Path) -> None:
    pytest.importorskip("robosuite")
    config = RecordConfig(
        out=str(tmp_path),
        episodes=1,
        workers=1,
        decisions=6,
        tasks={"reach": 1},
        behaviours={"expert": 1},
        image_size=32,
    )
    try:
        (episode,) = EpisodeFile(record(config, progress=False))
    except NoSimulator as error:
        pytest.skip(str(error))
    assert episode.images["scene"].shape == (7, 32, 32, 3)
    assert episode.images["scene"].std() > 10
    assert episode.instruction == "move the gripper to the red cube"
    assert tuple(episode.label_tasks) == ("reach", "push", "lift", "place")
    # three decisions reach the cube; the expert then stays, and so does success
    assert episode.success[-1]
    assert episode.success.sum() >= 2


def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    pytest.importorskip("robosuite")
    with pytest.raises(NoSimulator, match="unknown task fly; choose among reach, push, lift"):
        record(config_for(tmp_path, tasks={"fly": 1.0}), progress=False)
