"""Films of episodes: which jobs are filmed, and how a film is written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from kairos_env.eval.rows import Job
from kairos_env.media import film_strip, side_by_side, write_mp4, write_png
from kairos_env.records import Array


def choose_films(jobs: Iterable[Job], count: int, group: Callable[[Job], Hashable]) -> frozenset[Job]:
    """``count`` jobs of each policy and group, by the names of their tasks alone."""
    groups: dict[Hashable, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: (hashlib.sha256(job.task.encode()).digest(), job)):
        groups.setdefault((job.policy, group(job)), []).append(job)
    return frozenset(job for found in groups.values() for job in found[:count])


def film_stem(job: Job) -> str:
    """Where a job's film is in the folder of its run, without ending."""
    words = f"{job.policy}_{job.task}_{job.initial_state}_{job.seed}" + (f"_{job.condition}" if job.condition else "")
    name = re.sub(r"[^\w.=+-]+", "-", words)
    return f"videos/{name[-180:]}"


def write_film(folder: Path, job: Job, success: bool, frames: Array, rate: float) -> None:
    """Writes `film_stem` as an mp4 and as a strip ``.png``; frames are uint8 (T, H, W, 3), rate is in 1/s."""
    caption = f"{job.policy}, {job.task.rpartition('/')[2]}: {'success' if success else 'failure'}"
    stem, scale = folder / film_stem(job), max(1, 256 // frames.shape[1])
    write_mp4(stem.with_name(stem.name + ".mp4"), side_by_side({caption: frames}, scale), rate)
    write_png(stem.with_name(stem.name + ".png"), film_strip({job.policy: frames}, scale=max(1, scale // 2)))
