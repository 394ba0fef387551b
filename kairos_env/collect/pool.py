"""Items shared out among worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from kairos_env.runs import exit_with_parent

Item = TypeVar("Item")


class WorkerDied(RuntimeError):
    """A worker was killed or ran out of memory."""


def in_workers(
    work: Callable[[Item], Any], items: Iterable[Item], workers: int, start: Callable[..., None], *arguments: Any
) -> Iterator[tuple[Item, Future[Any]]]:
    """Yields (item, finished future) in the order in which items finish.

    Args:
        work: of one item; a function at the top level of a module.
        items: picklable.
        workers: processes, each with its own interpreter: a forked child would inherit GL contexts and threads.
        start: called with ``arguments`` at the beginning of each worker; at the top level of a module.

    Raises:
        WorkerDied: what the other workers have not finished is lost.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(start, arguments))
    try:
        futures = {pool.submit(work, item): item for item in items}
        for future in as_completed(futures):
            if isinstance(future.exception(), BrokenProcessPool):
                raise WorkerDied("a worker process died (killed, or out of memory; see above)")
            yield futures[future], future
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    exit_with_parent()
    start(*arguments)
