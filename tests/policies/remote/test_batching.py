"""Requests that wait together are decided together, and get what they would have got alone."""

from __future__ import annotations

import numpy as np
import pytest

from kairos_env.policies import WorldModelPolicy, example_observation
from kairos_env.policies.chunking import Continuation
from kairos_env.policies.remote.batching import ClientEpisode, decide
from kairos_env.policies.remote.requests import Request
from kairos_env.world_model.model import WorldModel


def test_chunks_are_continued_together_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = WorldModel.from_pretrained("kairos-tiny")
    spec = model.spec

    def ask(number: int) -> tuple[ClientEpisode, Request]:
        policy = WorldModelPolicy(model)
        policy.reset(number)
        rest = np.tile((0.3 * (number - 1) * spec.action_high).astype(np.float32), (3, 1))
        continuation = Continuation(rest, 1, 3, "inpaint" if number == 3 else "guided")
        return ClientEpisode(policy), Request(observation=example_observation(spec, number), continuation=continuation)

    alone = [decide([ask(number)], spec)[0] for number in range(4)]
    passes, act = [], model.act
    monkeypatch.setattr(model, "act", lambda state, **options: passes.append(state.batch_size) or act(state, **options))
    together = decide([ask(number) for number in range(4)], spec)
    assert passes == [4, 1]  # three guided ones, padded, and one in another mode
    for one, other in zip(alone, together, strict=True):
        assert np.allclose(one, other, atol=1e-4)
