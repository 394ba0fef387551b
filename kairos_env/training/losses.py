"""The loss of all five modes, from one batch of clips.

One pass over the clips carries two streams: the clean frames (history, read by the heads and by the action
chunks) and a noisy copy of every frame, which is denoised from the clean frames before it. That is exactly
what streaming inference does, for all frames at once. A second, short pass continues the memory with N
future frames and actions that are denoised together (joint), or one given the other (inverse, forward).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.training.batches import Batch
from kairos_env.world_model.attention.visibility import LayerMemory
from kairos_env.world_model.flow import interpolate, to_sample, training_levels
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import WorldState

PROPRIO_BLEMISH = 0.1  # noise of a blemished history's proprioception, in its standard deviations


@dataclass(frozen=True)
class LossConfig:
    """Weights and noise of the training loss.

    Args:
        frames: F, frames of the main pass; a clip has N more for the joint pass.
        pure_noise: share of noise levels that are exactly 1.
        history_noise: share of history frames that are noised, so that errors of a rollout are forgiven.
        history_level: highest noise level of those.
        imagined_history: share of history frames replaced by the model's own prediction, where such are used.
        motion: extra weight of latent cells that change; otherwise fading a small object out is the cheapest
            prediction.
        proprio: weight of the next proprioception, beside a weight of 1 for the next latent frame.
        policy: weight of the action chunks.
        reward: weight of the reward, where the data say it.
        success: weight of the success, where the data say it.
        object: weight of the object's position, where the data have it.
        uncertainty: weight of the predicted error of a frame.
        joint: weight of the joint pass (actions and frames together, and one given the other).
    """

    frames: int = 18
    pure_noise: float = 0.5
    history_noise: float = 0.5
    history_level: float = 0.4
    imagined_history: float = 0.5
    motion: float = 4.0
    proprio: float = 0.5
    policy: float = 1.0
    reward: float = 1.0
    success: float = 0.2
    object: float = 0.3
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
class Frames:
    """Latents (B, F, C, h, w) and proprioception (B, F, P) at noise levels sigma (B, F)."""

    latents: Tensor
    proprio: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Chunks:
    """Action chunks (B, F, N, A) at noise levels sigma (B, F)."""

    actions: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Pass:
    """Results of the main pass.

    Args:
        denoised: the noisy stream's frames without their noise; None where there was no such stream.
        tokens: stream -> (B, F, L, D).
        proposals: tokens of the action chunks; None without chunks.
        memory: after the last frame, of every layer.
    """

    denoised: Frames | None
    tokens: Mapping[str, Tensor]
    proposals: Tensor | None
    memory: tuple[LayerMemory, ...]


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
    draw = Draws(config, generator, batch.latents.device)
    clip, future = batch.part(0, config.frames), batch.part(config.frames)
    context = model.text(model.text.codes(batch.texts).to(batch.latents.device))
    history = blemished(clip, config, draw)
    noisy, chunks = noised(clip, draw)
    if imagined:
        history = with_imagined(model, clip, context, history, noisy, config, draw)
    done = main_pass(model, clip, context, history, noisy if video else None, chunks)

    losses = {"policy": policy_loss(model, clip, chunks, done), **readout_losses(model, clip, context, done)}
    if video:
        losses |= video_losses(model, clip, done, config)
        losses |= joint_losses(model, clip, future, _state_after(model, history, done, context), config, draw)
    total = torch.stack([config.weights[name] * value for name, value in losses.items()]).sum()
    return total, {name: value.detach() for name, value in losses.items()}


# inputs of the main pass ----------------------------------------------------------------------------------------------


def blemished(clip: Batch, config: LossConfig, draw: Draws) -> Frames:
    """The clip as it is remembered: part of its frames noised, like those of an imagined history."""
    size, frames = clip.latents.shape[:2]
    sigma = config.history_level * draw.uniform(size, frames) * (draw.uniform(size, frames) < config.history_noise)
    sigma[:, 0] *= draw.uniform(size) < 0.5  # planning mostly starts from a clean, observed frame
    latents = interpolate(clip.latents, draw.normal(clip.latents), sigma)
    return Frames(latents, interpolate(clip.proprio, PROPRIO_BLEMISH * draw.normal(clip.proprio), sigma), sigma)


def noised(clip: Batch, draw: Draws) -> tuple[Frames, Chunks]:
    """The inputs to be denoised: a noisy copy of every frame, and the action chunk at each."""
    size, frames = clip.latents.shape[:2]
    sigma = draw.levels(size, frames)
    latents, proprio = (interpolate(x, draw.normal(x), sigma) for x in (clip.latents, clip.proprio))
    level = draw.levels(size, frames)
    return Frames(latents, proprio, sigma), Chunks(interpolate(clip.chunk, draw.normal(clip.chunk), level), level)


def with_imagined(
    model: WorldModel, clip: Batch, context: Tensor, history: Frames, noisy: Frames, config: LossConfig, draw: Draws
) -> Frames:
    """The history with some of its frames replaced by the model's own predictions, marked as such by their level."""
    with torch.no_grad():
        guess = main_pass(model, clip, context, history, noisy, None).denoised
    assert guess is not None
    swap = draw.uniform(*history.sigma.shape) < config.imagined_history
    swap[:, 0] = False
    return Frames(
        torch.where(swap[..., None, None, None], guess.latents, history.latents),
        torch.where(swap[..., None], guess.proprio, history.proprio),
        torch.where(swap, torch.full_like(history.sigma, model.config.imagined_level), history.sigma),
    )


def main_pass(
    model: WorldModel, clip: Batch, context: Tensor, history: Frames, noisy: Frames | None, chunks: Chunks | None
) -> Pass:
    """Both streams over a clip at once: each noisy frame is denoised from the history before it."""
    dit, expert, size = model.mixture.video_dit, model.mixture.action_dit, len(clip.latents)
    last, last_proprio = _one_later(history.latents), _one_later(history.proprio)

    given = {"clean": history} if noisy is None else {"clean": history, "noisy": noisy}
    condition = {name: dit.condition(frames.sigma, clip.lead, clip.has_lead) for name, frames in given.items()}
    streams = {
        name: (dit.embed_frames(frames.latents, frames.proprio, last, last_proprio), condition[name][1])
        for name, frames in given.items()
    }
    tokens, proposals, memory = model.mixture.frames(
        model.lead(clip.lead, clip.has_lead),
        streams,
        model.contexts(context),
        model.mixture.empty_memory(size, model.frame_tokens),
        torch.zeros(size, dtype=torch.int64, device=clip.latents.device),
        model.grid,
        None if chunks is None else (expert.action_encoder(chunks.actions), expert.embed(chunks.sigma)[1]),
    )
    if noisy is None:
        return Pass(None, tokens, proposals, memory)
    latents, proprio = (x.float() for x in dit.read(tokens["noisy"], condition["noisy"][0], model.latent_shape[1]))
    kind = model.config.prediction
    if kind == "sample":
        latents, proprio = latents + last, proprio + last_proprio
    denoised = Frames(
        to_sample(kind, latents, noisy.latents, noisy.sigma),
        to_sample(kind, proprio, noisy.proprio, noisy.sigma),
        noisy.sigma,
    )
    return Pass(denoised, tokens, proposals, memory)


# losses by mode -------------------------------------------------------------------------------------------------------


def video_losses(model: WorldModel, clip: Batch, done: Pass, config: LossConfig) -> dict[str, Tensor]:
    """Forward and video mode: the next latent frame, its proprioception, and how far off the frame will be."""
    assert done.denoised is not None
    view, fields = clip.view_mask[:, None, None, None, :], clip.proprio_mask[:, None]
    error = (done.denoised.latents - clip.latents).square()[:, 1:] * view
    wrong = share(error.detach(), view).mean((2, 3, 4)).clamp_min(1e-6).log()
    expected = model.heads.log_error(done.tokens["noisy"].detach())[:, 1:]
    return {
        "video": share(error * motion_weights(clip.latents, config.motion), view).mean(),
        "proprio": share((done.denoised.proprio - clip.proprio).square()[:, 1:] * fields, fields).mean(),
        "uncertainty": (expected - wrong).square().mean(),
    }


def policy_loss(model: WorldModel, clip: Batch, chunks: Chunks, done: Pass) -> Tensor:
    """Policy mode: the action chunk at each frame."""
    assert done.proposals is not None
    output = model.read_actions(done.proposals).float()
    actions = to_sample(model.config.prediction, output, chunks.actions, chunks.sigma)
    fields = clip.action_mask[:, None, None]
    return masked_mean(share((actions - clip.chunk).square() * fields, fields).mean(-1), clip.chunk_mask)


def readout_losses(model: WorldModel, clip: Batch, context: Tensor, done: Pass) -> dict[str, Tensor]:
    """Read-outs of each frame: reward, success, object position; 0 where the data do not say it.

    The object is also read from the noisy tokens of a frame, which keeps small things alive in predictions.
    """
    read = model.readout(done.tokens["clean"], context)
    unsure = F.binary_cross_entropy_with_logits(read.success, clip.success, reduction="none")
    astray = masked_mean((read.object_position - clip.object_position).abs().mean(-1), clip.object_mask)
    if "noisy" in done.tokens:
        apart = (model.heads.objects(done.tokens["noisy"]) - clip.object_position).abs().mean(-1)
        astray = astray + masked_mean(apart[:, 1:], clip.object_mask[:, 1:])
    return {
        "reward": masked_mean((read.reward - clip.reward).square(), clip.outcome_mask),
        "success": masked_mean(unsure, clip.outcome_mask),
        "object": astray,
    }


def joint_losses(
    model: WorldModel, clip: Batch, future: Batch, state: WorldState, config: LossConfig, draw: Draws
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
    follows = clip.chunk_mask[:, -1].amin(-1)
    teach = torch.where(inverse, torch.ones_like(follows), follows * ~forward)
    view, fields, moves = clip.view_mask[:, None, None, None, :], clip.proprio_mask[:, None], clip.action_mask[:, None]
    missed = share((actions - future.lead).square() * moves, moves).mean((1, 2))
    unlike = share((latents - future.latents).square() * view, view).mean((2, 3, 4))
    apart = share((proprio - future.proprio).square() * fields, fields).mean(-1)
    denoised = (sigma_v > 0).float()
    return {
        "inverse": masked_mean(missed, teach),
        "future": masked_mean(unlike, denoised) + config.proprio * masked_mean(apart, denoised),
    }


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries that count; 0 where none does."""
    return (x * mask).sum() / mask.sum().clamp_min(1)


def share(masked: Tensor, mask: Tensor) -> Tensor:
    """Makes up for masked entries: the mean over the last axis is then that over the entries that count."""
    return masked / mask.mean(-1, keepdim=True).clamp_min(1e-6)


def motion_weights(latents: Tensor, extra: float) -> Tensor:
    """(B, F, C, h, w) -> (B, F - 1, 1, h, w), mean 1: cells that change from the last frame weigh up to 1 + extra."""
    change = (latents[:, 1:] - latents[:, :-1]).square().mean(2, keepdim=True)
    weights = 1 + extra * (change / 0.1).clamp(max=1)
    return weights / weights.mean()


def _one_later(frames: Tensor) -> Tensor:
    """The previous frame at each frame; the first is its own predecessor."""
    return torch.cat([frames[:, :1], frames[:, :-1]], 1)


def _state_after(model: WorldModel, history: Frames, done: Pass, context: Tensor) -> WorldState:
    """The state that the main pass ends in, from which the joint pass goes on."""
    size, frames = history.sigma.shape
    none = torch.zeros(size, dtype=torch.int64, device=history.sigma.device)
    proprio = model.physical_proprio(history.proprio[:, -1])
    return WorldState(
        done.memory,
        none + frames,
        history.latents[:, -1],
        proprio,
        context,
        none,
        none.float(),
        none.float(),
        history.latents.new_zeros(size, len(model.objects), 3),
    )
