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
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from libero_home import libero_home
from libero_table import BUTTER, MILK, Table, make_table

from kairos_env.cli.record import LiberoDemonstrations
from kairos_env.collect.behaviours import BEHAVIOURS
from kairos_env.collect.plans import RecordConfig, plan_episodes
from kairos_env.collect.recorder import NoSimulator, Recorded, record, record_episode
from kairos_env.collect.replay import replay_all
from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.recorded import EpisodeFile
from kairos_env.records import Array, Camera, Episode, Field, Observation, RobotSpec
from kairos_env.runs import read_jsonl

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
    max_episode_steps = 24

    def __init__(self, pause: float = 0.0, fails_at: int = -1) -> None:
        self.pause, self.fails_at = pause, fails_at

    def tasks(self) -> dict[str, str]:
        return {task: f"please {task}" for task in ("reach", "push")}

    def initial_states(self, task: str) -> None:
        return None

    def versions(self) -> dict[str, str]:
        return {"stand-in": "1"}

    def close(self) -> None:
        pass

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
                "interest": ["cube"],
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
        episodes_per_file=4,
    )
    return replace(config, **changes)


def record_quietly(config: RecordConfig, make_env: Any = make_stand_in) -> Path:
    return record(config, make_env, progress=False).folder


def contents(episode: Episode) -> list[Any]:
    arrays = [episode.proprio, episode.actions, episode.rewards, *episode.images.values(), *episode.labels.values()]
    facts = [episode.task, episode.instruction, episode.source, episode.seed, episode.initial_state]
    return [a.tobytes() for a in arrays] + facts


def test_a_recording_is_complete_and_labelled_for_every_task(tmp_path: Path) -> None:
    folder = record_quietly(config_for(tmp_path / "run"))
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "episodes.jsonl",
        "launches.jsonl",
        "shard_0000.hdf5",
        "shard_0001.hdf5",
    ]
    assert json.loads((folder / "config.json").read_text())["decisions"] == 6
    assert "numpy" in read_jsonl(folder / "launches.jsonl")[0]["versions"]
    episodes = EpisodeFile(folder)
    assert len(episodes) == 6
    assert episodes.spec == SPEC
    assert episodes.metadata["config"]["seed"] == 0
    for index, episode in enumerate(episodes):
        plan = plan_episodes(config_for(tmp_path), StandIn())[index]
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
    config = config_for(tmp_path, decisions=0)
    first = plan_episodes(config, env)[0]
    played = {name: record_episode(env, replace(first, behaviour=name), config) for name in BEHAVIOURS}
    assert all(len(episode) == 24 for episode in played.values())
    assert len({episode.actions.tobytes() for episode in played.values()}) == len(BEHAVIOURS)
    assert played["expert"].success.any()
    assert not played["expert"].success.all()


def test_mixtures_follow_their_weights(tmp_path: Path) -> None:
    behaviours: dict[str, float] = {"expert": 1, "random": 1}
    config = config_for(tmp_path, episodes=2000, tasks={"reach": 1, "push": 3}, behaviours=behaviours)
    plans = plan_episodes(config, StandIn())
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
    assert sorted(p.suffix for p in folder.iterdir()) == [".hdf5", ".hdf5", ".hdf5", ".json", ".jsonl", ".jsonl"]


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    record_quietly(config_for(tmp_path, episodes=1))
    with pytest.raises(ValueError, match="decisions: 6 there, 7 now"):
        record_quietly(config_for(tmp_path, episodes=1, decisions=7))


def test_a_failing_episode_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    with pytest.raises(RuntimeError, match=r"1 episode\(s\) failed.*(?s:.)*number=2.*the simulation diverged"):
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
        ({"behaviours": {"expret": 1.0}}, "unknown behaviour 'expret'; did you mean 'expert'?"),
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
        options={"image_size": 32},
    )
    try:
        (episode,) = EpisodeFile(record(config, progress=False).folder)
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
    with pytest.raises(ValueError, match="unknown task 'rech'; did you mean 'reach'"):
        record_quietly(config_for(tmp_path, tasks={"rech": 1.0}))
    assert not list(tmp_path.iterdir())


# Successes only, in LIBERO's files


def libero(out: Path, **changes: Any) -> RecordConfig:
    config = RecordConfig(
        str(out),
        per_task=4,
        after_success=2,
        tasks={"libero_object/*": 1.0},
        behaviours={"expert": 0.5, "disturbed_expert": 0.5},
        keep="successes",
        initial_states="0-5",
        layout="libero",
        workers=1,
    )
    return replace(config, **changes)


def demonstrate(config: RecordConfig, **options: Any) -> Recorded:
    return record(config, partial(make_table, **options), progress=False)


def test_successes_are_kept_and_failures_tried_again_disturbed(tmp_path: Path) -> None:
    config = libero(tmp_path)
    result = demonstrate(config, hopeless=(1, 2))
    assert result.tasks == {MILK: (4, 4), BUTTER: (4, 4)} and not result.short
    found = LiberoFile(tmp_path)
    assert [e.initial_state for e in found] == [0, 1, 2, 3] * 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "episodes.jsonl",
        "launches.jsonl",
        "libero_object",
    ]
    plans = plan_episodes(config, Table())
    assert {plan.behaviour for plan in plans} == {"expert", "disturbed_expert"}
    again = 0
    for e in found:
        (plan,) = (p for p in plans if p.task.endswith(e.task) and p.initial_state == e.initial_state)
        retried = plan.behaviour == "expert" and e.initial_state in (1, 2)
        again += retried
        plan = plan.again(int(retried))
        assert (e.source, e.seed) == (plan.behaviour, plan.seed) and e.success[-3:].tolist() == [True] * 3
        apart = np.abs(e.actions - e.labels["expert_actions"][:-1, 0]).max()
        assert (apart > 0.01) == (e.source == "disturbed_expert")
        np.testing.assert_allclose(e.labels["object_position"], np.full((len(e) + 1, 3), 0.3), atol=1e-6)
    assert again and f"8 episodes of {8 + again} attempts" in result.table()
    with h5py.File(tmp_path / "libero_object" / f"{MILK.rpartition('/')[2]}_demo.hdf5") as file:
        extras = json.loads(file["data"].attrs["kairos"])
        assert extras["control_rate_hz"] == 5 and extras["action_repeat"] == 4
        assert extras["metadata"]["versions"]["simulator"] == "3.3.7"
        assert extras["metadata"]["config"]["keep"] == "successes"


def test_more_demonstrations_can_be_recorded_later(tmp_path: Path) -> None:
    demonstrate(libero(tmp_path / "a"), hopeless=(0,))
    demonstrate(libero(tmp_path / "b", per_task=2), hopeless=(0,))
    assert len(LiberoFile(tmp_path / "b")) == 4
    demonstrate(libero(tmp_path / "b", workers=2), hopeless=(0,))
    a, b = (LiberoFile(tmp_path / name) for name in "ab")
    assert len(a) == 8 and [contents(e) for e in a] == [contents(e) for e in b]
    with pytest.raises(ValueError, match=r"noise: 0.2 there, 0.3 now"):
        demonstrate(libero(tmp_path / "a", noise=0.3))


def test_an_episode_without_success_is_given_up_and_said(tmp_path: Path) -> None:
    result = demonstrate(libero(tmp_path, per_task=2, attempts=2), never=(MILK,))
    assert result.tasks == {MILK: (0, 2), BUTTER: (2, 2)} and result.short == [MILK]
    assert "2 episodes of 6 attempts" in result.table()
    assert len(LiberoFile(tmp_path)) == 2
    again = demonstrate(libero(tmp_path, per_task=2, attempts=2))  # all attempts are made
    assert again == result


def test_a_simulator_that_dies_is_started_again(tmp_path: Path) -> None:
    config = libero(tmp_path, per_task=1, tasks={MILK: 1.0})
    assert demonstrate(config, deaths=2).tasks == {MILK: (1, 1)}
    with pytest.raises(RuntimeError, match=r"(?s)1 episode.*SimulatorCrashed.*the simulator is gone"):
        demonstrate(replace(config, out=str(tmp_path / "b")), deaths=3)


class Idle:
    """A policy that has learned nothing."""

    def __init__(self, **_: Any) -> None:
        pass

    def reset(self, seed: int | None = None) -> None:
        pass

    def act(self, observation: Observation) -> Array:
        assert observation.instruction.startswith("pick up")
        return np.zeros(7, np.float32)


def test_a_policy_acts_and_the_expert_teaches(tmp_path: Path) -> None:
    idle = f"{Idle.__module__}:Idle"
    config = libero(tmp_path, per_task=2, keep="all", behaviours={idle: 1.0})
    assert demonstrate(config).tasks == {MILK: (2, 2), BUTTER: (2, 2)}  # kept, whatever came of them
    for e in LiberoFile(tmp_path):
        assert e.source == idle and not e.success.any() and not e.actions.any() and len(e) == 20
        assert np.abs(e.labels["expert_actions"][:, 0, :3]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"initial_states": "5-"}, "initial_states is '5-'"),
        ({"initial_states": "1,1"}, "names a state twice"),
        ({"initial_states": "4-9"}, "has 6: 0 ... 5"),
        ({"tasks": {"libero_goal/*": 1.0}}, r"unknown task 'libero_goal/\*'"),
    ],
)
def test_wrong_initial_states_and_tasks_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        demonstrate(libero(tmp_path, **changes))


@pytest.mark.slow
def test_a_real_demonstration_succeeds_when_its_actions_are_played_again(tmp_path: Path) -> None:
    home = str(libero_home())
    options = LiberoDemonstrations("").options | {"home": home, "camera_size": 32}
    tasks = {"libero_object/pick_up_the_cream_cheese_and_place_it_in_the_basket": 1.0}
    given: dict[str, Any] = {"tasks": tasks, "per_task": 1, "initial_states": "3", "workers": 1}
    config = LiberoDemonstrations(str(tmp_path / "demos"), options=options, behaviours={"disturbed_expert": 1}, **given)
    assert not record(config, progress=False).short
    (demo,) = LiberoFile(tmp_path / "demos")
    assert demo.images["agentview"].std() > 10 and demo.images["eye_in_hand"].std() > 10
    # the object is lifted into the basket
    assert demo.labels["object_position"][:, 2].max() > demo.labels["object_position"][0, 2] + 0.05
    with h5py.File(next((tmp_path / "demos").rglob("*_demo.hdf5"))) as file:
        # the hand's joints stand where the reader and LIBERO's tools look for them
        assert np.abs(file["data/demo_0/obs/joint_states"][0] - [0, -0.161, 0, -2.445, 0, 2.227, 0.785]).max() < 0.2
    (again,) = replay_all([tmp_path / "demos"], options={"home": home}, progress=False)
    assert again.agrees and again.apart < 1e-5
