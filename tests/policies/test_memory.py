"""What a policy remembers: every observation once, with the action that was executed."""

from __future__ import annotations

from typing import Any

import numpy as np
from counting_policy import WindowModel, see

from kairos_env.policies import TemporalEnsembling, WorldModelPolicy
from kairos_env.sims.tabletop.env import TASKS


def test_the_world_model_sees_every_observation_once_with_the_action_that_led_there() -> None:
    model: Any = WindowModel()
    policy = WorldModelPolicy(model, task="push", execute=3)
    policy.reset(seed=7)
    actions = []
    for x in (0.0, 0.1, 0.2, 0.3):
        observation = see(x)
        actions.append(policy.act(observation))
    assert model.asked == 2  # decisions at steps 0 and 3
    state = policy.observe(observation)
    done = [tuple(np.round(a, 4)) for a in actions[:3]]
    assert state == ("start", (7,), TASKS["push"], np.float32(0.0), done[0], np.float32(0.1), done[1],
                     np.float32(0.2), done[2], np.float32(0.3))  # fmt: skip


def test_a_wrapped_world_model_remembers_the_executed_and_not_the_proposed_action() -> None:
    model: Any = WindowModel()
    policy = TemporalEnsembling(WorldModelPolicy(model, task="push"), decay=0.0)
    actions = [policy.act(see(x)) for x in (0.0, 0.1, 0.2)]
    inner: Any = policy.policy
    state = inner.observe(see(0.3))
    assert [s for s in state[4:] if isinstance(s, tuple)] == [tuple(np.round(a, 4)) for a in actions]
