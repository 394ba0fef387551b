"""What practice in imagination is worth in reality: agents that never saw the simulator, judged in it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.env.imagination import load_model
from kairos_env.env.perceived import PerceivedEnv
from kairos_env.env.practice import PracticeConfig, practise
from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.eval.report.text import format_table
from kairos_env.eval.statistics import ratio, wilson
from kairos_env.records import Array
from kairos_env.runs import INITIAL_STATES
from kairos_env.sims.make import make_simulator

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


@dataclass(frozen=True)
class Judgement:
    """One agent in the same initial states, imagined and real.

    Args:
        config: of its practice.
        imagined, real: bool (n,), which episodes it solved.
        seconds: of processor time that its practice took.
    """

    config: PracticeConfig
    imagined: Array
    real: Array
    seconds: float


def practise_and_judge(
    config: PracticeConfig, agents: int = 3, episodes: int = 50, decisions: int = 24
) -> Iterator[Judgement]:
    """Agents that have practised, one after the other, judged where they never were.

    Args:
        config: of the practice of the first; the seeds of the others follow. Its simulator is the reality.
        agents: how many.
        episodes: of each agent, from initial states that are for evaluation.
        decisions: an episode is cut off after so many.
    """
    model = load_model(config.model, config.device)
    if config.simulator == "dataset":
        raise ValueError("simulator='dataset' names no reality to judge an agent in; name a simulator")
    first = INITIAL_STATES["evaluation"].start
    for number in range(agents):
        own = dataclasses.replace(config, seed=config.seed + number)
        begun = time.process_time()
        agent = practise(own, model)
        seconds = time.process_time() - begun
        states = range(first + number * episodes, first + (number + 1) * episodes)
        yield Judgement(own, *judge(agent, own.task, model, own.simulator, states, decisions), seconds)


def judge(
    agent: Any, task: str, model: WorldModel, simulator: str, states: Sequence[int], decisions: int
) -> tuple[Array, Array]:
    """Which episodes (n,) an agent solves in imagination and in the simulator, from the same initial states."""
    inner = make_simulator(simulator, model.imagined_spec, task=task, max_episode_steps=decisions)
    try:
        return _imagined(agent, task, model, inner, states, decisions), _real(agent, PerceivedEnv(inner, model), states)
    finally:
        inner.close()


def _imagined(agent: Any, task: str, model: WorldModel, start: Any, states: Sequence[int], decisions: int) -> Array:
    settings: dict[str, Any] = {"task": task, "start": start, "observation": "features", "horizon": None}
    held: dict[str, Any] = {"autoreset_mode": "Disabled", "finished": "hold", "max_episode_steps": decisions}
    envs = WorldModelVectorEnv(len(states), model, **held, **settings)
    seen, _ = envs.reset(seed=list(states), options={"initial_state": list(states)})
    solved = np.zeros(len(states), bool)
    for _ in range(decisions):
        seen, _, terminated, _, _ = envs.step(_decided(agent, seen))
        solved |= terminated
    return solved


def _real(agent: Any, env: PerceivedEnv, states: Sequence[int]) -> Array:
    solved = []
    for state in states:
        seen, info = env.reset(seed=state, options={"initial_state": state})
        ended = False
        while not ended:
            seen, _, terminated, truncated, info = env.step(_decided(agent, seen))
            ended = terminated or truncated
        solved.append(bool(info["success"]))
    return np.array(solved)


def _decided(agent: Any, seen: dict[str, Array]) -> Array:
    return agent.get_env().physical(agent.predict(seen, deterministic=True)[0])


def practice_table(judged: Sequence[Judgement]) -> str:
    """A line for each agent, and one for all of them: success imagined and real with intervals, real ÷ imagined."""
    lines = [_line(f"seed {one.config.seed}", [one]) for one in judged]
    head = f"{judged[0].config.task}, {judged[0].config.algorithm}"
    return format_table([head, "imagined %", "real %", "real ÷ imagined", "CPU s"], [*lines, _line("all", judged)])


def _line(name: str, judged: Sequence[Judgement]) -> list[str]:
    imagined, real = (np.concatenate([getattr(one, key) for one in judged]) for key in ("imagined", "real"))
    rates = [wilson(int(found.sum()), len(found)).format(0, 100) for found in (imagined, real)]
    return [name, *rates, str(ratio(real, imagined)), f"{np.mean([one.seconds for one in judged]):.0f}"]
