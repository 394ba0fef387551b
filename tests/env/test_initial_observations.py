"""Where imagined episodes begin, and what the robot is asked to do there."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import pytest
from counting_model import SPEC, STARTS, CountingModel, observation, shaken_model
from gymnasium.utils.env_checker import data_equivalence

from kairos_env.env.env import WorldModelEnv
from kairos_env.records import Observation, RobotSpec, SpecMismatch
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.model import WorldModel

WORLD = "Kairos-WorldModel-v0"


def counting_env(**settings: Any) -> WorldModelEnv:
    return WorldModelEnv(CountingModel(), **settings)


def assert_same(one: Any, other: Any) -> None:
    assert data_equivalence(one, other, exact=True), f"{one} != {other}"


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return shaken_model()


def test_a_reset_shows_the_real_start() -> None:
    env = counting_env()
    observed, info = env.reset(seed=0, options={"start": 4})
    assert (observed["image_scene"] == STARTS[4].images["scene"]).all()
    assert observed["proprio"].tolist() == STARTS[4].proprio.tolist()
    assert info.pop("objects").tolist() == [[1.0, 1.0, 1.0]]
    assert info.pop("errors").tolist() == [pytest.approx(0.1)]
    assert info == {
        "success": False,
        "success_probability": 0.0,
        "uncertainty": 0.0,
        "imagined_step": 0,
        "task": "count",
        "instruction": "count",
        "seed": 0,
        "familiarity": 1.0,
        "known_instruction": True,
    }


def test_writing_into_an_observation_changes_no_start() -> None:
    env = counting_env()
    observed, _ = env.reset(options={"start": 4})
    observed["image_scene"][:] = 0
    observed["proprio"][:] = 0
    again, _ = env.reset(options={"start": 4})
    assert again["image_scene"].min() == 7
    assert again["proprio"][1] == 4.0


def test_every_start_is_drawn() -> None:
    env = counting_env()
    drawn = {env.reset(seed=seed)[0]["proprio"][1] for seed in range(100)}
    assert drawn == set(range(10))


@pytest.mark.parametrize("form", ["record", "gym"])
def test_a_given_observation_starts_the_episode(form: str) -> None:
    env = counting_env(unknown_instructions="accept")
    given = observation(42.0)
    option = given if form == "record" else given.to_gym()
    observed, _ = env.reset(seed=0, options={"observation": option, "instruction": "count sheep"})
    assert observed["proprio"][1] == 42.0
    assert env.model.instructions == ["count sheep"]  # type: ignore[attr-defined]


def test_fixed_starts_as_a_setting() -> None:
    assert counting_env(start=observation(33.0)).reset(seed=5)[0]["proprio"][1] == 33.0
    env = counting_env(start=[observation(1.0), observation(2.0)])
    assert {env.reset(seed=s)[0]["proprio"][1] for s in range(20)} == {1.0, 2.0}


@pytest.mark.parametrize(
    ("task", "options", "wanted"),
    [
        (None, {}, ("count", "count")),
        ("wait", {}, ("wait", "do nothing")),
        ("wait", {"task": "count"}, ("count", "count")),
        ("count", {"instruction": "do nothing"}, ("wait", "do nothing")),
        ("count", {"instruction": "sing"}, ("", "sing")),
        (None, {"observation": dataclasses.replace(observation(), instruction="dance")}, ("", "dance")),
        ("wait", {"observation": dataclasses.replace(observation(), instruction="dance")}, ("wait", "do nothing")),
    ],
)
def test_what_the_robot_is_asked_to_do(task: str | None, options: dict[str, Any], wanted: tuple[str, str]) -> None:
    env = counting_env(task=task, unknown_instructions="accept")
    _, info = env.reset(seed=0, options=options)
    assert (info["task"], info["instruction"]) == wanted
    assert env.model.instructions == [wanted[1]]  # type: ignore[attr-defined]


class Simulator(gym.Env[dict[str, Any], Any]):
    """Stands in for a simulator: its observations say how it was reset."""

    observation_space, action_space = SPEC.observation_space, SPEC.action_space
    task, closed = "count", False

    robot_spec = SPEC

    def __init__(self, image_size: int = 64) -> None:
        self.made_with = image_size

    @classmethod
    def arguments_for(cls, spec: RobotSpec) -> dict[str, Any]:
        return {"image_size": spec.cameras[0].height}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.options = options or {}
        self.task = self.options.get("task", self.task)
        moved = self.options.get("initial_state", self.np_random.integers(50))
        return observation(float(moved)).to_gym(), {"instruction": f"simulated {self.task}"}

    def close(self) -> None:
        self.closed = True


class Benchmark(Simulator):
    """A simulator whose task names say the suite, as LIBERO's do."""

    task = "bench/sheep/count"

    def tasks(self) -> dict[str, str]:
        return {"bench/sheep/count": "count", "bench/wolves/rest": "do nothing"}


def test_starts_from_a_simulator() -> None:
    gym.register("KairosTest-Simulator-v0", Simulator)
    env = counting_env(start="KairosTest-Simulator-v0")
    simulator = env.imagination.initial_observations.simulator.unwrapped  # type: ignore[union-attr]
    assert simulator.made_with == 36
    first, info = env.reset(seed=1)
    assert info["instruction"] == "simulated count"
    again, _ = env.reset(seed=1)
    other, info = env.reset(seed=2, options={"initial_state": 17, "task": "wait"})
    assert_same(first, again)
    assert other["proprio"][1] == 17.0
    assert info["instruction"] == "do nothing"
    assert env.reset(seed=1)[1]["instruction"] == "simulated count"  # the task of one reset does not stick
    env.close()
    env.close()
    assert simulator.closed


def test_a_simulator_that_was_passed_in_stays_open() -> None:
    simulator = Simulator()
    env = counting_env(start=simulator)
    env.reset(seed=0)
    env.close()
    assert not simulator.closed


@pytest.mark.parametrize(
    ("task", "there"), [("count", "bench/sheep/count"), ("wait", "bench/wolves/rest"), (None, "bench/sheep/count")]
)
def test_a_task_is_found_under_the_simulators_name(task: str | None, there: str) -> None:
    """By the end of its name, or by its words."""
    simulator = Benchmark()
    counting_env(start=simulator).reset(seed=0, options={"task": task})
    assert simulator.task == there


def test_a_task_that_the_simulator_does_not_have() -> None:
    simulator = Benchmark()
    simulator.tasks = lambda: {"bench/sheep/shear": "shear the sheep"}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no task 'wait'; legal: bench/sheep/shear"):
        counting_env(start=simulator).reset(seed=0, options={"task": "wait"})


@pytest.mark.slow
def test_starts_from_the_real_simulator(model: WorldModel) -> None:
    env = gym.make(WORLD, model=model, start="Kairos-Robosuite-v0", task="push")
    simulator = gym.make("Kairos-Robosuite-v0")
    expected, _ = simulator.reset(options={"initial_state": 3})
    observed, info = env.reset(options={"initial_state": 3})
    assert info["instruction"] == TASKS["push"]
    assert_same(expected, observed)
    assert_same(env.reset(seed=5), env.reset(seed=5))
    assert env.step(env.action_space.sample())[0] in simulator.observation_space
    simulator.close()
    env.close()


def test_a_model_without_starts_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="start='Kairos-Robosuite-v0'"):
        WorldModelEnv(CountingModel(starts=()))


def test_recorded_starts_are_initial_states_too() -> None:
    env = counting_env()
    assert env.initial_states() == 10 and set(env.tasks()) == {"count", "wait"}
    first, _ = env.reset(seed=1, options={"initial_state": 4})
    again, _ = env.reset(seed=1, options={"start": 4})
    assert all((first[key] == again[key]).all() for key in first)


@pytest.mark.parametrize("start", [3, [], [1, 2]])
def test_starts_that_are_none(start: Any) -> None:
    with pytest.raises(TypeError, match="an Observation"):
        counting_env(start=start)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"instuction": "lift"}, "unknown reset option 'instuction'; did you mean 'instruction'"),
        ({"task": "dance"}, "the model knows no task 'dance'.*legal: count, wait"),
        ({"start": 10}, "there are 10: 0 ... 9"),
        ({"start": -1}, "start -1 does not exist"),
        ({"start": "first"}, "give the index of a recorded start, 0 ... 9"),
        ({"initial_state": 10}, "start 10 does not exist; there are 10"),
        ({"initial_state_id": 3}, "'initial_state_id' is called 'initial_state' now"),
        ({"start": 1, "observation": observation()}, "pass one of them"),
        ({"instruction": 3}, "'instruction' takes words, got 3"),
        ({"observation": 3}, "an observation is a dict with 'proprio' .* got int"),
        ({"observation": {"image_scene": 0}}, r"got \['image_scene'\]"),
    ],
)
def test_reset_options_that_are_not_legal(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        counting_env().reset(options=options)


def test_the_observation_of_another_robot_is_refused(model: WorldModel) -> None:
    other = make_spec(cameras=("scene", "wrist"))
    given = Observation.from_gym(other.observation_space.sample())
    env = WorldModelEnv(model)
    with pytest.raises(SpecMismatch, match="wrist"):
        env.reset(options={"observation": given})
    with pytest.raises(SpecMismatch, match="wrist"):
        WorldModelEnv(model, start=given)
    with pytest.raises(SpecMismatch, match="proprio"):
        WorldModelEnv(model, start=Simulator())
