"""The loss of all five modes, from one batch of clips.

One pass over the clips carries two streams: the clean frames (history, read by the heads and by the action
chunks) and a noisy copy of every frame, which is denoised from the clean frames before it. That is exactly
what streaming inference does, for all frames at once. A second, short pass continues the memory with N
future frames and actions that are denoised together (joint), or one given the other (inverse, forward).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.training.batches import Batch
from kairos_env.world_model.flow import interpolate, to_sample, training_levels
from kairos_env.world_model.heads import Readout
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import WorldState


@dataclass(frozen=True)
class LossConfig:
    """Weights and noise of the training loss."""

    frames: int = 18  # F, frames of the main pass; a clip has N more for the joint pass
    pure_noise: float = 0.5  # share of noise levels that are exactly 1
    history_noise: float = 0.5  # share of history frames that are noised, so that errors of a rollout are forgiven
    history_level: float = 0.4  # highest noise level of those
    imagined_history: float = 0.5  # share of history frames replaced by the model's own prediction, where used
    motion: float = 4.0  # extra weight of latent cells that change
    proprio: float = 0.5
    policy: float = 1.0
    reward: float = 1.0
    success: float = 0.2
    object: float = 0.3
    uncertainty: float = 0.05
    joint: float = 0.3


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum().clamp_min(1)


def share(masked: Tensor, mask: Tensor) -> Tensor:
    """Makes up for masked entries: the mean over the last axis is then that over the entries that count."""
    return masked / mask.mean(-1, keepdim=True).clamp_min(1e-6)


def motion_weights(latents: Tensor, extra: float) -> Tensor:
    """(B, F, C, h, w) -> (B, F - 1, 1, h, w), mean 1: cells that change from the last frame weigh up to 1 + extra.

    Without this a small object is worth so little that fading it out is the cheapest prediction.
    """
    change = (latents[:, 1:] - latents[:, :-1]).square().mean(2, keepdim=True)
    weights = 1 + extra * (change / 0.1).clamp(max=1)
    return weights / weights.mean()


def world_model_loss(
    model: WorldModel,
    batch: Batch,
    config: LossConfig,
    generator: torch.Generator,
    imagined: bool = False,
    video: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of all losses, and each of them for the log.

    Args:
        imagined: replace part of the history by the model's own predictions (one more pass without gradient).
        video: False leaves out whatever predicts frames, and learns from the observed ones alone: policy, reward,
            success and object, for less than half the time.
    """
    frames, number = config.frames, model.chunk_length
    dit, expert, kind = model.mixture.video_dit, model.mixture.action_dit, model.config.prediction
    device = batch.latents.device

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device)

    def randn_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator).to(device)

    def levels(*shape: int) -> Tensor:
        return training_levels(shape, config.pure_noise, generator).to(device)

    clean, proprio = batch.latents[:, :frames], batch.proprio[:, :frames]
    size = len(clean)
    context = model.text(model.text.codes(batch.texts).to(device))
    contexts = model.contexts(context)
    memory = model.mixture.empty_memory(size, model.frame_tokens)
    past = torch.zeros(size, dtype=torch.int64, device=device)
    lead = model.lead(batch.lead[:, :frames], batch.has_lead[:, :frames])

    # history: what is remembered, with the blemishes of an imagined one
    sigma_h = config.history_level * rand(size, frames) * (rand(size, frames) < config.history_noise)
    sigma_h[:, 0] *= rand(size) < 0.5  # planning mostly starts from a clean, observed frame
    history = interpolate(clean, randn_like(clean), sigma_h)
    history_proprio = interpolate(proprio, 0.1 * randn_like(proprio), sigma_h)

    # noisy copies, denoised from the history
    sigma = levels(size, frames)
    noisy, noisy_proprio = (interpolate(x, randn_like(x), sigma) for x in (clean, proprio))
    sigma_a = levels(size, frames)
    chunk_noise = randn_like(batch.chunk[:, :frames])

    def run(history: Tensor, history_proprio: Tensor, sigma_h: Tensor, policy: bool):  # type: ignore[no-untyped-def]
        last = torch.cat([history[:, :1], history[:, :-1]], 1)
        last_proprio = torch.cat([history_proprio[:, :1], history_proprio[:, :-1]], 1)
        action, has = batch.lead[:, :frames], batch.has_lead[:, :frames]
        t, modulation = dit.condition(sigma, action, has)
        _, clean_modulation = dit.condition(sigma_h, action, has)
        chunk = None
        if policy:
            noisy_chunk = interpolate(batch.chunk[:, :frames], chunk_noise, sigma_a)
            chunk = (expert.action_encoder(noisy_chunk), expert.embed(sigma_a)[1])
        streams = {"clean": (dit.embed_frames(history, history_proprio, last, last_proprio), clean_modulation)}
        if video:
            streams["noisy"] = (dit.embed_frames(noisy, noisy_proprio, last, last_proprio), modulation)
        outputs, proposals, memory_after = model.mixture.frames(
            lead, streams, contexts, memory, past, model.grid, chunk
        )
        if not video:
            return None, None, outputs, proposals, memory_after
        out, out_proprio = dit.read(outputs["noisy"], t, model.latent_shape[1])
        if kind == "sample":
            out, out_proprio = out.float() + last, out_proprio.float() + last_proprio
        sample = to_sample(kind, out.float(), noisy, sigma)
        return sample, to_sample(kind, out_proprio.float(), noisy_proprio, sigma), outputs, proposals, memory_after

    if imagined:
        with torch.no_grad():
            guess, guess_proprio, *_ = run(history, history_proprio, sigma_h, policy=False)
        swap = rand(size, frames) < config.imagined_history
        swap[:, 0] = False
        history = torch.where(swap[..., None, None, None], guess, history)
        history_proprio = torch.where(swap[..., None], guess_proprio, history_proprio)
        sigma_h = torch.where(swap, torch.full_like(sigma_h, model.config.imagined_level), sigma_h)

    sample, sample_proprio, outputs, proposals, layers = run(history, history_proprio, sigma_h, policy=True)
    assert proposals is not None

    view = batch.view_mask[:, None, None, None, :]
    fields, moves = batch.proprio_mask[:, None], batch.action_mask[:, None]
    losses = {}
    if video:
        error = (sample - clean).square()[:, 1:] * view
        losses["video"] = share(error * motion_weights(clean, config.motion), view).mean()
        losses["proprio"] = share((sample_proprio - proprio).square()[:, 1:] * fields, fields).mean()
        target = share(error.detach(), view).mean((2, 3, 4)).clamp_min(1e-6).log()
        log_error = model.heads.log_error(outputs["noisy"].detach())[:, 1:]
        losses["uncertainty"] = (log_error - target).square().mean()

    noisy_chunk = interpolate(batch.chunk[:, :frames], chunk_noise, sigma_a)
    actions = to_sample(kind, model.read_actions(proposals).float(), noisy_chunk, sigma_a)
    off = share((actions - batch.chunk[:, :frames]).square() * moves[:, None], moves[:, None]).mean(-1)
    losses["policy"] = masked_mean(off, batch.chunk_mask[:, :frames])

    read: Readout = model.readout(outputs["clean"], context)
    known = batch.outcome_mask[:, :frames]
    losses["reward"] = masked_mean((read.reward - batch.reward[:, :frames]).square(), known)
    losses["success"] = masked_mean(
        F.binary_cross_entropy_with_logits(read.success, batch.success[:, :frames], reduction="none"), known
    )
    where, seen = batch.object_position[:, :frames], batch.object_mask[:, :frames]
    astray = (read.object_position - where).abs().mean(-1)
    losses["object"] = masked_mean(astray, seen)
    if video:
        astray_noisy = (model.heads.objects(outputs["noisy"]) - where).abs().mean(-1)
        losses["object"] = losses["object"] + masked_mean(astray_noisy[:, 1:], seen[:, 1:])

    total = (
        config.policy * losses["policy"]
        + config.reward * losses["reward"]
        + config.success * losses["success"]
        + config.object * losses["object"]
    )
    if not video:
        return total, {name: value.detach() for name, value in losses.items()}

    # joint pass: N more frames and the actions that lead to them
    future, future_proprio = batch.latents[:, frames:], batch.proprio[:, frames:]
    executed = batch.lead[:, frames:]
    mode = rand(size)
    inverse, forward = mode < 1 / 3, mode > 2 / 3
    sigma_v = levels(size, number) * ~inverse[:, None]
    sigma_c = levels(size) * ~forward
    after = WorldState(
        layers,
        past + frames,
        history[:, -1],
        model.physical_proprio(history_proprio[:, -1]),
        context,
        past,
        past.float(),
        past.float(),
    )
    got_actions, got_video, got_proprio = model.denoise_jointly(
        after,
        interpolate(executed, randn_like(executed), sigma_c),
        interpolate(future, randn_like(future), sigma_v),
        interpolate(future_proprio, randn_like(future_proprio), sigma_v),
        sigma_c,
        sigma_v,
    )
    # an undirected joint sample should follow the expert, so only clips that do teach it
    follows = batch.chunk_mask[:, frames - 1].amin(-1)
    teach = torch.where(inverse, torch.ones_like(follows), follows * ~forward)
    missed = share((got_actions - executed).square() * moves, moves).mean((1, 2))
    losses["inverse"] = masked_mean(missed, teach)
    denoised = (sigma_v > 0).float()
    unlike = share((got_video - future).square() * view, view).mean((2, 3, 4))
    apart = share((got_proprio - future_proprio).square() * fields, fields).mean(-1)
    losses["future"] = masked_mean(unlike, denoised) + config.proprio * masked_mean(apart, denoised)

    total = (
        total
        + losses["video"]
        + config.proprio * losses["proprio"]
        + config.uncertainty * losses["uncertainty"]
        + config.joint * (losses["inverse"] + losses["future"])
    )
    return total, {name: value.detach() for name, value in losses.items()}
