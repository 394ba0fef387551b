"""What LeRobot's two protocols over Zenoh share: one deployment, one thread that answers, one session at a time.

A client asks for a description, opens a session, and shows by a token that it is there; without the token for `GRACE`
seconds its session ends. Messages for another run of the server, or for a session that is over, are stale.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from kairos_env.policies.remote.lerobot_wire import SEGMENT, Arrival, Envelope, ProtocolFault, ZenohDoor, decode, encode
from kairos_env.policies.remote.requests import Declined

LOG = logging.getLogger("kairos.zenoh")
GRACE = 10.0  # seconds that a client may be away
FAULTS = {"busy": "busy", "late": "timeout", "failed": "execution", "draining": "execution", "mismatch": "incompatible"}


@dataclass(kw_only=True)
class DeploymentSession:
    """One client's session.

    Attributes:
        identity: its name in keys and messages.
        prefix: of its keys.
        handles: what was declared for it.
        away_since: when its token was last missed; None while the client is there.
    """

    identity: str
    prefix: str
    handles: list[Any]
    away_since: float | None = field(default_factory=time.monotonic)
    generation: int = 0


S = TypeVar("S", bound=DeploymentSession)


class ZenohDeployment(ABC, Generic[S]):
    """Serves a deployment in a thread of its own, from the end of ``__init__`` on.

    Args:
        protocol: the part of the keys that names it: ``inference`` or ``env``.
        endpoint: of Zenoh, such as ``tcp/127.0.0.1:7447``.
        deployment: the name that clients ask for.
        config_file: of Zenoh, see `ZenohDoor`.
        patience: seconds between two calls of `idle` while nothing arrives.
    """

    def __init__(self, protocol: str, endpoint: str, deployment: str, config_file: str, patience: float) -> None:
        if not SEGMENT.fullmatch(deployment):
            raise ValueError(f"a deployment is a name of letters, digits, dots and dashes, got {deployment!r}")
        self.deployment, self.instance = deployment, uuid.uuid4().hex
        self.door = ZenohDoor(endpoint, config_file)
        root = f"lerobot/{protocol}/v1/deployments/{deployment}"
        self.root = f"{root}/instances/{self.instance}"
        self.session: S | None = None
        self._patience, self._stopping = patience, threading.Event()
        self._handles = [
            self.door.answers(f"{root}/describe", "describe"),
            self.door.answers(f"{self.root}/open", "open"),
            self.door.lives(f"{self.root}/alive"),
        ]
        self._thread = threading.Thread(target=self._work, name=f"kairos-{protocol}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the session, the thread and the deployment."""
        self._stopping.set()
        self._thread.join(30)
        self.door.close()

    # for the protocols ------------------------------------------------------------------------------------------

    @abstractmethod
    def description(self, message: Envelope) -> Envelope:
        """The answer to a client that asks what is served."""

    @abstractmethod
    def open(self, message: Envelope) -> Envelope:
        """Opens a session, which becomes ``session``."""

    @abstractmethod
    def answer(self, session: S, what: str, message: Envelope, arrival: Arrival) -> Envelope | None:
        """The answer to a message of the session; None if it comes later."""

    def publish(self, session: S, what: str, reply: Envelope) -> None:
        """Sends the answer to a sample, which has no reply of its own."""

    def idle(self, session: S) -> None:
        """Called again and again while a client is there."""

    def end(self, session: S) -> None:
        """Ends the session."""
        self.session = None
        for handle in session.handles:
            handle.undeclare()

    def place(self) -> tuple[str, str]:
        """Identity and key prefix of a new session."""
        identity = uuid.uuid4().hex
        return identity, f"{self.root}/sessions/{identity}"

    # the thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping.is_set():
            arrival = self.door.next(self._patience)
            if arrival is not None:
                self._take(arrival)
            session = self.session
            if session is None:
                continue
            if session.away_since is not None and time.monotonic() - session.away_since > GRACE:
                self.end(session)
            else:
                self._guarded(lambda session=session: self.idle(session), Envelope("error"))
        if self.session is not None:
            self.end(self.session)

    def _take(self, arrival: Arrival) -> None:
        what, _, owner = arrival.what.partition(" ")
        session = self.session
        if what == "presence":
            if session is not None and owner == session.identity:
                session.away_since = None if arrival.alive else time.monotonic()
            return
        message = Envelope("error")
        try:
            message = decode(arrival.data)
        except ProtocolFault as fault:
            reply: Envelope | None = message.fault(fault)
        else:
            reply = self._guarded(lambda: self._reply(what, message, arrival), message)
        if reply is None:
            return
        if arrival.query is not None:
            arrival.answer(encode(reply))
        elif session is not None and message.session_id == session.identity:
            self.publish(session, what, reply)

    def _guarded(self, call: Any, message: Envelope) -> Any:
        """What a call gives, or the error that a client may know of: one message never ends the thread."""
        try:
            return call()
        except ProtocolFault as fault:
            return message.fault(fault)
        except Declined as declined:
            return message.fault(ProtocolFault(FAULTS.get(declined.code, "malformed"), str(declined)))
        except Exception:
            LOG.exception("a request failed")
            return message.fault(ProtocolFault("execution", "the server failed; its log says why"))

    def _reply(self, what: str, message: Envelope, arrival: Arrival) -> Envelope | None:
        if what == "describe":
            return self.description(message)
        if message.instance_id != self.instance:
            raise ProtocolFault("stale", "this is another run of the server")
        if what == "open":
            return self.open(message)
        session = self.session
        if session is None or message.session_id != session.identity:
            raise ProtocolFault("stale", "there is no such session")
        return self.answer(session, what, message, arrival)
