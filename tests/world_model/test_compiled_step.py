"""Compiled imagined steps and pictures equal the eager ones, within the errors that the documentation states."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from kairos_env.records import Observation
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.compiled import PATIENCE
from kairos_env.world_model.compiled_step import use_engine
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.engines import EngineError
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import StepOutput

SPEC = make_spec()
DECISIONS = PATIENCE + 6  # some of them compiled, and more than the dilated window reaches
LARGEST_ERROR = {"traced": 1e-6, "openvino": 1e-4}  # of outputs of order 1, at the end of the rollout


def make(one_pass: bool = True, objects: tuple[str, ...] = ("object", "goal")) -> WorldModel:
    torch.manual_seed(0)
    config = dataclasses.replace(get_preset("debug"), objects=objects, one_pass=one_pass)
    model = WorldModel(config, SPEC, TASKS).eval()
    with torch.no_grad():  # untrained heads are zero, which would hide differences
        for head in (model.mixture.video_dit.head.head, model.mixture.video_dit.proprio_head.head):
            torch.nn.init.normal_(head.weight, std=0.1)
    return model


def observations(batch: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 64, 64, 3), np.uint8)
    return [Observation({"scene": image}, rng.uniform(-0.1, 0.1, 4).astype(np.float32), "lift") for image in images]


def rollout(model: WorldModel, batch: int) -> list[StepOutput]:
    actions = torch.rand(DECISIONS, batch, SPEC.action_dim, generator=torch.Generator().manual_seed(1)) - 0.5
    state, outputs = model.observe(observations(batch)), []
    for action in actions:
        outputs.append(model.step(state, action))
        state = outputs[-1].state
    return outputs


def assert_close(found: StepOutput, expected: StepOutput, error: float) -> None:
    for field in dataclasses.fields(StepOutput):
        if field.name != "state":
            torch.testing.assert_close(
                getattr(found, field.name), getattr(expected, field.name), atol=error, rtol=error
            )
    torch.testing.assert_close(found.state.tensors(), expected.state.tensors(), atol=error, rtol=error)


@pytest.mark.parametrize(
    ("engine", "batch", "objects"),
    [("traced", 1, ("object", "goal")), ("traced", 3, ()), ("openvino", 3, ("object", "goal"))],
)
def test_engines_equal_the_eager_step(engine: str, batch: int, objects: tuple[str, ...]) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    model = make(objects=objects)
    expected = rollout(model, batch)
    picture = model.decode(expected[-1].latent)["scene"]
    use_engine(model, engine)
    found = rollout(model, batch)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, LARGEST_ERROR[engine])
    for _ in range(PATIENCE + 2):
        decoded = model.decode(expected[-1].latent)["scene"]
    assert np.abs(decoded.astype(int) - picture).max() <= (2 if engine == "openvino" else 0)  # grey levels
    # a state is a value, wherever it came from
    again = model.step(found[-2].state.select([batch - 1]), torch.full((1, 4), 0.1))
    use_engine(model, "eager")
    assert_close(again, model.step(found[-2].state.select([batch - 1]), torch.full((1, 4), 0.1)), LARGEST_ERROR[engine])


def test_times_far_away_stay_exact() -> None:
    """Angles of large times are computed outside of OpenVINO, which has no float64."""
    pytest.importorskip("openvino")
    model = make()
    state = dataclasses.replace(model.observe(observations(1)), past=torch.tensor([1_000_003]))
    expected = model.step(state, torch.zeros(1, 4))
    use_engine(model, "openvino")
    assert_close(model.step(state, torch.zeros(1, 4)), expected, LARGEST_ERROR["openvino"])


def test_new_weights_are_compiled_anew_and_copies_go_their_own_way() -> None:
    model = make()
    use_engine(model, "traced")
    before = rollout(model, 1)[-1]
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.mixture.video_dit.head.head.bias.add_(0.1)
    changed = rollout(model, 1)[-1]
    assert (changed.latent - before.latent).abs().max() > 0.05
    assert_close(rollout(other, 1)[-1], before, 1e-6)
    use_engine(model, "eager")
    assert_close(changed, rollout(model, 1)[-1], 1e-6)
    assert all(p.requires_grad for p in model.parameters())


def test_what_an_engine_cannot_compute_is_an_error_if_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAIROS_STEP", raising=False)
    two_pass = make(one_pass=False)
    use_engine(two_pass)  # automatically: eager
    assert two_pass.compiled is None
    with pytest.raises(EngineError, match="'traced' computes small models with one pass a step, and 'debug' is none"):
        use_engine(two_pass, "traced")
    monkeypatch.setenv("KAIROS_STEP", "traced")
    with pytest.raises(EngineError, match="KAIROS_STEP"):
        use_engine(two_pass)
    model = make()
    with pytest.raises(EngineError, match="bfloat16"):
        use_engine(model, "traced", torch.bfloat16)
    use_engine(model)
    state = model.observe(observations(1))
    with pytest.raises(EngineError, match="takes one denoising step, not 2"):
        model.step(state, torch.zeros(1, 4), steps=2)
    monkeypatch.delenv("KAIROS_STEP")
    use_engine(model)
    assert model.compiled is not None
    model.step(state, torch.zeros(1, 4), steps=2)
