"""Evaluations of the point simulator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from kairos_env.eval.closed_loop.config import EvalConfig


def config(output: Path, **changes: Any) -> EvalConfig:
    base = EvalConfig(
        output=str(output),
        policies=("expert", "random"),
        tasks=("near", "far"),
        episodes=3,
        simulator="point_simulator:Point",
        workers=0,
        time_limit_s=20,
    )
    return dataclasses.replace(base, **changes)


def outcomes(rows: Any) -> list[tuple[Any, ...]]:
    """All of a row that is not a time."""
    return [(row.job, row.status, row.decisions, row.episode_return) for row in rows]
