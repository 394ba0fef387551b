"""What a training run did, read from its folder; a small copy travels with every model that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kairos_env.runs import read_jsonl, write_json, write_text
from kairos_env.training.progress import LINEAGE

STAGES = ("tokenizer", "model")
SUMMARY, LOG = "training.json", "training.jsonl"  # in a model folder
MOST_ROWS = 200  # of each kind and stage that travel with a model
DIGITS = 5  # of their numbers
_LAUNCH = ("time", "command", "processor", "cores", "versions", "commit", "threads", "launch", "changed")


@dataclass(frozen=True)
class TrainingSummary:
    """A training run.

    Args:
        config: resolved.
        data: what it learned from: numbers of episodes and decisions, of each task and each behaviour.
        launches: time, command, versions, commit and processor of each.
        rows: stage -> its rows, in order; those with ``lr`` are of training steps, the others of validations.
        lineage: the trainings that the model comes from, oldest first, this one last.
    """

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    launches: Sequence[Mapping[str, Any]]
    rows: Mapping[str, Sequence[Mapping[str, float]]]
    lineage: Sequence[Mapping[str, Any]] = ()

    def training(self, stage: str) -> list[Mapping[str, float]]:
        """The rows of training steps of a stage."""
        return [row for row in self.rows.get(stage, ()) if "lr" in row]

    def validations(self, stage: str = "model") -> list[Mapping[str, float]]:
        """The rows of validations of a stage."""
        return [row for row in self.rows.get(stage, ()) if "lr" not in row]

    def steps(self, stage: str) -> int:
        """Steps that were taken."""
        return int(max((row["step"] for row in self.rows.get(stage, ())), default=-1)) + 1

    def spent(self, stage: str, what: str = "cpu_seconds") -> float:
        """Seconds of a stage over all launches: ``cpu_seconds``, or ``seconds`` of wall time."""
        return max((row[what] for row in self.training(stage)), default=0.0)


def read_summary(folder: str | Path) -> TrainingSummary:
    """The summary of a run's folder, or that in a model's folder.

    Raises:
        FileNotFoundError: neither of them.
        ValueError: a file is damaged; the message names it.
    """
    folder = Path(folder)
    if (folder / SUMMARY).exists():
        found = _json(folder / SUMMARY)
        rows: dict[str, list[Mapping[str, float]]] = {}
        for row in read_jsonl(folder / LOG):
            rows.setdefault(str(row.pop("stage")), []).append(row)
        return TrainingSummary(found["config"], found["data"], found["launches"], rows, found.get("lineage", ()))
    if not (folder / "config.json").exists() or not (folder / "launches.jsonl").exists():
        raise FileNotFoundError(
            f"{folder} is neither the folder of a training run nor of a model with {SUMMARY}; `kairos train` makes both"
        )
    if "stages" in (config := _json(folder / "config.json")):
        stages_there = ", ".join(str(path.parent) for path in sorted(folder.glob("*/launches.jsonl")))
        raise FileNotFoundError(f"{folder} is a curriculum's; name one of its stages: {stages_there or 'none yet'}")
    launches = [{key: row[key] for key in _LAUNCH if key in row} for row in read_jsonl(folder / "launches.jsonl")]
    data = _json(folder / "data.json") if (folder / "data.json").exists() else {}
    stages = {stage: read_jsonl(folder / f"{stage}.jsonl") for stage in STAGES}
    lineage = _json(folder / LINEAGE) if (folder / LINEAGE).exists() else ()
    return TrainingSummary(config, data, launches, stages, lineage)


def write_summary(summary: TrainingSummary, folder: str | Path) -> None:
    """Writes ``training.json`` and, thinned and rounded, ``training.jsonl`` into a model's folder."""
    folder = Path(folder)
    kept = []
    for stage in STAGES:
        rows = [*_thinned(summary.training(stage)), *_thinned(summary.validations(stage))]
        kept += [{"stage": stage, **_rounded(row)} for row in sorted(rows, key=lambda row: row["step"])]
    write_text(folder / LOG, "".join(json.dumps(row) + "\n" for row in kept))
    values = asdict(summary)
    del values["rows"]
    write_json(folder / SUMMARY, values)


def _thinned(rows: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """At most `MOST_ROWS`, evenly spread, the first and the last among them."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)]


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    return {key: value if isinstance(value, int) else float(f"{value:.{DIGITS}g}") for key, value in row.items()}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None
