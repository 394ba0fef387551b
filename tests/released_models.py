"""World models of published releases in miniature: small pictures, seeded weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from stored_outputs import seeded_weights

from kairos_env.policies import example_observation
from kairos_env.records import Array, Camera, Observation
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.normalisation import Normaliser
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.robot_part import RobotPart
from kairos_env.world_model.published.robot_settings import LIBERO, ROBOTWIN, CameraTile, RobotSettings
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.small import UntrainedEncoder
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

TASKS = {"bowl": "pick up the bowl", "red": "push the red block to the left"}


def small_settings(settings: RobotSettings) -> RobotSettings:
    """The same robot with small cameras on a small canvas."""

    def shrunk(spec: Any) -> Any:
        return spec and dataclasses.replace(spec, cameras=tuple(Camera(c.name, 32, 32) for c in spec.cameras))

    if settings is LIBERO:
        layout = (CameraTile("agentview", 0, 0, 32, 32), CameraTile("eye_in_hand", 0, 32, 32, 32))
    else:
        layout = (
            CameraTile("head", 0, 0, 32, 32),
            CameraTile("left", 32, 0, 16, 16),
            CameraTile("right", 32, 16, 16, 16),
        )
    return dataclasses.replace(settings, spec=shrunk(settings.spec), imagined=shrunk(settings.imagined), layout=layout)


def small_config(settings: RobotSettings) -> WorldActionConfig:
    config = miniature(settings.release, layers=4)
    size = {"height": settings.height, "width": settings.width, "tiled": False}
    return dataclasses.replace(config, generation=dataclasses.replace(config.generation, **size))


def statistics(settings: RobotSettings) -> dict[str, Any]:
    """Statistics in the published layout: actions move through half of the robot's range."""
    spec = settings.spec

    def part(low: Array, high: Array) -> dict[str, Any]:
        middle, half = (low + high) / 2, (high - low) / 2
        values = {"min": low, "max": high, "q01": low, "q99": high, "mean": middle, "std": half / 2}
        return {"default": {f"global_{k}": v.tolist() for k, v in values.items()}}

    low, high = (np.array([getattr(f, side) for f in spec.proprio]) for side in ("low", "high"))
    return {
        "state": part(low, high),
        "action": part(spec.action_low / 2, spec.action_high / 2),
        "num_episodes": 1,
        "num_transition": 1,
    }


def see(settings: RobotSettings, seed: int = 0, instruction: str = TASKS["bowl"]) -> Observation:
    return dataclasses.replace(example_observation(settings.spec, seed), instruction=instruction)


def released_model(settings: RobotSettings = LIBERO, **parts: Any) -> WorldModel:
    """The release that ``settings`` belong to, small."""
    settings = small_settings(settings)
    config = small_config(settings)
    parts = {"tokenizer": VideoVAE.random(width=8), "encoder": UntrainedEncoder(config.text_dim)} | parts
    clips = WorldActionModel.from_release(config, **parts)
    seeded_weights(clips.transformer)
    normaliser = Normaliser.from_statistics(statistics(settings), settings.normalisation)
    starts = tuple(see(settings, seed) for seed in range(2))
    return WorldModel.of_clips(clips, RobotPart(settings, normaliser, TASKS, starts))


ROBOTS = {"libero": LIBERO, "robotwin": ROBOTWIN}
