"""What a training step shows the model: clips of observed and imagined frames, rolled out by the model itself.

Every frame of a clip has a noise level of its own; the first few are observed, the others imagined from nothing but
what came before (`world_model.one_pass`). What an imagined frame is told of its predecessor comes from the model's own
predictions over several frames, so that it learns to hold its course on its own errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kairos_env.training.batches import Batch
from kairos_env.world_model.features import FAR
from kairos_env.world_model.flow import expand, interpolate, training_levels
from kairos_env.world_model.heads import CERTAIN, LOST
from kairos_env.world_model.mixture import Contexts, Memory
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.one_pass import Estimate, Frames, pass_frames
from kairos_env.world_model.reader import Sighting
from kairos_env.world_model.state import LATENT_LIMIT, WorldState

MOST_OBSERVED = 6  # frames that a clip observes at most, unless all
BLEMISH = (0.15, 0.05, 0.1)  # largest noise on a true predecessor: latents, proprioception [std], objects [dm]
GRAIN = 0.3  # largest noise on the latents in which objects are seen: the reader sees every frame dozens of times


@dataclass(frozen=True)
class Conditions:
    """What a clip is imagined from: shares of the clips, which sum to 1, and of single pictures.

    Args:
        t2v: words alone.
        ti2v: words and the first frames.
        i2v: the first frames alone.
        null2v: nothing.
        images: share of clips of which the first picture alone is learned, without having been seen.
    """

    t2v: float = 0.0
    ti2v: float = 1.0
    i2v: float = 0.0
    null2v: float = 0.0
    images: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.t2v, self.ti2v, self.i2v, self.null2v)
        if min(*shares, self.images) < 0 or self.images > 1 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"conditions t2v, ti2v, i2v and null2v are shares that sum to 1, and images is one, 0 ... 1; got {self}"
            )

    @property
    def unseen(self) -> bool:
        """Whether some clips begin with a frame that was not observed."""
        return self.t2v + self.null2v + self.images > 0


class Conditioned(NamedTuple):
    """Which clips are imagined from words, and from first frames; which are single pictures: (B,) bool each."""

    words: Tensor
    frames: Tensor
    single: Tensor


@dataclass(frozen=True)
class LossConfig:
    """Weights and noise of the training loss.

    Args:
        frames: F, frames of the main pass; a clip has N more for the joint pass.
        tasks: T, tasks that each clip is read as, for the price of the action expert and the heads alone.
        observed: share of clips of which every frame is observed, as an acting policy sees them.
        partly: share of imagined frames that are partly denoised already, for more denoising steps than one.
        no_action: share of clips whose imagined frames are told no action (video mode).
        pure_noise: share of exact 1 among the noise levels of action chunks and of the joint pass.
        motion: extra weight of latent cells that change; otherwise fading a small object out is the cheapest
            prediction.
        proprio: weight of the next proprioception, beside a weight of 1 for the next latent frame.
        policy: weight of the action chunks.
        reward: weight of the reward, where the data say it.
        success: weight of the success, where the data say it.
        object: weight of the objects' positions, where the data have them.
        uncertainty: weight of the expected errors.
        joint: weight of the joint pass (actions and frames together, and one given the other).
        conditions: what clips are imagined from.
    """

    frames: int = 24
    tasks: int = 2
    observed: float = 0.2
    partly: float = 0.1
    no_action: float = 0.04
    pure_noise: float = 0.7
    motion: float = 4.0
    proprio: float = 0.5
    policy: float = 1.0
    reward: float = 1.0
    success: float = 0.3
    object: float = 1.0
    uncertainty: float = 0.05
    joint: float = 0.3
    conditions: Conditions = field(default_factory=Conditions)

    def __post_init__(self) -> None:
        for name, least in (("frames", 2), ("tasks", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"loss.{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("observed", "partly", "no_action", "pure_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"loss.{name} is a share, 0 ... 1, got {getattr(self, name)}")

    @property
    def weights(self) -> Mapping[str, float]:
        """Name of each loss -> its weight in the sum."""
        own = {name: getattr(self, name) for name in ("proprio", "policy", "reward", "success", "object")}
        joint = {"inverse": self.joint, "future": self.joint}
        return own | joint | {"video": 1.0, "seen": self.object, "uncertainty": self.uncertainty}


class Draws:
    """The random numbers of one step, all from its generator."""

    def __init__(self, config: LossConfig, generator: torch.Generator, device: torch.device) -> None:
        self._pure_noise, self._generator, self._device = config.pure_noise, generator, device

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator).to(self._device)

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(self._device)

    def levels(self, *shape: int) -> Tensor:
        return training_levels(shape, self._pure_noise, self._generator).to(self._device)


@dataclass(frozen=True)
class Pass:
    """Results of the main pass: the frames, what the heads read (B, F, n), and the memory with all its windows."""

    frames: Frames
    estimate: Estimate
    flat: Tensor
    memory: Memory


def instructions(model: WorldModel, clip: Batch) -> Tensor:
    """Context tokens (B, T, S, text) of each clip's tasks."""
    unique = sorted({text for texts in clip.texts for text in texts})
    tokens = model.text(model.text.codes(unique).to(clip.latents.device))
    return tokens[torch.tensor([[unique.index(text) for text in texts] for texts in clip.texts])]


def sighted(model: WorldModel, clip: Batch, draw: Draws) -> Sighting:
    """What the model sees of the objects in every frame if it is observed."""
    grain = expand(GRAIN * draw.uniform(*clip.latents.shape[:2]), clip.latents)
    return model.see(clip.latents + grain * draw.normal(clip.latents), clip.proprio)


def conditioned(clip: Batch, conditions: Conditions, draw: Draws) -> Conditioned | None:
    """Draws what each clip is imagined from; None, and nothing drawn, where all are from words and frames."""
    if conditions == Conditions():
        return None
    size = len(clip.latents)
    kind, single = draw.uniform(size), draw.uniform(size) < conditions.images
    bounds = [conditions.t2v, conditions.t2v + conditions.ti2v, conditions.t2v + conditions.ti2v + conditions.i2v]
    return Conditioned(kind < bounds[1], (kind >= bounds[0]) & (kind < bounds[2]) & ~single, single)


def without_words(clip: Batch, words: Tensor) -> Batch:
    """The clips with empty instructions where ``words`` (B,) is False."""
    kept = [texts if there else [""] * len(texts) for texts, there in zip(clip.texts, words.tolist(), strict=True)]
    return replace(clip, texts=kept)


def noised(
    clip: Batch,
    sighting: Sighting,
    draw: Draws,
    config: LossConfig,
    video: bool,
    condition: Conditioned | None = None,
) -> Frames:
    """The clip as the model meets it: a few observed frames, then imagined ones that are told the true predecessor."""
    size, count = clip.latents.shape[:2]
    number = torch.arange(count, device=clip.latents.device)
    seen = torch.where(draw.uniform(size) < 0.5, 1, 1 + (draw.uniform(size) * MOST_OBSERVED).long())
    seen = torch.where(draw.uniform(size) < config.observed, count, seen)
    if condition is not None:
        seen = torch.where(condition.frames, seen, 0)
    imagined = (number >= seen[:, None]).float() if video else clip.latents.new_zeros(size, count)
    if condition is not None:  # of a single picture the others are only there
        imagined = torch.where(condition.single[:, None] & (number > 0), 0.0, imagined)
    sigma = imagined * torch.where(draw.uniform(size, count) < config.partly, draw.uniform(size, count), 1.0)
    latents, proprio = (interpolate(x, draw.normal(x), sigma) for x in (clip.latents, clip.proprio))
    told = (draw.uniform(size, 1) >= config.no_action).float()
    has_action = clip.has_lead * torch.maximum(told, 1 - imagined)
    before = blemished(clip, imagined, draw)
    if condition is not None:
        before = beginning(before, imagined[:, 0])
    return Frames(latents, proprio, sigma, clip.lead, has_action, before, sighting)


def beginning(before: Estimate, imagined: Tensor) -> Estimate:
    """What is told of the frame before each; nothing before a first one that is imagined, (B,)."""
    nothing = Estimate(*(torch.zeros_like(getattr(before, f.name)[:, :1]) for f in fields(Estimate)))
    nothing = replace(nothing, errors=nothing.errors + LOST)
    first = _choose(imagined > 0, nothing, _first(before))
    pairs = ((getattr(first, f.name), getattr(before, f.name)) for f in fields(Estimate))
    return Estimate(*(torch.cat([one, rest[:, 1:]], 1) for one, rest in pairs))


def blemished(clip: Batch, imagined: Tensor, draw: Draws) -> Estimate:
    """The true predecessor of every frame; that of an imagined one with errors such as the model's own."""
    size, count = imagined.shape
    strength = [largest * imagined * draw.uniform(size, count) for largest in BLEMISH]
    true = [_one_later(x) for x in (clip.latents, clip.proprio, clip.objects)]
    latents, proprio, objects = (x + expand(s, x) * draw.normal(x) for x, s in zip(true, strength, strict=True))
    picture, hand, place = ((s.square() + 1e-6).log().clamp(CERTAIN, LOST) for s in strength)
    errors = torch.stack([hand, *[place] * clip.objects.shape[2], picture], -1)
    return Estimate(latents, proprio, objects, errors)


@torch.no_grad()
def rolled_out(model: WorldModel, frames: Frames, contexts: Contexts, horizon: int) -> Estimate:
    """What each frame is told of its predecessor if the model goes on from its own predictions.

    Exactly what imagining frame by frame does. After ``horizon`` imagined frames the truth is told once.
    """
    size, count = frames.sigma.shape
    memory = model.mixture.empty_memory(size, model.frame_tokens, False)
    past = torch.zeros(size, dtype=torch.int64, device=frames.sigma.device)
    run = torch.zeros_like(past)  # imagined frames since the truth was told
    told: list[Estimate] = []
    estimate = _part(frames, 0).before
    for index in range(count):
        now = _part(frames, index)
        if told:
            run = torch.where(now.sigma[:, 0] > 0, run + 1, 0)
            own = (run.remainder(horizon) != 1) | (run == 1)  # the first one goes on from what was observed
            now = replace(now, before=_choose(own, estimate, now.before))
        told.append(now.before)
        estimate, _, memory = pass_frames(model, now, contexts, memory, past + index)
        estimate = replace(estimate, latents=estimate.latents.clamp(-LATENT_LIMIT, LATENT_LIMIT))
    return Estimate(*(torch.cat([getattr(e, f.name) for e in told], 1) for f in fields(Estimate)))


def main_pass(model: WorldModel, frames: Frames, contexts: Contexts) -> Pass:
    """All frames at once; the memory keeps the window of every frame, for a chunk at each."""
    size, count = frames.sigma.shape
    memory = model.mixture.empty_memory(size, model.frame_tokens, False, count)
    past = torch.zeros(size, dtype=torch.int64, device=frames.sigma.device)
    return Pass(frames, *pass_frames(model, frames, contexts, memory, past))


def _one_later(frames: Tensor) -> Tensor:
    """The previous frame at each frame; the first is its own predecessor."""
    return torch.cat([frames[:, :1], frames[:, :-1]], 1)


def _first(estimate: Estimate) -> Estimate:
    return Estimate(*(getattr(estimate, f.name)[:, :1] for f in fields(Estimate)))


def _part(frames: Frames, index: int) -> Frames:
    """One of the frames."""

    def cut(x: Tensor) -> Tensor:
        return x[:, index : index + 1]

    before = Estimate(*(cut(getattr(frames.before, f.name)) for f in fields(Estimate)))
    seen = frames.seen and Sighting(*(cut(x) for x in frames.seen))
    own = {f.name: cut(getattr(frames, f.name)) for f in fields(Frames) if f.name not in ("before", "seen")}
    return Frames(**own, before=before, seen=seen)


def _choose(own: Tensor, one: Estimate, other: Estimate) -> Estimate:
    """Of each element ``one`` where ``own`` (B,), else ``other``."""
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(Estimate))
    return Estimate(*(torch.where(expand(own, a), a, b) for a, b in pairs))


def imagined_frames(done: Pass) -> Tensor:
    """(B, F): 1 where a frame is imagined, 0 where it is observed."""
    return (done.frames.sigma > 0).float()


def state_after(model: WorldModel, context: Tensor, done: Pass) -> WorldState:
    """The state that the main pass ends in, read as the first task, from which the joint pass goes on."""
    size, frames = done.frames.sigma.shape
    newest = [slice(-(model.mixture.video_dit.config.offsets(kind)[-1] + 1), None) for kind in model.mixture.kinds]
    layers = tuple(
        m._replace(keys=m.keys[part], values=m.values[part]) for m, part in zip(done.memory, newest, strict=True)
    )
    nothing = torch.zeros(size, device=done.flat.device)
    return WorldState(
        layers,
        nothing.long() + frames,
        done.estimate.latents[:, -1],
        model.physical_proprio(done.estimate.proprio[:, -1]),
        context[:, 0],
        nothing.long(),
        nothing,
        nothing,
        FAR * done.estimate.objects[:, -1].detach(),
        (0.5 * done.estimate.errors[:, -1]).exp().detach() * model.error_scale,
    )
