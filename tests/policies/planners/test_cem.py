"""The cross-entropy method."""

from __future__ import annotations

import pytest
from point_world import PointWorld, start

from kairos_env.policies import cem, random_shooting


def test_cem_beats_random_shooting_with_as_many_evaluations() -> None:
    model = PointWorld()
    refined = cem(model, start(model), horizon=8, population=128, iterations=4)
    shot = random_shooting(model, start(model), horizon=8, population=512)
    assert refined.evaluations == shot.evaluations == 512
    assert refined.value > shot.value


def test_it_ends_when_the_best_agree() -> None:
    model, search = PointWorld(), {"horizon": 8, "population": 128, "iterations": 12, "elites": 12}
    patient, brief = (cem(model, start(model), tolerance=tolerance, **search) for tolerance in (0.0, 0.02))
    assert brief.evaluations < patient.evaluations == 12 * 128
    assert brief.value > 0.98 * patient.value


def test_nonsense_is_refused() -> None:
    model = PointWorld()
    with pytest.raises(ValueError, match=r"state\.select"):
        cem(model, start(model).fork(2))
    with pytest.raises(ValueError, match="elites <= population"):
        cem(model, start(model), elites=50, population=10)
    with pytest.raises(ValueError, match="horizon"):
        cem(model, start(model), horizon=0)
    with pytest.raises(FloatingPointError, match="no candidate plan has a finite value"):
        cem(PointWorld(broken=True), start(model))
    assert cem(model, start(model), elites=2, population=8).evaluations, "fewer elites than are usually kept"
