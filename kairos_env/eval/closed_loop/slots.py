"""Plays episodes in many simulators from one process: whoever has answered goes on, nobody waits for another.

Each slot has a simulator in a process of its own and a policy object of its own; what is heavy in a policy (the
model) is shared. An episode depends on its job alone: its seed, and whatever is random in simulator and policy,
follow from the job, never from the slot, the company or the order.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kairos_env.eval.closed_loop.workers import Event, error_row
from kairos_env.eval.failures import Watch
from kairos_env.eval.rows import Job, Row
from kairos_env.media import film_strip, side_by_side, write_mp4, write_png
from kairos_env.policies.policy import BatchedPolicy, Policy, begin
from kairos_env.records import Array, Observation
from kairos_env.sims.make import make_simulator, spec_of

MakePolicy = Callable[[str, Any], Policy]
"""``make_policy(name, env) -> Policy``: a function at the top level of a module, or a `functools.partial` of one."""

Answer = tuple[dict[str, Array], float, bool, bool, dict[str, Any]]


class SplitEnv(Protocol):
    """A simulator that is asked in two halves, so that one caller can drive many; see `sims.libero.LiberoEnv`."""

    def send_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None: ...

    def send_step(self, action: Array) -> None: ...

    def fileno(self) -> int:
        """Readable once `receive` will not wait."""

    def receive(self) -> Answer:
        """What `send_reset` (reward 0, nothing ended) or `send_step` came to."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class PlayConfig:
    """How episodes are played; travels to the workers.

    Args:
        simulator: Gymnasium id or ``module:factory`` of a `SplitEnv`.
        simulator_options: arguments of its constructor.
        max_steps: suite -> simulator steps after which an episode has failed.
        make_policy: builds a policy for a slot.
        batch: episodes decided in one pass of the model, where the policy can (`BatchedPolicy`).
        answer_limit_s: for one answer of the simulator.
        time_limit_s: for one episode.
        films: jobs of which a film is written.
        folder: of the films.
    """

    simulator: str
    simulator_options: Mapping[str, Any]
    max_steps: Mapping[str, int]
    make_policy: MakePolicy
    batch: int = 1
    answer_limit_s: float = 120.0
    time_limit_s: float = 1800.0
    films: frozenset[Job] = frozenset()
    folder: str = ""


def episode_seed(job: Job) -> int:
    """The seed of simulator and policy. It leaves the policy's name out: policies are compared under the same luck."""
    text = f"{job.task} {job.initial_state} {job.seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass
class _Episode:
    """What has happened so far."""

    job: Job
    policy: Policy
    max_steps: int
    filmed: bool
    began: float = field(default_factory=time.monotonic)
    waits_since: float = 0.0
    observation: Observation | None = None  # None before the simulator has started
    to_decide: bool = False
    ended: bool = False
    success: bool = False
    rewards: list[float] = field(default_factory=list)
    thought_s: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    frames: list[Array] = field(default_factory=list)

    def take(self, answer: Answer) -> None:
        """Takes in what the simulator says."""
        raw, reward, terminated, truncated, info = answer
        if not np.isfinite(reward) or not {"success", "steps"} <= info.keys():
            raise ValueError(f"the simulator gave reward {reward} and info {sorted(info)}; success, steps are needed")
        before = self.observation
        self.observation = Observation.from_gym(raw, info.get("instruction", before.instruction if before else ""))
        self.info, self.success = info, bool(info["success"])
        if before is None:
            begin(self.policy, info)
        else:
            self.rewards.append(float(reward))
        self.ended = before is not None and (
            self.success or terminated or truncated or _simulator_steps(info) >= self.max_steps
        )
        if "privileged" in info:
            self.watch.see(info["privileged"])
        if self.filmed:
            self.frames.append(np.array(next(iter(self.observation.images.values()))))
        self.to_decide = not self.ended

    def row(self) -> Row:
        extra = {key: self.info[key] for key in ("instruction", "prompt") if key in self.info}
        return Row(
            self.job,
            "success" if self.success else "failure",
            decisions=len(self.rewards),
            episode_return=round(sum(self.rewards), 6),
            decision_ms=round(1000 * self.thought_s / len(self.rewards), 2),
            seconds=round(time.monotonic() - self.began, 3),
            extra=extra | {"steps": _simulator_steps(self.info)} | self.watch.extra(),
        )


@dataclass
class _Slot:
    """A place for one episode at a time; simulator and policies stay for the next."""

    env: Any = None
    policies: dict[str, Policy] = field(default_factory=dict)
    episode: _Episode | None = None

    def empty(self) -> None:
        """Frees simulator and policies: what raised may be broken for good."""
        env, self.env = self.env, None
        self.policies.clear()
        if env is not None:
            env.close()


class SlotPlayer:
    """The `workers.SlotRunner` of a benchmark."""

    def __init__(self, config: PlayConfig) -> None:
        self.config = config
        self._slots: dict[int, _Slot] = {}
        self._events: list[Event] = []
        self._proven: set[str] = set()  # policies that could be built here

    def start(self, slot: int, job: Job) -> None:
        """Begins an episode. The first time, a policy or simulator that cannot be built is a wrong set-up."""
        place = self._slots.setdefault(slot, _Slot())
        try:
            if place.env is None:
                place.env = make_simulator(job.simulator, **self.config.simulator_options)
            if job.policy not in place.policies:
                place.policies[job.policy] = self.config.make_policy(job.policy, place.env)
        except Exception as error:
            if job.policy not in self._proven:
                raise
            self._fail(slot, job, error)
            return
        self._proven.add(job.policy)
        benchmark, suite, name = job.task.split("/", 2)
        policy = place.policies[job.policy]
        place.episode = _Episode(job, policy, self.config.max_steps[suite], job in self.config.films)
        self._events.append(Event(slot, None))
        options = {"benchmark": benchmark, "suite": suite, "task": name, "initial_state": job.initial_state}
        try:
            seed = episode_seed(job)
            policy.reset(seed)
            place.env.send_reset(seed=seed, options=options)
        except Exception as error:  # noqa: BLE001 (anything a simulator or policy raises is this job's error)
            self._fail(slot, job, error)
            return
        place.episode.waits_since = time.monotonic()

    def advance(self, wake: Connection | None) -> list[Event]:
        """See `SlotRunner.advance`."""
        busy = {slot: place.episode for slot, place in self._slots.items() if place.episode is not None}
        if busy and not self._events:
            envs = {slot: self._slots[slot].env for slot in busy}
            first = min(self._deadline(episode)[0] for episode in busy.values())
            sources = [*envs.values(), *([] if wake is None else [wake])]
            ready = wait(sources, max(0.0, first - time.monotonic()))
            for slot, env in envs.items():
                if env in ready:
                    self._receive(slot)
                elif time.monotonic() >= self._deadline(busy[slot])[0]:
                    self._fail(slot, busy[slot].job, TimeoutError(self._deadline(busy[slot])[1]))
            self._decide()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Frees all simulators."""
        for place in self._slots.values():
            place.empty()

    def _deadline(self, episode: _Episode) -> tuple[float, str]:
        """When it has had its time, and why."""
        answer, whole = self.config.answer_limit_s, self.config.time_limit_s
        return min(
            (episode.waits_since + answer, f"no answer from the simulator in {answer:g} s"),
            (episode.began + whole, f"the episode took longer than {whole:g} s"),
        )

    def _receive(self, slot: int) -> None:
        place = self._slots[slot]
        episode = place.episode
        assert episode is not None, "only busy slots are waited for"
        try:
            episode.take(place.env.receive())
            if episode.ended and episode.filmed:
                rate = spec_of(place.env).control_rate_hz
                write_film(Path(self.config.folder), episode.job, episode.success, np.stack(episode.frames), rate)
        except Exception as error:  # noqa: BLE001 (anything a simulator or policy raises is this job's error)
            self._fail(slot, episode.job, error)
            return
        if episode.ended:
            place.episode = None
            self._events.append(Event(slot, episode.row()))

    def _decide(self) -> None:
        """Every episode that has been answered gets its next action."""
        by_policy: dict[str, list[int]] = {}
        for slot, place in self._slots.items():
            if place.episode is not None and place.episode.to_decide:
                by_policy.setdefault(place.episode.job.policy, []).append(slot)
        for slots in by_policy.values():
            for first in range(0, len(slots), self.config.batch):
                self._act(slots[first : first + self.config.batch])

    def _act(self, slots: Sequence[int]) -> None:
        episodes = [episode for slot in slots if (episode := self._slots[slot].episode) is not None]
        thought = time.perf_counter()
        try:
            actions = act_together(
                [episode.policy for episode in episodes],
                [episode.observation for episode in episodes if episode.observation is not None],
                self.config.batch,
            )
        except Exception as error:  # noqa: BLE001 (anything a simulator or policy raises is this job's error)
            for slot, episode in zip(slots, episodes, strict=True):
                self._fail(slot, episode.job, error)
            return
        thought = (time.perf_counter() - thought) / len(slots)
        for slot, episode, action in zip(slots, episodes, actions, strict=True):
            episode.thought_s += thought
            episode.to_decide = False
            try:
                self._slots[slot].env.send_step(action)
            except Exception as error:  # noqa: BLE001 (anything a simulator or policy raises is this job's error)
                self._fail(slot, episode.job, error)
            episode.waits_since = time.monotonic()

    def _fail(self, slot: int, job: Job, error: BaseException) -> None:
        place = self._slots[slot]
        place.episode = None
        place.empty()
        self._events.append(Event(slot, error_row(job, error)))


def _simulator_steps(info: Mapping[str, Any]) -> int:
    """Steps of the simulator, in which published evaluations count; decisions where it makes one of each."""
    return int(info.get("simulator_steps", info["steps"]))


def act_together(policies: Sequence[Policy], observations: Sequence[Observation], size: int) -> list[Array]:
    """The next action of each policy; in passes of ``size`` rows where that is more than 1 and the policies can."""
    first = policies[0]
    if size > 1 and isinstance(first, BatchedPolicy):
        return first.act_together(policies, observations, size)
    return [policy.act(observation) for policy, observation in zip(policies, observations, strict=True)]


def write_film(folder: Path, job: Job, success: bool, frames: Array, rate: float) -> None:
    """Writes `film_stem` in ``videos`` as an mp4 and as a strip ``.png``; frames are uint8 (T, H, W, 3)."""
    caption = f"{job.policy}, {job.task.rpartition('/')[2]}: {'success' if success else 'failure'}"
    stem, scale = folder / "videos" / film_stem(job), max(1, 256 // frames.shape[1])
    write_mp4(stem.with_name(stem.name + ".mp4"), side_by_side({caption: frames}, scale), rate)
    write_png(stem.with_name(stem.name + ".png"), film_strip({job.policy: frames}, scale=max(1, scale // 2)))


def film_stem(job: Job) -> str:
    """The name of a job's film, without folder and ending."""
    return re.sub(r"[^\w.=+-]+", "-", f"{job.policy}_{job.task}_{job.initial_state}_{job.seed}")[-180:]
