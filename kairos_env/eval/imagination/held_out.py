"""Episodes that no training data contain, recorded in the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kairos_env.collect.plans import HELD_OUT, RecordConfig
from kairos_env.collect.recorder import record


class HeldOut(Protocol):
    """Settings of a measurement on held-out episodes, see `ImaginationConfig`."""

    @property
    def model(self) -> str: ...
    @property
    def simulator(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def episodes(self) -> int: ...
    @property
    def decisions(self) -> int: ...
    @property
    def first_initial_state(self) -> int: ...
    @property
    def seed(self) -> int: ...


def record_held_out(config: HeldOut, folder: Path, progress: bool = False, condition: str = "") -> Path:
    """Records the episodes of a measurement into ``folder``, under a condition of the simulator or its usual one."""
    recording = RecordConfig(
        out=str(folder),
        simulator=config.simulator,
        options=dict(config.options),
        episodes=config.episodes,
        workers=1,
        seed=config.seed,
        decisions=config.decisions,
        conditions={condition: 1.0} if condition else {},
        model=config.model,
        first_initial_state=config.first_initial_state,
        initial_states=HELD_OUT,
    )
    return record(recording, progress=progress).folder
