"""`Kairos-Robot-v0`: a robot that LeRobot drives, in a worker process with LeRobot's interpreter."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from kairos_env.extras import require
from kairos_env.records import Array, RobotSpec, SpecMismatch
from kairos_env.sims.process import Reply, SimulatorError, SimulatorProcess
from kairos_env.sims.process_simulator import ProcessSimulator
from kairos_env.sims.reward import RewardForm, step_reward
from kairos_env.sims.robot.bounds import UnsafeCommand
from kairos_env.sims.robot.fake.experts import expert_goal
from kairos_env.sims.robot.fake.robot import FakeRobot
from kairos_env.sims.robot.fake.twin import BROUGHT, REACHED, TASKS
from kairos_env.sims.robot.install import interpreter
from kairos_env.sims.robot.safety import NotArmed
from kairos_env.sims.robot.spec import require_drivable, robot_spec
from kairos_env.sims.simulator import StepResult, as_initial_state
from kairos_env.sims.vector import SimulatorVectorEnv

_FAKE = {"front": (48, 64), "wrist": (48, 64)}
_READS_OF_BEGIN = 1  # of positions, in `RobotWorker.begin`
_RAISED = {"UnsafeCommand": UnsafeCommand, "NotArmed": NotArmed}


class RobotEnv(ProcessSimulator):
    """A real robot, or a fake one, one decision a step; see `Simulator` for ``info``.

    Everything that is sent passes the safety layer (`safety.Supervisor`) in the worker, which has LeRobot's own driver
    behind it. Before `arm` nothing is sent. A fake has the tasks of its table-top scene; a real robot the one it is
    given, and knows neither reward nor success.

    ``info`` has beside the usual: ``commanded`` and ``sent`` (A,), what was asked for and what LeRobot sent; ``clips``,
    joint -> rule, asked, sent; ``ages`` [s] of joints and pictures; ``late_beats``, ``counts`` of refusals and clips,
    ``state`` and ``reason`` of the safety layer.

    Args:
        robot: LeRobot's configuration with ``type``, as a mapping or JSON file; or ``"fake:so101"``, ``"fake:koch"``.
        rate_hz: decisions a second.
        beats: goals that are sent a decision, so that a slow policy moves the arm smoothly; None: about 30 a second.
        task, instruction: of a real robot.
        spec: of a policy that is to drive it; the environment presents itself as that robot, if it can be driven so.
        limits: changes of `limits.SafetyLimits`, as a mapping or JSON file.
        mjcf: model of the arm, for a workspace among the limits.
        rest: pose (A,) that `reset` goes to; None: where the robot was armed.
        on_stop, on_exit: ``"hold"`` or ``"relax"``.
        log: file of JSON lines of what was refused, clipped, held and stopped.
        answer_s: how long servos may take to answer; None: 0.8 of a beat, and of a fake as long as it takes.
        cameras: of a fake: name -> (height, width); None: those of ``spec``, or front and wrist.
        max_episode_steps: decisions until truncation.
        render_mode, observe_images, reward: as everywhere.
        home: of `kairos sims install lerobot-robots`; None is the usual one.
        time_limit_s: for an answer of the worker.

    Attributes:
        fake: the fake, or None.

    Raises:
        FileNotFoundError: no installation, port or calibration.
        SpecMismatch: ``spec`` is of another robot.
    """

    reset_options = ("task", "initial_state")
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        robot: Mapping[str, Any] | str | Path = "fake:so101",
        rate_hz: float = 10.0,
        beats: int | None = None,
        task: str = "reach",
        instruction: str = "",
        spec: RobotSpec | None = None,
        limits: Mapping[str, Any] | str | Path | None = None,
        mjcf: str | Path = "",
        rest: Any = None,
        on_stop: str = "hold",
        on_exit: str = "hold",
        log: str | Path = "",
        answer_s: float | None = None,
        cameras: Mapping[str, tuple[int, int]] | None = None,
        max_episode_steps: int = 200,
        render_mode: str | None = None,
        observe_images: bool = True,
        reward: RewardForm = "shaped",
        home: str | Path | None = None,
        time_limit_s: float = 60.0,
    ) -> None:
        self.max_episode_steps, self.time_limit_s, self.task = max_episode_steps, time_limit_s, task
        self._python = interpreter(None if home is None else Path(home))
        self._beats = max(1, round(30 / rate_hz)) if beats is None else beats
        if self._beats < 1 or not rate_hz > 0:
            raise ValueError(f"rate_hz={rate_hz}, beats={beats}: both must be above 0")
        self.fake: FakeRobot | None = None
        if isinstance(robot, str) and robot.startswith("fake:"):
            known = () if spec is None else (c for c in spec.cameras if c.name in _FAKE)
            wanted = {c.name: (c.height, c.width) for c in known} or _FAKE
            seen = (wanted if cameras is None else cameras) if observe_images else {}
            self.fake = FakeRobot(robot.removeprefix("fake:"), rate_hz * self._beats, seen, picture_every=self._beats)
            self._config, self._tasks = self.fake.config(), dict(TASKS)
            if task not in TASKS:
                self.fake.close()
                raise ValueError(f"a fake robot has the tasks {', '.join(TASKS)}, not {task!r}")
        else:
            self._config = dict(robot) if isinstance(robot, Mapping) else read_object(Path(robot), "robot")
            self._tasks = {task: instruction or task}
        self._guard: dict[str, Any] = {
            "rate_hz": rate_hz * self._beats,
            "changes": dict(limits) if isinstance(limits, Mapping) else read_object(limits, "limits"),
            "mjcf": str(mjcf),
            "on_stop": on_stop,
            "on_exit": on_exit,
            "log": str(log),
        }
        self._answer_s, self._rate_hz, self._rest = (
            answer_s,
            rate_hz,
            None if rest is None else [float(value) for value in rest],
        )
        self._seed = self._initial_state = -1
        self._steps, self._armed, self._commanded = 0, False, np.empty(0)
        self._last: dict[str, Any] = {}
        self._process = None
        try:
            self._own = self._open()
            if spec is not None:
                require_drivable(spec, self._own)
                if spec.control_rate_hz != rate_hz:
                    raise SpecMismatch(
                        f"the policy decides at {spec.control_rate_hz:g} Hz; give rate_hz={spec.control_rate_hz:g}"
                    )
            super().__init__(self._own if spec is None else spec, render_mode, observe_images, reward)
        except BaseException:
            self.close()
            raise

    # -- the process ---------------------------------------------------------------------------------------------

    def _launch(self) -> SimulatorProcess:
        return SimulatorProcess(self._python, "kairos_env.sims.robot.worker", {}, self.time_limit_s)

    def _open(self) -> RobotSpec:
        """Opens the robot in a fresh worker; nothing is sent to it."""
        self._closed, self._process = False, self._launch()
        self._armed = False
        lockstep = self.fake is not None
        usual = 10.0 if lockstep else 0.8 / self._guard["rate_hz"]
        found = self._ask("open", config=self._config, answer_s=self._answer_s or usual, lockstep=lockstep)
        known = robot_spec(
            self._config["type"], found.values["fields"], found.values["cameras"], self._rate_hz, self._tasks[self.task]
        )
        self.limits = self._ask("guard", spec=known.to_dict(), **self._guard).values
        if self.fake is not None:
            self._ask("arm", person="nobody: a fake robot")  # once, because it takes 70 packets
        return known

    def _ask(self, method: str, **arguments: Any) -> Reply:
        assert self._process is not None
        try:
            return self._process.call(method, **arguments)
        except SimulatorError as error:
            raise _raised(error) from error

    # -- a person ------------------------------------------------------------------------------------------------

    def arm(self, person: str) -> dict[str, Any]:
        """Switches torque on, where the robot is. To be called on the word of a person who stands by it.

        Raises:
            NotArmed: see `safety.Supervisor.arm`.
            ConnectionError: the servos do not answer.
        """
        self.require_open()
        if self._process is None:
            self._open()
        self._last = _state(self._ask("arm", person=person))
        self._armed = True
        return dict(self._last)

    def stop(self) -> None:
        """Stops the robot at once, by a channel that no motion blocks; a person has to arm it again."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGUSR1)

    def relax(self) -> list[str]:
        """Torque off; returns the motors that did not confirm it."""
        self._armed = False
        return list(self._ask("relax").values["lost"])

    def look(self) -> dict[str, Any]:
        """Measures and sends nothing: positions, pictures, ages, state."""
        self._last = _state(self._ask("look"))
        return dict(self._last)

    def open_leader(self, config: Mapping[str, Any]) -> None:
        """Opens a teleoperator of LeRobot, by its configuration; `lead` then says where it is."""
        self._ask("open_leader", config=dict(config))

    def lead(self) -> Array:
        """Where the leader wants the joints (A,)."""
        return self._ask("lead").arrays["action"]

    # -- the contract --------------------------------------------------------------------------------------------

    @classmethod
    def arguments_for(cls, spec: RobotSpec) -> dict[str, Any]:
        """A policy's robot, if it may be one of joints: whether it is this one is seen when the robot is open."""
        if not spec.action or [f.name for f in spec.action] != [f.name for f in spec.proprio]:
            raise SpecMismatch(
                f"action: {[f.name for f in spec.action]} != proprio {[f.name for f in spec.proprio]}: a robot of "
                "LeRobot measures the joints that it moves"
            )
        return {"spec": spec, "rate_hz": spec.control_rate_hz}

    def tasks(self) -> Mapping[str, str]:
        return dict(self._tasks)

    def versions(self) -> dict[str, str]:
        self.require_open()
        if self._process is None:
            self._open()
        found = dict(self._ask("versions").values)
        return found | ({"mujoco": str(require("mujoco", "sim").__version__)} if self.fake is not None else {})

    def expert_action(self, task: str | None = None) -> Array:
        """What the scripted expert of a fake's task would do now: float32 (A,)."""
        if self.fake is None:
            raise ValueError("a real robot has no scripted expert: let a leader arm show the task")
        goal = self.fake.to_units(expert_goal(self.fake.arm, task or self.task, *self.fake.twin.places()))
        return np.asarray(np.clip(goal, self._own.action_low, self._own.action_high), np.float32)

    def send_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """A fake starts a scene anew; a real robot, which must be armed, goes to its rest pose."""
        self.require_open()
        chosen = self.check_options(options)
        task = chosen.get("task", self.task)
        if task not in self._tasks:
            raise ValueError(f"unknown task {task!r}; this robot has {', '.join(self._tasks)}")
        gym.Env.reset(self, seed=seed)
        state = as_initial_state(chosen.get("initial_state", int(self.np_random.integers(2**31))), None, task)
        if self._process is None:
            self._open()
        elif self._waits_for:
            self._receive()
        self._seed = self._seed if seed is None else seed
        self.task, self._initial_state, self._steps = task, state, 0
        if self.fake is not None:
            self.fake.place(state, picture_in=_READS_OF_BEGIN)
            self._send_reset_as("begin")
        elif not self._armed:
            raise NotArmed("nobody has armed the robot: env.arm(person), on the word of a person who stands by it")
        else:
            self._send_reset_as("go_to_rest", rest=self._rest, timeout_s=10.0, tolerance=3.0)

    def _send_reset_as(self, method: str, **arguments: Any) -> None:
        self._begun, self._was_reset = True, True
        self._send(method, **arguments)

    def send_step(self, action: Array) -> None:
        self._require_begun()
        self._was_reset = False
        self._commanded = (
            np.asarray(action, float).reshape(-1) if _numeric(action) else np.full(len(self._own.action), np.nan)
        )
        wanted = action.tolist() if isinstance(action, np.ndarray) else action
        if self.robot_spec is not self._own and _numeric(action):
            wanted = np.clip(action, self.robot_spec.action_low, self.robot_spec.action_high).tolist()
        self._send("step", action=wanted, beats=self._beats)

    def receive(self) -> StepResult:
        start = self._was_reset
        try:
            reply = self._receive()
        except SimulatorError as error:
            raise _raised(error) from error
        return self._result(reply, start)

    def _receive(self) -> Reply:
        """As everywhere, but an error that the worker survived does not end it: it holds the robot."""
        if self._process is None or not self._waits_for:
            raise RuntimeError("nothing was sent")
        self._waits_for = ""
        try:
            return self._process.receive()
        except SimulatorError:
            raise
        except BaseException:
            self._drop()
            raise

    def _result(self, reply: Reply, start: bool) -> StepResult:
        self._last = _state(reply)
        self._steps += not start
        commanded = self._last["positions"] if start else self._commanded
        observation = self._observation()
        success, dense = self._outcome()
        truncated = self._steps >= self.max_episode_steps
        reward = 0.0 if start else step_reward(dense, success, self.reward_form)
        info = {
            **{"success": success, "task": self.task, "instruction": self._tasks[self.task], "seed": self._seed},
            **{"initial_state": self._initial_state, "steps": self._steps, "privileged": self._privileged()},
            **{"commanded": commanded.copy(), "sent": self._last["sent"], "clips": self._last["clips"]},
            **{key: self._last[key] for key in ("ages", "late_beats", "counts", "state", "reason")},
        }
        return observation, reward, success, truncated, info

    def _observation(self) -> dict[str, Array]:
        spec = self.robot_spec
        found = {"proprio": spec.clip_proprio(self._last["positions"])}
        if self.observe_images:
            for camera in spec.cameras:
                image = self._last["images"].get(camera.name)
                if image is None:
                    image = np.zeros((camera.height, camera.width, 3), np.uint8)
                found[camera.key] = _resized(image, camera.height, camera.width)
        return found

    def _outcome(self) -> tuple[bool, float]:
        if self.fake is None:
            return False, 0.0
        left = self.fake.twin.distance(self.task)
        return left < {"reach": REACHED, "push": BROUGHT}[self.task], float(np.exp(-5 * left))

    def _privileged(self) -> dict[str, Any]:
        if self.fake is None:
            return {"eef_position": np.full(3, np.nan), "gripper_opening": np.nan, "objects": {}, "interest": []}
        true = self.fake.twin.privileged()
        things = {k: {n: np.array(v) for n, v in thing.items()} for k, thing in true["objects"].items()}
        return true | {"eef_position": np.array(true["eef_position"]), "objects": things}

    def render(self) -> Any:
        """The newest picture of the first camera."""
        if self.render_mode is None:
            return None
        images = list(self._last.get("images", {}).values())
        if not images:
            raise ValueError("this robot has no camera to render")
        return images[0]

    def close(self) -> None:
        """Ends the worker, which leaves the robot as ``on_exit`` says, and the fake; safe to call twice."""
        self._drop()
        if self.fake is not None:
            self.fake.close()
        self._closed = True


def _state(reply: Reply) -> dict[str, Any]:
    images = {k.removeprefix("image_"): v for k, v in reply.arrays.items() if k.startswith("image_")}
    numbers = {k: v for k, v in reply.arrays.items() if not k.startswith("image_")}
    return reply.values | numbers | {"images": images}


def _raised(error: SimulatorError) -> Exception:
    """The worker's exception as the parent raises it."""
    kinds: dict[str, type[Exception]] = {"ValueError": ValueError, "FileNotFoundError": FileNotFoundError}
    kinds |= {"BusError": ConnectionError, "ConnectionError": ConnectionError, "TimeoutError": TimeoutError} | _RAISED
    return kinds[error.kind](str(error).removeprefix(f"{error.kind}: ")) if error.kind in kinds else error


def _resized(image: Array, height: int, width: int) -> Array:
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _numeric(action: Any) -> bool:
    return isinstance(action, np.ndarray) and action.dtype.kind in "fiu"


def read_object(source: Any, what: str) -> dict[str, Any]:
    """What a JSON file holds, or nothing; ``what`` it is, for the message if it is something else."""
    if source is None:
        return {}
    try:
        found = json.loads(Path(source).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{source} holds a {type(found).__name__}; {what} is an object")
    return found


make_vector = functools.partial(SimulatorVectorEnv, RobotEnv)
"""What ``gym.make_vec`` calls."""
