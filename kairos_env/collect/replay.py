"""`kairos data replay`: recorded actions, played again in the simulator from where they began.

A demonstration is worth something only if its actions do what its pictures show. Replays tell: the same start and the
same actions must bring the same outcome again, and the hand to the same places.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.recorded import EpisodeFile
from kairos_env.datasets.layouts import open_recording
from kairos_env.embodiments import libero_panda
from kairos_env.records import Array, RobotSpec
from kairos_env.sims.make import make_simulator as make
from kairos_env.sims.simulator import start_options

LIBERO = "Kairos-LIBERO-v0"


@dataclass(frozen=True)
class Demonstration:
    """Recorded actions and where they began.

    Args:
        name: of the episode, for messages.
        simulator, settings: what recorded it, and the arguments that made it.
        spec: its robot.
        start: options of the simulator's reset.
        seed: of the reset.
        actions: (T, A).
        hand: (n, 3) where the hand was before the first n actions [m]; n may be 0.
        success: whether they did the task.
    """

    name: str
    simulator: str
    settings: Mapping[str, Any]
    spec: RobotSpec
    start: Mapping[str, Any]
    seed: int
    actions: Array
    hand: Array
    success: bool = True


MakeEnv = Callable[[Demonstration], Any]


@dataclass(frozen=True)
class Replayed:
    """The outcome of a replay.

    ``agrees`` says whether it ended in success just where the demonstration did, and ``apart`` is the largest distance
    of the hand from where it was then [m].
    """

    name: str
    agrees: bool
    apart: float


def read_demonstrations(path: str | Path) -> Iterator[Demonstration]:
    """The demonstrations at a path.

    Args:
        path: recordings of `kairos record` (a file or folder), or a file ``<suite>_<index>.npz`` of one of LIBERO's
            tasks, with ``actions_<i>`` (T, 7) from initial state i, and perhaps ``eef_<i>`` (T, 3 or more), the hand
            before each.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: files that do not say from where a demonstration began.
    """
    path = Path(path)
    if path.suffix == ".npz":
        yield from _of_arrays(path)
        return
    recording = open_recording(path)
    hand = recording.spec.hand_fields
    for index, name in enumerate(recording.names):
        episode = recording[index]
        metadata: Mapping[str, Any] = {}
        if isinstance(recording, LiberoFile):
            metadata = recording.extras(index).get("metadata", {})
        elif isinstance(recording, EpisodeFile):
            metadata = recording.metadata
        config, suite = metadata.get("config", {}), metadata.get("suite")
        if episode.initial_state < 0 or not (suite or "simulator" in config):
            raise ValueError(
                f"{name} does not say in which simulator, from which initial state and with which seed it was "
                "recorded: only recordings of `kairos record` can be replayed"
            )
        task = f"{metadata.get('benchmark', 'libero')}/{suite}/{episode.task}" if suite else episode.task
        yield Demonstration(
            name,
            config.get("simulator", LIBERO),
            config.get("options", {}),
            recording.spec,
            start_options(task, episode.initial_state, episode.condition),
            episode.seed,
            episode.actions,
            episode.proprio[:, hand] if hand else np.zeros((0, 3)),
            bool(episode.success.any()),
        )


def _of_arrays(path: Path) -> Iterator[Demonstration]:
    found = re.fullmatch(r"(libero_\w+)_(\d+)", path.stem)
    if found is None:
        raise ValueError(f"{path} is not named <suite>_<task index>.npz, such as libero_object_0.npz")
    with np.load(path, allow_pickle=False) as arrays:
        for key in (key for key in arrays if key.startswith("actions_")):
            number = int(key.removeprefix("actions_"))
            start = {"benchmark": "libero", "suite": found[1], "task": int(found[2]), "initial_state": number}
            hand = arrays[f"eef_{number}"][:, :3] if f"eef_{number}" in arrays else np.zeros((0, 3))
            yield Demonstration(f"{path}:{key}", LIBERO, {}, libero_panda(), start, 0, arrays[key], hand)


def replay(env: Any, demonstration: Demonstration) -> Replayed:
    """Plays one demonstration until it succeeds or its actions end; ``env`` need not draw."""
    fields = demonstration.spec.hand_fields
    seen, info = env.reset(seed=demonstration.seed, options=dict(demonstration.start))
    hands = [seen["proprio"][fields]]
    for action in demonstration.actions:
        seen, _, _, _, info = env.step(action)
        hands.append(seen["proprio"][fields])
        if info["success"]:
            break
    pairs = list(zip(hands, demonstration.hand, strict=False))
    apart = max((float(np.linalg.norm(a - b)) for a, b in pairs), default=0.0)
    return Replayed(demonstration.name, bool(info["success"]) == demonstration.success, apart)


def make_simulator(demonstration: Demonstration, options: Mapping[str, Any]) -> Any:
    """The simulator that recorded a demonstration, drawing nothing; ``options`` go before its own settings."""
    settings = {**demonstration.settings, "observe_images": False, **options}
    return make(demonstration.simulator, demonstration.spec, **settings)


def replay_all(
    paths: Sequence[str | Path],
    limit: int = 0,
    options: Mapping[str, Any] | None = None,
    make_env: MakeEnv | None = None,
    progress: bool = True,
) -> list[Replayed]:
    """Replays demonstrations one after the other, at most ``limit`` of each path (0: all).

    Args:
        paths: see `read_demonstrations`.
        limit: of each path.
        options: of the simulators' constructors, such as the folder of an installation.
        make_env: makes a simulator for a demonstration; it is kept for others of the same robot.
        progress: show a bar.
    """
    from tqdm import tqdm

    envs: dict[tuple[str, RobotSpec, str], Any] = {}
    results = []
    try:
        for path in paths:
            demonstrations = itertools.islice(read_demonstrations(path), limit or None)
            for one in tqdm(demonstrations, desc=str(path), unit="demo", disable=not progress):
                kind = (one.simulator, one.spec, repr(one.settings))
                if kind not in envs:
                    envs[kind] = make_env(one) if make_env else make_simulator(one, options or {})
                results.append(replay(envs[kind], one))
    finally:
        for env in envs.values():
            env.close()
    return results
