"""A robot inside the world model, for LeRobot's own tools: its env-server protocol, version 1, over Zenoh.

``lerobot-eval --env.type=sim`` steps it in lockstep, ``lerobot-rollout --robot.type=remote`` drives it in real time.
One thread imagines and answers. A command is executed at the next tick; without one for a second the robot holds.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.play.dream_world import GROUP, DreamWorld, describe, feedback, size_of
from kairos_env.policies.remote.deployment import DeploymentSession, ZenohDeployment
from kairos_env.policies.remote.lerobot_wire import LIMITS, Arrival, Envelope, ProtocolFault, encode, require_feature
from kairos_env.records import Array

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel

ROBOTS = 32  # of a session, at most
COMMAND = 1.0  # seconds after which the robot holds
PENDING = 4  # commands that wait
REQUESTS = 32768  # between two resets
REPLY = 120.0  # seconds that a command may wait at most


@dataclass
class _Command:
    message: Envelope
    actions: Array
    arrival: Arrival | None
    deadline: float


@dataclass(kw_only=True)
class _DreamSession(DeploymentSession):
    world: DreamWorld
    clock: str
    target: Array
    observations: Any  # publisher
    sequence: int = 0
    requests: set[str] = field(default_factory=set)
    commands: deque[_Command] = field(default_factory=deque)
    execution: Mapping[str, Any] | None = None
    next_tick: float = 0.0
    last_command: float = field(default_factory=time.monotonic)
    paused: bool = False


class DreamServer(ZenohDeployment[_DreamSession]):
    """Imagined robots behind LeRobot's env-server protocol.

    Args:
        model: that imagines; nothing else may use it meanwhile.
        endpoint: of Zenoh, such as ``tcp/127.0.0.1:7448``.
        deployment: the name that clients ask for.
        semantics: what the numbers mean; by default the robot's name.
        steps: of an episode, at most.
        config_file: of Zenoh, see `ZenohDoor`.
    """

    def __init__(
        self,
        model: WorldModel,
        endpoint: str = "tcp/127.0.0.1:7448",
        deployment: str = "default",
        semantics: str = "",
        steps: int = 100,
        config_file: str = "",
    ) -> None:
        self.model, self.steps = model, steps
        self.descriptor = describe(model, semantics or model.imagined_spec.name, steps)
        super().__init__("env", endpoint, deployment, config_file, patience=0.002)

    def description(self, message: Envelope) -> Envelope:
        return message.reply("accepted", {"instance": self.instance, "descriptor": self.descriptor})

    def idle(self, session: _DreamSession) -> None:
        if session.clock == "realtime" and not session.paused and time.monotonic() >= session.next_tick:
            self._tick(session)

    def answer(self, session: _DreamSession, what: str, message: Envelope, arrival: Arrival) -> Envelope | None:
        if message.generation != session.generation:
            raise ProtocolFault("stale", "the world was reset since")
        if message.request_id in session.requests:
            raise ProtocolFault("stale", "this request was done; nothing is done twice")
        if len(session.requests) >= REQUESTS:
            raise ProtocolFault("unsupported", f"{REQUESTS} requests since the last reset; open another session")
        session.requests.add(message.request_id)
        operation = "apply" if what == "act" else str(arrival.query.key_expr).rpartition("/")[2]
        if operation == "control":
            operation = str(message.body.get("operation", ""))
        body = self._operate(session, operation, message, arrival)
        return None if body is None else message.reply("ack", body)

    def _operate(
        self, session: _DreamSession, operation: str, message: Envelope, arrival: Arrival
    ) -> dict[str, Any] | None:
        body, world = message.body, session.world
        if operation == "reset":
            self._cancel(session, "the world was reset")
            result = world.reset(body.get("seeds"), body.get("env_ids"))
            session.generation += 1
            session.requests.clear()
            session.execution, session.target = None, world.initial_target()
            session.last_command = time.monotonic()
            return {"generation": session.generation, "result": result}
        if operation in ("step", "apply"):
            if (operation == "step") != (session.clock == "lockstep") or body.get("n_ticks", 1) != 1:
                raise ProtocolFault("unsupported", f"the clock is {session.clock}; step is for lockstep, one tick")
            actions = require_feature(body.get("actions"), self.descriptor["action_feature"], (world.count,))
            if operation == "step":
                return self._execute(session, message.request_id, actions)
            self._queue(session, _Command(message, actions, arrival, _deadline(body)))
            return None  # answered when it is executed
        if operation == "hold":
            if session.clock != "realtime":
                raise ProtocolFault("unsupported", "hold is for the clock realtime")
            self._cancel(session, "held instead")
            session.target, session.last_command = world.hold(session.target), time.monotonic()
            return {"applied": session.target}
        if operation == "snapshot":
            execution = {} if session.execution is None else {"execution": session.execution}
            return {"result": world.snapshot} | execution
        if operation == "render":
            return {"frames": world.render()}
        if operation in ("pause", "resume"):
            self._cancel(session, "paused")
            session.paused = operation == "pause"
            session.next_tick = time.monotonic() + 1 / self.descriptor["fps"]
            return {}
        if operation == "close":
            self.end(session)
            return {}
        raise ProtocolFault(
            "unsupported", f"no operation {operation[:40]!r}; {', '.join(self.descriptor['operations'])}"
        )

    def _queue(self, session: _DreamSession, command: _Command) -> None:
        if session.paused:
            raise ProtocolFault("busy", "the world is paused")
        if len(session.commands) >= PENDING:
            raise ProtocolFault("busy", f"{PENDING} commands wait already")
        session.commands.append(command)

    def open(self, message: Envelope) -> Envelope:
        body = message.body
        count, clock, task = body.get("num_envs", 1), body.get("clock", "lockstep"), body.get("task_id", 0)
        if type(count) is not int or not 1 <= count <= ROBOTS or clock not in self.descriptor["clocks"]:
            raise ProtocolFault("incompatible", f"num_envs is 1 to {ROBOTS} and clock lockstep or realtime")
        if size_of(self.model.imagined_spec, count) + 65536 > LIMITS.message:
            raise ProtocolFault("incompatible", f"the pictures of {count} robots do not fit into a message")
        if body.get("task_group") not in (None, GROUP) or type(task) is not int:
            raise ProtocolFault("incompatible", f"the only task_group is {GROUP!r}, and task_id a number")
        if self.session is not None:
            raise ProtocolFault("busy", "another client has the world")
        world = DreamWorld(self.model, count, task, self.steps)
        try:
            result = world.reset(body.get("seeds"))
        except BaseException:
            world.close()
            raise
        identity, prefix = self.place()
        handles = [
            *(self.door.answers(f"{prefix}/{name}", "request") for name in ("reset", "step", "control")),
            self.door.watches(f"{prefix}/client_alive", f"presence {identity}"),
            self.door.lives(f"{prefix}/alive"),
            self.door.hears(f"{prefix}/act", "act"),
        ]
        observations = self.door.publisher(f"{prefix}/obs")
        self.session = _DreamSession(
            identity=identity,
            prefix=prefix,
            handles=handles,
            world=world,
            clock=clock,
            target=world.initial_target(),
            observations=observations,
            next_tick=time.monotonic() + 1 / self.descriptor["fps"],
        )
        told = {"session": identity, "result": result, "generation": 0, "descriptor": self.descriptor}
        return message.reply("accepted", told)

    def _execute(self, session: _DreamSession, request: str, actions: Array) -> dict[str, Any]:
        started, over = time.monotonic(), session.world.over
        result = session.world.step(actions)
        session.sequence += 1
        identity = request, session.generation, session.sequence
        session.execution = feedback(session.world, *identity, actions, over, started)
        return {"result": result, "execution": session.execution}

    def _tick(self, session: _DreamSession) -> None:
        now = time.monotonic()
        while session.commands and session.commands[0].deadline <= now:
            self._refuse(session.commands.popleft(), ProtocolFault("timeout", "its deadline came first"))
        command = session.commands.popleft() if session.commands else None
        if command is not None:
            session.target, session.last_command = command.actions, now
        elif now - session.last_command > COMMAND:
            session.target = session.world.hold(session.target)
        request = uuid.uuid4().hex if command is None else command.message.request_id
        body = self._execute(session, request, session.target)
        if self.descriptor["control"] == "delta":
            session.target = session.world.hold(session.target)  # a displacement is executed once
        if command is not None and command.arrival is not None and command.arrival.query is not None:
            command.arrival.answer(encode(command.message.reply("ack", body)))
        ids = self.instance, session.identity, session.generation, request
        session.observations.put(encode(Envelope("observation", *ids, body)))
        session.next_tick = max(session.next_tick + 1 / self.descriptor["fps"], time.monotonic())

    def _cancel(self, session: _DreamSession, reason: str) -> None:
        while session.commands:
            self._refuse(session.commands.popleft(), ProtocolFault("stale", reason))

    def _refuse(self, command: _Command, fault: ProtocolFault) -> None:
        if command.arrival is not None and command.arrival.query is not None:
            command.arrival.answer(encode(command.message.fault(fault)))

    def end(self, session: _DreamSession) -> None:
        self._cancel(session, "the session was closed")
        session.world.close()
        super().end(session)


def _deadline(body: Mapping[str, Any]) -> float:
    seconds = body.get("timeout_s", REPLY)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not (np.isfinite(seconds) and seconds > 0):
        raise ProtocolFault("malformed", f"timeout_s is seconds above 0, got {str(seconds)[:40]!r}")
    return time.monotonic() + min(float(seconds), REPLY)
