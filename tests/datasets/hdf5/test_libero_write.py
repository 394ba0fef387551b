"""LIBERO's files written by us: read back exactly, safe against a kill, and what training makes of their labels.

A small kinematic table stands in for the simulator where the recorder is what is tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from libero_home import libero_home
from paths import ROOT, TESTS

from kairos_env.collect.demonstrations import DemoTask, RecordLiberoConfig, plan_attempt, record_libero
from kairos_env.collect.export import ExportConfig, export
from kairos_env.collect.replay import read_demonstrations, replay_all
from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.libero_write import LiberoWriter
from kairos_env.datasets.layouts import open_recording
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.embodiments import libero_panda
from kairos_env.records import Episode, SpecMismatch

SIDE, REPEAT = 8, 4
SPEC = libero_panda(SIDE, REPEAT)
MILK = DemoTask("libero_object", "pick_up_the_milk_and_place_it_in_the_basket", "pick up the milk, please")
BUTTER = DemoTask("libero_object", "pick_up_the_butter_and_place_it_in_the_basket", "pick up the butter, please")
BDDL = "(define (problem LIBERO_Floor_Manipulation)\n  (:domain robosuite)\n)"


def episode(seed: int = 0, steps: int = 6, task: DemoTask = MILK) -> Episode:
    rng = np.random.default_rng(seed)
    success = np.arange(steps) >= steps - 2
    return Episode(
        {c.name: rng.integers(0, 256, (steps + 1, SIDE, SIDE, 3), np.uint8) for c in SPEC.cameras},
        rng.uniform(-0.04, 0.04, (steps + 1, 8)).astype(np.float32),
        rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        success.astype(np.float32),
        success,
        task=task.name,
        instruction=task.instruction,
        source="noisy_expert",
        seed=seed,
        initial_state=seed + 3,
        labels={
            "expert_actions": rng.uniform(-1, 1, (steps + 1, 1, 7)).astype(np.float32),
            "object_position": rng.uniform(-1, 1, (steps + 1, 3)).astype(np.float32),
        },
        label_tasks=(task.name,),
    )


def states_of(e: Episode) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(len(e), 30))


def write(path: Path, episodes: list[Episode], bddl: Path | None = None) -> Path:
    with LiberoWriter(path, SPEC, MILK.name, MILK.instruction, bddl, {"rendering": "fast"}) as writer:
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
    bddl = tmp_path / "libero_object" / f"{MILK.name}.bddl"
    bddl.write_text(BDDL)
    e = episode()
    with h5py.File(write(tmp_path / f"{MILK.name}_demo.hdf5", [e], bddl)) as file:
        data, demo = file["data"], file["data/demo_0"]
        assert (data.attrs["num_demos"], data.attrs["total"], data.attrs["tag"]) == (1, 6, "libero-v1")
        assert data.attrs["bddl_file_name"] == f"libero_object/{MILK.name}.bddl"
        assert data.attrs["bddl_file_content"] == BDDL and data.attrs["macros_image_convention"] == "opengl"
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == MILK.instruction
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
        with LiberoWriter(tmp_path / "libero" / f"{task.name}_demo.hdf5", SPEC, task.name, task.instruction) as writer:
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
    with LiberoWriter(tmp_path / "a.hdf5", SPEC, MILK.name, MILK.instruction) as writer:
        with pytest.raises(BrokenEpisode, match=said):
            writer.add(bad, states_of(bad))
        with pytest.raises(BrokenEpisode, match="states has shape"):
            writer.add(episode(), np.zeros((5, 30)))
        writer.add(episode(), states_of(episode()))
    assert len(LiberoFile(tmp_path / "a.hdf5")) == 1
    with pytest.raises(SpecMismatch, match="layout"):
        LiberoWriter(tmp_path / "b.hdf5", replace(SPEC, proprio=SPEC.proprio[:3]), "t", "i")
    assert not (tmp_path / "b.hdf5").exists()


class Table:
    """A hand that has to come to the right place: stands in for `LiberoEnv`."""

    robot_spec = SPEC

    def __init__(self, hopeless: set[int] = frozenset(), delay: float = 0.0) -> None:  # type: ignore[assignment]
        self.hopeless, self.delay = hopeless, delay
        self.threads: set[int] = set()

    def reset(self, seed: int, options: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self.threads.add(threading.get_ident())
        self.rng = np.random.default_rng([seed, options["initial_state"]])
        self.position, self.steps = self.rng.uniform(-0.5, 0.5, 3), 0
        self.goal = np.full(3, 9.0 if options["initial_state"] in self.hopeless else 0.3)
        return self._seen(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        time.sleep(self.delay)
        self.position = self.position + 0.2 * action[:3]
        self.steps += REPEAT
        info = self._info()
        return self._seen(), float(info["success"]), info["success"], self.steps >= 80, info

    def expert_action(self) -> np.ndarray:
        return np.array([*np.clip(5 * (self.goal - self.position), -1, 1), 0, 0, 0, -1], np.float32)

    def simulator_state(self) -> dict[str, np.ndarray]:
        return {"state": np.arange(20) + self.position.sum()}

    def versions(self) -> dict[str, str]:
        return {"mujoco": "3.3.7"}

    def close(self) -> None:
        pass

    def _seen(self) -> dict[str, np.ndarray]:
        proprio = np.array([*self.position, *np.zeros(5)], np.float32)
        pictures = {c.key: self.rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for c in SPEC.cameras}
        return pictures | {"proprio": proprio}

    def _info(self) -> dict[str, Any]:
        milk = {"position": self.goal, "rotation": np.eye(3)}
        true = {"objects": {"basket_1": {}, "milk_1": milk}, "interest": ["milk_1", "basket_1"]}
        return {"success": bool(np.abs(self.goal - self.position).max() < 0.1), "privileged": true}


def config(out: Path, **options: Any) -> RecordLiberoConfig:
    given = {"states": "0-5", "per_task": 4, "camera_size": SIDE, "workers": 2} | options
    return RecordLiberoConfig(str(out), ("libero_object",), **given)


def record(c: RecordLiberoConfig, **options: Any) -> Any:
    return record_libero(c, lambda _: Table(**options), [MILK, BUTTER], progress=False)


def test_recording_keeps_successes_in_order_and_counts_the_rest(tmp_path: Path) -> None:
    c = config(tmp_path)
    result = record(c, hopeless={1, 2})
    assert [result.tasks[t] for t in (MILK, BUTTER)] == [(4, 6), (4, 6)] and not result.short
    assert "4 kept,   2 failed" in result.table()
    found = LiberoFile(tmp_path)
    assert [e.initial_state for e in found] == [0, 3, 4, 5] * 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == [
        "attempts",
        "config.json",
        "libero_object",
        "versions.json",
    ]
    plans = {(t.name, n): plan_attempt(c, t, n) for t in (MILK, BUTTER) for n in range(6)}
    assert {p.source for p in plans.values()} == {"expert", "noisy_expert"}
    for e in found:
        plan = plans[e.task, e.initial_state]
        assert (e.source, e.seed) == (plan.source, plan.seed) and e.success[-3:].tolist() == [True] * 3
        apart = np.abs(e.actions - e.labels["expert_actions"][:-1, 0]).max()
        assert (apart > 0.01) == (e.source == "noisy_expert")
        np.testing.assert_allclose(e.labels["object_position"], np.full((len(e) + 1, 3), 0.3), atol=1e-6)
    with h5py.File(tmp_path / "libero_object" / f"{MILK.name}_demo.hdf5") as file:
        extras = json.loads(file["data"].attrs["kairos"])
        assert extras["control_rate_hz"] == 5 and extras["action_repeat"] == 4
        assert extras["metadata"]["simulator"]["mujoco"] == "3.3.7"
        assert extras["metadata"]["config"]["rendering"] == "fast"


def test_workers_do_not_change_the_data_and_more_can_be_recorded_later(tmp_path: Path) -> None:
    record(config(tmp_path / "a", workers=1), hopeless={0})
    record(config(tmp_path / "b", workers=2, per_task=2), hopeless={0})
    assert len(LiberoFile(tmp_path / "b")) == 4
    record(config(tmp_path / "b", workers=2), hopeless={0})
    a, b = (LiberoFile(tmp_path / name) for name in "ab")
    assert len(a) == len(b) == 8
    for one, other in zip(a, b, strict=True):
        assert_same(one, other)
    with pytest.raises(ValueError, match=r"noise: 0.2 there, 0.3 given"):
        record(config(tmp_path / "a", noise=0.3))


def test_a_task_that_does_not_succeed_is_given_up(tmp_path: Path) -> None:
    result = record(config(tmp_path), hopeless={0, 1, 2, 3, 4})
    assert result.tasks[MILK] == (1, 8) and len(result.short) == 2
    assert len(LiberoFile(tmp_path)) == 2
    again = record(config(tmp_path), hopeless=set())  # all attempts are made
    assert again.tasks == result.tasks
    never = record(config(tmp_path / "never", per_task=20), hopeless=set(range(6)))
    assert never.tasks[MILK] == (0, 8) and not list(tmp_path.glob("never/*/*.hdf5"))


def test_a_simulator_that_dies_is_tried_again_and_then_named(tmp_path: Path) -> None:
    class Mortal(Table):
        deaths = 0

        def simulator_state(self) -> dict[str, np.ndarray]:
            if self.steps == 8 and Mortal.deaths < 2:
                Mortal.deaths += 1
                raise RuntimeError("the simulator is gone")
            return super().simulator_state()

    result = record_libero(config(tmp_path, workers=1), lambda _: Mortal(), [MILK], progress=False)
    assert Mortal.deaths == 2 and result.tasks[MILK] == (4, 4)
    Mortal.deaths = -10
    with pytest.raises(RuntimeError, match=f"(?s)1 task.*{BUTTER.name}: RuntimeError: the simulator"):
        record_libero(config(tmp_path, workers=1), lambda _: Mortal(), [BUTTER], progress=False)


class Idle:
    """A policy that has learned nothing."""

    def reset(self, seed: int) -> None:
        self.seen: list[Any] = []

    def act(self, observation: Any) -> np.ndarray:
        self.seen.append(observation)
        return np.zeros(7, np.float32)


def test_a_policy_acts_and_the_expert_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Idle()
    monkeypatch.setattr("kairos_env.collect.demonstrations.make_actor", lambda config, env: policy)
    result = record(config(tmp_path, actor="some/model", noisy=0.0, workers=1, per_task=2))
    assert set(result.tasks.values()) == {(2, 2)}  # kept, whatever came of them
    for e in LiberoFile(tmp_path):
        assert e.source == "policy" and not e.success.any() and not e.actions.any() and len(e) == 20
        assert np.abs(e.labels["expert_actions"][:, 0, :3]).max() > 0.1
    assert len(policy.seen) == 20 and policy.seen[0].instruction == BUTTER.instruction
    replays = replay_all([tmp_path], make_env=lambda repeat, home: Table(), progress=False)
    assert all(one.agrees for one in replays)  # they fail again


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_libero_write import config, record
record(config(Path({out!r})), delay=0.03)
"""


def test_a_kill_costs_only_the_attempts_in_flight(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    script = KILLED.format(tests=str(TESTS / "datasets" / "hdf5"), out=str(out))
    paths = os.pathsep.join([str(ROOT), str(TESTS)])
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths})
    parts: list[Path] = []
    deadline = time.monotonic() + 60
    while len(parts) < 3 and time.monotonic() < deadline and child.poll() is None:
        parts = sorted(out.glob("parts/*/*/*.hdf5"))
        time.sleep(0.005)
    child.kill()
    child.wait()
    assert 3 <= len(parts) < 8
    times = {p: p.stat().st_mtime_ns for p in sorted(out.glob("parts/*/*/*.hdf5"))}
    assert all(len(LiberoFile(p)) == 1 for p in times)
    with open(out / "attempts" / "libero_object" / f"{MILK.name}.jsonl", "a") as log:
        log.write('{"success": tr')  # as a kill in the middle of a line leaves it
    played = []

    class Watched(Table):
        def reset(self, seed: int, options: dict[str, Any]) -> Any:
            played.append((options["task"], options["initial_state"]))
            return super().reset(seed, options)

    record_libero(config(out), lambda _: Watched(), [MILK, BUTTER], progress=False)
    assert len(played) <= 8 - len(times) + 2  # of an attempt that was written but not noted nothing is known
    record(config(tmp_path / "whole"))
    whole, killed = LiberoFile(tmp_path / "whole"), LiberoFile(out)
    assert len(whole) == len(killed) == 8 and not list(out.rglob("*.tmp"))
    for one, other in zip(whole, killed, strict=True):
        assert_same(one, other)


def test_replays_come_to_the_same_places_and_tell_when_they_do_not(tmp_path: Path) -> None:
    record(config(tmp_path / "demos"))
    results = replay_all([tmp_path / "demos"], make_env=lambda repeat, home: Table(), progress=False)
    assert len(results) == 8 and all(one.agrees and one.apart < 1e-5 for one in results)
    elsewhere = replay_all(
        [tmp_path / "demos"], 2, make_env=lambda repeat, home: Table(hopeless=set(range(6))), progress=False
    )
    assert [one.agrees for one in elsewhere] == [False, False]
    first = LiberoFile(tmp_path / "demos")[0]
    np.savez(tmp_path / "libero_object_4.npz", actions_0=first.actions, eef_0=first.proprio[:-1, :4])
    (one,) = read_demonstrations(tmp_path / "libero_object_4.npz")
    assert (one.suite, one.task, one.initial_state, one.action_repeat) == ("libero_object", 4, 0, 1)
    np.testing.assert_array_equal(one.hand, first.proprio[:-1, :3])
    np.savez(tmp_path / "mine.npz", actions_0=first.actions)
    with pytest.raises(ValueError, match="not named <suite>_<task index>.npz"):
        list(read_demonstrations(tmp_path / "mine.npz"))
    with pytest.raises(ValueError, match="does not say from which initial state"):
        list(read_demonstrations(write(tmp_path / "a_demo.hdf5", [episode()])))


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    for options, said in (
        ({"states": "5-"}, "states is '5-'"),
        ({"states": "1,1"}, "names a state twice"),
        ({"noisy": 2.0}, "noisy must be in"),
        ({"per_task": 0}, "per_task must be at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            config(tmp_path, **options)


@pytest.mark.slow
def test_a_real_demonstration_succeeds_when_its_actions_are_played_again(tmp_path: Path) -> None:
    home = str(libero_home())
    options = {"states": "3", "per_task": 1, "tasks": (1,), "noisy": 1.0, "workers": 1, "camera_size": 32}
    c = RecordLiberoConfig(str(tmp_path / "demos"), ("libero_object",), home=home, **options)  # type: ignore[arg-type]
    assert not record_libero(c, progress=False).short
    (demo,) = LiberoFile(tmp_path / "demos")
    assert demo.images["agentview"].std() > 10 and demo.images["eye_in_hand"].std() > 10
    # the bottle is lifted into the basket
    assert demo.labels["object_position"][:, 2].max() > demo.labels["object_position"][0, 2] + 0.05
    with h5py.File(next((tmp_path / "demos").rglob("*_demo.hdf5"))) as file:
        # the hand's joints stand where the reader and LIBERO's tools look for them
        assert np.abs(file["data/demo_0/obs/joint_states"][0] - [0, -0.161, 0, -2.445, 0, 2.227, 0.785]).max() < 0.2
    (again,) = replay_all([tmp_path / "demos"], home=home, progress=False)
    assert again.agrees and again.apart < 1e-5
