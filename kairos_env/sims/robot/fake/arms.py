"""Hobby arms as the fakes know them: servos, calibration, and a MuJoCo model of simple shapes in the arm's size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kairos_env.runs.spelling import did_you_mean
from kairos_env.sims.rendering import VISIBLE_GROUP
from kairos_env.sims.robot.fake.servos import DYNAMIXEL, FEETECH, Family

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
TURN = 4096  # steps of a servo


@dataclass(frozen=True)
class FakeArm:
    """One arm.

    At zero of all joints (the middle of their ranges; the gripper closed) the upper arm points up, the rest forward.

    Attributes:
        robot: LeRobot's name of it.
        models: model number of each servo.
        ranges: least and greatest position of each servo [steps].
        offsets: homing offset of each servo [steps].
        base, upper, lower, hand: heights and lengths [m]; of the real arm to about a centimetre.
        torque: greatest of a servo [N m].
        speed: greatest of a servo [rad/s].
        degrees: whether LeRobot counts its joints so, and not from -100 to 100.
    """

    robot: str
    family: Family
    models: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]
    base: float
    upper: float
    lower: float
    hand: float
    torque: float
    speed: float
    degrees: bool = True

    def zero(self, joint: int) -> int:
        """Position of a servo at its joint's zero [steps]."""
        low, high = self.ranges[joint]
        return low if JOINTS[joint] == "gripper" else (low + high) // 2

    def unit_value(self, joint: int, angle: float) -> float:
        """An angle [rad] in the unit in which LeRobot counts this joint."""
        low, high = self.ranges[joint]
        steps = self.zero(joint) + angle * TURN / math.tau
        if JOINTS[joint] == "gripper":
            return 100 * (steps - low) / (high - low)
        if self.degrees:
            return (steps - (low + high) / 2) * 360 / (TURN - 1)
        return 200 * (steps - low) / (high - low) - 100

    def calibration(self) -> dict[str, dict[str, int]]:
        """What LeRobot keeps in a calibration file."""
        return {
            name: {"id": i + 1, "drive_mode": 0, "homing_offset": offset, "range_min": low, "range_max": high}
            for i, (name, offset, (low, high)) in enumerate(zip(JOINTS, self.offsets, self.ranges, strict=True))
        }


_RANGES = ((850, 3250), (900, 3200), (900, 3150), (900, 3200), (0, 4095), (2030, 3300))
ARMS: Mapping[str, FakeArm] = {
    "so101": FakeArm(
        *("so101_follower", FEETECH, (777,) * 6, _RANGES, (-1023, 310, -45, 0, 812, -300)),
        *(0.117, 0.116, 0.135, 0.10, 1.9, 5.0),
    ),
    "koch": FakeArm(
        *("koch_follower", DYNAMIXEL, (1060, 1060, 1200, 1200, 1200, 1200), _RANGES, (1024, -310, 0, 2048, -7, 100)),
        *(0.105, 0.108, 0.100, 0.11, 1.2, 5.0),
        degrees=False,
    ),
}


def find_arm(name: str) -> FakeArm:
    """An arm by its short name, or LeRobot's.

    Raises:
        ValueError: there is no fake of it.
    """
    by_robot = {arm.robot: arm for arm in ARMS.values()} | {"so100_follower": ARMS["so101"]}
    found = ARMS.get(name) or by_robot.get(name)
    if found is None:
        raise ValueError(f"there is no fake {name!r}; {did_you_mean(name, [*ARMS, *by_robot])}")
    return found


def arm_mjcf(arm: FakeArm) -> str:
    """The arm on a table, with a block, a place to bring it to, and two cameras, as MJCF."""
    seen = f'group="{VISIBLE_GROUP}"'
    low, high = zip(*(_angles(arm, i) for i in range(len(JOINTS))), strict=True)

    def joint(i: int, axis: str) -> str:
        return f'<joint name="{JOINTS[i]}" axis="{axis}" range="{low[i]:.4f} {high[i]:.4f}"/>'

    def link(size: float, to: str, colour: str) -> str:
        return f'<geom {seen} type="capsule" size="{size}" fromto="0 0 0 {to}" rgba="{colour}" mass="0.08"/>'

    motors = "\n".join(
        f'<position name="{name}" joint="{name}" kp="{12 if i < 5 else 2}" kv="{0.5 if i < 5 else 0.05}" '
        f'forcerange="{-arm.torque} {arm.torque}"/>'
        for i, name in enumerate(JOINTS)
    )
    orange, dark = "0.95 0.6 0.12 1", "0.15 0.15 0.17 1"
    return f"""
<mujoco model="{arm.robot}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.005" integrator="implicitfast" cone="elliptic"/>
  <default><joint damping="0.15" armature="0.02" frictionloss="0.05"/><geom friction="0.8 0.01 0.001"/></default>
  <visual><global fovy="50"/><headlight ambient="0.45 0.45 0.45" diffuse="0.5 0.5 0.5"/></visual>
  <worldbody>
    <light pos="0.3 -0.3 1" dir="-0.3 0.3 -1" diffuse="0.4 0.4 0.4"/>
    <geom {seen} name="table" type="plane" size="1 1 0.1" rgba="0.78 0.72 0.62 1"/>
    <camera name="front" pos="0.62 0.02 0.36" xyaxes="0 1 0 -0.55 0 0.83"/>
    <body name="target" mocap="true" pos="0.2 0.1 0.001">
      <geom {seen} type="cylinder" size="0.03 0.001" contype="0" conaffinity="0" rgba="0.15 0.3 0.8 1"/>
    </body>
    <body name="block" pos="0.2 0 0.016">
      <freejoint/>
      <geom {seen} type="box" size="0.016 0.016 0.016" mass="0.03" rgba="0.85 0.15 0.12 1"/>
    </body>
    <body name="base">
      <geom {seen} type="cylinder" size="0.045 {arm.base / 2 - 0.01}" pos="0 0 {arm.base / 2 - 0.01}" rgba="{dark}"/>
      <body name="shoulder" pos="0 0 {arm.base}">
        {joint(0, "0 0 1")}
        <geom {seen} type="sphere" size="0.028" rgba="{dark}" mass="0.1" contype="0" conaffinity="0"/>
        <body name="upper_arm">
          {joint(1, "0 1 0")}
          {link(0.018, f"0 0 {arm.upper}", orange)}
          <body name="lower_arm" pos="0 0 {arm.upper}">
            {joint(2, "0 1 0")}
            {link(0.016, f"{arm.lower} 0 0", orange)}
            <body name="wrist" pos="{arm.lower} 0 0">
              {joint(3, "0 1 0")}
              {link(0.014, "0.03 0 0", dark)}
              <body name="hand" pos="0.03 0 0">
                {joint(4, "1 0 0")}
                <camera name="wrist" pos="-0.02 0 0.06" xyaxes="0 -1 0 0.5 0 0.87" fovy="75"/>
                <geom {seen} type="box" size="0.012 0.02 0.012" pos="0.012 0 0" rgba="{dark}" mass="0.04"/>
                <geom {seen} name="finger" type="box" size="{(arm.hand - 0.03) / 2 - 0.012} 0.004 0.01"
                  pos="{(arm.hand - 0.03) / 2 + 0.012} -0.012 0" rgba="0.9 0.75 0.2 1" mass="0.02"/>
                <site name="tip" pos="{arm.hand - 0.03} 0 0" size="0.004"/>
                <body name="jaw" pos="0.012 0.012 0">
                  {joint(5, "0 0 1")}
                  <geom {seen} type="box" size="{(arm.hand - 0.03) / 2 - 0.012} 0.004 0.01"
                    pos="{(arm.hand - 0.03) / 2} 0 0" rgba="0.9 0.75 0.2 1" mass="0.02"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <contact>
    <exclude body1="base" body2="upper_arm"/><exclude body1="upper_arm" body2="lower_arm"/>
    <exclude body1="lower_arm" body2="wrist"/><exclude body1="wrist" body2="hand"/>
    <exclude body1="hand" body2="jaw"/><exclude body1="lower_arm" body2="hand"/>
  </contact>
  <actuator>
    {motors}
  </actuator>
</mujoco>"""


def _angles(arm: FakeArm, joint: int) -> tuple[float, float]:
    """Least and greatest angle of a joint [rad], with a little room behind its range."""
    zero, (low, high) = arm.zero(joint), arm.ranges[joint]
    return tuple((end + room - zero) * math.tau / TURN for end, room in ((low, -40), (high, 40)))  # type: ignore[return-value]
