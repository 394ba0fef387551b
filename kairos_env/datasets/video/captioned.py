"""Captioned films as episodes in which nobody's actions are known.

A file of JSON lines, or a folder that holds one, says what each film shows, as fine-tuning on video is fed everywhere::

    {"video": "clips/000.mp4", "caption": "A red ball rolls to the left.", "instruction": "...", "start": 2, "end": 7}

``video`` is relative to that file. ``instruction`` is a short form of the caption, ``start`` and ``end`` in seconds cut
a piece out; they may be left out. A folder of films without such a file has a text beside each: ``000.mp4``,
``000.txt``.

Read as a robot's, a film is what its first camera saw, at its rate; proprioception and actions are masked.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kairos_env.datasets.conform import resized
from kairos_env.datasets.foreign import read_json_lines, read_utf8
from kairos_env.datasets.recording import BrokenEpisode, Recording
from kairos_env.datasets.video.reader import BrokenVideo, VideoFrames
from kairos_env.records import Array, Camera, Episode, RobotSpec

FILMS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
CAMERA = "film"
_KEYS = ("video", "caption", "instruction", "start", "end")
_SOURCE = "film"


@dataclass(frozen=True)
class CaptionedFilm:
    """One film, or a piece of one.

    Args:
        path: of the file.
        caption: what happens, in detail.
        instruction: the same in short; empty for the caption.
        start, end: seconds on the file's clock; None is its end.
    """

    path: Path
    caption: str
    instruction: str = ""
    start: float = 0.0
    end: float | None = None


class CaptionedFilms(Recording):
    """The films of a folder or of a file of JSON lines.

    Args:
        path: of either.
        spec: the robot as whose first camera they are read; None: a robot without fields, whose camera has size and
            rate of the first film.

    Raises:
        FileNotFoundError: no film there.
        ValueError: a line without film or caption, or with keys that mean nothing.
    """

    def __init__(self, path: str | os.PathLike[str], spec: RobotSpec | None = None) -> None:
        super().__init__()
        self.path, self._frames, broken = Path(path), VideoFrames(), {}
        self._films: list[CaptionedFilm] = []
        self._times: list[Array] = []
        for film in read_captions(self.path):
            try:
                clock = self._frames.clock(film.path)
                spec = spec or self._own(film.path, clock)
                times = _sampled(clock, film, spec.control_rate_hz)
            except (BrokenVideo, BrokenEpisode) as error:
                broken[str(film.path)] = str(error)
                continue
            self._films.append(film)
            self._times.append(times)
            self.names.append(str(film.path))
            self.lengths.append(len(times) - 1)
        if spec is None:
            raise FileNotFoundError(f"{path} has no film that can be read: {'; '.join(broken.values())}")
        self.spec = spec
        self.leave_out(broken)

    @property
    def texts(self) -> list[str]:
        """All captions and instructions."""
        return sorted({text for film in self._films for text in (film.caption, film.instruction or film.caption)})

    def seen_by(self, spec: RobotSpec) -> CaptionedFilms:
        """The same films as those of another robot's first camera."""
        return CaptionedFilms(self.path, spec)

    def _own(self, film: Path, clock: Array) -> RobotSpec:
        facts = self._frames.facts(film)
        rate = (len(clock) - 1) / float(clock[-1] - clock[0]) if len(clock) > 1 else 1.0
        return RobotSpec("film", (Camera(CAMERA, facts.height, facts.width),), (), (), round(rate, 3))

    def _episode(self, index: int) -> Episode:
        film, times, spec = self._films[index], self._times[index], self.spec
        camera = spec.cameras[0]

        def picture(image: Array) -> Array:
            return np.asarray(resized(image[None], camera)[0])

        try:
            images = self._frames.read(film.path, times, 1e-4, picture)
        except BrokenVideo as error:
            raise BrokenEpisode(str(error)) from None
        steps = len(times) - 1
        proprio, action = (
            np.array([(f.low + f.high) / 2 for f in fields], np.float32) for fields in (spec.proprio, spec.action)
        )
        return Episode(
            images={camera.name: images},
            proprio=np.tile(proprio, (steps + 1, 1)),
            actions=np.tile(action, (steps, 1)),
            rewards=np.zeros(steps, np.float32),
            success=np.zeros(steps, np.bool_),
            instruction=film.instruction or film.caption,
            caption=film.caption,
            source=_SOURCE,
            proprio_mask=np.zeros(spec.proprio_dim, bool),
            action_mask=np.zeros(spec.action_dim, bool),
            outcome_known=False,
        )


def _sampled(clock: Array, film: CaptionedFilm, rate: float) -> Array:
    """Times of the frames nearest to a beat of ``rate``, each of which is taken once.

    Raises:
        BrokenEpisode: fewer than two.
    """
    end = clock[-1] if film.end is None else min(film.end, clock[-1])
    beats = np.arange(film.start, end + 1e-6, 1 / rate)
    after = np.searchsorted(clock, beats).clip(1, max(1, len(clock) - 1))
    if len(clock) > 1:
        nearer = np.where(beats - clock[after - 1] < clock[after] - beats, after - 1, after)
        times = clock[np.unique(nearer)]
        if len(times) == len(beats) > 1:
            return np.asarray(times)
        if len(beats) > 1:
            raise BrokenEpisode(f"it has {len(clock)} frames, too few for {rate:g} pictures a second")
    raise BrokenEpisode(f"it shows {max(0.0, float(end - film.start)):.2f} s, less than a step of {1 / rate:g} s")


# what stands beside films ---------------------------------------------------------------------------------------------


def is_captioned(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file of JSON lines, or a folder with films or with such a file that names them."""
    place = Path(path)
    if place.is_file():
        return place.suffix == ".jsonl"
    return place.is_dir() and (any(_films(place)) or _captions(place) is not None)


def read_captions(path: Path) -> list[CaptionedFilm]:
    """What a folder or a file of JSON lines says about its films.

    Raises:
        FileNotFoundError: no film there.
        ValueError: a line without film or caption, or a film without a text beside it.
    """
    lines = path if path.is_file() else _captions(path)
    if lines is None:
        found = [CaptionedFilm(film, _text_beside(film)) for film in _films(path)]
    else:
        rows = enumerate(read_json_lines(lines), 1)
        found = [_film(row, f"{lines}, entry {number}", lines.parent) for number, row in rows]
    if not found:
        raise FileNotFoundError(f"{path} names no film")
    return found


def _captions(folder: Path) -> Path | None:
    """The file of JSON lines that names a folder's films; None where there is none, or several."""
    found = [p for p in sorted(folder.glob("*.jsonl")) if b'"video"' in p.read_bytes()[:4096]]
    return found[0] if len(found) == 1 else None


def _films(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.iterdir()) if p.suffix.lower() in FILMS)


def _text_beside(film: Path) -> str:
    text = film.with_suffix(".txt")
    if not text.is_file():
        raise ValueError(f"{film} has no caption: write it to {text.name}, or list all films in a .jsonl file")
    return read_utf8(text).strip()


def _film(row: object, where: str, folder: Path) -> CaptionedFilm:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is no mapping of {', '.join(_KEYS)} but {row!r}")
    for key in ("video", "caption"):
        if not isinstance(row.get(key), str) or (key == "video" and not row[key]):
            raise ValueError(f"{where} has no {key!r} ({', '.join(map(str, row)) or 'empty'}); every film needs one")
    times = {}
    for key in ("start", "end"):
        value = row.get(key)
        if value is not None and not (isinstance(value, int | float) and value >= 0):
            raise ValueError(f"{where}: {key!r} is a time in seconds, got {value!r}")
        times[key] = value
    film = CaptionedFilm(folder / row["video"], row["caption"], str(row.get("instruction") or ""))
    return dataclasses.replace(film, start=float(times["start"] or 0), end=times["end"])
