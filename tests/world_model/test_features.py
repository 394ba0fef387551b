"""The measured form of a scene, against the differences computed by hand."""

from __future__ import annotations

import numpy as np
import torch

from kairos_env.sims.tabletop.env import make_spec
from kairos_env.world_model.features import feature_names, measured_features


def test_features_are_positions_differences_and_saturating_differences() -> None:
    spec = make_spec()
    proprio = torch.tensor([[0.1, 0.0, 0.05, 0.04]])
    objects = torch.tensor([[[0.12, -0.01, 0.02], [0.2, 0.1, 0.0]]])
    names = feature_names(spec, ("object", "goal"))
    found = dict(zip(names, measured_features(spec, 2 * proprio, proprio, objects)[0].tolist(), strict=True))
    assert len(found) == len(names) == 4 + 6 + 3 * 6
    assert np.isclose(found["eef_x"], 0.2) and np.isclose(found["goal.y"], 1.0)
    assert np.isclose(found["object-hand.x"], 0.02 / 0.05) and np.isclose(found["goal-object.y"], 0.11 / 0.05)
    assert np.isclose(found["object-hand.z.contact"], np.tanh(-0.03 / 0.02), atol=1e-6)


def test_without_objects_only_proprioception_is_left_and_nothing_leaves_the_range() -> None:
    spec = make_spec()
    proprio = torch.tensor([[0.1, 0.0, 0.05, 0.04]])
    assert feature_names(spec, ()) == tuple(field.name for field in spec.proprio)
    assert measured_features(spec, proprio, proprio, torch.zeros(1, 0, 3)).tolist() == proprio.tolist()
    far = measured_features(spec, proprio, proprio, torch.full((1, 1, 3), 1e6))
    assert far.abs().max() == 10 and far.isfinite().all()
