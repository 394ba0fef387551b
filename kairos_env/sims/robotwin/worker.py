"""The process that holds a RoboTwin simulator; runs in RoboTwin's own interpreter, see `process`.

Scenes, success, rewards and the execution of actions are RoboTwin's own. An action is executed as its ``take_action``
does: along a time-optimal path from rest to rest, so that it lasts as long as it takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kairos_env.sims.process import serve
from kairos_env.sims.robotwin.runtime import Runtime

_EXPERT_STEPS = 60  # physics steps between two targets of an expert's plan
_CLEAR_EVERY = 5  # episodes; RoboTwin's own number
_SCENERY = ("wall", "table")
_TRIES = 20  # of seeds, until one is stable


class RoboTwinSimulator:
    """One task of RoboTwin at a time; methods are what the parent may ask for."""

    def __init__(self) -> None:
        self._runtime: Any = None
        self._task: Any = None
        self._start: dict[str, Any] = {}
        self._episodes = 0
        self._physics = 0  # steps of the last action
        self._drawn: dict[str, np.ndarray] = {}
        self._since_drawn = 0

    def open(self, **options: Any) -> dict[str, Any]:
        """Imports RoboTwin's code; ``options`` are those of `runtime.Runtime`. Returns versions."""
        if self._runtime is None:
            self._runtime = Runtime(**options)
        return self._runtime.versions()

    def reset(
        self,
        options: dict[str, Any],
        task: str,
        config: str,
        rendering: str,
        initial_state: int,
        exact: bool,
        step_limit: int,
        wording: str,
        seed: int,
        cameras: Sequence[str],
    ) -> dict[str, Any]:
        """Starts an episode.

        Args:
            options: of `open`.
            task: its name.
            config: ``"clean"`` or ``"randomized"``.
            rendering: ``"fast"``, ``"shadows"`` or ``"official"``.
            initial_state: RoboTwin's seed.
            exact: False goes on to the next seed where the objects do not come to rest.
            step_limit: actions after which nothing moves.
            wording: of the instruction: ``"seen"``, ``"unseen"`` or ``"task"``.
            seed: of the wording.
            cameras: to draw; none draws nothing.
        """
        self.open(**options)
        self._runtime.rendering = rendering
        self._close_task(self._task)
        self._task = None
        self._start = {"task": task, "config": config, "step_limit": step_limit}
        for tried in range(_TRIES):
            try:
                self._start["initial_state"] = initial_state + tried
                self._task = self._set_up(self._start)
                break
            except self._runtime.Unstable as error:
                if exact or tried + 1 == _TRIES:
                    raise ValueError(f"initial state {initial_state} of {task} is not stable: {error}") from error
        self._count_physics()
        words = "" if wording == "task" else self._runtime.instruction(task, self._placeholders(), wording, seed)
        self._drawn, self._since_drawn, self._physics = {}, 0, 0
        extra = {"instruction": words, "initial_state": self._start["initial_state"], "memory_mb": _memory_mb()}
        return self._observation(cameras) | extra

    def step(self, action: Sequence[float], kind: str, cameras: Sequence[str], draw_every: int = 1) -> dict[str, Any]:
        """Executes an action: ``kind`` is ``"qpos"`` or ``"ee"``; pictures are drawn after every n-th one."""
        task = self._task
        self._physics = 0
        with self._renderer_left_alone(task):
            task.take_action(np.asarray(action, float), kind)
        self._since_drawn += 1
        if cameras and self._drawn and not task.eval_success and self._since_drawn < draw_every:
            return self._observation(()) | self._drawn
        return self._observation(cameras)

    def replay(self, actions: Sequence[Sequence[float]], kind: str, cameras: Sequence[str]) -> dict[str, Any]:
        """Executes actions and draws after the last only."""
        for action in actions:
            self.step(action, kind, ())
        return self._observation(cameras)

    def draw(self, camera: str) -> dict[str, Any]:
        """A picture of the present state."""
        return {"image": self._pictures([camera])[f"image_{camera}"]}

    def expert(self) -> dict[str, Any]:
        """What RoboTwin's own expert does from the start of this episode, found in another scene of the same seed.

        Returns:
            ``qpos`` (n, 14) and ``ee`` (n, 16), targets of successive actions; ``outcome``: ``"solved"``,
            ``"no path"`` or ``"failed"``.
        """
        joints: list[np.ndarray] = []
        hands: list[np.ndarray] = []

        def note(robot: Any) -> None:
            joints.append(_drive_targets(robot))
            hands.append(_hands(robot))

        outcome = self._demonstrate(self._start, note)
        kept = _without_pauses(np.stack(joints)) if joints else []
        return {
            "outcome": outcome,
            "qpos": np.array([joints[i] for i in kept]).reshape(-1, 14),
            "ee": np.array([hands[i] for i in kept]).reshape(-1, 16),
        }

    def ask_expert(self, options: dict[str, Any], task: str, config: str, initial_state: int) -> dict[str, Any]:
        """``outcome`` of RoboTwin's own expert at a start: that of `expert`, or ``"unstable"``."""
        self.open(**options)
        start = {"task": task, "config": config, "initial_state": initial_state, "step_limit": 0}
        try:
            return {"outcome": self._demonstrate(start, lambda robot: None)}
        except self._runtime.Unstable:
            return {"outcome": "unstable"}

    def _demonstrate(self, start: dict[str, Any], note: Callable[[Any], None]) -> str:
        """Has RoboTwin's own expert play from a start, in a scene of its own; ``note`` sees the robot now and then."""
        luck = np.random.get_state()  # noqa: NPY002 (RoboTwin draws from numpy's global state)
        task = self._set_up(start)
        try:
            task.save_freq, task._take_picture = _EXPERT_STEPS, lambda *args: note(task.robot)
            with self._renderer_left_alone(task):
                task.play_once()
            return "no path" if not task.plan_success else "solved" if task.check_success() else "failed"
        finally:
            self._close_task(task)
            np.random.set_state(luck)  # noqa: NPY002

    def stay(self) -> dict[str, Any]:
        """Actions that leave both arms where they are: ``qpos`` (14,) and ``ee`` (16,)."""
        return {"qpos": _drive_targets(self._task.robot), "ee": _hands(self._task.robot)}

    def close(self) -> None:
        """Frees the scene."""
        self._close_task(self._task)
        self._task = None

    # -- RoboTwin ------------------------------------------------------------------------------------------------

    def _set_up(self, start: dict[str, Any]) -> Any:
        """A fresh scene."""
        task = self._runtime.task(start["task"])
        try:
            arguments = self._runtime.arguments(start["task"], start["config"])
            task.setup_demo(now_ep_num=0, seed=start["initial_state"], is_test=True, **arguments)
        except BaseException:
            self._close_task(task)
            raise
        task.step_lim = start["step_limit"]
        return task

    def _close_task(self, task: Any) -> None:
        if task is not None:
            self._episodes += 1
            task.close_env(clear_cache=self._episodes % _CLEAR_EVERY == 0)

    def _placeholders(self) -> dict[str, str]:
        """What the placeholders of the instructions stand for.

        RoboTwin says so in what its expert returns, and some tasks' ``get_info`` play the expert, too. Here it moves
        nothing: a task whose plan has failed plans and moves no more.
        """
        task = self._task
        task.plan_success = False
        task.take_dense_action = lambda *args, **options: True
        try:
            found = task.get_info() if hasattr(task, "get_info") else task.play_once()["info"]
        finally:
            del task.take_dense_action
            task.plan_success = True
        return {key: str(value) for key, value in found.items()}

    @contextlib.contextmanager
    def _renderer_left_alone(self, task: Any) -> Iterator[None]:
        """RoboTwin tells the renderer of every physics step; that is only needed where lights change with it."""
        if not task.crazy_random_light:
            task._update_render = lambda: None
        try:
            yield
        finally:
            task.__dict__.pop("_update_render", None)

    def _count_physics(self) -> None:
        step = self._task.scene.step

        def counted() -> None:
            self._physics += 1
            step()

        self._task.scene.step = counted

    # -- what is told --------------------------------------------------------------------------------------------

    def _observation(self, cameras: Sequence[str]) -> dict[str, Any]:
        task, robot = self._task, self._task.robot
        measured = [*robot.get_left_arm_real_jointState(), *robot.get_right_arm_real_jointState()]
        things = self._things()
        poses = [np.asarray(thing.get_pose().to_transformation_matrix()) for thing in things.values()]
        found: dict[str, Any] = {
            "success": bool(task.eval_success or task.check_success()),
            "dense": self._dense(),
            "physics_steps": self._physics,
            "objects": list(things),
            "movable": [name for name, thing in things.items() if not _is_static(thing)],
            "object_positions": np.array([pose[:3, 3] for pose in poses]).reshape(-1, 3),
            "object_rotations": np.array([pose[:3, :3] for pose in poses]).reshape(-1, 3, 3),
            "proprio": _drive_targets(robot).astype(np.float32),
            "measured": np.array(measured, float),
            "hands": np.array([robot.get_left_tcp_pose(), robot.get_right_tcp_pose()], float),
            "openings": np.array(
                [_opening(robot.left_entity, robot.left_gripper), _opening(robot.right_entity, robot.right_gripper)]
            ),
        }
        if cameras:
            self._drawn, self._since_drawn = self._pictures(cameras), 0
        return found | (self._drawn if cameras else {})

    def _dense(self) -> float:
        """RoboTwin's dense reward, 0 ... 1; NaN where it has none."""
        reward = getattr(self._task, "reward", None)
        if reward is None:
            return float("nan")
        reward.update()
        return float(np.clip(reward.compute_reward(), 0, 1))

    def _things(self) -> dict[str, Any]:
        """The objects of the task by the names that its code gives them, in the order in which it made them."""
        found: dict[str, Any] = {}
        for name, value in vars(self._task).items():
            several = value if isinstance(value, list | tuple) else [value]
            for index, thing in enumerate(several if name not in _SCENERY else ()):
                known = any(thing is other for other in found.values())
                if isinstance(thing, self._runtime.Actor) and not known:
                    found[name if several is not value else f"{name}_{index}"] = thing
        return found

    def _pictures(self, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        task = self._task
        task._update_render()
        fixed = dict(zip(task.cameras.static_camera_name, task.cameras.static_camera_list, strict=True))
        known = {"left_camera": task.cameras.left_camera, "right_camera": task.cameras.right_camera} | fixed
        found = {}
        for name in cameras:
            camera = known[f"{name}_camera"]
            camera.take_picture()
            colours = (camera.get_picture("Color") * 255).clip(0, 255).astype(np.uint8)
            found[f"image_{name}"] = np.ascontiguousarray(colours[:, :, :3])
        return found


def _drive_targets(robot: Any) -> np.ndarray:
    """(14,): joints and gripper of the left arm, then of the right."""
    return np.array([*robot.get_left_arm_jointState(), *robot.get_right_arm_jointState()], float)


def _hands(robot: Any) -> np.ndarray:
    """(16,): an action ``"ee"`` that leaves both arms where they are."""
    left, right = robot.get_left_ee_pose(), robot.get_right_ee_pose()
    return np.array([*left, robot.get_left_gripper_val(), *right, robot.get_right_gripper_val()], float)


def _opening(entity: Any, gripper: Sequence[Any]) -> float:
    """Between the fingers [m]."""
    joints, angles = entity.get_active_joints(), entity.get_qpos()
    return float(sum(angles[joints.index(part[0])] for part in gripper))


def _is_static(thing: Any) -> bool:
    import sapien

    return thing.actor.find_component_by_type(sapien.physx.PhysxRigidDynamicComponent) is None


def _without_pauses(targets: np.ndarray) -> list[int]:
    """Rows of (n, 14) without those that stay where the two before them were: a pause is one action long."""
    kept: list[int] = []
    for row in range(1, len(targets)):
        if len(kept) < 2 or any(not np.array_equal(targets[row], targets[before]) for before in kept[-2:]):
            kept.append(row)
    return kept


def _memory_mb() -> int:
    import resource  # not on Windows, where this module is imported for its names

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    serve(RoboTwinSimulator())
