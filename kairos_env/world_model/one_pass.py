"""The one-pass step: the pass that denoises a frame is also what is remembered of it.

Every frame has a noise level of its own: 0 was observed, 1 is imagined from nothing but what came before, levels
between are further denoising steps. Training knows all three, side by side in a clip (diffusion forcing, Chen et al.
2024), so that imagining costs one pass a frame and no second one to read what was imagined.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kairos_env.world_model.features import FAR
from kairos_env.world_model.flow import expand, shown, to_sample
from kairos_env.world_model.heads import CERTAIN, LOST
from kairos_env.world_model.interface import PROPRIO_NOISE, VIDEO_NOISE
from kairos_env.world_model.mixture import Contexts, Memory
from kairos_env.world_model.reader import Sighting
from kairos_env.world_model.sampling import Parts, denoise, towards
from kairos_env.world_model.state import LATENT_LIMIT, StepOutput, WorldState

if TYPE_CHECKING:
    from kairos_env.world_model.streaming import StreamingPasses


@dataclass(frozen=True)
class Estimate:
    """What is believed of frames, normalised: (B, F, ...) each.

    Args:
        latents: (B, F, C, h, w).
        proprio: (B, F, P).
        objects: (B, F, O, 3) decimetres.
        errors: (B, F, E) logarithm of the expected mean squared errors, in squares of the units above.
    """

    latents: Tensor
    proprio: Tensor
    objects: Tensor
    errors: Tensor


@dataclass(frozen=True)
class Frames:
    """Frames as a pass takes them: (B, F, ...) each.

    Args:
        latents, proprio: normalised, at noise level sigma.
        sigma: (B, F), 0 for observed frames.
        actions: (B, F, A) normalised, that led to them; has_action: (B, F), 0 where there was none.
        before: the frame before each.
        seen: what `StreamingPasses.see` reads in the observed frames; None where none is observed.
    """

    latents: Tensor
    proprio: Tensor
    sigma: Tensor
    actions: Tensor
    has_action: Tensor
    before: Estimate
    seen: Sighting | None = None


class Known(NamedTuple):
    """What follows from the time and the noise level of frames alone, before anything is known of them.

    Both are angles of large numbers, exact in float64 only, which not every engine has.

    Args:
        table: their rotations, cos and sin (B, F, L, K / 2).
        level: (B, F, D), see `TimeEmbedding.embed_level`.
    """

    table: tuple[Tensor, Tensor]
    level: Tensor


def pass_frames(
    model: StreamingPasses,
    frames: Frames,
    contexts: Contexts,
    memory: Memory,
    past: Tensor,
    known: Known | None = None,
    draw: bool = True,
) -> tuple[Estimate, Tensor, Memory]:
    """F frames through the video expert: what they are, what the heads read (B, F, n), and the memory after them.

    Of observed frames, pictures and proprioception come back as they were given. ``known``: if it is already.
    ``draw`` False: none is imagined, and none needs a picture.
    """
    dit, kind = model.mixture.video_dit, model.config.prediction
    before, sigma = frames.before, frames.sigma
    imagined, told = sigma > 0, told_scene(frames)
    features = measured(model, told.proprio, told.objects)
    latents, proprio = shown(kind, frames.latents, sigma), shown(kind, frames.proprio, sigma)
    time, modulation = dit.condition(sigma, frames.actions, frames.has_action, known and known.level)
    tokens = dit.embed_frames(latents, proprio, before.latents, before.proprio, scene(features, told.errors))
    outputs, memory = model.mixture.frames(
        None, (tokens, modulation), contexts, memory, past, model.grid, table=known and known.table
    )
    out, change = (x.float() for x in dit.read(outputs, time, model.latent_shape[1]))
    if kind == "sample":
        out, change = out + before.latents, change + before.proprio
    flat = model.heads.flat(outputs)
    objects = told.objects + model.heads.objects(flat)
    proprio = torch.where(expand(imagined, change), to_sample(kind, change, frames.proprio, sigma), frames.proprio)
    picture = frames.latents
    if draw:
        draft, shows = to_sample(kind, out, frames.latents, sigma), outputs[..., 1 + dit.objects :, :]
        # what has happened is for others to learn: no picture is a reason to believe it
        found = measured(model, proprio.detach(), objects.detach())
        drawn = model.renderer(draft, before.latents, shows, features, found)
        picture = torch.where(expand(imagined, drawn), drawn, frames.latents)
    errors = model.heads.errors(flat.detach()).clamp(CERTAIN, LOST)
    seen = torch.ones_like(errors[0, 0])  # of an observed frame only the objects are uncertain
    seen[[0, -1]] = 0
    return (
        Estimate(
            picture,
            proprio,
            objects,
            torch.where(imagined.unsqueeze(-1) | (seen > 0), errors, torch.full_like(errors, CERTAIN)),
        ),
        flat,
        memory,
    )


def told_scene(frames: Frames) -> Estimate:
    """What is known of each scene before the pass: what was before an imagined frame, what an observed one shows."""
    before, seen = frames.before, frames.seen
    if seen is None:
        return before
    certain = torch.full_like(before.errors[..., :1], CERTAIN)
    observed = Estimate(frames.latents, frames.proprio, seen.objects, torch.cat([certain, seen.errors, certain], -1))

    def choose(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(expand(frames.sigma > 0, one), one, other)

    return Estimate(*(choose(getattr(before, f.name), getattr(observed, f.name)) for f in fields(Estimate)))


def measured(model: StreamingPasses, proprio: Tensor, objects: Tensor) -> Tensor:
    """Features (B, F, K) of normalised proprioception and of objects in decimetres."""
    return model.features(model.physical_proprio(proprio), FAR * objects)


def scene(features: Tensor, errors: Tensor) -> Tensor:
    """What a frame is told of its scene, beside the picture: (B, F, K + E + 1)."""
    return torch.cat([features, errors / 5, torch.ones_like(errors[..., :1])], -1)


def estimate_of(model: StreamingPasses, state: WorldState) -> Estimate:
    """The newest frame of a state, F = 1."""
    own = state.errors if state.own_errors is None else state.own_errors
    errors = (2 * (own / model.error_scale).clamp_min(1e-6).log()).clamp(CERTAIN, LOST)
    values = state.latent, model.normalise_proprio(state.proprio), state.objects / FAR, errors
    return Estimate(*(x[:, None] for x in values))


def imagine_frame(
    model: StreamingPasses,
    state: WorldState,
    action: Tensor,
    steps: int,
    known: Known | None = None,
) -> StepOutput:
    """The frame after a normalised action (B, A), and the memory of it; ``known`` as in `pass_frames`."""
    before, memory = estimate_of(model, state), state.layers
    passed: tuple[Estimate, Tensor, Memory]
    contexts = model.mixture.read_context(state.context, state.mask, action=False)
    has_action = torch.ones_like(before.latents[:, :, 0, 0, 0])

    def predict(data: Parts, level: tuple[float, ...]) -> Parts:
        nonlocal passed
        latent, proprio = data
        frames = Frames(latent, proprio, has_action * level[0], action[:, None], has_action, before)
        passed = pass_frames(model, frames, contexts, memory, state.past, known)
        return passed[0].latents, passed[0].proprio

    levels = model.interface.levels(steps, VIDEO_NOISE)
    noise = torch.zeros_like(before.latents), torch.zeros_like(before.proprio)
    if steps > 1 or model.config.prediction != "sample":
        noise = tuple(  # type: ignore[assignment]
            model.interface.noise(state.seed, state.past, stream, x.shape[2:])[:, None]
            for x, stream in zip(noise, (VIDEO_NOISE, PROPRIO_NOISE), strict=True)
        )
    latents, proprio = denoise(predict, noise, [levels] * 2, towards)
    estimate, flat, layers = passed
    # not clipped when non-finite: NaN must stay visible to whoever steps
    estimate = Estimate(latents.clamp(-LATENT_LIMIT, LATENT_LIMIT), proprio, estimate.objects, estimate.errors)
    after = state_after(model, state, estimate, flat, layers)
    uncertainty = after.errors[:, :-1].amax(1)
    return StepOutput(
        after, after.latent, after.proprio, after.reward, after.success, uncertainty, after.objects, after.errors
    )


def remember(
    model: StreamingPasses, state: WorldState, latents: Tensor, proprio: Tensor, actions: Tensor | None
) -> WorldState:
    """Appends F observed frames: latents (B, F, C, h, w) normalised, proprio (B, F, P) physical, actions normalised."""
    has_action = latents.new_full(latents.shape[:2], float(actions is not None))
    if actions is None:
        actions = latents.new_zeros(*latents.shape[:2], model.spec.action_dim)
    first, last = state.past == 0, estimate_of(model, state)
    normal = model.normalise_proprio(proprio)
    has_action[:, 0] = has_action[:, 0] * ~first
    # a first frame is its own predecessor: there is nothing that changed
    previous = [
        torch.cat([torch.where(expand(first, now[:, :1]), now[:, :1], old), now[:, :-1]], 1)
        for now, old in ((latents, last.latents), (normal, last.proprio))
    ]
    frames = latents.shape[1]
    before = Estimate(*previous, *(x.expand(-1, frames, *x.shape[2:]) for x in (last.objects, last.errors)))
    sigma, seen = torch.zeros_like(has_action), model.see(latents, normal)
    given = Frames(latents, normal, sigma, actions, has_action, before, seen)
    contexts = model.mixture.read_context(state.context, state.mask, action=False)
    estimate, flat, layers = pass_frames(model, given, contexts, state.layers, state.past, draw=False)
    return state_after(model, state, estimate, flat, layers, proprio[:, -1])


def state_after(
    model: StreamingPasses,
    state: WorldState,
    estimate: Estimate,
    flat: Tensor,
    layers: Memory,
    proprio: Tensor | None = None,
) -> WorldState:
    """The state at the last frame of a pass; ``proprio`` (B, P) physical where it was observed."""
    observed = proprio is not None
    if proprio is None:
        proprio = model.physical_proprio(estimate.proprio[:, -1])
    objects = FAR * estimate.objects[:, -1]
    features = model.features(proprio, objects)
    reward, success = model.heads.outcome(flat[:, -1], model.pooled(state.context, state.mask), features)
    own = (0.5 * estimate.errors[:, -1]).exp() * model.error_scale
    errors = model.calibrated(own)
    return WorldState(
        layers,
        state.past + estimate.latents.shape[1],
        estimate.latents[:, -1].float(),
        proprio,
        state.context,
        state.seed,
        reward,
        success.sigmoid(),
        objects,
        errors if observed else torch.maximum(errors, state.errors),
        state.mask,
        own_errors=own,
    )
