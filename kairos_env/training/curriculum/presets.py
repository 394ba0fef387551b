"""Curricula by name: the published recipe with what is known of it, and a small one for two processor cores."""

from __future__ import annotations

import dataclasses

from kairos_env.runs import did_you_mean
from kairos_env.training.config import Part, TrainConfig
from kairos_env.training.curriculum.stages import Curriculum, CurriculumStage, Objective
from kairos_env.training.data import DataConfig
from kairos_env.training.passes import Conditions, LossConfig
from kairos_env.training.pixels import PixelWeights
from kairos_env.training.progress import LoopConfig

# Nobody tells batches, steps, mixtures, how often each condition is drawn, nor the weight of the action loss; the
# widths are those of the released models at 480P and 720P. A model trains with the rest of `LoopConfig` as it is.
_UNTOLD = ("batch", "model.steps", "model.warmup", "data.weights", "loss.conditions")
_SIZES = {256: (256, 448), 480: (480, 832), 720: (704, 1280)}
_ALL = Conditions(t2v=0.25, ti2v=0.25, i2v=0.25, null2v=0.25)


def _published(
    name: str,
    short_side: int,
    frames: int,
    lr: float,
    decay: float = 0.0,
    images: float = 0.1,
    captions: float = 1.0,
    learns: tuple[Part, ...] = ("video",),
    objective: Objective = "flow",
    assumed: tuple[str, ...] = (),
    note: str = "",
) -> CurriculumStage:
    return CurriculumStage(
        name,
        learns,
        data=DataConfig(path="", size=_SIZES[short_side], captions=captions),
        model=LoopConfig(steps=10_000, lr=lr, weight_decay=decay, warmup=500),
        batch=256,
        loss=LossConfig(frames=max(2, frames), conditions=dataclasses.replace(_ALL, images=images)),
        objective=objective,
        assumed=(*_UNTOLD, *assumed),
        note=note,
    )


def _cedc() -> Curriculum:
    """Cross-embodiment data curriculum of the published system: open-world video, then people, then robots."""
    robot: tuple[Part, ...] = ("video", "action")
    stages = (
        _published("image", 256, 1, 5e-5, 1e-3, images=1.0, note="stage I: T2I and N2I"),
        _published("video-256", 256, 81, 4e-5, 1e-3, note="stage I: open-world video, a tenth images"),
        _published("video-480", 480, 81, 3e-5, note="stage I"),
        _published("video-720", 720, 81, 2e-5, note="stage I"),
        _published("continual", 720, 241, 1e-5, images=0.0, note="stage I: 15 s"),
        _published("domains", 720, 241, 1e-5, images=0.0, note="stage I: fine-tuned by domain and merged"),
        _published("preference", 720, 241, 1e-6, images=0.0, objective="preference", note="stage I: pairs"),
        _published(
            "human", 720, 241, 1e-5, images=0.0, assumed=("loss.frames",), note="stage II: people and robots, 3-15 s"
        ),
        _published(
            "robot-video",
            720,
            161,
            5e-6,
            images=0.0,
            captions=0.5,
            assumed=("loss.frames", "data.captions"),
            note="stage II: more robots, 5-10 s, detailed captions giving way to instructions",
        ),
        _published("target", 720, 81, 1e-6, images=0.0, captions=0.0, note="stage II: one robot, all its views"),
        _published(
            "world-action",
            480,
            81,
            1e-5,
            images=0.0,
            captions=0.0,
            learns=robot,
            assumed=("model.lr", "data.size", "loss.frames", "loss.policy"),
            note="stage III: L_video + lambda L_action",
        ),
    )
    train = TrainConfig(preset="4b", words=True, device="cuda")
    return Curriculum(stages, train, frames_per_latent=4)


def _laptop() -> Curriculum:
    """Falling and rolling bodies, then hands at the table top, then the robot there: about an hour of two cores."""
    films = Conditions(t2v=0.05, ti2v=0.55, i2v=0.35, null2v=0.05, images=0.05)
    video: tuple[Part, ...] = ("text", "video")
    stages = (
        CurriculumStage(
            "physics",
            video,
            DataConfig(path="runs/physics", captions=1.0),
            LoopConfig(steps=300, lr=1.5e-3, warmup=60),
            loss=LossConfig(frames=16, conditions=films),
        ),
        CurriculumStage(
            "hands",
            video,
            DataConfig(path="runs/hands", more=("runs/physics",), weights=(0.75, 0.25), captions=0.5),
            LoopConfig(steps=300, lr=1e-3, warmup=30),
            loss=LossConfig(frames=16, conditions=films),
        ),
        CurriculumStage(
            "robot",
            (),
            DataConfig(path="runs/record"),
            LoopConfig(steps=900, lr=1.5e-3, warmup=60),
        ),
    )
    train = TrainConfig(
        preset="tiny-words",
        words=True,
        tokenizer=LoopConfig(steps=600, lr=2e-3, ema=0.995),
        pixels=PixelWeights(coloured=10.0),
    )
    return Curriculum(stages, train)


CURRICULA = {"cedc": _cedc(), "laptop": _laptop()}


def get_curriculum(name: str) -> Curriculum:
    """The curriculum of that name, or a ValueError with the legal ones."""
    if name not in CURRICULA:
        raise ValueError(f"no curriculum {name!r}, and no such file; {did_you_mean(name, CURRICULA)}")
    return CURRICULA[name]
