"""Films of moving bodies: the same for the same seed, and captions that are true."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kairos_env.collect.films.physics import COLOURS, Body, Motion, describe, physics_clip, seen_direction


def test_a_film_follows_from_seed_and_number() -> None:
    one, same, other = (physics_clip(seed, 1, 32, 1.0, 5.0) for seed in (3, 3, 4))
    assert one.frames.shape == (6, 32, 32, 3) and one.frames.dtype == np.uint8
    np.testing.assert_array_equal(one.frames, same.frames)
    assert one.caption == same.caption and not np.array_equal(one.frames, other.frames)


def test_what_is_said_to_roll_to_a_side_is_seen_to() -> None:
    """The body is found in the picture by its difference from the floor."""
    told = 0
    for number in range(1, 61, 4):
        clip = physics_clip(7, number, 48, 1.2, 5.0)
        found = re.search(r"(?:rolls|slides) to the (left|right)", clip.caption)
        body = clip.facts["bodies"][0].split()[0]
        if not found or body not in ("red", "green", "blue", "yellow"):
            continue
        columns = []
        for frame in clip.frames[[0, -1]].astype(int):
            strange = np.abs(frame - np.median(frame, (0, 1))).max(-1) > 40
            columns.append(np.nonzero(strange)[1].mean() if strange.any() else None)
        if None not in columns:
            told += 1
            assert (columns[1] > columns[0]) == (found[1] == "right"), clip.caption
    assert told >= 2


@pytest.mark.parametrize(
    ("azimuth", "offset", "seen"),
    [
        (90, (1, 0, 0), "to the right"),
        (90, (-1, 0.5, 0), "to the left"),
        (90, (0, 1, 0), "away"),
        (180, (1, 0, 0), "closer"),
        (180, (0, 1, 0), "to the right"),
    ],
)
def test_directions_are_the_cameras(azimuth: float, offset: tuple[float, ...], seen: str) -> None:
    assert seen_direction(np.array(offset), azimuth) == seen


def test_captions_say_what_happened() -> None:
    bodies = [Body("orange", "ball", 0.05, (0, 0, 0.3)), Body("blue", "box", 0.05, (0.3, 0, 0.05))]
    still = [0.3, 0, 0.05]
    places = np.array([[[0, 0, 0.3], still], [[0.1, 0, 0.05], still], [[0.2, 0, 0.05], still]])
    motion = Motion(places, np.array([4.0, 0.0]), {(0, 1): 1.0}, np.array([0.1, 0.05]))
    assert describe(bodies, motion, 90) == (
        "An orange ball falls, hits the blue box, bounces and rolls to the right. The blue box stays where it is."
    )
    tower = np.array([[[0, 0, 0.15], [0, 0, 0.05]]] * 2)
    assert "An orange ball lies on the blue box." in describe(bodies, Motion(tower, np.zeros(2), {}, np.zeros(2)), 90)


def test_captions_fit_a_small_text_encoder() -> None:
    for number in range(4):
        clip = physics_clip(0, number, 16, 0.4, 5.0)
        assert 0 < len(clip.caption.split()) <= 48
        assert any(colour in clip.caption for colour in COLOURS) and clip.instruction
