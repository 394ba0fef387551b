"""What an imagined future is worth, and how imagined parts become one future."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kairos_env.records import Array, RobotSpec

TOUCHING, APART = 0.05, 0.07  # metres between hand and object: surely able to move it, surely not
STILL = 0.01  # metres in a step: the read-out of a resting object wavers so much


@dataclass(frozen=True)
class Objective:
    """The discounted sum of an imagined future's rewards.

    Success is absorbing in the model's own reward: after it, every step counts as reward 1, whatever the model
    imagines next, because the real episode ends there. A ``reward`` of one's own replaces all of that: only what it
    says counts, and what `success_value` and `uncertainty_penalty` ask for.

    Args:
        discount: weight of a reward one step later.
        success_value: added, discounted, for the probability of having succeeded within the horizon; None is 1 for
            the model's own reward, 0 for another one.
        terminal_weight: the last step's reward counts this many times more, standing for all the steps
            behind the horizon.
        uncertainty_penalty: subtracted per unit of `accumulated_uncertainty` and step: do not trust plans
            that lead where the model does not know.
        reward: computes (B, Hor) rewards from the rollout (a cost: minus it) in place of the model's own; a
            `GoalImageReward` is one.

    Example:
        >>> def near(rollout): return -(rollout.proprio[..., :3] - target).norm(dim=-1)
        >>> PlannerPolicy(model, cem, objective=Objective(reward=near))  # doctest: +SKIP
    """

    discount: float = 0.95
    success_value: float | None = None
    terminal_weight: float = 0.0
    uncertainty_penalty: float = 0.0
    reward: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount is {self.discount}; it takes a number above 0, at most 1")
        for name in ("terminal_weight", "uncertainty_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes a number >= 0")

    def __call__(self, rollout: Any) -> Array:
        """Values (B,) of a rollout with reward, success and uncertainty (B, Hor)."""
        reward = as_array(rollout.reward if self.reward is None else self.reward(rollout))
        success = as_array(rollout.success)
        if reward.shape != success.shape:
            raise ValueError(f"the reward of a rollout has shape {reward.shape}, expected (B, Hor) = {success.shape}")
        return self.value(reward, success, accumulated_uncertainty(rollout))

    def value(self, reward: Array, success: Array, uncertainty: Array) -> Array:
        """Arrays (K, Hor) -> values (K,)."""
        earned, success = np.asarray(reward, np.float64), np.clip(np.asarray(success, np.float64), 0, 1)
        still_open = np.cumprod(1 - success, axis=1)
        bonus = self.success_value
        if self.reward is None:
            earned = still_open * earned + (1 - still_open)
            bonus = 1.0 if bonus is None else bonus
        earned = earned - self.uncertainty_penalty * np.asarray(uncertainty, np.float64)
        weight = self.discount ** np.arange(earned.shape[1])
        total = earned @ weight + self.terminal_weight * weight[-1] * earned[:, -1]
        if bonus:
            newly_succeeded = -np.diff(still_open, axis=1, prepend=1.0)
            total = total + bonus * (newly_succeeded @ weight)
        return total


def accumulated_uncertainty(rollout: Any) -> Array:
    """How wrong each imagined step may be, (B, Hor): what went wrong before stays wrong.

    In metres, the expected ``errors`` of the hand and of the objects together, where the model has learned to tell
    them; they grow along a rollout by themselves. Else the sum of ``uncertainty`` up to the step, in its unit.
    """
    errors = getattr(rollout, "errors", None)
    if errors is None:
        return np.cumsum(as_array(rollout.uncertainty), axis=1)
    return as_array(errors)[..., :-1].sum(-1)  # the last one is of the picture


def untouched_motion(rollout: Any, spec: RobotSpec) -> Array:
    """Metres, (B, Hor), that objects are imagined to move in each step while the hand is nowhere near them.

    No future is like that: the model has lost an object, most often where the arm hides it from the camera.

    Raises:
        ValueError: a model that reads no objects, or a robot whose proprioception does not hold its hand's position.
    """
    objects = getattr(rollout, "objects", None)
    if objects is None or objects.shape[-2] == 0 or not spec.hand_fields:
        raise ValueError(
            f"untouched_penalty needs a model that reads objects, and where the hand of {spec.name!r} is: leave it at 0"
        )
    objects, hand = as_array(objects), as_array(rollout.proprio)[:, :, None, spec.hand_fields]  # (B, Hor, O or 1, 3)
    moved = np.linalg.norm(np.diff(objects, axis=1), axis=-1)
    away = [np.linalg.norm(objects[:, :-1] - where, axis=-1) for where in (hand[:, :-1], hand[:, 1:])]
    untouched = np.clip((np.minimum(*away) - TOUCHING) / (APART - TOUCHING), 0, 1)
    lost = (np.maximum(moved - STILL, 0) * untouched).sum(-1)
    return np.pad(lost, ((0, 0), (1, 0)))


def joined(parts: Sequence[Any]) -> Any:
    """Rollouts of consecutive steps, dataclasses of tensors (B, Hor, ...) and a state, as one."""
    if len(parts) == 1:
        return parts[0]
    import torch

    def along(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return torch.cat(values, 1) if isinstance(values[0], torch.Tensor) else values[-1]

    return dataclasses.replace(parts[-1], **{field.name: along(field.name) for field in dataclasses.fields(parts[-1])})


def as_array(values: Any) -> Array:
    """A tensor of any device, or an array, as a numpy array; torch is not imported for it."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
