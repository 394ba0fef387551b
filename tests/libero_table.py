"""A small kinematic table that stands in for LIBERO's simulator where the recorder is what is tested."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from kairos_env.embodiments import libero_panda

SIDE, REPEAT = 8, 4
SPEC = libero_panda(SIDE, REPEAT)
MILK = "libero/libero_object/pick_up_the_milk_and_place_it_in_the_basket"
BUTTER = "libero/libero_object/pick_up_the_butter_and_place_it_in_the_basket"
TASKS = {MILK: "pick up the milk, please", BUTTER: "pick up the butter, please"}


class Table:
    """A hand that has to come to the right place.

    Args:
        hopeless: initial states in which an undisturbed hand never comes there.
        never: tasks that nobody solves.
        delay: seconds of a step.
        deaths: how often the simulator dies before it lives.
    """

    robot_spec = SPEC
    unwrapped = property(lambda self: self)
    max_episode_steps = 20

    def __init__(
        self, hopeless: tuple[int, ...] = (), never: tuple[str, ...] = (), delay: float = 0.0, deaths: int = 0
    ) -> None:
        self.hopeless, self.never, self.delay, self.deaths = hopeless, never, delay, deaths

    def tasks(self) -> dict[str, str]:
        return TASKS

    def initial_states(self, task: str) -> int:
        return 6

    def reset(self, seed: int, options: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self.task, self.first = options["task"], True
        self.far = options["initial_state"] in self.hopeless
        self.rng = np.random.default_rng([seed, options["initial_state"]])
        self.position, self.steps = self.rng.uniform(-0.5, 0.5, 3), 0
        self.goal = np.full(3, 0.3)
        return self._seen(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        from kairos_env.sims.process import SimulatorCrashed

        time.sleep(self.delay)
        if self.steps == 2 and self.deaths > 0:
            self.deaths -= 1
            raise SimulatorCrashed("the simulator is gone")
        if self.first and np.abs(action[:3] - self.expert_action()[:3]).max() > 1e-3:
            self.far = False  # disturbed
        self.first = False
        self.position = self.position + 0.2 * action[:3]
        self.steps += 1
        info = self._info()
        return self._seen(), float(info["success"]), info["success"], self.steps >= self.max_episode_steps, info

    def expert_action(self, task: str | None = None) -> np.ndarray:
        return np.array([*np.clip(5 * (self.goal - self.position), -1, 1), 0, 0, 0, -1], np.float32)

    def simulator_state(self) -> dict[str, np.ndarray]:
        return {"state": np.arange(20) + self.position.sum()}

    def versions(self) -> dict[str, str]:
        return {"simulator": "3.3.7"}

    def close(self) -> None:
        pass

    def _seen(self) -> dict[str, np.ndarray]:
        proprio = np.array([*self.position, *np.zeros(5)], np.float32)
        pictures = {c.key: self.rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for c in SPEC.cameras}
        return pictures | {"proprio": proprio}

    def _info(self) -> dict[str, Any]:
        milk = {"position": self.goal, "rotation": np.eye(3)}
        true = {"objects": {"basket_1": {}, "milk_1": milk}, "interest": ["milk_1", "basket_1"]}
        there = bool(np.abs(self.goal - self.position).max() < 0.1)
        return {
            "success": there and not self.far and self.task not in self.never,
            "task": self.task,
            "instruction": TASKS[self.task],
            "privileged": true | {"eef_position": self.position, "gripper_opening": 0.0},
        }


def make_table(config: Any, **options: Any) -> Table:
    return Table(**options)
