"""`kairos train`: recorded episodes in, a finished model folder out.

The model's own training code knows neither file formats nor film strips; here the three are joined.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kairos_env.datasets.robomimic import EpisodeFile
from kairos_env.eval.media import film_strip, write_png
from kairos_env.options import compose, describe
from kairos_env.records import Array, Episode
from kairos_env.world_model.training.trainer import TrainConfig, train


@dataclass(frozen=True)
class DataConfig:
    """What to learn from.

    Args:
        path: a recording of `kairos record`, or any HDF5 file of that layout.
        more: further recordings of the same robot.
        limit: use at most so many episodes.
    """

    path: str = "runs/record"
    more: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class TrainRun(TrainConfig):
    """A training run and its data."""

    data: DataConfig = field(default_factory=DataConfig)


def load_episodes(config: DataConfig) -> tuple[list[Episode], EpisodeFile]:
    """Reads all usable episodes into memory; broken ones are named in warnings.

    Raises:
        FileNotFoundError: nothing there.
        SpecMismatch: recordings of different robots.
    """
    from tqdm import tqdm

    file = EpisodeFile([config.path, *config.more])
    wanted = len(file) if config.limit is None else min(config.limit, len(file))
    episodes: list[Episode] = []
    for episode in tqdm(file, total=wanted, desc="episodes", unit="episode"):
        if len(episodes) == wanted:
            break
        episodes.append(episode)
    return episodes, file


def instructions(episodes: Sequence[Episode]) -> dict[str, str]:
    """Task name -> instruction, of the tasks that the episodes were recorded for.

    Raises:
        ValueError: one task with two instructions.
    """
    found: dict[str, str] = {}
    for episode in episodes:
        before = found.setdefault(episode.task, episode.instruction)
        if before != episode.instruction:
            raise ValueError(f"task {episode.task!r} has two instructions: {before!r} and {episode.instruction!r}")
    return dict(sorted(found.items()))


def write_strip(imagined: Array, real: Array, path: Path) -> None:
    """One validation rollout above what really happened: uint8 (T, H, W, 3) each."""
    write_png(path, film_strip({"imagined": imagined, "real": real}))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `kairos train`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any of the keys below")
    parser.add_argument("--show", action="store_true", help="print the resolved configuration and stop")
    parser.epilog = f"{parser.epilog or ''}\n\nkeys and their defaults:\n{describe(TrainRun)}"


def main(args: argparse.Namespace) -> int:
    """Trains, or resumes, the run that the overrides describe."""
    config = compose(TrainRun, args.overrides)
    if args.show:
        print(json.dumps(asdict(config), indent=2))
        return 0
    episodes, file = load_episodes(config.data)
    folder = train(config, episodes, file.spec, instructions(episodes), strip=write_strip)
    print(f"finished: {folder}\ntry it:   kairos demo --model {folder}")
    return 0
