"""Configuration of the world model: frozen dataclasses and the named presets.

Each module's configuration is a plain dataclass; nothing writes into one after construction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from kairos_env.runs import did_you_mean

LAYER_KINDS = ("swa", "dswa", "gdn", "fa")  # sliding, dilated, gated delta net, full (whole clips only)
Prediction = Literal["velocity", "sample"]


@dataclass(frozen=True)
class TokenizerConfig:
    """Image autoencoder: 8x spatial down-sampling, one latent frame per image.

    Args:
        width: of the encoder at half the pixels' resolution; it doubles with each halving.
        decoder: widths of the light decoder at the latents' resolution, at twice it, and so on; () is the decoder
            of the first models, the encoder's mirror image, which costs three times as much.
    """

    latent_channels: int = 8
    width: int = 32
    decoder: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.decoder) > 3:
            raise ValueError(f"a decoder has at most 3 resolutions below that of the pixels, got {self.decoder}")


@dataclass(frozen=True)
class TextConfig:
    """Instruction encoder of the small models.

    ``unit`` is what it reads. Bytes take any text and suit a few instructions. Words (their hashes, so that there is no
    list of them) keep many similar sentences apart: "on the plate" and "on the stove" differ in a whole token.
    """

    dim: int = 64
    tokens: int = 8  # context tokens, whatever the length of the text; of words, the most that are read
    layers: int = 1
    heads: int = 4
    max_bytes: int = 128
    unit: Literal["byte", "word"] = "byte"


@dataclass(frozen=True)
class VideoConfig:
    """Video DiT. ``pattern`` is tiled over the depth.

    ``words``: whether its blocks read the instruction. How a scene answers to an action does not depend on words, and a
    trunk without them serves all tasks at once.
    """

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
    words: bool = True

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
        imagined_level: noise level that marks a frame in the history as imagined; of two-pass models.
        head_dim: width of the reward, success, object and error heads.
        one_pass: the pass that denoises a frame is also what is remembered of it, for which small models are trained;
            otherwise a second pass reads the denoised frame (published weights, small models before format 3).
        objects: names of the objects whose positions are read in every frame.
        untrained: what no episode taught (reward, success, names of objects), and nobody should read.
        release: of published weights, everything that they do not say; None for a small model.
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
    one_pass: bool = True
    objects: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    release: WorldActionConfig | None = None

    @classmethod
    def of_release(cls, release: WorldActionConfig) -> WorldModelConfig:
        """Published weights: the sections of the small models beside ``release`` have no effect."""
        return cls(
            preset=release.name,
            video=release.video,
            action=release.action or ActionConfig(),
            prediction="velocity",
            denoising_steps=release.generation.steps,
            action_steps=release.generation.action_steps,
            imagined_level=0.0,
            one_pass=False,
            release=release,
        )

    def to_dict(self) -> dict[str, Any]:
        """Of a small model."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "release"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorldModelConfig:
        """Inverse of `to_dict`; unknown or missing keys are an error, not a default, but for ``untrained``."""
        sections = {"tokenizer": TokenizerConfig, "text": TextConfig, "video": VideoConfig, "action": ActionConfig}
        named = {"objects": tuple(data["objects"]), "untrained": tuple(data.get("untrained", ())), "release": None}
        return _from_dict(cls, {**data, **named}, sections)


PUBLISHED_VIDEO = VideoConfig(
    dim=2560, heads=20, head_dim=128, layers=32, ffn_dim=10240, delta_heads=20, delta_head_dim=256
)
PUBLISHED_ACTION = ActionConfig(dim=1024, ffn_dim=4096, chunk=32)

LIGHT = TokenizerConfig(latent_channels=16, decoder=(96, 48))  # decodes 64x64 pixels by 57 MFLOP, the wide one by 168

PRESETS: dict[str, WorldModelConfig] = {
    # seconds to train on a CPU; for tests
    "debug": WorldModelConfig(
        preset="debug",
        tokenizer=TokenizerConfig(latent_channels=4, width=8, decoder=(16, 8)),
        text=TextConfig(dim=16, tokens=2, heads=2),
        video=VideoConfig(
            dim=32, heads=2, head_dim=16, layers=4, ffn_dim=64, delta_heads=2, delta_head_dim=8, words=False
        ),
        action=ActionConfig(dim=16, ffn_dim=32),
        head_dim=16,
    ),
    # the bundled model; two CPU cores
    "tiny": WorldModelConfig(tokenizer=LIGHT, video=VideoConfig(words=False), action_steps=1),
    # the same for many instructions
    "tiny-words": WorldModelConfig(
        preset="tiny-words",
        tokenizer=LIGHT,
        text=TextConfig(tokens=48, unit="word"),
        video=VideoConfig(words=False),
        action_steps=1,
    ),
    # one GPU
    "small": WorldModelConfig(
        preset="small",
        tokenizer=TokenizerConfig(latent_channels=16, width=64, decoder=(192, 96)),
        text=TextConfig(dim=128, tokens=16, layers=2),
        video=VideoConfig(dim=768, heads=12, layers=12, ffn_dim=3072, delta_heads=6, delta_head_dim=128, words=False),
        action=ActionConfig(dim=384, ffn_dim=1536, chunk=8),
        head_dim=512,
    ),
    # the published transformers, driven frame by frame
    "4b": WorldModelConfig(
        preset="4b",
        tokenizer=TokenizerConfig(latent_channels=16, width=96),
        text=TextConfig(dim=3584, tokens=16, layers=1, heads=28),
        video=PUBLISHED_VIDEO,
        action=PUBLISHED_ACTION,
        prediction="velocity",
        denoising_steps=4,
        action_steps=10,
        head_dim=1024,
    ),
}


def get_preset(name: str) -> WorldModelConfig:
    """The preset of that name, or a ValueError that lists the legal ones."""
    return named(name, PRESETS, "preset")


# whole clips: the published releases ------------------------------------------------------------------------------


@dataclass(frozen=True)
class GenerationConfig:
    """Defaults of `WorldActionModel.generate` and of the world-action modes.

    Args:
        height, width: of the picture in pixels, multiples of 16.
        frames: of the clip, 4 n + 1.
        steps: denoising steps of a video; ``action_steps`` of an action chunk.
        guidance: scale of classifier-free guidance, 1 is none.
        sampler: ``"euler"``, or ``"dmd"`` for distilled weights (its own noise levels, no guidance).
        fps: frames per second of the written video.
        action_shift: time shift of the action schedule.
        tiled: encode and decode pictures in overlapping, blended tiles, as the published pipeline does for all weights
            but those of RoboTwin. A picture of at most 240 x 416 pixels is one tile.
    """

    height: int = 480
    width: int = 832
    frames: int = 81
    steps: int = 50
    guidance: float = 5.0
    sampler: Literal["euler", "dmd"] = "euler"
    fps: int = 16
    action_steps: int = 10
    action_shift: float = 5.0
    tiled: bool = True


@dataclass(frozen=True)
class WorldActionConfig:
    """Everything that fixes a `WorldActionModel`: the weights carry none of it.

    Args:
        name: of the release whose weights fit.
        video, action: the transformers; ``action`` is None for weights without an action expert.
        latent_channels: C of the video tokenizer.
        text_dim: width of the context tokens; fixed by the text encoder.
        action_dim, proprio_dim: A and P; 0 without an action expert.
        window_unit: whether a window is counted in latent frames (world-action weights) or in tokens (video weights).
        restrict_history: tokens of the observed frames do not see the future ones.
        published: reproduce the rounding and padding that the published weights were trained with.
        text_encoder: kind of the conditioning encoder, ``text_source`` the weights that it was trained with.
        generation: sampling defaults.
    """

    name: str
    video: VideoConfig
    action: ActionConfig | None = None
    latent_channels: int = 16
    text_dim: int = 3584
    action_dim: int = 0
    proprio_dim: int = 0
    window_unit: Literal["frame", "token"] = "token"
    restrict_history: bool = False
    published: bool = True
    text_encoder: Literal["qwen2.5-vl", "qwen3.5"] = "qwen2.5-vl"
    text_source: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        if (self.action is None) != (self.action_dim == 0) or (self.action is None) != (self.proprio_dim == 0):
            raise ValueError(
                f"{self.name}: an action expert needs action_dim and proprio_dim, and nothing else does; got "
                f"action={self.action}, action_dim={self.action_dim}, proprio_dim={self.proprio_dim}"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorldActionConfig:
        """Inverse of `to_dict`; unknown or missing keys are an error, not a default.

        Folders of versions that tiled only an observed first frame say ``tile_first_frame`` for ``tiled``.
        """
        sections = {"video": VideoConfig, "action": ActionConfig, "generation": GenerationConfig}
        generation = dict(data.get("generation") or {})
        if "tile_first_frame" in generation:
            generation["tiled"] = generation.pop("tile_first_frame") or data.get("action") is None
            data = {**data, "generation": generation}
        return _from_dict(cls, data, sections)


Config = TypeVar("Config")


def named(name: str, table: Mapping[str, Config], what: str) -> Config:
    """``table[name]``, or a ValueError that lists the legal names of a ``what``."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; {did_you_mean(name, table)}")
    return table[name]


def _from_dict(cls: type[Config], data: Mapping[str, Any], sections: Mapping[str, type]) -> Config:
    want = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if set(data) != want:
        raise ValueError(
            f"model config has unknown keys {sorted(set(data) - want)} and lacks {sorted(want - set(data))}"
        )
    values: dict[str, Any] = dict(data)
    for name, kind in sections.items():
        if values[name] is None:
            continue
        part = {key: tuple(value) if isinstance(value, list) else value for key, value in values[name].items()}
        try:
            values[name] = kind(**part)
        except TypeError as error:
            raise ValueError(f"model config section {name!r}: {error}") from None
    return cls(**values)
