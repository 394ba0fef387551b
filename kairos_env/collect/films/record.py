"""Generated films in a folder: every film whole or not at all, and the list of captions that training reads.

The folder::

    config.json  launches.jsonl
    clips/000000.mp4 ...       films, and beside each its caption and facts as JSON
    captions.jsonl             video, caption, instruction and facts of all of them; written when all are there
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kairos_env.collect.films.film import GeneratedFilm
from kairos_env.collect.films.hands import hands_clip
from kairos_env.collect.films.physics import physics_clip
from kairos_env.collect.pool import in_workers
from kairos_env.media import write_mp4
from kairos_env.runs import WriteLock, open_run, single_threaded_workers, write_json, write_text

Generator = Callable[[int, int, int, float, float], GeneratedFilm]  # of seed, number, size, seconds and rate
GENERATORS: dict[str, Generator] = {"physics": physics_clip, "hands": hands_clip}
CAPTIONS = "captions.jsonl"
_MAY_CHANGE = ("out", "clips", "workers")


@dataclass(frozen=True)
class FilmsConfig:
    """Settings of a folder of generated films.

    Args:
        out: the folder; one of the same settings is continued.
        scene: physics (bodies that fall, roll, collide, stack) or hands (a hand that does the tasks of the table top).
        clips: how many; may be raised later to make more of the same.
        seconds: length of each.
        rate: pictures a second.
        size: height and width in pixels.
        seed: everything random follows from it and the film's number.
        workers: processes.
    """

    out: str
    scene: Literal["physics", "hands"] = "physics"
    clips: int = 200
    seconds: float = 6.0
    rate: float = 5.0
    size: int = 128
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        for name, least in (("clips", 1), ("workers", 1), ("size", 16), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not (self.rate > 0 and self.seconds * self.rate >= 1):
            raise ValueError(f"{self.seconds:g} s at {self.rate:g} pictures a second are less than two pictures")


def record_films(config: FilmsConfig, progress: bool = True) -> Path:
    """Makes the films that are not there yet; returns the list of captions.

    Raises:
        ConfigMismatch: the folder holds films of other settings.
        RuntimeError: a worker died; what was made is kept, and the same call goes on.
    """
    from tqdm import tqdm

    out = Path(config.out)
    (out / "clips").mkdir(parents=True, exist_ok=True)
    with WriteLock(out, "recording into"), single_threaded_workers():
        values = dataclasses.asdict(config)
        open_run(out, {k: v for k, v in values.items() if k not in _MAY_CHANGE}, {k: values[k] for k in _MAY_CHANGE})
        missing = [number for number in range(config.clips) if not _notes(out, number).exists()]
        bar = tqdm(total=config.clips, initial=config.clips - len(missing), unit="film", disable=not progress)
        with bar:
            workers = min(config.workers, len(missing))
            for _, future in in_workers(_make, missing, workers, _start, config) if workers else ():
                future.result()
                bar.update()
        rows = [json.loads(_notes(out, number).read_text()) for number in range(config.clips)]
        write_text(out / CAPTIONS, "".join(json.dumps(row) + "\n" for row in rows))
    return out / CAPTIONS


def _notes(out: Path, number: int) -> Path:
    """Written last: a film with notes is whole."""
    return out / "clips" / f"{number:06d}.json"


_config: FilmsConfig | None = None


def _start(config: FilmsConfig) -> None:
    global _config
    _config = config


def _make(number: int) -> None:
    assert _config is not None, "the pool's initializer has run"
    write_film(_config, number)


def write_film(config: FilmsConfig, number: int) -> None:
    """Makes one film and writes it with its notes."""
    clip = GENERATORS[config.scene](config.seed, number, config.size, config.seconds, config.rate)
    notes = _notes(Path(config.out), number)
    write_mp4(notes.with_suffix(".mp4"), clip.frames, config.rate)
    own = {"video": f"clips/{number:06d}.mp4", "caption": clip.caption, "instruction": clip.instruction}
    write_json(notes, own | dict(clip.facts))
