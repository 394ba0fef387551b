"""Does success in imagination predict success in reality?

Policies of different quality (the learned policy with more and more action noise, and random play) act
from the same starts twice: in the simulator, and in the world model, where they see imagined frames only.
Each policy and task is one point: its real and its imagined success rate.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
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
from kairos_env.runs import (
    INITIAL_STATES,
    describe_machine,
    did_you_mean,
    split_initial_states,
    write_bytes,
    write_text,
)
from kairos_env.sims.make import make_simulator, spec_of
from kairos_env.sims.simulator import matching_task

IMAGINED = "Kairos-WorldModel-v0"


@dataclass(frozen=True)
class CorrelationConfig:
    """Settings of a correlation.

    Args:
        output: the folder of the run; continued if it was started with the same settings.
        policies: of different quality; names as in `kairos_env.policies.make`.
        tasks: that simulator and model have in common, by their names in the model; none: all of them.
        episodes: starts for each policy and task.
        model: the world model that imagines, and the policies'.
        device: of the model.
        steps: denoising steps of imagination; 0 is the model's default.
        simulator: the reality; made for the model's robot.
        options: of its constructor.
        imagination: the environment that imagines from a start of the simulator.
        success_threshold: imagined probability from which an imagined episode has succeeded.
        first_initial_state: of the starts. None: the first that nothing else uses; of a simulator with a fixed number
            of them, the first held-out one.
        seed: of policies and imagination.
        max_decisions: of an episode, in both; 0: as the simulator says.
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
    tasks: tuple[str, ...] = ()
    episodes: int = 20
    model: str = "kairos-tiny"
    device: str = "cpu"
    steps: int = 0
    simulator: str = "Kairos-Robosuite-v0"
    options: dict[str, Any] = field(default_factory=dict)
    imagination: str = IMAGINED
    success_threshold: float = 0.5
    first_initial_state: int | None = None
    seed: int = 0
    max_decisions: int = 0
    workers: int = 1
    time_limit_s: float = 300.0


@dataclass(frozen=True)
class CommonGround:
    """The tasks and initial states of both worlds.

    Args:
        tasks: name in the model -> name in the simulator.
        first_initial_state: of the episodes of every task.
        max_decisions: of an episode.
    """

    tasks: Mapping[str, str]
    first_initial_state: int
    max_decisions: int


def common_ground(config: CorrelationConfig) -> CommonGround:
    """The tasks and initial states that the configuration asks of both worlds.

    Raises:
        ValueError: they have no task in common, or not the tasks or the initial states that are asked for.
        SpecMismatch: they cannot be of one robot.
    """
    with ExitStack() as stack:
        imagined = make_simulator(config.imagination, **_imagined_options(config))
        stack.callback(imagined.close)
        env = make_simulator(config.simulator, spec_of(imagined), **config.options)
        stack.callback(env.close)
        known = imagined.tasks() if hasattr(imagined, "tasks") else imagined.model.tasks
        there = env.tasks()
        for task in config.tasks:
            if task not in known or matching_task(task, known[task], there) is None:
                raise ValueError(f"both worlds must have the task {task!r}; {did_you_mean(task, known)}")
        states_of = getattr(env, "initial_states", lambda task: None)
        found = {task: matching_task(task, known[task], there) for task in config.tasks or known}
        tasks = {task: name for task, name in found.items() if name is not None}
        if not tasks:
            raise ValueError(f"{config.simulator} has none of the tasks that are imagined: {', '.join(known)}")
        first = [_first_state(config, states_of(name), name) for name in tasks.values()]
        return CommonGround(tasks, max(first), config.max_decisions or env.max_episode_steps)


def _first_state(config: CorrelationConfig, count: int | None, task: str) -> int:
    default = INITIAL_STATES["correlation"].start if count is None else split_initial_states(count)[1].start
    first = default if config.first_initial_state is None else config.first_initial_state
    if count is not None and first + config.episodes > count:
        raise ValueError(
            f"{task} has {count} initial states, {max(0, count - first)} from number {first} on, and not "
            f"{config.episodes}: ask for fewer episodes, or give another first_initial_state"
        )
    return first


def _imagined_options(config: CorrelationConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"model": config.model, "start": config.simulator, "device": config.device}
    if config.imagination == IMAGINED:
        options["horizon"] = None  # as long as the real episodes
    return options | {"success_threshold": config.success_threshold} | ({"steps": config.steps} if config.steps else {})


def halves(config: CorrelationConfig, ground: CommonGround) -> tuple[EvalConfig, EvalConfig]:
    """The half in the simulator, and the half in the world model, from the simulator's starts."""
    real = EvalConfig(
        output=str(Path(config.output) / "real"),
        policies=config.policies,
        tasks=tuple(ground.tasks.values()),
        episodes=config.episodes,
        simulator=config.simulator,
        simulator_options=config.options,
        model=config.model,
        device=config.device,
        first_initial_state=ground.first_initial_state,
        seed=config.seed,
        max_decisions=ground.max_decisions,
        workers=config.workers,
        time_limit_s=config.time_limit_s,
    )
    return real, replace(
        real,
        output=str(Path(config.output) / "imagined"),
        tasks=tuple(ground.tasks),
        simulator=config.imagination,
        simulator_options=_imagined_options(config),
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
    """Relation of imagined and real success.

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
    ground = common_ground(config)
    there, imagined = (evaluate(half, progress, on_row).rows for half in halves(config, ground))
    in_model = {name: task for task, name in ground.tasks.items()}
    real = [replace(row, job=replace(row.job, task=in_model[row.job.task])) for row in there]
    result = correlate(real, imagined, config.policies, list(ground.tasks))
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
