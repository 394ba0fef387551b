"""The drive over HTTP, for one person on this machine and nobody else.

What protects it, since a page of any web site can make a browser knock at 127.0.0.1:
    the address holds a random key, checked on every request before anything else is looked at;
    ``Host`` must be this server (a foreign name that resolves to 127.0.0.1 is refused: DNS rebinding);
    ``Origin``, which browsers send with every POST, must be this server's own;
    a POST carries JSON of at most 4 KiB whose keys and types are known; nothing is read from disk but one page;
    the page's content policy allows no address but this one.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.media import png_bytes
from kairos_env.play.session import PlaySession, StaleFork

MAX_BODY = 4096  # bytes; the longest legal request, an action, needs a few hundred
MAX_CONNECTIONS = 16  # a browser opens about six; beyond, the one that says nothing for longest gives way
IDLE_SECONDS = 60.0


class Refused(Exception):
    """A request that is answered with an error status and its reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class PlayServer(ThreadingHTTPServer):
    """Serves one `PlaySession` on 127.0.0.1; ``url`` is the only address that answers.

    Args:
        make_session: called in the one thread that will ever touch the session: requests never overlap in it, a
            simulator's GL context stays with its thread, and torch keeps one thread pool.
        port: 0 picks a free one.

    Raises:
        OSError: the port is taken. What ``make_session`` raises is passed on.
    """

    daemon_threads = True

    def __init__(self, make_session: Callable[[], PlaySession], port: int = 0) -> None:
        self.key = secrets.token_urlsafe(24)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kairos-play")
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._silent: dict[socket.socket, None] = {}  # connections without a whole request, the longest silent first
        self._silent_lock = threading.Lock()
        self._closers: list[Callable[[], None]] = []  # none yet if the port is taken
        super().__init__(("127.0.0.1", port), _Handler)
        try:
            self.session = self.do(make_session)
        except BaseException:
            self.server_close()
            raise
        self._closers.append(self.session.close)

    def server_bind(self) -> None:
        # HTTPServer's own looks up the machine's name, which can hang for seconds without a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.key}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Legal values of the Host header."""
        return f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"

    def do(self, call: Callable[[], Any]) -> Any:
        """Runs ``call`` in the session's thread and returns (or raises) what it does."""
        return self._worker.submit(call).result()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self._hang_up()
            if not self._free.acquire(timeout=1.0):
                self.shutdown_request(request)  # all of them are being answered: the browser tries again
                return
        self.listens(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.answers(request)
            self._free.release()

    def listens(self, connection: socket.socket) -> None:
        """Takes note that a connection owes a request from now on."""
        with self._silent_lock:
            self._silent.pop(connection, None)
            self._silent[connection] = None

    def answers(self, connection: socket.socket) -> None:
        """Takes note that a connection's request is there."""
        with self._silent_lock:
            self._silent.pop(connection, None)

    def _hang_up(self) -> None:
        """Ends the connection that has been silent for longest; its thread reads the end of its stream."""
        with self._silent_lock:
            if longest := next(iter(self._silent), None):
                del self._silent[longest]
                with suppress(OSError):
                    longest.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):  # a closed tab is no error
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        super().server_close()
        for close in self._closers:
            self.do(close)
        self._closers.clear()
        self._worker.shutdown(cancel_futures=True)


def _verb(name: str, body: dict[str, Any], session: PlaySession) -> dict[str, Any]:
    """One request of the page; ``body`` was checked against `VERBS`."""
    extra: dict[str, Any] = {}
    if name == "session":
        extra["robot"] = session.describe()
    elif name == "fork":
        extra["futures"] = session.fork(**body)
    elif name == "save":
        extra["saved"] = str(session.save())
    else:
        getattr(session, name)(**body)
    return session.snapshot() | extra


# verb -> its legal keys: (types, must be there). bool is never a number here.
VERBS: dict[str, dict[str, tuple[tuple[type, ...], bool]]] = {
    "session": {},
    "reset": {"task": ((str,), False), "start": ((int,), False)},
    "instruct": {"task": ((str,), True)},
    "step": {"action": ((list,), True)},
    "act": {},
    "undo": {},
    "fork": {"kind": ((str,), False)},
    "take": {"future": ((int,), True)},
    "save": {},
}


def parse_body(verb: str, raw: bytes) -> dict[str, Any]:
    """The arguments of ``verb``, checked.

    Raises:
        Refused: 400 with what was given and what is legal.
    """
    legal = VERBS[verb]
    try:
        body = json.loads(raw or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is a JSON {type(body).__name__}; an object is expected")
    unknown = sorted(body.keys() - legal.keys())
    if unknown:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{verb} does not take {unknown}; legal are {sorted(legal)}")
    for key, (types, needed) in legal.items():
        if key not in body:
            if needed:
                raise Refused(HTTPStatus.BAD_REQUEST, f"{verb} needs {key!r}")
            continue
        value = body[key]
        if not isinstance(value, types) or isinstance(value, bool):
            names = " or ".join(t.__name__ for t in types)
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key!r} is a {type(value).__name__}; {names} is expected")
        if isinstance(value, list) and not all(type(v) in (int, float) for v in value):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key!r} must hold numbers only")
        if type(value) is int and abs(value) >= 2**31:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key!r} is out of range")
    return body


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


class _Handler(BaseHTTPRequestHandler):
    server: PlayServer  # type: ignore[assignment]  # narrowed: only PlayServer makes these
    protocol_version = "HTTP/1.1"  # one connection for the whole drive
    disable_nagle_algorithm = True  # else an answer waits 40 ms for the browser's delayed acknowledgement
    wbufsize = -1
    timeout = IDLE_SECONDS  # type: ignore[assignment]
    server_version, sys_version = "kairos-play", ""

    def handle_one_request(self) -> None:
        """Reads and answers a request, while the server knows that this connection owes one."""
        self.server.listens(self.connection)
        super().handle_one_request()

    def do_GET(self) -> None:  # http.server's name
        self._answer(self._get)

    def do_POST(self) -> None:  # http.server's name
        self._answer(self._post)

    def _get(self) -> None:
        if self._inside() != "":
            raise Refused(HTTPStatus.NOT_FOUND, "there is only one page here")
        self.server.answers(self.connection)
        nonce = secrets.token_urlsafe(16)
        page = resources.files("kairos_env.play").joinpath("page.html").read_text("utf-8")
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.replace("{{nonce}}", nonce).encode(), policy)

    def _post(self) -> None:
        path = self._inside()
        raw = self._body()  # read before refusing, so that the connection stays in step
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")
        verb = path.removeprefix("api/")
        if not path.startswith("api/") or verb not in VERBS:
            raise Refused(HTTPStatus.NOT_FOUND, f"no such verb; legal are {', '.join(VERBS)}")
        body = parse_body(verb, raw)
        self.server.answers(self.connection)
        try:
            answer = self.server.do(lambda: _verb(verb, body, self.server.session))
        except StaleFork as error:
            raise Refused(HTTPStatus.CONFLICT, str(error)) from None
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        self._send_json(HTTPStatus.OK, answer)

    def _inside(self) -> str:
        """The path behind the key, after everything that tells a stranger was checked."""
        _, _, rest = self.path.partition("?")[0].partition("/")
        key, slash, path = rest.partition("/")
        if not slash or not hmac.compare_digest(key.encode(), self.server.key.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "wrong or missing key; use the address that `kairos play` printed")
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise Refused(HTTPStatus.FORBIDDEN, f"Host must be {' or '.join(self.server.hosts)}")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, "requests from other pages are refused")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Refused(HTTPStatus.FORBIDDEN, "requests from other pages are refused")
        return path

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is required")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY} bytes are read")
        return self.rfile.read(int(length))

    def _answer(self, handle: Callable[[], None]) -> None:
        try:
            handle()
        except Refused as refused:
            self.close_connection = True  # its body may still be unread
            self._send_json(refused.status, {"error": str(refused)})
        except (ConnectionError, TimeoutError):
            raise
        except Exception:  # noqa: BLE001 - the page must get an answer; the reason goes to the terminal
            traceback.print_exc()
            self.close_connection = True
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "it failed; the terminal says why"})

    def _send_json(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(answer, default=_encoded, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a drive makes hundreds of requests, and their paths hold the key."""


def _encoded(value: Any) -> Any:
    """Images as data addresses, which the page's content policy allows and no other."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return "data:image/png;base64," + base64.b64encode(png_bytes(value, compression=1)).decode()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
