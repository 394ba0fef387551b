"""The two-pass step: one pass denoises a frame, another reads it as a clean one and is what is remembered.

Published weights are driven so, whose training knew clean history only; and small models before format 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kairos_env.world_model.features import FAR
from kairos_env.world_model.interface import PROPRIO_NOISE, VIDEO_NOISE
from kairos_env.world_model.mixture import Contexts
from kairos_env.world_model.sampling import Parts, denoise
from kairos_env.world_model.state import LATENT_LIMIT, StepOutput, WorldState

if TYPE_CHECKING:
    from kairos_env.world_model.streaming import StreamingPasses


def imagine_frame(model: StreamingPasses, state: WorldState, action: Tensor, steps: int) -> StepOutput:
    """The frame after a normalised action (B, A), and the memory of it."""
    last_proprio = model.normalise_proprio(state.proprio)
    contexts = model.contexts(state.context, state.mask)
    log_error = action.new_zeros(state.batch_size)

    def predict(data: Parts, level: tuple[float, ...]) -> Parts:
        nonlocal log_error
        latent, proprio = data
        *predictions, tokens = denoise_frame(model, state, contexts, action, latent, proprio, last_proprio, level[0])
        log_error = model.heads.errors(model.heads.flat(tokens))[:, 0, 0]
        return tuple(predictions)

    levels = model.interface.levels(steps, VIDEO_NOISE)
    noise = (
        model.interface.noise(state.seed, state.past, VIDEO_NOISE, model.latent_shape),
        model.interface.noise(state.seed, state.past, PROPRIO_NOISE, (model.spec.proprio_dim,)),
    )
    latent, proprio = denoise(predict, noise, [levels] * 2, model.advance)
    physical = model.physical_proprio(proprio)
    # not clipped when non-finite: NaN must stay visible to whoever steps
    latent = latent.float().clamp(-LATENT_LIMIT, LATENT_LIMIT)
    uncertainty = (0.5 * log_error).exp()
    new = remember(
        model,
        state,
        latent[:, None],
        physical[:, None],
        action[:, None],
        model.config.imagined_level,
        contexts,
        uncertainty[:, None],
    )
    return StepOutput(new, latent, physical, new.reward, new.success, uncertainty, new.objects, new.errors)


def denoise_frame(
    model: StreamingPasses,
    state: WorldState,
    contexts: Contexts,
    lead: Tensor,
    latent: Tensor,
    proprio: Tensor,
    last_proprio: Tensor,
    level: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One denoising pass of the next frame: latent (B, C, h, w) and proprio (B, P), of the kind that
    ``config.prediction`` says, and tokens (B, 1, L, D).
    """
    driver = model.driver
    sigma = torch.full((state.batch_size, 1), level, device=latent.device)
    has_action = torch.ones_like(sigma)
    t, modulation = driver.condition(sigma, lead[:, None], has_action)
    tokens = driver.embed_frames(latent[:, None], proprio[:, None], state.latent[:, None], last_proprio[:, None])
    outputs, _ = model.mixture.frames(
        model.lead(lead[:, None], has_action),
        (tokens, modulation),
        contexts,
        state.layers,
        state.past,
        model.grid,
        remembered=False,
    )
    out, change = driver.read(outputs, t, model.latent_shape[1])
    out, change = out[:, 0].float(), change[:, 0].float()
    if model.config.prediction == "sample":
        out, change = out + state.latent, change + last_proprio
    elif model.released:  # published weights do not denoise proprioception
        change = (proprio - last_proprio - change) / level
    return out, change, outputs


def remember(
    model: StreamingPasses,
    state: WorldState,
    latents: Tensor,
    proprio: Tensor,
    actions: Tensor | None,
    level: float = 0.0,
    contexts: Contexts | None = None,
    errors: Tensor | None = None,
) -> WorldState:
    """Appends F frames in one pass; any split of a clip into calls gives the same memory.

    Args:
        latents: (B, F, C, h, w) normalised.
        proprio: (B, F, P) physical.
        actions: (B, F, A) normalised, each the one that led to its frame; None for a first frame.
        level: noise level that marks the frames, 0 for observed ones.
        contexts: of ``state``, if they were read already.
        errors: (B, E) expected in the last frame; None for observed ones.
    """
    driver = model.driver
    sigma = latents.new_full(latents.shape[:2], level)
    has_action = torch.full_like(sigma, float(actions is not None))
    if actions is None:
        actions = latents.new_zeros(*latents.shape[:2], model.spec.action_dim)
    first = state.past == 0
    normal = model.normalise_proprio(proprio)
    # a first frame is its own predecessor: there is nothing that changed
    before = torch.where(first[:, None, None, None], latents[:, 0], state.latent)
    before_proprio = torch.where(first[:, None], normal[:, 0], model.normalise_proprio(state.proprio))
    last = torch.cat([before[:, None], latents[:, :-1]], 1)
    last_proprio = torch.cat([before_proprio[:, None], normal[:, :-1]], 1)
    has_action[:, 0] = has_action[:, 0] * ~first
    _, modulation = driver.condition(sigma, actions, has_action)
    outputs, layers = model.mixture.frames(
        model.lead(actions, has_action),
        (driver.embed_frames(latents, normal, last, last_proprio), modulation),
        contexts or model.contexts(state.context, state.mask),
        state.layers,
        state.past,
        model.grid,
    )
    flat = model.heads.flat(outputs[:, -1])
    reward, success = model.heads.outcome(flat, model.pooled(state.context, state.mask))
    return WorldState(
        layers,
        state.past + latents.shape[1],
        latents[:, -1],
        proprio[:, -1],
        state.context,
        state.seed,
        reward,
        success.sigmoid(),
        FAR * model.heads.objects(flat)[:, : len(model.objects)],
        torch.zeros_like(state.errors) if errors is None else errors,
        state.mask,
        last[:, -1] if model.released else None,
    )
