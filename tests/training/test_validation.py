"""Measuring a model in training on held-out episodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from moving_square import SPEC, config, moving_square

from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.validation import Validation, psnr, rollout_metrics
from kairos_env.world_model.model import WorldModel

POSITIONS = ("position_error_last",)


def test_rollouts_are_measured_at_the_horizons_that_there_are(tmp_path: Path) -> None:
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    episodes = [moving_square(seed, steps) for seed, steps in ((0, 7), (1, 12))]
    metrics = rollout_metrics(model, episodes, tmp_path / "strips")
    assert [key for key in metrics if key.endswith("_copy")] == ["psnr_1_copy", "psnr_5_copy"]
    assert metrics["psnr_5_copy"] == pytest.approx(
        psnr(*(np.stack([e.images["scene"][at] for e in episodes]) for at in (0, 5)))
    )
    assert all(np.isfinite(value) for value in metrics.values()) and set(POSITIONS) <= set(metrics)
    assert sorted(path.name for path in (tmp_path / "strips").iterdir()) == ["0.png", "1.png"]


def test_a_distance_is_measured_only_where_fields_are_positions() -> None:
    joints = tuple(dataclasses.replace(f, kind="joint_position", unit="rad") for f in SPEC.proprio)
    model = WorldModel.from_preset("debug", dataclasses.replace(SPEC, proprio=joints), TASKS)
    metrics = rollout_metrics(model, [moving_square(0)])
    assert "proprio_error_last" in metrics and not set(POSITIONS) & set(metrics)
    assert rollout_metrics(model, []) == {}


def test_losses_are_of_the_same_clips_each_time(tmp_path: Path) -> None:
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    validation = Validation(model, [moving_square(0)], config(tmp_path), tmp_path / "strips")
    first, second = validation.measure(model, 1), validation.measure(model, 2)
    assert first == second and {"validation_video", "validation_policy"} <= set(first)
    short = Validation(model, [moving_square(0, 3)], config(tmp_path), tmp_path / "strips")
    assert not any(key.startswith("validation_") for key in short.measure(model, 3))
