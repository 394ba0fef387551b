"""Starting from a finished model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from moving_square import SPEC, moving_square

from kairos_env.records import Camera
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.transfer import initialise_from, reconstruction
from kairos_env.world_model.model import WorldModel


def test_the_same_robot_takes_everything_over() -> None:
    source, model = (WorldModel.from_preset("debug", SPEC, TASKS, seed) for seed in (0, 1))
    source.set_statistics(dataclasses.replace(source.statistics, proprio_mean=(1.0, 2.0, 3.0, 4.0)))
    transfer = initialise_from(source, model, [moving_square(0)], "it")
    assert str(transfer) == f"goes on from it: all {len(model.state_dict())} tensors kept"
    assert model.statistics == source.statistics
    for a, b in zip(model.parameters(), source.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_belongs_to_other_fields_and_cameras_starts_anew_and_is_named() -> None:
    wider = dataclasses.replace(
        SPEC,
        cameras=(*SPEC.cameras, Camera("wrist", 64, 64)),
        proprio=(dataclasses.replace(SPEC.proprio[0], unit="mm"), *SPEC.proprio[1:]),
    )
    source, model = WorldModel.from_preset("debug", SPEC, TASKS), WorldModel.from_preset("debug", wider, TASKS, 1)
    transfer = initialise_from(source, model, [moving_square(0)], "it")
    assert transfer.fresh and all("proprio_" in name or "heads." in name for name in transfer.fresh)
    assert [text.partition(" ")[0] for text in transfer.differences] == ["proprio", "cameras"]
    assert "eef_x [-0.25, 0.25] m, " in transfer.differences[0] and "] mm, " in transfer.differences[0]
    assert model.statistics.proprio_mean != source.statistics.proprio_mean  # of the episodes
    assert model.statistics.latent_mean == source.statistics.latent_mean


def test_reconstruction_is_measured_camera_by_camera() -> None:
    two = dataclasses.replace(SPEC, cameras=(*SPEC.cameras, Camera("wrist", 64, 64)))
    model = WorldModel.from_preset("debug", two, TASKS)
    episode = moving_square(0)
    both = dataclasses.replace(episode, images=episode.images | {"wrist": np.zeros_like(episode.images["scene"])})
    found = reconstruction(model, [both, both])
    assert list(found) == ["scene", "wrist"]
    back = model.decode(model.encode([both.observation(t) for t in range(len(both) + 1)]))
    for name, value in found.items():
        error = np.square(back[name].astype(float) - both.images[name]).mean((1, 2, 3))
        assert value == pytest.approx((10 * np.log10(255**2 / error)).mean(), abs=0.05)
