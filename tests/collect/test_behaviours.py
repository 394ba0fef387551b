from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from libero_table import BUTTER, Table

from kairos_env.collect.behaviours import BEHAVIOURS, check_behaviour, disturbed, make_behaviour
from kairos_env.embodiments import ROBOTWIN_ALOHA
from kairos_env.records import Observation


def played(name: str, seed: int = 0, decisions: int = 12) -> tuple[np.ndarray, list[np.ndarray]]:
    """Actions (T, 7) of a behaviour in LIBERO's action space, and where the hand was."""
    env = Table()
    raw, info = env.reset(0, {"task": BUTTER, "initial_state": 0})
    behaviour = make_behaviour(name, env, BUTTER, np.random.default_rng(seed), noise=0.3)
    actions, hands = [], [env.position]
    for _ in range(decisions):
        seen = Observation.from_gym(raw, info["instruction"])
        actions.append(behaviour.act(seen, info))
        behaviour.follow(seen, actions[-1])
        raw, _, _, _, info = env.step(actions[-1])
        hands.append(env.position)
    return np.array(actions), hands


@pytest.mark.parametrize("name", [*BEHAVIOURS, "disturbed_expert", "random+noise=0.1"])
def test_behaviours_move_any_hand_and_repeat_under_their_seed(name: str) -> None:
    actions, _ = played(name)
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
    assert np.array_equal(actions, played(name)[0])
    if name != "expert":
        assert not np.array_equal(actions, played(name, seed=1)[0])


def test_random_play_stays_near_where_the_hand_began_and_turns_nothing() -> None:
    # LIBERO declares a range of 4 m for the hand's position, which is no workspace
    actions, hands = played("random", decisions=40)
    assert not actions[:, 3:6].any() and actions[:, 6].any()
    assert np.abs(np.array(hands) - hands[0]).max() < 0.5


def test_disturbances_are_of_the_hand_only() -> None:
    actions, _ = played("disturbed_expert")
    assert actions[:, :6].std(0).min() > 0 and (actions[:, 6] == -1).all()
    assert disturbed("expert") == disturbed("disturbed_expert") == "disturbed_expert"


def test_robots_without_a_hand_that_moves_and_unknown_names_are_refused() -> None:
    env: Any = type("TwoArms", (), {"robot_spec": ROBOTWIN_ALOHA})()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="0 fields of the kind delta_position: choose another behaviour"):
        make_behaviour("random", env, "", rng)
    with pytest.raises(ValueError, match="TwoArms has no scripted expert"):
        make_behaviour("expert", env, "", rng)
    for name, said in (("expret", "did you mean 'expert'"), ("cem(horizon", "cannot read the policy name")):
        with pytest.raises(ValueError, match=said):
            check_behaviour(name)
    assert check_behaviour("disturbed_policy") == "disturbed_policy"


def test_stillness_moves_nothing_and_keeps_the_gripper_for_stretches() -> None:
    always = stretches = 0
    for seed in range(8):
        actions, hands = played("still", seed, decisions=40)
        at_rest = ~actions[:, :6].any(axis=1)
        always += bool(at_rest.all())
        stretches += bool(at_rest.any() and not at_rest.all())
        changes = np.flatnonzero(np.diff(actions[at_rest, 6]))
        assert at_rest.sum() >= 8 and len(changes) < at_rest.sum() / 3, "kept, then opened or closed in place"
    assert always and stretches and always + stretches == 8


@pytest.mark.parametrize("name", ["recovery", "mixed"])
def test_recovery_and_mixed_hand_over_to_experts(name: str) -> None:
    by_expert = []
    for seed in range(4):
        env = Table()
        raw, info = env.reset(0, {"task": BUTTER, "initial_state": 0})
        behaviour = make_behaviour(name, env, BUTTER, np.random.default_rng(seed))
        for _ in range(40):
            wanted = env.expert_action()
            action = behaviour.act(Observation.from_gym(raw, info["instruction"]), info)
            by_expert.append(np.array_equal(action, wanted))
            raw, _, _, _, info = env.step(action)
    assert 0.1 < np.mean(by_expert) < 0.9, "at times the expert without noise"
