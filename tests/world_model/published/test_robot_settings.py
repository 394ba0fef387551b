"""The published settings, and the picture that is composed for the model."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kairos_env.policies import example_observation
from kairos_env.records import Array
from kairos_env.world_model.published.releases import get_release, miniature
from kairos_env.world_model.published.robot_settings import (
    LIBERO,
    ROBOTWIN,
    SETTINGS,
    RobotSettings,
    compose,
    get_settings,
)
from kairos_env.world_model.published.robot_settings import (
    CameraTile as Tile,
)

CONTRACT = Path(os.environ.get("KAIROS_TEST_DATA", ""), "robotwin", "contract")
PLAIN = dataclasses.replace(LIBERO, through_bfloat16=False)


def bilinear(image: Array, rows: int, columns: int) -> Array:
    """Reference: every target pixel averages the source under a triangle as wide as a target pixel, and at least as
    wide as a source pixel; weights of 22 bits, one axis after the other, rounded (a half up) after each.
    """

    def weights(source: int, target: int) -> Array:
        scale = source / target
        centre = (np.arange(target) + 0.5) * scale - 0.5
        triangle = np.maximum(0, 1 - np.abs(np.arange(source) - centre[:, None]) / max(scale, 1))
        return np.floor(0.5 + triangle / triangle.sum(1, keepdims=True) * 2**22) / 2**22

    across = np.floor(0.5 + np.einsum("tc,rcx->rtx", weights(image.shape[1], columns), image.astype(np.float64)))
    return np.floor(0.5 + np.einsum("tr,rcx->tcx", weights(image.shape[0], rows), across))


def bfloat16(x: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even, from its bits."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def images(settings: RobotSettings, seed: int = 0) -> dict[str, Array]:
    """Noise that is smooth enough to look different under different filters, not only random."""
    rng = np.random.default_rng(seed)
    return {
        camera.name: np.kron(
            rng.integers(0, 256, (camera.height // 2, camera.width // 2, 3)), np.ones((2, 2, 1))
        ).astype(np.uint8)
        for camera in settings.spec.cameras
    }


def test_libero_canvas_is_two_square_views_side_by_side() -> None:
    seen = images(LIBERO)
    canvas = compose(PLAIN, seen)
    assert canvas.shape == (224, 448, 3) and canvas.dtype == np.uint8
    want = np.concatenate([bilinear(seen["agentview"], 224, 224), bilinear(seen["eye_in_hand"], 224, 224)], 1)
    np.testing.assert_array_equal(canvas, want)


def test_robotwin_canvas_has_the_head_above_both_wrists() -> None:
    seen = images(ROBOTWIN)
    canvas = compose(ROBOTWIN, seen)
    assert canvas.shape == (384, 320, 3) and canvas.dtype == np.uint8
    wrists = np.concatenate([bilinear(seen["left"], 128, 160), bilinear(seen["right"], 128, 160)], 1)
    want = np.concatenate([bilinear(seen["head"], 256, 320), wrists], 0)
    np.testing.assert_array_equal(canvas, want)


def test_the_filter_averages_when_it_shrinks() -> None:
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[:, ::2] = 254  # a filter that only interpolates between neighbours keeps some stripes
    canvas = compose(ROBOTWIN, {"head": stripes, "left": stripes, "right": stripes})
    assert np.abs(canvas[256:, 2:158].astype(int) - 127).max() <= 1


def test_crop_keeps_the_shape_and_cuts_both_sides_evenly() -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 255  # exactly the middle third survives
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2))
    canvas = compose(PLAIN, {"agentview": wide, "eye_in_hand": tall})
    assert (canvas[:, 2:222] == 255).all() and (canvas[2:222, 224:] == 255).all()
    np.testing.assert_array_equal(canvas[:, :224], bilinear(wide, 224, 672)[:, 224:448])


def test_nothing_is_turned() -> None:
    corner = np.zeros((256, 256, 3), np.uint8)
    corner[:64, :64] = [255, 0, 0]
    canvas = compose(PLAIN, {"agentview": corner, "eye_in_hand": corner * 0})
    assert canvas[10, 10].tolist() == [255, 0, 0]
    assert not canvas[-10, 200].any() and not canvas[:, 224:].any()


def test_published_libero_pictures_lose_bits_in_bfloat16() -> None:
    levels = np.arange(256)
    # there: x * (2 / 255) - 1, rounded after each operation; back in float32, cut to an integer
    there = bfloat16(bfloat16(levels * np.float32(2 / 255)) - np.float32(1))
    back = np.float32(255) * np.clip(there * np.float32(0.5) + np.float32(0.5), 0, 1)
    want = back.astype(np.uint8)
    seen = images(LIBERO)
    np.testing.assert_array_equal(compose(LIBERO, seen), want[compose(PLAIN, seen)])
    assert 0 < np.abs(want.astype(int) - levels).max() <= 2


def test_images_of_any_size_and_other_cameras() -> None:
    seen = images(ROBOTWIN) | {"front": np.zeros((1, 1, 3), np.float64)}
    flat = np.full((480, 640, 3), 77, np.uint8)
    assert (compose(ROBOTWIN, seen | {"head": flat})[:256] == 77).all()
    assert (compose(ROBOTWIN, seen | {"head": flat[:1, :1]})[:256] == 77).all()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((256, 256, 3), np.float32), "float32 .* expected uint8"),
        (np.zeros((256, 256), np.uint8), r"\(256, 256\)"),
        (np.zeros((256, 256, 4), np.uint8), r"\(256, 256, 4\)"),
        (np.zeros((3, 256, 256), np.uint8), r"\(3, 256, 256\)"),
        (np.zeros((0, 256, 3), np.uint8), r"\(0, 256, 3\)"),
        (None, "expected uint8"),
    ],
)
def test_what_is_no_picture(image: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compose(LIBERO, images(LIBERO) | {"eye_in_hand": image})


def test_a_missing_camera() -> None:
    with pytest.raises(ValueError, match="camera 'eye_in_hand', but there is only"):
        compose(LIBERO, {"agentview": images(LIBERO)["agentview"]})


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_settings_fit_their_release(settings: RobotSettings) -> None:
    release = get_release(settings.release)
    settings.require_model(release)
    settings.require_model(miniature(settings.release))
    assert settings.steps == release.generation.action_steps
    assert release.generation.tiled == (settings is LIBERO)
    example_observation(settings.spec).check(settings.spec)


def test_the_published_numbers() -> None:
    assert (LIBERO.height, LIBERO.width) == (224, 448) and (ROBOTWIN.height, ROBOTWIN.width) == (384, 320)
    for settings in (LIBERO, ROBOTWIN):  # 32 actions, 9 frames, 3 latent frames
        assert (settings.horizon, settings.video_frames, settings.latent_frames) == (32, 9, 3)
    assert (LIBERO.replan, LIBERO.steps, LIBERO.seed, LIBERO.wait_steps) == (10, 10, 50, 30)
    assert (ROBOTWIN.replan, ROBOTWIN.steps, ROBOTWIN.seed, ROBOTWIN.wait_steps) == (24, 30, None, 0)
    assert (LIBERO.gripper, ROBOTWIN.gripper) == ([6], [6, 13])
    assert LIBERO.max_steps["libero_10"] == 700
    prompt = "A video recorded from a robot's point of view executing the following instruction: lift {the} cube"
    assert LIBERO.prompt_for("lift {the} cube") == ROBOTWIN.prompt_for("lift {the} cube") == prompt


def test_a_model_of_another_robot_is_refused_with_every_difference() -> None:
    with pytest.raises(
        ValueError, match=r"(?s)'libero' do not fit the model '4b-robotwin'.*belong to '4b-libero'"
    ) as e:
        LIBERO.require_model(get_release("4b-robotwin"))
    for line in (
        "action_dim: 7 != 14",
        "proprio_dim: 8 != 14",
        "height: 224 != 384",
        "width: 448 != 320",
    ):
        assert line in str(e.value)
    with pytest.raises(ValueError, match="chunk: 32 != 0"):
        LIBERO.require_model(get_release("4b-720p"))


def test_unknown_names() -> None:
    assert get_settings("libero") is LIBERO
    with pytest.raises(ValueError, match="did you mean 'robotwin'"):
        get_settings("robotwin2")


@pytest.mark.parametrize("instruction", ["", "  "])
def test_an_instruction_is_required(instruction: str) -> None:
    with pytest.raises(ValueError, match="needs an instruction"):
        LIBERO.prompt_for(instruction)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"layout": (Tile("agentview", 0, 0, 224, 224), Tile("wrist", 0, 224, 224, 224))},
            "shows 'wrist', but",
        ),
        (
            {"layout": (Tile("agentview", 0, 0, 224, 224), Tile("eye_in_hand", 0, 208, 224, 224))},
            "2 tiles, not one",
        ),
        (
            {"layout": (Tile("agentview", 0, 0, 224, 224), Tile("eye_in_hand", 0, 240, 224, 224))},
            "0 tiles, not one",
        ),
        ({"layout": (Tile("agentview", 0, 0, 225, 224),)}, "225 x 224.*multiples of 16"),
        ({"replan": 33}, "replan=33 must be 1 ... 32"),
        ({"replan": 0}, "replan=0"),
        ({"horizon": 30}, "30 actions at 4 a frame are no 4 n"),
        ({"prompt": "do it"}, "no place for {task}"),
        ({"wait_action": (0.0,)}, "wait_action has 1 of 7 values"),
        ({"normalisation": "minmax"}, "did you mean 'min/max'"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(LIBERO, **change)


@pytest.mark.skipif(not CONTRACT.is_dir(), reason="needs RoboTwin's recordings under KAIROS_TEST_DATA")
def test_robotwin_bounds_hold_all_that_was_ever_recorded() -> None:
    stats = json.loads((CONTRACT.parent / "meta" / "robotwin_dataset_stats.json").read_text())
    for part, fields in (("state", ROBOTWIN.spec.proprio), ("action", ROBOTWIN.spec.action)):
        seen = stats[part]["default"]
        assert all(f.low <= low for f, low in zip(fields, seen["global_min"], strict=True))
        assert all(f.high >= high for f, high in zip(fields, seen["global_max"], strict=True))


@pytest.mark.skipif(not CONTRACT.is_dir(), reason="needs RoboTwin's recordings under KAIROS_TEST_DATA")
def test_the_published_client_composed_the_same_picture() -> None:
    with np.load(CONTRACT / "get_obs_sample_stack_blocks_two_seed0.npz") as sample:
        seen = {c.name: sample[f"observation/{c.name}_camera/rgb"] for c in ROBOTWIN.spec.cameras}
        assert sample["joint_action/vector"].shape == (ROBOTWIN.spec.proprio_dim,)
    with Image.open(CONTRACT / "kairos_input_320x384.png") as picture:
        np.testing.assert_array_equal(compose(ROBOTWIN, seen), np.asarray(picture.convert("RGB")))
