"""A simulator in a process of its own, run by another Python interpreter: its packages cannot clash with ours.

Both ends of the connection are here. The parent sends requests, one at a time, as JSON over a socket pair that only the
two processes hold; answers are JSON too, with arrays in memory that both share. Nothing is pickled, and whatever the
simulator prints goes to a log. A process that dies, hangs or raises is an exception in the parent, never its end.

This module needs nothing but the standard library and numpy, so that any interpreter can serve.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_HEADER = struct.Struct("<Q")
_LARGEST_MESSAGE = 64 << 20  # bytes; a longer one means that the stream is garbage
_ALIGNMENT = 64

# Our own interpreter imports what we can import, in the same order.
_BOOTSTRAP_HERE = """
import json, runpy, sys
sys.path[:] = json.loads(sys.argv[1])
module = sys.argv[2]
del sys.argv[1:3]
runpy.run_module(module, run_name="__main__")
"""

# Another interpreter imports our modules without our package's __init__, whose dependencies it need not have.
_BOOTSTRAP = """
import runpy, sys, types
package = types.ModuleType("kairos_env")
package.__path__ = [sys.argv[1]]
sys.modules["kairos_env"] = package
module = sys.argv[2]
del sys.argv[1:3]
runpy.run_module(module, run_name="__main__")
"""


class SimulatorError(RuntimeError):
    """The simulator raised. It still runs; ``kind`` is the name of the exception's class over there."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class SimulatorCrashed(RuntimeError):
    """The simulator's process is gone."""


class SimulatorTimeout(RuntimeError):
    """The simulator did not answer in time; its process was ended."""


class Reply(NamedTuple):
    """What a request came to: JSON values, and arrays of the parent's own."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


class SimulatorProcess:
    """A process that serves a simulator.

    Args:
        python: the interpreter.
        module: run as ``python -m``; calls `serve`.
        environment: variables to set beside the present ones.
        time_limit_s: for a request without one of its own.
        path: where modules are imported from, if ``python`` is this interpreter; None for another one, which gets
            Kairos's modules alone.
    """

    def __init__(
        self,
        python: Path | str,
        module: str,
        environment: Mapping[str, str] | None = None,
        time_limit_s: float = 120.0,
        path: Sequence[str] | None = None,
    ) -> None:
        self.module, self.time_limit_s = module, time_limit_s
        self._waits_for, self._sent_at = "", 0.0
        self._log = tempfile.TemporaryFile()
        self._memory = os.memfd_create("kairos-simulator")
        self._map: mmap.mmap | None = None
        self._socket, theirs = socket.socketpair()
        # What our interpreter was told about packages is not meant for the other one.
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        package = str(Path(__file__).resolve().parents[1])
        start = [_BOOTSTRAP, package] if path is None else [_BOOTSTRAP_HERE, json.dumps(list(path))]
        command = [str(python), "-P", "-c", *start, module, str(theirs.fileno()), str(self._memory)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=inherited | dict(environment or {}),
                pass_fds=(theirs.fileno(), self._memory),
            )
        except OSError as error:
            self._socket.close()
            os.close(self._memory)
            self._log.close()
            raise SimulatorCrashed(f"cannot run {python}: {error}") from error
        finally:
            theirs.close()
        self._closed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Readable when an answer is there, for `selectors`."""
        return self._socket.fileno()

    def send(self, method: str, **arguments: Any) -> None:
        """Sends a request and does not wait.

        Raises:
            SimulatorCrashed: the process is gone.
            RuntimeError: the last answer has not been received yet.
        """
        if self._waits_for:
            raise RuntimeError(f"{method!r} was sent before the answer to {self._waits_for!r} was received")
        try:
            _write(self._socket, {"method": method, "arguments": arguments})
        except (OSError, ValueError) as error:
            raise self._crash(method) from error
        self._waits_for, self._sent_at = method, time.monotonic()

    def receive(self, timeout_s: float | None = None) -> Reply:
        """The answer to the request that was sent.

        Args:
            timeout_s: from now on; None is the process's limit, which counts from `send`.

        Raises:
            SimulatorError: the simulator raised.
            SimulatorCrashed: the process is gone.
            SimulatorTimeout: no answer in time; the process was killed.
        """
        method = self._waits_for
        if not method:
            raise RuntimeError("no request was sent")
        began, limit = (self._sent_at, self.time_limit_s) if timeout_s is None else (time.monotonic(), timeout_s)
        try:
            answer = _read(self._socket, began + limit)
        except TimeoutError:
            self._kill()
            raise SimulatorTimeout(
                f"{self.module} did not answer {method!r} within {limit:g} s and was ended"
            ) from None
        except (OSError, EOFError, ValueError) as error:
            raise self._crash(method) from error
        self._waits_for = ""
        if "error" in answer:
            found = answer["error"]
            raised = SimulatorError(f"{found['kind']}: {found['message']}", found["kind"])
            raised.add_note(f"in the simulator's process:\n{found['traceback']}")
            raise raised
        return Reply(answer["values"], self._arrays(answer["arrays"]))

    def call(self, method: str, *, timeout_s: float | None = None, **arguments: Any) -> Reply:
        """`send` and `receive`."""
        self.send(method, **arguments)
        return self.receive(timeout_s)

    def log_tail(self, size: int = 3000) -> str:
        """The end of what the simulator printed."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - size))
        return self._log.read().decode(errors="replace").strip()

    def close(self) -> None:
        """Ends the process and frees the memory; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._socket.close()  # an idle process ends by itself, and frees its GL context properly
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if self._waits_for else 5)
        self._kill()
        if self._map is not None:
            self._map.close()
        os.close(self._memory)
        self._log.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def _arrays(self, entries: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        if not entries:
            return {}
        size = os.fstat(self._memory).st_size
        if self._map is None or len(self._map) != size:
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self._memory, size)
        arrays = {}
        for entry in entries:
            dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
            count = int(np.prod(shape, dtype=np.int64))
            # copied, because the simulator writes its next answer to the same place
            whole = np.frombuffer(self._map, dtype, count, entry["offset"]).reshape(shape).copy()
            arrays[entry["name"]] = whole
        return arrays

    def _crash(self, method: str) -> SimulatorCrashed:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._kill()
            code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return SimulatorCrashed(f"{self.module} died in {method!r} ({how}); it printed:\n{self.log_tail()}")

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def serve(simulator: Any) -> None:
    """Answers requests by calling the public methods of ``simulator``, until the parent is gone.

    A method returns a dict; its arrays go through shared memory, the rest must be JSON. To be called by the module
    that a `SimulatorProcess` runs.
    """
    connection, memory = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    # A simulator that hangs in C code does not see that its parent was killed.
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    writer = _Writer(memory)
    try:
        while True:
            request = _read(connection)
            try:
                name = request["method"]
                if name.startswith("_"):
                    raise AttributeError(f"{name!r} is not a public method")
                found = getattr(simulator, name)(**request["arguments"]) or {}
                arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray)}
                values = {k: v for k, v in found.items() if k not in arrays}
                answer = {"values": values, "arrays": writer.write(arrays)}
                json.dumps(values)
            except Exception as error:  # noqa: BLE001 (the parent raises it)
                trace = "".join(traceback.format_exception(error))[-6000:]
                answer = {"error": {"kind": type(error).__name__, "message": str(error), "traceback": trace}}
            _write(connection, answer)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass
    finally:
        close = getattr(simulator, "close", None)
        if close is not None:
            close()


class _Writer:
    """Places arrays in the shared memory, which grows with the largest answer."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._map: mmap.mmap | None = None

    def write(self, arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        entries, offset = [], 0
        for name, array in arrays.items():
            entries.append({"name": name, "dtype": array.dtype.str, "shape": array.shape, "offset": offset})
            offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if offset and (self._map is None or len(self._map) < offset):
            if self._map is not None:
                self._map.close()
            os.ftruncate(self._memory, offset)
            self._map = mmap.mmap(self._memory, offset)
        for entry, array in zip(entries, arrays.values()):
            place = np.frombuffer(self._map, array.dtype, array.size, entry["offset"])  # type: ignore[arg-type]
            place.reshape(array.shape)[...] = array
            del place  # a view that lives would forbid the map to be closed
        return entries


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)


def _write(connection: socket.socket, message: Mapping[str, Any]) -> None:
    payload = json.dumps(message).encode()
    connection.sendall(_HEADER.pack(len(payload)) + payload)


def _read(connection: socket.socket, deadline: float | None = None) -> dict[str, Any]:
    (size,) = _HEADER.unpack(_read_exactly(connection, _HEADER.size, deadline))
    if size > _LARGEST_MESSAGE:
        raise ValueError(f"a message of {size} bytes was announced; at most {_LARGEST_MESSAGE} are read")
    return json.loads(_read_exactly(connection, size, deadline))


def _read_exactly(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        if deadline is not None:
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
        part = connection.recv(size - len(parts))
        if not part:
            raise EOFError("the other side closed the connection")
        parts += part
    return bytes(parts)
