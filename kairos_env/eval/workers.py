"""Runs jobs in worker processes that may crash or hang, and yields a row for every job regardless.

The parent alone writes results. A worker that dies or exceeds its time is replaced, and its job ends as
an ``error`` row that says so: nothing a policy or simulator does can lose another job's result.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from kairos_env.eval.results import Job, Row


class Runner(Protocol):
    """What lives in a worker: it keeps simulator and policies between jobs."""

    def prepare(self, job: Job) -> None:
        """Builds what the job needs. An exception here is a wrong set-up and ends the whole run."""

    def run(self, job: Job) -> Row:
        """Runs the job. An exception here is turned into an error row."""

    def close(self) -> None:
        """Frees everything; also called before a job after one that failed."""


class SetupFailed(RuntimeError):
    """A simulator or a policy could not be built; every job would fail alike, so none is recorded."""


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
    if workers < 0 or time_limit_s <= 0:
        raise ValueError(f"workers must be >= 0 and time_limit_s > 0, got {workers} and {time_limit_s}")
    if workers == 0:
        yield from _run_here(jobs, make_runner)
        return
    waiting = deque(jobs)
    crew: list[_Worker] = []
    with _single_threaded_children():
        try:
            while waiting or crew:
                while waiting and len(crew) < workers:
                    crew.append(_Worker(make_runner, time_limit_s, start_limit_s))
                    crew[-1].give(waiting.popleft())
                next_deadline = min(worker.deadline for worker in crew)
                wait([worker.connection for worker in crew], max(0.0, next_deadline - time.monotonic()))
                for worker in list(crew):
                    row = worker.poll()
                    if row is None:
                        continue
                    yield row
                    if worker.alive and waiting:
                        worker.give(waiting.popleft())
                    else:
                        worker.stop()
                        crew.remove(worker)
        finally:
            for worker in crew:
                worker.stop()


def error_row(job: Job, error: BaseException) -> Row:
    """The row of a job that raised."""
    trace = "".join(traceback.format_exception(error))
    return Row(job, "error", message=f"{type(error).__name__}: {error}", extra={"traceback": trace[-4000:]})


def _run_here(jobs: Sequence[Job], make_runner: Callable[[], Runner]) -> Iterator[Row]:
    runner = make_runner()
    try:
        for job in jobs:
            _prepare(runner, job)
            yield _run(runner, job)
    finally:
        runner.close()


def _prepare(runner: Runner, job: Job) -> None:
    try:
        runner.prepare(job)
    except Exception as error:
        raise SetupFailed(
            f"could not set up policy {job.policy!r} on {job.simulator!r}: {type(error).__name__}: {error}"
        ) from error


def _run(runner: Runner, job: Job) -> Row:
    try:
        return runner.run(job)
    except Exception as error:  # noqa: BLE001 (anything a simulator or policy raises is this job's error)
        # What raised may be broken for good: the next job gets a fresh one.
        runner.close()
        return error_row(job, error)


class _Worker:
    """One process and the job it holds."""

    def __init__(self, make_runner: Callable[[], Runner], time_limit_s: float, start_limit_s: float) -> None:
        # spawn: a forked child would inherit the parent's threads and GL context
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: Any = context.Process(target=_serve, args=(theirs, make_runner), daemon=True)
        self.process.start()
        theirs.close()
        self.time_limit_s, self.start_limit_s = time_limit_s, start_limit_s
        self.job: Job | None = None
        self.alive = True
        self.deadline = float("inf")
        self.limit = ""

    def give(self, job: Job) -> None:
        self.job = job
        self._allow(self.start_limit_s, "building simulator and policy")
        try:
            self.connection.send(job)
        except OSError:  # it died meanwhile; poll will find out
            pass

    def _allow(self, seconds: float, what: str) -> None:
        self.deadline = time.monotonic() + seconds
        self.limit = f"{what} took longer than {seconds:g} s"

    def poll(self) -> Row | None:
        """The row of its job, once there is one; None while it works."""
        assert self.job is not None, "poll follows give"
        while self.connection.poll():
            try:
                kind, value = self.connection.recv()
            except (EOFError, OSError):
                return self._died()
            if kind == "row":
                return value
            if kind == "setup":
                raise SetupFailed(value)
            self._allow(self.time_limit_s, "the episode")  # kind == "started"
        if time.monotonic() > self.deadline:
            self.alive = False
            return Row(self.job, "error", message=f"timed out: {self.limit}")
        return None

    def _died(self) -> Row:
        assert self.job is not None, "poll follows give"
        self.alive = False
        self.process.join(10)
        code = self.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return Row(self.job, "error", message=f"the worker process died ({how})")

    def stop(self) -> None:
        self.connection.close()
        if self.alive and self.process.is_alive():
            # an idle worker ends by itself when its pipe closes, and frees its GL context properly
            self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
        self.process.join(10)


def _serve(connection: Connection, make_runner: Callable[[], Runner]) -> None:
    """A worker's life. It ends when the parent closes the pipe, also by dying."""
    runner: Runner | None = None
    try:
        while True:
            job = connection.recv()
            try:
                runner = runner or make_runner()
                _prepare(runner, job)
            except Exception as error:  # noqa: BLE001 (reported to the parent, which raises it)
                connection.send(("setup", str(error)))
                return
            connection.send(("started", None))
            connection.send(("row", _run(runner, job)))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass
    finally:
        if runner is not None:
            runner.close()


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    # One busy core each; and sums over threads would make results depend on the machine's load.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
