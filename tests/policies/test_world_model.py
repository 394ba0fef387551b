"""The world model's own policy, on a counting model and on the real `debug` model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from counting_policy import SPEC, WindowModel, see

from kairos_env.policies import ChunkExecution, TemporalEnsembling, WorldModelPolicy, check_policy
from kairos_env.policies.policy import BatchedPolicy, example_observation
from kairos_env.records import Camera
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.world_model.dit import StreamingVideoDiT
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.tokenizers.image import Tokenizer


def test_world_model_policy_repeats_itself_under_a_seed_only() -> None:
    model: Any = WindowModel()
    policy = WorldModelPolicy(model, task="lift")
    first, other = [], []
    for episode in (first, other):
        policy.reset(seed=3)
        episode += [policy.act(see(x)) for x in (0.0, 0.1)]
    assert np.array_equal(first, other)
    policy.reset()
    drawn = policy.act(see(0.0))
    policy.reset()
    assert not np.array_equal(drawn, policy.act(see(0.0)))


def test_world_model_policy_refuses_what_it_cannot_do() -> None:
    model: Any = WindowModel()
    with pytest.raises(ValueError, match="no task 'fold'; legal: reach, push, lift"):
        WorldModelPolicy(model, task="fold")
    with pytest.raises(ValueError, match="not both"):
        WorldModelPolicy(model, task="push", instruction="push")
    with pytest.raises(ValueError, match="proposes 3 actions"):
        WorldModelPolicy(model, execute=4)
    policy = WorldModelPolicy(model)
    policy.observe(see())
    with pytest.raises(RuntimeError, match="without an action between"):
        policy.observe(see())


def test_acting_runs_the_video_branch_once_per_observation_and_never_the_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = {"video": 0, "decoder": 0, "act": 0}

    def counted(owner: type, method: str, what: str) -> None:
        original = getattr(owner, method)

        def counting(*args: Any, **kwargs: Any) -> Any:
            calls[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, counting)

    counted(StreamingVideoDiT, "embed_frames", "video")
    counted(Tokenizer, "decode", "decoder")
    counted(WorldModel, "act", "act")
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    policy = WorldModelPolicy(model, task="lift", steps=5, execute=2)
    for step in range(5):
        policy.act(see(0.01 * step))
        assert calls == {"video": step + 1, "decoder": 0, "act": step // 2 + 1}
    check_policy(policy, SPEC)
    check_policy(TemporalEnsembling(WorldModelPolicy(model, task="push")), SPEC)
    check_policy(ChunkExecution(WorldModelPolicy(model, task="push"), 3), SPEC)


def test_world_model_policies_decide_alike_alone_and_together() -> None:
    model = WorldModel.from_preset("debug", dataclasses.replace(SPEC, cameras=(Camera("scene", 32, 32),)), {"go": "go"})
    alone = [WorldModelPolicy(model, execute=2) for _ in range(3)]
    together = [WorldModelPolicy(model, execute=2) for _ in range(3)]
    assert isinstance(together[0], BatchedPolicy)
    for number, (a, b) in enumerate(zip(alone, together, strict=True)):
        a.reset(number)
        b.reset(number)
    for step in range(5):
        # the third episode begins later, and one is missing now and then
        here = [i for i in range(3) if step >= i and (step + i) % 4]
        seen = {i: example_observation(model.spec, seed=10 * step + i) for i in here}
        expected = [alone[i].act(seen[i]) for i in here]
        if here:
            actions = WorldModelPolicy.act_together([together[i] for i in here], list(seen.values()), 4)
            np.testing.assert_allclose(actions, expected, atol=1e-4)
