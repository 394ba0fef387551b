"""The rules of published evaluations on LIBERO, LIBERO-plus and LIBERO-Pro."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kairos_env.embodiments import LIBERO_MAX_STEPS


@dataclass(frozen=True)
class Rules:
    """How a published evaluation plays its episodes.

    Args:
        note: what else is to be known.
        max_steps: suite -> simulator steps after which an episode has failed.
        wait_steps: steps without motion at the start.
        replan: actions executed before a policy that proposes chunks decides again; None leaves it to the policy.
    """

    note: str
    max_steps: Mapping[str, int]
    wait_steps: int
    replan: int | None = None


PROTOCOLS: Mapping[str, Rules] = {
    "published": Rules("limits that most publications use", LIBERO_MAX_STEPS["published"], wait_steps=10),
    "kairos-published": Rules(
        "Kairos's published run: each dimension's tasks of all suites pooled, hence one limit, which is short for "
        "libero_10; the pooled suite itself is not in the public benchmark",
        LIBERO_MAX_STEPS["kairos-published"],
        wait_steps=30,
        replan=10,
    ),
    "kairos-suites": Rules(
        "Kairos's published runner, suite by suite",
        LIBERO_MAX_STEPS["kairos-suites"],
        wait_steps=30,
        replan=10,
    ),
}
