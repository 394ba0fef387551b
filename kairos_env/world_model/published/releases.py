"""The published releases: what fits their weights, which say none of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from kairos_env.world_model.config import (
    PUBLISHED_ACTION,
    PUBLISHED_VIDEO,
    GenerationConfig,
    WorldActionConfig,
    named,
)

_QWEN35: dict[str, Any] = {"text_dim": 2048, "text_encoder": "qwen3.5", "text_source": "Qwen/Qwen3.5-2B"}
_WORLD_ACTION: dict[str, Any] = {"action": PUBLISHED_ACTION, "window_unit": "frame", "restrict_history": True}

RELEASES: dict[str, WorldActionConfig] = {
    config.name: config
    for config in (
        WorldActionConfig("4b", PUBLISHED_VIDEO),
        WorldActionConfig("4b-robot", PUBLISHED_VIDEO, generation=GenerationConfig(width=640)),
        WorldActionConfig(
            "4b-robot-distilled",
            PUBLISHED_VIDEO,
            generation=GenerationConfig(width=640, steps=4, guidance=1.0, sampler="dmd"),
        ),
        WorldActionConfig("4b-720p", PUBLISHED_VIDEO, generation=GenerationConfig(height=704, width=1280)),
        WorldActionConfig("4b-3.1-robot", PUBLISHED_VIDEO, generation=GenerationConfig(width=640), **_QWEN35),
        WorldActionConfig(
            "4b-libero",
            PUBLISHED_VIDEO,
            action_dim=7,
            proprio_dim=8,
            generation=GenerationConfig(height=224, width=448, frames=9),
            **_WORLD_ACTION,
        ),
        WorldActionConfig(
            "4b-robotwin",
            PUBLISHED_VIDEO,
            action_dim=14,
            proprio_dim=14,
            generation=GenerationConfig(height=384, width=320, frames=9, action_steps=30, tiled=False),
            **_WORLD_ACTION,
            **_QWEN35,
        ),
    )
}


def get_release(name: str) -> WorldActionConfig:
    """The published release of that name, or a ValueError that lists the legal ones."""
    return named(name, RELEASES, "release")


def miniature(name: str, layers: int = 8) -> WorldActionConfig:
    """A release with the same structure and key names but small enough for tests: widths of 64 and less."""
    config = get_release(name)
    video = dataclasses.replace(
        config.video, dim=64, heads=4, head_dim=16, layers=layers, ffn_dim=128, delta_heads=4, delta_head_dim=8
    )
    action = config.action and dataclasses.replace(config.action, dim=32, ffn_dim=64)
    return dataclasses.replace(config, name=f"{name}-miniature", video=video, action=action, text_dim=48)
