"""Motion of one arm for RoboTwin's experts on a processor, behind the three methods that they ask curobo for.

Inverse kinematics from several starts (mplib's CLIK), a path of the hand that keeps clear of what stands on the table
(up before it goes across, across before it goes down), and time-optimal timing of it (TOPP), which is what RoboTwin
itself times actions with. Where the last centimetres of a path are out of the arm's reach, it ends before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

STEP_S = 1 / 250  # of the physics
_MOVE_M, _TURN_RAD = 0.02, 0.1  # between two points of a path
_JUMP_RAD = 0.5  # of a joint, between two points of one path: more means that the arm turned over
_STARTS = 24  # of the inverse kinematics
_NEAR_RAD = 1.2  # a solution as near as this is taken
_SHORT_M = 0.06  # of a path that may be out of reach: a lift is then lower, and what is not placed is seen as such
VERSION = 2
"""Of what the planner decides: what was found out with another version is asked for again."""


class ArmPlanner:
    """Plans for one arm; the arguments are those that RoboTwin gives curobo's planner.

    Paths are planned once `attach` was called. Until then only grippers move, which is all a set-up does, and all that
    is needed by policies that command joints.

    Args:
        base: pose of the robot.
        joints: names of the arm's joints.
        every_joint: names of all active joints, in the order of the states that plans begin with.
        settings: what curobo would need.
    """

    def __init__(self, base: Any, joints: Sequence[str], every_joint: Sequence[str], **settings: Any) -> None:
        self._base, self._joints, self._every = base, list(joints), list(every_joint)
        self._planner: Any = None

    def attach(self, planner: Any) -> None:
        """Takes over kinematics and limits of an ``mplib`` planner of the same arm."""
        self._planner = planner
        self._model = planner.pinocchio_model
        names = list(planner.user_joint_names)
        self._columns = [names.index(name) for name in self._joints]
        self._size = len(names)
        self._link = planner.link_name_2_idx[planner.move_group]
        self._held = [name not in self._joints for name in names]
        limits = np.array([planner.joint_limits[column] for column in self._columns])
        self._low, self._high = limits[:, 0], limits[:, 1]

    # -- what curobo's planner offers ----------------------------------------------------------------------------

    def plan_path(
        self, curr_joint_pos: Any, target_gripper_pose: Any, constraint_pose: Any = None, arms_tag: Any = None
    ) -> dict[str, Any]:
        """``status``, and on ``"Success"`` ``position`` and ``velocity`` (n, joints), a row every `STEP_S`.

        Args:
            curr_joint_pos: of all active joints.
            target_gripper_pose: of the hand, in the world.
            constraint_pose: given where the hand has to go straight.
            arms_tag: which arm, as RoboTwin says.
        """
        start, goal = self._start(curr_joint_pos), self._in_base(target_gripper_pose)
        corners = [None] if constraint_pose is not None else [self._corner(start, goal), None]
        paths = [self._path(start, [goal] if corner is None else [corner, goal]) for corner in corners]
        for path, short in sorted(paths, key=lambda found: found[1]):
            if short < _SHORT_M and (timed := self._timed(path)) is not None:
                return timed
        found = self._solve(goal, start)
        timed = None if found is None else self._timed(np.stack([start, found]))
        return {"status": "Fail"} if timed is None else timed

    def plan_batch(
        self,
        curr_joint_pos: Any,
        target_gripper_pose_list: Sequence[Any],
        constraint_pose: Any = None,
        arms_tag: Any = None,
    ) -> dict[str, Any]:
        """``status`` of each target; RoboTwin takes the first that can be reached, so the others are left out."""
        start, count = self._start(curr_joint_pos), len(target_gripper_pose_list)
        status = np.full(count, "Failure", object)
        for index, target in enumerate(target_gripper_pose_list):
            if self._solve(self._in_base(target), start) is not None:
                status[index] = "Success"
                break
        paths = [np.zeros((1, len(start)))] * count
        return {"status": status, "position": paths, "velocity": paths}

    def plan_grippers(self, now_val: float, target_val: float) -> dict[str, Any]:
        """200 steps from one opening to another, 0 ... 1."""
        steps = 200
        values = np.linspace(now_val, target_val, steps)
        return {"num_step": steps, "per_step": (target_val - now_val) / steps, "result": values}

    # -- kinematics ----------------------------------------------------------------------------------------------

    def _start(self, states: Any) -> np.ndarray:
        if self._planner is None:
            raise RuntimeError("this arm has no planner yet")
        return np.array([states[self._every.index(name)] for name in self._joints], float)

    def _in_base(self, pose: Any) -> Any:
        return self._base.inv() * pose

    def _whole(self, joints: np.ndarray) -> np.ndarray:
        whole = np.zeros(self._size)
        whole[self._columns] = joints
        return whole

    def _hand(self, joints: np.ndarray) -> Any:
        self._model.compute_forward_kinematics(self._whole(joints))
        return self._model.get_link_pose(self._link)

    def _near(self, pose: Any, start: np.ndarray) -> np.ndarray | None:
        """Joints that bring the hand to a pose (in the frame of the base), as CLIK finds them from ``start``."""
        import mplib

        wanted = mplib.Pose(pose.p, pose.q)
        found, solved, _ = self._model.compute_IK_CLIK(
            self._link, wanted, self._whole(start), self._held, 1e-4, 300, 0.3, 1e-8
        )
        if not solved:
            return None
        # a joint that turns through half a turn goes on, and does not come from the other side
        joints = start + (np.asarray(found)[self._columns] - start + np.pi) % (2 * np.pi) - np.pi
        return joints if (joints >= self._low).all() and (joints <= self._high).all() else None

    def _solve(self, pose: Any, start: np.ndarray) -> np.ndarray | None:
        """The solution that turns no joint far from ``start``; the same question has the same answer."""
        rng = np.random.default_rng(0)
        best: np.ndarray | None = None
        for attempt in range(_STARTS):
            near = start + rng.normal(0, 0.4, len(start))
            far = rng.uniform(np.maximum(self._low, -2.5), np.minimum(self._high, 2.5))
            found = self._near(pose, start if attempt == 0 else near if attempt % 2 else far)
            found = None if found is None else start + (found - start + np.pi) % (2 * np.pi) - np.pi
            if found is not None and (best is None or _largest(found - start) < _largest(best - start)):
                best = found
            if best is not None and (attempt == 0 or _largest(best - start) < _NEAR_RAD):
                break
        return best

    # -- paths ---------------------------------------------------------------------------------------------------

    def _corner(self, start: np.ndarray, goal: Any) -> Any:
        """A pose between: above the start where the hand rises, above the goal where it sinks; else None."""
        import sapien

        hand = self._hand(start)
        there, here = np.asarray(goal.p, float), np.asarray(hand.p, float)
        if np.linalg.norm(there[:2] - here[:2]) < _MOVE_M or abs(there[2] - here[2]) < _MOVE_M:
            return None
        rising = there[2] > here[2]
        place = np.array([*here[:2], there[2]]) if rising else np.array([*there[:2], here[2]])
        return sapien.Pose(place, hand.q if rising else goal.q)

    def _path(self, start: np.ndarray, poses: Sequence[Any]) -> tuple[np.ndarray, float]:
        """(n, joints) along straight lines of the hand, and what is left out at its end [m] as out of reach."""
        rows = [start]
        for number, pose in enumerate(poses):
            hand = self._hand(rows[-1])
            turn, angle = _turn(np.asarray(hand.q, float), np.asarray(pose.q, float))
            move = np.asarray(pose.p, float) - np.asarray(hand.p, float)
            length = float(np.linalg.norm(move))
            count = max(1, int(np.ceil(length / _MOVE_M)), int(np.ceil(angle / _TURN_RAD)))
            for part in np.linspace(0, 1, count + 1)[1:]:
                found = self._near(_Pose(np.asarray(hand.p) + part * move, turn(part)), rows[-1])
                if found is None or _largest(found - rows[-1]) > _JUMP_RAD:
                    last = number + 1 == len(poses)
                    return np.stack(rows), (1 - part) * length + _MOVE_M if last else np.inf
                rows.append(found)
        return np.stack(rows), 0.0

    def _timed(self, path: np.ndarray) -> dict[str, Any] | None:
        moved = [0, *(i for i in range(1, len(path)) if _largest(path[i] - path[i - 1]) > 1e-5)]
        path = path[moved]
        if len(path) < 2:
            path = np.vstack([path[0], path[0] + 1e-4])
        try:
            _, position, velocity, _, _ = self._planner.TOPP(path, STEP_S, verbose=False)
        except (RuntimeError, ValueError):
            return None
        return {"status": "Success", "position": position, "velocity": velocity}


class _Pose:
    """Place and quaternion."""

    def __init__(self, p: np.ndarray, q: np.ndarray) -> None:
        self.p, self.q = p, q


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def _turn(first: np.ndarray, last: np.ndarray) -> tuple[Any, float]:
    """The rotation at a part, 0 ... 1, of the way between two quaternions, and the angle between them."""
    last = -last if first @ last < 0 else last
    angle = float(np.arccos(np.clip(first @ last, -1, 1)))

    def at(part: float) -> np.ndarray:
        if angle < 1e-4:
            return last
        mixed = (np.sin((1 - part) * angle) * first + np.sin(part * angle) * last) / np.sin(angle)
        return mixed / np.linalg.norm(mixed)

    return at, angle
