"""Expected errors and success beside those that are made."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_square import SPEC, moving_square

import kairos_env.cli.main as cli
from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.datasets.layouts import open_recording
from kairos_env.eval.imagination.calibration import (
    CalibrationConfig,
    forecast,
    run_calibration,
    true_errors,
    trust_horizons,
)
from kairos_env.eval.imagination.calibration_report import (
    CalibrationReport,
    Forecasts,
    calibration_error,
    error_bins,
    success_bins,
)
from kairos_env.eval.report.measured import add_to_card
from kairos_env.records import Episode
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.world_model.checkpoint import HORIZONS, read_measured
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import Rollout


def labelled(seed: int, steps: int = 12) -> Episode:
    episode = moving_square(seed, steps)
    places = np.zeros((steps + 1, 3), np.float32)
    return dataclasses.replace(episode, labels={"object_position": places, "goal_position": places + 0.1})


@pytest.fixture(scope="module")
def model() -> WorldModel:
    torch.manual_seed(0)
    config = dataclasses.replace(get_preset("debug"), objects=("object", "goal"))
    found = WorldModel(config, SPEC, TASKS).eval()
    found.starts = tuple(moving_square(seed).observation(0) for seed in range(50, 54))
    return found


# Figures


def test_probabilities_that_are_right_have_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=50_000)
    happened = (rng.uniform(size=50_000) < probability).astype(float)
    assert calibration_error(probability, happened) < 0.01
    assert calibration_error(np.full(100, 0.9), np.zeros(100)) == pytest.approx(0.9)
    assert math.isnan(calibration_error(np.zeros(0), np.zeros(0)))
    assert success_bins(np.array([0.05, 1.0, 0.95]), np.array([0.0, 1.0, 0.0])) == [(0.05, 0.0, 1), (0.975, 0.5, 2)]


def test_errors_are_compared_in_groups_of_equal_number() -> None:
    expected = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 4)
    found = error_bins(expected[::-1], 2 * expected[::-1])
    assert found == [(e, 2 * e) for e in (1.0, 2.0, 3.0, 4.0, 5.0)]


def forecasts(errors: np.ndarray, told: np.ndarray, tasks: tuple[str, ...]) -> Forecasts:
    """Of one object, whose errors and expected errors (N, H) are given; hand and picture are right."""
    none = np.zeros_like(errors)
    values = (np.stack([none, x, none], -1) for x in (told, errors))
    return Forecasts(("hand", "object", "picture"), tasks, *values, told, none, none, np.ones(len(errors)))


def test_the_horizon_is_where_half_of_the_episodes_go_astray() -> None:
    rising = np.tile(np.arange(1, 9) / 100, (7, 1))  # 1 cm a decision
    rising[:3] = 0.0  # a minority that stays right
    still = np.full((5, 8), 0.01)
    found = forecasts(np.concatenate([rising, still]), np.concatenate([rising, still]), ("push",) * 7 + ("reach",) * 5)
    assert trust_horizons(found) == {"push": 3, "reach": 8}
    few = forecasts(still[:4], still[:4], ("reach",) * 4)
    assert trust_horizons(few) == {}, "too few episodes say nothing"


def test_what_knows_its_errors_ranks_them_and_what_counts_decisions_does_not() -> None:
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.01, 0.2, (12, 10))
    knows = CalibrationReport((1, 5, 10), {"": forecasts(errors, errors**2, ("push",) * 12)}, {}, True)
    ranks = {what: found.value for what, found in knows.rank(knows.usual).items()}
    assert ranks["uncertainty, all decisions"] == pytest.approx(1)
    assert ranks["uncertainty, within a decision"] == pytest.approx(1)
    assert abs(ranks["number of the decision alone"]) < 0.3
    true, expected = knows.errors("object", slice(1, 5))
    assert true == pytest.approx(np.sqrt((errors[:, 1:5] ** 2).mean()))
    assert expected == pytest.approx(np.sqrt((errors[:, 1:5] ** 4).mean()))


# Episodes


def test_true_errors_are_distances(model: WorldModel) -> None:
    episode = labelled(1)
    steps = 4
    latents = model.encode([episode.observation(t) for t in range(1, steps + 1)])[None]
    proprio = torch.as_tensor(episode.proprio[None, 1 : steps + 1]).clone()
    proprio[..., model.spec.hand_fields] += torch.tensor([0.03, 0.0, 0.04])
    objects = torch.zeros(1, steps, 2, 3)
    objects[..., 0, 2] = 0.02
    nothing = torch.zeros(1, steps)
    state = model.observe(episode.observation(0))
    rollout = Rollout(latents + 0.5, proprio, nothing, nothing, nothing, objects, torch.zeros(1, steps, 4), state)
    found = true_errors(model, episode, rollout, 0, steps)
    assert found == pytest.approx(np.tile([0.05, 0.02, 0.1 * np.sqrt(3), 0.5], (steps, 1)), abs=1e-5)


def test_forecasts_do_not_depend_on_the_batch_and_end_with_the_episode(model: WorldModel) -> None:
    episodes = [labelled(seed, steps) for seed, steps in ((0, 8), (1, 5), (2, 8))]
    one, together = (forecast(model, episodes, 8, batch=batch) for batch in (1, 3))
    assert together.names == ("hand", "object", "goal", "picture")
    for name in ("expected", "true", "uncertainty", "success", "solved"):
        np.testing.assert_allclose(getattr(one, name), getattr(together, name), atol=1e-4)
        known = np.isfinite(getattr(one, name)).reshape(3, 8, -1).all(-1).sum(1)
        assert known.tolist() == [8, 5, 8]
    assert (one.expected > 0).all(where=np.isfinite(one.expected))


def test_a_run_writes_what_the_card_and_the_environment_read(model: WorldModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    with EpisodeWriter(tmp_path / "e.hdf5", SPEC) as writer:
        for seed in range(8):
            writer.add(labelled(seed))
    out = tmp_path / "calibration"
    words = f"--model {folder} --data {tmp_path / 'e.hdf5'} --decisions 6 --horizons 1,3,9 --out {out}"
    assert cli.main(["eval", "calibration", *words.split()]) == 0
    found = json.loads((out / "calibration.json").read_text())
    assert list(found["success_ece"]) == ["1", "2-3", "4-6"] and set(found["trust_horizon"]) == {"push"}
    assert set(found["errors"]) == {"hand", "object", "goal", "picture"}
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 6 and "Horizon of trust" in page
    assert add_to_card(folder, out) == "calibration"
    assert WorldModel.from_pretrained(folder).horizons == found["trust_horizon"] == read_measured(folder)[HORIZONS]


def test_calibration_needs_pictures_and_episodes(model: WorldModel) -> None:
    blind = dataclasses.replace(labelled(0), images={})
    with pytest.raises(ValueError, match="has none: give the recording itself"):
        forecast(model, [blind], 4)
    with pytest.raises(ValueError, match="at least 5 episodes"):
        CalibrationConfig(episodes=2)


@pytest.mark.slow
def test_held_out_episodes_are_recorded_under_each_condition(tmp_path: Path) -> None:
    config = CalibrationConfig(output=str(tmp_path), episodes=5, decisions=3, horizons=(1, 3))
    report = run_calibration(config)
    assert set(report.forecasts) == {"", "half_light"}
    dark, usual = report.forecasts["half_light"], report.usual
    assert (usual.strangeness < 1.5).all() and dark.strangeness.shape == (5,)
    light = [
        np.mean([e.images["scene"].mean() for e in open_recording(tmp_path / name)])
        for name in ("episodes", "episodes-half_light")
    ]
    assert light[1] < 0.7 * light[0]
    assert "half_light" in report.table()
