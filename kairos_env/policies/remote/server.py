"""The policy server: one asyncio loop, websockets, one model behind a queue.

What protects it:
    it listens on this machine only, unless it has a token that every client must show (compared in constant time);
    requests of web pages (``Origin``) are refused, and on this machine ``Host`` must be this machine;
    a frame's length is known from its head before it is read, its values are counted before they are built, arrays are
    views of the frame's bytes, and nothing is ever unpickled;
    a client has one request in work, and the next is not read before the answer has gone; rates are bounded;
    refusals say what was wrong in a line, never a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import ipaddress
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairos_env.extras import require
from kairos_env.policies.policy import Policy
from kairos_env.policies.remote.batching import ClientEpisode, DecisionQueue
from kairos_env.policies.remote.metrics import ServingMetrics
from kairos_env.policies.remote.protocols import PATHS, PROTOCOLS, WireProtocol
from kairos_env.policies.remote.requests import Declined, Request
from kairos_env.policies.remote.wire import Limits, WireError
from kairos_env.records import RobotSpec
from kairos_env.runs import did_you_mean

LOG = logging.getLogger("kairos.serve")
_BUSY_S = 900
"""A client may be as long in its simulator, where nothing in its process answers a ping, before it counts as gone."""


@dataclass(frozen=True)
class ServeConfig:
    """How a policy is served.

    Args:
        host: address to listen on; another than this machine's own needs a token.
        port: 0 is a free one.
        protocol: what ``/`` speaks: openpi (also Kairos's own client), roboarena, vla-eval or xpolicylab; each has a
            path of its own too.
        token_file: file whose text clients must show; the variable KAIROS_TOKEN does the same.
        certificate: PEM file with the server's certificate chain, for wss.
        private_key: PEM file with its key.
        clients: connections at most.
        batch: requests decided in one pass, at most.
        queue: requests that may wait.
        deadline: seconds that a request may wait.
        rate: requests a second of one client; beyond, they are read more slowly.
        message: megabytes of a frame, at most.
        drain: seconds for the requests in work when the server stops.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    protocol: str = "openpi"
    token_file: str = ""
    certificate: str = ""
    private_key: str = ""
    clients: int = 64
    batch: int = 32
    queue: int = 64
    deadline: float = 10.0
    rate: float = 500.0
    message: float = 16.0
    drain: float = 10.0

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}; {did_you_mean(self.protocol, PROTOCOLS)}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; legal are 0 (a free port) to 65535")
        low = [
            name for name in ("clients", "batch", "queue", "deadline", "rate", "message") if not getattr(self, name) > 0
        ]
        if low or self.drain < 0:
            raise ValueError(f"must be above 0: {', '.join(low) or 'drain'}")
        if bool(self.certificate) != bool(self.private_key):
            raise ValueError("TLS needs both a certificate and its private_key")

    @property
    def limits(self) -> Limits:
        return Limits(message=int(self.message * 2**20))


def read_token(config: ServeConfig, environment: Mapping[str, str]) -> str:
    """The token that clients must show; "" if none is needed.

    Raises:
        ValueError: it is needed, because others can reach ``config.host``, and there is none; or it is short.
    """
    token = environment.get("KAIROS_TOKEN", "")
    if config.token_file:
        token = Path(config.token_file).read_text("utf-8").strip()
    if not token and not is_loopback(config.host):
        raise ValueError(
            f"others can reach {config.host}: set KAIROS_TOKEN or --token-file (python -c 'import secrets; "
            "print(secrets.token_urlsafe(32))' makes one), and add --certificate and --private-key, or a proxy with "
            "TLS, since a token travels in plain text without it"
        )
    if token and len(token) < 16:
        raise ValueError(f"the token has {len(token)} characters; at least 16 are needed")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class PolicyServer:
    """Serves policies of one robot.

    Args:
        make: a policy for one client; called in the thread that alone touches them. What is heavy is shared.
        spec: the robot.
        about: of the policy, for clients: text and numbers.
        config: how.
        token: that clients must show; "" for none.

    Attributes:
        queue: where other transports ask too.
    """

    def __init__(
        self,
        make: Callable[[], Policy],
        spec: RobotSpec,
        about: Mapping[str, Any] | None = None,
        config: ServeConfig = ServeConfig(),
        token: str = "",
    ) -> None:
        if not token and not is_loopback(config.host):
            raise ValueError(f"others can reach {config.host}: a token is needed")
        self.make, self.spec, self.config, self._token = make, spec, config, token
        self.about = {"server": "kairos", "robot": spec.to_dict()} | dict(about or {})
        self.queue = DecisionQueue(spec, config.batch, config.queue, config.deadline)
        self.metrics = ServingMetrics()
        self.draining = False
        self.port = config.port
        self._open = self._working = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[PolicyServer]:
        """Listens inside the block. On leaving it, requests in work are answered first, see ``config.drain``.

        Raises:
            OSError: the address is taken.
        """
        websockets = require("websockets.asyncio.server", "serve")
        deciding = asyncio.create_task(self.queue.run(self._passed))
        config = self.config
        try:
            async with websockets.serve(
                self._converse,
                config.host,
                config.port,
                process_request=self._admit,
                compression=None,
                max_size=config.limits.message,
                max_queue=1,
                server_header="kairos",
                ssl=self._tls(),
                logger=_quiet(),
                close_timeout=2,
                ping_timeout=_BUSY_S,
            ) as server:
                self.port = server.sockets[0].getsockname()[1]
                try:
                    yield self
                finally:
                    await self._drain()
        finally:
            deciding.cancel()
            self.queue.close()
            with contextlib.suppress(asyncio.CancelledError):
                await deciding

    async def episode(self) -> ClientEpisode:
        """A new client's episode."""
        return ClientEpisode(await self.queue.do(self.make))

    async def _drain(self) -> None:
        """Takes no more requests, and waits for those in work."""
        self.draining = True
        ends = time.monotonic() + self.config.drain
        while (self._working or not self.queue.idle) and time.monotonic() < ends:
            await asyncio.sleep(0.01)

    def _tls(self) -> ssl.SSLContext | None:
        if not self.config.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.config.certificate, self.config.private_key)
        return context

    def _passed(self, seconds: float, together: int) -> None:
        self.metrics.passed.observe(seconds)  # type: ignore[attr-defined]
        self.metrics.together.observe(together)  # type: ignore[attr-defined]

    # before the handshake ----------------------------------------------------------------------------------------

    def _admit(self, connection: Any, request: Any) -> Any:
        """The HTTP answer to what is no client; None lets it in."""
        path = request.path.partition("?")[0]
        if path in ("/healthz", "/health"):
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path == "/readyz":
            ready = not self.draining
            status = http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, "ready\n" if ready else "draining\n")
        if reason := self._stranger(request.headers):
            self.metrics.refused.labels(reason).inc()
            status = http.HTTPStatus.UNAUTHORIZED if reason == "token" else http.HTTPStatus.FORBIDDEN
            return connection.respond(status, f"refused: {reason}\n")
        if path == "/metrics":
            self.metrics.waiting.set(len(self.queue))
            response = connection.respond(http.HTTPStatus.OK, self.metrics.text().decode())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return response
        if path != "/" and path not in PATHS:
            return connection.respond(http.HTTPStatus.NOT_FOUND, f"no such path; legal are /, {', '.join(PATHS)}\n")
        if self.draining or self._open >= self.config.clients:
            self.metrics.refused.labels("draining" if self.draining else "full").inc()
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "no more clients at present\n")
        return None

    def _stranger(self, headers: Any) -> str:
        """Why a request is refused; "" if it is not."""
        if headers.get_all("Origin"):
            return "origin"
        if self._token:
            given = headers.get("Authorization", "")
            kind, _, secret = given.partition(" ")
            if kind not in ("Bearer", "Api-Key") or not hmac.compare_digest(secret.encode(), self._token.encode()):
                return "token"
            return ""
        hosts = headers.get_all("Host")
        name = hosts[0].rsplit(":", 1)[0].strip("[]") if len(hosts) == 1 else ""
        return "" if name == "0.0.0.0" or is_loopback(name) else "host"  # openpi's client says 0.0.0.0

    # after it ----------------------------------------------------------------------------------------------------

    async def _converse(self, websocket: Any) -> None:
        """One client, until it goes."""
        path = websocket.request.path.partition("?")[0]
        name = PATHS.get(path, self.config.protocol)
        protocol: WireProtocol = PROTOCOLS[name](self.spec, self.about, self.config.limits)
        closed = require("websockets.exceptions", "serve").ConnectionClosed
        self._open += 1
        self.metrics.clients.set(self._open)
        try:
            with contextlib.suppress(closed):
                episode = await self.episode()
                if protocol.greeting is not None:
                    await websocket.send(protocol.greeting)
                pace = _Pace(self.config.rate)
                async for frame in websocket:
                    if not await self._answer(websocket, protocol, episode, frame, name):
                        break
                    await pace.wait()
        finally:
            self._open -= 1
            self.metrics.clients.set(self._open)

    async def _answer(
        self, websocket: Any, protocol: WireProtocol, episode: ClientEpisode, frame: Any, name: str
    ) -> bool:
        """Answers one frame; whether the conversation goes on."""
        began, outcome = time.monotonic(), "ok"
        self._working += 1
        try:
            if isinstance(frame, str):
                raise Declined("malformed", "a text frame; messages are binary frames of msgpack")
            request = protocol.read(frame)
            if request is None:
                return False
            if not isinstance(request, Request):
                reply = request
            else:
                read = time.monotonic() - began
                decision = await self.ask(episode, request)
                decision.times["read_ms"] = 1000 * read
                if episode.total is not None:
                    decision.times["prev_total_ms"] = 1000 * episode.total
                self.metrics.waited.observe(decision.waited)  # type: ignore[attr-defined]
                reply = protocol.answer(request, decision) or b""
            if reply:
                await websocket.send(reply)
        except (WireError, Declined) as error:
            declined = error if isinstance(error, Declined) else Declined("malformed", str(error))
            outcome = declined.code
            await websocket.send(protocol.decline(declined, frame if isinstance(frame, bytes) else b""))
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError):  # an error of ours
            LOG.exception("a frame of protocol %s was not foreseen", name)
            outcome = "failed"
            await websocket.send(protocol.decline(Declined("failed", "the server could not read this"), b""))
        finally:
            self._working -= 1
        episode.total = time.monotonic() - began
        self.metrics.requests.labels(name, outcome).inc()
        return True

    async def ask(self, episode: ClientEpisode, request: Request) -> Any:
        """The decision on a request, of whatever transport.

        Raises:
            Declined: it is not met.
        """
        if self.draining:
            raise Declined("draining", "the server is stopping")
        return await self.queue.ask(episode, request)


class _Pace:
    """Slows a client down to ``rate`` requests a second, after a burst of as many."""

    def __init__(self, rate: float) -> None:
        self.rate, self.allowance, self.last = rate, rate, time.monotonic()

    async def wait(self) -> None:
        now = time.monotonic()
        self.allowance = min(self.rate, self.allowance + (now - self.last) * self.rate) - 1
        self.last = now
        if self.allowance < 0:
            await asyncio.sleep(-self.allowance / self.rate)


def _quiet() -> logging.Logger:
    """The library's own records are of strangers' broken handshakes, with tracebacks."""
    logger = logging.getLogger("kairos.serve.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
