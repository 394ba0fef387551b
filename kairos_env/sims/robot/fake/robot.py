"""A fake arm as a whole: its bus, its physics, its calibration file and its cameras."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kairos_env.extras import require
from kairos_env.records import Array, Camera
from kairos_env.sims.robot.fake.arms import JOINTS, find_arm
from kairos_env.sims.robot.fake.bus import FakeBus
from kairos_env.sims.robot.fake.servos import FEETECH, Servo, ServoChain
from kairos_env.sims.robot.fake.twin import ArmTwin
from kairos_env.sims.robot.fake.wire import BusRequest, DynamixelWire, FeetechWire, Wire


class FakeRobot:
    """An arm that LeRobot's own driver takes for a real one.

    Its time is that of its driver: whenever positions are read, one control period passes, so that the same requests
    lead to the same movements however busy the machine is. Nothing moves while nobody reads.

    Args:
        name: ``"so101"``, ``"koch"``, or LeRobot's name of the robot.
        rate_hz: control periods a second.
        cameras: ``"front"`` and ``"wrist"`` there are; each is published for LeRobot's ZMQ camera.
        identity: name of the calibration, which is kept in ``calibration_folder``.
        camera_port: TCP port of the cameras on the loopback device; 0 takes a free one.
        picture_every: control periods between two pictures.

    Attributes:
        port: the device that a driver opens.
        goals: what was written to the goal registers: servo -> steps, one mapping a packet.
        places: where the servos were then.
        times: and in which control period since the scene began.
    """

    def __init__(
        self,
        name: str = "so101",
        rate_hz: float = 30.0,
        cameras: Mapping[str, tuple[int, int]] | None = None,
        identity: str = "fake",
        camera_port: int = 0,
        picture_every: int = 1,
    ) -> None:
        self.arm, self.identity, self.period_s = find_arm(name), identity, 1.0 / rate_hz
        self.cameras = {key: Camera(key, *size) for key, size in (cameras or {}).items()}
        for key in self.cameras:
            if key not in ("front", "wrist"):
                raise ValueError(f"a fake arm has the cameras front and wrist, not {key!r}")
        self.twin = ArmTwin(self.arm)
        self._every, self._periods = picture_every, -1
        self.goals: list[dict[int, int]] = []
        self.places: list[dict[int, int]] = []
        self.times: list[int] = []
        for key, camera in self.cameras.items():
            self.twin.picture(key, camera.height, camera.width)  # the first one takes seconds, which no servo has
        self._publisher: Any
        self._publisher, self.camera_port = _publisher(camera_port) if self.cameras else (None, 0)
        self.calibration_folder = Path(tempfile.mkdtemp(prefix="kairos-fake-"))
        (self.calibration_folder / f"{identity}.json").write_text(json.dumps(self.arm.calibration(), indent=4))
        self.servos = {i + 1: Servo(self.arm.family, i + 1, self.arm.models[i]) for i in range(len(JOINTS))}
        for i, servo in enumerate(self.servos.values()):
            low, high = self.arm.ranges[i]
            for register, value in (("offset", self.arm.offsets[i]), ("low", low), ("high", high)):
                servo.put(register, value)
            if self.arm.family is FEETECH:
                servo.put("phase", 12)
        self._measure()
        wire: Wire = FeetechWire() if self.arm.family is FEETECH else DynamixelWire()
        self.bus = FakeBus(ServoChain(wire, self.servos, self._advance, self._wrote))
        self.port = self.bus.port

    def config(self) -> dict[str, Any]:
        """LeRobot's configuration of it."""
        return {
            "type": self.arm.robot,
            "port": self.port,
            "id": self.identity,
            "calibration_dir": str(self.calibration_folder),
            "cameras": {
                key: {
                    "type": "zmq",
                    "server_address": "127.0.0.1",
                    "port": self.camera_port,
                    "camera_name": key,
                    "width": camera.width,
                    "height": camera.height,
                    "fps": round(1 / self.period_s),
                }
                for key, camera in self.cameras.items()
            },
        }

    def place(self, seed: int, picture_in: int = 1) -> None:
        """Starts the scene anew, the arm at rest; the next picture comes in that many periods."""
        with self.bus.paused():
            self._periods = -picture_in
            self.twin.place(np.random.default_rng(seed))
            self._measure()
            for servo in self.servos.values():
                servo.put("goal", servo.get("present"))

    def move_by_hand(self, angles: Array) -> None:
        """Puts the joints there [rad]."""
        with self.bus.paused():
            self.twin.set_angles(angles)
            self._measure()

    def to_units(self, angles: Array) -> Array:
        """Angles of the joints (A,) [rad] in the units of LeRobot's calibration."""
        return np.array([self.arm.unit_value(i, angle) for i, angle in enumerate(angles)])

    def publish(self) -> None:
        """Sends what the cameras see."""
        if self._publisher is None:
            return
        seen = {key: _jpeg(self.twin.picture(key, c.height, c.width)) for key, c in self.cameras.items()}
        self._publisher.send_string(json.dumps({"timestamps": dict.fromkeys(seen, time.time()), "images": seen}))

    def get_state(self) -> dict[str, Array]:
        """All that decides what comes: physics and the servos' memories."""
        with self.bus.paused():
            memory = np.stack([np.frombuffer(bytes(servo.memory), np.uint8) for servo in self.servos.values()])
            return self.twin.get_state() | {"memory": memory}

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Goes back to a `get_state`."""
        with self.bus.paused():
            self.twin.set_state(state)
            for servo, memory in zip(self.servos.values(), np.asarray(state["memory"], np.uint8), strict=True):
                servo.memory[:] = memory.tobytes()

    def close(self) -> None:
        """Ends bus and cameras, and removes the calibration; safe to call twice."""
        self.bus.unplug()
        self.twin.close()
        if self._publisher is not None:
            self._publisher.close(0)
            self._publisher = None
        shutil.rmtree(self.calibration_folder, ignore_errors=True)

    def _advance(self) -> None:
        goals = self.twin.angles_of(np.array([servo.get("goal") for servo in self.servos.values()]))
        powered = np.array([servo.get("torque") == 1 for servo in self.servos.values()])
        self.twin.advance(self.period_s, goals, powered)
        self._measure()
        self._periods += 1
        if self._periods % self._every == 0:
            self.publish()

    def _measure(self) -> None:
        loads = np.clip(self.twin.loads(), -1, 1) * self.arm.family.load_scale
        for servo, steps, load in zip(self.servos.values(), self.twin.steps(self.twin.angles()), loads, strict=True):
            servo.put("present", int(steps))
            servo.put("load", int(load))

    def _wrote(self, request: BusRequest) -> None:
        goal = self.bus.chain.goal_of(request)
        if goal:
            self.goals.append(goal)
            self.times.append(self._periods)
            self.places.append({number: servo.get("present") for number, servo in self.servos.items()})


def _publisher(port: int) -> tuple[Any, int]:
    """A socket that publishes on the loopback device, and its port."""
    zmq = require("zmq", "serve")
    socket = zmq.Context.instance().socket(zmq.PUB)
    socket.setsockopt(zmq.SNDHWM, 4)
    bound = socket.bind_to_random_port("tcp://127.0.0.1") if port == 0 else socket.bind(f"tcp://127.0.0.1:{port}")
    return socket, port or int(bound)


def _jpeg(picture: Array) -> str:
    """A picture as LeRobot's ZMQ camera wants it. That camera gives back what is stored, taking it for BGR."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture[..., ::-1])).save(stream, "JPEG", quality=95, subsampling=0)
    return base64.b64encode(stream.getvalue()).decode()
