"""Random action sequences and their refitting."""

from __future__ import annotations

import numpy as np
import pytest
from point_world import SPEC

from kairos_env.policies.planners.action_sampling import ActionDistribution


def test_samples_are_smooth_bounded_and_the_gripper_is_sticky() -> None:
    flat = ActionDistribution.around(SPEC, 12, spread=0.5, smoothness=0.0, stickiness=0.0)
    smooth = ActionDistribution.around(SPEC, 12, spread=0.5, smoothness=0.8, stickiness=0.9)
    rng = np.random.default_rng(0)
    rough, gentle = flat.sample(4000, rng), smooth.sample(4000, rng)
    for actions in (rough, gentle):
        assert actions.dtype == np.float32
        assert (actions >= SPEC.action_low).all() and (actions <= SPEC.action_high).all()
        assert set(np.unique(actions[..., 2])) == {-1.0, 1.0}
        assert actions[..., 2].mean() == pytest.approx(0, abs=0.05)

    def neighbours(actions: np.ndarray) -> float:
        return float(np.corrcoef(actions[:, :-1, 0].ravel(), actions[:, 1:, 0].ravel())[0, 1])

    assert abs(neighbours(rough)) < 0.05 and neighbours(gentle) > 0.6
    assert gentle[..., 0].std() == pytest.approx(rough[..., 0].std(), rel=0.05)
    switches = [(a[:, 1:, 2] != a[:, :-1, 2]).mean() for a in (rough, gentle)]
    assert switches[1] < 0.4 * switches[0]


def test_refitting_follows_the_elites() -> None:
    prior = ActionDistribution.around(SPEC, 4)
    elite = np.tile(np.array([0.08, -0.05, 1.0], np.float32), (6, 4, 1))
    fitted = prior.fit(elite, momentum=0.0)
    assert np.allclose(fitted.mode(), elite[0])
    assert (fitted.std[:, :2] > 0).all()  # later rounds still look around
    assert fitted.sample(200, np.random.default_rng(0))[..., 2].mean() > 0.8
