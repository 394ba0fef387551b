"""The environment types ``kairos`` (the world model) and ``kairos_robosuite`` (the simulator)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gymnasium.vector import AutoresetMode
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from kairos_env.env.imagination import load_model
from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.records import RobotSpec
from kairos_env.sims.tabletop.env import RobosuiteEnv, make_spec
from kairos_env.sims.vector import SimulatorVectorEnv
from kairos_env.world_model.checkpoint import CONFIG, resolve
from kairos_env.world_model.model import WorldModel
from lerobot_env_kairos.environment import IMAGINED, SIMULATED, LeRobotVectorEnv


@dataclass
class KairosTasks(EnvConfig):
    """What both worlds have in common.

    Features and frame rate follow from the robot and are not set by hand.

    Args:
        task: a task, or several separated by commas: each becomes a group of its own in LeRobot's results.
        episode_length: decisions until an episode is truncated.
    """

    task: str | None = "reach"
    episode_length: int = 24

    def __post_init__(self) -> None:
        robot = self.robot()
        self.fps = max(1, round(robot.control_rate_hz))
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (robot.action_dim,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (robot.proprio_dim,)),
        }
        self.features_map = {ACTION: ACTION, "agent_pos": OBS_STATE}
        for camera in robot.cameras:
            key = f"{OBS_IMAGES}.{camera.name}"
            self.features[key] = PolicyFeature(FeatureType.VISUAL, (camera.height, camera.width, 3))
            self.features_map[key] = key

    @property
    def tasks(self) -> list[str]:
        """The names in ``task``."""
        names = [name.strip() for name in (self.task or "").split(",") if name.strip()]
        if not names:
            raise ValueError("no task is given: --env.task=reach, or several: --env.task=reach,push,lift")
        return names

    def robot(self) -> RobotSpec:
        """Whose observations and actions they are."""
        raise NotImplementedError

    # What LeRobot 0.4 asks for: one environment by its id. Later versions call `create_envs`.

    @property
    def package_name(self) -> str:
        return "lerobot_env_kairos"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        if len(self.tasks) != 1:
            raise ValueError(f"this version of LeRobot evaluates one task at a time, got {self.tasks}")
        return self.settings(self.tasks[0]) | {"episode_length": self.episode_length}

    def settings(self, task: str) -> dict[str, Any]:
        """Keyword arguments of Kairos' own environment for one task, but for the length of its episodes."""
        raise NotImplementedError


@EnvConfig.register_subclass("kairos")
@dataclass
class KairosEnv(KairosTasks):
    """Inside a world model: no simulator, and ``is_success`` is what the model believes.

    Args:
        model: bundled name, folder or hub id of a Kairos model.
        start: ``"dataset"`` (the real observations that ship with the model) or the id of a simulator.
        steps: denoising steps of one imagined decision; None is the model's default.
        success_threshold: imagined success probability from which an episode has succeeded.
        uncertainty_limit: imagined uncertainty above which an episode is cut off, as no success.
        device: of the world model; ``"auto"`` takes a GPU if there is one.
    """

    model: str = "kairos-tiny"
    start: str = "dataset"
    steps: int | None = None
    success_threshold: float = 0.5
    uncertainty_limit: float | None = None
    device: str = "auto"

    def robot(self) -> RobotSpec:
        about = json.loads((resolve(self.model) / CONFIG).read_text())
        if "robot" not in about:
            raise ValueError(f"{self.model} is not a model that can be stepped: its {CONFIG} describes no robot")
        return RobotSpec.from_dict(about["robot"])

    @property
    def gym_id(self) -> str:
        return IMAGINED

    def settings(self, task: str) -> dict[str, Any]:
        return {
            "task": task,
            "model": self.model,
            "start": self.start,
            "steps": self.steps,
            "success_threshold": self.success_threshold,
            "uncertainty_limit": self.uncertainty_limit,
            "device": self.device,
            "render_mode": "rgb_array",
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, LeRobotVectorEnv]]:
        """One environment of ``n_envs`` robots for each task, all with one model.

        ``use_async_envs`` makes no difference: the robots share one batched model step, in this process.
        """
        model = load_model(self.model, self.device)
        return {task: {0: self._imagine(n_envs, task, model)} for task in self.tasks}

    def _imagine(self, n_envs: int, task: str, model: WorldModel) -> LeRobotVectorEnv:
        settings = self.settings(task) | {"model": model, "device": "auto", "max_episode_steps": self.episode_length}
        env = WorldModelVectorEnv(n_envs, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
        return LeRobotVectorEnv(env, self.episode_length)


@EnvConfig.register_subclass("kairos_robosuite")
@dataclass
class KairosRobosuiteEnv(KairosTasks):
    """In the simulator.

    Args:
        cameras: which of ``scene`` and ``wrist`` are observed.
        image_size: height and width of the observed images, in pixels.
    """

    cameras: list[str] = field(default_factory=lambda: ["scene"])
    image_size: int = 64

    def robot(self) -> RobotSpec:
        return make_spec(self.cameras, self.image_size)

    @property
    def gym_id(self) -> str:
        return SIMULATED

    def settings(self, task: str) -> dict[str, Any]:
        return {
            "task": task,
            "cameras": tuple(self.cameras),
            "image_size": self.image_size,
            "render_mode": "rgb_array",
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, LeRobotVectorEnv]]:
        """``n_envs`` simulators for each task: in processes of their own if asked for and if there are several."""
        return {task: {0: self._simulate(n_envs, task, use_async_envs and n_envs > 1)} for task in self.tasks}

    def _simulate(self, n_envs: int, task: str, processes: bool) -> LeRobotVectorEnv:
        settings = self.settings(task) | {"max_episode_steps": self.episode_length, "processes": processes}
        env = SimulatorVectorEnv(RobosuiteEnv, n_envs, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
        return LeRobotVectorEnv(env, self.episode_length)
