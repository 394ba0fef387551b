"""How far imagination may be believed: expected errors, starts unlike the training data, and measured horizons.

A model of one pass expects its errors, which grow along a rollout (`WorldModel.error_names`). They are calibrated for
what resembles its training data. How much a real observation does, its tokenizer tells: pictures unlike those that it
was trained on come back changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kairos_env.records import Array, Observation

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel
    from kairos_env.world_model.state import WorldState

TOLERANCE = 0.03
"""Metres: hand and objects that are imagined nearer to where they are than that can be acted on."""
_LEAST_SPREAD = 0.2  # standard deviations of a latent; differences of its mean below that say nothing
_FAINT = 5.0  # grey levels; a picture of less contrast is taken to have so much


class Familiarity:
    """How much real observations resemble a model's training data, as its tokenizer sees it.

    Two measures are compared with the real observations that ship with the model (`WorldModel.starts`), held-out ones
    of the training data; the larger ratio counts. One is the share of a picture's contrast that encoding and decoding
    loses, largest of all cameras; its unit is the most that a shipped observation loses. A tokenizer that has seen many
    lights codes darker pictures than those as well as any, so the other is how far the mean of the latent lies from
    theirs (Mahalanobis distance); its unit is the distance that one in ten of them exceeds.

    Args:
        model: a small model that ships observations. Of any other nothing is known, and every observation is familiar.
    """

    def __init__(self, model: WorldModel) -> None:
        self.model = model
        self.known = len(model.starts) > 1 and not model.released

    def strangeness(self, observations: Sequence[Observation], latents: torch.Tensor) -> Array:
        """How many times stranger each observation is than those of the training data: (B,) float64, >= 1.

        Args:
            observations: B of them.
            latents: (B, C, h, w), what the model made of their pictures.
        """
        if not self.known:
            return np.ones(len(observations))
        usual = self._usual
        lost, apart = lost_contrast(self.model, observations, latents), _apart(_means(latents), usual.means)
        return np.maximum(1.0, np.maximum(lost / usual.lost, apart / usual.apart))

    @cached_property
    def _usual(self) -> _Usual:
        starts = list(self.model.starts)
        latents = self.model.encode(starts)
        lost, means = lost_contrast(self.model, starts, latents), _means(latents)
        return _Usual(max(0.01, float(lost.max())), max(1.0, float(np.quantile(_apart(means, means), 0.9))), means)


class _Usual(NamedTuple):
    """The shipped observations: the most that is lost, the distance that a tenth exceeds, latent means (N, C)."""

    lost: float
    apart: float
    means: Array


def _apart(means: Array, usual: Array) -> Array:
    """Mahalanobis distance (B,) of latent means (B, C) from usual ones (N, C)."""
    spread = np.cov(usual.T) + _LEAST_SPREAD**2 * np.eye(usual.shape[1])
    away = means - usual.mean(0)
    return np.asarray(np.sqrt(np.einsum("bc,bc->b", away, np.linalg.solve(spread, away.T).T)))


def lost_contrast(model: WorldModel, observations: Sequence[Observation], latents: torch.Tensor) -> Array:
    """Share of the contrast of each observation's pictures that their latents (B, C, h, w) lose: (B,), >= 0."""
    lost = []
    for name, decoded in model.decode(latents).items():
        true = np.stack([o.images[name] for o in observations]).astype(np.float64)
        error = np.sqrt(np.square(decoded - true).mean((1, 2, 3)))
        contrast = np.sqrt(true.var((1, 2)).mean(-1))
        lost.append(error / np.maximum(contrast, _FAINT))
    return np.max(lost, axis=0)


def _means(latents: torch.Tensor) -> Array:
    """Mean over all cells of latents (B, C, h, w): float64 (B, C)."""
    return latents.mean((2, 3)).double().cpu().numpy()


def chance_within(error: float, distance: float = TOLERANCE) -> float:
    """Probability that a position is off by less than ``distance``.

    Args:
        error: expected root mean squared error of the position, in the unit of ``distance``; the three coordinates are
            taken to be normal, with a third of the mean square each.
        distance: > 0.
    """
    x = math.sqrt(1.5) * distance / max(error, 1e-9)
    # the chi-squared distribution of three squares, at 2 x^2
    return math.erf(x) - 2 / math.sqrt(math.pi) * x * math.exp(-x * x)


class Trust:
    """What ``info`` and pages say of how far a model is to be believed, see `WorldModelEnv`.

    Args:
        model: any; what is not known of it is not said.
    """

    def __init__(self, model: WorldModel) -> None:
        self.model, self.familiarity = model, Familiarity(model)
        self.metric = expects_positions(model)

    def uncertainty(self, state: WorldState, strangeness: Array) -> list[float]:
        """The largest expected error of a position in each of B newest frames, times how strange the starts were.

        0 of models that expect none of positions.
        """
        positions = state.errors[:, :-1]
        largest = positions.amax(1) if positions.shape[1] else positions.new_zeros(len(positions))
        return list((largest.double().cpu().numpy() * strangeness).tolist())

    def columns(self, uncertainty: Sequence[float], strangeness: Array) -> dict[str, Array]:
        """``familiarity`` and ``trust``, (B,) each, as far as there are any, and ``uncertainty``."""
        told = {}
        if self.familiarity.known:
            told["familiarity"] = 1 / strangeness
        if self.metric:
            told["trust"] = np.array([chance_within(error) for error in uncertainty]) / strangeness
        return told | {"uncertainty": np.array(uncertainty)}


def expects_positions(model: WorldModel) -> bool:
    """Whether the model's uncertainty is an error of positions in metres."""
    return len(model.error_names) > 1 and bool(model.spec.hand_fields)


def horizon_of(task: str, horizons: Mapping[str, int]) -> float:
    """Decisions up to which an imagined episode may be believed; infinite where nobody measured any.

    Args:
        task: name; one that was not measured, or words that are no task, get the shortest horizon of all.
        horizons: `WorldModel.horizons`.
    """
    if not horizons:
        return np.inf
    return max(1, horizons.get(task, min(horizons.values())))
