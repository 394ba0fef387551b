"""Expected errors become as large as those that are made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_square import SPEC, moving_square

from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.calibration import calibrate, fit, true_errors
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel


def test_factor_and_power_are_found() -> None:
    rng = np.random.default_rng(0)
    expected = np.exp(rng.uniform(-4, -1, 20_000))
    made = 0.3 * expected**1.6 * np.abs(rng.normal(size=len(expected)))
    made[::7] = np.nan  # episodes that do not tell
    assert fit(expected, made) == pytest.approx((np.log(0.3), 1.6), abs=0.03)


def test_expectations_that_say_nothing_become_the_mean() -> None:
    rng = np.random.default_rng(1)
    made = np.abs(rng.normal(0, 0.02, 5000))
    offset, slope = fit(np.exp(-10 * made), made)  # large where errors are small
    assert slope == 0 and np.exp(offset) == pytest.approx(0.02, rel=0.05)
    assert fit(np.ones(5000), made) == (pytest.approx(np.log(0.02), abs=0.05), pytest.approx(0, abs=1e-6))


def test_too_few_errors_leave_the_expected_ones() -> None:
    assert fit(np.full(500, 0.1), np.full(500, np.nan)) is None
    assert fit(np.full(20, 0.1), np.full(20, 0.3)) is None
    model = WorldModel(dataclasses.replace(get_preset("debug"), objects=("object", "goal")), SPEC, TASKS).eval()
    few = [moving_square(0)]
    assert calibrate(model, few).error_slope == (1.0,) * 4
    known = dataclasses.replace(model.statistics, error_offset=(0.1, 0.2, 0.3, 0.4), error_slope=(0.5, 0.6, 0.7, 0.8))
    model.set_statistics(known)
    assert calibrate(model, few) == known, "what a longer training found stays"


def test_a_models_errors_are_as_large_as_expected(tmp_path: Path) -> None:
    model = WorldModel(dataclasses.replace(get_preset("debug"), objects=("object", "goal")), SPEC, TASKS).eval()
    episodes = [moving_square(i) for i in range(12)]
    model.set_statistics(calibrate(model, episodes))
    model.save_pretrained(tmp_path)
    model = WorldModel.from_pretrained(tmp_path)
    state = model.observe([episode.observation(0) for episode in episodes], seeds=range(12))
    steps = min(map(len, episodes))
    roll = model.imagine(state, np.stack([episode.actions[:steps] for episode in episodes]))
    made = np.stack([true_errors(model, e, roll, i, steps) for i, e in enumerate(episodes)])
    told = np.isfinite(made).all((0, 1))
    assert told[0] and told[-1]
    for expected, true in zip(roll.errors.numpy().T[told], made.T[told], strict=True):
        assert np.sqrt(np.square(true / expected).mean()) == pytest.approx(1, abs=0.15)


def test_expected_errors_never_fall_until_somebody_looks() -> None:
    model = WorldModel(dataclasses.replace(get_preset("debug"), objects=("object", "goal")), SPEC, TASKS).eval()
    torch.nn.init.normal_(model.heads.error[-1].weight, std=0.5)
    episode = moving_square(0)
    state = model.observe(episode.observation(0))
    roll = model.imagine(state, episode.actions[None])
    own, errors = [], []
    after = state
    for action in episode.actions:
        after = model.step(after, action[None]).state
        own.append(after.own_errors)
        errors.append(after.errors)
    assert (torch.stack(own).diff(dim=0) < 0).any(), "what is expected of a frame alone may fall"
    assert (torch.stack(errors).diff(dim=0) >= 0).all()
    torch.testing.assert_close(torch.stack(errors, 1), roll.errors)
    seen = model.observe(episode.observation(len(episode)), roll.state, episode.actions[-1:])
    assert torch.equal(seen.errors, seen.own_errors) and (seen.errors[:, 0] < roll.state.errors[:, 0]).all()
