"""The jobs of a run on a Ray cluster: the same rows as from processes on one machine.

A Ray task runs a few jobs in a worker process of its own, with the same watchdog as everywhere, and returns their
rows; the driver alone writes results. Every machine needs the package, the simulators and the model at the same places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kairos_env.eval.closed_loop.plan import EvalPlan, SetupFailed
from kairos_env.eval.closed_loop.player import error_row
from kairos_env.eval.closed_loop.workers import run_in_processes
from kairos_env.eval.rows import Job, Row
from kairos_env.extras import require

_MOST_JOBS = 32  # of a task: what a lost machine costs at most, and over how many the start of a worker is spread


def run_on_ray(plan: EvalPlan, jobs: Sequence[Job]) -> Iterator[Row]:
    """Yields one row for each job; see `workers.run_in_processes`.

    Joins the cluster of the variable RAY_ADDRESS, or starts Ray on this machine. A task that Ray cannot finish (a
    machine is lost, again and again) ends as errors. ``workers`` of the configuration are tasks at a time, in the whole
    cluster, and each holds a GPU if the model's device is one.

    Raises:
        ImportError: Ray is not installed.
        SetupFailed: simulator or policy cannot be built.
    """
    config = plan.config
    ray = require("ray", "cluster")
    if config.workers < 1:
        raise ValueError(f"a cluster needs at least 1 worker, got workers {config.workers}")
    mine = not ray.is_initialized()
    if mine:
        ray.init(log_to_driver=False)
    size = min(_MOST_JOBS, max(config.slots, -(-len(jobs) // (4 * config.workers))))
    waiting = [list(jobs[first : first + size]) for first in range(0, len(jobs), size)][::-1]
    gpus = 1.0 if config.device.startswith("cuda") else 0.0
    task: Any = ray.remote(max_retries=2, num_gpus=gpus)(_run_part)
    everywhere = ray.put(plan)
    running: dict[Any, list[Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < config.workers:
                part = waiting.pop()
                running[task.remote(everywhere, part)] = part
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


def _run_part(plan: EvalPlan, jobs: Sequence[Job]) -> list[Row]:
    return list(run_in_processes(plan, jobs, 1))
