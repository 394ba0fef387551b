"""The loss: its parts, and what they may not depend on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from moving_square import SPEC, moving_square

from kairos_env.records import Camera
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.batches import Clips
from kairos_env.training.losses import world_model_loss
from kairos_env.training.passes import LossConfig
from kairos_env.world_model.model import WorldModel

CONFIG = LossConfig(frames=6)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    spec = dataclasses.replace(SPEC, cameras=(*SPEC.cameras, Camera("wrist", 64, 64)))
    return WorldModel.from_preset("debug", spec, TASKS)


def test_the_sum_is_weighed_and_observed_frames_alone_teach_what_they_can(model: WorldModel) -> None:
    batch = Clips(model, [moving_square(0)]).sample(3, 10, torch.Generator().manual_seed(0), 2)
    observed = {"policy", "reward", "success", "object", "seen", "uncertainty"}
    for video, joint, names in (
        (True, True, set(CONFIG.weights)),
        (True, False, set(CONFIG.weights) - {"inverse", "future"}),
        (False, False, observed),
    ):
        for horizon in (1, 3):
            generator = torch.Generator().manual_seed(1)
            total, parts = world_model_loss(model, batch, CONFIG, generator, horizon, video, joint)
            assert set(parts) == names
            assert float(total.detach()) == pytest.approx(sum(CONFIG.weights[n] * float(v) for n, v in parts.items()))
            assert parts["object"] == parts["seen"] == 0  # nobody recorded one
