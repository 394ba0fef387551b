"""Expected errors, compared with those that are made on held-out episodes.

While a model learns, its errors shrink, and it rolls out for a few decisions only. What it expects of its errors at the
end of training ranks them well, but is too much at first and too little later. Two numbers for each error, a factor and
a power, make up for it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from kairos_env.records import Array, Episode
from kairos_env.world_model.interface import ModelStatistics
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import Rollout

DECISIONS = 50  # how far is imagined
_ROUNDS, _LEAST = 200, 100  # of the fit; errors that it takes
_SMALL = 1e-6  # logarithms are taken of errors above this


def calibrate(model: WorldModel, episodes: Iterable[Episode], batch: int = 16) -> ModelStatistics:
    """The model's statistics with the calibration of its expected errors.

    Args:
        model: expects its errors; of another the statistics come back as they are.
        episodes: held out, with the pictures of all cameras. Errors that too few of them tell are expected as the
            model's statistics had it, if they do, else as the weights have it.
        batch: episodes imagined at once; no more are held in memory.
    """
    plain = dataclasses.replace(model.statistics, error_offset=(), error_slope=())
    if not model.config.one_pass:
        return plain
    before, rows, coming = model.statistics, list[tuple[Array, Array]](), iter(episodes)
    model.set_statistics(plain)
    try:
        while chosen := list(itertools.islice(coming, batch)):
            rows += _errors(model, chosen)
    finally:
        model.set_statistics(before)
    if not rows:
        return before
    expected, made = (np.concatenate(column) for column in zip(*rows, strict=True))
    known = list(zip(before.error_offset, before.error_slope, strict=True)) or [(0.0, 1.0)] * expected.shape[1]
    fits = [fit(expected[:, i], made[:, i]) or known[i] for i in range(expected.shape[1])]
    offsets, slopes = zip(*fits, strict=True)
    return dataclasses.replace(plain, error_offset=offsets, error_slope=slopes)


def _errors(model: WorldModel, episodes: Sequence[Episode]) -> list[tuple[Array, Array]]:
    """Expected and made errors (steps, E) of each episode, imagined from its first frame on under its actions."""
    state = model.observe([episode.observation(0) for episode in episodes], seeds=range(len(episodes)))
    length = min(DECISIONS, max(map(len, episodes)))
    rollout = model.imagine(state, np.stack([e.actions[np.arange(length) % len(e)] for e in episodes]))
    found = []
    for place, episode in enumerate(episodes):
        steps = min(length, len(episode))
        expected = rollout.errors[place, :steps].double().cpu().numpy()
        found.append((expected, true_errors(model, episode, rollout, place, steps)))
    return found


def fit(expected: Array, made: Array) -> tuple[float, float] | None:
    """Offset and slope under which log(made) is expected best: as standard deviations of normal distributions.

    A generalised linear model of squared errors with logarithmic link, by Fisher scoring (McCullagh and Nelder 1989).

    Args:
        expected, made: (N,) errors >= 0; made ones may be nan. None if fewer than `_LEAST` are known.
    """
    known = np.isfinite(made)
    if known.sum() < _LEAST:
        return None
    x, squared = np.log(np.maximum(expected[known], _SMALL)), np.square(made[known])
    design = np.stack([np.ones_like(x), x - x.mean()], 1)
    normal = np.linalg.pinv(design.T @ design)
    weights = np.array([math.log(max(squared.mean(), _SMALL**2)), 0.0])  # of log(squared)
    for _ in range(_ROUNDS):
        surprise = squared * np.exp(-design @ weights) - 1
        weights = weights + 0.5 * np.clip(normal @ (design.T @ surprise), -1, 1)
    slope = max(0.0, 0.5 * float(weights[1]))  # expectations that rank errors backwards say nothing
    level = weights[0] if weights[1] > 0 else math.log(max(squared.mean(), _SMALL**2))
    return 0.5 * float(level) - slope * float(x.mean()), slope


def true_errors(model: WorldModel, episode: Episode, rollout: Rollout, place: int, steps: int) -> Array:
    """(steps, E) distances of hand and objects, and of the picture, in the units of `WorldModel.error_names`."""
    hand, now = model.spec.hand_fields, slice(1, steps + 1)
    proprio = rollout.proprio[place, :steps].cpu()
    recorded = torch.as_tensor(episode.proprio[now])
    if hand:
        columns = [(proprio - recorded)[:, hand].norm(dim=-1).numpy()]
    else:
        unlike = model.normalise_proprio(proprio) - model.normalise_proprio(recorded)
        columns = [unlike.square().mean(-1).sqrt().numpy()]
    for number, name in enumerate(model.objects):
        places = episode.labels.get(f"{name}_position")
        found = rollout.objects[place, :steps, number].cpu().numpy()
        columns.append(
            np.full(steps, math.nan) if places is None else np.linalg.norm(found - np.asarray(places)[now], axis=-1)
        )
    latents = torch.cat([model.encode([episode.observation(t)]) for t in range(1, steps + 1)])
    unlike = rollout.latents[place, :steps] - latents
    columns.append(unlike.square().mean((1, 2, 3)).sqrt().cpu().numpy())
    return np.stack(columns, -1).astype(np.float64)
