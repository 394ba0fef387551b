"""The episodes of a recording that a model has not seen in training, read as its robot's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairos_env.datasets.conform import changes
from kairos_env.datasets.layouts import open_recording, read_as
from kairos_env.datasets.recording import Recording
from kairos_env.records import Episode, RobotSpec
from kairos_env.training.data import episode_key
from kairos_env.training.summary import SUMMARY, read_summary
from kairos_env.world_model.checkpoint import resolve


@dataclass(frozen=True)
class UnseenEpisodes:
    """Episodes of a recording, by their numbers in it.

    Args:
        recording: as one of the model's robot.
        numbers: of those that training held out, or of all where it did not see the recording.
        note: what was chosen, and what becomes of pictures and rate, in words.
    """

    recording: Recording
    numbers: Sequence[int]
    note: str

    def read(self, most: int) -> list[Episode]:
        """The first so many of them."""
        return [self.recording[number] for number in self.numbers[:most]]


def unseen_episodes(model: str | os.PathLike[str], spec: RobotSpec, path: str, feature_map: str = "") -> UnseenEpisodes:
    """What may be compared with a model's imagination.

    Args:
        model: bundled name, folder or hub name; its ``training.json`` says what was held out.
        spec: of the model's robot.
        path: of the recording, of any layout.
        feature_map: of a LeRobot dataset, the one that the model was trained with.

    Raises:
        FileNotFoundError: nothing there.
        SpecMismatch: rates that do not fit.
    """
    plain = open_recording(path, feature_map or None)
    recording = read_as(plain, spec, whole=True)
    data, recordings = _training_data(model)
    keys = [episode_key(path, recording, index) for index in range(len(recording))]
    held_out = set(data.get("held_out", ()))
    chosen = [index for index, key in enumerate(keys) if key in held_out]
    told = [f"{path}: {len(recording)} episodes", *changes(plain.spec, spec)]
    if chosen:
        told.append(f"the {len(chosen)} that the training of {model} held out are used")
    elif keys[0].rpartition("#")[0] in recordings:
        told.append(f"CAUTION: the model was trained on them, so nothing here says what it does on others: {model}")
    return UnseenEpisodes(recording, chosen or list(range(len(recording))), ", ".join(told))


def _training_data(model: str | os.PathLike[str]) -> tuple[dict[str, Any], set[str]]:
    """What a model's folder says about its data, and the whole paths of its recordings."""
    folder = resolve(model)
    if not (folder / SUMMARY).exists():
        return {}, set()
    summary = read_summary(folder)
    given = summary.config.get("data", {})
    paths = [given.get("path"), *given.get("more", ())]
    return dict(summary.data), {str(Path(p).resolve()) if Path(p).exists() else p for p in paths if p}
