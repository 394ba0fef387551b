"""A robot that a command has opened: who arms it, its episodes, and what is kept of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.lerobot.writer import LeRobotWriter
from kairos_env.eval.statistics import wilson
from kairos_env.records import Array, Episode, Observation
from kairos_env.sims.robot.env import RobotEnv
from kairos_env.sims.robot.safety import NotArmed

Decide = Callable[[Observation, Any], Array]
Start = Callable[[int, Any], None]


@dataclass(frozen=True)
class Opening:
    """What a robot is opened with.

    Args:
        limits: JSON file of safety limits.
        mjcf: model of the arm, for a workspace among the limits.
        home: of the installation; by default the usual one.
    """

    limits: Path | None = None
    mjcf: str = ""
    home: Path | None = None


@dataclass(frozen=True)
class Guarded(Opening):
    """What a robot that is going to move is opened with.

    Args:
        armed_by: name of the person who stands by the robot; without it the terminal asks.
        log: of what was refused, clipped, held and stopped.
        on_stop: hold or relax.
        on_exit: hold or relax.
    """

    armed_by: str = ""
    log: Path = Path("robot-safety.jsonl")
    on_stop: str = "hold"
    on_exit: str = "hold"


@contextmanager
def opened(robot: str, opening: Opening, **options: Any) -> Iterator[RobotEnv]:
    """The environment of a robot, by the file of its configuration or as ``fake:so101``; closed in the end."""
    source: Any = robot if robot.startswith("fake:") else Path(robot)
    if isinstance(source, Path):
        if not source.is_file():
            raise ValueError(f"{robot} is no file; give LeRobot's configuration as JSON, or fake:so101")
        options["task"] = "task"
        options.pop("cameras", None)
    options |= {"limits": opening.limits, "mjcf": opening.mjcf, "home": opening.home}
    if isinstance(opening, Guarded):
        opening.log.parent.mkdir(parents=True, exist_ok=True)
        options |= {"log": opening.log, "on_stop": opening.on_stop, "on_exit": opening.on_exit}
    env = RobotEnv(source, **options)
    try:
        yield env
    finally:
        env.close()


def arm(env: RobotEnv, person: str) -> None:
    """Arms a real robot on the word of a person, who is asked if there is a terminal."""
    if env.fake is not None:
        return  # nobody can be hurt by it
    if not person:
        if not sys.stdin.isatty():
            raise NotArmed("nobody can be asked here: give --armed-by with the name of who stands by the robot")
        print("The arm is going to move. Stand clear, keep the power switch at hand.")
        person = input("Your name arms it, nothing at all leaves it as it is: ")
    env.arm(person)
    print(f"armed by {person}; Ctrl-C stops")


def play(
    env: RobotEnv,
    start: Start,
    decide: Decide,
    count: int,
    seed: int,
    out: Path | None,
    source: str,
    past_success: bool = False,
) -> int:
    """Plays episodes, keeps them as a LeRobot dataset if ``out`` is given; 1 if the robot was stopped."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    writer = None if out is None else LeRobotWriter(out, env.robot_spec, metadata={"source": "kairos robot"})
    stopped, done, won = "", 0, 0
    try:
        for number in range(count):
            episode, stopped = _episode(env, start, decide, number, seed + number, source, past_success)
            if writer is not None and len(episode):
                writer.add(episode)
            done, won = done + (not stopped), won + bool(episode.success.any())
            if stopped:
                break
        if writer is not None and writer.episodes:
            writer.close()
    finally:
        if writer is not None:
            writer.discard()
    if env.fake is not None and done:  # of a real robot nobody knows
        print(f"success: {won} of {done}, {wilson(won, done)}")
    if stopped:
        print(f"stopped: {stopped}")
    return int(bool(stopped))


def _episode(
    env: RobotEnv, start: Start, decide: Decide, number: int, seed: int, source: str, past_success: bool
) -> tuple[Episode, str]:
    """One episode, and why it was stopped, if it was."""
    raw, info = env.reset(seed=seed)
    seen, taken, stopped = [Observation.from_gym(raw, info["instruction"])], [info], ""
    experts = [] if env.fake is None else [env.expert_action()]
    start(number, info)
    while True:
        try:
            raw, _, terminated, truncated, info = env.step(decide(seen[-1], info))
        except NotArmed as error:
            stopped = str(error)
            break
        seen.append(Observation.from_gym(raw, info["instruction"]))
        taken.append(info)
        if env.fake is not None:
            experts.append(env.expert_action())
        if truncated or (terminated and not past_success):
            break
    told = ", ".join(f"{rule} {n}" for rule, n in sorted(info["counts"].items())) or "nothing changed"
    reached = ", success" if any(each["success"] for each in taken) else ""
    print(
        f"episode {number}: {len(seen) - 1} decisions{reached}, late beats {info['late_beats']}; safety: {told}",
        flush=True,
    )
    return _recorded(env, seen, taken, experts, source, seed), stopped


def _recorded(
    env: RobotEnv, seen: list[Observation], taken: list[Any], experts: list[Array], source: str, seed: int
) -> Episode:
    """What was really sent as actions; what was asked for, and what the expert of a fake would have done, as labels."""
    shape, steps = (len(seen) - 1, env.robot_spec.action_dim), taken[1:]
    labels: dict[str, Array] = {"commanded": np.array([info["commanded"] for info in steps], np.float32).reshape(shape)}
    if experts:
        labels["expert_actions"] = np.stack(experts)[:, None].astype(np.float32)
    return Episode(
        images={c.name: np.stack([o.images[c.name] for o in seen]) for c in env.robot_spec.cameras},
        proprio=np.stack([o.proprio for o in seen]).astype(np.float32),
        actions=np.array([info["sent"] for info in steps], np.float32).reshape(shape),
        rewards=np.array([info["success"] for info in steps], np.float32),
        success=np.array([info["success"] for info in steps], bool),
        task=env.task,
        instruction=seen[0].instruction,
        source=source,
        seed=seed,
        initial_state=taken[0]["initial_state"],
        labels=labels,
        label_tasks=(env.task,) if experts else (),
        outcome_known=env.fake is not None,
    )
