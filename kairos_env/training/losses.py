"""The loss of all five modes, from one batch of clips.

One pass over the clips does what streaming inference does, for all frames at once: every frame has a noise level of
its own, the first few are observed, the others imagined from nothing but what came before (`world_model.one_pass`).
What an imagined frame is told of its predecessor comes from the model itself, rolled out over several frames, so that
it learns to hold its course on its own errors. A second, short pass continues the memory with N future frames and
actions that are denoised together (joint), or one given the other (inverse, forward).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.training.batches import Batch
from kairos_env.world_model.features import FAR
from kairos_env.world_model.flow import expand, interpolate, to_sample, training_levels
from kairos_env.world_model.mixture import Contexts, Memory
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.one_pass import CERTAIN, LOST, Estimate, Frames, pass_frames
from kairos_env.world_model.state import LATENT_LIMIT, WorldState

MOST_OBSERVED = 6  # frames that a clip observes at most, unless all
BLEMISH = (0.15, 0.05, 0.1)  # largest noise on a true predecessor: latents, proprioception [std], objects [dm]
FINE = 0.05  # below this many standard deviations errors of proprioception weigh less and less
FAITHFUL = 0.15  # decimetres; an imagined frame farther off than that is no example for the policy


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

    @property
    def weights(self) -> Mapping[str, float]:
        """Name of each loss -> its weight in the sum."""
        own = {name: getattr(self, name) for name in ("proprio", "policy", "reward", "success", "object")}
        return own | {"video": 1.0, "uncertainty": self.uncertainty, "inverse": self.joint, "future": self.joint}


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


def world_model_loss(
    model: WorldModel,
    batch: Batch,
    config: LossConfig,
    generator: torch.Generator,
    horizon: int = 1,
    video: bool = True,
    joint: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of all losses, and each of them for the log.

    Args:
        horizon: frames that the model imagines from its own predictions before it is told the truth again; 1 always
            tells the truth, blemished.
        video: False leaves out whatever predicts frames, and learns from observed ones alone: policy, reward, success
            and objects.
        joint: adds the joint pass.
    """
    draw = Draws(config, generator, batch.latents.device)
    clip, future = batch.part(0, config.frames), batch.part(config.frames)
    context = instructions(model, clip)
    contexts = model.contexts(context[:, 0])
    frames = noised(clip, draw, config, video)
    if video and horizon > 1:
        frames = replace(frames, before=rolled_out(model, frames, contexts, horizon))
    done = main_pass(model, frames, contexts)

    losses = object_losses(clip, done) | outcome_losses(model, clip, context, done)
    losses["policy"] = policy_loss(model, clip, context, done, draw)
    if video:
        losses |= video_losses(clip, done, config)
    losses["uncertainty"] = uncertainty_loss(model, clip, done)
    if joint and future.latents.shape[1]:
        losses |= joint_losses(model, future, _state_after(model, context, done), config, draw)
    total = torch.stack([config.weights[name] * value for name, value in losses.items()]).sum()
    return total, {name: value.detach() for name, value in losses.items()}


def instructions(model: WorldModel, clip: Batch) -> Tensor:
    """Context tokens (B, T, S, text) of each clip's tasks."""
    unique = sorted({text for texts in clip.texts for text in texts})
    tokens = model.text(model.text.codes(unique).to(clip.latents.device))
    return tokens[torch.tensor([[unique.index(text) for text in texts] for texts in clip.texts])]


# inputs of the main pass ----------------------------------------------------------------------------------------------


def noised(clip: Batch, draw: Draws, config: LossConfig, video: bool) -> Frames:
    """The clip as the model meets it: a few observed frames, then imagined ones that are told the true predecessor."""
    size, count = clip.latents.shape[:2]
    number = torch.arange(count, device=clip.latents.device)
    seen = torch.where(draw.uniform(size) < 0.5, 1, 1 + (draw.uniform(size) * MOST_OBSERVED).long())
    seen = torch.where(draw.uniform(size) < config.observed, count, seen)
    imagined = (number >= seen[:, None]).float() if video else clip.latents.new_zeros(size, count)
    sigma = imagined * torch.where(draw.uniform(size, count) < config.partly, draw.uniform(size, count), 1.0)
    latents, proprio = (interpolate(x, draw.normal(x), sigma) for x in (clip.latents, clip.proprio))
    told = (draw.uniform(size, 1) >= config.no_action).float()
    has_action = clip.has_lead * torch.maximum(told, 1 - imagined)
    return Frames(latents, proprio, sigma, clip.lead, has_action, blemished(clip, imagined, draw))


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


# losses by mode -------------------------------------------------------------------------------------------------------


def video_losses(clip: Batch, done: Pass, config: LossConfig) -> dict[str, Tensor]:
    """Forward and video mode: the latent frames and the proprioception that are imagined."""
    view, known = clip.view_mask[:, None, None, None, :], clip.proprio_mask[:, None]
    imagined = _imagined(done)[:, 1:]
    error = (done.estimate.latents - clip.latents).square()[:, 1:] * view
    picture = share(error * motion_weights(clip.latents, config.motion), view).mean((2, 3, 4))
    moved = F.smooth_l1_loss(done.estimate.proprio, clip.proprio, reduction="none", beta=FINE)[:, 1:] * known
    return {
        "video": masked_mean(picture, imagined),
        "proprio": masked_mean(share(moved, known).mean(-1), imagined),
    }


def object_losses(clip: Batch, done: Pass) -> dict[str, Tensor]:
    """Objects' positions, in observed frames and in imagined ones; 0 where the data do not say them."""
    astray = (done.estimate.objects - clip.objects).abs().mean(-1)
    return {"object": masked_mean(astray, clip.object_mask)}


def outcome_losses(model: WorldModel, clip: Batch, context: Tensor, done: Pass) -> dict[str, Tensor]:
    """Reward and success of each task in each frame; 0 where the data do not say them."""
    tasks = context.shape[1]
    flat, features = (x.unsqueeze(2).expand(-1, -1, tasks, -1) for x in (done.flat, measured(model, done)))
    words = model.pooled(context)[:, None].expand(-1, flat.shape[1], -1, -1)
    reward, success = model.heads.outcome(flat, words, features)
    unsure = F.binary_cross_entropy_with_logits(success, clip.success, reduction="none")
    return {
        "reward": masked_mean((reward - clip.reward).square(), clip.outcome_mask),
        "success": masked_mean(unsure, clip.outcome_mask),
    }


def policy_loss(model: WorldModel, clip: Batch, context: Tensor, done: Pass, draw: Draws) -> Tensor:
    """Policy mode: the action chunk of each task at each frame that shows what really was."""
    size, tasks = context.shape[:2]
    frames = clip.chunk.shape[1]
    wanted = clip.chunk.transpose(1, 2).flatten(0, 1)  # (B T, F, N, A)
    sigma = draw.levels(size * tasks, frames)
    features = measured(model, done).repeat_interleave(tasks, 0)
    noisy = interpolate(wanted, draw.normal(wanted), sigma)
    chunk = model.embed_chunk(noisy, sigma, features)
    contexts = model.mixture.read_context(context.flatten(0, 1), video=False)
    past = torch.full((size,), frames, dtype=torch.int64, device=wanted.device)
    output = model.read_actions(model.mixture.propose(chunk, contexts, done.memory, past)).float()
    output = to_sample(model.config.prediction, output, noisy, sigma)
    moves = clip.action_mask.repeat_interleave(tasks, 0)[:, None, None]
    wrong = share((output - wanted).square() * moves, moves).mean(-1).unflatten(0, (size, tasks)).transpose(1, 2)
    return masked_mean(wrong, clip.chunk_mask * faithful(model, clip, done)[..., None, None])


def uncertainty_loss(model: WorldModel, clip: Batch, done: Pass) -> Tensor:
    """Negative log-likelihood of the errors that were made, under those that were expected (normal distributions)."""
    made = squared_errors(model, clip, done.estimate).detach().clamp(max=torch.tensor(LOST).exp())
    expected, imagined = done.estimate.errors, _imagined(done).unsqueeze(-1)
    counts = torch.cat([imagined, clip.object_mask, imagined], -1)
    return masked_mean(0.5 * (made * (-expected).exp() + expected), counts)


def joint_losses(
    model: WorldModel, future: Batch, state: WorldState, config: LossConfig, draw: Draws
) -> dict[str, Tensor]:
    """Joint, inverse and forward mode, a third of the clips each: N more frames and the actions that lead to them."""
    size, number = future.lead.shape[:2]
    mode = draw.uniform(size)
    inverse, forward = mode < 1 / 3, mode > 2 / 3
    sigma_v = draw.levels(size, number) * ~inverse[:, None]
    sigma_a = draw.levels(size) * ~forward
    actions, latents, proprio = model.denoise_jointly(
        state,
        interpolate(future.lead, draw.normal(future.lead), sigma_a),
        interpolate(future.latents, draw.normal(future.latents), sigma_v),
        interpolate(future.proprio, draw.normal(future.proprio), sigma_v),
        sigma_a,
        sigma_v,
    )
    # an undirected joint sample should follow the expert, so only clips that do teach it
    follows = future.chunk_mask[:, 0, 0].amin(-1)
    teach = torch.where(inverse, torch.ones_like(follows), follows * ~forward)
    view, known, moves = (
        future.view_mask[:, None, None, None, :],
        future.proprio_mask[:, None],
        future.action_mask[:, None],
    )
    missed = share((actions - future.lead).square() * moves, moves).mean((1, 2))
    unlike = share((latents - future.latents).square() * view, view).mean((2, 3, 4))
    apart = share((proprio - future.proprio).square() * known, known).mean(-1)
    denoised = (sigma_v > 0).float()
    return {
        "inverse": masked_mean(missed, teach),
        "future": masked_mean(unlike, denoised) + config.proprio * masked_mean(apart, denoised),
    }


# what they share ------------------------------------------------------------------------------------------------------


def measured(model: WorldModel, done: Pass) -> Tensor:
    """Measured features (B, F, K) of the frames as the model reads them, without gradient."""
    proprio, objects = done.estimate.proprio.detach(), done.estimate.objects.detach()
    return model.features(model.physical_proprio(proprio), FAR * objects)


def squared_errors(model: WorldModel, clip: Batch, estimate: Estimate) -> Tensor:
    """(B, F, E) squared errors, in the units inside: distances of the hand and the objects, mean of the picture."""
    hand = model.spec.hand_fields
    if hand:
        true, found = (model.physical_proprio(x)[..., hand] / FAR for x in (clip.proprio, estimate.proprio))
        moved = (found - true).square().sum(-1, keepdim=True)
    else:
        known = clip.proprio_mask[:, None]
        moved = share((estimate.proprio - clip.proprio).square() * known, known).mean(-1, keepdim=True)
    places = (estimate.objects - clip.objects).square().sum(-1)
    view = clip.view_mask[:, None, None, None, :]
    picture = share((estimate.latents - clip.latents).square() * view, view).mean((2, 3, 4)).unsqueeze(-1)
    return torch.cat([moved, places, picture], -1)


def faithful(model: WorldModel, clip: Batch, done: Pass) -> Tensor:
    """(B, F): whether the hand and the objects stand where they really were."""
    errors = squared_errors(model, clip, done.estimate).detach()[..., :-1]
    known = torch.cat([torch.ones_like(errors[..., :1]), clip.object_mask], -1)
    near = (errors * known).amax(-1) < FAITHFUL**2
    return torch.maximum(near.float(), 1 - _imagined(done))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries that count; 0 where none does."""
    return (x * mask).sum() / mask.expand_as(x).sum().clamp_min(1)


def share(masked: Tensor, mask: Tensor) -> Tensor:
    """Makes up for masked entries: the mean over the last axis is then that over the entries that count."""
    return masked / mask.mean(-1, keepdim=True).clamp_min(1e-6)


def motion_weights(latents: Tensor, extra: float) -> Tensor:
    """(B, F, C, h, w) -> (B, F - 1, 1, h, w), mean 1: cells that change from the last frame weigh up to 1 + extra."""
    change = (latents[:, 1:] - latents[:, :-1]).square().mean(2, keepdim=True)
    weights = 1 + extra * (change / 0.1).clamp(max=1)
    return weights / weights.mean()


def _imagined(done: Pass) -> Tensor:
    return (done.frames.sigma > 0).float()


def _one_later(frames: Tensor) -> Tensor:
    """The previous frame at each frame; the first is its own predecessor."""
    return torch.cat([frames[:, :1], frames[:, :-1]], 1)


def _part(frames: Frames, index: int) -> Frames:
    """One of the frames."""

    def cut(x: Tensor) -> Tensor:
        return x[:, index : index + 1]

    before = Estimate(*(cut(getattr(frames.before, f.name)) for f in fields(Estimate)))
    own = {f.name: cut(getattr(frames, f.name)) for f in fields(Frames) if f.name != "before"}
    return Frames(**own, before=before)


def _choose(own: Tensor, one: Estimate, other: Estimate) -> Estimate:
    """Of each element ``one`` where ``own`` (B,), else ``other``."""
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(Estimate))
    return Estimate(*(torch.where(expand(own, a), a, b) for a, b in pairs))


def _state_after(model: WorldModel, context: Tensor, done: Pass) -> WorldState:
    """The state that the main pass ends in, read as the first task, from which the joint pass goes on."""
    size, frames = done.frames.sigma.shape
    newest = [slice(-(model.mixture.video_dit.config.offsets(kind)[-1] + 1), None) for kind in model.mixture.kinds]
    layers = tuple(
        m._replace(keys=m.keys[:, part], values=m.values[:, part]) for m, part in zip(done.memory, newest, strict=True)
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
