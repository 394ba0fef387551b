"""LeRobot's own drivers, opened without moving anything, with one error for whatever goes wrong on their bus.

Runs in the environment that has LeRobot. What LeRobot does at once when it connects is here taken apart: opening and
reading (`Driver.open`, `Driver.read`) writes nothing to a servo; torque comes with `Driver.power_on`.
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kairos_env.records import Array
from kairos_env.runs.spelling import did_you_mean

_FEETECH_FAULTS = {1: "voltage", 2: "angle", 4: "overheated", 8: "over-current", 32: "overload"}
_TURN = 360.0
_PATIENCE_S = 0.5  # for an answer where nothing moves yet


class BusError(ConnectionError):
    """Servos did not answer, or not properly. ``gone``: the port itself is."""

    def __init__(self, message: str, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class Measured(NamedTuple):
    """What was read: positions (A,), loads (A,) as fractions where the bus reports them, joint -> fault."""

    positions: Array
    loads: Array | None
    faults: dict[str, str]


class _Arm(NamedTuple):
    """A LeRobot robot with a bus, and what its joints are prefixed with in a pair."""

    prefix: str
    robot: Any


class Driver:
    """One robot of LeRobot, or a pair.

    Args:
        config: LeRobot's configuration as JSON, with ``type``.
        answer_s: how long servos may take to answer.

    Raises:
        ValueError: an unknown type, or a configuration that LeRobot does not take.
        FileNotFoundError: no port, or no calibration.
    """

    def __init__(self, config: Mapping[str, Any], answer_s: float = 0.025) -> None:
        self.config, self.answer_s = dict(config), answer_s
        self.robot = _make(self.config)
        pair = (("left_", getattr(self.robot, "left_arm", None)), ("right_", getattr(self.robot, "right_arm", None)))
        self.arms = [_Arm(prefix, arm) for prefix, arm in pair if arm is not None] or [_Arm("", self.robot)]
        for arm in self.arms:
            if not hasattr(arm.robot, "bus"):
                raise ValueError(
                    f"{self.config.get('type')} has no motor bus that can be opened without moving it; Kairos drives "
                    "robots of Feetech and Dynamixel servos"
                )
            if not arm.robot.calibration:
                raise FileNotFoundError(
                    f"there is no calibration in {arm.robot.calibration_fpath}: calibrate the arm with "
                    f"lerobot-calibrate --robot.type={self.config['type']} --robot.port={arm.robot.bus.port} "
                    f"--robot.id={self.config.get('id')}, or give the id and folder of the calibration that it has"
                )
        self.joints = tuple(arm.prefix + motor for arm in self.arms for motor in arm.robot.bus.motors)
        self.powered = False
        self._errors: dict[int, int] = {}
        self._patience_s = answer_s

    @property
    def is_open(self) -> bool:
        """Whether the port of every arm is open."""
        return all(arm.robot.bus.port_handler.is_open for arm in self.arms)

    @property
    def cameras(self) -> dict[str, Any]:
        """LeRobot's cameras of the robot."""
        return dict(getattr(self.robot, "cameras", {}))

    def fields(self) -> list[dict[str, Any]]:
        """Name, range, unit and kind of every joint, from its calibration.

        A range is one step of the servo narrower at both ends, because LeRobot rounds towards zero.
        """
        found = []
        for arm in self.arms:
            bus = arm.robot.bus
            for motor, about in bus.motors.items():
                known = arm.robot.calibration[motor]
                span, mode = known.range_max - known.range_min, about.norm_mode.name
                resolution = bus.model_resolution_table[about.model] - 1
                if mode == "DEGREES":
                    half = (span / 2 - 1) * _TURN / resolution
                    low, high, unit = -half, half, "deg"
                elif mode == "RANGE_M100_100":
                    low, high, unit = -100 + 200 / span, 100 - 200 / span, "normalised"
                else:
                    low, high, unit = 100 / span, 100 - 100 / span, "percent"
                kind = "gripper" if "gripper" in motor else "joint_position"
                found.append({"name": f"{arm.prefix}{motor}.pos", "low": low, "high": high, "unit": unit, "kind": kind})
        return found

    # -- opening -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Opens the port and looks whether this is the robot; writes nothing to it.

        Raises:
            BusError: no such port, it is in use, or servos are missing.
            ValueError: the servos hold another calibration than the file.
        """
        try:
            for arm in self.arms:
                self._open(arm)
                self._compare_calibration(arm)
        except BaseException:
            self.close_ports()
            raise

    def _open(self, arm: _Arm) -> None:
        bus = arm.robot.bus
        if not Path(bus.port).exists():
            raise BusError(f"there is no port {bus.port}; `kairos robot find` lists those there are", gone=True)
        self._listen(bus)
        with self._talking(arm, f"opening {bus.port}", patience_s=_PATIENCE_S):
            for attempt in range(3):
                try:
                    bus.connect()
                    break
                except (RuntimeError, ConnectionError):  # a packet that was lost is no missing servo
                    if attempt == 2 or not bus.port_handler.is_open:
                        raise
                    bus.port_handler.closePort()
            try:
                bus.port_handler.ser.exclusive = True  # a lock, which every program of Kairos's asks for
            except OSError as error:
                raise BusError(f"{bus.port} is in use: another program drives the robot on it") from error

    def _listen(self, bus: Any) -> None:
        """Sets the time for an answer, and remembers the error byte of every status packet."""
        port, handler = bus.port_handler, bus.packet_handler
        if getattr(handler.rxPacket, "__name__", "") == "listening":
            return
        usual, receive = port.setPacketTimeout, handler.rxPacket
        place = 4 if "scservo" in type(handler).__module__ else 8

        def bounded(length: int) -> None:
            usual(length)
            port.packet_timeout = 1000 * self._patience_s

        def listening(*arguments: Any, **options: Any) -> Any:
            packet, result = receive(*arguments, **options)
            if result == 0 and packet and len(packet) > place and packet[place]:
                self._errors[packet[2 if place == 4 else 4]] = packet[place]
            return packet, result

        port.setPacketTimeout, handler.rxPacket = bounded, listening

    def _compare_calibration(self, arm: _Arm) -> None:
        with self._talking(arm, "reading the calibration", patience_s=_PATIENCE_S):
            there = arm.robot.bus.read_calibration()
        wrong = []
        for motor, known in arm.robot.calibration.items():
            held = there.get(motor)
            for field in ("range_min", "range_max", "homing_offset"):
                ours, theirs = getattr(known, field), getattr(held, field, None)
                if ours != theirs:
                    wrong.append(f"{arm.prefix}{motor}: {field} {theirs}, in the file {ours}")
        lacking = set(arm.robot.bus.motors) - set(arm.robot.calibration)
        if wrong or lacking:
            shown = "\n  ".join(wrong[:6] + [f"{motor}: not in the file" for motor in sorted(lacking)])
            raise ValueError(
                f"the servos on {arm.robot.bus.port} hold another calibration than {arm.robot.calibration_fpath}; is "
                f"this the arm {arm.robot.id!r}?\n  {shown}\nCalibrate it again, or write the file to the servos with "
                "LeRobot"
            )

    # -- reading and moving --------------------------------------------------------------------------------------

    def read_patiently(self) -> Measured:
        """As `read`, while nothing moves yet: three tries, with more time for each."""
        for _ in range(2):
            try:
                return self.read(_PATIENCE_S)
            except BusError as error:
                if error.gone:
                    raise
        return self.read(_PATIENCE_S)

    def read(self, patience_s: float = 0.0) -> Measured:
        """Positions, loads and faults, in one try each; waits ``patience_s``, or the usual time if that is longer.

        Raises:
            BusError: an answer is missing or damaged, or the port is gone.
        """
        positions, loads = [], []
        self._errors.clear()
        for arm in self.arms:
            bus = arm.robot.bus
            with self._talking(arm, "reading positions", patience_s):
                if "feetech" in type(bus).__module__:
                    found, carried = _positions_and_loads(bus)
                    loads += [carried[motor] for motor in bus.motors]
                else:
                    found = bus.sync_read("Present_Position")
                positions += [found[motor] for motor in bus.motors]
        known = np.array(loads) if len(loads) == len(positions) else None
        return Measured(np.array(positions, float), known, self._faults())

    def send(self, goal: Array) -> Array:
        """Sends a goal (A,) through LeRobot; returns what it says it sent."""
        sent, start = [], 0
        for arm in self.arms:
            motors = list(arm.robot.bus.motors)
            part = {f"{m}.pos": float(v) for m, v in zip(motors, goal[start:], strict=False)}
            with self._talking(arm, "sending a goal"):
                answer = arm.robot.send_action(part)
            sent += [float(answer[f"{motor}.pos"]) for motor in motors]
            start += len(motors)
        return np.array(sent)

    def power_on(self) -> None:
        """Torque on, where the arm is: goals are set to the measured places before."""
        for arm in self.arms:
            bus = arm.robot.bus
            with self._talking(arm, "switching torque on", patience_s=_PATIENCE_S):
                here = bus.sync_read("Present_Position", normalize=False, num_retry=2)
                self.powered = True  # from here on somebody has to switch it off again
                bus.sync_write("Goal_Position", here, normalize=False, num_retry=2)
                arm.robot.configure()
                goals = bus.sync_read("Goal_Position", normalize=False, num_retry=2)
            far = [m for m in here if abs(goals[m] - here[m]) > bus.model_resolution_table[bus.motors[m].model] / 40]
            if far:
                self.relax()
                raise BusError(f"{arm.prefix}{far[0]} has its goal {goals[far[0]]} away from its place {here[far[0]]}")

    def relax(self) -> list[str]:
        """Torque off, for every servo, whatever the others answer; returns those that did not confirm it."""
        lost = []
        for arm in self.arms:
            for motor in arm.robot.bus.motors:
                for _ in range(3):
                    try:
                        with self._talking(arm, f"switching {motor} off"):
                            self._errors.clear()
                            arm.robot.bus.write("Torque_Enable", motor, 0)
                        break
                    except BusError as error:
                        if self._errors.get(arm.robot.bus.motors[motor].id):
                            break  # it answered, with a fault bit: it has obeyed
                        if error.gone:
                            lost.append(arm.prefix + motor)
                            break
                else:
                    lost.append(arm.prefix + motor)
        self.powered = False
        return lost

    def close_ports(self) -> None:
        """Closes what is open, whatever happened before; afterwards the robot can be opened again."""
        for arm in self.arms:
            port = arm.robot.bus.port_handler
            with contextlib.suppress(OSError, _terminal_error(), AttributeError):
                port.closePort()
            port.is_using, port.is_open = False, False

    @contextlib.contextmanager
    def _talking(self, arm: _Arm, what: str, patience_s: float = 0.0) -> Iterator[None]:
        port = arm.robot.bus.port_handler
        self._patience_s = max(patience_s, self.answer_s)
        port.is_using = False  # what an interrupted exchange leaves behind
        try:
            _forget_input(port)
            yield
        except BusError:
            raise
        except (_terminal_error(), OSError, RuntimeError) as error:
            gone = isinstance(error, _terminal_error()) or getattr(error, "errno", None) in (5, 6, 9, 19)
            gone = gone or not os.path.exists(arm.robot.bus.port) or "SerialException" in type(error).__name__
            text = " ".join(str(error).split())
            if gone:
                self.close_ports()
            raise BusError(f"{what} failed: {text or type(error).__name__}", gone) from error
        finally:
            port.is_using = False

    def _faults(self) -> dict[str, str]:
        found = {}
        for arm in self.arms:
            for motor, about in arm.robot.bus.motors.items():
                error = self._errors.get(about.id, 0)
                if error and "feetech" in type(arm.robot.bus).__module__:
                    names = [name for bit, name in _FEETECH_FAULTS.items() if error & bit]
                    found[arm.prefix + motor] = ", ".join(names) or f"status {error}"
                elif error & 0x80:
                    found[arm.prefix + motor] = "hardware alert"
        return found


def _make(config: dict[str, Any]) -> Any:
    """LeRobot's robot of a configuration."""
    import draccus
    from lerobot.robots import RobotConfig, make_robot_from_config
    from lerobot.utils.import_utils import register_third_party_plugins

    import_all("lerobot.robots", "lerobot.cameras")
    register_third_party_plugins()
    kinds = RobotConfig.get_known_choices()
    if "type" not in config:
        raise ValueError(f"the configuration has no type; LeRobot has {', '.join(sorted(kinds))}")
    if config["type"] not in kinds:
        raise ValueError(f"LeRobot has no robot {config['type']!r}; {did_you_mean(str(config['type']), kinds)}")
    if isinstance(config.get("max_relative_target"), int):
        config["max_relative_target"] = float(config["max_relative_target"])  # LeRobot takes floats alone
    try:
        return make_robot_from_config(draccus.decode(RobotConfig, config))
    except (draccus.utils.DecodingError, draccus.utils.ParsingError, TypeError) as error:
        what = "the configuration" if "calibration" not in _places(error) else "a calibration of"
        raise ValueError(f"LeRobot does not take {what} {json.dumps(config)}: {error}") from error


def _places(error: BaseException) -> str:
    """Names of the functions that an error came through."""
    return " ".join(frame.name for frame in traceback.extract_tb(error.__traceback__))


def _positions_and_loads(bus: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Positions and loads of Feetech servos, read together.

    Their answers do not say what they answer. Were the two read one after the other, a late position would be taken for
    a load, and then a load for a position; six bytes are no other answer than this.
    """
    reader, start, size = bus.sync_reader, 56, 6  # position, velocity, load
    reader.clearParam()
    reader.start_address, reader.data_length = start, size
    for number in bus.ids:
        reader.addParam(number)
    result = reader.txRxPacket()
    if result != 0:
        raise ConnectionError(bus.packet_handler.getTxRxResult(result))
    short = [name for name, about in bus.motors.items() if not reader.isAvailable(about.id, start, size)]
    if short:
        raise ConnectionError(f"{short[0]} answered something else")
    raw = {number: reader.getData(number, start, 2) for number in bus.ids}
    places = bus._normalize(bus._decode_sign("Present_Position", raw))
    carried = {number: (reader.getData(number, start + 4, 2) & 0x3FF) / 1000 for number in bus.ids}
    named = {about.id: motor for motor, about in bus.motors.items()}
    return {named[n]: v for n, v in places.items()}, {named[n]: v for n, v in carried.items()}


def _terminal_error() -> type[Exception]:
    """What a port that was unplugged raises; no OSError. Ports like these are on POSIX systems only."""
    import termios

    return termios.error


def _forget_input(port: Any) -> None:
    """Drops what came uninvited: Feetech's library does not, and would take an old answer for the next one."""
    if port.is_open:
        port.ser.reset_input_buffer()


def import_all(*packages: str) -> None:
    """Imports the robots and cameras that register themselves so; those whose libraries are missing stay out."""
    import importlib
    import pkgutil

    for package in packages:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{package}.{module.name}")
