"""Stage 1: which pixels count, and pictures of any shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_square import SPEC, config, moving_square

from kairos_env.records import Camera
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.pixels import PixelWeights, cell_weights, median_image, pixel_weights
from kairos_env.training.run import train
from kairos_env.training.tokenizer import moments
from kairos_env.world_model.model import WorldModel


def test_colour_counts_only_where_a_data_set_says_so() -> None:
    table = torch.full((1, 4, 4, 3), 90, dtype=torch.uint8)
    picture = table.clone()
    picture[0, 0, 0] = torch.tensor([220, 30, 30])  # a red thing
    picture[0, 1, 1] = 200  # a grey one
    for weights, red in ((PixelWeights(), 5.0), (PixelWeights(coloured=10), 15.0)):
        found = pixel_weights(picture, median_image(table), weights)[0, 0]
        assert found.mean() == pytest.approx(1)
        assert float(found[0, 0] / found[3, 3]) == pytest.approx(red)
        assert float(found[1, 1] / found[3, 3]) == pytest.approx(5.0)


def test_another_light_is_not_unusual_but_what_stands_in_it_is() -> None:
    usual = median_image(torch.full((1, 8, 8, 3), 110, dtype=torch.uint8))
    dark = torch.full((1, 8, 8, 3), 50, dtype=torch.uint8)
    dark[0, 0, 0] = 140
    found = pixel_weights(dark, usual, PixelWeights())[0, 0]
    assert float(found[0, 0] / found[3, 3]) == pytest.approx(5.0) and float(found[5, 5] / found[3, 3]) == 1


def test_latent_cells_count_as_their_pixels_do() -> None:
    views = [np.full((5, 16, 32, 3), 90, np.uint8) for _ in range(6)]
    views[0][0, :8, 24:] = (220, 30, 30)  # the last cell of the first row
    first, *others = cell_weights(views, (2, 4), PixelWeights(coloured=10))
    assert first.shape == (5, 2, 4)
    assert float(first[0, 0, 3] / first[0, 1, 0]) == pytest.approx(15, rel=1e-3)
    assert all((cells == 1).all() for cells in (first[1:], *others))


@pytest.mark.parametrize("height", [48, 96])
def test_pictures_need_not_be_square(height: int, tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, cameras=(Camera("scene", height, 64), Camera("wrist", height, 64)))
    rng = np.random.default_rng(0)

    def views(seed: int) -> dict[str, np.ndarray]:
        return {c.name: rng.integers(0, 256, (13, height, 64, 3), np.uint8) for c in spec.cameras}

    episodes = [dataclasses.replace(moving_square(seed), images=views(seed)) for seed in range(7)]
    one_eyed = dataclasses.replace(episodes[6], images={"scene": episodes[6].images["scene"]})
    small = dataclasses.replace(config(tmp_path, 2), validation=1, starts=1, tokenizer_batch=4, batch=2)
    model = WorldModel.from_pretrained(train(small, [*episodes[:6], one_eyed], spec, {"push": TASKS["push"]}))
    assert model.latent_shape[1:] == (height // 8, 16)
    assert np.isfinite(model.statistics.latent_std).all()


def test_statistics_are_of_what_is_known() -> None:
    """What only stands for another robot's fields, as all do in films, shifts no mean and shrinks no spread."""
    known = [moving_square(i) for i in range(3)]
    nothing = np.zeros(SPEC.proprio_dim, bool)
    film = dataclasses.replace(known[0], proprio=np.full_like(known[0].proprio, 0.1), proprio_mask=nothing)
    mean, std = moments([*known, film, film])
    np.testing.assert_allclose(np.array([mean, std]), np.array(moments(known)), atol=1e-6)
    assert moments([film])[1] == (1.0,) * SPEC.proprio_dim
