"""Runs jobs in worker processes that may crash or hang, and yields a row for every job regardless.

The parent alone writes results. A worker that dies or exceeds its time is replaced, and its job ends as
an ``error`` row that says so: nothing a policy or simulator does can lose another job's result. A worker may hold
several jobs, each in a slot. When such a worker dies, nobody knows which job did it: each of them runs again, alone,
and only one that kills a worker by itself is an error.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from kairos_env.eval.closed_loop.plan import EvalPlan, SetupFailed
from kairos_env.eval.closed_loop.player import EpisodePlayer
from kairos_env.eval.rows import Job, Row
from kairos_env.runs import exit_with_parent, single_threaded_workers

_START_LIMIT_S = 600.0  # for building simulator and policy
_GRACE_S = 120.0  # beyond an episode's own limit, before a worker that looks at its clock is taken for dead


class JobQueue:
    """Jobs that wait. Those of one group (a scene that takes long to build) go to the same slot as far as possible.

    Args:
        jobs: groups are begun in the order of their first jobs.
        group: of a job; one group alone keeps the order of ``jobs``.
    """

    def __init__(self, jobs: Sequence[Job], group: Callable[[Job], str]) -> None:
        self._group = group
        self._waiting: dict[str, list[Job]] = {}
        for job in reversed(jobs):
            self._waiting.setdefault(group(job), []).append(job)
        self._fresh = list(self._waiting)  # the last one is begun next
        self._count = len(jobs)

    def __len__(self) -> int:
        return self._count

    def take(self, after: Job | None = None) -> Job:
        """The next job for a slot that has just done ``after``."""
        group = self._group(after) if after is not None else None
        if group not in self._waiting:
            # a group that nobody is at; else help with the one that has most left
            group = self._fresh[-1] if self._fresh else max(self._waiting, key=lambda g: len(self._waiting[g]))
        if group in self._fresh:
            self._fresh.remove(group)
        job = self._waiting[group].pop()
        if not self._waiting[group]:
            del self._waiting[group]
        self._count -= 1
        return job


def run_in_processes(plan: EvalPlan, jobs: Sequence[Job], workers: int) -> Iterator[Row]:
    """Yields one row for each job, in the order in which they finish.

    Args:
        plan: of the run.
        jobs: what to run of it.
        workers: processes.

    Raises:
        SetupFailed: a simulator or a policy cannot be built.
    """
    queue = JobQueue(jobs, plan.scene)
    crew: list[_WorkerProcess] = []
    suspects: list[Job] = []
    with single_threaded_workers():
        try:
            while queue or suspects or crew:
                while len(crew) < workers and len(queue) + len(suspects) > sum(not worker.jobs for worker in crew):
                    crew.append(_WorkerProcess(plan))
                for worker in list(crew):
                    worker.fill(queue, suspects)
                    if not worker.jobs:
                        worker.stop()
                        crew.remove(worker)
                if not crew:
                    continue
                next_deadline = min(worker.deadline for worker in crew)
                wait([worker.connection for worker in crew], max(0.0, next_deadline - time.monotonic()))
                for worker in list(crew):
                    yield from worker.poll()
                    if not worker.alive:
                        worker.stop()
                        crew.remove(worker)
                        suspects += worker.jobs.values()
        finally:
            for worker in crew:
                worker.stop()


def run_here(plan: EvalPlan, jobs: Sequence[Job]) -> Iterator[Row]:
    """Like `run_in_processes`, in this process, where a simulator that hangs cannot be ended."""
    queue, player = JobQueue(jobs, plan.scene), EpisodePlayer(plan)
    last: dict[int, Job] = {}
    free = list(range(plan.config.slots))
    try:
        while queue or len(free) < plan.config.slots:
            while queue and free:
                slot = free.pop(0)
                last[slot] = queue.take(last.get(slot))
                player.start(slot, last[slot])
            for event in player.advance(None):
                if event.row is not None:
                    free.append(event.slot)
                    yield event.row
    finally:
        player.close()


class _WorkerProcess:
    """One process and the jobs it holds, by slot."""

    def __init__(self, plan: EvalPlan) -> None:
        # spawn: a forked child would inherit the parent's threads and GL context
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs, plan), daemon=True)
        self.process.start()
        theirs.close()
        self.slots = plan.config.slots
        # one that simulates itself cannot look at its clock meanwhile
        self.time_limit_s = plan.config.time_limit_s + (0.0 if plan.in_process else _GRACE_S)
        self.jobs: dict[int, Job] = {}
        self.alive = True
        self._alone = False
        self._last: dict[int, Job] = {}
        self._limits: dict[int, tuple[float, str]] = {}

    @property
    def deadline(self) -> float:
        """When the first of its jobs has had its time."""
        return min((moment for moment, _ in self._limits.values()), default=float("inf"))

    def fill(self, queue: JobQueue, suspects: list[Job]) -> None:
        """Gives it jobs for its free slots; one that may have killed a worker gets the process for itself."""
        if not self.jobs:
            self._alone = bool(suspects)
            if suspects:
                self._give(0, suspects.pop(0))
        for slot in range(self.slots):
            if queue and slot not in self.jobs and not self._alone:
                self._give(slot, queue.take(self._last.get(slot)))

    def _give(self, slot: int, job: Job) -> None:
        self.jobs[slot] = self._last[slot] = job
        self._allow(slot, _START_LIMIT_S, "building simulator and policy")
        try:
            self.connection.send((slot, job))
        except OSError:  # it died meanwhile; poll will find out
            pass

    def _allow(self, slot: int, seconds: float, what: str) -> None:
        self._limits[slot] = time.monotonic() + seconds, f"{what} took longer than {seconds:g} s"

    def poll(self) -> Iterator[Row]:
        """Rows of jobs that have ended. A worker that is not alive afterwards has left what is in ``jobs`` undone."""
        while self.connection.poll():
            try:
                message = self.connection.recv()
            except (EOFError, OSError):
                yield from self._give_up(self._how_it_died())
                return
            if isinstance(message, str):
                raise SetupFailed(message)
            for slot, row in message:
                if row is None:
                    self._allow(slot, self.time_limit_s, "the episode")
                else:
                    del self.jobs[slot], self._limits[slot]
                    yield row
        over = [what for moment, what in self._limits.values() if time.monotonic() > moment]
        if over:
            yield from self._give_up(f"timed out: {over[0]}")

    def _give_up(self, reason: str) -> Iterator[Row]:
        self.alive = False
        if len(self.jobs) == 1:
            _, job = self.jobs.popitem()
            yield Row(job, "error", message=reason)

    def _how_it_died(self) -> str:
        self.process.join(10)
        code = self.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"the worker process died ({how})"

    def stop(self) -> None:
        self.connection.close()
        if self.alive and self.process.is_alive():
            # an idle worker ends by itself when its pipe closes, and frees its GL context properly
            self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
        self.process.join(10)


def _serve(connection: Connection, plan: EvalPlan) -> None:
    """A worker's life. It ends when the parent closes the pipe, also by dying."""
    exit_with_parent()
    player = EpisodePlayer(plan)
    busy = 0
    try:
        while True:
            while not busy or connection.poll():
                slot, job = connection.recv()
                try:
                    player.start(slot, job)
                except SetupFailed as error:
                    connection.send(str(error))
                    return
                busy += 1
            if events := player.advance(connection):
                busy -= sum(event.row is not None for event in events)
                connection.send([tuple(event) for event in events])
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass
    finally:
        player.close()
