"""Settings of imagined episodes that are plain values, and what is legal for each."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from kairos_env.env.initial_observations import Start
from kairos_env.env.instructions import UnknownInstructions
from kairos_env.env.reward import RewardChoice
from kairos_env.env.view import ObservationForm

Horizon = int | None | Literal["measured"]


class ImaginationOptions(TypedDict, total=False):
    """The keyword arguments that `WorldModelEnv` and `WorldModelVectorEnv` hand to `Imagination`."""

    task: str | None
    start: Start
    reward: RewardChoice
    steps: int | None
    device: str
    max_episode_steps: int | None
    observation: ObservationForm
    success_threshold: float | None
    success_ends: bool
    uncertainty_limit: float | None
    horizon: Horizon
    unknown_instructions: UnknownInstructions


def check_count(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a whole number >= 1, or None."""
    if value is not None and not is_count(value):
        raise ValueError(f"{name} is {value!r}; use a whole number >= 1, or None")


def check_horizon(value: Any) -> None:
    """Raises ValueError unless ``value`` is a `Horizon`."""
    if value is not None and not (isinstance(value, str) and value == "measured") and not is_count(value):
        raise ValueError(f"horizon is {value!r}; use 'measured', a whole number >= 1, or None")


def check_judgement(success_threshold: Any, success_ends: Any, uncertainty_limit: Any, unknown: Any) -> None:
    """Raises ValueError unless `Imagination` can judge by these."""
    if success_threshold is not None and not (_is_number(success_threshold) and 0 < success_threshold <= 1):
        raise ValueError(f"success_threshold is {success_threshold!r}; use a probability in (0, 1], or None")
    if not isinstance(success_ends, bool):
        raise ValueError(f"success_ends is {success_ends!r}; use True or False")
    if uncertainty_limit is not None and not (_is_number(uncertainty_limit) and uncertainty_limit > 0):
        raise ValueError(f"uncertainty_limit is {uncertainty_limit!r}; use a number > 0, or None")
    if unknown not in ("refuse", "accept"):
        raise ValueError(f"unknown_instructions is {unknown!r}; use 'refuse' or 'accept'")


def check_render_mode(render_mode: str | None) -> None:
    """Raises ValueError unless frames can be rendered that way."""
    if render_mode not in (None, "rgb_array"):
        raise ValueError(
            f"render_mode {render_mode!r} is unknown here; use 'rgb_array'. For a window, "
            "gym.make(..., render_mode='human') (needs pygame) or `kairos play` (a browser page)"
        )


def is_count(value: Any) -> bool:
    """Whether ``value`` is a whole number >= 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
