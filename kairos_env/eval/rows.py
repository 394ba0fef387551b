"""Jobs, their rows and the append-only file that survives anything.

A job is (policy, simulator, task, initial state, seed, condition). Its row is written once, made durable at once
and never changed. Rows arrive in whatever order the workers finish; readers sort them, so the result
does not depend on how many workers there were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kairos_env.runs import WriteLock, append_jsonl, read_jsonl
from kairos_env.sims.simulator import start_options

STATUSES = ("success", "failure", "error")


@dataclass(frozen=True, order=True)
class Job:
    """One episode to run; equal jobs are the same job, in whatever process."""

    policy: str
    simulator: str
    task: str
    initial_state: int
    seed: int
    condition: str = ""

    @property
    def start(self) -> dict[str, Any]:
        """Options of the simulator's reset."""
        return start_options(self.task, self.initial_state, self.condition)


@dataclass(frozen=True)
class Row:
    """What came of a job.

    Args:
        job: which one.
        status: ``"success"`` or ``"failure"`` for an episode that ran to its end, else ``"error"``: a
            crash or a time-out says nothing about the policy and is never counted as its failure.
        decisions: how many were taken (of a success: until it).
        episode_return: sum of the rewards.
        message: of an error, what happened.
        decision_ms: mean time of one decision of the policy, in milliseconds.
        seconds: wall time of the episode.
        extra: more numbers or texts of this job, JSON values.
    """

    job: Job
    status: str
    decisions: int = 0
    episode_return: float = 0.0
    message: str = ""
    decision_ms: float = 0.0
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a job without a condition says nothing of it."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "job"}
        return {name: value for name, value in asdict(self.job).items() if name != "condition" or value} | flat

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        if "initial_state_id" in data:  # the spelling of older runs
            data["initial_state"] = data.pop("initial_state_id")
        return cls(Job(**{f.name: data.pop(f.name) for f in fields(Job) if f.name in data}), **data)


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a results file, or of the folder of a run with those of all its shards: sorted by job, each job once.

    A torn last line (the process was killed while writing) is left out. If a job has several rows (an
    error that was retried), the first one that is not an error counts, else the last error. Nothing there is no rows.

    Raises:
        ValueError: any other line is not a row.
    """
    path = Path(path)
    rows: dict[Job, Row] = {}
    for file in results_files(path) if path.is_dir() else [path] if path.exists() else []:
        for row in _lines(file):
            if row.job not in rows or rows[row.job].status == "error":
                rows[row.job] = row
    return [rows[job] for job in sorted(rows)]


def results_files(folder: str | Path) -> list[Path]:
    """The results of a run: ``results.jsonl``, and of shards ``results-1-of-3.jsonl`` and so on."""
    return sorted(Path(folder).glob("results*.jsonl"))


def _lines(path: Path) -> Iterator[Row]:
    for data in read_jsonl(path):
        try:
            yield Row.from_dict(data)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: {data} is not a result ({error!r}); delete that line and its job will run again"
            ) from None


def missing_jobs(path: str | Path, jobs: Iterable[Job], retry_errors: bool = False) -> list[Job]:
    """Those of ``jobs`` that have no row in a file or folder, each once; ``retry_errors``: or one of an error only."""
    done = {row.job for row in read_rows(path) if not (retry_errors and row.status == "error")}
    return [job for job in dict.fromkeys(jobs) if job not in done]


def read_runs(folders: Iterable[str | Path]) -> list[Row]:
    """The rows of run folders (the shards of a run, or several runs) together.

    Raises:
        FileNotFoundError: a folder holds no results.
    """
    rows = []
    for folder in folders:
        if not results_files(folder):
            raise FileNotFoundError(f"{folder} is no folder of a run: {Path(folder) / 'results.jsonl'} is not there")
        rows += read_rows(folder)
    return rows


def unique_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows sorted by job, each job once: its result if it has one, else its error.

    Raises:
        ValueError: a job has results that contradict each other.
    """
    found: dict[Job, Row] = {}
    # the text of a row decides between equal ones, so that the order in which they came does not
    for row in sorted(rows, key=lambda row: (row.job, row.status == "error", json.dumps(row.to_dict()))):
        other = found.setdefault(row.job, row)
        if "error" not in (row.status, other.status) and row.status != other.status:
            raise ValueError(
                f"{row.job} has a success and a failure: these rows are of different runs and cannot be one table"
            )
    return list(found.values())


def error_kind(message: str) -> str:
    """An error's first line with numbers left out, so that equal mishaps are counted together."""
    lines = message.strip().splitlines() or ["no message"]
    return re.sub(r"\d+(\.\d+)?", "…", lines[0])


class ResultsFile:
    """An append-only JSONL file of rows, held by one process at a time.

    A torn last line is left out. Every `append` reaches the disk before it returns.

    Args:
        path: the file; its folder is created.

    Raises:
        RuntimeError: another process is writing to it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = WriteLock(self.path)
        self._done = {row.job: row.status for row in read_rows(self.path)}

    def append(self, row: Row) -> None:
        """Writes a row durably.

        Raises:
            ValueError: the job already has a result that is not an error.
        """
        if self._done.get(row.job, "error") != "error":
            raise ValueError(f"{row.job} already has a result in {self.path}; a job is counted once")
        append_jsonl(self.path, row.to_dict())
        self._done[row.job] = row.status

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
