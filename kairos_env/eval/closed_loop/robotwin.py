"""The plan of a run on RoboTwin: its tasks, its seeds, its words, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kairos_env.eval.closed_loop.config import RoboTwinConfig
from kairos_env.eval.closed_loop.films import choose_films
from kairos_env.eval.closed_loop.plan import EvalPlan, of_shard
from kairos_env.eval.rows import Job
from kairos_env.records import RobotSpec
from kairos_env.sims.robotwin.env import RoboTwinEnv
from kairos_env.sims.robotwin.home import RoboTwinHome
from kairos_env.sims.robotwin.seeds import FIRST, expert_seeds, skipped


def robotwin_options(config: RoboTwinConfig) -> dict[str, Any]:
    """Arguments of the simulator's constructor.

    Raises:
        ValueError: an unknown task, or none can run.
        FileNotFoundError: no installation.
    """
    home = RoboTwinHome.open(Path(config.home) if config.home else None)
    options = {"task": robotwin_tasks(config, home)[0], "config": config.scenes, "wording": config.words}
    own = {"rendering": config.rendering, "home": str(home.home)}
    return options | own | config.simulator_options


def robotwin_tasks(config: RoboTwinConfig, home: RoboTwinHome) -> list[str]:
    """The tasks that are asked for, or all whose assets are there.

    Raises:
        ValueError: an unknown task, none can run, or ``official`` was asked for and is impossible.
        FileNotFoundError: a task lacks assets.
    """
    for task in config.tasks:
        home.require_task(task)
        home.require_assets(task, config.scenes)
    tasks = [*config.tasks] or [task for task in home.tasks() if not home.missing(task, config.scenes)]
    if not tasks:
        raise ValueError(f"no task of RoboTwin has its assets in {home.assets}: `kairos sims check robotwin`")
    if config.official:
        wrong = {
            "the assets do not say that they are the published ones": not home.official_assets,
            f"rendering is {config.rendering!r}": config.rendering != "official",
            f"{config.episodes} episodes, not 100": config.episodes != 100,
            "seeds are not checked by the expert": not config.expert_check,
            "no protocol (A or B) says what the policy was trained on": not config.protocol,
        }
        if reasons := [reason for reason, holds in wrong.items() if holds]:
            raise ValueError(f"this would be no official result: {'; '.join(reasons)}")
    return tasks


def plan_robotwin(config: RoboTwinConfig, robot: RobotSpec | None, env: RoboTwinEnv) -> EvalPlan:
    """The plan of a run on a simulator that is open, whose expert is asked about seeds that nobody has asked about.

    Raises:
        ValueError: the expert solves too few.
    """
    tasks = robotwin_tasks(config, env.home)
    first = FIRST * (1 + config.seed) if config.first_initial_state is None else config.first_initial_state
    seeds = {}
    for task in tasks:
        plain = list(range(first, first + config.episodes))
        seeds[task] = expert_seeds(env, task, config.episodes, first, print) if config.expert_check else plain
    jobs = [
        Job(policy, config.simulator, task, seeds[task][number], config.seed)
        for number in range(config.episodes)
        for task in tasks
        for policy in config.policies
    ][: config.limit or None]
    run = {
        "protocol": config.protocol or "none",
        "config": config.scenes,
        "wording": config.words,
        "rendering": config.rendering,
        "assets": "published" if env.home.official_assets else "not the published ones",
        "expert_check": config.expert_check,
    }
    return EvalPlan(
        config,
        of_shard(config, jobs, lambda job: (job.task, job.initial_state)),
        robot,
        robotwin_options(config),
        run | {"simulator": config.simulator, "batch": config.batch, "max_decisions": config.max_decisions},
        max_decisions=dict.fromkeys(tasks, config.max_decisions) if config.max_decisions else {},
        replan=config.replan or None,
        labels={task: run | _of_task(config, env, task, seeds[task]) for task in tasks},
        films=choose_films(jobs, config.videos, lambda job: job.task),
    )


def _of_task(config: RoboTwinConfig, env: RoboTwinEnv, task: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Its limit of steps, and how many seeds were left out for what, such as ``{"unstable": 1}``."""
    left_out = skipped(env.home, task, config.scenes, seeds) if config.expert_check else {}
    return {"step_limit": env.home.step_limit(task), "seeds_left_out": left_out}
