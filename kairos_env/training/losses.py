"""The loss of all five modes, from one batch of clips.

One pass over the clips does what streaming inference does, for all frames at once (`training.passes`). A second, short
pass continues the memory with N future frames and actions that are denoised together (joint), or one given the other
(inverse, forward).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.training.batches import Batch
from kairos_env.training.passes import (
    Draws,
    LossConfig,
    Pass,
    conditioned,
    imagined_frames,
    instructions,
    main_pass,
    noised,
    rolled_out,
    sighted,
    state_after,
    without_words,
)
from kairos_env.world_model.features import FAR
from kairos_env.world_model.flow import interpolate, to_sample
from kairos_env.world_model.heads import LOST
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.one_pass import Estimate
from kairos_env.world_model.state import WorldState

FINE = 0.05  # below this many standard deviations errors of proprioception weigh less and less
FAITHFUL = 0.15  # decimetres; an imagined frame farther off than that is no example for the policy


def world_model_loss(
    model: WorldModel,
    batch: Batch,
    config: LossConfig,
    generator: torch.Generator,
    horizon: int = 1,
    video: bool = True,
    joint: bool = True,
    shown: Batch | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of all losses, and each of them for the log.

    Args:
        horizon: frames that the model imagines from its own predictions before it is told the truth again; 1 always
            tells the truth, blemished.
        video: False leaves out whatever predicts frames, and learns from observed ones alone: policy, reward, success
            and objects.
        joint: adds the joint pass.
        shown: the frames in which objects are learnt to be seen; by default those of the clips, of which neighbours
            are so alike that they teach little.
    """
    draw = Draws(config, generator, batch.latents.device)
    clip, future = batch.part(0, config.frames), batch.part(config.frames)
    context = instructions(model, clip)
    condition = conditioned(clip, config.conditions, draw)
    silent = condition is not None and not bool(condition.words.all())
    told = instructions(model, without_words(clip, condition.words)) if silent and condition else context
    contexts = model.contexts(told[:, 0])
    with torch.no_grad():
        frames = noised(clip, sighted(model, clip, draw), draw, config, video, condition)
    if video and horizon > 1:
        frames = replace(frames, before=rolled_out(model, frames, contexts, horizon))
    done = main_pass(model, frames, contexts)

    losses = object_losses(clip, done) | outcome_losses(model, clip, context, done)
    if config.policy:
        losses["policy"] = policy_loss(model, clip, context, done, draw)
    if video:
        losses |= video_losses(clip, done, config)
    losses["seen"], doubt = sighting_losses(model, clip if shown is None else shown, draw)
    losses["uncertainty"] = uncertainty_loss(model, clip, done) + doubt
    if joint and config.joint and future.latents.shape[1]:
        losses |= joint_losses(model, future, state_after(model, context, done), config, draw)
    total = torch.stack([config.weights[name] * value for name, value in losses.items()]).sum()
    return total, {name: value.detach() for name, value in losses.items()}


# losses by mode -------------------------------------------------------------------------------------------------------


def video_losses(clip: Batch, done: Pass, config: LossConfig) -> dict[str, Tensor]:
    """Forward and video mode: the latent frames and the proprioception that are imagined."""
    view, known = clip.view_mask[:, None, None, None, :], clip.proprio_mask[:, None]
    start = 0 if config.conditions.unseen else 1  # the first frame is observed, unless films begin with nothing
    imagined = imagined_frames(done)[:, start:]
    error = (done.estimate.latents - clip.latents).square()[:, start:] * view
    picture = share(error * cell_weights(clip, config.motion, start), view).mean((2, 3, 4))
    moved = F.smooth_l1_loss(done.estimate.proprio, clip.proprio, reduction="none", beta=FINE)[:, start:] * known
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
    made = squared_errors(model, clip, done.estimate)
    imagined = imagined_frames(done).unsqueeze(-1)
    hand = imagined * hand_known(model, clip)
    return unlikelihood(made, done.estimate.errors, torch.cat([hand, clip.object_mask, imagined], -1))


def sighting_losses(model: WorldModel, shown: Batch, draw: Draws) -> tuple[Tensor, Tensor]:
    """Of the reader: positions, and the `uncertainty_loss` of them."""
    seen = sighted(model, shown, draw)
    astray = seen.objects - shown.objects
    doubt = unlikelihood(astray.square().sum(-1), seen.errors, shown.object_mask)
    return masked_mean(astray.abs().mean(-1), shown.object_mask), doubt


def unlikelihood(made: Tensor, expected: Tensor, mask: Tensor) -> Tensor:
    """Of squared errors (no gradient) under the logarithms of those expected, as of normal distributions."""
    made = made.detach().clamp(max=torch.tensor(LOST).exp())
    return masked_mean(0.5 * (made * (-expected).exp() + expected), mask)


def joint_losses(
    model: WorldModel, future: Batch, state: WorldState, config: LossConfig, draw: Draws
) -> dict[str, Tensor]:
    """Joint, inverse and forward mode, a third of the clips each: N more frames and the actions that lead to them."""
    size, number = future.lead.shape[:2]
    mode = draw.uniform(size)
    inverse, forward = mode < 1 / 3, mode > 2 / 3
    acts = future.action_mask.amax(1)
    sigma_v = draw.levels(size, number) * ~inverse[:, None]
    sigma_a = torch.where(acts > 0, draw.levels(size) * ~forward, 1.0)  # of unknown actions there is nothing to tell
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
    teach = acts * torch.where(inverse, torch.ones_like(follows), follows * ~forward)
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


def hand_known(model: WorldModel, clip: Batch) -> Tensor:
    """(B, 1, 1): 1 where it is known where the hand is, or, of a robot without one, any of its proprioception."""
    hand = model.spec.hand_fields
    known = clip.proprio_mask[:, hand].amin(1) if hand else clip.proprio_mask.amax(1)
    return known[:, None, None]


def faithful(model: WorldModel, clip: Batch, done: Pass) -> Tensor:
    """(B, F): whether the hand and the objects stand where they really were."""
    errors = squared_errors(model, clip, done.estimate).detach()[..., :-1]
    hand = torch.ones_like(errors[..., :1]) * hand_known(model, clip)
    known = torch.cat([hand, clip.object_mask], -1)
    near = (errors * known).amax(-1) < FAITHFUL**2
    return torch.maximum(near.float(), 1 - imagined_frames(done))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries that count; 0 where none does."""
    return (x * mask).sum() / mask.expand_as(x).sum().clamp_min(1)


def share(masked: Tensor, mask: Tensor) -> Tensor:
    """Makes up for masked entries: the mean over the last axis is then that over the entries that count."""
    return masked / mask.mean(-1, keepdim=True).clamp_min(1e-6)


def cell_weights(clip: Batch, motion: float, start: int = 1) -> Tensor:
    """(B, F - start, 1, h, w), mean 1: what counts in the picture, and up to 1 + ``motion`` times where it changes.

    A change of twice the mean is a change in full: in every cell the latents of neighbouring pictures differ a little.
    """
    change = (clip.latents[:, 1:] - clip.latents[:, :-1]).square().mean(2, keepdim=True)
    changed = (change / (2 * change.mean()).clamp_min(1e-6)).clamp(max=1)
    weights = (1 + motion * changed) * clip.cells[:, 1:].unsqueeze(2)
    if start == 0:  # a first picture is new in all its cells
        weights = torch.cat([(1 + motion) * clip.cells[:, :1].unsqueeze(2), weights], 1)
    return weights / weights.mean()
