"""Rewards of imagined steps.

A reward is a function of what the model imagined: ``StepOutput -> (B,)``. `make_reward` turns what users write (a
form of the model's own reward, a function, a goal image) into one; `reward_form` says what a decision earns by it.
Planners take the same functions, of a whole `Rollout`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.sims.reward import RewardForm, check_reward_form

if TYPE_CHECKING:
    import torch

    from kairos_env.world_model.model import WorldModel
    from kairos_env.world_model.state import Rollout, StepOutput

RewardFunction = Callable[["StepOutput"], Any]
"""An imagined step -> reward (B,), a tensor or an array."""

RewardChoice = str | RewardFunction | Array | Mapping[str, Array] | Observation


def make_reward(reward: RewardChoice, model: WorldModel) -> RewardFunction:
    """The reward function that ``reward`` means.

    Args:
        reward: a `RewardForm` (all mean the model's reward head, for the instruction that the state carries), a
            function ``StepOutput -> (B,)``, or a goal image: uint8 (H, W, 3) of the only camera, a
            mapping camera -> image, or an `Observation`.
        model: encodes a goal image.

    Raises:
        ValueError: another string, or a goal image that is not the model's camera image.
        TypeError: anything else.
    """
    if isinstance(reward, str):
        reward_form(reward)
        return unknown_reward if "reward" in model.untrained else dense_reward
    if isinstance(reward, np.ndarray | Mapping | Observation):
        return GoalImageReward(model, reward)
    if callable(reward):
        return reward
    raise TypeError(
        f"reward is a {type(reward).__name__}; use 'shaped', 'sparse' or 'dense', a function StepOutput -> (B,), or a "
        "goal image (uint8 array, mapping camera -> image, or Observation)"
    )


def reward_form(reward: RewardChoice) -> RewardForm:
    """What a decision earns by ``reward``: one of one's own is taken as it is.

    Raises:
        ValueError: a string that names no form.
    """
    if not isinstance(reward, str):
        return "dense"
    if reward == "learned":
        raise ValueError("the reward 'learned' is called 'dense' now; the default, 'shaped', pays for success")
    try:
        return check_reward_form(reward)
    except ValueError as error:
        raise ValueError(f"{error}; or give a function, or a goal image") from None


def dense_reward(out: StepOutput) -> torch.Tensor:
    """The model's own reward head, (B,), nominally 0 ... 1."""
    return out.reward


def unknown_reward(out: StepOutput) -> torch.Tensor:
    """Zero, (B,): of a model that nobody taught what a state is worth."""
    return out.reward * 0


class GoalImageReward:
    """Nearness of the imagined frame to a goal image: minus their root-mean-square latent distance, <= 0.

    The distance is in the tokenizer's space, so a goal costs no pixels at each step. It looks at the whole
    picture: a goal taken with the arm somewhere else pulls at the arm first.

    Args:
        model: encodes the goal.
        goal: uint8 (H, W, 3) of the only camera, mapping camera -> image, or an `Observation`.
    """

    def __init__(self, model: WorldModel, goal: Array | Mapping[str, Array] | Observation) -> None:
        observation = _goal_observation(goal, model.spec).check(model.spec)
        self.latent = model.encode([observation])[0]  # (C, h, w)

    def __call__(self, out: StepOutput | Rollout) -> torch.Tensor:
        """(B,) of a step, (B, Hor) of a rollout; 0 at the goal."""
        latent = out.latent if hasattr(out, "latent") else out.latents
        return -(latent - self.latent).square().flatten(-3).mean(-1).sqrt()


def _goal_observation(goal: Array | Mapping[str, Array] | Observation, spec: RobotSpec) -> Observation:
    if isinstance(goal, Observation):
        return goal
    if isinstance(goal, np.ndarray):
        if len(spec.cameras) != 1:
            names = ", ".join(camera.name for camera in spec.cameras)
            raise ValueError(f"a goal image alone is ambiguous: {spec.name!r} has the cameras {names}; pass a mapping")
        goal = {spec.cameras[0].name: goal}
    # Only the pictures are compared; any legal proprioception makes the record complete.
    middle = np.array([(field.low + field.high) / 2 for field in spec.proprio], np.float32)
    return Observation(dict(goal), middle)
