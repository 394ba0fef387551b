"""Initial states by purpose: the one table of what is for training and what is held out."""

from __future__ import annotations

from collections.abc import Mapping

INITIAL_STATES: Mapping[str, range] = {
    "benchmark": range(100_000),  # a benchmark's own numbering, such as LIBERO's 0 ... 49
    "training": range(100_000, 300_000),
    "evaluation": range(300_000, 310_000),
    "imagination": range(310_000, 320_000),
    "correlation": range(320_000, 330_000),
    "theory": range(330_000, 340_000),
    "export": range(340_000, 440_000),  # imagined episodes, which are training data
    "other": range(440_000, 1_000_000),  # recordings of special tasks
    "validation": range(1_000_000, 1_100_000),
}
"""Purpose -> the initial states that are its own. No two overlap, so nothing is tested where it was trained."""


def split_initial_states(count: int) -> tuple[range, range]:
    """The initial states of a simulator that has ``count`` of them: those for training, and the held-out last fifth."""
    first = max(1, count * 4 // 5)
    return range(first), range(first, count)


def check_initial_states(first: int, count: int) -> None:
    """Checks that ``count`` initial states from ``first`` on belong to one purpose.

    Raises:
        ValueError: they are negative or reach into the range of another purpose of `INITIAL_STATES`.
    """
    if first < 0:
        raise ValueError(f"initial states are numbered from 0, got {first}")
    for purpose, states in INITIAL_STATES.items():
        if first in states and first + count > states.stop:
            raise ValueError(
                f"initial states {first} ... {first + count - 1} reach beyond those for {purpose} "
                f"({states.start} ... {states.stop - 1}) into another purpose's: choose fewer, or another first one"
            )
