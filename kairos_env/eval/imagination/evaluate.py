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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.eval.imagination.held_out import record_held_out
from kairos_env.eval.imagination.image_metrics import (
    VISIBLE_PIXELS,
    mean_squared_error,
    psnr,
    red_pixels,
    red_spots,
    ssim,
)
from kairos_env.eval.imagination.probe import Probe, as_open
from kairos_env.eval.imagination.report import (
    CONDITIONS,
    METRICS,
    MOVING_DECISIONS,
    MOVING_PATH_CM,
    ImaginationReport,
)
from kairos_env.media import joined_views
from kairos_env.policies.make import load_model, model_digest
from kairos_env.records import Array, Episode, RobotSpec
from kairos_env.runs import INITIAL_STATES, open_run
from kairos_env.training.held_out import unseen_episodes

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel

HORIZONS = (1, 5, 10, 20, 50)


@dataclass(frozen=True)
class ImaginationConfig:
    """Settings of a comparison.

    Args:
        output: the folder of the run.
        model: the world model that imagines.
        device: of the model.
        data: a recording, of any layout with pictures, which are resized to the model's. Of one that the model was
            trained on, the episodes that were held out are used. Empty: episodes are recorded in the simulator, into
            ``<output>/episodes``, from initial states that no training data use.
        feature_map: what a LeRobot dataset's features mean, as in training; by default that is guessed.
        simulator: where they are recorded: a Gymnasium id, or module:factory; made for the model's robot.
        options: of the simulator's constructor.
        episodes: how many, moving or not.
        decisions: length of the episodes that are recorded here.
        first_initial_state: of the episodes that are recorded here.
        horizons: decisions after the last observed frame.
        context: real frames observed before imagining.
        steps: denoising steps; 0 is the model's default.
        batch: episodes imagined at once.
        probe: folder of the position reader; empty is the bundled one, for robots that it can read.
        films: of how many episodes to write strip and film.
        seed: of recording, of the model's noise, and of who gets whose actions.
    """

    output: str = "runs/imagination"
    model: str = "kairos-tiny"
    device: str = "cpu"
    data: str = ""
    feature_map: str = ""
    simulator: str = "Kairos-Robosuite-v0"
    options: dict[str, Any] = field(default_factory=dict)
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

    def __post_init__(self) -> None:
        _check_horizons(self.context, self.horizons)


def run_imagination(
    config: ImaginationConfig, progress: bool = False, say: Callable[[str], None] = lambda text: None
) -> ImaginationReport:
    """Records or reads held-out episodes, compares imagination with them, and writes numbers, page and films.

    Args:
        say: is told which episodes are used.
    """
    from tqdm import tqdm

    model = load_model(config.model, config.device)
    reader = Probe.load(config.probe)
    if config.probe:
        reader.require_readable(model.spec)
    probe = reader if reader.can_read(model.spec) else None
    settings = dataclasses.asdict(config)
    identity = {k: v for k, v in settings.items() if k not in ("output", "episodes", "batch", "films", "device")}
    identity |= {"model_digest": model_digest(config.model)}
    data = config.data or str(record_held_out(config, Path(config.output) / "episodes", progress))
    unseen = unseen_episodes(config.model, model.spec, data, config.feature_map)
    if config.data:
        say(unseen.note)
    folder = open_run(config.output, identity, {"config": settings})  # once nothing else can be wrong
    episodes = unseen.read(config.episodes)
    if not all(episode.images for episode in episodes):
        raise ValueError(
            f"{config.data} has no pictures, which imagination is compared with: give the recording itself"
        )
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


def _check_horizons(context: int, horizons: Sequence[int]) -> None:
    if context < 1 or not horizons or min(horizons) < 1:
        raise ValueError(f"context and horizons must be >= 1, got {context} and {list(horizons)}")


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
        probe: reads positions in the pictures of one camera, which are compared; None leaves the centimetres out and
            compares those of all cameras, side by side.
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
    _check_horizons(context, horizons)
    first = context - 1
    moving = moving_episodes(episodes, model.spec, first)
    if not moving:
        raise ValueError(
            f"none of the {len(episodes)} episodes moves the hand by {MOVING_PATH_CM:g} cm after {context} frame(s)"
        )
    cameras = (probe.camera,) if probe else tuple(c.name for c in model.spec.cameras)
    if mean_frame is None:
        mean_frame = probe.mean_frame if probe else _mean_frame(moving, cameras)
    found = _Findings(model, tuple(sorted(set(horizons))), first, cameras, probe, mean_frame, moving)
    futures = _shuffled_actions(moving, first, seed)
    # Episodes of one length share a batch, so that nothing is imagined beyond their end.
    order = sorted(range(len(moving)), key=lambda i: len(moving[i]))
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        chosen = [moving[i] for i in group]
        length = min(found.horizons[-1], max(len(e) for e in chosen) - first)
        state = _observe(model, chosen, first, seeds=[seed * 1_000_003 + i for i in group])
        true = np.stack([_fit(e.actions[first:], length) for e in chosen])
        plans = {
            "imagined": true,
            "shuffled": np.stack([_fit(futures[i], length) for i in group]),
            "zero": np.zeros_like(true),
        }
        rollouts = {name: model.imagine(state, actions, steps=steps) for name, actions in plans.items()}
        for place, index in enumerate(group):
            found.add(index, rollouts, place, keep=index < films)
        if on_batch is not None:
            on_batch(min(start + batch, len(order)))
    return found.report(len(episodes) - len(moving))


class _Findings:
    """Every episode's numbers, as they come.

    Args:
        model: what imagines.
        horizons: decisions after the last observed frame.
        first: index of that frame.
        cameras: whose pictures are compared, side by side.
        probe: reads positions in them.
        mean_frame: of the training data.
        episodes: all of them.
    """

    def __init__(
        self,
        model: WorldModel,
        horizons: tuple[int, ...],
        first: int,
        cameras: Sequence[str],
        probe: Probe | None,
        mean_frame: Array,
        episodes: Sequence[Episode],
    ) -> None:
        self.model, self.horizons, self.first, self.cameras = model, horizons, first, cameras
        self.probe, self.mean_frame, self.episodes = probe, mean_frame, episodes
        shape = (len(episodes), len(horizons))
        self.values = {c: {m: np.full(shape, math.nan) for m in METRICS} for c in CONDITIONS}
        self.moved, self.own_success = np.full(shape, math.nan), np.full((len(episodes), 2), math.nan)
        self.films: dict[int, dict[str, Array]] = {}

    def add(self, index: int, rollouts: Mapping[str, Any], place: int, keep: bool) -> None:
        """Compares one episode with what was imagined of it.

        Args:
            index: of the episode.
            rollouts: condition -> what the model imagined of a batch.
            place: of the episode in the batch.
            keep: keep its frames.
        """
        model, episode, first = self.model, self.episodes[index], self.first
        pictures = joined_views(episode.images, self.cameras)
        reached = [h for h in self.horizons if h <= len(episode) - first]
        columns = [self.horizons.index(h) for h in reached]
        truth = _Truth.of(episode, first, [first + h for h in reached], pictures, model.spec, self.probe)
        self.moved[index, columns] = truth.cube_moved_cm
        films = {n: joined_views(model.decode(roll.latents[place]), self.cameras) for n, roll in rollouts.items()}
        frames = {name: film[[h - 1 for h in reached]] for name, film in films.items()}
        frames["copy"] = np.broadcast_to(pictures[first], truth.images.shape)
        frames["mean"] = np.broadcast_to(self.mean_frame, truth.images.shape)
        coded = model.decode(model.encode([episode.observation(first + h) for h in reached]))
        frames["codec"] = joined_views(coded, self.cameras)
        for condition, seen in frames.items():
            for metric, column in truth.compare(seen).items():
                self.values[condition][metric][index, columns] = column
        if model.spec.hand_fields:
            for condition, roll in rollouts.items():
                own = roll.proprio[place].cpu().numpy()[[h - 1 for h in reached]][:, model.spec.hand_fields]
                self.values[condition]["own_gripper_cm"][index, columns] = _distance_cm(own, truth.gripper)
                moved = _distance_cm(own, episode.proprio[first, model.spec.hand_fields])
                self.values[condition]["own_gripper_moved_cm"][index, columns] = moved
        end = min(len(films["imagined"]), len(episode) - first)
        sure = float(rollouts["imagined"].success[place, :end].max())
        real = bool(episode.success[first : first + end].any()) if episode.outcome_known else math.nan
        self.own_success[index] = sure, real
        if keep:
            begin = pictures[[first]]
            self.films[index] = {name: np.concatenate([begin, film[:end]]) for name, film in films.items()}
            self.films[index]["real"] = pictures[first : first + end + 1]

    def report(self, skipped: int) -> ImaginationReport:
        """The report; ``skipped`` episodes did not move."""
        names = tuple(f"{i}: {e.task} {e.source} {e.initial_state}" for i, e in enumerate(self.episodes))
        films = {names[index]: self.films[index] for index in sorted(self.films)}
        floor = self.probe.floor if self.probe else {}
        return ImaginationReport(self.horizons, self.values, self.moved, names, skipped, floor, films, self.own_success)


def moving_episodes(episodes: Sequence[Episode], spec: RobotSpec, first: int = 0) -> list[Episode]:
    """Those in which the hand travels at least `MOVING_PATH_CM` in the `MOVING_DECISIONS` after frame ``first``.

    A robot that does not say where its hand is moves in all of them.
    """
    fields, last = spec.hand_fields, first + MOVING_DECISIONS + 1
    if not fields:
        return [e for e in episodes if len(e) > first]
    return [e for e in episodes if len(e) > first and path_cm(e.proprio[first:last, fields]) >= MOVING_PATH_CM]


def path_cm(positions: Array) -> float:
    """Length in centimetres of a path through (T, 3) positions in metres."""
    return float(100 * np.linalg.norm(np.diff(positions.astype(np.float64), axis=0), axis=-1).sum())


@dataclass(frozen=True)
class _Truth:
    """Reality at n horizons of one episode, and how frames compare with it."""

    images: Array
    observed: Array  # the last observed picture
    gripper: Array
    cube: Array | None
    cube_moved_cm: Array
    proprio: Array
    spec: RobotSpec
    probe: Probe | None

    @classmethod
    def of(
        cls, episode: Episode, first: int, at: Sequence[int], pictures: Array, spec: RobotSpec, probe: Probe | None
    ) -> _Truth:
        gripper = episode.proprio[list(at)][:, spec.hand_fields]
        labels = episode.labels.get("object_position")
        cube = None if labels is None else np.asarray(labels)[list(at)]
        moved = np.full(len(at), math.nan) if labels is None else _distance_cm(cube, labels[first])
        return cls(pictures[list(at)], pictures[first], gripper, cube, moved, episode.proprio[list(at)], spec, probe)

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
        if (opening := as_open(reading.opening, self.proprio, self.spec)) is not None:
            found["opening_right"] = opening.astype(np.float64)
        found["gripper_moved_cm"] = _distance_cm(reading.gripper, self.probe.read(self.observed).gripper)
        if self.cube is not None:
            found["cube_counted"] = (red_spots(images) == red_spots(self.images)).astype(np.float64)
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


def _mean_frame(episodes: Sequence[Episode], cameras: Sequence[str]) -> Array:
    total = np.mean([joined_views(e.images, cameras).mean(0, dtype=np.float64) for e in episodes], axis=0)
    return np.asarray(total.round(), np.uint8)
