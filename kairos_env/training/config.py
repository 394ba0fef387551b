"""The configuration of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from kairos_env.training.gates import Gate
from kairos_env.training.passes import LossConfig
from kairos_env.training.pixels import PixelWeights
from kairos_env.training.precision import Precision
from kairos_env.training.progress import LoopConfig
from kairos_env.world_model.config import get_preset

Part = Literal["tokenizer", "text", "video", "action"]
"""What learns: tokenizer; text encoder; video expert with renderer, heads and reader; action expert."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        out: run folder; an existing one is resumed.
        preset: model size (debug, tiny, small); unused with ``init``, which has its own.
        seed: fixes initialisation, clips and noise.
        device: cpu or cuda.
        precision: bf16 (autocast) or fp32; auto takes what this machine is faster in, and a run keeps it.
        validation: episodes kept out of training, for the validation rows and strips; None is a fifth, from 1 to 16.
        tokenizer: optimisation of stage 1, the tokenizer.
        tokenizer_batch: images in a step of stage 1.
        pixels: weights of pixels in stage 1.
        model: optimisation of stage 2, the world-action model.
        batch: clips in a step of stage 2.
        loss: weights and noise of stage 2.
        own_from: share of stage 2 after which frames are imagined from the model's own predictions, two in a row.
        own_whole: share of stage 2 after which that is the rest of the clip; it grows evenly until then.
        video_every: of so many steps of stage 2 one learns to imagine; the others learn policy, reward, success and
            objects from observed frames alone, for less than half the time.
        joint_every: of so many steps that learn to imagine one learns the joint and inverse modes too.
        sample_every: steps between validation rollouts with film strips.
        starts: held-out first observations that ship with the model; None is one in twenty episodes, at most 48. With 0
            those of the validation episodes ship.
        init: bundled name or folder of a model to go on from. What depends on fields or cameras that differ starts
            anew, which is said.
        init_tokenizer: of ``init``: keep skips stage 1, train goes on with it on these pictures; auto keeps it if it
            gives them back with at least 28 dB, which is measured and said.
        learns: parts that learn: tokenizer, text, video, action; empty: all of them. The tokenizer alone: there is no
            stage 2. Others than these stay as ``init`` left them.
        words: the video expert reads the instruction, too, as it must to learn from captions of what will happen.
        gate: what ends stage 2 before its last step.
        weights: float16 or float32, how the finished model is stored.
    """

    out: str = "runs/tiny"
    preset: str = "tiny"
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "auto"
    validation: int | None = None
    tokenizer: LoopConfig = field(default_factory=lambda: LoopConfig(steps=2000, lr=2e-3, ema=0.995))
    tokenizer_batch: int = 64
    pixels: PixelWeights = field(default_factory=PixelWeights)
    model: LoopConfig = field(default_factory=lambda: LoopConfig(steps=2400, lr=1.5e-3, warmup=150))
    batch: int = 12
    loss: LossConfig = field(default_factory=LossConfig)
    own_from: float = 0.05
    own_whole: float = 0.5
    video_every: int = 1
    joint_every: int = 4
    sample_every: int = 400
    starts: int | None = None
    init: str = ""
    init_tokenizer: Literal["auto", "keep", "train"] = "auto"
    learns: tuple[Part, ...] = ()
    words: bool = False
    gate: Gate = field(default_factory=Gate)
    weights: Literal["float16", "float32"] = "float16"

    @property
    def taught(self) -> LossConfig:
        """The loss without the passes from which nothing that learns would learn."""
        return self.loss if "action" in self.learned else replace(self.loss, policy=0.0, joint=0.0)

    @property
    def learned(self) -> frozenset[str]:
        """The parts that learn."""
        return frozenset(self.learns or get_args(Part))

    def __post_init__(self) -> None:
        for name in ("tokenizer_batch", "batch", "video_every", "joint_every", "sample_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("validation", "starts"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is a number of episodes, got {getattr(self, name)}")
        for name in ("own_from", "own_whole"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of stage 2, 0 ... 1, got {getattr(self, name)}")
        if len(set(self.learns)) < len(self.learns):
            raise ValueError(f"learns names a part twice: {', '.join(self.learns)}")
        if self.learns and "tokenizer" not in self.learns and not self.init:
            raise ValueError(f"learns {', '.join(self.learns)}: without `init` the tokenizer has to be learned, too")
        if self.learned == {"text"}:
            raise ValueError("learns text: words are learned by the expert that reads them, video or action")
        if not self.init:
            get_preset(self.preset)
