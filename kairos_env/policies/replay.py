"""Replays recorded demonstrations of LIBERO: of the task and the initial state that the simulator has started from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.policies.scripted import ReplayPolicy
from kairos_env.records import ActionChunk, Array, Observation, RobotSpec, stored_initial_state

_LIBERO_RATE_HZ = 20.0  # where a file does not say it


class NoDemonstration(LookupError):
    """Nothing was recorded of this task from this initial state."""


class DemonstrationPolicy:
    """Plays the actions that were recorded from the episode's initial state, then stands still.

    Two kinds of files are looked for in ``path`` and all folders below: ``<task>_demo.hdf5`` of ``kairos
    record-libero``, whose demonstrations know their initial state, and ``<suite>_<number>.npz`` with ``instruction``
    and ``actions_<initial state>`` (T, 7). A task of LIBERO-plus gets the demonstration of its unperturbed task.

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
        """Takes ``suite``, ``base_task`` and ``initial_state`` of the simulator's reset.

        Raises:
            NoDemonstration: there is none for them.
            ValueError: it was recorded at another rate.
        """
        suite, task, state = info["suite"], info["base_task"], int(info["initial_state"])
        recorded: list[int] = []
        for path in sorted([*self.path.rglob(f"{task}_demo.hdf5"), *self.path.rglob(f"{suite}_*.npz")]):
            demonstrations, rate = _read_hdf5(path) if path.suffix == ".hdf5" else _read_npz(path, task)
            recorded += demonstrations
            if state not in demonstrations:
                continue
            if rate != self.spec.control_rate_hz:
                raise ValueError(
                    f"{path} holds {rate:g} actions a second, the simulator takes {self.spec.control_rate_hz:g}: "
                    f"it needs action_repeat {round(_LIBERO_RATE_HZ / rate)}"
                )
            self._replay = ReplayPolicy(demonstrations[state], self.spec, after="stay")
            return
        known = f"; there are those from {sorted(recorded)}" if recorded else ""
        raise NoDemonstration(f"{self.path} has no demonstration of {suite}/{task} from initial state {state}{known}")

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


def _read_npz(path: Path, task: str) -> tuple[dict[int, Array], float]:
    """Initial state -> actions (T, 7), if the file is of this task; and their rate."""
    from kairos_env.sims.libero.tasks import instruction_of_name

    with np.load(path, allow_pickle=False) as file:
        if str(file["instruction"]) != instruction_of_name(task):
            return {}, _LIBERO_RATE_HZ
        numbers = [int(key.removeprefix("actions_")) for key in file.files if key.startswith("actions_")]
        return {number: file[f"actions_{number}"] for number in numbers}, _LIBERO_RATE_HZ


def _read_hdf5(path: Path) -> tuple[dict[int, Array], float]:
    """Initial state -> actions (T, 7) of the first demonstration from it; and their rate."""
    import h5py

    found: dict[int, Array] = {}
    with h5py.File(path, "r") as file:
        data = file["data"]
        for name in sorted(data, key=lambda name: (len(name), name)):
            extras = data[name].get("kairos")
            if extras is not None:
                found.setdefault(stored_initial_state(extras.attrs), data[name]["actions"][()])
        described = json.loads(data.attrs.get("kairos", "{}"))
    return found, float(described.get("control_rate_hz", _LIBERO_RATE_HZ))
