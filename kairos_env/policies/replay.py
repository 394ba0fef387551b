"""Replays recorded demonstrations: of the task and the initial state that the simulator has started from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.hdf5.files import open_file
from kairos_env.policies.scripted import ReplayPolicy
from kairos_env.records import ActionChunk, Array, Observation, RobotSpec, stored_initial_state
from kairos_env.sims.libero.tasks import instruction_of_name

_LIBERO_RATE_HZ = 20.0  # where a file does not say it


class NoDemonstration(LookupError):
    """Nothing was recorded of this task from this initial state."""


@dataclass(frozen=True)
class _Demonstration:
    """The place of the actions that were recorded from an initial state.

    Args:
        task: name of the task, or its instruction.
        suite: of the task; empty where the file does not say.
        rate: actions a second.
        path, key: the file, and the array in it.
    """

    task: str
    suite: str
    initial_state: int
    rate: float
    path: Path
    key: str

    def actions(self) -> Array:
        """(T, A), physical units."""
        if self.path.suffix == ".npz":
            with np.load(self.path, allow_pickle=False) as file:
                return file[self.key]
        with open_file(self.path) as file:
            return file[self.key][()]


class DemonstrationPolicy:
    """Plays the actions that were recorded from the episode's initial state, then stands still.

    Looks for recordings of ``kairos record`` and ``kairos record-libero`` (``.hdf5``) in ``path`` and all folders
    below, and for ``<suite>_<number>.npz`` with ``instruction`` and ``actions_<initial state>`` (T, 7). A task of
    LIBERO-plus gets the demonstration of its unperturbed task.

    Args:
        path: folder of the demonstrations.
        spec: the robot; its rate must be that of the recording.
    """

    def __init__(self, path: str | Path, spec: RobotSpec) -> None:
        self.path, self.spec = Path(path), spec
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} is no folder of demonstrations")
        self._replay: ReplayPolicy | None = None

    def begin(self, info: Mapping[str, Any]) -> None:
        """Takes the task and the initial state of the simulator's reset.

        Raises:
            NoDemonstration: there is none for them.
            ValueError: it was recorded at another rate.
        """
        task, suite, state = info.get("base_task", info["task"]), info.get("suite", ""), int(info["initial_state"])
        names = (task, instruction_of_name(task))
        known = [d for d in _find(self.path) if d.task in names and d.suite in ("", suite)]
        found = next((d for d in known if d.initial_state == state), None)
        if found is None:
            there = sorted({d.initial_state for d in known})
            raise NoDemonstration(
                f"{self.path} has no demonstration of {task} from initial state {state}"
                + (f"; there are those from {there}" if there else "")
            )
        if found.rate != self.spec.control_rate_hz:
            raise ValueError(
                f"{found.path} holds {found.rate:g} actions a second, the simulator takes "
                f"{self.spec.control_rate_hz:g}: LIBERO needs action_repeat {round(_LIBERO_RATE_HZ / found.rate)}"
            )
        self._replay = ReplayPolicy(found.actions(), self.spec, after="stay")

    def reset(self, seed: int | None = None) -> None:
        self._replay = None

    def act(self, observation: Observation) -> Array:
        return self._begun().act(observation)

    def chunk(self, observation: Observation) -> ActionChunk:
        return self._begun().chunk(observation)

    def follow(self, observation: Observation, action: Array) -> None:
        self._begun().follow(observation, action)

    def _begun(self) -> ReplayPolicy:
        if self._replay is None:
            raise RuntimeError("which demonstration? Call begin(info) with the simulator's info after every reset")
        return self._replay


@lru_cache(maxsize=4)
def _find(folder: Path) -> tuple[_Demonstration, ...]:
    """Every demonstration below ``folder``; read once in a process."""
    found: list[_Demonstration] = []
    for path in sorted(folder.rglob("*.hdf5")):
        found += _in_hdf5(path)
    for path in sorted(folder.rglob("*.npz")):
        found += _in_npz(path)
    return tuple(found)


def _in_npz(path: Path) -> Iterator[_Demonstration]:
    suite = path.stem.rpartition("_")[0]
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            if key.startswith("actions_"):
                state = int(key.removeprefix("actions_"))
                yield _Demonstration(str(file["instruction"]), suite, state, _LIBERO_RATE_HZ, path, key)


def _in_hdf5(path: Path) -> Iterator[_Demonstration]:
    with open_file(path) as file:
        data = file.get("data")
        if data is None:
            return
        described = json.loads(data.attrs.get("robot_spec", data.attrs.get("kairos", "{}")))
        rate = float(described.get("control_rate_hz", _LIBERO_RATE_HZ))
        for name in sorted(data, key=lambda name: (len(name), name)):
            attrs = data[name].get("kairos", data[name]).attrs
            state = stored_initial_state(attrs)
            if state >= 0:
                task = str(attrs.get("task", path.stem.removesuffix("_demo")))
                yield _Demonstration(task, "", state, rate, path, f"data/{name}/actions")
