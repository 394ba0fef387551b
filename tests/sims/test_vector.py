"""Many simulators at once: bookkeeping and failures with stand-ins, then real simulators."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from libero_home import libero_home

import kairos_env  # noqa: F401  (registers the environments)
from kairos_env.embodiments import libero_panda
from kairos_env.sims import vector
from kairos_env.sims.libero.env import LiberoEnv
from kairos_env.sims.process import SimulatorCrashed, SimulatorError, SimulatorTimeout
from kairos_env.sims.vector import SimulatorVectorEnv

STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


class Counter(gym.Env[Any, Any]):
    """Stands in for an `AsyncSimulator`: it counts decisions, and fails where ``fails`` says so.

    ``fails`` has a kind of failure for the number of a request, resets and steps counted together from 0. Task k ends
    after k + 2 decisions.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's form)
    time_limit_s = 0.05

    def __init__(self, task: int = 0, home: Any = None, render_mode: str | None = None, fails: Any = None) -> None:
        self.robot_spec = libero_panda(16)
        self.observation_space, self.action_space = self.robot_spec.observation_space, self.robot_spec.action_space
        self.task, self.render_mode, self.fails = task, render_mode, fails or {}
        self.requests = self.steps = self.episode = 0
        self.alive = self.start = False
        self._ready = os.eventfd(0)

    def fileno(self) -> int:
        return self._ready

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.send_reset(seed=seed, options=options)
        answer = self.receive()
        return answer[0], answer[4]

    def step(self, action: Any) -> Any:
        self.send_step(action)
        return self.receive()

    def send_reset(self, *, seed: int | None = None, options: Any = None) -> None:
        super().reset(seed=seed)
        if (options or {}).get("initial_state", 0) < 0:
            raise ValueError("initial_state must not be negative")
        self.init_state = (options or {}).get("initial_state", int(self.np_random.integers(50)))
        self.steps, self.start, self.alive = 0, True, True
        self._send()

    def send_step(self, action: Any) -> None:
        assert self.alive, "stepped without an episode"
        self.steps, self.start = self.steps + 1, False
        self._send()

    def _send(self) -> None:
        self.kind = self.fails.get(self.requests, "")
        self.requests += 1
        if self.kind == "send":
            self.alive = False
            raise SimulatorCrashed("died before")
        if self.kind != "hang":
            os.eventfd_write(self._ready, 1)

    def receive(self) -> Any:
        if self.kind:
            self.alive = False
            if self.kind == "hang":
                raise SimulatorTimeout("no answer")
            os.eventfd_read(self._ready)
            raise {"die": SimulatorCrashed, "raise": SimulatorError}[self.kind](f"request {self.requests - 1}")
        os.eventfd_read(self._ready)
        value = 100 * self.init_state + self.steps
        observation = {
            "image_agentview": np.full((16, 16, 3), value % 256, np.uint8),
            "image_eye_in_hand": np.full((16, 16, 3), self.steps, np.uint8),
            "proprio": np.full(8, self.steps / 1000, np.float32),
        }
        ended = self.steps >= self.task + 2
        success = ended and self.init_state % 2 == 0
        info = {"success": success} | self.labels | {"steps": self.steps, "privileged": {"height": np.full(3, value)}}
        return observation, 0.0 if self.start else float(success), success, ended and not success, info

    @property
    def labels(self) -> dict[str, Any]:
        return {"task": f"task {self.task}", "difficulty": self.task or None, "initial_state": self.init_state}

    def render(self) -> Any:
        if not self.alive:
            raise gym.error.ResetNeeded("call reset() first")
        return np.full((256, 256, 3), 200, np.uint8)

    def close(self) -> None:
        if self._ready >= 0:
            os.close(self._ready)
        self._ready = -1


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes vector environments of counters; ``fails`` is one table for each."""
    made: list[SimulatorVectorEnv] = []

    def make(num_envs: int = 3, fails: Any = None, **settings: Any) -> SimulatorVectorEnv:
        tables = fails or [{}] * num_envs
        monkeypatch.setattr(
            vector,
            "_make",
            lambda name, each, *_: [Counter(fails=t, **own) for t, own in zip(tables, each, strict=True)],
        )
        made.append(SimulatorVectorEnv("a counter", num_envs, time_limit_s=0.05, **settings))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


def still(envs: SimulatorVectorEnv) -> np.ndarray:
    return np.tile(STILL, (envs.num_envs, 1))


# -- bookkeeping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_bookkeeping_is_that_of_gymnasiums_own_vectorisation(count: Any, mode: AutoresetMode) -> None:
    ours = count(4, tasks=[1, 2, 1, 3], autoreset_mode=mode.value)
    theirs = SyncVectorEnv([lambda k=k: Counter(k) for k in (1, 2, 1, 3)], autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == mode
    expected, got = theirs.reset(seed=3), ours.reset(seed=3)
    for step in range(14):
        for info in (expected[-1], got[-1], expected[-1].get("final_info", {}), got[-1].get("final_info", {})):
            info.pop("difficulty", None)  # ours may be None as well, see the next test
        assert data_equivalence(expected, got, exact=True), f"step {step}: {expected} != {got}"
        expected, got = theirs.step(still(ours)), ours.step(still(ours))
    theirs.close()


def test_unrated_and_rated_tasks_go_together(count: Any) -> None:
    envs = count(3, tasks=[2, 0, 1], autoreset_mode="SameStep")
    envs.reset(seed=0)
    for _ in range(3):
        *_, info = envs.step(still(envs))
    assert info["difficulty"].tolist() == [2, None, 1]
    assert info["final_info"]["difficulty"].tolist() == [None, None, 1]


def test_disabled_leaves_the_reset_to_the_caller(count: Any) -> None:
    envs = count(3, tasks=[0, 1, 2], autoreset_mode="Disabled")
    envs.reset(seed=0)
    envs.step(still(envs))
    observed, _, terminated, truncated, _ = envs.step(still(envs))
    ended = terminated | truncated
    assert ended.tolist() == [True, False, False]
    with pytest.raises(gym.error.ResetNeeded, match=r"sub-environments \[0\] have finished"):
        envs.step(still(envs))
    observed["proprio"][:] = 9.0  # what the caller does with his arrays is his business
    again, info = envs.reset(options={"reset_mask": ended, "initial_state": [7, 8, 9]})
    assert again["proprio"][:, 0].tolist() == pytest.approx([0.0, 0.002, 0.002])
    assert info["initial_state"].tolist() == [7, 0, 0] and info["_initial_state"].tolist() == [True, False, False]
    assert envs.step(still(envs))[0]["proprio"][:, 0].tolist() == pytest.approx([0.001, 0.003, 0.003])


def test_seeds_and_options_are_for_all_or_for_each(count: Any) -> None:
    envs = count(3)
    first = envs.reset(seed=5)[1]["initial_state"].tolist()
    assert envs.reset(seed=[7, 6, 5])[1]["initial_state"].tolist() == first[::-1]
    assert envs.reset(options={"initial_state": 4})[1]["initial_state"].tolist() == [4, 4, 4]
    assert envs.reset(options={"initial_state": [4, 5, 6]})[1]["initial_state"].tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match="2 seeds for 3"):
        envs.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="'initial_state' has 2 values, expected 1 or 3"):
        envs.reset(options={"initial_state": [1, 2]})
    with pytest.raises(ValueError, match=r"expected bool with shape \(3,\)"):
        envs.reset(options={"reset_mask": np.zeros(3, bool)})


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_an_illegal_option_leaves_no_half_episode(count: Any, mode: str) -> None:
    envs = count(3, autoreset_mode=mode)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="must not be negative"):
        envs.reset(options={"initial_state": [2, 2, -1]})
    if mode == "NextStep":
        assert (envs.step(still(envs))[-1]["steps"] == 0).all()
    else:
        with pytest.raises(gym.error.ResetNeeded):
            envs.step(still(envs))
    assert (envs.reset(seed=0)[1]["steps"] == 0).all()


def test_bad_actions_move_nobody(count: Any) -> None:
    envs = count(2)
    envs.reset(seed=0)
    for actions, message in (
        (np.full((2, 7), np.nan), "non-finite"),
        (np.zeros((3, 7)), r"shape \(3, 7\), these environments take \(2, 7\)"),
        (np.zeros((2, 6)), r"takes \(\.\.\., 7\)"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.step(actions)
    assert [env.requests for env in envs.envs] == [1, 1]
    assert envs.step(still(envs))[-1]["steps"].tolist() == [1, 1]


def test_misuse_is_reported(count: Any) -> None:
    for settings, message in (
        ({"num_envs": 0}, "num_envs is 0"),
        ({"num_envs": 3, "tasks": [1, 2]}, "2 tasks for num_envs=3"),
        ({"num_envs": 1, "autoreset_mode": "Sometimes"}, "'Sometimes' is unknown.*SameStep"),
        ({"num_envs": 1, "tasks": [{"tusk": 3}]}, "unknown option of Kairos-Robosuite-v0 'tusk'; did you mean 'task'"),
        ({"num_envs": 1, "task": "pusch", "processes": False}, "unknown task 'pusch'; did you mean 'push'"),
    ):
        with pytest.raises(ValueError, match=message):
            SimulatorVectorEnv("Kairos-Robosuite-v0", **settings)  # type: ignore[arg-type]
    envs = count(2, render_mode="rgb_array")
    some = {"reset_mask": np.array([True, False])}
    for early in (lambda: envs.step(still(envs)), envs.render, lambda: envs.reset(options=some)):
        with pytest.raises(gym.error.ResetNeeded):
            early()


# -- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("die", "SimulatorCrashed: request 2"),
        ("raise", "SimulatorError: request 2"),
        ("hang", "SimulatorTimeout: no answer"),
        ("send", "SimulatorCrashed: died before"),
    ],
)
def test_a_failure_ends_its_own_episode_only(count: Any, kind: str, said: str) -> None:
    envs = count(3, [{}, {2: kind}, {}], tasks=[2, 2, 2])
    envs.reset(seed=0)
    before, *_ = envs.step(still(envs))
    observed, reward, terminated, truncated, info = envs.step(still(envs))
    assert truncated.tolist() == [False, True, False] and not terminated.any() and not reward.any()
    assert info["error"].tolist() == [None, said, None] and info["_error"].tolist() == [False, True, False]
    assert info["success"].tolist() == [False] * 3 and info["steps"].tolist() == [2, 1, 2]
    assert all((observed[key][1] == before[key][1]).all() for key in observed), "the last one that was seen"
    assert (observed["proprio"][[0, 2]] != before["proprio"][[0, 2]]).all()
    *_, truncated, info = envs.step(still(envs))
    assert "error" not in info and info["steps"].tolist() == [3, 0, 3] and not truncated.any()


def test_a_failure_in_the_same_step_mode_keeps_how_it_ended(count: Any) -> None:
    envs = count(2, [{2: "die"}, {}], tasks=[3, 3], autoreset_mode="SameStep")
    envs.reset(seed=0)
    envs.step(still(envs))
    observed, _, _, truncated, info = envs.step(still(envs))
    assert truncated.tolist() == [True, False] and "error" not in info
    assert info["steps"].tolist() == [0, 2] and observed["proprio"][0, 0] == 0
    assert info["final_info"]["error"].tolist() == ["SimulatorCrashed: request 2", None]
    assert info["final_info"]["success"].tolist() == [False, False]
    assert info["final_obs"][0]["proprio"][0] == np.float32(0.001) and info["final_obs"][1] is None


def test_a_reset_that_fails_is_an_episode_of_one_truncated_step(count: Any) -> None:
    # requests of the first: reset 0, steps 1 and 2 (its end), resets 3 and 4 fail, reset 5 works
    fails = [{3: "die", 4: "hang"}, {}]
    envs = count(2, fails, tasks=[0, 5], render_mode="rgb_array")
    envs.reset(seed=0)
    seen = []
    for _ in range(8):
        *_, terminated, truncated, info = envs.step(still(envs))
        seen.append((bool(terminated[0] or truncated[0]), info["error"][0] if "error" in info else ""))
        assert envs.render()[0].max() == (200 if envs.envs[0].alive else 0) and envs.render()[1].max() == 200
    died, late = "SimulatorCrashed: request 3", "SimulatorTimeout: no answer"
    assert seen == [
        (False, ""), (True, ""), (False, died), (True, died), (False, late), (True, late), (False, ""), (False, ""),
    ]  # fmt: skip
    assert info["steps"].tolist()[0] == 1


def test_a_reset_that_fails_in_the_same_step_mode(count: Any) -> None:
    envs = count(2, [{3: "die"}, {}], tasks=[0, 5], autoreset_mode="SameStep")
    envs.reset(seed=0)
    envs.step(still(envs))
    *_, info = envs.step(still(envs))
    assert info["error"][0] == "SimulatorCrashed: request 3" and "error" not in info["final_info"]
    _, reward, terminated, truncated, info = envs.step(still(envs))
    assert truncated[0] and not terminated[0] and reward[0] == 0 and "error" not in info
    assert info["final_info"]["error"][0] == "SimulatorCrashed: request 3"
    assert info["steps"].tolist() == [0, 3]


def test_a_first_reset_goes_on_with_those_that_start(count: Any) -> None:
    envs = count(3, [{0: "die"}, {}, {0: "raise"}])
    observed, info = envs.reset(seed=0)
    assert info["_error"].tolist() == [True, False, True] and not observed["proprio"].any()
    assert info["task"].tolist() == ["task 0"] * 3
    *_, truncated, info = envs.step(still(envs))
    assert truncated.tolist() == [True, False, True]


def test_if_none_starts_it_is_an_error(count: Any) -> None:
    envs = count(2, [{0: "die"}, {0: "die"}])
    with pytest.raises(SimulatorCrashed, match="request 0"):
        envs.reset(seed=0)
    assert envs.reset(seed=0)[1]["steps"].tolist() == [0, 0]


# -- real simulators -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[SimulatorVectorEnv]:
    """Two tasks of two suites, with pictures."""
    envs = gym.make_vec(
        "Kairos-LIBERO-v0",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        tasks=[2, {"suite": "libero_spatial", "task": 3}],
        camera_size=64,
        action_repeat=2,
        max_episode_steps=2,
        home=libero_home(),
        time_limit_s=400.0,
    )
    assert isinstance(envs, SimulatorVectorEnv)
    yield envs
    envs.close()


def actions_of(row: int, count: int) -> np.ndarray:
    return np.random.default_rng(row).uniform(-1, 1, (count, 7)).astype(np.float32)


def single(envs: SimulatorVectorEnv, row: int) -> list[Any]:
    """What `LiberoEnv` gives for an episode of two decisions and the start of the next."""
    task = envs.envs[row].task_info
    env = LiberoEnv(
        task.suite, task.name, camera_size=64, action_repeat=2, max_episode_steps=2, home=envs.envs[0].catalogue,
        time_limit_s=400.0,
    )  # fmt: skip
    try:
        observation, info = env.reset(seed=11 + row)
        found = [(observation, 0.0, False, False, info), *(env.step(a) for a in actions_of(row, 2))]
        assert found[-1][3], "the time limit"
        observation, info = env.reset()
        return [*found, (observation, 0.0, False, False, info)]
    finally:
        env.close()


@pytest.mark.slow
def test_results_are_those_of_single_environments_bit_for_bit(real: SimulatorVectorEnv) -> None:
    expected = [single(real, row) for row in range(2)]
    observation, info = real.reset(seed=11)
    got: list[Any] = [(observation, np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), info)]
    actions = np.stack([actions_of(row, 3) for row in range(2)], 1)
    got += [real.step(a) for a in actions]  # the last one resets
    for row in range(2):
        for mine, theirs in zip(got, expected[row], strict=True):
            for key, value in theirs[0].items():
                np.testing.assert_array_equal(mine[0][key][row], value)
            assert [part[row] for part in mine[1:4]] == list(theirs[1:4])
            for key in ("success", "suite", "task", "instruction", "initial_state", "seed", "steps"):
                assert mine[4][key][row] == theirs[4][key], key
            hand = mine[4]["privileged"]["eef_position"][row]
            np.testing.assert_array_equal(hand, theirs[4]["privileged"]["eef_position"])
    assert got[2][4]["steps"].tolist() == [2, 2] and got[2][3].all()


@pytest.mark.slow
def test_a_killed_simulator_does_not_stop_the_others(real: SimulatorVectorEnv) -> None:
    start, _ = real.reset(seed=11)
    victim = real.envs[1]._process
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    actions = np.stack([actions_of(row, 3) for row in range(2)], 1)
    observed, reward, _, truncated, info = real.step(actions[0])
    assert truncated.tolist() == [False, True] and reward[1] == -1
    assert info["error"][0] is None and "SIGKILL" in info["error"][1]
    np.testing.assert_array_equal(observed["image_agentview"][1], start["image_agentview"][1])
    assert (observed["image_agentview"][0] != start["image_agentview"][0]).any()
    *_, truncated, info = real.step(actions[1])
    assert truncated.tolist() == [True, False] and info["steps"].tolist() == [2, 0] and "error" not in info
    again, _ = real.reset(seed=11)
    for key in start:
        np.testing.assert_array_equal(again[key], start[key])


# -- simulators of this interpreter ------------------------------------------------------------------------------


def test_simulators_of_this_interpreter_run_in_processes_of_their_own() -> None:
    """As they do one after another in this one; one that dies takes nothing along."""
    envs = gym.make_vec("Kairos-Robosuite-v0", num_envs=2, task="push", max_episode_steps=3)
    here = gym.make_vec("Kairos-Robosuite-v0", num_envs=2, task="push", max_episode_steps=3, processes=False)
    try:
        assert data_equivalence(envs.reset(seed=3), here.reset(seed=3), exact=True)
        for _ in range(5):  # an automatic reset within
            actions = np.stack([env.expert_action() for env in envs.envs])  # type: ignore[attr-defined]
            assert data_equivalence(envs.step(actions), here.step(actions), exact=True)
        with pytest.raises(ValueError, match="unknown task 'lfit'; did you mean 'lift'"):
            envs.reset(options={"task": ["push", "lfit"]})
        envs.reset(seed=3)
        os.kill(envs.envs[0]._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        *_, truncated, info = envs.step(np.zeros((2, 4)))
        assert truncated.tolist() == [True, False] and "SIGKILL" in info["error"][0] and info["error"][1] is None
        *_, truncated, info = envs.step(np.zeros((2, 4)))
        assert not truncated.any() and info["steps"].tolist() == [0, 2] and "error" not in info
    finally:
        envs.close()
        here.close()


def test_a_simulator_that_raises_here_ends_its_own_episode_only() -> None:
    envs = SimulatorVectorEnv("point_simulator:Point", 2, processes=False, trouble={"5": "raise"})
    try:
        envs.reset(options={"task": "near", "initial_state": [5, 6]})
        for said in ("SimulatorError: FloatingPointError: the physics exploded", None):
            *_, truncated, info = envs.step(np.zeros((2, 2)))
            assert truncated[0] == (said is not None) and not truncated[1]
            if said:
                assert info["error"].tolist() == [said, None]
                envs.envs[0].broken = False
                envs.reset(options={"reset_mask": truncated, "task": "near", "initial_state": 7})
    finally:
        envs.close()
