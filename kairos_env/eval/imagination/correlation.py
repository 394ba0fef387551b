"""Does success in imagination predict success in reality?

Policies of different quality (the learned policy with more and more action noise, and random play) act
from the same starts twice: in the simulator, and in the world model, where they see imagined frames only.
Each policy and task is one point: its real and its imagined success rate.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.eval.closed_loop.config import EvalConfig
from kairos_env.eval.closed_loop.engine import evaluate
from kairos_env.eval.report.page import html_page
from kairos_env.eval.report.text import format_table, plain
from kairos_env.eval.rows import Row
from kairos_env.eval.statistics import Interval, paired_pearson, spearman, wilson
from kairos_env.media import png_bytes
from kairos_env.records import Array
from kairos_env.runs import INITIAL_STATES, describe_machine, write_bytes, write_text


@dataclass(frozen=True)
class CorrelationConfig:
    """What to compare.

    Args:
        output: the folder of the run; continued if it was started with the same settings.
        policies: of different quality; names as in `kairos_env.policies.make`.
        tasks: of the simulator and the model.
        episodes: starts for each policy and task.
        model: the world model that imagines, and the policies'.
        device: of the model.
        steps: denoising steps of imagination; 0 is the model's default.
        simulator: the reality.
        imagination: the environment that imagines from a start of the simulator.
        success_threshold: imagined probability from which an imagined episode has succeeded.
        first_initial_state: of the starts.
        seed: of policies and imagination.
        max_decisions: of an episode, in both.
        workers: processes.
        time_limit_s: an episode that takes longer is an error.
    """

    output: str = "runs/correlation"
    policies: tuple[str, ...] = (
        "policy",
        "policy+noise=0.25",
        "policy+noise=0.5",
        "policy+noise=1.0",
        "policy+noise=2.0",
        "random",
    )
    tasks: tuple[str, ...] = ("reach", "push", "lift")
    episodes: int = 20
    model: str = "kairos-tiny"
    device: str = "cpu"
    steps: int = 0
    simulator: str = "Kairos-Robosuite-v0"
    imagination: str = "Kairos-WorldModel-v0"
    success_threshold: float = 0.5
    first_initial_state: int = INITIAL_STATES["correlation"].start
    seed: int = 0
    max_decisions: int = 24
    workers: int = 1
    time_limit_s: float = 300.0

    def real(self) -> EvalConfig:
        """The half in the simulator."""
        return self._half("real", self.simulator, {})

    def imagined(self) -> EvalConfig:
        """The half in the world model, from the simulator's starts."""
        options: dict[str, Any] = {"model": self.model, "start": self.simulator, "device": self.device}
        options |= {"success_threshold": self.success_threshold} | ({"steps": self.steps} if self.steps else {})
        return self._half("imagined", self.imagination, options)

    def _half(self, name: str, simulator: str, options: dict[str, Any]) -> EvalConfig:
        return EvalConfig(
            output=str(Path(self.output) / name),
            policies=self.policies,
            tasks=self.tasks,
            episodes=self.episodes,
            simulator=simulator,
            simulator_options=options,
            model=self.model,
            device=self.device,
            first_initial_state=self.first_initial_state,
            seed=self.seed,
            max_decisions=self.max_decisions,
            workers=self.workers,
            time_limit_s=self.time_limit_s,
        )


@dataclass(frozen=True)
class Point:
    """One policy on one task, over the starts that ended without error in both worlds."""

    policy: str
    task: str
    episodes: int
    real: Interval
    imagined: Interval
    agreement: float


@dataclass(frozen=True)
class Correlation:
    """How imagined and real success go together.

    Args:
        points: one for each policy and task.
        pearson: over points; its interval resamples points and, in them, starts.
        spearman: rank correlation over points.
        by_task: task -> Pearson's r over its policies.
        bias: mean imagined minus mean real success rate; positive means that imagination is too kind.
        agreement: share of single episodes with the same outcome in both worlds.
        errors: jobs without a result, in either world.
    """

    points: tuple[Point, ...]
    pearson: Interval
    spearman: float
    by_task: dict[str, Interval] = field(default_factory=dict)
    bias: float = float("nan")
    agreement: float = float("nan")
    errors: int = 0

    def table(self) -> str:
        """The points, and what they come to."""
        return "\n".join([format_table(_HEADER, self.lines()), "", *self.notes()])

    def lines(self) -> list[list[str]]:
        """The table of points under its header."""
        return [
            [p.policy, p.task, str(p.episodes), p.real.format(0, 100), p.imagined.format(0, 100), f"{p.agreement:.2f}"]
            for p in self.points
        ]

    def notes(self) -> list[str]:
        """The findings as sentences."""
        tasks = ", ".join(f"{task} {r}" for task, r in self.by_task.items())
        lines = [
            f"Pearson's r over {len(self.points)} points: {self.pearson} (95 %, resampling policies and starts); "
            f"Spearman's rank correlation {self.spearman:.2f}; by task: {tasks}.",
            f"Imagined minus real success: {100 * self.bias:+.0f} percentage points; "
            f"the same outcome in {100 * self.agreement:.0f} % of the single episodes.",
        ]
        return lines + ([f"{self.errors} jobs ended in an error and are not counted."] if self.errors else [])

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return plain(dataclasses.asdict(self)) | {"machine": describe_machine()}


def success_correlation(
    config: CorrelationConfig,
    progress: bool = False,
    on_row: Callable[[Row], None] | None = None,
) -> Correlation:
    """Runs both halves (resumable like any evaluation), relates them, and writes numbers, plot and page.

    Raises:
        ValueError: fewer than two policies.
    """
    if len(config.policies) < 2:
        raise ValueError(f"a correlation needs at least two policies, got {list(config.policies)}")
    halves = [evaluate(half, progress, on_row) for half in (config.real(), config.imagined())]
    result = correlate(halves[0].rows, halves[1].rows, config.policies, config.tasks)
    plot = png_bytes(scatter(result))
    folder = Path(config.output)
    write_bytes(folder / "correlation.png", plot)
    write_text(folder / "correlation.json", json.dumps(result.to_dict(), indent=2) + "\n")
    page = html_page(
        "Imagined against real success", {"Points": (_HEADER, result.lines())}, {"Scatter": plot}, result.notes()
    )
    write_text(folder / "report.html", page)
    return result


def correlate(
    real: Sequence[Row], imagined: Sequence[Row], policies: Sequence[str], tasks: Sequence[str]
) -> Correlation:
    """Relates the rows of two worlds; only starts without an error in both count."""
    outcomes = []
    for rows in (real, imagined):
        outcomes.append({_key(row): float(row.status == "success") for row in rows if row.status != "error"})
    starts = sorted({row.job.initial_state for row in real if row.job.policy in policies})
    pairs: dict[tuple[str, str], Array] = {}
    for policy in policies:
        for task in tasks:
            keys = [(policy, task, start) for start in starts]
            both = [[world.get(key, np.nan) for key in keys] for world in outcomes]
            pairs[policy, task] = np.where(np.isfinite(both).all(0), both, np.nan)  # (2, starts)
    points = []
    for (policy, task), pair in pairs.items():
        known = pair[:, np.isfinite(pair[0])]
        if known.shape[1] == 0:
            continue
        in_reality, in_imagination = (wilson(int(world.sum()), len(world)) for world in known)
        same = float((known[0] == known[1]).mean())
        points.append(Point(policy, task, known.shape[1], in_reality, in_imagination, same))

    def pearson(chosen: Sequence[tuple[str, str]]) -> Interval:
        worlds = np.stack([pairs[key] for key in chosen], 1)  # (2, points, starts)
        return paired_pearson(worlds[1], worlds[0])

    every = np.concatenate(list(pairs.values()), 1)
    every = every[:, np.isfinite(every[0])]
    return Correlation(
        points=tuple(points),
        pearson=pearson(list(pairs)),
        spearman=spearman(np.array([p.imagined.value for p in points]), np.array([p.real.value for p in points])),
        by_task={task: pearson([key for key in pairs if key[1] == task]) for task in tasks},
        bias=float(np.mean([p.imagined.value - p.real.value for p in points])) if points else float("nan"),
        agreement=float((every[0] == every[1]).mean()) if every.size else float("nan"),
        errors=sum(row.status == "error" for row in [*real, *imagined]),
    )


def scatter(result: Correlation, size: int = 480) -> Array:
    """The points as a picture with their intervals: imagined success to the right, real success upwards.

    Returns:
        uint8 (size, size + 220, 3).
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    image = Image.new("RGB", (size + 220, size), "white")
    draw = ImageDraw.Draw(image)
    low, high = 56, size - 16

    def x(rate: float) -> float:
        return low + rate * (high - low)

    def y(rate: float) -> float:
        return size - 56 - rate * (size - 72)

    for i in range(5):
        rate = i / 4
        draw.line([x(rate), y(0), x(rate), y(1)], fill=(225, 225, 225))
        draw.line([x(0), y(rate), x(1), y(rate)], fill=(225, 225, 225))
        draw.text((x(rate), y(0) + 14), f"{rate:.0%}", fill="black", font=font, anchor="ma")
        draw.text((x(0) - 15, y(rate)), f"{rate:.0%}", fill="black", font=font, anchor="rm")
    draw.line([x(0), y(0), x(1), y(1)], fill=(150, 150, 150))
    draw.text((x(0.5), size - 8), "success in imagination", fill="black", font=font, anchor="ms")
    draw.text((x(0) + 6, y(1) + 4), "success in the simulator", fill="black", font=font)
    tasks = list(dict.fromkeys(p.task for p in result.points))
    policies = list(dict.fromkeys(p.policy for p in result.points))
    for point in result.points:
        colour = _COLOURS[tasks.index(point.task) % len(_COLOURS)]
        at = x(point.imagined.value), y(point.real.value)
        pale = tuple((c + 2 * 255) // 3 for c in colour)
        draw.line([x(point.imagined.low), at[1], x(point.imagined.high), at[1]], fill=pale)
        draw.line([at[0], y(point.real.low), at[0], y(point.real.high)], fill=pale)
    places: dict[tuple[float, float], list[Point]] = {}
    for point in result.points:
        places.setdefault((x(point.imagined.value), y(point.real.value)), []).append(point)
    for at, here in places.items():
        # Points in one place (often 0 % or 100 % in both worlds) become a grey one with their number.
        alone = len(here) == 1
        colour = _COLOURS[tasks.index(here[0].task) % len(_COLOURS)] if alone else (90, 90, 90)
        text = str(policies.index(here[0].policy) + 1) if alone else f"{len(here)}x"
        radius = 9 if alone else 12
        draw.ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], fill=colour)
        draw.text(at, text, fill="white", font=font, anchor="mm")
    lines = [(task, _COLOURS[i % len(_COLOURS)]) for i, task in enumerate(tasks)]
    lines += [(f"{i + 1}  {name}", (0, 0, 0)) for i, name in enumerate(policies)]
    lines += [(f"r = {result.pearson}".replace("–", "unknown"), (0, 0, 0))]
    for i, (text, ink) in enumerate(lines):
        draw.text((size + 4, 20 + 20 * i), text, fill=ink, font=font)
    return np.asarray(image)


_COLOURS = ((38, 108, 178), (200, 80, 30), (40, 140, 70), (130, 70, 160), (120, 120, 40))
_HEADER = ["policy", "task", "n", "real success %", "imagined success %", "same outcome"]


def _key(row: Row) -> tuple[str, str, int]:
    return row.job.policy, row.job.task, row.job.initial_state
