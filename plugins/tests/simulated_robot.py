"""A LeRobot robot without hardware: the simulator, driven through LeRobot's robot interface."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot

from kairos_env.sims.tabletop.env import RobosuiteEnv


@RobotConfig.register_subclass("simulated_panda")
@dataclass
class SimulatedPandaConfig(RobotConfig):
    """``log``: the file that says, when the robot is disconnected, how it went."""

    log: str = "log.json"
    task: str = "reach"


class SimulatedPanda(Robot):
    config_class = SimulatedPandaConfig
    name = "simulated_panda"
    is_calibrated = True

    def __init__(self, config: SimulatedPandaConfig) -> None:
        super().__init__(config)
        self.config = config
        self.env: RobosuiteEnv | None = None
        self.cameras = {"scene": None}  # LeRobot counts them
        self.steps, self.success = 0, False

    @property
    def observation_features(self) -> dict[str, Any]:
        return {f"{axis}.pos": float for axis in ("x", "y", "z", "width")} | {"scene": (64, 64, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"{axis}.pos": float for axis in ("dx", "dy", "dz", "gripper")}

    @property
    def is_connected(self) -> bool:
        return self.env is not None

    def connect(self, calibrate: bool = True) -> None:
        self.env = RobosuiteEnv(self.config.task, max_episode_steps=10_000)
        self.seen, _ = self.env.reset(seed=0)

    def get_observation(self) -> dict[str, Any]:
        numbers = dict(zip(self.observation_features, self.seen["proprio"].tolist(), strict=False))
        return numbers | {"scene": self.seen["image_scene"]}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        values = np.array([action[name] for name in self.action_features], np.float32)
        self.seen, _, _, _, info = self.env.step(values)
        self.steps, self.success = self.steps + 1, self.success or info["success"]
        return action

    def disconnect(self) -> None:
        Path(self.config.log).write_text(json.dumps({"steps": self.steps, "success": self.success}))
        self.env.close()
        self.env = None

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...
