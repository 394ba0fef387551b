"""What a decision earns: success is absorbing, so that solving a task earns more than staying just short of it.

Simulators and models judge a state by its dense reward, 0 ... 1, and by success. An agent that is paid the dense
reward until success ends the episode is paid for hovering: near the end of a task every decision earns almost 1, and
solving it stops the pay. `step_reward` is the one place where both become what an agent is paid, in simulators and in
imagination alike.
"""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

import numpy as np

from kairos_env.records import Array
from kairos_env.runs import did_you_mean

RewardForm = Literal["shaped", "sparse", "dense"]
"""``"shaped"`` costs 1 - dense reward a decision until success, then nothing; ``"sparse"`` costs 1 until success;
``"dense"`` is the dense reward itself, which pays for hovering: what recordings label and planners sum."""

REWARD_FORMS: tuple[RewardForm, ...] = get_args(RewardForm)

Rewards = TypeVar("Rewards", float, Array)


def check_reward_form(form: str) -> RewardForm:
    """Returns ``form``, or raises ValueError with the legal ones."""
    if form not in REWARD_FORMS:
        raise ValueError(f"unknown reward {form!r}; {did_you_mean(str(form), REWARD_FORMS)}")
    return form


def step_reward(dense: Rewards, success: bool | Array, form: RewardForm) -> Rewards:
    """What decisions earn.

    Args:
        dense: a number or an array (B,), nominally 0 ... 1; beyond that it is clipped unless ``form`` is ``"dense"``.
        success: of the same shape, bool; the task is solved in the state that the decision led to.
        form: see `RewardForm`.

    Returns:
        As ``dense``: -1 ... 0 and 0 on success, or ``dense`` itself.
    """
    if form == "dense":
        return dense
    if isinstance(dense, np.ndarray):
        rows = zip(dense.tolist(), np.asarray(success).tolist(), strict=True)
        return np.array([step_reward(value, solved, form) for value, solved in rows])
    if success:
        return 0.0
    return -1.0 if form == "sparse" else min(max(float(dense), 0.0), 1.0) - 1
