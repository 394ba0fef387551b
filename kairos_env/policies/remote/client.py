"""The client of a policy server, for the computer beside the robot.

>>> client = PolicyClient("ws://gpu-box:8000", token="...")  # doctest: +SKIP
>>> client.reset(seed=0)  # doctest: +SKIP
>>> client.decide({"images": {"scene": image}, "proprio": proprio, "instruction": "lift the cube"})  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .wire import LIMITS, pack, unpack

VERSION = 1  # of this protocol


class ServerLost(ConnectionError):
    """There is no server, it did not answer in time, or it went away. Nothing more comes over this connection."""


class ServerDeclined(RuntimeError):
    """The server answered, but not with a decision: the message says why. The connection stays usable."""


class PolicyClient:
    """Asks a policy server for decisions, one at a time.

    Args:
        url: ``ws://host:port`` or, with TLS, ``wss://host:port``.
        token: that the server wants.
        timeout: seconds for connecting and for each answer; after them the connection is given up, since a late answer
            belongs to an observation that is past.
        certificate: PEM file of the authority that signed the server's certificate; by default the system's.

    Raises:
        ServerLost: no server there, or one that does not let this client in.

    Attributes:
        about: what the server says of its policy: robot, chunk, execute, remembers, ...
    """

    def __init__(
        self, url: str = "ws://127.0.0.1:8000", token: str = "", timeout: float = 10.0, certificate: str = ""
    ) -> None:
        if not url.startswith(("ws://", "wss://")):
            raise ValueError(f"a policy server has an address like ws://host:8000, got {url!r}")
        self.url, self._token, self.timeout, self._certificate = url, token, timeout, certificate
        self._library = _websockets()
        self._trouble = OSError, self._library.exceptions.WebSocketException
        self.about: Mapping[str, Any] = {}
        self._connection: Any = None
        self._opened = contextlib.ExitStack()
        self.connect()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def connect(self) -> None:
        """Connects, again if need be: as a new client, whose episode begins."""
        self.close()
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        try:
            opening = self._library.sync.client.connect(
                self.url,
                compression=None,
                max_size=LIMITS.message,
                additional_headers=headers,
                open_timeout=self.timeout,
                close_timeout=1,
                ping_interval=None,  # each answer has its time limit, and a busy simulator does not answer pings
                ssl=ssl.create_default_context(cafile=self._certificate) if self._certificate else None,
            )
            self._connection = self._opened.enter_context(opening)
        except self._library.exceptions.InvalidStatus as error:
            said = (error.response.body or b"").decode(errors="replace").strip()
            raise ServerLost(f"{self.url} lets nobody in ({error.response.status_code}): {said}") from None
        except self._trouble as error:
            raise ServerLost(f"no policy server at {self.url}: {error}") from None
        try:
            self.about = self._receive()
        except ServerDeclined as error:
            raise ServerLost(f"{self.url} is no policy server of this protocol: {error}") from None
        if not isinstance(self.about, Mapping) or self.about.get("protocol") != VERSION:
            self.close()
            version = self.about.get("protocol") if isinstance(self.about, Mapping) else None
            raise ServerLost(f"{self.url} speaks version {version} of the protocol, this client {VERSION}")

    def reset(self, seed: int | None = None) -> None:
        """Begins an episode."""
        self._ask({"reset": True if seed is None else seed})

    def decide(
        self,
        observation: Mapping[str, Any],
        followed: Sequence[Mapping[str, Any]] = (),
        deadline: float | None = None,
        continuation: Mapping[str, Any] | None = None,
    ) -> npt.NDArray[np.float32]:
        """The next actions (N, A), physical units.

        Args:
            observation: images (camera -> uint8 (H, W, 3)), proprio (P,), instruction.
            followed: what the robot did since the last decision, where ``about["remembers"]``: maps of action (A,)
                and observation, which the one after the last decision leaves out.
            deadline: seconds within which the server must begin with it.
            continuation: what the actions must continue: actions, frozen, horizon, mode.

        Raises:
            ServerDeclined: with the server's reason.
            ServerLost: no answer in time.
        """
        message: dict[str, Any] = {"observation": observation}
        if followed:
            message["followed"] = list(followed)
        if deadline is not None:
            message["deadline"] = deadline
        if continuation is not None:
            message["continuation"] = continuation
        actions = self._ask(message)["actions"]
        return np.array(actions, np.float32)  # a copy that can be written to

    def close(self) -> None:
        self._connection = None
        self._opened.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._connection is None:
            raise ServerLost(f"the connection to {self.url} is closed; connect() opens it again")
        try:
            self._connection.send(pack(message))
        except self._trouble as error:
            self.close()
            raise ServerLost(f"{self.url} went away: {error}") from None
        return self._receive()

    def _receive(self) -> Any:
        try:
            frame = self._connection.recv(timeout=self.timeout)
        except TimeoutError:
            self.close()
            raise ServerLost(f"{self.url} did not answer within {self.timeout:g} s") from None
        except self._trouble as error:
            self.close()
            raise ServerLost(f"{self.url} went away: {error}") from None
        if isinstance(frame, str):
            raise ServerDeclined(frame)
        return unpack(frame)


def _websockets() -> Any:
    try:
        import websockets.exceptions
        import websockets.sync.client
    except ImportError as error:
        raise ImportError(f"{error}; it comes with: pip install 'kairos-env[serve]'") from error
    return websockets
