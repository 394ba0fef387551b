"""How the published world-action weights see and drive a robot: one frozen description for each.

Nothing here talks to a simulator. An adapter hands over RGB images as they stand in the training data (LIBERO's
renderer draws upside down: its adapter turns both cameras by 180 degrees, `compose` never turns anything) and
sends the actions on; `compose` builds the one picture that the model sees.

A further robot is one more `RobotSettings`, passed as an object; copy `LIBERO` and change it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from kairos_env.embodiments import LIBERO_MAX_STEPS, LIBERO_PANDA, ROBOTWIN_ALOHA, libero_panda
from kairos_env.records import Array, RobotSpec
from kairos_env.world_model.config import WorldActionConfig, named
from kairos_env.world_model.normalisation import Normaliser, check_mode

PROMPT = "A video recorded from a robot's point of view executing the following instruction: {task}"


@dataclass(frozen=True)
class CameraTile:
    """Where on the canvas one camera is shown [pixels]."""

    camera: str
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class RobotSettings:
    """What weights were fine-tuned on, beside their shapes: wrong here means wrong actions, without any error.

    Args:
        name: of these settings.
        release: name of the published weights that they belong to; its configuration has the shapes and the tiling.
        spec: cameras, proprioception and actions, in the order and units of the training data.
        layout: the canvas; its tiles cover it exactly.
        fit: how an image fills its tile: ``"crop"`` keeps its shape and cuts what is over evenly on both sides,
            ``"stretch"`` does not.
        through_bfloat16: the image loses its lowest bits on the way, as in the published LIBERO client.
        prompt: the instruction stands for ``{task}``.
        image_in_context: the conditioning encoder sees the canvas, not only the prompt.
        normalisation: mode of the statistics; see `normalisation.Normaliser`.
        horizon: N, actions in a chunk; ``replan`` of them are executed before the next decision.
        steps: denoising steps of a chunk.
        seed: of the noise, the same at every decision; None leaves it to the run.
        actions_per_frame: actions between two frames of the future video.
        binary_gripper: gripper fields leave as their sign.
        wait_action: sent ``wait_steps`` times after a reset, until objects have come to rest; not counted.
        max_steps: actions until an episode has failed, by task suite; empty if the simulator has its own limits.
        imagined: the robot at the rate of latent frames, where more of it changes than the rate; see `imagined_spec`.
    """

    name: str
    release: str
    spec: RobotSpec
    layout: tuple[CameraTile, ...]
    fit: Literal["crop", "stretch"]
    normalisation: str
    replan: int
    steps: int
    horizon: int = 32
    actions_per_frame: int = 4
    through_bfloat16: bool = False
    prompt: str = PROMPT
    image_in_context: bool = False
    seed: int | None = None
    binary_gripper: bool = False
    wait_steps: int = 0
    wait_action: tuple[float, ...] = ()
    max_steps: Mapping[str, int] = field(default_factory=dict)
    imagined: RobotSpec | None = None

    def __post_init__(self) -> None:
        cameras = [camera.name for camera in self.spec.cameras]
        painted = np.zeros((self.height, self.width), int)
        for tile in self.layout:
            if tile.camera not in cameras:
                raise ValueError(f"{self.name}: the layout shows {tile.camera!r}, but the robot has {cameras}")
            painted[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
        if (painted != 1).any():
            row, column = np.argwhere(painted != 1)[0].tolist()
            raise ValueError(f"{self.name}: {painted[row, column]} tiles, not one, show row {row}, column {column}")
        if self.height % 16 or self.width % 16:
            raise ValueError(f"{self.name}: the canvas is {self.height} x {self.width}, sides must be multiples of 16")
        if not 1 <= self.replan <= self.horizon:
            raise ValueError(f"{self.name}: replan={self.replan} must be 1 ... {self.horizon}, the horizon")
        if self.horizon % (4 * self.actions_per_frame):
            raise ValueError(
                f"{self.name}: {self.horizon} actions at {self.actions_per_frame} a frame are no 4 n + 1 video frames"
            )
        if "{task}" not in self.prompt:
            raise ValueError(f"{self.name}: the prompt {self.prompt!r} has no place for {{task}}")
        if self.wait_steps and len(self.wait_action) != self.spec.action_dim:
            raise ValueError(f"{self.name}: wait_action has {len(self.wait_action)} of {self.spec.action_dim} values")
        check_mode(self.normalisation)

    @property
    def height(self) -> int:
        """Of the canvas [pixels]."""
        return max(tile.top + tile.height for tile in self.layout)

    @property
    def width(self) -> int:
        """Of the canvas [pixels]."""
        return max(tile.left + tile.width for tile in self.layout)

    @property
    def video_frames(self) -> int:
        """Frames of the video that one chunk spans, the observed one included."""
        return self.horizon // self.actions_per_frame + 1

    @property
    def latent_frames(self) -> int:
        """The same in latent frames: the first stands alone, every other one holds four."""
        return (self.video_frames - 1) // 4 + 1

    @property
    def actions_per_latent(self) -> int:
        """Actions from one latent frame to the next."""
        return 4 * self.actions_per_frame

    @property
    def imagined_spec(self) -> RobotSpec:
        """The robot with one decision for each latent frame: a control rate that much lower."""
        rate = self.spec.control_rate_hz / self.actions_per_latent
        return self.imagined or dataclasses.replace(self.spec, control_rate_hz=rate)

    @property
    def gripper(self) -> list[int]:
        """Indices of the gripper fields of an action."""
        return [i for i, f in enumerate(self.spec.action) if f.kind == "gripper"]

    def prompt_for(self, instruction: str) -> str:
        """The words that the conditioning encoder reads."""
        if not instruction.strip():
            raise ValueError(f"{self.name} needs an instruction, got {instruction!r}")
        return self.prompt.format(task=instruction)

    def require_model(self, config: WorldActionConfig) -> None:
        """Raises ValueError that lists every way in which a model does not fit these settings."""
        mine = {
            "action_dim": self.spec.action_dim,
            "proprio_dim": self.spec.proprio_dim,
            "height": self.height,
            "width": self.width,
            "frames": self.video_frames,
            "chunk": self.horizon,
        }
        shapes = config.generation
        theirs = {
            "action_dim": config.action_dim,
            "proprio_dim": config.proprio_dim,
            "height": shapes.height,
            "width": shapes.width,
            "frames": shapes.frames,
            "chunk": config.action.chunk if config.action else 0,
        }
        wrong = [f"{key}: {mine[key]} != {theirs[key]}" for key in mine if mine[key] != theirs[key]]
        if wrong:
            raise ValueError(
                f"the settings {self.name!r} do not fit the model {config.name!r} (settings != model):\n  "
                + "\n  ".join(wrong)
                + f"\nthey belong to {self.release!r}"
            )

    def check_normaliser(self, normaliser: Normaliser) -> None:
        """Raises ValueError unless the statistics are of such a robot's state and actions."""
        spec, action = self.spec, normaliser.action.scale.shape
        chunk = (self.horizon, spec.action_dim)
        if normaliser.state.scale.shape != (spec.proprio_dim,) or action not in (chunk, chunk[1:]):
            raise ValueError(
                f"the statistics are of state {normaliser.state.scale.shape} and action {action}, but {self.name!r} "
                f"needs ({spec.proprio_dim},) and {chunk[1:]}, or {chunk} step-wise"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RobotSettings:
        """Inverse of `to_dict`, also after a way through JSON."""
        values = dict(data)
        values["spec"] = RobotSpec.from_dict(values["spec"])
        values["imagined"] = values["imagined"] and RobotSpec.from_dict(values["imagined"])
        values["layout"] = tuple(CameraTile(**tile) for tile in values["layout"])
        values["wait_action"] = tuple(values["wait_action"])
        return cls(**values)


def compose(settings: RobotSettings, images: Mapping[str, Array]) -> Array:
    """The picture that the model sees.

    Resizing is Pillow's bilinear filter, which averages over the source pixels when it makes an image smaller;
    libraries that only interpolate give another picture.

    Args:
        settings: whose layout.
        images: camera -> uint8 (H, W, 3) RGB of any size, upright as in the training data. Cameras that the layout
            does not show are not looked at.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: a camera is missing, or is no uint8 RGB image.
    """
    canvas = np.empty((settings.height, settings.width, 3), np.uint8)
    for tile in settings.layout:
        if tile.camera not in images:
            raise ValueError(f"{settings.name} shows the camera {tile.camera!r}, but there is only {sorted(images)}")
        image = np.asarray(images[tile.camera])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(
                f"camera {tile.camera!r} is {image.dtype} {image.shape}, expected uint8 (height, width, 3) RGB"
            )
        rows, columns = slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width)
        canvas[rows, columns] = _resize(image, tile.height, tile.width, crop=settings.fit == "crop")
    return _levels_through_bfloat16()[canvas] if settings.through_bfloat16 else canvas


def decompose(settings: RobotSettings, canvases: Array) -> dict[str, Array]:
    """Each camera's part of uint8 canvases (..., H, W, 3), in the camera's size; what `compose` cropped is black.

    Returns:
        camera -> uint8 (..., H', W', 3).
    """
    flat = canvases.reshape(-1, *canvases.shape[-3:])
    found = {}
    for camera in settings.spec.cameras:
        tiles = [tile for tile in settings.layout if tile.camera == camera.name]
        images = np.zeros((len(flat), camera.height, camera.width, 3), np.uint8)
        for tile in tiles[:1]:
            height, width = camera.height, camera.width
            if settings.fit == "crop":
                scale = max(tile.height / height, tile.width / width)
                height, width = round(tile.height / scale), round(tile.width / scale)
            top, left = (camera.height - height) // 2, (camera.width - width) // 2
            seen = flat[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
            images[:, top : top + height, left : left + width] = [_resize(x, height, width, crop=False) for x in seen]
        found[camera.name] = images.reshape(*canvases.shape[:-3], *images.shape[1:])
    return found


def _resize(image: Array, height: int, width: int, crop: bool) -> Array:
    rows, columns = image.shape[:2]
    over_rows, over_columns = height, width
    if crop:
        scale = max(height / rows, width / columns)
        over_rows, over_columns = round(rows * scale), round(columns * scale)
    resized = Image.fromarray(image).resize((over_columns, over_rows), Image.Resampling.BILINEAR)
    top, left = (over_rows - height) // 2, (over_columns - width) // 2
    return np.asarray(resized)[top : top + height, left : left + width]


@functools.cache
def _levels_through_bfloat16() -> Array:
    """(256,) uint8: what becomes of a level that is mapped to [-1, 1] in bfloat16, back, and cut to an integer."""
    import torch

    normal = torch.arange(256).bfloat16() * (2 / 255) - 1
    unit = (normal.float() * 0.5 + 0.5).clamp(0, 1)
    return np.asarray((unit * 255).to(torch.uint8))


LIBERO = RobotSettings(
    name="libero",
    release="4b-libero",
    spec=LIBERO_PANDA,
    imagined=libero_panda(action_repeat=16),
    layout=(CameraTile("agentview", 0, 0, 224, 224), CameraTile("eye_in_hand", 0, 224, 224, 224)),
    fit="crop",
    through_bfloat16=True,
    normalisation="min/max",
    replan=10,
    steps=10,
    seed=50,
    binary_gripper=True,
    wait_steps=30,
    wait_action=(0, 0, 0, 0, 0, 0, -1),
    max_steps=LIBERO_MAX_STEPS["kairos-suites"],
)

ROBOTWIN = RobotSettings(
    name="robotwin",
    release="4b-robotwin",
    spec=ROBOTWIN_ALOHA,
    layout=(
        CameraTile("head", 0, 0, 256, 320),
        CameraTile("left", 256, 0, 128, 160),
        CameraTile("right", 256, 160, 128, 160),
    ),
    fit="stretch",
    image_in_context=True,
    normalisation="z-score",
    replan=24,
    steps=30,  # of the published client's script; the file beside it says 10
)

SETTINGS: dict[str, RobotSettings] = {settings.name: settings for settings in (LIBERO, ROBOTWIN)}


def get_settings(name: str) -> RobotSettings:
    """The settings of that name, or a ValueError that lists the legal ones."""
    return named(name, SETTINGS, "robot settings")
