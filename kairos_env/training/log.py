"""The log of a training run: rows of JSON in its folder, which are what counts, and copies of them for trackers."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from kairos_env.extras import require
from kairos_env.runs import append_jsonl, read_jsonl, write_json, write_text

Row = Mapping[str, Any]
TrackerName = Literal["tensorboard", "wandb", "trackio"]
TIMES = ("seconds", "cpu_seconds", "steps_per_second")
"""Keys of a row that say how long it took; all others are the same however often the run was interrupted."""


class Tracker(Protocol):
    """A place that gets a copy of every row."""

    def resume(self, stage: str, rows: Sequence[Row]) -> None:
        """Makes the place hold exactly these rows of a stage, which then goes on."""

    def add(self, stage: str, row: Row) -> None:
        """Adds the next row of the stage."""

    def close(self) -> None:
        """Writes what is still held back."""


class TrainingLog:
    """The rows of every stage, ``<stage>.jsonl`` in a folder, and trackers with copies of them.

    Args:
        folder: of the run; created if it is not there.
        trackers: closed at the end of a ``with`` block.
    """

    def __init__(self, folder: Path, trackers: Sequence[Tracker] = ()) -> None:
        self.folder, self._trackers = folder, trackers
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, stage: str, step: int) -> None:
        """Removes rows that will come again, those at or after ``step``, and a torn last line; from trackers, too."""
        path = self.folder / f"{stage}.jsonl"
        rows = [row for row in self.rows(stage) if row["step"] < step]
        if path.exists():
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        for tracker in self._trackers:
            tracker.resume(stage, rows)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The rows of a stage so far."""
        return read_jsonl(self.folder / f"{stage}.jsonl")

    def add(self, stage: str, row: Row) -> None:
        """Appends a row, durably."""
        append_jsonl(self.folder / f"{stage}.jsonl", row)
        for tracker in self._trackers:
            tracker.add(stage, row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            for tracker in self._trackers:
                closing.callback(tracker.close)


def open_trackers(names: Sequence[TrackerName], folder: Path, config: Row) -> list[Tracker]:
    """The trackers of these names, for a run with this folder and configuration.

    Raises:
        ImportError: one is not installed; the message has the command.
    """
    return [
        TensorBoardTracker(folder) if name == "tensorboard" else HostedTracker(name, folder, config) for name in names
    ]


class TensorBoardTracker:
    """Event files in ``<folder>/tensorboard/<stage>``, written anew from the rows at each launch."""

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "tracking")
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def resume(self, stage: str, rows: Sequence[Row]) -> None:
        """See `Tracker.resume`."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        shutil.rmtree(self._folder / stage, ignore_errors=True)
        self._writer = SummaryWriter(str(self._folder / stage))  # type: ignore[no-untyped-call]
        for row in rows:
            self.add(stage, row)

    def add(self, stage: str, row: Row) -> None:
        """See `Tracker.add`."""
        for key, value in _values(row).items():
            self._writer.add_scalar(key, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._writer is not None:
            self._writer.close()


class HostedTracker:
    """A run ``<folder>-<stage>`` of wandb or trackio, which share their interface.

    Neither forgets what it got. So ``<folder>/<name>.json`` counts the rows that were sent, and as many are left out
    when they come again after a kill: they are the same as before.
    """

    def __init__(self, name: Literal["wandb", "trackio"], folder: Path, config: Row) -> None:
        try:
            self._module = importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"{name} does not import ({error}); install it with: pip install {name}") from error
        self._name, self._folder, self._config = name, folder, config
        self._sent: dict[str, int] = {}
        self._seen = 0
        self._open = False

    def resume(self, stage: str, rows: Sequence[Row]) -> None:
        """See `Tracker.resume`."""
        self.close()
        path = self._folder / f"{self._name}.json"
        self._sent, self._seen = json.loads(path.read_text()) if path.exists() else {}, 0
        title = f"{self._folder.resolve().name}-{stage}"
        same = {"id": title} if self._name == "wandb" else {}
        self._module.init(project="kairos", name=title, config=dict(self._config), resume="allow", **same)
        self._open = True
        for row in rows:
            self.add(stage, row)

    def add(self, stage: str, row: Row) -> None:
        """See `Tracker.add`."""
        self._seen += 1
        if self._seen > self._sent.get(stage, 0):
            self._module.log(_values(row), step=row["step"])
            self._sent[stage] = self._seen
            write_json(self._folder / f"{self._name}.json", self._sent)

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._open:
            self._module.finish()
        self._open = False


def _values(row: Row) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if key != "step"}
