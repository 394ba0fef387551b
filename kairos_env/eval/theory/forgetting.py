"""Measurements of the delta rule's memory in a trained world model: what it forgets, how fast, what predictions owe it.

A token multiplies the memory by ``alpha (I - beta k k^T)`` and adds a write that does not depend on the memory, so two
memories that read the same tokens differ after them by at most the product of the alphas times what they differed by
before (docs/theory.md).

Letters as in `kairos_env.records` and `kairos_env.world_model.gated_delta`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.eval import statistics
from kairos_env.eval.statistics import Interval
from kairos_env.records import Array, Episode, Observation
from kairos_env.runs import INITIAL_STATES
from kairos_env.world_model.gated_delta_net import GatedDeltaNet, GatedDeltaState
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import WorldState

Kept = Literal["all", "newest frame", "nothing"]
KEPT: tuple[Kept, ...] = ("all", "newest frame", "nothing")


@dataclass(frozen=True, eq=False)
class LatentClips:
    """Frames of one length for a model to remember.

    Args:
        state: the memory before them, of B clips.
        latents: (B, F, C, h, w), normalised.
        proprio: (B, F, P), physical units.
        actions: (B, F, A), physical units, each the one that leads to its frame.
        level: noise level that marks the frames, 0 for observed ones.
    """

    state: WorldState
    latents: Tensor
    proprio: Tensor
    actions: Tensor
    level: float = 0.0

    @property
    def frames(self) -> int:
        return self.latents.shape[1]


def unseen_episodes(model: WorldModel, count: int, decisions: int = 24) -> list[Episode]:
    """Plays episodes in the simulator, behaviours as `kairos record` mixes them, from states that no training used."""
    from kairos_env.collect.plans import RecordConfig, plan_episodes
    from kairos_env.collect.recorder import record_episode
    from kairos_env.sims.make import make_simulator

    config = RecordConfig("", episodes=count, decisions=decisions, first_initial_state=INITIAL_STATES["theory"].start)
    simulator = make_simulator(config.simulator, model.spec)
    try:
        return [record_episode(simulator, plan, config) for plan in plan_episodes(config, simulator)]
    finally:
        simulator.close()


def recorded_clips(model: WorldModel, episodes: Sequence[Episode], context: int = 1, seed: int = 0) -> LatentClips:
    """Recorded episodes, cut to the shortest: ``context`` observed frames are in the state, the others are the clip.

    Raises:
        SpecMismatch: episodes of another robot.
        ValueError: no episode, or one without a frame after the context.
    """
    frames = min((len(e) for e in episodes), default=0) + 1 - context
    if context < 1 or frames < 1:
        raise ValueError(f"needs episodes of at least {max(context, 1)} decisions, got lengths {[*map(len, episodes)]}")
    state = model.observe([e.observation(0) for e in episodes], seeds=range(seed, seed + len(episodes)))
    for t in range(context - 1):
        led = np.stack([e.actions[t] for e in episodes])
        state = model.observe([e.observation(t + 1) for e in episodes], state, led)
    steps = range(context, context + frames)
    latents = torch.stack([model.encode([e.observation(t) for e in episodes]) for t in steps], 1)
    proprio = torch.from_numpy(np.stack([e.proprio[context : context + frames] for e in episodes]))
    actions = torch.from_numpy(np.stack([e.actions[context - 1 : context - 1 + frames] for e in episodes]))
    return LatentClips(state, latents, proprio.to(model.device), actions.to(model.device))


def imagined_clips(
    model: WorldModel, starts: Sequence[Observation], frames: int, policy: bool, seed: int = 0
) -> LatentClips:
    """Frames imagined from real starts, under the model's own policy or under random actions."""
    start = state = model.observe(starts, seeds=range(seed, seed + len(starts)))
    space = model.spec.action_space
    space.seed(seed)
    films, proprio, actions = [], [], []
    for _ in range(frames):
        action = model.act(state)[:, 0] if policy else torch.from_numpy(np.stack([space.sample() for _ in starts]))
        out = model.step(state, action)
        state = out.state
        films.append(out.latent)
        proprio.append(out.proprio)
        actions.append(action.to(model.device))
    level = model.config.imagined_level
    return LatentClips(start, torch.stack(films, 1), torch.stack(proprio, 1), torch.stack(actions, 1), level)


def delta_inputs(model: WorldModel, clips: LatentClips) -> dict[int, Tensor]:
    """Inputs of each gated delta layer while the clips are remembered: layer -> (B, F L, D), tokens in order."""
    inputs: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, index=index: inputs.update({index: given[0]}))
        for index, layer in delta_layers(model).items()
    ]
    try:
        with torch.no_grad():
            lead = model.normalise_actions(clips.actions)
            model.remember(clips.state, clips.latents, clips.proprio, lead, clips.level)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def delta_layers(model: WorldModel) -> dict[int, GatedDeltaNet]:
    """The gated delta layers by their place in the video expert."""
    nets = (getattr(block, "gated_delta", None) for block in model.mixture.video_dit.blocks)
    return {index: net for index, net in enumerate(nets) if isinstance(net, GatedDeltaNet)}


def log_decay(layer: GatedDeltaNet, x: Tensor) -> Tensor:
    """log alpha of each token and head, ``-exp(A_log) softplus(a + dt_bias)``: x (..., D) -> (..., H) float64."""
    with torch.no_grad():
        step = F.softplus(layer.a_proj(x).double() + layer.dt_bias.double())
        return -layer.A_log.double().exp() * step


@dataclass(frozen=True)
class Forgetting:
    """Forgetting of one head.

    Args:
        layer, head: which one.
        token: alpha of a token: median, 99 % quantile, supremum. The supremum is the contraction factor rho.
        frame: the same of the product of a frame's alphas.
        lemma_3_fails: share of tokens with alpha + beta |k|^2 >= 1, where the published condition for a contraction
            does not hold (|k| = 1 here).
        half_life: frames after which half is left, at the mean log decay; bootstrapped over clips.
    """

    layer: int
    head: int
    token: tuple[float, float, float]
    frame: tuple[float, float, float]
    lemma_3_fails: float
    half_life: Interval


def forgetting(model: WorldModel, clips: LatentClips) -> list[Forgetting]:
    """Measures every head of every gated delta layer on the clips."""
    rows = []
    for index, x in delta_inputs(model, clips).items():
        layer = delta_layers(model)[index]
        log = log_decay(layer, x)
        with torch.no_grad():
            fails = (log.exp() + layer.b_proj(x).double().sigmoid() >= 1).double().mean((0, 1))
        g = log.unflatten(1, (clips.frames, -1)).cpu().numpy()  # (B, F, L, H)
        for head in range(layer.heads):
            token, frame = g[..., head], g[..., head].sum(2)
            rate = statistics.mean(-frame.mean(1) / math.log(2))  # halvings a frame, one value a clip
            life = Interval(1 / rate.value, 1 / rate.high, 1 / rate.low)
            rows.append(Forgetting(index, head, _levels(token), _levels(frame), fails[head].item(), life))
    return rows


def _levels(log: Array) -> tuple[float, float, float]:
    median, high, most = np.exp(np.quantile(log, [0.5, 0.99, 1.0]))
    return float(median), float(high), float(most)


@dataclass(frozen=True, eq=False)
class Divergence:
    """Two memories of a layer that started differently and read the same tokens.

    Args:
        error: (B, T, H) Frobenius norm of their difference after each token, as a share of what it was before.
        bound: (B, T, H) product of the alphas so far.
    """

    error: Array
    bound: Array


def divergence(model: WorldModel, clips: LatentClips, layer: int, tokens: int) -> Divergence:
    """Runs a layer over the clips from its own memory and from that of the neighbouring clip, in float64."""
    x = delta_inputs(model, clips)[layer][:, :tokens]
    net = copy.deepcopy(delta_layers(model)[layer]).double()
    own = clips.state.layers[layer].delta
    assert own is not None
    mine = own.map(lambda t: t.double())
    # The convolution's tail stays: it is the last three tokens, not the memory, and both must read the same.
    other = GatedDeltaState(mine.recurrent.roll(1, 0), mine.conv)
    before = (mine.recurrent - other.recurrent).norm(dim=(2, 3))
    errors = []
    with torch.no_grad():
        for token in x.double().split(1, 1):
            (_, mine), (_, other) = net(token, mine), net(token, other)
            errors.append((mine.recurrent - other.recurrent).norm(dim=(2, 3)) / before)
    bound = log_decay(net, x.double()).cumsum(1).exp()
    return Divergence(torch.stack(errors, 1).cpu().numpy(), bound.cpu().numpy())


def forget(state: WorldState) -> WorldState:
    """The state with the delta rule's memory emptied; windows, seeds and the newest frame stay."""
    layers = tuple(
        memory._replace(delta=memory.delta and memory.delta.map(torch.zeros_like)) for memory in state.layers
    )
    return dataclasses.replace(state, layers=layers)


def rollout_error(model: WorldModel, clips: LatentClips, kept: Kept = "all") -> Array:
    """Imagines recorded clips from their first state and actions; mean squared error of each frame's latent.

    Args:
        kept: what the delta rule's memory holds whenever a frame is predicted: everything so far, the newest frame
            only, or nothing. The windows are untouched.

    Returns:
        (B, F), in variances of the latents.
    """
    state = clips.state
    errors = []
    for t in range(clips.frames):
        action = clips.actions[:, t]
        before = state if kept == "all" else forget(state)
        out = model.step(before if kept == "nothing" else state, action)
        state = out.state
        if kept == "newest frame":
            with torch.no_grad():
                if model.config.one_pass:  # the pass that imagines a frame also remembers it
                    state = dataclasses.replace(out.state, layers=model.step(before, action).state.layers)
                else:
                    lead, level = model.normalise_actions(action), model.config.imagined_level
                    state = model.remember(before, out.latent[:, None], out.proprio[:, None], lead[:, None], level)
        errors.append((out.latent - clips.latents[:, t]).square().flatten(1).mean(1))
    return torch.stack(errors, 1).double().cpu().numpy()
