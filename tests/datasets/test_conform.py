"""Episodes of one robot read as episodes of another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kairos_env.datasets.conform import conform
from kairos_env.embodiments import libero_panda
from kairos_env.records import Camera, Episode, Field, RobotSpec, SpecMismatch

ARM = RobotSpec(
    "arm",
    (Camera("front", 8, 8), Camera("wrist", 8, 8)),
    (Field("x", -1, 1, "m"), Field("width", 0, 0.1, "m")),
    (Field("dx", -0.1, 0.1, "m", "delta_position"), Field("grip", -1, 1, "1", "gripper")),
    20.0,
)
OTHER = RobotSpec(
    "other",
    (Camera("front", 8, 8), Camera("side", 8, 8)),
    (Field("y", 2, 4, "m"), Field("x", -1, 1, "m")),
    (Field("grip", -1, 1, "1", "gripper"), Field("dx", -0.1, 0.1, "m", "delta_position"), Field("dy", 0, 1, "m")),
    5.0,
)


def episode(steps: int = 9) -> Episode:
    rng = np.random.default_rng(0)
    return Episode(
        {c.name: rng.integers(0, 256, (steps + 1, 8, 8, 3), np.uint8) for c in ARM.cameras},
        rng.uniform(-1, 1, (steps + 1, 2)).astype(np.float32),
        rng.uniform(-0.03, 0.03, (steps, 2)).astype(np.float32),
        np.arange(steps, dtype=np.float32),
        np.arange(steps) == 2,
        task="t",
        instruction="do it",
    )


def test_fields_follow_names_and_what_is_missing_is_masked() -> None:
    source = episode()
    got = conform(source, ARM, OTHER)
    assert len(got) == 2  # nine steps at 20 Hz are two decisions at 5 Hz; the ninth is left over
    np.testing.assert_array_equal(got.images["front"], source.images["front"][[0, 4, 8]])
    assert set(got.images) == {"front"}
    np.testing.assert_array_equal(got.proprio[:, 1], source.proprio[[0, 4, 8], 0])
    np.testing.assert_array_equal(got.proprio[:, 0], 3)
    assert got.proprio_mask is not None and got.proprio_mask.tolist() == [False, True]
    np.testing.assert_array_equal(got.actions[:, 0], source.actions[[3, 7], 1])  # the last gripper command
    want = source.actions[:8, 0].reshape(2, 4).sum(1)  # displacements add up
    np.testing.assert_allclose(got.actions[:, 1], np.clip(want, -0.1, 0.1), atol=1e-6)
    assert got.action_mask is not None and got.action_mask.tolist() == [True, True, False]
    assert got.success.tolist() == [True, False] and got.rewards.tolist() == [3.0, 7.0]


def test_a_robot_that_shares_nothing_teaches_by_its_pictures_alone_if_that_is_asked_for() -> None:
    stranger = RobotSpec(
        "stranger", (Camera("eye", 8, 8),), (Field("j0", -1, 1, "rad"),), (Field("grip", 0, 9, "N", "force"),), 20.0
    )
    source = episode()
    with pytest.raises(SpecMismatch, match="has none of the cameras"):
        conform(source, ARM, dataclasses.replace(stranger, control_rate_hz=20.0))
    got = conform(source, ARM, stranger, foreign=True)
    np.testing.assert_array_equal(got.images["eye"], source.images["front"])
    assert not got.acts and source.acts  # another unit of the same name is masked, too
    assert got.actions.tolist() == [[4.5]] * 9 and got.proprio_mask is not None and not got.proprio_mask.any()


def test_commands_that_are_joined_to_a_held_one_become_their_mean() -> None:
    steps, source, held = 8, libero_panda(8), libero_panda(8, action_repeat=4)
    rng = np.random.default_rng(1)
    human = Episode(
        {c.name: np.zeros((steps + 1, 8, 8, 3), np.uint8) for c in source.cameras},
        np.zeros((steps + 1, 8), np.float32),
        rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        np.zeros(steps, np.float32),
        np.zeros(steps, np.bool_),
    )
    got = conform(human, source, held)
    parts = human.actions.reshape(2, 4, 7)
    np.testing.assert_allclose(got.actions[:, :6], parts[..., :6].mean(1), atol=1e-6)
    np.testing.assert_array_equal(got.actions[:, 6], parts[:, -1, 6])
    assert (held.control_rate_hz, held.action[0].unit, held.action[3].unit) == (5.0, "0.2 m", "2 rad")


def test_pictures_take_the_other_robots_size_and_latents_cannot() -> None:
    larger, source = dataclasses.replace(OTHER, cameras=(Camera("front", 16, 8),)), episode()
    assert conform(source, ARM, larger).images["front"].shape == (3, 16, 8, 3)
    cached = dataclasses.replace(source, images={}, latents={"front": np.zeros((10, 4, 1, 1), np.float16)})
    with pytest.raises(SpecMismatch, match="latents of camera 'front' are of 8 x 8 pixels, but 16 x 8 are wanted"):
        conform(cached, ARM, larger)


def test_the_same_robot_is_left_alone() -> None:
    source = episode()
    assert conform(source, ARM, ARM) is source


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (dataclasses.replace(OTHER, control_rate_hz=7.0), "20 Hz and 'other' at 7 Hz"),
        (dataclasses.replace(OTHER, cameras=(Camera("top", 8, 8),)), "none of the cameras"),
        (dataclasses.replace(OTHER, proprio=(Field("x", -1, 1, "rad"),)), "'x' means"),
        (dataclasses.replace(OTHER, action=(Field("j1", -1, 1, "rad"),)), "share no field: dx, grip against j1"),
    ],
)
def test_what_does_not_fit_is_named(target: RobotSpec, message: str) -> None:
    with pytest.raises(SpecMismatch, match=message):
        conform(episode(), ARM, target)
    with pytest.raises(SpecMismatch, match="shorter than one decision"):
        conform(episode(3), ARM, OTHER)
