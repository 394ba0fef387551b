"""Operational-space control of the Panda: Cartesian steps with the gripper pointing down.

The control law is robosuite's OSC_POSE (task-space inertia, gravity compensation, posture in the null space),
evaluated at 100 Hz against a linearly moving reference with its velocity fed forward, so that one decision
really moves the gripper by the commanded distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kairos_env.records import Array
from kairos_env.sims.tabletop.scene import ORIGIN, Scene

CONTROL_STEPS = 4
"""Control steps of 20 Hz in one decision."""
EVALUATIONS = 5
"""Evaluations of the control law in one control step."""
SUBSTEPS = 5
"""Physics steps of 2 ms for each evaluation."""
WORKSPACE_LOW = np.array([-0.20, -0.18, 0.012])
WORKSPACE_HIGH = np.array([0.20, 0.18, 0.20])
"""Box that the gripper never leaves [m, relative to the table-top centre]."""
FINGER_TRAVEL = 0.04
"""Travel of one finger [m]; the opening is twice that."""

_STIFFNESS = 900.0  # 1/s^2; critically damped
_DAMPING = 60.0
_TURN_STIFFNESS = 900.0
_TURN_DAMPING = 60.0
_POSTURE_STIFFNESS = 25.0
_POSTURE_DAMPING = 10.0
_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # columns: gripper axes in the world


def finger_opening(gripper: float) -> float:
    """Wanted gripper opening [m] for a command in -1 (open) ... +1 (closed); the outer thirds are saturated."""
    return 2 * FINGER_TRAVEL * float(np.clip(0.5 - 0.75 * gripper, 0.0, 1.0))


class Arm:
    """Moves the arm of one `Scene` by Cartesian decisions.

    Args:
        scene: the compiled scene.
        data: its ``mujoco.MjData``.
    """

    def __init__(self, scene: Scene, data: Any) -> None:
        import mujoco

        self._mujoco = mujoco
        self._scene = scene
        self._model = scene.model
        self._data = data
        self._posture = np.array(scene.arm_qpos)
        n, nv = scene.arm_dofs, scene.model.nv
        self._jacobian_p, self._jacobian_r = np.zeros((3, nv)), np.zeros((3, nv))
        self._inertia = np.zeros((nv, nv))
        self._torque_low = scene.model.actuator_ctrlrange[:n, 0].copy()
        self._torque_high = scene.model.actuator_ctrlrange[:n, 1].copy()

    @property
    def position(self) -> Array:
        """(3,) position of the gripper's grasp centre [m, relative to the table-top centre]."""
        return np.array(self._data.site_xpos[self._scene.eef_site]) - ORIGIN

    def _turn_error(self) -> Array:
        """(3,) rotation vector (small angle) from the present to the downward orientation."""
        now = self._data.site_xmat[self._scene.eef_site].reshape(3, 3)
        return 0.5 * np.cross(now.T, _DOWN.T).sum(axis=0)

    def _jacobian(self) -> Array:
        self._mujoco.mj_jacSite(self._model, self._data, self._jacobian_p, self._jacobian_r, self._scene.eef_site)
        n = self._scene.arm_dofs
        return np.vstack([self._jacobian_p[:, :n], self._jacobian_r[:, :n]])

    def place(self, position: Array, opening: float) -> None:
        """Puts the arm there at rest, without simulating: inverse kinematics from the usual posture.

        Args:
            position: (3,) grasp centre [m, relative to the table-top centre].
            opening: gripper opening [m].
        """
        n, data = self._scene.arm_dofs, self._data
        data.qpos[:n] = self._posture
        for _ in range(60):
            self._mujoco.mj_kinematics(self._model, data)
            self._mujoco.mj_comPos(self._model, data)
            jacobian = self._jacobian()
            error = np.concatenate([position - self.position, self._turn_error()])
            if np.abs(error).max() < 1e-6:
                break
            inverse = np.linalg.inv(jacobian @ jacobian.T + 1e-6 * np.eye(6))
            step = jacobian.T @ (inverse @ error)
            bend = 0.1 * (self._posture - data.qpos[:n])
            step += bend - jacobian.T @ (inverse @ (jacobian @ bend))
            data.qpos[:n] += np.clip(step, -0.3, 0.3)
        data.qpos[list(self._scene.finger_qpos)] = (opening / 2, -opening / 2)
        data.ctrl[n : n + 2] = (opening / 2, -opening / 2)

    def _torques(self, target: Array, velocity: Array) -> Array:
        """Joint torques (n,) [Nm] that pull the gripper to ``target`` moving with ``velocity``."""
        data, n = self._data, self._scene.arm_dofs
        jacobian = self._jacobian()
        self._mujoco.mj_fullM(self._model, self._inertia, data.qM)
        inertia = self._inertia[:n, :n]
        joint_speed = data.qvel[:n]
        weighted = np.linalg.solve(inertia, jacobian.T)  # M^-1 J^T
        task_inertia = np.linalg.inv(jacobian @ weighted)
        speed = jacobian @ joint_speed
        wanted = np.empty(6)
        wanted[:3] = _STIFFNESS * (target - self.position) + _DAMPING * (velocity - speed[:3])
        wanted[3:] = _TURN_STIFFNESS * self._turn_error() - _TURN_DAMPING * speed[3:]
        posture = _POSTURE_STIFFNESS * (self._posture - data.qpos[:n]) - _POSTURE_DAMPING * joint_speed
        # The posture may only use what the task leaves free: remove its task-space acceleration.
        force = task_inertia @ (wanted - jacobian @ posture)
        torque = jacobian.T @ force + inertia @ posture + data.qfrc_bias[:n]
        return np.clip(torque, self._torque_low, self._torque_high)

    def move(self, delta: Array, gripper: float, hold_gripper: bool = False) -> None:
        """Simulates one decision (0.2 s).

        Args:
            delta: (3,) wanted displacement of the gripper [m].
            gripper: -1 (open) ... +1 (closed).
            hold_gripper: ignores ``gripper`` and keeps its last command.
        """
        mujoco, model, data = self._mujoco, self._model, self._data
        n = self._scene.arm_dofs
        start = self.position
        goal = np.clip(start + delta, WORKSPACE_LOW, WORKSPACE_HIGH)
        total = CONTROL_STEPS * EVALUATIONS
        velocity = (goal - start) / (total * SUBSTEPS * model.opt.timestep)
        if not hold_gripper:
            opening = finger_opening(gripper)
            data.ctrl[n : n + 2] = (opening / 2, -opening / 2)
        for i in range(total):
            mujoco.mj_step1(model, data)
            data.ctrl[:n] = self._torques(start + (goal - start) * (i / total), velocity)
            mujoco.mj_step2(model, data)
            mujoco.mj_step(model, data, SUBSTEPS - 1)
        mujoco.mj_forward(model, data)
