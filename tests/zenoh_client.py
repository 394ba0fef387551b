"""What the clients of LeRobot's two protocols over Zenoh have in common, written from their rules."""

from __future__ import annotations

import time
import uuid
from typing import Any

import zenoh

from kairos_env.policies.remote.lerobot_wire import Envelope, decode, encode


class ZenohClient:
    """A peer that connects to one endpoint and asks queries."""

    def __init__(self, endpoint: str) -> None:
        config = zenoh.Config()
        for key, value in {"mode": '"peer"', "connect/endpoints": f'["{endpoint}"]'}.items():
            config.insert_json5(key, value)
        for key in ("scouting/multicast/enabled", "scouting/gossip/enabled"):
            config.insert_json5(key, "false")
        self.session = zenoh.open(config)
        self.instance = self.identity = ""
        self.generation = 0

    def query(self, key: str, kind: str, body: dict[str, Any], request: str = "") -> Envelope:
        """The answer, once it is known to be one to this request."""
        ids = self.instance, self.identity, self.generation, request or uuid.uuid4().hex
        deadline = time.monotonic() + 10
        with self.session.declare_querier(key) as querier:
            while not querier.matching_status.matching:
                assert time.monotonic() < deadline, key
                time.sleep(0.005)
        (reply,) = self.session.get(key, payload=encode(Envelope(kind, *ids, body)), timeout=60)
        found = decode(reply.ok.payload.to_bytes())
        assert (found.request_id, found.generation) == (ids[3], self.generation)
        return found

    def leave(self) -> None:
        self.session.close()
