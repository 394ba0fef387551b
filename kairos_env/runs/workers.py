"""Worker processes: they end with their parent, leave signals to it, and compute on one thread each."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def exit_with_parent() -> None:
    """Ends this worker within seconds of its parent's death, whatever it computes; to be called when it starts.

    A killed parent cannot stop its workers. A thread waits for its end; where the kernel can (Linux), it also kills
    this process, which helps against C code that never lets the thread run. Ctrl-C in a terminal reaches workers too:
    they leave it to their parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    number = os.getppid() if parent is None else parent.pid
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        ended: Sequence[object] = ()
        while not ended and (os.name == "nt" or os.getppid() == number):
            if parent is None:
                time.sleep(1.0)
            else:
                ended = multiprocessing.connection.wait([parent.sentinel], 1.0)
        os._exit(1)

    threading.Thread(target=watch, name="exit_with_parent", daemon=True).start()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """In this block SIGTERM interrupts as Ctrl-C does, and both end the worker processes of `multiprocessing` at once.

    What they were at is begun again when the command is given again. For the main thread of a process; elsewhere
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def single_threaded_workers() -> Iterator[None]:
    """Processes started in this block compute on one thread each.

    Threads on top of busy workers only fight over the cores, and sums over threads would make results depend on
    the machine's load.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
