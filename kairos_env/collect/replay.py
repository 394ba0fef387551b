"""`kairos data replay`: the actions of LIBERO demonstrations, played again in the simulator from where they began.

A demonstration is worth something only if its actions do what its pictures show. Replays tell: the same start and the
same actions must bring the same outcome again, and the hand to the same places.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.records import Array

MakeEnv = Callable[[int, str], Any]


@dataclass(frozen=True)
class Demonstration:
    """Actions (T, 7) and where they began.

    ``hand`` (n, 3) is where the hand was before the first n of them [m], ``success`` whether they did the task.
    """

    name: str
    suite: str
    task: int | str
    initial_state: int
    seed: int
    actions: Array
    action_repeat: int
    hand: Array
    success: bool = True


@dataclass(frozen=True)
class Replayed:
    """How a replay went.

    ``agrees`` says whether it ended in success just where the demonstration did, and ``apart`` is the largest distance
    of the hand from where it was then [m].
    """

    name: str
    agrees: bool
    apart: float


def read_demonstrations(path: str | Path) -> Iterator[Demonstration]:
    """The demonstrations at a path.

    Args:
        path: recordings of `kairos record-libero` (a file or folder), or a file ``<suite>_<index>.npz`` with
            ``actions_<i>`` (T, 7) from initial state i, and perhaps ``eef_<i>`` (T, 3 or more), the hand before each.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: files that do not say from where a demonstration began.
    """
    path = Path(path)
    if path.suffix == ".npz":
        yield from _of_arrays(path)
        return
    recording = LiberoFile(path)
    for index, name in enumerate(recording.names):
        suite = recording.extras(index).get("metadata", {}).get("suite")
        if suite is None:
            raise ValueError(
                f"{name} does not say from which initial state and seed it was recorded: only recordings of "
                "`kairos record-libero` can be replayed"
            )
        episode = recording[index]
        repeat = round(20 / recording.spec.control_rate_hz)
        start = (episode.initial_state, episode.seed)
        hand, success = episode.proprio[:, :3], bool(episode.success.any())
        yield Demonstration(name, suite, episode.task, *start, episode.actions, repeat, hand, success)


def _of_arrays(path: Path) -> Iterator[Demonstration]:
    found = re.fullmatch(r"(libero_\w+)_(\d+)", path.stem)
    if found is None:
        raise ValueError(f"{path} is not named <suite>_<task index>.npz, such as libero_object_0.npz")
    with np.load(path, allow_pickle=False) as arrays:
        for key in (key for key in arrays if key.startswith("actions_")):
            number = int(key.removeprefix("actions_"))
            hand = arrays[f"eef_{number}"][:, :3] if f"eef_{number}" in arrays else np.zeros((0, 3))
            yield Demonstration(f"{path}:{key}", found[1], int(found[2]), number, 0, arrays[key], 1, hand)


def replay(env: Any, demonstration: Demonstration) -> Replayed:
    """Plays one demonstration until it succeeds or its actions end.

    Args:
        env: `sims.libero.LiberoEnv` that holds actions as long as the recording's; it need not draw.
        demonstration: what to play.
    """
    options = {
        "benchmark": "libero",
        "suite": demonstration.suite,
        "task": demonstration.task,
        "initial_state": demonstration.initial_state,
    }
    seen, info = env.reset(seed=demonstration.seed, options=options)
    hands = [seen["proprio"][:3]]
    for action in demonstration.actions:
        seen, _, _, _, info = env.step(action)
        hands.append(seen["proprio"][:3])
        if info["success"]:
            break
    pairs = list(zip(hands, demonstration.hand, strict=False))
    apart = max((float(np.linalg.norm(a - b)) for a, b in pairs), default=0.0)
    return Replayed(demonstration.name, bool(info["success"]) == demonstration.success, apart)


def make_simulator(action_repeat: int, home: str) -> Any:
    """A simulator that draws nothing."""
    from kairos_env.sims.libero.env import LiberoEnv

    return LiberoEnv(observe_images=False, action_repeat=action_repeat, max_episode_steps=100_000, home=home or None)


def replay_all(
    paths: Sequence[str | Path],
    limit: int = 0,
    home: str = "",
    make_env: MakeEnv = make_simulator,
    progress: bool = True,
) -> list[Replayed]:
    """Replays demonstrations one after the other, at most ``limit`` of each path (0: all)."""
    from tqdm import tqdm

    envs: dict[int, Any] = {}
    results = []
    try:
        for path in paths:
            demonstrations = itertools.islice(read_demonstrations(path), limit or None)
            for one in tqdm(demonstrations, desc=str(path), unit="demo", disable=not progress):
                if one.action_repeat not in envs:
                    envs[one.action_repeat] = make_env(one.action_repeat, home)
                results.append(replay(envs[one.action_repeat], one))
    finally:
        for env in envs.values():
            env.close()
    return results
