"""LeRobot's remote inference v1, by a client written from the rules of its own: over Zenoh on this machine."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
import zenoh
from serving import SPEC, free_port, make_server, serving
from zenoh_client import ZenohClient

from kairos_env.policies.remote.lerobot import LeRobotInference
from kairos_env.policies.remote.lerobot_wire import Envelope, ProtocolFault, ZenohDoor, decode, encode
from kairos_env.policies.remote.server import PolicyServer

ROOT = "lerobot/inference/v1/deployments/kairos"


class Robot(ZenohClient):
    """A client of that protocol."""

    sequence = 0

    def describe(self) -> dict[str, Any]:
        found = self.query(f"{ROOT}/describe", "describe", {})
        assert found.message_type == "descriptor"
        self.instance = found.instance_id
        assert found.body["instance_id"] == self.instance and found.body["ready"]
        return dict(found.body)

    def open(self, about: dict[str, Any], **changes: Any) -> Envelope:
        own = about["capabilities"]
        body = {
            "expected_artifact": about["artifact_identity"],
            "features": own["features"],
            "action_feature": own["action_feature"],
            "semantics": about["semantics"],
            "action_interval": own["action_interval"],
            "mode": "chunk",
            "encoding": "raw",
        }
        accepted = self.query(f"{ROOT}/instances/{self.instance}/open", "open", body | changes)
        if accepted.message_type == "accepted":
            assert accepted.body["capabilities"] == own and accepted.body["mode"] == (body | changes)["mode"]
            self.identity = accepted.session_id
            self.key = f"{ROOT}/instances/{self.instance}/sessions/{self.identity}"
            self.answers: queue.Queue[bytes] = queue.Queue()
            take = zenoh.handlers.Callback(lambda sample: self.answers.put(sample.payload.to_bytes()), indirect=False)
            self.handles = [
                self.session.declare_subscriber(f"{self.key}/act", take),
                self.session.declare_subscriber(f"{self.key}/language/result", take),
                self.session.liveliness().declare_token(f"{self.key}/alive"),
            ]
        return accepted

    def control(self, operation: str, generation: int = 0, request_id: str = "") -> Envelope:
        before, self.generation = self.generation, generation
        found = self.query(f"{self.key}/control", "control", {"operation": operation}, request_id)
        if found.message_type == "error":
            self.generation = before
        return found

    def observe(self, about: dict[str, Any], **changes: Any) -> Envelope:
        self.sequence += 1
        features: dict[str, Any] = {
            f"observation.images.{c.name}": np.full((8, 8, 3), 5, np.uint8) for c in SPEC.cameras
        }
        body = {
            "sequence": self.sequence,
            "artifact_identity": about["artifact_identity"],
            "observation_id": f"o{self.sequence}",
            "capture_time": 12.5,
            "task": "wave",
            "task_version": 0,
            "features": features | {"observation.state": np.array([0.25, 0], np.float32)},
            "delay": 0,
            "model_continuation": None,
            "canonical_continuation": None,
            "cursor": 0,
        } | changes
        ids = (self.instance, self.identity, self.generation, uuid.uuid4().hex)
        self.session.put(f"{self.key}/obs", encode(Envelope("observation", *ids, body)))
        found = decode(self.answers.get(timeout=10))
        assert (found.instance_id, found.session_id, found.generation, found.request_id) == ids
        if found.message_type == "action":
            keys = ("artifact_identity", "observation_id", "capture_time", "task", "task_version")
            assert all(found.body[key] == body[key] for key in keys)
        return found


@contextmanager
def robots(count: int = 1, **about: Any) -> Iterator[list[Robot]]:
    """Robots connected to a server of `serving.Echo`."""
    server: PolicyServer = make_server()
    server.about |= {"chunk": 4} | about
    with serving(server):
        loop = server.queue.loop
        assert loop is not None
        endpoint = f"tcp/127.0.0.1:{free_port()}"
        service = LeRobotInference(server, loop, endpoint, semantics="joints-v1")
        found = [Robot(endpoint) for _ in range(count)]
        try:
            yield found
        finally:
            for robot in found:
                robot.leave()
            service.close()


def test_a_session_from_description_to_close() -> None:
    with robots(2) as (robot, other):
        about = robot.describe()
        own = about["capabilities"]
        assert own["features"][0] == {
            "name": "observation.state", "shape": [2], "dtype": "float32", "kind": "tensor", "names": ["a", "b"],
            "semantics": "joints-v1",
        }  # fmt: skip
        assert [f["kind"] for f in own["features"]] == ["tensor", "rgb", "rgb"] and own["modes"] == ["chunk"]
        assert own["action_interval"] == pytest.approx(0.1) and own["execution_steps"] == 2
        settings = {"chunk_merge": "aligned", "blend_steps": 0, "blend_weight": 0.5, "blend_components": []}
        assert robot.open(
            about, chunk_settings=settings, required_capabilities=["chunk_alignment_v1"]
        ).message_type == ("accepted")
        assert robot.control("reset", 0).body == {"operation": "reset", "applied_generation": 0}
        for channel in ("obs", "language/request"):  # both must be there before the first observation
            with robot.session.declare_publisher(f"{robot.key}/{channel}") as publisher:
                assert publisher.matching_status.matching
        for _ in range(2):
            answer = robot.observe(about, observation_cursor=3, cursor=4)
            assert answer.body["canonical_actions"].dtype == np.float32
            assert np.allclose(answer.body["canonical_actions"], [[0.25, 0.01]] * 2)
            assert answer.body["execution_steps"] == 2 and answer.body["cursor"] == 4

        other.describe()
        busy = other.open(about)
        assert busy.body["code"] == "busy" and busy.body["details"]["admission_blocker"] == "active_session"

        assert robot.control("reset", 1, "again").body["applied_generation"] == 1
        assert robot.control("reset", 1, "again").body["applied_generation"] == 1  # the same answer
        assert robot.control("reset", 0).body["code"] == "stale"
        assert robot.observe(about, observation_cursor=0, cursor=0).message_type == "action"
        assert robot.control("close", 1).message_type == "ack"
        assert other.open(about).message_type == "accepted"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"expected_artifact": "other"}, "incompatible"),
        ({"semantics": "degrees"}, "incompatible"),
        ({"action_interval": 0.2}, "incompatible"),
        ({"features": []}, "incompatible"),
        ({"mode": "rtc_trained"}, "unsupported"),
        ({"encoding": "png"}, "unsupported"),
        ({"required_capabilities": ["more"]}, "unsupported"),
    ],
)
def test_another_contract_is_refused(changes: dict[str, Any], code: str) -> None:
    with robots() as (robot,):
        assert robot.open(robot.describe(), **changes).body["code"] == code


def test_wrong_observations_are_told_why_and_the_session_goes_on() -> None:
    with robots(continues=True) as (robot,):
        about = robot.describe()
        assert robot.open(about, mode="rtc_guided").message_type == "accepted"
        robot.control("reset", 0)
        assert robot.observe(about).message_type == "action"
        for changes, code in (
            ({"features": {}}, "incompatible"),
            ({"task": 5}, "malformed"),
            ({"artifact_identity": "x"}, "incompatible"),
            ({"delay": -1}, "malformed"),
            ({"canonical_continuation": np.zeros(3, np.float32)}, "malformed"),
            ({"sequence": 0}, "stale"),
        ):
            assert robot.observe(about, **changes).body["code"] == code, changes
        rest = np.zeros((3, 2), np.float32)
        answer = robot.observe(about, delay=1, canonical_continuation=rest, model_continuation=rest)
        assert answer.body["canonical_actions"].shape == (4, 2)  # all that is predicted
        assert answer.body["model_actions"].shape == (4, 2)
        robot.generation = 7
        assert robot.observe(about).body["code"] == "stale"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 2}, "protocol"),
        ({"message_type": "kill"}, "malformed"),
        ({"generation": -1}, "malformed"),
        ({"instance_id": "a/b"}, "malformed"),
        ({"body": []}, "malformed"),
        ({"body": {"x": float("nan")}}, "malformed"),
        ({"body": {"x": {"__lerobot_type__": "tensor", "dtype": "object", "shape": [1]}}}, "malformed"),
        ({"body": {"x": {"__lerobot_type__": "pickle", "shape": [1], "data": b""}}}, "malformed"),
    ],
)
def test_envelopes_outside_the_rules(changes: dict[str, Any], code: str) -> None:
    whole = {"version": 1, "message_type": "describe", "instance_id": "", "session_id": "", "generation": 0}
    with pytest.raises(ProtocolFault) as fault:
        decode(msgpack.packb(whole | {"request_id": "r", "body": {}} | changes))
    assert fault.value.code == code


def test_other_machines_need_a_configuration_of_zenoh() -> None:
    with pytest.raises(ValueError, match="TLS and access control"):
        ZenohDoor("tcp/0.0.0.0:7447")
