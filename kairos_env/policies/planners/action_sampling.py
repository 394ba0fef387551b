"""Random action sequences that a robot could mean: smooth in time, the gripper sticky and all-or-none.

Independent noise per step averages out and hardly moves an arm; noise that is correlated over time
explores further with as few candidates. The gripper of most robots is open or closed in practice, so its
sequences are binary and change seldom.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kairos_env.records import Array, RobotSpec

_NORMAL = NormalDist()


@dataclass(frozen=True)
class ActionDistribution:
    """A distribution over action sequences (Hor, A) that planners sample and refit.

    Continuous fields are Gaussian around ``mean`` with standard deviation ``std``; gripper fields are
    "high" with probability ``mean``. In both the noise is a first-order autoregression over time, so that
    every step has exactly the stated marginal and neighbouring steps are alike.

    Args:
        spec: the robot whose bounds every sample keeps.
        mean: (Hor, A), physical units; for gripper fields the probability of the upper bound.
        std: (Hor, A), physical units; unused for gripper fields.
        smoothness: correlation of neighbouring steps in [0, 1): 0 is white noise.
        stickiness: the same for gripper fields.
    """

    spec: RobotSpec
    mean: Array
    std: Array
    smoothness: float = 0.6
    stickiness: float = 0.9

    # A gripper never becomes certain: a state it has not tried must stay reachable in every round.
    least_doubt = 0.03

    @classmethod
    def around(
        cls,
        spec: RobotSpec,
        horizon: int,
        initial: Array | None = None,
        spread: float = 0.5,
        smoothness: float = 0.6,
        stickiness: float = 0.9,
    ) -> ActionDistribution:
        """A distribution around ``initial`` (Hor, A), or around the middle of the bounds.

        Args:
            spec: the robot.
            horizon: number of steps; ``initial`` is cut, or continued with `stay`, to that length.
            initial: (N, A) actions.
            smoothness: see the class.
            stickiness: see the class.
            spread: standard deviation as a fraction of half the range of each field.

        Raises:
            ValueError: a horizon < 1, a spread <= 0, a correlation outside [0, 1).
        """
        if horizon < 1 or spread <= 0 or not (0 <= smoothness < 1 and 0 <= stickiness < 1):
            raise ValueError(
                "an action distribution needs horizon >= 1, spread > 0, smoothness and stickiness in [0, 1); "
                f"got {horizon}, {spread}, {smoothness}, {stickiness}"
            )
        low, high, gripper = spec.action_low, spec.action_high, gripper_fields(spec)
        std = np.tile((spread * (high - low) / 2).astype(np.float32), (horizon, 1))
        if initial is None:
            mean = np.tile((low + high) / 2, (horizon, 1)).astype(np.float32)
            mean[:, gripper] = 0.5
            return cls(spec, mean, std, smoothness, stickiness)
        mean = continued(spec, initial, horizon)
        # What was planned before is likely but not settled.
        mean[:, gripper] = np.where(mean[:, gripper] > ((low + high) / 2)[gripper], 0.8, 0.2)
        return cls(spec, mean, std, smoothness, stickiness)

    def sample(self, count: int, rng: np.random.Generator) -> Array:
        """(count, Hor, A) float32 inside the bounds."""
        spec, (horizon, size) = self.spec, self.mean.shape
        gripper = gripper_fields(spec)
        correlation = np.where(gripper, self.stickiness, self.smoothness)
        fresh = rng.standard_normal((count, horizon, size))
        noise = np.empty_like(fresh)
        noise[:, 0] = fresh[:, 0]
        for t in range(1, horizon):
            noise[:, t] = correlation * noise[:, t - 1] + np.sqrt(1 - correlation**2) * fresh[:, t]
        actions = self.mean + self.std * noise
        if gripper.any():
            # Thresholded Gaussian noise: the marginal is exactly `mean`, and runs are long.
            chance = np.clip(self.mean[:, gripper], self.least_doubt, 1 - self.least_doubt)
            threshold = np.vectorize(_NORMAL.inv_cdf)(chance)
            actions[..., gripper] = np.where(
                noise[..., gripper] < threshold, spec.action_high[gripper], spec.action_low[gripper]
            )
        return np.clip(actions, spec.action_low, spec.action_high).astype(np.float32)

    def fused(self, prior: ActionDistribution, weight: float = 1.0) -> ActionDistribution:
        """The normalised product with ``prior``: each counts by its precision, so that the surer one decides.

        A Gaussian's precision is 1 / std^2; for gripper fields log-odds add up. (PRISM, arXiv 2606.07974, fuses a
        learned prior into the distribution of a planner like this.)

        Args:
            weight: of the prior's precision and log-odds; 0 leaves the distribution as it is.
        """
        own, other = self.std.astype(np.float64) ** -2, weight * prior.std.astype(np.float64) ** -2
        mean = (own * self.mean + other * prior.mean) / (own + other)
        gripper = gripper_fields(self.spec)
        chances = [np.clip(d.mean[:, gripper], self.least_doubt, 1 - self.least_doubt) for d in (self, prior)]
        odds = (chances[0] / (1 - chances[0])) * (chances[1] / (1 - chances[1])) ** weight
        mean[:, gripper] = odds / (1 + odds)
        std = (own + other) ** -0.5
        return dataclasses.replace(self, mean=mean.astype(np.float32), std=std.astype(np.float32))

    def mode(self) -> Array:
        """The mean sequence as actions (Hor, A): gripper fields at their likelier bound."""
        spec, gripper = self.spec, gripper_fields(self.spec)
        actions = np.array(self.mean)
        actions[:, gripper] = np.where(
            self.mean[:, gripper] >= 0.5, spec.action_high[gripper], spec.action_low[gripper]
        )
        return np.clip(actions, spec.action_low, spec.action_high).astype(np.float32)

    def fit(
        self, actions: Array, weights: Array | None = None, momentum: float = 0.1, least_spread: float = 0.05
    ) -> ActionDistribution:
        """Refitted to ``actions`` (K, Hor, A) with weights (K,) that sum to 1 (equal if None).

        Args:
            actions: physical units.
            weights: non-negative.
            momentum: how much of the present distribution is kept, in [0, 1).
            least_spread: floor of the standard deviation as a fraction of half the range, so that later
                rounds still look around.
        """
        spec, gripper = self.spec, gripper_fields(self.spec)
        share = np.full(len(actions), 1 / len(actions)) if weights is None else weights
        values = np.array(actions, np.float64)
        half = (spec.action_high - spec.action_low) / 2
        values[..., gripper] = values[..., gripper] > (spec.action_low + half)[gripper]
        mean = np.einsum("k,kha->ha", share, values)
        std = np.sqrt(np.einsum("k,kha->ha", share, (values - mean) ** 2))
        mean = momentum * self.mean + (1 - momentum) * mean
        std = np.maximum(momentum * self.std + (1 - momentum) * std, least_spread * half)
        return dataclasses.replace(self, mean=mean.astype(np.float32), std=std.astype(np.float32))


def gripper_fields(spec: RobotSpec) -> Array:
    """(A,) bool: which action fields open and close a gripper."""
    return np.array([f.kind == "gripper" for f in spec.action], bool)


def stay(spec: RobotSpec, last: Array) -> Array:
    """The action (A,) that keeps the robot where ``last`` (A,) leaves it: no further motion for delta
    fields, the same target for all others.
    """
    delta = np.array([f.kind.startswith("delta") for f in spec.action], bool)
    return np.clip(np.where(delta, 0, last), spec.action_low, spec.action_high).astype(np.float32)


def continued(spec: RobotSpec, actions: Array, horizon: int) -> Array:
    """``actions`` (N, A) cut, or continued by staying, to (horizon, A)."""
    actions = spec.check_action(actions)
    missing = horizon - len(actions)
    if missing <= 0:
        return actions[:horizon].copy()
    return np.concatenate([actions, np.tile(stay(spec, actions[-1]), (missing, 1))])
