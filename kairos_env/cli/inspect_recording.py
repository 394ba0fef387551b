"""`kairos data inspect` of recordings whose files say what they hold: HDF5 of any layout, and cached latents."""

from __future__ import annotations

import shlex
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.cli.values import print_json

if TYPE_CHECKING:
    from kairos_env.datasets.recording import Recording
    from kairos_env.datasets.statistics import DatasetStatistics
    from kairos_env.datasets.video.captioned import CaptionedFilms
    from kairos_env.records import Episode

LAYOUTS = {
    "EpisodeFile": "a recording of kairos record",
    "LiberoFile": "LIBERO",
    "RobomimicFile": "robomimic",
    "RoboTwinFile": "RoboTwin",
    "LatentCache": "latents of kairos data encode",
}


def _inspect_films(path: str, films: CaptionedFilms, json: bool) -> int:
    """The same of captioned films, in which nobody acts; every file's clock has been read."""
    camera, rate = films.spec.cameras[0], films.spec.control_rate_hz
    facts = {
        "films": len(films),
        "hours": round(films.total / rate / 3600, 3),
        "pictures": f"{camera.height} x {camera.width} at {rate:g} Hz",
        "seconds": [round(bound(films.lengths, default=0) / rate, 1) for bound in (min, max)],
        "most_words": max((len(text.split()) for text in films.texts), default=0),
    }
    problems = [f"{name}: {why}" for name, why in films.broken.items()]
    command = f"kairos train --data.path runs/record --data.more {shlex.quote(path)}"
    if json:
        print_json(facts | {"problems": problems, "next": command})
        return int(bool(problems))
    print("\n".join([f"{path}: captioned films", *(f"  {key}: {value}" for key, value in facts.items())]))
    print("\n".join(["", *(["problems", *(f"  {line}" for line in problems)] if problems else ["no problems"])]))
    print(f"\nnext\n  they have no robot: mix them with a robot's recording\n\n  {command}")
    return int(bool(problems))


def inspect_recording(path: str, quick: bool, json: bool) -> int:
    """Shows what a recording holds and what to type next; 1 if something in it cannot be used.

    Args:
        quick: open it and read one episode; without it every episode is read, pictures too.
        json: print one JSON object.
    """
    from kairos_env.cli.proposal import propose
    from kairos_env.datasets.layouts import open_recording
    from kairos_env.datasets.video.captioned import CaptionedFilms, is_captioned

    if is_captioned(path):
        with warnings.catch_warnings(action="ignore"):
            films = CaptionedFilms(path)
        return _inspect_films(path, films, json)
    with warnings.catch_warnings(action="ignore"):  # what they say is listed below
        recording = open_recording(path)
        tasks: Counter[str] = Counter()
        found = _statistics(recording, tasks, quick)
    problems = [f"{name}: {why}" for name, why in recording.broken.items()]
    if not len(recording):
        problems.append("no episode can be used")
    command = propose(recording).command(path) if len(recording) else ""
    if json:
        print_json(_contents(path, recording, found) | {"tasks": sorted(tasks), "problems": problems, "next": command})
        return int(bool(problems))
    print(_overview(path, recording, tasks))
    print(f"\nrobot {recording.spec.name}\n{_fields(recording, found)}")
    if problems:
        print("\nproblems\n" + "\n".join(f"  {line}" for line in problems))
    if command:
        reasons = [f"  {reason}" for reason in propose(recording).reasons]
        left_out = ["  what is broken is named and left out"] if problems else []
        print(
            "\n".join(["", *([] if problems else ["no problems", ""]), "next", *left_out, *reasons, "", f"  {command}"])
        )
    return int(bool(problems))


def _statistics(recording: Recording, tasks: Counter[str], quick: bool) -> dict[str, DatasetStatistics]:
    """Of proprioception and actions; counts the tasks."""
    from kairos_env.datasets.statistics import RunningStatistics

    running = {"proprio": RunningStatistics(), "action": RunningStatistics()}
    for episode in _read(recording, quick):
        tasks[episode.instruction or episode.task] += 1
        running["proprio"].update(episode.proprio)
        running["action"].update(episode.actions)
    return {name: each.result() for name, each in running.items() if tasks}


def _read(recording: Recording, quick: bool) -> Iterator[Episode]:
    from tqdm import tqdm

    total = min(1, len(recording)) if quick else len(recording)
    for _, episode in tqdm(recording.sound(), total=total, desc="episodes", unit="episode", leave=False, disable=None):
        yield episode
        if quick:
            return


def _overview(path: str, recording: Recording, tasks: Counter[str]) -> str:
    rate, frames = recording.spec.control_rate_hz, recording.total + len(recording)
    shown = ", ".join(map(repr, sorted(tasks)[:3])) + (", ..." if len(tasks) > 3 else "")
    return (
        f"dataset   {path}: {LAYOUTS[type(recording).__name__]}\n"
        f"episodes  {len(recording)}, {frames:,} frames at {rate:.4g} Hz ({frames / rate / 60:.1f} min), "
        f"{recording.total:,} decisions\n"
        f"tasks     {len(tasks)}" + (f": {shown}" if tasks else "")
    )


def _fields(recording: Recording, found: dict[str, DatasetStatistics]) -> str:
    from kairos_env.datasets.lerobot.mapping import table

    spec = recording.spec
    rows = [("camera", c.name, f"{c.height} x {c.width}", "", "", *[""] * 5) for c in spec.cameras]
    for what, fields in (("proprio", spec.proprio), ("action", spec.action)):
        for i, field in enumerate(fields):
            values = [""] * 5
            if what in found:
                seen = found[what]
                moments = (seen.min, seen.quantiles["q01"], seen.mean, seen.quantiles["q99"], seen.max)
                values = [f"{float(np.asarray(moment)[i]):.4g}" for moment in moments]
            limits = f"{field.low:.4g} ... {field.high:.4g}"
            rows.append((what, field.name, limits, field.unit or "?", field.kind, *values))
    return table(("", "name", "range", "unit", "kind", "min", "q01", "mean", "q99", "max"), rows)


def _contents(path: str, recording: Recording, found: dict[str, DatasetStatistics]) -> dict[str, Any]:
    """The report's facts by name."""
    spec = recording.spec
    return {
        "dataset": path,
        "layout": LAYOUTS[type(recording).__name__],
        "robot": spec.name,
        "episodes": len(recording),
        "decisions": recording.total,
        "rate_hz": spec.control_rate_hz,
        "cameras": {c.name: [c.height, c.width] for c in spec.cameras},
        "proprio": [f.name for f in spec.proprio],
        "action": [f.name for f in spec.action],
        "statistics": {
            key: {name: getattr(s, name).tolist() for name in ("min", "max", "mean", "std")} for key, s in found.items()
        },
    }
