"""The scripted pick and place: on made-up states, on a small kinematic table, and in the real simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libero_home import libero_home

from kairos_env.records import Array
from kairos_env.sims.libero.experts import SUITES, LiberoExpert

DOWN = np.diag([1.0, -1.0, -1.0])  # the hand's axes when it points down
LEVEL = np.eye(3)
UPRIGHT = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # cans and cartons stand along their own y
MILK, BASKET = ["milk_1", "basket_1"], np.array([0.0, 0.26, -0.005])
BOWL, PLATE = ["akita_black_bowl_1", "plate_1"], np.array([0.06, 0.2, 0.902])
OPEN, HELD = 0.0775, {"milk_1": 0.053, "akita_black_bowl_1": 0.0075}
AT_MILK, AT_BOWL = np.array([0.1, -0.2, 0.07]), np.array([-0.1, -0.1, 0.898])
GRASP = {"milk_1": np.array([0, 0, 0.035]), "akita_black_bowl_1": np.array([0, 0.048, 0.041])}


def state(objects: dict[str, Any], interest: list[str], eef: Any, opening: float = OPEN, hand: Array = DOWN) -> Any:
    """The true state; an object is a position, or a position and a rotation."""
    posed = {n: o if isinstance(o, tuple) else (o, UPRIGHT if "milk" in n else LEVEL) for n, o in objects.items()}
    return {
        "eef_position": np.asarray(eef, float),
        "eef_rotation": hand,
        "gripper_opening": opening,
        "objects": {n: {"position": np.asarray(p, float), "rotation": r} for n, (p, r) in posed.items()},
        "interest": interest,
    }


def milk(eef: Any, at: Any = AT_MILK, opening: float = OPEN, hand: Array = DOWN, **more: Any) -> Any:
    return state({"milk_1": at, "basket_1": BASKET, **more}, MILK, eef, opening, hand)


def bowl(eef: Any, at: Any = AT_BOWL, opening: float = OPEN, **more: Any) -> Any:
    return state({"akita_black_bowl_1": at, "plate_1": PLATE, **more}, BOWL, eef, opening)


def act(privileged: Any, repeat: int = 4) -> Array:
    suite = "libero_object" if privileged["interest"] == MILK else "libero_spatial"
    return LiberoExpert(privileged["interest"], suite, repeat).act(privileged)


def rotation(axis: Any, angle: float) -> Array:
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


class KinematicTable:
    """A hand that goes where it is told, without inertia, and a thing that it can hold and let fall."""

    def __init__(self, suite: str, rng: np.random.Generator) -> None:
        self.name, self.goal = (MILK[0], BASKET) if suite == "libero_object" else (BOWL[0], PLATE)
        self.floor = 0.07 if suite == "libero_object" else 0.898
        self.thing = np.array([rng.uniform(-0.2, 0.1), rng.uniform(-0.25, -0.05), self.floor])
        self.eef = np.array([-0.15, 0.0, self.floor + 0.2])
        self.opening = OPEN

    @property
    def privileged(self) -> Any:
        make = milk if self.name == MILK[0] else bowl
        return make(self.eef, self.thing, self.opening)

    def step(self, action: Array) -> None:
        between = self.eef - self.thing - GRASP[self.name]
        around = np.abs(between).max() < 0.02
        held = around and self.opening <= HELD[self.name] + 1e-9
        move = 0.045 * np.asarray(action[:3], float)
        self.eef = self.eef + move
        limit = HELD[self.name] if around else 0.0
        self.opening = float(np.clip(self.opening - 0.03 * np.sign(action[6]), limit, OPEN))
        if held and self.opening <= HELD[self.name] + 1e-9:
            self.thing = self.thing + move
        else:
            self.thing[2] = self.floor + (0.004 if np.hypot(*(self.thing - self.goal)[:2]) < 0.07 else 0.0)

    @property
    def done(self) -> bool:
        return bool(np.hypot(*(self.thing - self.goal)[:2]) < 0.03 and self.opening > 0.06 and self.eef[2] > 0.1)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_object_arrives_and_hand_lets_go(suite: str, noise: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        table = KinematicTable(suite, rng)
        expert = LiberoExpert(table.privileged["interest"], suite, 4)
        for _ in range(120):
            action = expert.act(table.privileged)
            table.step(np.clip(action + noise * rng.normal(size=7), -1, 1))
            if table.done:
                break
        assert table.done, f"seed {seed}: object {table.thing}, hand {table.eef}, opening {table.opening}"


def test_goes_down_only_above_the_object() -> None:
    low = 0.07 + 0.035 + 0.02  # the open fingers are below the carton's top here
    for angle in np.linspace(0, 2 * np.pi, 9):
        beside = np.array([0.1 + 0.06 * np.cos(angle), -0.2 + 0.06 * np.sin(angle), low])
        action = act(milk(beside))
        assert action[2] > 0.1, "beside the object and low: up first"
        assert np.abs(action[:2]).max() < 0.6, "and not through it"
    above = act(milk([0.1, -0.2, 0.2]))
    assert above[2] < -0.3
    assert np.abs(above[:2]).max() < 0.02
    far = act(milk([-0.2, 0.1, 0.26]))
    assert far[0] > 0.5
    assert far[1] < -0.5
    assert far[6] == -1


@pytest.mark.parametrize("make, place", [(milk, AT_MILK), (bowl, AT_BOWL)])
def test_closes_around_the_object_and_lifts_when_it_holds(make: Any, place: Array) -> None:
    name = MILK[0] if make is milk else BOWL[0]
    grasp = place + GRASP[name]
    ready = act(make(grasp))
    assert ready[6] == 1
    assert abs(ready[2]) < 0.05, "nothing is lifted while the fingers are open"
    held = act(make(grasp, opening=HELD[name]))
    assert held[6] == 1
    assert held[2] > 0.2
    lost = act(make(grasp + [0, 0, 0.1], opening=HELD[name]))
    assert lost[6] == -1, "what has slipped away is grasped again, with open fingers"
    empty = act(make(grasp, opening=0.0))
    assert empty[6] == -1
    assert empty[2] > 0.2, "closed fingers that hold nothing go up and open"


def test_carries_over_the_rim_and_lets_go_inside() -> None:
    def carried(at: Any, opening: float = HELD["milk_1"]) -> Array:
        return act(milk(np.array(at) + GRASP["milk_1"], at, opening))

    before = carried([0.0, 0.13, 0.15])  # its lower end is 6 cm below the basket's rim, and 2 cm from it
    assert before[2] > 0.5
    assert abs(before[1]) < 0.3
    above_rim = carried([0.0, 0.13, 0.25])
    assert above_rim[1] > 0.5
    assert above_rim[6] == 1
    inside = carried([0.0, 0.26, 0.2])
    assert inside[2] < -0.5
    assert inside[6] == 1
    low = carried([0.0, 0.26, 0.12])
    assert low[6] == -1
    gone = act(milk(np.array([0.0, 0.26, 0.16]), [0.0, 0.26, 0.09], OPEN))
    assert gone[2] > 0.2, "and away"
    assert gone[6] == -1


def test_bowl_is_let_go_on_the_plate_only() -> None:
    def carried(at: Any) -> Array:
        return act(bowl(np.array(at) + GRASP[BOWL[0]], at, HELD[BOWL[0]]))

    assert carried(PLATE + [0, 0, 0.003])[6] == -1
    assert carried(PLATE + [0, 0, 0.06])[6] == 1
    assert carried(PLATE + [0.06, 0, 0.003])[6] == 1


def test_climbs_over_what_stands_in_the_way() -> None:
    def lifted(z: float, **more: Any) -> Array:
        at = np.array([0.1, -0.2, z])
        return act(milk(at + GRASP["milk_1"], at, HELD["milk_1"], **more))

    tall = np.array([0.1, -0.12, 0.07])
    assert lifted(0.13)[1] > 0.9
    blocked = lifted(0.13, milk_2=tall)
    assert abs(blocked[1]) < 0.05
    assert blocked[2] > 0.5
    assert lifted(0.25, milk_2=tall)[1] > 0.9


def test_bowl_comes_out_of_the_drawer_before_it_travels() -> None:
    cabinet = (np.array([0.036, -0.28, 0.905]), rotation([0, 0, 1], np.radians(154)))
    inside = np.array([0.085, -0.13, 1.063])
    expert = LiberoExpert(BOWL, "libero_spatial", 4)
    first = expert.act(bowl([-0.2, 0.0, 1.175], inside, wooden_cabinet_1=cabinet))
    assert first[5] > 0.2, "the fingers turn to the wide side of the drawer"
    fingers = cabinet[1][:, 0] * -1
    hand = np.stack([np.cross(fingers, [0, 0, -1]), fingers, [0.0, 0, -1]], axis=1)
    grasp = inside + 0.04 * fingers + [0, 0, 0.041]
    held = bowl(grasp, inside, HELD[BOWL[0]], wooden_cabinet_1=cabinet)
    held["eef_rotation"] = hand
    action = expert.act(held)
    np.testing.assert_allclose(action[[0, 1, 3, 4, 5]], 0, atol=1e-5)
    assert action[2] > 0.5
    out = bowl(grasp + [0, 0, 0.1], inside + [0, 0, 0.1], HELD[BOWL[0]], wooden_cabinet_1=cabinet)
    out["eef_rotation"] = hand
    assert expert.act(out)[1] > 0.9


def test_bowl_is_held_at_the_side_where_the_palm_has_room() -> None:
    at = np.array([-0.1, -0.1, 0.898])
    free = LiberoExpert(BOWL, "libero_spatial")
    assert free.act(bowl(at + GRASP[BOWL[0]], at))[6] == 1
    cabinet = (at + [0, 0.25, 0.007], LEVEL)
    other = LiberoExpert(BOWL, "libero_spatial")
    assert other.act(bowl(at + [0, -0.048, 0.041], at, wooden_cabinet_1=cabinet))[6] == 1


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
def test_hand_is_turned_back(axis: list[int]) -> None:
    action = act(milk([0.1, -0.2, 0.25], hand=rotation(axis, 0.3) @ DOWN))
    turn = action[3:6]
    assert turn @ axis < -0.1
    np.testing.assert_allclose(turn - (turn @ axis) * np.asarray(axis), 0, atol=1e-6)


def test_fingers_turn_to_the_narrow_side() -> None:
    """A box of cream cheese is 8 cm long and does not fit between the fingers that way."""
    for angle in (0.0, 0.4, -0.4):
        pose = (np.array([0.0, -0.1, 0.009]), rotation([0, 0, 1], angle))
        seen = state({"cream_cheese_1": pose, "basket_1": BASKET}, ["cream_cheese_1", "basket_1"], [0, -0.1, 0.2])
        turn = LiberoExpert(seen["interest"], "libero_object").act(seen)[5]
        assert np.sign(turn) == np.sign(angle)


position = st.tuples(*(st.floats(-0.35, 0.35),) * 2, st.floats(0.0, 0.45)).map(np.array)


@given(position, position, st.floats(0.0, OPEN), st.floats(-0.5, 0.5), st.sampled_from([1, 4]))
def test_every_state_has_a_legal_action_that_depends_on_nothing_else(
    eef: Array, at: Array, opening: float, angle: float, repeat: int
) -> None:
    seen = milk(eef, at, opening, rotation([1, 2, 3], angle) @ DOWN)
    expert = LiberoExpert(MILK, "libero_object", repeat)
    action = expert.act(seen)
    assert action.dtype == np.float32
    assert action.shape == (7,)
    assert np.isfinite(action).all()
    assert np.abs(action).max() <= 1
    expert.act(milk([0, 0, 0.3]))
    np.testing.assert_array_equal(expert.act(seen), action)


@given(position, st.floats(0.0, OPEN), st.integers(0, 2))
def test_action_changes_little_with_the_state(eef: Array, opening: float, axis: int) -> None:
    step = 1e-5 * np.eye(3)[axis]
    change = act(milk(eef + step, opening=opening)) - act(milk(eef, opening=opening))
    assert np.abs(change).max() < 0.02  # that is, at most 0.2 for each 0.1 mm


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="no expert for suite 'libero_goal'"):
        LiberoExpert(MILK, "libero_goal")
    with pytest.raises(ValueError, match="one known object"):
        LiberoExpert(["wine_bottle_1", "wine_rack_1"], "libero_object")
    with pytest.raises(ValueError, match="one known object"):
        LiberoExpert(["milk_1"], "libero_object")
    with pytest.raises(ValueError, match="action_repeat"):
        LiberoExpert(MILK, "libero_object", 0)


@pytest.mark.slow
@pytest.mark.parametrize("suite, task", [("libero_object", "salad_dressing"), ("libero_spatial", "table_center")])
def test_solves_tasks_of_the_real_simulator(suite: str, task: str) -> None:
    home = libero_home()
    from kairos_env.policies import ExpertPolicy, check_policy
    from kairos_env.records import Observation
    from kairos_env.sims.libero.env import LiberoEnv

    # Another class of observation would need pictures; the expert reads the true state.
    (name,) = (t.name for t in LiberoEnv(home=home).catalogue.tasks("libero", [suite]) if task in t.name)
    env = LiberoEnv(suite, name, initial_state=3, action_repeat=4, camera_size=16, rendering="fast", home=home)
    try:
        observed, info = env.reset(seed=0)
        policy = ExpertPolicy(env)
        check_policy(policy, env.robot_spec, Observation.from_gym(observed, env.instruction))
        rng, ended = np.random.default_rng(0), False
        while not ended:
            action = policy.act(Observation.from_gym(observed, env.instruction))
            noisy = np.clip(action + 0.1 * rng.normal(size=7) * [1, 1, 1, 0.1, 0.1, 0.1, 0], -1, 1)
            observed, _, success, truncated, info = env.step(noisy.astype(np.float32))
            ended = success or truncated
        assert info["success"], info["privileged"]
    finally:
        env.close()
