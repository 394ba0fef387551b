"""What evaluations found of a model, as tables for its card."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kairos_env.eval.report.task_rates import rate_table, task_rates
from kairos_env.eval.rows import read_rows, results_files
from kairos_env.eval.statistics import Interval
from kairos_env.policies.make import model_digest
from kairos_env.runs import read_jsonl, write_json
from kairos_env.training.card import Measurement, add_measurement
from kairos_env.world_model.checkpoint import HORIZONS, MEASURED, read_measured

_SHOWN = {
    "PSNR, dB": "imagined/psnr",
    "… of a copy of the first frame": "copy/psnr",
    "gripper error, cm": "imagined/gripper_cm",
    "object error, cm": "imagined/cube_cm",
    "… if it does not move": "still/cube_cm",
    "object seen by the reader": "imagined/cube_there",
}


def add_to_card(model: str | Path, run: str | Path) -> str:
    """Puts the table of an evaluation into a model's ``measured.json``; returns its kind.

    Args:
        model: folder.
        run: folder of `kairos eval closed-loop`, `imagination` or `calibration`; the last also states the horizons up
            to which imagination may be believed.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it evaluated other weights.
    """
    run = Path(run)
    kinds: dict[str, tuple[bool, Callable[[Path, str], Measurement]]] = {
        "closed_loop": (bool(results_files(run)), _closed_loop),
        "imagination": ((run / "imagination.json").exists(), _imagination),
        "calibration": ((run / "calibration.json").exists(), _calibration),
    }
    for kind, (there, read) in kinds.items():
        if there:
            add_measurement(model, kind, read(run, model_digest(str(model))))
            if kind == "calibration":
                horizons = json.loads((run / "calibration.json").read_text())["trust_horizon"]
                write_json(Path(model) / MEASURED, read_measured(model) | {HORIZONS: horizons})
            return kind
    raise FileNotFoundError(f"{run} is no folder of `kairos eval closed-loop`, `imagination` or `calibration`")


def _closed_loop(run: Path, digest: str) -> Measurement:
    rows = read_rows(run)
    _require(run, digest, {row.extra.get("model", "").split()[-1] for row in rows if row.extra.get("model")})
    header, cells = rate_table(task_rates(rows))
    words = [i for i, name in enumerate(header) if name]  # without the column of bars
    lines = [[str(line[i]) for i in words] for line in cells]
    simulators = ", ".join(sorted({row.job.simulator for row in rows}))
    title = f"Success in {simulators}"
    return Measurement(title, [header[i] for i in words], lines, ["95 % intervals (Wilson)."], **_origin(run))


def _imagination(run: Path, digest: str) -> Measurement:
    found = json.loads((run / "imagination.json").read_text())
    _require(run, digest, {json.loads((run / "config.json").read_text())["model_digest"]})
    lines = []
    for title, key in _SHOWN.items():
        cells = [_cell(found["summary"].get(key, {}).get(str(horizon))) for horizon in found["horizons"]]
        if set(cells) != {"–"}:
            lines.append([title, *cells])
    header = ["", *(f"{horizon} decisions" for horizon in found["horizons"])]
    notes = [f"{len(found['episodes'])} held-out episodes; means with 95 % intervals (bootstrap)."]
    return Measurement("Imagined beside real, under the same actions", header, lines, notes, **_origin(run))


def _calibration(run: Path, digest: str) -> Measurement:
    found = json.loads((run / "calibration.json").read_text())
    _require(run, digest, {json.loads((run / "config.json").read_text())["model_digest"]})
    ranges = list(found["success_ece"])
    lines = []
    for name, errors in found["errors"].items():
        scale, unit = found["units"][name]
        for kind in ("true", "expected"):
            cells = [errors[part][kind] for part in ranges]
            lines.append([f"{name}, {unit}, {kind}", *("–" if x is None else f"{scale * x:.2f}" for x in cells)])
    lines.append(["ECE of success", *("–" if x is None else f"{x:.3f}" for x in found["success_ece"].values())])
    ranks = found["rank_correlation"]["usual"]
    notes = [f"Rank correlation with the true error: {what} {_cell(value)}." for what, value in ranks.items()]
    header = ["root mean squared errors", *(f"decisions {part}" for part in ranges)]
    return Measurement("Expected and true errors of imagination", header, lines, notes, **_origin(run))


def _cell(interval: dict[str, Any] | None) -> str:
    values = {key: math.nan if value is None else value for key, value in (interval or {}).items()}
    return Interval(**values).format(2) if values else "–"


def _require(run: Path, digest: str, theirs: set[str]) -> None:
    """Raises ValueError unless a run evaluated the weights with this digest, and no others."""
    if theirs and theirs != {digest}:
        raise ValueError(f"{run} evaluated the weights {', '.join(sorted(theirs))}, but the model's are {digest}")


def _origin(run: Path) -> dict[str, str]:
    """Command, versions and commit of a run's last launch."""
    launches = read_jsonl(run / "launches.jsonl")
    if not launches:
        return {}
    last = launches[-1]
    program, *words = last["command"]
    where = [f"kairos-env {last['versions'].get('kairos-env', '')}", last["time"]]
    where += [f"commit {last['commit'][:12]}"] if last.get("commit") else []
    return {
        "command": shlex.join(["kairos" if program == "__main__.py" else program, *words]),
        "versions": ", ".join(where),
    }
