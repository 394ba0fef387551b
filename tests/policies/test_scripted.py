"""Policies without learning."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from counting_policy import SPEC, see

from kairos_env.policies import ExpertPolicy, RandomPolicy, ReplayPolicy, check_policy


def test_replay_plays_then_stays_or_complains() -> None:
    actions = np.array([[0.01, 0, 0, 1], [0.02, 0, 0, 1]], np.float32)
    policy = ReplayPolicy(actions, SPEC)
    assert np.array_equal([policy.act(see()) for _ in range(2)], actions)
    with pytest.raises(IndexError, match='after="stay"'):
        policy.act(see())
    policy.reset()
    assert np.array_equal(policy.act(see()), actions[0])
    staying = ReplayPolicy(actions, SPEC, after="stay")
    assert np.array_equal([staying.act(see()) for _ in range(4)][2:], [[0, 0, 0, 1]] * 2)
    with pytest.raises(ValueError, match="shape"):
        ReplayPolicy(np.zeros((2, 3)), SPEC)


def test_random_play_is_smooth_and_reproducible() -> None:
    policy = RandomPolicy(SPEC)
    policy.reset(seed=2)
    first = np.stack([policy.act(see()) for _ in range(24)])
    policy.reset(seed=2)
    assert np.array_equal(policy.chunk(see()).actions, first)
    assert np.corrcoef(first[:-1, :3].ravel(), first[1:, :3].ravel())[0, 1] > 0.4
    assert np.abs(first[:, :3]).max() > 0.03


def test_the_expert_needs_a_simulator_with_an_expert() -> None:
    asked = []

    def expert_action(task: str | None) -> list[float]:
        asked.append(task)
        return [0.01, 0, 0, -1]

    env = SimpleNamespace(expert_action=expert_action)
    env.unwrapped = env
    policy = ExpertPolicy(env, "push")
    check_policy(policy, SPEC)
    assert set(asked) == {"push"}
    bare = SimpleNamespace(unwrapped=SimpleNamespace())
    with pytest.raises(TypeError, match="no scripted expert"):
        ExpertPolicy(bare)


def test_a_correction_of_what_was_acted_is_no_further_step() -> None:
    """A wrapper that disturbs actions tells what was executed; the replay then goes on with the next one."""
    actions = np.arange(12, dtype=np.float32).reshape(3, 4) / 1000
    policy = ReplayPolicy(actions, SPEC)
    played = []
    for _ in range(3):
        observation = see()
        played.append(policy.act(observation))
        policy.follow(observation, played[-1] + 0.001)
    assert np.array_equal(played, actions)
    policy.reset()
    observations = [see(), see()]
    for observation in observations:
        policy.follow(observation, actions[0])
    assert np.array_equal(policy.act(see()), actions[2])
