"""`Kairos-Robosuite-v0`: a Panda arm on a table, simulated by robosuite's models in MuJoCo, rendered on the CPU."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np

from kairos_env.records import Array, Camera, Field, RobotSpec
from kairos_env.runs import did_you_mean
from kairos_env.sims.reward import RewardForm, step_reward
from kairos_env.sims.simulator import Simulator, StepResult, as_initial_state, require_state
from kairos_env.sims.tabletop.conditions import CONDITIONS, PLAIN_SQUARE, Appearance, Condition, check_condition
from kairos_env.sims.tabletop.tasks import CUBE_REST_HEIGHT, INTEREST, TASKS, TaskState, measure
from kairos_env.sims.vector import SimulatorVectorEnv

__all__ = ["CAMERAS", "TASKS", "RobosuiteEnv", "make_spec"]

CAMERAS = ("scene", "wrist")
"""Cameras that the simulator offers: a view of the table from the front, and one in the hand."""

_STEP = 0.05  # largest displacement of one decision along an axis [m]
_CUBE_CENTRE = np.array([-0.04, 0.0])
_GOAL_CENTRE = np.array([0.13, 0.0])
_GOAL_SPREAD = 0.03
_GOAL_MIN_DISTANCE = 0.08
_EEF_CENTRE = np.array([-0.02, 0.0, 0.13])
_EEF_SPREAD = np.array([0.09, 0.08, 0.05])
_STATE_STREAM = 20_251  # separates the draws of initial states from other uses of the same integers


def make_spec(cameras: Sequence[str] = ("scene",), image_size: int = 64) -> RobotSpec:
    """The description of this robot; needs no simulator.

    Args:
        cameras: in the order in which a model sees them, from `CAMERAS`.
        image_size: height and width of every image [pixels].
    """
    unknown = [name for name in cameras if name not in CAMERAS]
    if unknown or not cameras or len(set(cameras)) != len(cameras):
        raise ValueError(f"cameras={list(cameras)}: give one or more different names of {list(CAMERAS)}")
    if not 16 <= image_size <= 1024:
        raise ValueError(f"image_size={image_size}: give 16 ... 1024 pixels")
    proprio = (
        Field("eef_x", -0.25, 0.25, "m", "position", "table"),
        Field("eef_y", -0.20, 0.20, "m", "position", "table"),
        Field("eef_z", -0.01, 0.25, "m", "position", "table"),
        Field("gripper_width", 0.0, 0.085, "m", "gripper"),
    )
    action = tuple(Field(f"d{axis}", -_STEP, _STEP, "m", "delta_position", "world") for axis in "xyz")
    return RobotSpec(
        name="panda-tabletop",
        cameras=tuple(Camera(name, image_size, image_size) for name in cameras),
        proprio=proprio,
        action=(*action, Field("gripper", -1.0, 1.0, "1", "gripper")),
        control_rate_hz=5.0,
        instruction=TASKS["lift"],
    )


def check_task(task: str) -> str:
    """Returns ``task``, or raises ValueError with the legal names."""
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"unknown task {task!r}; {did_you_mean(task, TASKS)}")
    return task


def _condition(wanted: str | Condition) -> Condition:
    return wanted if isinstance(wanted, Condition) else CONDITIONS[check_condition(wanted)]


class RobosuiteEnv(Simulator):
    """A Panda, a red cube and a green disc on a table; one step is one decision of 0.2 s.

    All tasks share the scene and differ in instruction, reward and success only. ``info`` is that of every
    `Simulator`, with the objects ``cube`` and ``goal`` (the disc), and with ``task_rewards`` and ``task_success``.

    Args:
        task: a key of `TASKS`.
        cameras: which images are observed, from `CAMERAS`.
        image_size: height and width of the observed images [pixels].
        max_episode_steps: decisions until truncation.
        render_mode: None or ``"rgb_array"``.
        observe_images: False leaves the images out of the observation and draws nothing.
        render_size: height and width of the frames of `render` [pixels].
        reward: what a decision earns, see `kairos_env.sims.reward`; ``task_rewards`` are dense whatever it is.
        condition: how episodes look and begin: a name of `CONDITIONS`, or a `Condition` such as
            ``Condition("some variation", variation=0.5)``. The option ``condition`` of `reset` goes before it.
    """

    reset_options = (*Simulator.reset_options, "condition")
    conditions = {name: condition.meaning for name, condition in CONDITIONS.items()}  # noqa: RUF012 - read only
    task_mixture = {"reach": 0.15, "push": 0.35, "lift": 0.25, "place": 0.25}  # noqa: RUF012 - read only

    def __init__(
        self,
        task: str = "lift",
        cameras: Sequence[str] = ("scene",),
        image_size: int = 64,
        max_episode_steps: int = 24,
        render_mode: str | None = None,
        observe_images: bool = True,
        render_size: int = 256,
        reward: RewardForm = "shaped",
        condition: str | Condition = "plain",
    ) -> None:
        super().__init__(make_spec(cameras, image_size), render_mode, observe_images, reward)
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps={max_episode_steps}: give at least 1")
        self.task = check_task(task)
        self.max_episode_steps = max_episode_steps
        self.render_size = render_size
        self.condition = _condition(condition)

        from kairos_env.sims.tabletop.scene import build_scene

        scene = build_scene()
        import mujoco

        from kairos_env.sims.tabletop.arm import Arm

        self._mujoco = mujoco
        self._scene = scene
        self._data = mujoco.MjData(scene.model)
        self._arm = Arm(scene, self._data)
        self._renderer: Any = None
        self._appearance = Appearance()
        self._seed = -1
        self._initial_state = -1
        self._steps = 0

    # -- the contract ----------------------------------------------------------------------------------------

    @classmethod
    def arguments_for(cls, spec: RobotSpec) -> dict[str, Any]:
        """``cameras`` and ``image_size`` of this robot."""
        cameras = [camera.name for camera in spec.cameras if camera.name in CAMERAS]
        size = spec.cameras[0].height if spec.cameras else 64
        spec.require_same(make_spec(cameras or CAMERAS[:1], min(max(size, 16), 1024)), "wanted robot", "table top")
        return {"cameras": tuple(cameras), "image_size": size}

    def tasks(self) -> Mapping[str, str]:
        return dict(TASKS)

    def versions(self) -> dict[str, str]:
        names = ("mujoco", "robosuite", "numpy")
        return {name: version(name) for name in names} | {"python": platform.python_version()}

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> TaskState:
        """The true state."""
        from kairos_env.sims.tabletop.scene import ORIGIN

        self.require_open()
        data, scene = self._data, self._scene
        left, right = scene.finger_qpos
        return TaskState(
            eef=self._arm.position,
            cube=np.array(data.xpos[scene.cube_body]) - ORIGIN,
            goal=np.array(data.mocap_pos[scene.disc_mocap]) - ORIGIN,
            opening=float(data.qpos[left] - data.qpos[right]),
        )

    def get_state(self) -> dict[str, Array]:
        """The exact state: ``physics``, ``appearance``, and ``episode`` (step, seed, initial state, task)."""
        self.require_open()
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION.value
        physics = np.empty(self._mujoco.mj_stateSize(self._scene.model, kind))
        self._mujoco.mj_getState(self._scene.model, self._data, physics, kind)
        episode = np.array([self._steps, self._seed, self._initial_state, list(TASKS).index(self.task)], np.int64)
        return {"physics": physics, "episode": episode, "appearance": self._appearance.to_array()}

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Restores a state of `get_state`; the same actions then give bit-identical trajectories.

        Raises:
            TypeError, ValueError: no such state, or one of another simulator or scene.
        """
        self.require_open()
        require_state(state, ("physics", "episode", "appearance"))
        mujoco, model, data = self._mujoco, self._scene.model, self._data
        kind = mujoco.mjtState.mjSTATE_INTEGRATION.value
        physics = np.asarray(state["physics"], np.float64)
        if physics.shape != (mujoco.mj_stateSize(model, kind),):
            raise ValueError(
                f"state has physics of shape {physics.shape}, this scene needs ({mujoco.mj_stateSize(model, kind)},)"
            )
        self._steps, self._seed, self._initial_state, task = (int(x) for x in state["episode"])
        self.task = list(TASKS)[task]
        self._show(Appearance.from_array(state["appearance"]))
        # The forward pass derives positions but overwrites the solver's warm start, which is part of the state.
        mujoco.mj_setState(model, data, physics, kind)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, physics, kind)

    def _show(self, appearance: Appearance) -> None:
        """The scene looks so from the next forward pass on."""
        self._appearance = appearance
        self._scene.paint(appearance)

    def _place(self, initial_state: int, condition: Condition) -> None:
        """Puts cube, disc and arm at the start that the id stands for, in a scene that looks as it says."""
        from kairos_env.sims.tabletop.scene import ORIGIN

        self._show(condition.appearance(initial_state))
        rng = np.random.default_rng([_STATE_STREAM, initial_state])
        wider = condition.square / PLAIN_SQUARE
        cube = _CUBE_CENTRE + condition.draw_cube(rng)
        yaw = rng.uniform(-np.pi, np.pi)
        goal = _GOAL_CENTRE + rng.uniform(-_GOAL_SPREAD, _GOAL_SPREAD, 2) * wider
        while np.linalg.norm(goal - cube) < _GOAL_MIN_DISTANCE:
            cube = _CUBE_CENTRE + condition.draw_cube(rng)
        eef = _EEF_CENTRE + rng.uniform(-_EEF_SPREAD, _EEF_SPREAD) * wider
        opening = 0.08 if rng.random() < 0.75 else rng.uniform(0.0, 0.08)

        mujoco, scene, data = self._mujoco, self._scene, self._data
        mujoco.mj_resetData(scene.model, data)
        data.qpos[scene.cube_qpos : scene.cube_qpos + 3] = ORIGIN + [*cube, CUBE_REST_HEIGHT]
        data.qpos[scene.cube_qpos + 3 : scene.cube_qpos + 7] = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        data.mocap_pos[scene.disc_mocap] = ORIGIN + [*goal, 0.0]
        self._arm.place(eef, opening)
        mujoco.mj_forward(scene.model, data)
        self._arm.move(np.zeros(3), 0.0, hold_gripper=True)  # everything comes to rest

    # -- gymnasium -----------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: seeds the draw of the initial state.
            options: ``initial_state`` (int >= 0), ``task`` and ``condition``. The start is a function of the first and
                the last alone.
        """
        super().reset(seed=seed)
        self.require_open()
        options = self.check_options(options)
        task, chosen = check_task(options.get("task", self.task)), options.get("initial_state")
        drawn = int(self.np_random.integers(2**31)) if chosen is None else as_initial_state(chosen, None, task)
        if seed is not None:
            self._seed = int(seed)
        self.task, self._initial_state, self._steps = task, drawn, 0
        self._place(drawn, _condition(options.get("condition", self.condition)))
        return self.observe(), self._info(*measure(self.state))

    def step(self, action: Array) -> StepResult:
        """Simulates one decision; ``action`` is float32 (4,), see `robot_spec`."""
        self.require_open()
        if self._initial_state < 0:
            raise gym.error.ResetNeeded("call reset() before step()")
        wanted = self.check_action(action)
        self._arm.move(wanted[:3].astype(np.float64), float(wanted[3]))
        self._steps += 1
        rewards, success = measure(self.state)
        terminated = success[self.task]
        truncated = not terminated and self._steps >= self.max_episode_steps
        earned = step_reward(rewards[self.task], terminated, self.reward_form)
        return self.observe(), earned, terminated, truncated, self._info(rewards, success)

    def observe(self) -> dict[str, Array]:
        """The observation of the present state."""
        state = self.state
        proprio = self.robot_spec.clip_proprio(np.append(state.eef, state.opening))
        images = {c.key: self.draw(c.name, c.height) for c in self.robot_spec.cameras} if self.observe_images else {}
        return images | {"proprio": proprio}

    def _info(self, rewards: dict[str, float], success: dict[str, bool]) -> dict[str, Any]:
        state = self.state
        return {
            "success": success[self.task],
            "task": self.task,
            "instruction": TASKS[self.task],
            "seed": self._seed,
            "initial_state": self._initial_state,
            "steps": self._steps,
            "privileged": {
                "eef_position": state.eef.astype(np.float32),
                "gripper_opening": state.opening,
                "objects": {
                    "cube": {
                        "position": state.cube.astype(np.float32),
                        "rotation": np.array(self._data.xmat[self._scene.cube_body], np.float32).reshape(3, 3),
                    },
                    "goal": {"position": state.goal.astype(np.float32), "rotation": np.eye(3, dtype=np.float32)},
                },
                "interest": list(INTEREST[self.task]),
            },
            "task_rewards": rewards,
            "task_success": success,
        }

    def expert_action(self, task: str | None = None) -> Array:
        """(4,) float32: what the scripted expert of ``task`` (default: the environment's) would do now."""
        from kairos_env.sims.tabletop.experts import expert_action

        return expert_action(check_task(task or self.task), self.state)

    # -- pictures ------------------------------------------------------------------------------------------

    def draw(self, camera: str = "scene", size: int = 64, show_unseen: bool = False) -> Array:
        """A picture of the present state, whatever is observed.

        Args:
            camera: one of `CAMERAS`.
            size: height and width [pixels], at most the larger of ``image_size`` and ``render_size``.
            show_unseen: also draws the meshes that are left out because no camera sees them; only slower.

        Returns:
            uint8 (size, size, 3) RGB.
        """
        self.require_open()
        if camera not in CAMERAS:
            raise ValueError(f"unknown camera {camera!r}; there are {list(CAMERAS)}")
        if self._renderer is None:
            from kairos_env.sims.rendering import OffscreenRenderer

            largest = max(self.render_size, *(c.height for c in self.robot_spec.cameras))
            self._renderer = OffscreenRenderer(self._scene.model, largest)
        from kairos_env.sims.tabletop.scene import camera_view

        view = camera_view(self._scene, camera, self._appearance)
        return self._renderer.render(self._data, view, size, size, show_unseen=show_unseen)

    def render(self) -> Array | None:  # type: ignore[override]
        """The scene as uint8 (render_size, render_size, 3); None without ``render_mode``."""
        if self.render_mode is None:
            return None
        return self.draw("scene", self.render_size)

    def close(self) -> None:
        """Frees the GL context and the simulation; safe to call twice."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None
        self._data = self._arm = self._scene = None  # type: ignore[assignment]
        self._closed = True


make_vector = functools.partial(SimulatorVectorEnv, RobosuiteEnv)
"""What ``gym.make_vec`` calls."""
