"""LeRobot's remote inference, version 1: what ``lerobot-rollout --inference.type=remote`` asks.

One robot at a time, as that protocol wants it. It sends no actions that were executed in between, so each observation
is decided afresh; in the mode ``rtc_guided`` the rest of the chunk that is being executed is continued.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kairos_env.policies.chunking import Continuation
from kairos_env.policies.remote.batching import ClientEpisode
from kairos_env.policies.remote.deployment import GRACE, DeploymentSession, ZenohDeployment
from kairos_env.policies.remote.lerobot_wire import (
    Arrival,
    Envelope,
    ProtocolFault,
    encode,
    require_feature,
    rgb_feature,
    tensor_feature,
)
from kairos_env.policies.remote.requests import Request
from kairos_env.policies.remote.server import PolicyServer
from kairos_env.records import Array, Observation, RobotSpec

ALIGNED = "chunk_alignment_v1"
IDENTITY = ("artifact_identity", "observation_id", "capture_time", "task", "task_version")
TEXT = 4096


@dataclass(kw_only=True)
class _Session(DeploymentSession):
    mode: str
    settings: Mapping[str, Any]
    episode: ClientEpisode
    actions: Any  # publisher
    language: Any  # publisher
    sequence: int = -1
    seen: OrderedDict[str, None] = field(default_factory=OrderedDict)
    controls: OrderedDict[str, Envelope] = field(default_factory=OrderedDict)


class LeRobotInference(ZenohDeployment[_Session]):
    """Serves the policies of ``server`` to LeRobot's robots.

    Args:
        server: running; its queue decides.
        endpoint: of Zenoh, such as ``tcp/127.0.0.1:7447``.
        deployment: name that robots ask for.
        semantics: agreement on what the numbers mean, such as ``so101-degrees-gripper-percent-v1``; robots must say
            the same.
        config_file: of Zenoh, see `ZenohDoor`.
    """

    def __init__(
        self,
        server: PolicyServer,
        loop: asyncio.AbstractEventLoop,
        endpoint: str = "tcp/127.0.0.1:7447",
        deployment: str = "kairos",
        semantics: str = "",
        config_file: str = "",
    ) -> None:
        self.server, self.loop = server, loop
        self.semantics = semantics or server.spec.name
        self.artifact = str(server.about.get("weights") or server.about["policy"])[:128] or "kairos"
        self.capabilities = capabilities(server.spec, server.about, self.semantics)
        self._opens: OrderedDict[str, Envelope] = OrderedDict()
        super().__init__("inference", endpoint, deployment, config_file, patience=0.05)

    def description(self, message: Envelope) -> Envelope:
        return Envelope("descriptor", self.instance, request_id=message.request_id, body=self.descriptor())

    def answer(self, session: _Session, what: str, message: Envelope, arrival: Arrival) -> Envelope:
        if what == "control":
            return self._control(session, message)
        if what == "language":
            raise ProtocolFault("unsupported", "this policy answers no questions")
        return self._decide(session, message)

    def publish(self, session: _Session, what: str, reply: Envelope) -> None:
        (session.actions if what == "observation" else session.language).put(encode(reply))

    def descriptor(self) -> dict[str, Any]:
        """The policy and its contract, as robots ask for it before they open a session."""
        session = self.session
        return {
            "deployment": self.deployment,
            "instance_id": self.instance,
            "artifact_identity": self.artifact,
            "software": {"name": "kairos"},
            "semantics": self.semantics,
            "capabilities": self.capabilities,
            "execution_contracts": [ALIGNED],
            "blendable_components": [],
            "ready": not self.server.draining,
            "available": session is None,
            "failure": None,
            "session": self._diagnostics(),
            "session_status": "idle" if session is None else "active",
            "limits": {
                "action_deadline_s": 5.0,
                "language_deadline_s": 60.0,
                "idle_timeout_s": GRACE,
                "max_input_chars": TEXT,
                "max_output_chars": 8192,
                "codec": {},
                "inflight_inference": 1,
            },
        }

    def _diagnostics(self) -> dict[str, Any]:
        session = self.session
        left = None
        if session is not None and session.away_since is not None:
            left = max(0.0, GRACE - (time.monotonic() - session.away_since))
        return {
            "owner": None if session is None else session.identity,
            "client_present": None if session is None else session.away_since is None,
            "absence_grace_remaining_s": left,
            "admission_blocker": None if session is None else "active_session" if left is None else "absence_grace",
        }

    def open(self, message: Envelope) -> Envelope:
        if not message.request_id:
            raise ProtocolFault("malformed", "open needs a request_id")
        if message.request_id in self._opens:
            return self._opens[message.request_id]
        if self.session is not None:
            state = self._diagnostics()
            details = {key: state[key] for key in ("admission_blocker", "absence_grace_remaining_s")}
            raise ProtocolFault("busy", f"another robot has the session {state['owner']}", details)
        settings = self._check_open(message.body)
        identity, key = self.place()
        episode = asyncio.run_coroutine_threadsafe(self.server.episode(), self.loop).result(60)
        actions, language = self.door.publisher(f"{key}/act"), self.door.publisher(f"{key}/language/result")
        handles = [
            self.door.answers(f"{key}/control", "control"),
            self.door.hears(f"{key}/obs", "observation"),
            self.door.hears(f"{key}/language/request", "language"),
            self.door.watches(f"{key}/alive", f"presence {identity}"),
            self.door.lives(f"{key}/server_alive"),
        ]
        self.session = _Session(
            identity=identity,
            prefix=key,
            handles=handles,
            mode=message.body["mode"],
            settings=settings,
            episode=episode,
            actions=actions,
            language=language,
        )
        body = self.descriptor() | {"mode": message.body["mode"], "chunk_settings": settings}
        accepted = Envelope("accepted", self.instance, identity, 0, message.request_id, body)
        _remember(self._opens, message.request_id, accepted)
        return accepted

    def _check_open(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The chunk settings of a contract that is this one in every point."""
        own = self.capabilities
        if body.get("expected_artifact") not in (None, self.artifact):
            raise ProtocolFault("incompatible", f"the weights served are {self.artifact!r}")
        if body.get("semantics") != self.semantics:
            raise ProtocolFault("incompatible", f"semantics is {self.semantics!r}, the robot says otherwise")
        if body.get("mode") not in own["modes"]:
            raise ProtocolFault("unsupported", f"mode {str(body.get('mode'))[:40]!r}; legal are {own['modes']}")
        interval = body.get("action_interval")
        if not isinstance(interval, float | int) or not math.isclose(interval, own["action_interval"], rel_tol=1e-6):
            raise ProtocolFault("incompatible", f"actions follow every {own['action_interval']:g} s; --fps follows")
        for name in ("features", "action_feature"):
            if _plain(body.get(name)) != _plain(own[name]):
                raise ProtocolFault("incompatible", f"{name} differ from {str(own[name])[:600]}")
        if body.get("encoding") not in ("raw", "jpeg"):
            raise ProtocolFault("unsupported", "pictures are raw or jpeg")
        append = {"chunk_merge": "append", "blend_steps": 0, "blend_weight": 0.5, "blend_components": []}
        settings = body.get("chunk_settings", append)
        if not isinstance(settings, dict) or settings.keys() != append.keys() or settings["blend_steps"] != 0:
            raise ProtocolFault("unsupported", "chunks are appended or aligned, without blending")
        required = [ALIGNED] if settings["chunk_merge"] == "aligned" else []
        if body.get("required_capabilities", []) != required or (required and body["mode"] != "chunk"):
            raise ProtocolFault("unsupported", f"with {settings['chunk_merge']!r} {required} is required, mode chunk")
        return settings

    def _control(self, session: _Session, message: Envelope) -> Envelope:
        if message.request_id in session.controls:
            return session.controls[message.request_id]
        operation = message.body.get("operation")
        if operation not in ("reset", "invalidate", "close", "status"):
            raise ProtocolFault("malformed", f"unknown operation {str(operation)[:40]!r}")
        if operation != "close" and message.generation < session.generation:
            raise ProtocolFault("stale", "an obsolete generation")
        if operation in ("reset", "invalidate"):
            self._wait_for(session.actions, session.language)
            if operation == "reset":
                self._ask(session, Request(reset=True))
            session.generation = message.generation
        body: dict[str, Any] = {"operation": operation, "applied_generation": session.generation}
        if operation == "status":
            body["session"] = self._diagnostics()
        if operation == "close":
            body["applied_generation"] = message.generation
            self.end(session)
        reply = message.reply("ack", body)
        _remember(session.controls, message.request_id, reply)
        return reply

    def _wait_for(self, *publishers: Any) -> None:
        """Until the robot listens, so that its first answers are not lost."""
        ends = time.monotonic() + 5
        while not all(each.matching_status.matching for each in publishers) and time.monotonic() < ends:
            time.sleep(0.005)

    def _decide(self, session: _Session, message: Envelope) -> Envelope:
        body = message.body
        if message.generation != session.generation:
            raise ProtocolFault("stale", "this generation was not acknowledged")
        if message.request_id in session.seen:
            raise ProtocolFault("stale", "this request was answered")
        _remember(session.seen, message.request_id, None)
        request = self._request(session, body)
        if body["sequence"] <= session.sequence:
            raise ProtocolFault("stale", "this sequence was consumed")
        session.sequence = body["sequence"]
        decision = self._ask(session, request)
        steps = self.capabilities["execution_steps" if session.mode == "chunk" else "prediction_steps"]
        actions = _of_length(decision.actions, steps)
        keys = IDENTITY + (("observation_cursor", "cursor") if session.settings["chunk_merge"] == "aligned" else ())
        return message.reply(
            "action",
            {key: body[key] for key in keys}
            | {
                "canonical_actions": actions,
                "model_actions": None if session.mode == "chunk" else actions,
                "execution_steps": steps,
                "server_durations": {"queue": decision.waited, "worker": decision.decided},
            },
        )

    def _request(self, session: _Session, body: Mapping[str, Any]) -> Request:
        spec, own = self.server.spec, self.capabilities
        for key, kinds in (("sequence", int), ("task", str), ("task_version", int), ("observation_id", str)):
            if not isinstance(body.get(key), kinds) or isinstance(body[key], bool):
                raise ProtocolFault("malformed", f"an observation has {key}")
        if not isinstance(body.get("capture_time"), float | int) or len(body["task"]) > TEXT:
            raise ProtocolFault("malformed", "an observation has a capture_time, and a task that is short")
        if body.get("artifact_identity") != self.artifact:
            raise ProtocolFault("incompatible", f"the weights served are {self.artifact!r}")
        given = body.get("features")
        if not isinstance(given, dict) or given.keys() != {feature["name"] for feature in own["features"]}:
            raise ProtocolFault("incompatible", "the features of the observation are others than agreed")
        found = {feature["name"]: require_feature(given[feature["name"]], feature) for feature in own["features"]}
        images = {camera.name: found[f"observation.images.{camera.name}"] for camera in spec.cameras}
        seen = Observation(images, found["observation.state"], body["task"] or spec.instruction)
        delay, rest = body.get("delay", 0), body.get("canonical_continuation")
        if type(delay) is not int or not 0 <= delay <= own["prediction_steps"]:
            raise ProtocolFault("malformed", f"delay is a number of steps from 0, got {str(delay)[:20]}")
        if session.settings["chunk_merge"] == "aligned" and not all(
            type(body.get(key)) is int for key in ("observation_cursor", "cursor")
        ):
            raise ProtocolFault("malformed", "aligned chunks need observation_cursor and cursor")
        continuation = None
        if session.mode == "rtc_guided" and rest is not None:
            if not isinstance(rest, np.ndarray) or rest.ndim != 2 or rest.shape[1] != spec.action_dim:
                raise ProtocolFault("malformed", "a continuation is (n, A) float32")
            frozen = min(delay, len(rest))
            continuation = Continuation(spec.check_action(rest), frozen, max(frozen, len(rest)))
        return Request(reset=True, observation=seen, continuation=continuation)

    def _ask(self, session: _Session, request: Request) -> Any:
        asked = self.server.ask(session.episode, request)
        return asyncio.run_coroutine_threadsafe(asked, self.loop).result(60)

    def end(self, session: _Session) -> None:
        control = session.handles.pop(0)
        super().end(session)
        threading.Timer(0.5, control.undeclare).start()  # it goes when the answer to the close has left


def capabilities(spec: RobotSpec, about: Mapping[str, Any], semantics: str) -> dict[str, Any]:
    """LeRobot's PolicyCapabilities of a served policy."""
    images = [rgb_feature(f"observation.images.{c.name}", c.height, c.width, semantics) for c in spec.cameras]
    chunk = int(about.get("chunk", about["execute"]))
    return {
        "modes": ["chunk", "rtc_guided"] if about.get("continues") else ["chunk"],
        "prediction_steps": chunk,
        "execution_steps": min(int(about["execute"]), chunk),
        "action_interval": 1 / spec.control_rate_hz,
        "features": [tensor_feature("observation.state", [f.name for f in spec.proprio], semantics), *images],
        "action_feature": tensor_feature("action", [f.name for f in spec.action], semantics),
        "language": False,
        "training_max_delay": 0,
        "rtc_horizon": chunk if about.get("continues") else 0,
        "current_observation_only": True,
        "retains_session_state": False,
        "action_representation": "canonical",
    }


def _of_length(actions: Array, steps: int) -> Array:
    """The first ``steps`` actions; the last one is held where there are fewer."""
    rest = np.repeat(actions[-1:], max(0, steps - len(actions)), 0)
    return np.concatenate([actions, rest])[:steps].astype(np.float32)


def _plain(value: Any) -> Any:
    """Lists for tuples, so that contracts compare."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _remember(known: OrderedDict[str, Any], key: str, value: Any, most: int = 128) -> None:
    known[key] = value
    while len(known) > most:
        known.popitem(last=False)
