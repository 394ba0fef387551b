"""The seeds of RoboTwin's evaluation: those from some number on whose task its own expert solves.

RoboTwin asks its expert before it asks a policy, and leaves out what the expert does not solve. That depends on what
moves the expert's arms, here `planner`, not curobo, and on the robot. What was found is kept in the installation, for
this planner and robot, so that each seed is tried once; ``expert_seeds.json`` has it for the five tasks that need no
objects, with the robot that Kairos is tested with, as ``kairos robotwin seeds --again --json`` prints it.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from kairos_env.runs import append_jsonl, read_jsonl
from kairos_env.sims.robotwin.env import ExpertOutcome, RoboTwinEnv
from kairos_env.sims.robotwin.home import Config, RoboTwinHome
from kairos_env.sims.robotwin.planner import VERSION

OUTCOMES: tuple[ExpertOutcome, ...] = get_args(ExpertOutcome)
FIRST = 100_000
"""RoboTwin's first seed is this, times one more than the seed of the evaluation."""
_MOST = 10  # seeds that are tried for each that is wanted


def made_with(home: RoboTwinHome) -> dict[str, Any]:
    """What outcomes depend on beside the task: the robot's description, and the planner."""
    return {"robot": home.robot_digest, "planner": VERSION}


def known_outcomes(home: RoboTwinHome, task: str, config: Config) -> dict[int, ExpertOutcome]:
    """Seed -> what became of it, of all that the expert was asked about with this robot and planner."""
    found = _shipped(task, config) if made_with(home) == _shipped_with() else {}
    return found | {int(row["seed"]): row["outcome"] for row in read_jsonl(_notes(home, task, config))}


def ask_expert(
    env: RoboTwinEnv, task: str, seeds: Iterable[int], say: Callable[[str], Any] = lambda text: None
) -> dict[int, ExpertOutcome]:
    """What becomes of seeds under RoboTwin's expert; it is noted in the installation.

    Args:
        env: its ``config`` counts.
        task: its name.
        seeds: to try.
        say: is told which seeds are tried.
    """
    found: dict[int, ExpertOutcome] = {}
    path = _notes(env.home, task, env.config)
    for seed in seeds:
        say(f"{task}: asking the expert about seed {seed}")
        found[seed] = env.expert_outcome(task, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        append_jsonl(path, {"seed": seed, "outcome": found[seed]})
    return found


def expert_seeds(
    env: RoboTwinEnv, task: str, count: int, first: int = FIRST, say: Callable[[str], Any] = lambda text: None
) -> list[int]:
    """The first ``count`` seeds from ``first`` on that are stable and that the expert solves.

    Args:
        env: its ``config`` counts.
        task: its name.
        count: how many.
        first: the first seed to try.
        say: is told which seeds are tried.

    Raises:
        ValueError: of ten times as many not enough are solved.
    """
    known, tried = known_outcomes(env.home, task, env.config), range(first, first + _MOST * count)
    found: list[int] = []
    for seed in tried:
        outcome = known[seed] if seed in known else ask_expert(env, task, [seed], say)[seed]
        if outcome == "solved":
            found.append(seed)
        if len(found) == count:
            return found
    raise ValueError(
        f"the expert solves {len(found)} of the {_MOST * count} starts of {task} from seed {first} on, not {count}: "
        "ask for fewer episodes, or evaluate without its check (expert_check=False)"
    )


def skipped(home: RoboTwinHome, task: str, config: Config, seeds: Iterable[int]) -> dict[str, int]:
    """How many seeds were left out between the first and the last of these, by outcome."""
    kept = set(seeds)
    known = known_outcomes(home, task, config)
    left = Counter(known[seed] for seed in range(min(kept), max(kept)) if seed not in kept and seed in known)
    return {outcome: left[outcome] for outcome in OUTCOMES if left[outcome]}


def _notes(home: RoboTwinHome, task: str, config: Config) -> Path:
    return home.home / "expert_seeds" / f"{home.robot_digest}-{VERSION}" / f"{task}-{config}.jsonl"


def _shipped_with() -> dict[str, Any]:
    return {name: _data()[name] for name in ("robot", "planner")}


def _shipped(task: str, config: Config) -> dict[int, ExpertOutcome]:
    outcomes = _data()["outcomes"].get(f"{task}-{config}", {})
    return {seed: outcome for outcome, seeds in outcomes.items() for seed in seeds}


@functools.cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("expert_seeds.json").read_text(encoding="utf-8"))
    return data
