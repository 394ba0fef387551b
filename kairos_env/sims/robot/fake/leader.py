"""A leader that is a script: the expert of a fake's task, led astray now and then so that it has to come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kairos_env.records import Array, RobotSpec

_LASTS = 3  # decisions of a disturbance
_FAR = 0.07  # of a joint's range, at most


class ScriptedLeader:
    """Leads a fake arm.

    Args:
        expert: what the expert would do now (A,).
        spec: of the arm.
        disturb: share of decisions at which a disturbance of a few decisions begins.
    """

    def __init__(self, expert: Callable[[], Array], spec: RobotSpec, disturb: float = 0.0) -> None:
        if not 0 <= disturb <= 1:
            raise ValueError(f"disturb is a share of the decisions, 0 ... 1, got {disturb}")
        self._expert, self._spec, self._share = expert, spec, disturb
        self.begin(0)

    def begin(self, number: int, info: Any = None) -> None:
        """Starts an episode; its number decides on the disturbances."""
        self._random = np.random.default_rng([number, 11])
        self._left = 0
        self._aside: Array = np.zeros(self._spec.action_dim)

    def lead(self, observation: Any = None, info: Any = None) -> Array:
        """Where the joints are to go now (A,)."""
        if self._left == 0 and self._random.random() < self._share:
            width = self._spec.action_high - self._spec.action_low
            self._left, self._aside = _LASTS, _FAR * width * self._random.uniform(-1, 1, len(width))
        astray = self._left > 0
        self._left -= astray
        action = self._expert() + (self._aside if astray else 0)
        return np.clip(action, self._spec.action_low, self._spec.action_high).astype(np.float32)
