"""What may differ from launch to launch of a training run, and what a run may change while it goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairos_env.runs import ConfigMismatch, open_run, write_json
from kairos_env.training.config import TrainConfig
from kairos_env.training.log import TrackerName

FIXED = ("preset", "init", "init_tokenizer", "seed", "validation", "starts", "tokenizer", "tokenizer_batch", "pixels")
"""Keys of a run's configuration that stay: they decide what has been learned and held out before."""


@dataclass(frozen=True)
class LaunchConfig:
    """What the result of a training run does not depend on.

    Args:
        log: also send the metrics to these: tensorboard, wandb, trackio.
        snapshot_every: steps of stage 2 between two whole model folders in <out>/snapshots; 0 keeps none.
        change: go on with a run whose configuration differs, such as a lower model.lr or more model.steps. What was
            learned and held out before stays as it was; launches.jsonl says what changed.
    """

    log: tuple[TrackerName, ...] = ()
    snapshot_every: int = 0
    change: bool = False

    def __post_init__(self) -> None:
        if self.snapshot_every < 0:
            raise ValueError(f"snapshot_every is a number of steps, or 0 for none, got {self.snapshot_every}")


def open_training(folder: Path, config: TrainConfig, launch: LaunchConfig, facts: Mapping[str, Any]) -> None:
    """Creates or re-opens the folder of a training run, which may have been moved; see `open_run`.

    A configuration that an earlier version stored says nothing of options that came later: they are at their defaults.

    Args:
        config: everything that the results depend on.
        launch: options of this launch; they are recorded beside its versions and commit.
        facts: further JSON values to record there.

    Raises:
        ConfigMismatch: the run began with another configuration, and `LaunchConfig.change` was not asked for or
            cannot help.
    """
    record = {"launch": dataclasses.asdict(launch), **facts}
    stored, now = stored_config(folder), json.loads(json.dumps(dataclasses.asdict(config)))
    before, after = flat(stored), flat(now)
    if before:
        defaults = flat(json.loads(json.dumps(dataclasses.asdict(type(config)()))))
        before = {key: value for key, value in defaults.items() if key in after} | before | {"out": config.out}
    different = sorted(key for key in before | after if before.get(key) != after.get(key)) if before else []
    fixed = [key for key in different if key.partition(".")[0] in FIXED]
    if different and launch.change:
        if fixed:
            raise ConfigMismatch(
                f"{folder} cannot change {', '.join(fixed)} while it goes on; begin another run with `init`, from "
                f"{folder}/model or one of {folder}/snapshots"
            )
        record["changed"] = {key: [before.get(key), after.get(key)] for key in different}
        write_json(folder / "config.json", now)
    try:
        open_run(folder, now if different or not stored else stored, record)
    except ConfigMismatch as error:
        can = "" if fixed else "\nor go on under the new one: --change"
        raise ConfigMismatch(f"{error}{can}") from None


def stored_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run goes on under; empty for a new or damaged folder."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
