"""A benchmark of points, its runs and its policies, importable by name in other processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from split_env import SPEC, Points

from kairos_env.eval.closed_loop.config import LiberoConfig
from kairos_env.eval.closed_loop.engine import make_plan, run
from kairos_env.eval.report.report import Report, make_report
from kairos_env.eval.rows import read_rows
from kairos_env.records import ActionChunk


def config(output: Path, **changes: Any) -> LiberoConfig:
    base = LiberoConfig(
        output=str(output),
        policies=("expert",),
        camera_size=16,
        action_repeat=1,
        simulator="split_env:SplitPoint",
        workers=0,
        time_limit_s=600,
    )
    return dataclasses.replace(base, **changes)


def play(settings: LiberoConfig, points: Points | None = None, **more: Any) -> Any:
    points = points or Points()
    return run(make_plan(settings, points), benchmarks=points.benchmarks, **more)  # type: ignore[arg-type]


class Slow:
    """Never arrives; says how many decisions it made."""

    def __init__(self, **_: Any) -> None:
        pass

    def reset(self, seed: int | None = None) -> None:
        pass

    def act(self, observation: Any) -> np.ndarray:
        return np.array([0.3 if observation.proprio[0] > 0 else -0.3], np.float32)

    def chunk(self, observation: Any) -> ActionChunk:
        return ActionChunk(self.act(observation)[None])


class Together(Slow):
    """A policy that decides for several episodes at once; it counts the rows of its passes."""

    passes: list[tuple[int, int]] = []  # noqa: RUF012 - shared on purpose

    def act(self, observation: Any) -> np.ndarray:
        return SPEC.check_action(-observation.proprio)

    @staticmethod
    def act_together(policies: Any, observations: Any, size: int) -> list[np.ndarray]:
        Together.passes.append((len(observations), size))
        return [policy.act(observation) for policy, observation in zip(policies, observations, strict=True)]


def outcomes(folder: Path | str) -> list[tuple[Any, ...]]:
    """All of a row that is not a time."""
    return [(r.job, r.status, r.decisions, r.episode_return, r.extra.get("objects")) for r in read_rows(folder)]


def summarize(folder: Path, benchmarks: Any) -> Report:
    return make_report(read_rows(folder), benchmarks)
