"""The jobs of a benchmark on a Ray cluster: the same rows as from processes on one machine.

A Ray task runs a few jobs in a worker process of its own, with the same watchdog as everywhere, and returns their
rows; the driver alone writes results. Every machine needs the package, the simulators and the model at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kairos_env.eval.closed_loop.workers import JobQueue, SetupFailed, SlotRunner, error_row, run_in_slots
from kairos_env.eval.rows import Job, Row
from kairos_env.extras import require

_MOST_JOBS = 32  # of a task: what a lost machine costs at most, and over how many the start of a worker is spread


def run_on_ray(
    jobs: Sequence[Job],
    make_runner: Callable[[], SlotRunner],
    workers: int = 1,
    slots: int = 1,
    time_limit_s: float = 300.0,
    gpus: float = 0.0,
) -> Iterator[Row]:
    """Yields one row for each job; see `workers.run_in_slots`.

    Joins the cluster of the variable RAY_ADDRESS, or starts Ray on this machine. A task that Ray cannot finish (a
    machine is lost, again and again) ends as errors.

    Args:
        jobs: what to run; neighbours run in the same task.
        workers: tasks at a time, in the whole cluster.
        gpus: that each task holds.

    Raises:
        ImportError: Ray is not installed.
        SetupFailed: simulator or policy cannot be built.
    """
    ray = require("ray", "cluster")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    mine = not ray.is_initialized()
    if mine:
        ray.init(log_to_driver=False)
    size = min(_MOST_JOBS, max(slots, -(-len(jobs) // (4 * workers))))
    waiting = [list(jobs[first : first + size]) for first in range(0, len(jobs), size)][::-1]
    task: Any = ray.remote(max_retries=2, num_gpus=gpus)(_run_part)
    running: dict[Any, list[Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                part = waiting.pop()
                running[task.remote(part, make_runner, slots, time_limit_s)] = part
            done, _ = ray.wait(list(running))
            for reference in done:
                part = running.pop(reference)
                try:
                    yield from ray.get(reference)
                except SetupFailed:
                    raise
                except ray.exceptions.RayError as error:
                    yield from (error_row(job, error) for job in part)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if mine:
            ray.shutdown()


def _run_part(jobs: Sequence[Job], make_runner: Callable[[], SlotRunner], slots: int, time_limit_s: float) -> list[Row]:
    return list(run_in_slots(JobQueue(jobs), make_runner, 1, slots, time_limit_s))
