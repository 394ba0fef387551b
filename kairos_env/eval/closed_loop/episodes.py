"""Closed loop: policies against a simulator, one durable row an episode, success rates with intervals."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.eval.closed_loop.workers import run_jobs
from kairos_env.eval.report.closed_loop import Report, make_report
from kairos_env.eval.rows import Job, ResultsFile, Row, read_rows
from kairos_env.media import film_strip, side_by_side, write_mp4, write_png
from kairos_env.policies import make as roster
from kairos_env.policies.policy import Policy
from kairos_env.records import Array, Observation
from kairos_env.runs import INITIAL_STATES, open_run
from kairos_env.sims.make import make_simulator


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate.

    Args:
        output: the folder of the run; an existing one of the same settings is continued.
        policies: names, see `kairos_env.policies.make`.
        tasks: of the simulator.
        episodes: for each policy and task; all policies meet the same starts. May be raised later.
        simulator: Gymnasium id, or ``module:factory``.
        simulator_options: arguments of its constructor.
        model: checkpoint of the learned policies and planners.
        device: of the model.
        state_model: folder of the state model, for ``state_cem``; the default is the bundled one.
        first_initial_state: episode i starts from ``first_initial_state + i``; training data use other ids.
        seed: of everything random in policies and simulator, together with the initial state's id.
        max_decisions: an episode that has not succeeded by then is a failure.
        workers: processes. The results do not depend on it.
        time_limit_s: an episode that takes longer is an error.
        videos: for how many episodes of each policy and task to write an mp4 and a film strip.
        retry_errors: run the jobs again that ended in an error.
    """

    output: str = "runs/eval"
    policies: tuple[str, ...] = ("random", "expert", "policy")
    tasks: tuple[str, ...] = ("reach", "push", "lift")
    episodes: int = 50
    simulator: str = "Kairos-Robosuite-v0"
    simulator_options: dict[str, Any] = field(default_factory=dict)
    model: str = "kairos-tiny"
    device: str = "cpu"
    state_model: str = "state-model"
    first_initial_state: int = INITIAL_STATES["evaluation"].start
    seed: int = 0
    max_decisions: int = 24
    workers: int = 1
    time_limit_s: float = 300.0
    videos: int = 0
    retry_errors: bool = False

    def __post_init__(self) -> None:
        for name in ("episodes", "max_decisions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "videos", "seed", "first_initial_state"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not self.policies or not self.tasks:
            raise ValueError(f"nothing to evaluate: policies {list(self.policies)}, tasks {list(self.tasks)}")

    def jobs(self) -> list[Job]:
        """Every job, episode by episode, so that a run that is stopped early has looked at everything."""
        ids = range(self.first_initial_state, self.first_initial_state + self.episodes)
        return [
            Job(policy, self.simulator, task, state_id, self.seed)
            for state_id in ids
            for task in self.tasks
            for policy in self.policies
        ]

    def identity(self) -> dict[str, Any]:
        """The settings on which rows depend; what may differ between launches is left out."""
        free = {
            "output",
            "policies",
            "tasks",
            "episodes",
            "workers",
            "time_limit_s",
            "videos",
            "retry_errors",
            "device",
        }
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in free}
        return values | {"model_digest": roster.model_digest(self.model)}


MakePolicy = Callable[[str, Any, EvalConfig], Policy]
"""``make_policy(name, env, config) -> Policy``: a function at the top level of a module."""


def policy_from_roster(name: str, env: Any, config: EvalConfig) -> Policy:
    """The default `MakePolicy`."""
    return roster.make_policy(name, env, config.model, config.device, config.state_model)


def evaluate(
    config: EvalConfig,
    make_policy: MakePolicy = policy_from_roster,
    progress: bool = False,
    on_row: Callable[[Row], None] | None = None,
) -> Report:
    """Runs the jobs that have no result yet and reports on all of them.

    Kill it at any time: what finished is in ``<output>/results.jsonl``, and the same call goes on.

    Args:
        config: what to evaluate.
        make_policy: builds a policy in a worker.
        progress: show a bar.
        on_row: called in this process with each new row.

    Returns:
        The report over the jobs of ``config``; ``report.json`` and ``report.html`` are written too.

    Raises:
        ValueError: an unknown policy name.
        ConfigMismatch: the folder holds results of other settings.
        SetupFailed: simulator or policy cannot be built.
    """
    from tqdm import tqdm

    if make_policy is policy_from_roster:
        for name in config.policies:
            roster.parse_name(name)
    folder = open_run(config.output, config.identity(), {"config": dataclasses.asdict(config)})
    jobs = config.jobs()
    with ResultsFile(folder / "results.jsonl") as results:
        missing = results.missing(jobs, config.retry_errors)
        runner = functools.partial(EpisodeRunner, config, make_policy)
        workers = min(config.workers, len(missing))
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="episode", disable=not progress)
        with bar:
            for row in run_jobs(missing, runner, workers, config.time_limit_s):
                results.append(row)
                bar.update()
                if on_row is not None:
                    on_row(row)
    wanted = set(jobs)
    rows = [row for row in read_rows(folder / "results.jsonl") if row.job in wanted]
    report = make_report(rows, config.policies, config.tasks)
    report.save(folder)
    return report


def episode_seed(job: Job) -> int:
    """The seed of simulator and policy. It leaves the policy's name out: policies are compared under the same luck."""
    return int(np.random.SeedSequence([job.seed, job.initial_state]).generate_state(1)[0] >> 1)


@dataclass
class EpisodeRunner:
    """Runs jobs in one process; simulator and policies are built once and reset for each episode."""

    config: EvalConfig
    make_policy: MakePolicy
    env: Any = None
    policies: dict[str, Policy] = field(default_factory=dict)

    def prepare(self, job: Job) -> None:
        """Builds simulator and policy if they are not there yet."""
        if self.env is None:
            self.env = make_simulator(job.simulator, **self.config.simulator_options)
            limit = getattr(self.env.unwrapped, "max_episode_steps", None)
            if limit is not None and limit < self.config.max_decisions:
                raise ValueError(
                    f"{job.simulator} ends its episodes after {limit} decisions, before max_decisions "
                    f"{self.config.max_decisions}: ask for fewer, or give simulator_options={{'max_episode_steps': n}}"
                )
        if job.policy not in self.policies:
            self.policies[job.policy] = self.make_policy(job.policy, self.env, self.config)

    def run(self, job: Job) -> Row:
        """One episode."""
        filmed = job.initial_state < self.config.first_initial_state + self.config.videos
        episode = play(self.env, self.policies[job.policy], job, self.config.max_decisions)
        if filmed:
            write_film(Path(self.config.output), job, episode)
        return Row(
            job,
            "success" if episode.success else "failure",
            decisions=len(episode.rewards),
            episode_return=round(sum(episode.rewards), 6),
            decision_ms=round(1000 * float(np.mean(episode.decision_seconds)), 2),
            seconds=round(episode.seconds, 3),
            extra=episode.extra,
        )

    def close(self) -> None:
        """Frees the simulator."""
        env, self.env = self.env, None
        self.policies.clear()
        if env is not None:
            env.close()


@dataclass
class Played:
    """An episode as it was played: T rewards, T + 1 frames of the first camera."""

    success: bool = False
    rewards: list[float] = field(default_factory=list)
    frames: list[Array] = field(default_factory=list)
    decision_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


def play(env: Any, policy: Policy, job: Job, max_decisions: int) -> Played:
    """Plays one episode until success, the environment's own end, or ``max_decisions``.

    Raises:
        ValueError: the simulator gives a non-finite reward, or no ``success`` in its info.
    """
    began = time.perf_counter()
    seed = episode_seed(job)
    policy.reset(seed)
    raw, info = env.reset(seed=seed, options={"initial_state": job.initial_state, "task": job.task})
    played = Played()
    observation = Observation.from_gym(raw, info.get("instruction", ""))
    for _ in range(max_decisions):
        played.frames.append(_frame(observation))
        thought = time.perf_counter()
        action = policy.act(observation)
        played.decision_seconds.append(time.perf_counter() - thought)
        raw, reward, terminated, truncated, info = env.step(action)
        if not np.isfinite(reward) or "success" not in info:
            raise ValueError(f"{job.simulator} gave reward {reward} and info keys {sorted(info)}; 'success' is needed")
        observation = Observation.from_gym(raw, info.get("instruction", observation.instruction))
        played.rewards.append(float(reward))
        played.success = bool(info["success"])
        if "success_probability" in info:  # an imagined episode: how sure the model ever was
            best = max(played.extra.get("success_probability", 0.0), float(info["success_probability"]))
            played.extra["success_probability"] = round(best, 4)
        if played.success or terminated or truncated:
            break
    played.frames.append(_frame(observation))
    played.seconds = time.perf_counter() - began
    return played


def write_film(folder: Path, job: Job, played: Played) -> None:
    """Writes ``videos/<policy>_<task>_<id>.mp4`` and the same as a strip ``.png``."""
    stem = re.sub(r"[^\w.=+-]+", "-", f"{job.policy}_{job.task}_{job.initial_state}")
    caption = f"{job.policy}, {job.task}: {'success' if played.success else 'failure'}"
    frames = np.stack(played.frames)
    write_mp4(folder / "videos" / f"{stem}.mp4", side_by_side({caption: frames}))
    write_png(folder / "videos" / f"{stem}.png", film_strip({job.policy: frames}))


def _frame(observation: Observation) -> Array:
    return np.array(next(iter(observation.images.values())))


def summarize(output: str | Path, policies: Sequence[str] = (), tasks: Sequence[str] = ()) -> Report:
    """The report over everything that a folder holds, without running anything."""
    rows = read_rows(Path(output) / "results.jsonl")
    policies = policies or list(dict.fromkeys(row.job.policy for row in rows))
    tasks = tasks or list(dict.fromkeys(row.job.task for row in rows))
    return make_report(rows, policies, tasks)
