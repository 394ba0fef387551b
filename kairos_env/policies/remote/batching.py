"""Many clients, one model: requests wait in a bounded queue, and all that wait are decided in one pass.

Nobody waits for company: while the model works requests gather by themselves, and a client that is alone is answered
at once. Each client has a policy object of its own, hence its own episode; the model behind them is shared.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kairos_env.policies.policy import Policy, follow
from kairos_env.policies.remote.requests import Answer, Declined, Request
from kairos_env.records import Array, Observation, RobotSpec

LOG = logging.getLogger("kairos.serve")


@dataclass
class ClientEpisode:
    """The episode of one client.

    Args:
        policy: its own; what is heavy in it is shared.
    """

    policy: Policy
    observation: Observation | None = None  # of the last decision
    broken: bool = False  # the policy failed; until a reset
    total: float | None = None  # seconds from its last request to the answer to it

    def reset(self, seed: int | None) -> None:
        self.policy.reset(seed)
        self.observation, self.broken = None, False


@dataclass
class _Waiting:
    episode: ClientEpisode
    request: Request
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=time.monotonic)


Job = tuple[ClientEpisode, Request]


class DecisionQueue:
    """Decides for many clients, in one thread that alone touches the policies.

    Args:
        spec: the robot of all of them.
        batch: requests decided together, at most.
        depth: requests that may wait; more are declined as busy.
        deadline: seconds after which a request that still waits is declined, unless it says less itself.
    """

    def __init__(self, spec: RobotSpec, batch: int = 32, depth: int = 64, deadline: float = 10.0) -> None:
        if batch < 1 or depth < 1 or not deadline > 0:
            raise ValueError(f"batch and depth are at least 1 and deadline above 0: got {batch}, {depth}, {deadline}")
        self.spec, self.batch, self.depth, self.deadline = spec, batch, depth, deadline
        self._waiting: list[_Waiting] = []
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kairos-serve")
        self._busy = False
        self.loop: asyncio.AbstractEventLoop | None = None  # in which it decides

    def __len__(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._busy and not self._waiting

    async def ask(self, episode: ClientEpisode, request: Request) -> Answer:
        """The answer to a request.

        Raises:
            Declined: busy, late, or failed.
        """
        if len(self._waiting) >= self.depth:
            raise Declined("busy", f"{self.depth} requests wait already; ask again later")
        waiting = _Waiting(episode, request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._news.set()
        return await waiting.answer

    async def do(self, call: Callable[[], Any]) -> Any:
        """Runs ``call`` in the thread of the policies."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def run(self, told: Callable[[float, int], None] = lambda seconds, together: None) -> None:
        """Decides until it is cancelled.

        Args:
            told: called after each pass with its seconds and its number of requests.
        """
        self.loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            while jobs := self._take():
                self._busy = True
                began = time.monotonic()
                pairs = [(job.episode, job.request) for job in jobs]
                try:
                    answers = await self.do(functools.partial(decide, pairs, self.spec))
                finally:
                    self._busy = False
                seconds = time.monotonic() - began
                told(seconds, len(jobs))
                for job, actions in zip(jobs, answers, strict=True):
                    _give(job, actions, began - job.since, seconds, len(jobs))

    def close(self) -> None:
        """Declines whoever still waits, and ends the thread."""
        for job in self._waiting:
            if not job.answer.done():
                job.answer.set_exception(Declined("draining", "the server is stopping"))
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[_Waiting]:
        """The next requests to decide together, at most one of each client; late ones are declined."""
        taken: list[_Waiting] = []
        left: list[_Waiting] = []
        now = time.monotonic()
        for job in self._waiting:
            limit = min(self.deadline, job.request.deadline or self.deadline)
            if job.answer.done():  # its client went away
                continue
            if now - job.since > limit:
                job.answer.set_exception(Declined("late", f"the request waited {now - job.since:.3f} s of {limit:g} s"))
            elif len(taken) < self.batch and all(job.episode is not other.episode for other in taken):
                taken.append(job)
            else:
                left.append(job)
        self._waiting = left
        return taken


def _give(job: _Waiting, actions: Array | None | Declined, waited: float, seconds: float, together: int) -> None:
    if job.answer.done():
        return
    if isinstance(actions, Declined):
        job.answer.set_exception(actions)
    else:
        job.answer.set_result(Answer(actions, max(0.0, waited), seconds, together))


def decide(jobs: Sequence[Job], spec: RobotSpec) -> list[Array | None | Declined]:
    """Actions (N, A) of each request, None where nothing was to be decided. A policy that fails harms no other client
    than those in its pass, whose episodes have to be begun again.
    """
    try:
        return _decide(jobs, spec)
    except Exception:  # a policy is foreign code; its reason is for the operator
        LOG.exception("the policy failed")
        for episode, _ in jobs:
            episode.broken = True
        return [Declined("failed", "the policy failed; reset before the next request") for _ in jobs]


def _decide(jobs: Sequence[Job], spec: RobotSpec) -> list[Array | None | Declined]:
    for episode, request in jobs:
        if request.reset:
            episode.reset(request.seed)
    answers: list[Array | None | Declined] = [None] * len(jobs)
    sound = [(row, episode, request) for row, (episode, request) in enumerate(jobs) if not episode.broken]
    for row, (episode, _) in enumerate(jobs):
        if episode.broken:
            answers[row] = Declined("failed", "no episode has begun since the policy failed; reset first")
    _follow([(episode, request) for _, episode, request in sound])
    for verb in ("single", "chunk", "guided", "inpaint"):
        rows = [(row, e, r) for row, e, r in sound if r.observation is not None and _verb(r) == verb]
        if not rows:
            continue
        decided = _together([(e.policy, r) for _, e, r in rows], verb)
        for (row, episode, request), actions in zip(rows, decided, strict=True):
            episode.observation = request.observation
            answers[row] = spec.check_action(actions)
    return answers


def _verb(request: Request) -> str:
    """What requests that are decided in one pass have in common; of continued chunks, their mode."""
    return "single" if request.single else "chunk" if request.continuation is None else request.continuation.mode


def _follow(jobs: Sequence[Job]) -> None:
    """Tells the policies what their robots did, all of them step by step together."""
    for step in range(max((len(request.followed) for _, request in jobs), default=0)):
        told = []
        for episode, request in jobs:
            if step < len(request.followed):
                said = request.followed[step]
                seen = episode.observation if said.observation is None else said.observation
                if seen is not None:
                    episode.observation = seen
                    told.append((episode.policy, seen, said.action))
        observe([policy for policy, _, _ in told], [seen for _, seen, _ in told])
        for policy, seen, action in told:
            follow(policy, seen, action)


def observe(policies: Sequence[Policy], observations: Sequence[Observation]) -> None:
    """Takes the observations into the memories of policies that can do so together."""
    kind: Any = type(policies[0]) if policies else None
    if (
        len(policies) > 1
        and hasattr(kind, "observe_together")
        and not any(getattr(p, "fresh", False) for p in policies)
    ):
        kind.observe_together(policies, observations, pass_size(len(policies)))


def _together(asked: Sequence[tuple[Any, Request]], verb: str) -> list[Array]:
    """Actions (N, A) of each policy, in one pass where the policies can."""
    policies = [policy for policy, _ in asked]
    seen: list[Any] = [request.observation for _, request in asked]
    kind, size = type(policies[0]), pass_size(len(policies))
    if verb == "single":
        if len(asked) > 1 and hasattr(kind, "act_together"):
            return [action[None] for action in kind.act_together(policies, seen, size)]
        return [policy.act(observation)[None] for policy, observation in zip(policies, seen, strict=True)]
    if verb == "chunk":
        together, alone = "chunk_together", lambda policy, request: policy.chunk(request.observation).actions
    else:
        together, alone = "continue_together", _continued
    if len(asked) > 1 and hasattr(kind, together):
        if hasattr(kind, "observe_together"):
            kind.observe_together(policies, seen, size)
        what = (policies, seen) if verb == "chunk" else (policies, seen, [r.continuation for _, r in asked])
        chunks = getattr(kind, together)(*what, size)
        for policy, observation, chunk in zip(policies, seen, chunks, strict=True):
            follow(policy, observation, chunk.actions[0])  # as after `Policy.chunk`
        return [chunk.actions for chunk in chunks]
    return [alone(policy, request) for policy, request in asked]


def _continued(policy: Any, request: Request) -> Array:
    if not hasattr(policy, "continue_chunk"):
        return policy.chunk(request.observation).actions
    return policy.continue_chunk(request.observation, request.continuation).actions


def pass_size(count: int) -> int:
    """Rows of a pass for ``count`` requests: the next power of two, so that there are few sizes to compile and pad."""
    return 1 << (count - 1).bit_length()
