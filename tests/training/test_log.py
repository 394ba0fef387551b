"""The log of a training run: rows once, in the folder and in every tracker."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kairos_env.runs import read_jsonl
from kairos_env.training.log import TrainingLog, open_trackers

TORN = '{"step": 0, "loss": 1.5}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo'


def test_rows_that_come_again_and_a_torn_one_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "model.jsonl").write_text(TORN)
    log = TrainingLog(tmp_path)
    log.resume("model", 2)
    assert (tmp_path / "model.jsonl").read_text() == '{"step": 0, "loss": 1.5}\n'
    log.add("model", {"step": 2, "loss": 0.9})
    assert [row["loss"] for row in read_jsonl(tmp_path / "model.jsonl")] == [1.5, 0.9]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_every_row_once_after_a_resumption(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for kept, losses in ((0, [4.0, 3.0, 2.0]), (2, [2.0, 1.0])):  # the second launch repeats step 2
        with TrainingLog(tmp_path, open_trackers(["tensorboard"], tmp_path, {})) as log:
            log.resume("model", kept)
            for step, loss in enumerate(losses, kept):
                log.add("model", {"step": step, "loss": loss, "lr": 0.5})
    found = scalars(tmp_path / "tensorboard" / "model")
    assert found == {"loss": [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)], "lr": [(step, 0.5) for step in range(4)]}


class Hosted(ModuleType):
    """What wandb and trackio have in common, which remembers its calls."""

    def __init__(self) -> None:
        super().__init__("hosted")
        self.calls: list[tuple[Any, ...]] = []

    def init(self, **options: Any) -> None:
        self.calls.append(("init", options["name"], options["config"], options["resume"]))

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((step, values["loss"]))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_hosted_tracker_gets_every_row_once(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosted = Hosted()
    monkeypatch.setitem(sys.modules, name, hosted)
    folder = tmp_path / "push"
    folder.mkdir()
    for kept, losses in ((0, [4.0, 3.0, 2.0]), (2, [2.0, 1.0])):
        with TrainingLog(folder, open_trackers([name], folder, {"seed": 1})) as log:
            log.resume("model", kept)
            for step, loss in enumerate(losses, kept):
                log.add("model", {"step": step, "loss": loss})
    opened = ("init", "push-model", {"seed": 1}, "allow")
    assert hosted.calls == [opened, (0, 4.0), (1, 3.0), (2, 2.0), ("finish",), opened, (3, 1.0), ("finish",)]


def test_a_missing_tracker_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in (("tensorboard", r"kairos-env\[tracking\]"), ("wandb", "pip install wandb")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=command):
            open_trackers([name], tmp_path, {})  # type: ignore[list-item]
