"""`kairos record`, `record-libero`, `record-robotwin`: episodes of the simulators in files; `record-films`: films."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kairos_env.cli.options import Fields
from kairos_env.collect import recorder
from kairos_env.collect.films.record import FilmsConfig
from kairos_env.collect.films.record import record_films as make_films
from kairos_env.collect.plans import RecordConfig

_LIBERO = "--options camera_size=64,action_repeat=4,rendering=fast"
RENAMED = {
    "--suites": "--tasks 'libero_object/*'",
    "--states": "--initial-states 0-39",
    "--noisy": "--behaviours expert=0.5,disturbed_expert=0.5",
    "--max-steps": "--decisions (of the policy: simulator steps / action_repeat)",
    "--after": "--after-success",
    "--actor": "--model FOLDER --behaviours policy --keep all",
    "--camera-size": _LIBERO,
    "--action-repeat": _LIBERO,
    "--rendering": _LIBERO,
    "--home": "--options home=FOLDER",
    "--image-size": "--options image_size=64",
    "--cameras": "--options cameras=['scene','wrist']",
}
"""Options of earlier versions -> how they are spelled now."""


@dataclass(frozen=True)
class LiberoDemonstrations(RecordConfig):
    """Successes of the scripted expert in LIBERO's own files, half of them disturbed."""

    simulator: str = "Kairos-LIBERO-v0"
    options: dict[str, Any] = field(
        default_factory=lambda: {"camera_size": 64, "action_repeat": 4, "rendering": "fast"}
    )
    per_task: int = 20
    decisions: int = 100
    after_success: int = 2
    behaviours: dict[str, float] = field(default_factory=lambda: {"expert": 0.5, "disturbed_expert": 0.5})
    keep: Literal["all", "successes"] = "successes"
    layout: Literal["kairos", "libero"] = "libero"


@dataclass(frozen=True)
class RoboTwinDemonstrations(RecordConfig):
    """Successes of RoboTwin's own experts, from the seeds that RoboTwin's own recordings begin with."""

    simulator: str = "Kairos-RoboTwin-v0"
    per_task: int = 50
    decisions: int = 250
    after_success: int = 0
    behaviours: dict[str, float] = field(default_factory=lambda: {"expert": 1.0})
    keep: Literal["all", "successes"] = "successes"
    attempts: int = 1
    first_initial_state: int = 0


def record(config: Fields[RecordConfig]) -> int:
    """Records, or goes on recording; 1 if there are fewer episodes than asked for."""
    recorded = recorder.record(config)
    print(recorded.table())
    return int(bool(recorded.short))


def record_libero(config: Fields[LiberoDemonstrations]) -> int:
    """Records demonstrations; 1 if there are fewer than asked for."""
    return record(config)


def record_robotwin(config: Fields[RoboTwinDemonstrations]) -> int:
    """Records demonstrations; 1 if there are fewer than asked for."""
    return record(config)


def record_films(config: Fields[FilmsConfig]) -> int:
    """Makes captioned films, or goes on with them."""
    print(f"finished: {make_films(config)}")
    return 0
