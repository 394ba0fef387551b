"""A simulator of this interpreter in a process of its own: the same answers, and errors as the simulator has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from point_simulator import SPEC, Point

from kairos_env.sims.isolated import IsolatedSimulator, packed, unpacked
from kairos_env.sims.process import Reply, SimulatorCrashed, SimulatorError, SimulatorTimeout

START = {"task": "near", "initial_state": 3}


@pytest.fixture(scope="module")
def point() -> Iterator[IsolatedSimulator]:
    env = IsolatedSimulator("point_simulator:Point", {"trouble": {"5": "raise", "6": "die", "7": "hang"}})
    yield env
    env.close()


def test_values_survive_the_way() -> None:
    value = {"a": [np.arange(6).reshape(2, 3), 1.5], "b": {"c": None, "d": np.float32(0.5)}, "e": "text"}
    for as_lists in (False, True):
        arrays: dict[str, Any] = {}
        again = unpacked(Reply({"value": packed(value, arrays, as_lists)}, arrays))
        np.testing.assert_array_equal(again["a"][0], value["a"][0])  # type: ignore[index]
        assert again["a"][0].dtype == np.int64 and again["a"][1] == 1.5
        assert again["b"] == {"c": None, "d": 0.5} and again["e"] == "text"


def test_it_is_what_it_is_here(point: IsolatedSimulator) -> None:
    here = Point()
    assert point.robot_spec == SPEC and point.observation_space == here.observation_space
    for mine, theirs in zip(point.reset(seed=1, options=START), here.reset(seed=1, options=START), strict=True):
        assert repr(mine) == repr(theirs)
    action = np.array([0.1, -0.1], np.float32)
    assert repr(point.step(action)) == repr(here.step(action))
    np.testing.assert_array_equal(point.expert_action(), here.expert_action())
    assert point.call("goal").tolist() == [0.0, 0.0]


def test_what_cannot_be_built_is_said_as_it_is_here() -> None:
    with pytest.raises(ValueError, match=r"unknown option of point_simulator:Point 'truble'; did you mean 'trouble'"):
        IsolatedSimulator("point_simulator:Point", {"truble": {}})
    with pytest.raises(SimulatorError, match="OSError: no GL on this machine"):
        IsolatedSimulator("point_simulator:broken_simulator")


def test_failures_are_errors_and_the_next_reset_starts_anew(point: IsolatedSimulator) -> None:
    still = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="unknown reset option 'tusk'; did you mean 'task'"):
        point.reset(options={"tusk": "near"})
    for state, error in ((6, SimulatorCrashed), (7, SimulatorTimeout)):
        point.reset(seed=0, options=START | {"initial_state": state})
        point.time_limit_s = 2.0
        with pytest.raises(error):
            point.step(still)
        point.time_limit_s = 60.0
        assert point.reset(seed=1, options=START)[1]["instruction"] == "go near"
    point.reset(seed=0, options=START | {"initial_state": 5})
    with pytest.raises(SimulatorError, match="FloatingPointError: the physics exploded"):
        point.step(still)
