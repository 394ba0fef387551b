"""Imagination beside recorded reality under the same actions, with the controls that give it meaning.

From the first frames of a recorded episode the model imagines on, given nothing but the episode's
actions. At each horizon the imagined frame is compared with the recorded one: as pictures (PSNR, SSIM),
and in centimetres by where an independent reader (`kairos_env.eval.imagination.probe`) sees gripper and cube.

Beside it, on the same episodes:

    shuffled   the model, given another episode's actions: a model that ignores actions looks as good
    zero       the model, given actions of zero
    copy       the last observed frame
    mean       the mean frame of the training data
    codec      the true future through the tokenizer and back: as good as any model of these latents can look
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.eval.imagination.image_metrics import mean_squared_error, psnr, ssim
from kairos_env.eval.imagination.probe import VISIBLE_PIXELS, Probe, gripper_fields, red_pixels
from kairos_env.eval.imagination.report import (
    CONDITIONS,
    METRICS,
    MOVING_DECISIONS,
    MOVING_PATH_CM,
    ImaginationReport,
)
from kairos_env.policies import make as roster
from kairos_env.records import Array, Episode, RobotSpec
from kairos_env.runs import INITIAL_STATES, open_run

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel

HORIZONS = (1, 5, 10, 20, 50)


@dataclass(frozen=True)
class ImaginationConfig:
    """What to compare.

    Args:
        output: the folder of the run.
        model: the world model that imagines.
        device: of the model.
        data: held-out recorded episodes, file or folder. Empty: they are recorded in the simulator, into
            ``<output>/episodes``, from starts that no training data use.
        episodes: how many, moving or not.
        decisions: length of the episodes that are recorded here.
        first_initial_state: of the episodes that are recorded here.
        horizons: decisions after the last observed frame.
        context: real frames observed before imagining.
        steps: denoising steps; 0 is the model's default.
        batch: episodes imagined at once.
        probe: folder of the position reader; empty is the bundled one.
        films: of how many episodes to write strip and film.
        seed: of recording, of the model's noise, and of who gets whose actions.
    """

    output: str = "runs/imagination"
    model: str = "kairos-tiny"
    device: str = "cpu"
    data: str = ""
    episodes: int = 60
    decisions: int = 50
    first_initial_state: int = INITIAL_STATES["imagination"].start
    horizons: tuple[int, ...] = HORIZONS
    context: int = 1
    steps: int = 0
    batch: int = 16
    probe: str = ""
    films: int = 6
    seed: int = 0


def run_imagination(config: ImaginationConfig, progress: bool = False) -> ImaginationReport:
    """Records or reads held-out episodes, compares imagination with them, and writes numbers, page and films."""
    from tqdm import tqdm

    from kairos_env.datasets.hdf5.recorded import EpisodeFile

    probe = Probe.load(config.probe)
    model = roster.load_model(config.model, config.device)
    settings = dataclasses.asdict(config)
    identity = {k: v for k, v in settings.items() if k not in ("output", "episodes", "batch", "films", "device")}
    identity |= {"model_digest": roster.model_digest(config.model)}
    folder = open_run(config.output, identity, {"config": settings})
    file = EpisodeFile(config.data or _record(config, model, progress))
    model.spec.require_same(file.spec, "model", "data")
    episodes = [file[i] for i in range(min(config.episodes, len(file)))]
    with tqdm(total=len(episodes), unit="episode", disable=not progress) as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        report = evaluate_imagination(
            model,
            episodes,
            config.horizons,
            probe=probe,
            context=config.context,
            steps=config.steps or None,
            batch=config.batch,
            seed=config.seed,
            films=config.films,
            on_batch=show,
        )
    report.save(folder)
    return report


def _record(config: ImaginationConfig, model: WorldModel, progress: bool) -> Path:
    from kairos_env.collect.plans import RecordConfig
    from kairos_env.collect.recorder import record

    recording = RecordConfig(
        out=str(Path(config.output) / "episodes"),
        episodes=config.episodes,
        workers=1,
        seed=config.seed,
        decisions=config.decisions,
        model=config.model,
        first_initial_state=config.first_initial_state,
    )
    return record(recording, progress=progress).folder


def evaluate_imagination(
    model: WorldModel,
    episodes: Sequence[Episode],
    horizons: Sequence[int] = HORIZONS,
    *,
    probe: Probe | None = None,
    mean_frame: Array | None = None,
    context: int = 1,
    steps: int | None = None,
    batch: int = 16,
    seed: int = 0,
    films: int = 4,
    on_batch: Callable[[int], None] | None = None,
) -> ImaginationReport:
    """Compares open-loop imagination with recorded episodes that the model was not trained on.

    Args:
        model: a world model of the episodes' robot.
        episodes: held out. Only moving ones count (`MOVING_PATH_CM`); horizons beyond an episode's end
            are left out for it.
        horizons: decisions after the last observed frame.
        probe: reads positions; None leaves the centimetres out.
        mean_frame: uint8 (H, W, 3), of the training data; default the probe's, else the mean of
            ``episodes``, which favours that control.
        context: how many real frames are observed before imagining.
        steps: denoising steps.
        batch: episodes imagined at once; the result does not depend on it.
        seed: of the model's noise and of who gets whose actions.
        films: of how many episodes to keep the frames.
        on_batch: called with the number of episodes done.

    Raises:
        SpecMismatch: episodes of another robot.
        ValueError: no moving episode, or an illegal horizon or context.
    """
    if context < 1 or not horizons or min(horizons) < 1:
        raise ValueError(f"context and horizons must be >= 1, got {context} and {list(horizons)}")
    horizons = tuple(sorted(set(horizons)))
    first = context - 1
    moving = moving_episodes(episodes, model.spec, first)
    if not moving:
        raise ValueError(
            f"none of the {len(episodes)} episodes moves the gripper by {MOVING_PATH_CM:g} cm after {context} frame(s)"
        )
    camera = probe.camera if probe else model.spec.cameras[0].name
    if mean_frame is None:
        mean_frame = probe.mean_frame if probe else _mean_frame(moving, camera)
    futures = _shuffled_actions(moving, first, seed)
    shape = (len(moving), len(horizons))
    values = {c: {m: np.full(shape, math.nan) for m in METRICS} for c in CONDITIONS}
    moved, own_success = np.full(shape, math.nan), np.full((len(moving), 2), math.nan)
    kept: dict[str, dict[str, Array]] = {}
    names = tuple(f"{i}: {e.task} {e.source} {e.initial_state}" for i, e in enumerate(moving))
    # Episodes of one length share a batch, so that nothing is imagined beyond their end.
    order = sorted(range(len(moving)), key=lambda i: len(moving[i]))
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        chosen = [moving[i] for i in group]
        length = min(horizons[-1], max(len(e) for e in chosen) - first)
        state = _observe(model, chosen, first, seeds=[seed * 1_000_003 + i for i in group])
        true = np.stack([_fit(e.actions[first:], length) for e in chosen])
        plans = {
            "imagined": true,
            "shuffled": np.stack([_fit(futures[i], length) for i in group]),
            "zero": np.zeros_like(true),
        }
        rollouts = {name: model.imagine(state, actions, steps=steps) for name, actions in plans.items()}
        for place, index in enumerate(group):
            episode = moving[index]
            reached = [h for h in horizons if h <= len(episode) - first]
            columns = [horizons.index(h) for h in reached]
            truth = _Truth.of(episode, first, [first + h for h in reached], camera, model.spec, probe)
            moved[index, columns] = truth.cube_moved_cm
            films_here = {n: model.decode(roll.latents[place])[camera] for n, roll in rollouts.items()}
            frames = {name: film[[h - 1 for h in reached]] for name, film in films_here.items()}
            frames["copy"] = np.broadcast_to(episode.images[camera][first], truth.images.shape)
            frames["mean"] = np.broadcast_to(mean_frame, truth.images.shape)
            frames["codec"] = model.decode(model.encode([episode.observation(first + h) for h in reached]))[camera]
            for condition, seen in frames.items():
                for metric, column in truth.compare(seen).items():
                    values[condition][metric][index, columns] = column
            for condition, roll in rollouts.items():
                own = roll.proprio[place].cpu().numpy()[[h - 1 for h in reached]][:, gripper_fields(model.spec)]
                values[condition]["own_gripper_cm"][index, columns] = _distance_cm(own, truth.gripper)
            end = min(length, len(episode) - first)
            sure = float(rollouts["imagined"].success[place, :end].max())
            own_success[index] = sure, bool(episode.success[first : first + end].any())
            if index < films:
                begin = episode.images[camera][[first]]
                kept[names[index]] = {name: np.concatenate([begin, film[:end]]) for name, film in films_here.items()}
                kept[names[index]]["real"] = episode.images[camera][first : first + end + 1]
        if on_batch is not None:
            on_batch(min(start + batch, len(order)))
    kept = {name: kept[name] for name in names if name in kept}
    floor = probe.floor if probe else {}
    return ImaginationReport(horizons, values, moved, names, len(episodes) - len(moving), floor, kept, own_success)


def moving_episodes(episodes: Sequence[Episode], spec: RobotSpec, first: int = 0) -> list[Episode]:
    """Those in which the gripper travels at least `MOVING_PATH_CM` in the `MOVING_DECISIONS` after frame ``first``."""
    fields, last = gripper_fields(spec), first + MOVING_DECISIONS + 1
    return [e for e in episodes if len(e) > first and path_cm(e.proprio[first:last, fields]) >= MOVING_PATH_CM]


def path_cm(positions: Array) -> float:
    """How far something travels through (T, 3) positions in metres, in centimetres."""
    return float(100 * np.linalg.norm(np.diff(positions.astype(np.float64), axis=0), axis=-1).sum())


@dataclass(frozen=True)
class _Truth:
    """Reality at n horizons of one episode, and how frames compare with it."""

    images: Array
    gripper: Array
    cube: Array | None
    cube_moved_cm: Array
    probe: Probe | None

    @classmethod
    def of(
        cls, episode: Episode, first: int, at: Sequence[int], camera: str, spec: RobotSpec, probe: Probe | None
    ) -> _Truth:
        gripper = episode.proprio[list(at)][:, gripper_fields(spec)]
        labels = episode.labels.get("object_position")
        cube = None if labels is None else np.asarray(labels)[list(at)]
        moved = np.full(len(at), math.nan) if labels is None else _distance_cm(cube, labels[first])
        return cls(episode.images[camera][list(at)], gripper, cube, moved, probe)

    def compare(self, images: Array) -> dict[str, Array]:
        """Frames uint8 (n, H, W, 3) -> metric -> (n,)."""
        found = {
            "psnr": psnr(images, self.images),
            "ssim": ssim(images, self.images),
            "mse": mean_squared_error(images, self.images),
        }
        if self.probe is None:
            return found
        reading = self.probe.read(images)
        found["gripper_cm"] = _distance_cm(reading.gripper, self.gripper)
        if self.cube is not None:
            there = red_pixels(self.images)
            visible = there >= VISIBLE_PIXELS
            found["cube_cm"] = np.where(visible, _distance_cm(reading.cube, self.cube), math.nan)
            found["cube_there"] = np.where(visible, reading.cube_visible > 0.5, math.nan)
            found["red_ratio"] = np.where(visible, red_pixels(images) / np.maximum(there, 1), math.nan)
        return found


def _observe(model: WorldModel, episodes: Sequence[Episode], first: int, seeds: Sequence[int]) -> Any:
    state = model.observe([e.observation(0) for e in episodes], seeds=seeds)
    for t in range(first):
        actions = np.stack([e.actions[t] for e in episodes])
        state = model.observe([e.observation(t + 1) for e in episodes], state, actions)
    return state


def _shuffled_actions(episodes: Sequence[Episode], first: int, seed: int) -> list[Array]:
    """For each episode the actions of another one: neighbours in a random ring."""
    ring = np.random.default_rng([seed, 3]).permutation(len(episodes))
    donors = np.empty(len(episodes), int)
    donors[ring] = np.roll(ring, 1)
    return [np.asarray(episodes[donor].actions[first:]) for donor in donors]


def _fit(actions: Array, length: int) -> Array:
    """(T, A) -> (length, A), cut or repeated from the start."""
    return np.asarray(actions)[np.arange(length) % len(actions)]


def _distance_cm(a: Any, b: Any) -> Array:
    return np.asarray(100 * np.linalg.norm(np.asarray(a, np.float64) - b, axis=-1))


def _mean_frame(episodes: Sequence[Episode], camera: str) -> Array:
    total = np.mean([e.images[camera].mean(0, dtype=np.float64) for e in episodes], axis=0)
    return np.asarray(total.round(), np.uint8)
