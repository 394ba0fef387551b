"""The physics of a fake arm: MuJoCo, advanced by whole control periods, hence the same every time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kairos_env.extras import require
from kairos_env.records import Array
from kairos_env.sims.rendering import OffscreenRenderer
from kairos_env.sims.robot.fake.arms import JOINTS, TURN, FakeArm, arm_mjcf

REACHED, BROUGHT = 0.04, 0.04  # how near [m] the finger tips come to the block, and the block to its place
REST = np.radians([0.0, -50.0, 55.0, 50.0, 0.0, 0.0])  # folded above the table

TASKS: Mapping[str, str] = {
    "reach": "move the gripper to the red block",
    "push": "push the red block onto the blue disc",
}


class ArmTwin:
    """One arm on a table, with a block and a disc.

    Args:
        arm: which one.

    Attributes:
        setpoints: angles that the servos' controllers follow (A,) [rad], which move no faster than a servo.
    """

    def __init__(self, arm: FakeArm) -> None:
        self._mujoco: Any = require("mujoco", "sim")
        self.arm = arm
        self.model = self._mujoco.MjModel.from_xml_string(arm_mjcf(arm))
        self.data = self._mujoco.MjData(self.model)
        self._places = np.array([int(self.model.joint(name).qposadr[0]) for name in JOINTS])
        self._motors = np.array([self.model.actuator(name).id for name in JOINTS])
        self._gains = self.model.actuator_gainprm.copy(), self.model.actuator_biasprm.copy()
        self._block = int(self.model.joint(self.model.body("block").jntadr[0]).qposadr[0])
        self._renderer: OffscreenRenderer | None = None
        self.setpoints = REST.copy()
        self.place(np.random.default_rng(0))

    def place(self, rng: np.random.Generator) -> None:
        """Starts anew: the arm at rest, block and disc somewhere in its reach."""
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._places] = REST
        self.setpoints = REST.copy()
        reach = self.arm.upper + self.arm.lower
        angle, far = rng.uniform(-0.6, 0.6), rng.uniform(0.7, 0.85) * reach
        block = np.array([far * math.cos(angle), far * math.sin(angle), 0.016])
        turn = rng.uniform(0.35, 0.55) * rng.choice([-1, 1])
        disc = np.array([far * math.cos(angle + turn), far * math.sin(angle + turn), 0.001])
        self.data.qpos[self._block : self._block + 3] = block
        self.data.mocap_pos[0] = disc
        self._mujoco.mj_forward(self.model, self.data)

    def advance(self, seconds: float, goals: Array, powered: Array) -> None:
        """Lets that much time pass.

        Args:
            seconds: rounded to whole steps of 5 ms.
            goals: of the servos (A,) [rad].
            powered: whether each has torque (A,).
        """
        gain, bias = self._gains
        self.model.actuator_gainprm[self._motors] = gain[self._motors] * powered[:, None]
        self.model.actuator_biasprm[self._motors] = bias[self._motors] * powered[:, None]
        step = self.model.opt.timestep
        for _ in range(max(1, round(seconds / step))):
            change = np.clip(goals - self.setpoints, -self.arm.speed * step, self.arm.speed * step)
            self.setpoints = np.where(powered, self.setpoints + change, self.angles())
            self.data.ctrl[self._motors] = self.setpoints
            self._mujoco.mj_step(self.model, self.data)

    def angles(self) -> Array:
        """Of the joints (A,) [rad]."""
        return np.asarray(self.data.qpos[self._places])

    def set_angles(self, angles: Array) -> None:
        """Puts the arm there, at rest, as a hand would that moves it."""
        self.data.qpos[self._places] = angles
        self.data.qvel[:] = 0
        self.setpoints = np.array(angles, float)
        self._mujoco.mj_forward(self.model, self.data)

    def loads(self) -> Array:
        """Torque of every servo as a fraction of its greatest (A,)."""
        return np.asarray(self.data.actuator_force[self._motors]) / self.arm.torque

    def steps(self, angles: Array) -> Array:
        """Angles (A,) [rad] as positions of the servos."""
        zeros = np.array([self.arm.zero(i) for i in range(len(JOINTS))])
        return np.clip(np.rint(zeros + angles * TURN / math.tau), 0, TURN - 1).astype(int)

    def angles_of(self, steps: Array) -> Array:
        """Positions of the servos as angles (A,) [rad]."""
        zeros = np.array([self.arm.zero(i) for i in range(len(JOINTS))])
        return (np.asarray(steps, float) - zeros) * math.tau / TURN

    def privileged(self) -> dict[str, Any]:
        """The true state, as `Simulator` tells it; arrays are lists."""
        block, disc = self.data.body("block"), self.data.mocap_pos[0]
        return {
            "eef_position": self.tip.tolist(),
            "gripper_opening": float(max(0.0, self.angles()[-1]) * (self.arm.hand - 0.03)),
            "objects": {
                "block": {"position": block.xpos.tolist(), "rotation": block.xmat.reshape(3, 3).tolist()},
                "disc": {"position": disc.tolist(), "rotation": np.eye(3).tolist()},
            },
            "interest": ["block"],
        }

    def places(self) -> tuple[Array, Array, Array, Array]:
        """Angles of the joints (A,) [rad]; finger tips, block and disc (3,) [m]."""
        return self.angles(), self.tip, np.asarray(self.data.body("block").xpos).copy(), self.data.mocap_pos[0].copy()

    @property
    def tip(self) -> Array:
        """Place of the finger tips (3,) [m]."""
        return np.asarray(self.data.site("tip").xpos).copy()

    def distance(self, task: str) -> float:
        """What is left to do in a task [m]; it is solved below `REACHED` or `BROUGHT`."""
        block = np.asarray(self.data.body("block").xpos)
        if task == "reach":
            return float(np.linalg.norm(self.tip - block))
        return float(np.linalg.norm((block - self.data.mocap_pos[0])[:2]))

    def picture(self, camera: str, height: int, width: int) -> Array:
        """What a camera sees: uint8 (height, width, 3)."""
        if self._renderer is None or max(height, width) > self._renderer.max_size:
            if self._renderer is not None:
                self._renderer.close()
            self._renderer = OffscreenRenderer(self.model, max(height, width))
        view = self._mujoco.MjvCamera()
        view.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self.model.camera(camera).id
        return self._renderer.render(self.data, view, height, width)

    def get_state(self) -> dict[str, Array]:
        """All that decides what comes."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(self.model, kind))
        self._mujoco.mj_getState(self.model, self.data, state, kind)
        return {"physics": state, "setpoints": self.setpoints.copy()}

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Goes back to a `get_state`."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(self.model, self.data, np.asarray(state["physics"], float), kind)
        self.setpoints = np.array(state["setpoints"], float)
        self._mujoco.mj_forward(self.model, self.data)

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
