"""`Kairos-RoboTwin-v0`: RoboTwin 2.0's dual-arm tasks in SAPIEN, in a process of its own.

RoboTwin needs packages that clash with ours, so it has its own interpreter (``kairos sims install robotwin``). Its task
code is not changed; `runtime` says what is replaced in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np

from kairos_env.embodiments import ROBOTWIN_CAMERAS, robotwin_aloha
from kairos_env.records import Array, RobotSpec
from kairos_env.runs import did_you_mean
from kairos_env.sims.process import Reply, SimulatorError, SimulatorProcess
from kairos_env.sims.process_simulator import ProcessSimulator
from kairos_env.sims.reward import RewardForm, step_reward
from kairos_env.sims.robotwin.home import Config, RoboTwinHome
from kairos_env.sims.robotwin.vulkan import REMEDY
from kairos_env.sims.simulator import StepResult, as_initial_state, require_state
from kairos_env.sims.vector import SimulatorVectorEnv

ActionKind = Literal["qpos", "ee"]
Wording = Literal["seen", "unseen", "task"]
ExpertOutcome = Literal["solved", "unstable", "no path", "failed"]
"""Of a start: its objects do not come to rest, the planner finds no path, or the expert does not succeed."""
RoboTwinRendering = Literal["fast", "shadows", "official"]

_DRAWN_STATES = 100_000  # RoboTwin's own evaluation begins there
_MOST_MEMORY_MB = 6_000  # of the simulator's process


class RoboTwinEnv(ProcessSimulator):
    """Two arms (aloha-agilex) in one task of RoboTwin 2.0; see `embodiments.ROBOTWIN_ALOHA`.

    An initial state is RoboTwin's seed. It begins its own evaluation with 100000, and recordings for training with 0.
    An action is absolute, and executed along a time-optimal path from rest to rest: it lasts as long as it takes, which
    ``info`` says. Success is tested after every physics step, and once there, nothing moves any more.

    ``info`` is that of every `Simulator`, with ``config``, ``rendering``, ``physics_steps`` and ``seconds`` of the last
    action and, within ``privileged``, ``hands`` (2, 7), place and quaternion (w first) between the fingers of both
    hands, and ``joints`` (14,), the measured counterpart of the proprioception, which holds drive targets.
    ``eef_position`` and ``gripper_opening`` are those of the hand that is nearest to the first object of the task.

    What follows a state depends on more than SAPIEN tells of it. So `get_state` gives the actions since the reset, and
    `set_state` executes them again: exact, and as slow as they were.

    Args:
        task: such as ``"stack_blocks_two"``.
        config: ``"clean"``, or ``"randomized"`` in background, clutter, light and height of the table.
        action: ``"qpos"`` (14): joints and gripper of the left arm and the right one; ``"ee"`` (16): place, quaternion
            (w first) and gripper of both hands, brought there by `planner`.
        cameras: which and in which order: head, left, right (wrists), front.
        wording: of the instruction: one of RoboTwin's ``"seen"`` or ``"unseen"`` ones, drawn by the seed, or
            ``"task"``, what RoboTwin says of the task itself.
        rendering: ``"fast"`` rasters without shadows, ``"shadows"`` with them, ``"official"`` traces rays as RoboTwin
            does, which wants a graphics card.
        initial_state: None draws one at each reset, below 100000.
        max_episode_steps: decisions until truncation; None is RoboTwin's limit for the task.
        draw_every: decisions from picture to picture, for a policy that executes as many actions of a chunk without
            looking; the pictures between repeat the last ones.
        render_mode: None or ``"rgb_array"``.
        observe_images: False leaves the pictures out and draws nothing.
        reward: what a decision earns, see `kairos_env.sims.reward`. The dense reward is RoboTwin's, which 18 tasks
            have; else it is 1 on success and 0 before.
        home: folder of the installation, or the installation; None is the default one.
        time_limit_s: for one answer of the simulator.
        episodes_per_process: after which the simulator's process is replaced, because its memory grows.

    Raises:
        ValueError: an unknown task, option or name, with the nearest legal ones.
        FileNotFoundError: no installation, or assets that this task needs are missing; it says how to get them.
    """

    reset_options = ("task", "initial_state", "config")

    def __init__(
        self,
        task: str = "stack_blocks_two",
        config: Config = "clean",
        action: ActionKind = "qpos",
        cameras: Sequence[str] = ("head", "left", "right"),
        wording: Wording = "seen",
        rendering: RoboTwinRendering = "fast",
        initial_state: int | None = None,
        max_episode_steps: int | None = None,
        draw_every: int = 1,
        render_mode: str | None = None,
        observe_images: bool = True,
        reward: RewardForm = "shaped",
        home: str | Path | RoboTwinHome | None = None,
        time_limit_s: float = 300.0,
        episodes_per_process: int = 200,
    ) -> None:
        for name, given, legal in (
            ("config", config, get_args(Config)),
            ("action", action, get_args(ActionKind)),
            ("wording", wording, get_args(Wording)),
            ("rendering", rendering, get_args(RoboTwinRendering)),
        ):
            _require(name, given, legal)
        for name in cameras:
            _require("camera", name, ROBOTWIN_CAMERAS)
        for name, number in (
            ("draw_every", draw_every),
            ("episodes_per_process", episodes_per_process),
            ("max_episode_steps", 1 if max_episode_steps is None else max_episode_steps),
        ):
            if number < 1:
                raise ValueError(f"{name}={number}: give at least 1")
        super().__init__(robotwin_aloha(tuple(cameras), action), render_mode, observe_images, reward)
        self.home = home if isinstance(home, RoboTwinHome) else RoboTwinHome.open(None if home is None else Path(home))
        self.task, self.config, self.action_kind = self.home.require_task(task), config, action
        self.home.require_assets(task, config)
        self.wording, self.rendering, self.draw_every = wording, rendering, draw_every
        self.instructions_vary = wording != "task"
        self.time_limit_s, self.episodes_per_process = time_limit_s, episodes_per_process
        self._limit, self._fixed_initial_state = max_episode_steps, initial_state
        self._seed, self._initial_state, self._words = -1, -1, ""
        self._asked: dict[str, Any] = {}
        self._history: list[Array] = []
        self._plan: Array | None = None
        self._episodes, self._memory_mb = 0, 0

    # -- tasks ---------------------------------------------------------------------------------------------------

    @classmethod
    def arguments_for(cls, spec: RobotSpec) -> dict[str, Any]:
        """``cameras`` and ``action`` of this robot."""
        kinds: tuple[ActionKind, ...] = get_args(ActionKind)
        kind = kinds[spec.action_dim == robotwin_aloha(action="ee").action_dim]
        cameras = tuple(camera.name for camera in spec.cameras if camera.name in ROBOTWIN_CAMERAS)
        spec.require_same(robotwin_aloha(cameras, kind), "wanted robot", "RoboTwin")
        return {"cameras": cameras, "action": kind}

    def tasks(self) -> Mapping[str, str]:
        """Every task whose assets are there, in RoboTwin's words for the whole task; an episode's own may vary."""
        return {task: words for task, words in self.home.tasks().items() if not self.home.missing(task, self.config)}

    @property
    def max_episode_steps(self) -> int:  # type: ignore[override]
        """Decisions until truncation."""
        return self._limit or self.home.step_limit(self.task)

    # -- gymnasium -----------------------------------------------------------------------------------------------

    def send_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """The first half of `reset`.

        Args:
            seed: seeds the draw of the initial state, and the wording of the instruction.
            options: any of ``task``, ``config`` (what is left out stays as it is) and ``initial_state``.
        """
        gym.Env.reset(self, seed=seed)  # seeds the generator
        self.require_open()
        options = self.check_options(options)
        task, config = options.get("task", self.task), options.get("config", self.config)
        _require("config", config, get_args(Config))
        self.home.require_assets(self.home.require_task(task), config)
        wanted = options.get("initial_state", self._fixed_initial_state)
        drawn = int(self.np_random.integers(_DRAWN_STATES)) if wanted is None else wanted
        self._initial_state = as_initial_state(drawn, None, task)
        self.task, self.config = task, config
        self._seed = int(seed) if seed is not None else self._initial_state
        self._history, self._plan = [], None
        self._ask_for_start(exact=wanted is not None)

    def _ask_for_start(self, exact: bool) -> None:
        if self._episodes >= self.episodes_per_process or self._memory_mb > _MOST_MEMORY_MB:
            self._drop()
        self._send_reset(
            options=self.home.worker_options(),
            task=self.task,
            config=self.config,
            rendering=self.rendering,
            initial_state=self._initial_state,
            exact=exact,
            step_limit=self.max_episode_steps,
            wording=self.wording,
            seed=self._seed,
            cameras=self._cameras,
        )
        self._episodes += 1  # of this process, which is a new one perhaps

    @property
    def _cameras(self) -> list[str]:
        return [camera.name for camera in self.robot_spec.cameras] if self.observe_images else []

    def send_step(self, action: Array) -> None:
        """The first half of `step`."""
        self._require_begun()
        wanted = self.check_action(action)
        self._history.append(wanted)
        self._send(
            "step", action=wanted.tolist(), kind=self.action_kind, cameras=self._cameras, draw_every=self.draw_every
        )

    def _result(self, reply: Reply, start: bool) -> StepResult:
        values, arrays = reply
        if "instruction" in values:
            self._initial_state, self._memory_mb = values["initial_state"], values["memory_mb"]
            self._words = values["instruction"] or self.home.tasks()[self.task]
        observation = {k: v for k, v in arrays.items() if k.startswith("image_")}
        observation["proprio"] = self.robot_spec.clip_proprio(arrays["proprio"])
        success, steps = values["success"], len(self._history)
        timing = {"physics_steps": values["physics_steps"], "seconds": values["physics_steps"] / 250}
        info = {"success": success} | self.labels | {"steps": steps} | timing | {"privileged": _privileged(reply)}
        if start:
            return observation, 0.0, False, False, info
        dense = values["dense"]
        dense = float(success) if np.isnan(dense) or success else dense
        truncated = not success and steps >= self.max_episode_steps
        return observation, step_reward(dense, success, self.reward_form), success, truncated, info

    @property
    def labels(self) -> dict[str, Any]:
        """What ``info`` says of the present episode as a whole."""
        return {
            "task": self.task,
            "instruction": self._words,
            "config": self.config,
            "rendering": self.rendering,
            "initial_state": self._initial_state,
            "seed": self._seed,
        }

    def expert_plan(self) -> tuple[Array, bool]:
        """The targets (n, A) float32 of RoboTwin's own expert from the start of this episode, and whether they succeed.

        Found in another scene of the same start; the episode is not disturbed. Empty if it finds no way.
        """
        reply = self._call("expert")
        return reply.arrays[self.action_kind].astype(np.float32), reply.values["outcome"] == "solved"

    def expert_outcome(self, task: str, initial_state: int) -> ExpertOutcome:
        """What becomes of RoboTwin's own expert from a start; the present episode is not disturbed."""
        self.home.require_assets(self.home.require_task(task), self.config)
        start = {"task": task, "config": self.config, "initial_state": initial_state}
        self._send("ask_expert", options=self.home.worker_options(), **start)
        outcome: ExpertOutcome = self._receive().values["outcome"]
        return outcome

    def expert_action(self, task: str | None = None) -> Array:
        """(A,) float32: what RoboTwin's own expert does at this point of the episode; ``task`` is always the own one.

        The expert plans once, from the start, and does not see what became of it. Where it finds no way, it stays.
        """
        if self._plan is None:
            plan, _ = self.expert_plan()
            self._plan = plan if len(plan) else self._stay()[None]
        return self.robot_spec.check_action(self._plan[min(len(self._history), len(self._plan) - 1)])

    def _stay(self) -> Array:
        return self._call("stay").arrays[self.action_kind].astype(np.float32)

    # -- state and pictures --------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Array]:
        """Everything that decides what comes next, for `set_state` of an environment with the same task."""
        self._require_begun()
        actions = np.array(self._history, np.float32).reshape(-1, self.robot_spec.action_dim)
        return {"episode": np.array([self._seed, self._initial_state], np.int64), "actions": actions}

    def set_state(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """Executes the actions of a state of `get_state` and returns its observation.

        What the present episode has of them is not executed again.
        """
        require_state(state, ("episode", "actions"))
        seed, initial_state = (int(number) for number in state["episode"])
        actions = [self.check_action(action) for action in np.asarray(state["actions"])]
        done = len(self._history)
        same = (seed, initial_state) == (self._seed, self._initial_state) and done <= len(actions)
        if not (same and all(np.array_equal(a, b) for a, b in zip(self._history, actions[:done], strict=True))):
            self._seed, self._initial_state, done = seed, initial_state, 0
            self._ask_for_start(exact=True)
            self._history, self._plan = [], None
            self.receive()
        rest = [action.tolist() for action in actions[done:]]
        self._history = actions
        return self._result(self._call("replay", actions=rest, kind=self.action_kind, cameras=self._cameras), True)[0]

    def versions(self) -> dict[str, str]:
        """Of the simulator's packages, to be kept with every result."""
        self._send("open", **self.home.worker_options())
        return self._receive().values

    def render(self) -> Array | None:  # type: ignore[override]
        """The first camera's view, uint8 (240, 320, 3); None without ``render_mode``."""
        return None if self.render_mode is None else self.draw(self.robot_spec.cameras[0].name)

    def draw(self, camera: str = "head") -> Array:
        """A picture uint8 (240, 320, 3) of the present state by any of RoboTwin's cameras."""
        _require("camera", camera, ROBOTWIN_CAMERAS)
        return self._call("draw", camera=camera).arrays["image"]

    # -- the process ---------------------------------------------------------------------------------------------

    def receive(self) -> StepResult:
        """See `ProcessSimulator.receive`. An initial state that is not stable is a ValueError."""
        start = self._waits_for == "reset"
        try:
            return super().receive()
        except SimulatorError as error:
            if start and error.kind == "ValueError":
                raise ValueError(str(error).removeprefix("ValueError: ")) from error
            if "rendering device" in str(error):
                raise SimulatorError(f"{error}: {REMEDY}", error.kind) from error
            raise

    def _launch(self) -> SimulatorProcess:
        self._episodes, self._memory_mb = 0, 0
        return SimulatorProcess(
            self.home.python, "kairos_env.sims.robotwin.worker", self.home.variables(), self.time_limit_s
        )


def _privileged(reply: Reply) -> dict[str, Any]:
    values, arrays = reply
    places, hands = arrays["object_positions"], arrays["hands"]
    named = zip(values["objects"], places, arrays["object_rotations"], strict=True)
    interest = values["movable"] or values["objects"]
    nearest = 0
    if interest:
        first = places[values["objects"].index(interest[0])]
        nearest = int(np.argmin(np.linalg.norm(hands[:, :3] - first, axis=1)))
    return {
        "eef_position": hands[nearest, :3],
        "gripper_opening": float(arrays["openings"][nearest]),
        "hands": hands,
        "joints": arrays["measured"],
        "objects": {name: {"position": place, "rotation": turn} for name, place, turn in named},
        "interest": list(interest),
    }


def _require(name: str, given: Any, legal: Sequence[str]) -> None:
    if given not in legal:
        raise ValueError(f"unknown {name} {given!r}; {did_you_mean(str(given), legal)}")


make_vector = functools.partial(SimulatorVectorEnv, RoboTwinEnv)
"""What ``gym.make_vec`` calls."""
