"""Runs jobs in worker processes that may crash or hang, and yields a row for every job regardless.

The parent alone writes results. A worker that dies or exceeds its time is replaced, and its job ends as
an ``error`` row that says so: nothing a policy or simulator does can lose another job's result. A worker may hold
several jobs, each in a slot. When such a worker dies, nobody knows which job did it: each of them runs again, alone,
and only one that kills a worker by itself is an error.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

from kairos_env.eval.rows import Job, Row
from kairos_env.runs import exit_with_parent, single_threaded_workers


class Runner(Protocol):
    """What lives in a worker: it keeps simulator and policies between jobs."""

    def prepare(self, job: Job) -> None:
        """Builds what the job needs. An exception here is a wrong set-up and ends the whole run."""

    def run(self, job: Job) -> Row:
        """Runs the job. An exception here is turned into an error row."""

    def close(self) -> None:
        """Frees everything; also called before a job after one that failed."""


class Event(NamedTuple):
    """The job in ``slot`` has begun (``row`` is None) or has ended."""

    slot: int
    row: Row | None


class SlotRunner(Protocol):
    """What lives in a worker that holds several jobs at a time."""

    def start(self, slot: int, job: Job) -> None:
        """Takes on a job in a slot that is free. An exception here is a wrong set-up and ends the whole run."""

    def advance(self, wake: Connection | None) -> list[Event]:
        """Works until something has happened to a job, or there is something to read on ``wake``."""

    def close(self) -> None:
        """Frees everything."""


class SetupFailed(RuntimeError):
    """A simulator or a policy could not be built; every job would fail alike, so none is recorded."""


class JobQueue:
    """Jobs that wait. Those of one group (a scene that takes long to build) go to the same slot as far as possible.

    Args:
        jobs: groups are begun in the order of their first jobs.
        group: of a job; the default has one group, hence keeps the order of ``jobs``.
    """

    def __init__(self, jobs: Sequence[Job], group: Callable[[Job], str] = lambda job: "") -> None:
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


def run_jobs(
    jobs: Sequence[Job],
    make_runner: Callable[[], Runner],
    workers: int = 1,
    time_limit_s: float = 300.0,
    start_limit_s: float = 600.0,
) -> Iterator[Row]:
    """Yields one row for each job, in the order in which they finish.

    Args:
        jobs: what to run.
        make_runner: picklable (a function at the top level of a module, or a `functools.partial` of one).
        workers: processes; 0 runs everything in this process, where a hanging job cannot be ended.
        time_limit_s: for one job.
        start_limit_s: for building simulator and policy.

    Raises:
        SetupFailed: `Runner.prepare` raised.
    """
    one_at_a_time = functools.partial(_OneAtATime.make, make_runner)
    yield from run_in_slots(JobQueue(jobs), one_at_a_time, workers, 1, time_limit_s, start_limit_s)


def run_in_slots(
    queue: JobQueue,
    make_runner: Callable[[], SlotRunner],
    workers: int = 1,
    slots: int = 1,
    time_limit_s: float = 300.0,
    start_limit_s: float = 600.0,
) -> Iterator[Row]:
    """Like `run_jobs`, with ``slots`` jobs at a time in each worker.

    Raises:
        SetupFailed: `SlotRunner.start` raised.
    """
    if workers < 0 or slots < 1 or not time_limit_s > 0:
        raise ValueError(
            f"workers must be >= 0, slots >= 1 and time_limit_s > 0, got {workers}, {slots} and {time_limit_s}"
        )
    if workers == 0:
        yield from _run_here(queue, make_runner, slots)
        return
    crew: list[_Worker] = []
    suspects: list[Job] = []
    with single_threaded_workers():
        try:
            while queue or suspects or crew:
                while len(crew) < workers and len(queue) + len(suspects) > sum(not worker.jobs for worker in crew):
                    crew.append(_Worker(make_runner, slots, time_limit_s, start_limit_s))
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


def error_row(job: Job, error: BaseException) -> Row:
    """The row of a job that raised."""
    trace = "".join(traceback.format_exception(error))
    return Row(job, "error", message=f"{type(error).__name__}: {error}", extra={"traceback": trace[-4000:]})


def _run_here(queue: JobQueue, make_runner: Callable[[], SlotRunner], slots: int) -> Iterator[Row]:
    runner = make_runner()
    last: list[Job | None] = [None] * slots
    free = list(range(slots))
    try:
        while queue or len(free) < slots:
            while queue and free:
                slot = free.pop(0)
                job = last[slot] = queue.take(last[slot])
                _start(runner, slot, job)
            for event in runner.advance(None):
                if event.row is not None:
                    free.append(event.slot)
                    yield event.row
    finally:
        runner.close()


def _start(runner: SlotRunner, slot: int, job: Job) -> None:
    try:
        runner.start(slot, job)
    except Exception as error:
        raise SetupFailed(
            f"could not set up policy {job.policy!r} on {job.simulator!r}: {type(error).__name__}: {error}"
        ) from error


@dataclass
class _OneAtATime:
    """A `Runner` as a `SlotRunner` with one slot."""

    runner: Runner
    job: Job | None = None
    begun: bool = False

    @classmethod
    def make(cls, make_runner: Callable[[], Runner]) -> _OneAtATime:
        return cls(make_runner())

    def start(self, slot: int, job: Job) -> None:
        self.runner.prepare(job)
        self.job, self.begun = job, False

    def advance(self, wake: Connection | None) -> list[Event]:
        if self.job is None:
            return []
        if not self.begun:
            self.begun = True
            return [Event(0, None)]
        job, self.job = self.job, None
        try:
            return [Event(0, self.runner.run(job))]
        except Exception as error:  # noqa: BLE001 (anything a simulator or policy raises is this job's error)
            # What raised may be broken for good: the next job gets a fresh one.
            self.runner.close()
            return [Event(0, error_row(job, error))]

    def close(self) -> None:
        self.runner.close()


class _Worker:
    """One process and the jobs it holds, by slot."""

    def __init__(
        self, make_runner: Callable[[], SlotRunner], slots: int, time_limit_s: float, start_limit_s: float
    ) -> None:
        # spawn: a forked child would inherit the parent's threads and GL context
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs, make_runner), daemon=True)
        self.process.start()
        theirs.close()
        self.slots, self.time_limit_s, self.start_limit_s = slots, time_limit_s, start_limit_s
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
        self._allow(slot, self.start_limit_s, "building simulator and policy")
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


def _serve(connection: Connection, make_runner: Callable[[], SlotRunner]) -> None:
    """A worker's life. It ends when the parent closes the pipe, also by dying."""
    exit_with_parent()
    runner: SlotRunner | None = None
    busy = 0
    try:
        while True:
            while not busy or connection.poll():
                slot, job = connection.recv()
                try:
                    runner = runner or make_runner()
                    _start(runner, slot, job)
                except Exception as error:  # noqa: BLE001 (reported to the parent, which raises it)
                    connection.send(str(error))
                    return
                busy += 1
            assert runner is not None, "a job was taken on"
            if events := runner.advance(connection):
                busy -= sum(event.row is not None for event in events)
                connection.send([tuple(event) for event in events])
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass
    finally:
        if runner is not None:
            runner.close()
