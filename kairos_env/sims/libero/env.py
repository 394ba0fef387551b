"""`Kairos-LIBERO-v0`: tasks of LIBERO, LIBERO-plus and LIBERO-Pro in their simulator, which has a process of its own.

LIBERO pins packages that clash with ours, so its simulator has its own interpreter (``kairos sims install libero``).
All three benchmarks, and any number of environments, work side by side in one program.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from kairos_env.embodiments import LIBERO_MAX_STEPS, libero_panda
from kairos_env.records import Array, RobotSpec
from kairos_env.sims.libero.catalogue import Catalogue
from kairos_env.sims.libero.tasks import LiberoTask, Prompt
from kairos_env.sims.process import Reply, SimulatorProcess
from kairos_env.sims.process_simulator import ProcessSimulator
from kairos_env.sims.reward import RewardForm, step_reward
from kairos_env.sims.simulator import StepResult, as_initial_state, require_state
from kairos_env.sims.vector import SimulatorVectorEnv

Rendering = Literal["official", "fast"]


class LiberoEnv(ProcessSimulator):
    """A Panda arm in one task of LIBERO, LIBERO-plus or LIBERO-Pro; see `embodiments.LIBERO_PANDA`.

    A task is named ``benchmark/suite/name``; `reset` also takes its index in the suite, or its name alone.
    Pictures are turned by 180 degrees against what the renderer draws, as published models expect them: the scene
    stands upright and is mirrored. ``info`` is that of every `Simulator`, with ``benchmark``, ``suite``, ``name``,
    ``base_task``, ``prompt``, ``dimension``, ``difficulty``, ``params`` of the perturbation, ``simulator_steps`` (of
    0.05 s) and, within ``privileged``, ``eef_rotation`` (3, 3).

    An episode depends on task, initial state, seed and actions alone, not on what was simulated before.

    Args:
        suite: such as ``"libero_object"``.
        task: index in the suite, its name in it, or ``benchmark/suite/name``.
        benchmark: ``"libero"``, ``"libero-plus"`` or ``"libero-pro"``.
        perturbation: of LIBERO-plus, the end of its task names; ``task`` is then a task of LIBERO.
        initial_state: which of the benchmark's initial states; None draws one at each reset.
        camera_size: height and width of both pictures [pixels].
        action_repeat: simulator steps for which an action is held; a decision lasts as many times 0.05 s.
        prompt: which instruction: ``"official"`` as the benchmark makes it (in LIBERO-plus mostly with the name of
            the perturbation at its end), ``"bddl"`` of the task definition, ``"base"`` of the unperturbed task.
        rendering: ``"official"`` as the benchmark draws, or ``"fast"``, without shadows and multisampling.
        wait_steps: steps at the start in which objects come to rest.
        max_episode_steps: decisions until truncation; None is the suite's published limit, in simulator steps.
        render_mode: None or ``"rgb_array"``.
        observe_images: False leaves the pictures out and draws nothing.
        reward: what a decision earns, see `kairos_env.sims.reward`. LIBERO's own reward is 1 on success and 0 else
            (``"dense"``), so that ``"shaped"`` and ``"sparse"`` are the same here: -1 until success.
        home: folder of the installation, or its catalogue to share; None is the default folder.
        time_limit_s: for one answer of the simulator.

    Raises:
        ValueError: an unknown task, option or name, with the nearest legal ones.
        FileNotFoundError: no installation, or assets that this task needs are missing; it says how to get them.
    """

    task_mixture = {"libero_object/*": 1.0, "libero_spatial/*": 1.0}  # noqa: RUF012 - what the expert knows
    reset_options = ("task", "initial_state", "benchmark", "suite", "perturbation")

    def __init__(
        self,
        suite: str = "libero_object",
        task: int | str = 0,
        benchmark: str = "libero",
        perturbation: str | None = None,
        initial_state: int | None = None,
        camera_size: int = 256,
        action_repeat: int = 1,
        prompt: Prompt = "official",
        rendering: Rendering = "official",
        wait_steps: int = 10,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        observe_images: bool = True,
        reward: RewardForm = "shaped",
        home: str | Path | Catalogue | None = None,
        time_limit_s: float = 300.0,
    ) -> None:
        if rendering not in ("official", "fast"):
            raise ValueError(f"rendering={rendering!r}: give 'official' or 'fast'")
        if prompt not in ("official", "bddl", "base"):
            raise ValueError(f"prompt={prompt!r}: give 'official', 'bddl' or 'base'")
        if not 16 <= camera_size <= 1024:
            raise ValueError(f"camera_size={camera_size}: give 16 ... 1024 pixels")
        if action_repeat < 1 or wait_steps < 0 or (max_episode_steps is not None and max_episode_steps < 1):
            raise ValueError(
                f"action_repeat={action_repeat}, wait_steps={wait_steps}, max_episode_steps={max_episode_steps}: "
                "the first and last must be at least 1, the other at least 0"
            )
        super().__init__(libero_panda(camera_size, action_repeat), render_mode, observe_images, reward)
        self.catalogue = home if isinstance(home, Catalogue) else Catalogue.open(None if home is None else Path(home))
        self.camera_size, self.action_repeat, self.wait_steps = camera_size, action_repeat, wait_steps
        self.prompt: Prompt = prompt
        self.rendering: Rendering = rendering
        self.time_limit_s = time_limit_s
        self._limit = max_episode_steps
        self._fixed_initial_state = initial_state
        self.task_info = self._find(benchmark, suite, task, perturbation)
        self._expert: Any = None
        self._seed, self._initial_state, self._steps = -1, -1, 0
        self._objects: list[str] = []
        self._interest: list[str] = []
        self._privileged: dict[str, Any] = {}

    # -- tasks ---------------------------------------------------------------------------------------------------

    @classmethod
    def arguments_for(cls, spec: RobotSpec) -> dict[str, Any]:
        """``camera_size`` and ``action_repeat`` of this robot."""
        size = spec.cameras[0].height if spec.cameras else 256
        repeat = max(1, round(20 / spec.control_rate_hz))
        spec.require_same(libero_panda(size, repeat), "wanted robot", "LIBERO")
        return {"camera_size": size, "action_repeat": repeat}

    def tasks(self) -> Mapping[str, str]:
        """Every task of the present benchmark whose assets are there."""
        tasks = self.catalogue.tasks(self.task_info.benchmark)
        there = (task for task in tasks if not self.catalogue.missing(task))
        return {task.qualified_name: task.instructions[self.prompt] for task in there}

    @property
    def task(self) -> str:  # type: ignore[override]
        """Qualified name of the present task."""
        return self.task_info.qualified_name

    @property
    def max_episode_steps(self) -> int:  # type: ignore[override]
        """Decisions until truncation."""
        return self._limit or -(-LIBERO_MAX_STEPS["published"][self.task_info.base_suite] // self.action_repeat)

    def _find(self, benchmark: str, suite: str, task: int | str, perturbation: str | None) -> LiberoTask:
        chosen = self.catalogue.task(benchmark, suite, task, perturbation)
        missing = self.catalogue.missing(chosen)
        if missing:
            raise FileNotFoundError(
                f"{chosen.key} needs files that {self.catalogue.assets} does not have: {', '.join(missing[:5])}"
                f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}. "
                f"`kairos sims check {chosen.benchmark}` says where they come from"
            )
        return chosen

    def _chosen(self, options: Mapping[str, Any]) -> LiberoTask:
        """The task that a reset names; what its options leave out stays, but a perturbation ends with its task."""
        now = self.task_info
        if not set(options) & {"benchmark", "suite", "task", "perturbation"}:
            return now
        benchmark, suite = options.get("benchmark", now.benchmark), options.get("suite", now.suite)
        task = options.get("task", now.name)
        if isinstance(task, str) and "suite" not in options:
            suite = self.catalogue.suite_of(benchmark, task, suite)
        return self._find(benchmark, suite, task, options.get("perturbation"))

    def initial_states(self, task: str | None = None) -> int:
        chosen = self.task_info if task is None else self._chosen({"task": task})
        return len(self.catalogue.init_states(chosen))

    # -- gymnasium -----------------------------------------------------------------------------------------------

    def send_reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """The first half of `reset`.

        Args:
            seed: seeds the draw of the initial state, and what the initial state does not hold.
            options: any of ``benchmark``, ``suite``, ``task``, ``perturbation`` (what is left out stays as it is; a
                perturbation ends with the task) and ``initial_state``.
        """
        gym.Env.reset(self, seed=seed)  # seeds the generator
        self.require_open()
        options = self.check_options(options)
        task = self._chosen(options)
        states = self.catalogue.init_states(task)
        wanted = options.get("initial_state", self._fixed_initial_state)
        drawn = int(self.np_random.integers(len(states))) if wanted is None else wanted
        chosen = as_initial_state(drawn, len(states), task.key)
        self.task_info, self._initial_state, self._steps = task, chosen, 0
        # Without a seed the rest of the start follows from the initial state, so that it can be named again.
        self._seed = int(seed) if seed is not None else chosen
        self._send_reset(
            task={
                "bddl": str(self.catalogue.bddl_path(task)),
                "assets": str(self.catalogue.assets),
                "camera_size": self.camera_size,
                "rendering": self.rendering,
                "params": task.params,
                "scene": {
                    "problem": task.problem,
                    "base_problem": task.base_problem,
                    **task.scene,
                    "objects": [file for file in task.assets if file.startswith("new_objects/")],
                },
            },
            state=states[chosen].tolist(),
            seed=self._seed,
            wait_steps=self.wait_steps,
            observe=self.observe_images,
        )
        self._expert = None

    def send_step(self, action: Array) -> None:
        """The first half of `step`."""
        self._require_begun()
        wanted = self.check_action(action)
        self._send("step", action=wanted.tolist(), repeat=self.action_repeat, observe=self.observe_images)

    def _result(self, reply: Reply, start: bool) -> StepResult:
        values, arrays = reply
        if "interest" in values:
            self._objects, self._interest = values["objects"], values["interest"]
        observation = {k: v for k, v in arrays.items() if k.startswith("image_")}
        observation["proprio"] = self.robot_spec.clip_proprio(arrays["proprio"])
        poses = zip(arrays["object_positions"], arrays["object_rotations"], strict=True)
        self._privileged = {
            "eef_position": arrays["eef_position"],
            "eef_rotation": arrays["eef_rotation"],
            "gripper_opening": values["gripper_opening"],
            "objects": {
                name: {"position": p, "rotation": r} for name, (p, r) in zip(self._objects, poses, strict=True)
            },
            "interest": list(self._interest),
        }
        self._steps += not start
        success = values["success"]
        steps = {"steps": self._steps, "simulator_steps": values["steps"]}
        info = {"success": success} | self.labels | steps | {"privileged": self._privileged}
        if start:
            return observation, 0.0, False, False, info
        truncated = not success and self._steps >= self.max_episode_steps
        earned = step_reward(float(success), success, self.reward_form)
        return observation, earned, success, truncated, info

    @property
    def labels(self) -> dict[str, Any]:
        """What ``info`` says of the present episode as a whole."""
        task = self.task_info
        return {
            "benchmark": task.benchmark,
            "suite": task.suite,
            "task": task.qualified_name,
            "name": task.name,
            "base_task": task.base_task,
            "instruction": self.instruction,
            "prompt": self.prompt,
            "dimension": task.dimension,
            "difficulty": task.difficulty,
            "params": copy.deepcopy(task.params),
            "initial_state": self._initial_state,
            "seed": self._seed,
        }

    @property
    def instruction(self) -> str:
        """The present task in words, as `prompt` asks for it."""
        return self.task_info.instructions[self.prompt]

    def expert_action(self, task: str | None = None) -> Array:
        """(7,) float32: what the scripted expert would do now, see `libero_experts`; ``task`` is always the own one."""
        from kairos_env.sims.libero.experts import LiberoExpert

        if not self._privileged:
            raise gym.error.ResetNeeded("call reset() first")
        if self._expert is None:
            self._expert = LiberoExpert(self._privileged["interest"], self.task_info.base_suite, self.action_repeat)
        return self._expert.act(self._privileged)

    # -- state and pictures --------------------------------------------------------------------------------------

    def simulator_state(self) -> dict[str, Array]:
        """The simulator as LIBERO's files hold it: ``state`` float64 (S,) and ``joints`` (7,)."""
        return self._call("state").arrays

    def get_state(self) -> dict[str, Array]:
        """Everything that decides what comes next, for `set_state` of an environment with the same task."""
        episode = np.array([self._steps, self._seed, self._initial_state], np.int64)
        return self._call("get_state").arrays | {"episode": episode}

    def set_state(self, state: Mapping[str, Array]) -> dict[str, Array]:
        """Restores a state of `get_state` and returns its observation."""
        require_state(state, ("episode",))
        lists = {k: np.asarray(v).tolist() for k, v in state.items() if k != "episode"}
        reply = self._call("set_state", state=lists, observe=self.observe_images)
        self._steps, self._seed, self._initial_state = (int(x) for x in state["episode"])
        return self._result(reply, True)[0]

    def versions(self) -> dict[str, str]:
        """Of the simulator's packages, to be kept with every result."""
        self._send("versions")
        return self._receive().values

    def render(self) -> Array | None:  # type: ignore[override]
        """The agent view as uint8 (256, 256, 3), turned as the observations are; None without ``render_mode``."""
        if self.render_mode is None:
            return None
        return self.draw("agentview", 256)

    def draw(self, camera: str = "agentview", size: int = 256) -> Array:
        """A picture uint8 (size, size, 3) of the present state, without sensor noise."""
        names = [c.name for c in self.robot_spec.cameras]
        if camera not in names:
            raise ValueError(f"unknown camera {camera!r}; there are {names}")
        return self._call("draw", camera=camera, size=size).arrays["image"]

    # -- the process ---------------------------------------------------------------------------------------------

    def _launch(self) -> SimulatorProcess:
        home = self.catalogue.home
        # resolved, because numba compiles anew for every path by which its caller is reached
        interpreter = (home / "env").resolve() / "bin" / "python"
        cache = interpreter.parents[1] / "cache"
        cache.mkdir(exist_ok=True)
        environment = {"LIBERO_CONFIG_PATH": str(home / "config"), "NUMBA_CACHE_DIR": str(cache)}
        if "MUJOCO_GL" not in os.environ:
            from kairos_env.sims.rendering import choose_backend

            environment["MUJOCO_GL"] = choose_backend()
        return SimulatorProcess(interpreter, "kairos_env.sims.libero.worker", environment, self.time_limit_s)


make_vector = functools.partial(SimulatorVectorEnv, LiberoEnv)
"""What ``gym.make_vec`` calls."""
