"""Configuration of the world model: frozen dataclasses and the named presets.

Each module's configuration is a plain dataclass; nothing writes into one after construction.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LAYER_KINDS = ("swa", "dswa", "gdn")
Prediction = Literal["velocity", "sample"]


@dataclass(frozen=True)
class TokenizerConfig:
    """Image autoencoder: 8x spatial down-sampling, one latent frame per image."""

    latent_channels: int = 8
    width: int = 32


@dataclass(frozen=True)
class TextConfig:
    """Byte-level instruction encoder of the small models."""

    dim: int = 64
    tokens: int = 8  # context tokens, whatever the length of the text
    layers: int = 1
    heads: int = 4
    max_bytes: int = 128


@dataclass(frozen=True)
class VideoConfig:
    """Video DiT. ``pattern`` is tiled over the depth."""

    dim: int = 192
    heads: int = 3
    head_dim: int = 64
    layers: int = 4
    ffn_dim: int = 768
    pattern: tuple[str, ...] = ("swa", "swa", "dswa", "gdn")
    window: int = 3  # frames seen by a windowed layer, the own one included
    dilation: int = 4  # frame stride of the dilated window
    patch: int = 2  # latent cells per token and side
    delta_heads: int = 3
    delta_head_dim: int = 32
    delta_expand_v: int = 2

    def __post_init__(self) -> None:
        unknown = sorted(set(self.pattern) - set(LAYER_KINDS))
        if unknown:
            raise ValueError(f"layer pattern {self.pattern} has unknown kinds {unknown}; legal: {LAYER_KINDS}")
        if self.layers % len(self.pattern):
            raise ValueError(f"{self.layers} layers cannot be tiled by a pattern of {len(self.pattern)}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of every layer."""
        return self.pattern * (self.layers // len(self.pattern))

    def offsets(self, kind: str) -> tuple[int, ...]:
        """Frame distances back that a windowed layer sees, own frame (0) first."""
        stride = self.dilation if kind == "dswa" else 1
        return tuple(i * stride for i in range(self.window))


@dataclass(frozen=True)
class ActionConfig:
    """Action expert: same depth and attention width as the video DiT, narrower residual stream."""

    dim: int = 128
    ffn_dim: int = 384
    chunk: int = 4  # N, actions proposed at once


@dataclass(frozen=True)
class WorldModelConfig:
    """Everything that fixes the shapes of a `WorldModel` beside its `RobotSpec`.

    Args:
        prediction: what the network's output means; ``"sample"`` (clean data) needs fewer denoising
            steps in small models, ``"velocity"`` is the published parametrisation.
        denoising_steps: default for ``step``; ``action_steps`` for ``act``.
        imagined_level: noise level that marks a frame in the history as imagined rather than observed.
        head_dim: width of the reward, success and object heads.
    """

    preset: str = "tiny"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    action: ActionConfig = field(default_factory=ActionConfig)
    prediction: Prediction = "sample"
    denoising_steps: int = 1
    action_steps: int = 4
    imagined_level: float = 0.1
    head_dim: int = 256

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorldModelConfig:
        """Inverse of `to_dict`; unknown or missing keys are an error, not a default."""
        nested = {"tokenizer": TokenizerConfig, "text": TextConfig, "video": VideoConfig, "action": ActionConfig}
        want = {f.name for f in dataclasses.fields(cls)}
        if set(data) != want:
            raise ValueError(
                f"model config has unknown keys {sorted(set(data) - want)} and lacks {sorted(want - set(data))}"
            )
        values: dict[str, Any] = dict(data)
        for name, kind in nested.items():
            part = dict(values[name])
            if "pattern" in part:
                part["pattern"] = tuple(part["pattern"])
            try:
                values[name] = kind(**part)
            except TypeError as error:
                raise ValueError(f"model config section {name!r}: {error}") from None
        return cls(**values)


PRESETS: dict[str, WorldModelConfig] = {
    # seconds to train on a CPU; for tests
    "debug": WorldModelConfig(
        preset="debug",
        tokenizer=TokenizerConfig(latent_channels=4, width=8),
        text=TextConfig(dim=16, tokens=2, heads=2),
        video=VideoConfig(dim=32, heads=2, head_dim=16, layers=4, ffn_dim=64, delta_heads=2, delta_head_dim=8),
        action=ActionConfig(dim=16, ffn_dim=32),
        head_dim=16,
    ),
    # the bundled model; two CPU cores
    "tiny": WorldModelConfig(action_steps=1),
    # one GPU
    "small": WorldModelConfig(
        preset="small",
        tokenizer=TokenizerConfig(latent_channels=16, width=64),
        text=TextConfig(dim=128, tokens=16, layers=2),
        video=VideoConfig(dim=768, heads=12, layers=12, ffn_dim=3072, delta_heads=6, delta_head_dim=128),
        action=ActionConfig(dim=384, ffn_dim=1536, chunk=8),
        head_dim=512,
    ),
}


def get_preset(name: str) -> WorldModelConfig:
    """The preset of that name, or a ValueError that lists the legal ones."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown preset {name!r}; legal: {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]
