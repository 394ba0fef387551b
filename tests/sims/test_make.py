"""Simulators by name, and for a robot that is given."""

from __future__ import annotations

import dataclasses

import pytest

from kairos_env.records import SpecMismatch
from kairos_env.sims.make import load_factory, make_simulator, spec_of
from kairos_env.sims.tabletop.env import RobosuiteEnv, make_spec


def test_a_simulator_is_made_for_a_robot() -> None:
    spec = make_spec(("wrist", "scene"), 32)
    env = make_simulator("Kairos-Robosuite-v0", spec, task="push")
    try:
        assert isinstance(env, RobosuiteEnv) and env.task == "push"
        assert spec_of(env).diff(spec) == []
    finally:
        env.close()


def test_another_robot_is_refused_with_the_difference() -> None:
    slower = dataclasses.replace(make_spec(), control_rate_hz=2.0)
    with pytest.raises(SpecMismatch, match=r"control_rate_hz: 2.0 != 5.0"):
        make_simulator("Kairos-Robosuite-v0", slower)
    with pytest.raises(SpecMismatch, match="wanted robot != simulator"):
        make_simulator("point_simulator:Point", make_spec())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Kairos-Robosuit-v0", {}, "unknown simulator 'Kairos-Robosuit-v0'"),
        ("point_simulator:Pont", {}, "cannot load 'point_simulator:Pont'"),
        ("point_simulator:SPEC", {}, "is a RobotSpec, expected a function or class"),
        ("Kairos-Robosuite-v0", {"image_sice": 3}, "unknown option of Kairos-Robosuite-v0 'image_sice'; did you mean"),
        ("Kairos-LIBERO-v0", {"init_state": 3}, "'init_state' is called 'initial_state' now"),
    ],
)
def test_wrong_names_and_options_are_named(name: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_simulator(name, **options)


def test_what_is_no_robot_has_no_spec() -> None:
    with pytest.raises(TypeError, match="has no robot_spec"):
        spec_of(type("Thing", (), {"unwrapped": property(lambda self: self)})())
    assert load_factory("point_simulator:Point").__name__ == "Point"
