"""Calibration: are the errors and the success that a model expects those that it makes?

From the first frame of held-out episodes the model imagines on under their actions. At every decision it says how far
hand, objects and picture are likely to be off, and how likely the task is solved; the recording says how far they were
and whether it was. Ratios of expected and true errors, reliability diagrams and the expected calibration error (ECE)
compare the two; the rank correlation tells whether large errors are known to be large. The same under other light.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.env.trust import TOLERANCE, Familiarity, expects_positions
from kairos_env.eval.imagination.calibration_report import CalibrationReport, Forecasts
from kairos_env.eval.imagination.held_out import record_held_out
from kairos_env.policies.make import load_model, model_digest
from kairos_env.records import Array, Episode
from kairos_env.runs import INITIAL_STATES, open_run
from kairos_env.training.calibration import true_errors

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel
    from kairos_env.world_model.state import Rollout

LEAST_EPISODES = 5  # of a task, for its horizon


@dataclass(frozen=True)
class CalibrationConfig:
    """Settings of a calibration.

    Args:
        output: the folder of the run.
        model: the world model that imagines.
        device: of the model.
        data: a recording of held-out episodes with pictures. Empty: they are recorded in the simulator, into
            ``<output>/episodes``, from initial states that no training data use.
        simulator: where they are recorded: a Gymnasium id, or module:factory; made for the model's robot.
        options: of the simulator's constructor.
        conditions: of the simulator, under each of which as many episodes are recorded from the same initial states.
        episodes: how many.
        decisions: length of the episodes that are recorded here, and the most that is imagined.
        first_initial_state: of the episodes that are recorded here.
        horizons: ends of the ranges of decisions that the tables tell apart.
        steps: denoising steps; 0 is the model's default.
        batch: episodes imagined at once.
        seed: of recording and of the model's noise.
    """

    output: str = "runs/calibration"
    model: str = "kairos-tiny"
    device: str = "cpu"
    data: str = ""
    simulator: str = "Kairos-Robosuite-v0"
    options: dict[str, Any] = field(default_factory=dict)
    conditions: tuple[str, ...] = ("half_light",)
    episodes: int = 60
    decisions: int = 50
    first_initial_state: int = INITIAL_STATES["imagination"].start
    horizons: tuple[int, ...] = (1, 5, 10, 20, 50)
    steps: int = 0
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.horizons or min(self.horizons) < 1:
            raise ValueError(f"horizons must be >= 1, got {list(self.horizons)}")
        if self.episodes < LEAST_EPISODES:
            raise ValueError(f"calibration needs at least {LEAST_EPISODES} episodes, got {self.episodes}")


def run_calibration(config: CalibrationConfig, progress: bool = False) -> CalibrationReport:
    """Records or reads held-out episodes, imagines them, and writes numbers and page."""
    from tqdm import tqdm

    from kairos_env.datasets.layouts import open_recording, read_as

    model = load_model(config.model, config.device)
    identity = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("output", "batch", "device")}
    identity |= {"model_digest": model_digest(config.model)}
    folder = Path(config.output)
    wanted = [""] if config.data else ["", *config.conditions]
    paths = {c: config.data or record_held_out(config, folder / _place(c), progress, c) for c in wanted}
    recordings = {condition: read_as(open_recording(path), model.spec, whole=True) for condition, path in paths.items()}
    open_run(folder, identity, {"config": dataclasses.asdict(config)})
    found = {}
    with tqdm(total=len(wanted) * config.episodes, unit="episode", disable=not progress) as bar:
        for condition, recording in recordings.items():
            episodes = [recording[i] for i in range(min(config.episodes, len(recording)))]
            found[condition] = forecast(
                model, episodes, config.decisions, config.steps or None, config.batch, config.seed, bar.update
            )
    horizons = trust_horizons(found[""]) if model.spec.hand_fields else {}
    ends = tuple(sorted({min(h, config.decisions) for h in config.horizons}))
    report = CalibrationReport(ends, found, horizons, expects_positions(model))
    report.save(folder)
    return report


def _place(condition: str) -> str:
    return f"episodes-{condition}" if condition else "episodes"


def forecast(
    model: WorldModel,
    episodes: Sequence[Episode],
    decisions: int,
    steps: int | None = None,
    batch: int = 16,
    seed: int = 0,
    on_episodes: Callable[[int], object] = lambda count: None,
) -> Forecasts:
    """Imagines recorded episodes from their first frames on, under their actions.

    Args:
        model: of the episodes' robot.
        episodes: held out, with pictures.
        decisions: how many at most.
        steps: denoising steps.
        batch: episodes at once.
        seed: of the model's noise.
        on_episodes: is told how many more are done.

    Raises:
        ValueError: episodes without pictures.
    """
    if not all(episode.images for episode in episodes):
        raise ValueError("calibration compares pictures, and the recording has none: give the recording itself")
    familiarity, rows = Familiarity(model), []
    for start in range(0, len(episodes), batch):
        chosen = episodes[start : start + batch]
        first = [episode.observation(0) for episode in chosen]
        state = model.observe(first, seeds=[seed * 1_000_003 + start + i for i in range(len(chosen))])
        strangeness = familiarity.strangeness(first, state.latent)
        length = min(decisions, max(map(len, chosen)))
        actions = np.stack([episode.actions[np.arange(length) % len(episode)] for episode in chosen])
        rollout = model.imagine(state, actions, steps=steps)
        rows += [_compare(model, e, rollout, i, strangeness[i], decisions) for i, e in enumerate(chosen)]
        on_episodes(len(chosen))
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    names = ("hand" if model.spec.hand_fields else "proprio", *model.objects, "picture")
    return Forecasts(names, tuple(episode.task for episode in episodes), **columns)


def _compare(
    model: WorldModel, episode: Episode, rollout: Rollout, place: int, strangeness: float, decisions: int
) -> dict[str, Array]:
    """The fields of `Forecasts` of one episode, the ``place``-th of a batch."""
    steps = min(decisions, len(episode), rollout.success.shape[1])

    def padded(values: Any) -> Array:
        array = np.full((decisions, *np.shape(values)[1:]), math.nan)
        array[:steps] = values
        return array

    true = true_errors(model, episode, rollout, place, steps)
    expected = np.full(true.shape, math.nan)
    known = rollout.errors[place, :steps].cpu().numpy()
    expected[:, -known.shape[1] :] = known
    return {
        "expected": padded(expected),
        "true": padded(true),
        "uncertainty": padded(rollout.uncertainty[place, :steps].cpu().numpy() * strangeness),
        "success": padded(rollout.success[place, :steps].cpu().numpy()),
        "solved": padded(episode.success[:steps] if episode.outcome_known else np.full(steps, math.nan)),
        "strangeness": np.array(strangeness),
    }


def trust_horizons(forecasts: Forecasts) -> dict[str, int]:
    """Task -> decisions up to which imagination may be believed.

    The last decision up to which, at each, the larger of the errors of hand and objects is below `TOLERANCE` in half of
    the task's episodes or more. Tasks of fewer than `LEAST_EPISODES` episodes are left out. The robot must say where
    its hand is.
    """
    found = {}
    for task in sorted(set(forecasts.tasks)):
        errors = forecasts.position_error[[i for i, name in enumerate(forecasts.tasks) if name == task]]
        reached = np.isfinite(errors).sum(0) >= LEAST_EPISODES
        if not reached.any():
            continue
        columns = errors[:, : len(reached) if reached.all() else int(np.argmin(reached))]
        wrong = np.nanmedian(columns, 0) > TOLERANCE
        found[task] = int(np.argmax(wrong)) if wrong.any() else columns.shape[1]
    return found
