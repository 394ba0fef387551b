"""A small exact world for planners: a gripper in the plane that must reach a goal and close there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kairos_env.policies import Objective
from kairos_env.records import Camera, Field, Observation, RobotSpec

SPEC = RobotSpec(
    name="point",
    cameras=(Camera("top", 8, 8),),
    proprio=(Field("x", -1, 1, "m"), Field("y", -1, 1, "m"), Field("closed", 0, 1, "")),
    action=(
        Field("dx", -0.1, 0.1, "m", "delta_position"),
        Field("dy", -0.1, 0.1, "m", "delta_position"),
        Field("gripper", -1, 1, "", "gripper"),
    ),
    control_rate_hz=5,
    instruction="close on the target",
)
GOAL = torch.tensor([0.32, -0.21])


@dataclass(frozen=True)
class PointState:
    position: Tensor  # (B, 2)
    closed: Tensor  # (B,)
    seeds: tuple[int, ...]
    frame: int

    @property
    def batch_size(self) -> int:
        return len(self.position)

    def fork(self, count: int) -> PointState:
        return self.select([i for i in range(self.batch_size) for _ in range(count)])

    def select(self, indices: Sequence[int]) -> PointState:
        rows = list(indices)
        return PointState(self.position[rows], self.closed[rows], tuple(self.seeds[i] for i in rows), self.frame)

    def reseed(self, seeds: Sequence[int]) -> PointState:
        assert len(seeds) == self.batch_size
        return dataclasses.replace(self, seeds=tuple(seeds))


@dataclass(frozen=True)
class PointRollout:
    reward: Tensor
    success: Tensor
    uncertainty: Tensor
    proprio: Tensor
    state: PointState


class PointWorld:
    """A gripper in the plane: it must reach the goal and close there. Its policy aims badly, by seed."""

    spec = SPEC
    tasks: Mapping[str, str] = {"close": SPEC.instruction}
    chunk_length = 3

    def __init__(self, noise: float = 0.0, aim: float = 0.0, broken: bool = False) -> None:
        self.noise, self.aim, self.broken = noise, aim, broken
        self.largest_batch = 0
        self.observed: list[np.ndarray | None] = []

    def observe(self, obs: Any, state: Any = None, action: Any = None, seeds: Any = None) -> PointState:
        proprio = torch.from_numpy(np.stack([o.proprio for o in obs]))
        self.observed.append(None if action is None else np.array(action[0]))
        if state is not None:
            return PointState(proprio[:, :2], proprio[:, 2], state.seeds, state.frame + 1)
        return PointState(proprio[:, :2], proprio[:, 2], tuple(seeds), 0)

    def draw(self, state: PointState, stream: int, shape: tuple[int, ...]) -> Tensor:
        rows = [np.random.default_rng([s, state.frame, stream]).standard_normal(shape) for s in state.seeds]
        return torch.from_numpy(np.stack(rows)).float()

    def imagine(self, state: PointState, actions: Any, steps: Any = None) -> PointRollout:
        self.largest_batch = max(self.largest_batch, state.batch_size)
        actions = torch.as_tensor(actions)
        assert len(actions) == state.batch_size
        rewards, successes, proprios = [], [], []
        for t in range(actions.shape[1]):
            position = state.position + actions[:, t, :2]
            closed = (actions[:, t, 2] > 0).float()
            state = dataclasses.replace(state, position=position, closed=closed, frame=state.frame + 1)
            away = (position - GOAL).norm(dim=-1)
            success = ((away < 0.04) & (closed > 0)).float()
            # Closing early is punished, so that the gripper must change at the right moment.
            reward = torch.where(success > 0, 1.0, 0.8 - away - 0.2 * closed) + self.noise * self.draw(state, 0, ())
            rewards.append(reward * float("nan") if self.broken else reward)
            successes.append(success)
            proprios.append(torch.cat([position, closed[:, None]], -1))
        reward = torch.stack(rewards, 1)
        return PointRollout(
            reward, torch.stack(successes, 1), torch.zeros_like(reward), torch.stack(proprios, 1), state
        )

    def act(self, state: PointState, steps: Any = None) -> Tensor:
        """Towards the goal, turned by an angle drawn from the seed."""
        away = GOAL - state.position
        angle = self.aim * self.draw(state, 1, ())
        cos, sin = angle.cos(), angle.sin()
        turned = torch.stack([cos * away[:, 0] - sin * away[:, 1], sin * away[:, 0] + cos * away[:, 1]], -1)
        move = (turned / 2).clamp(-0.1, 0.1)
        grip = torch.where(away.norm(dim=-1) < 0.1, 1.0, -1.0)
        return torch.cat([move, grip[:, None]], -1)[:, None].expand(-1, self.chunk_length, -1).clone()


def observation(x: float = 0.0, y: float = 0.0) -> Observation:
    image = np.zeros((8, 8, 3), np.uint8)
    return Observation({"top": image}, np.array([x, y, 0], np.float32), SPEC.instruction)


def start(model: PointWorld, seed: int = 0) -> PointState:
    return model.observe([observation()], seeds=[seed])


def optimum(horizon: int) -> tuple[np.ndarray, float]:
    """Straight to the goal with full steps on each axis, closing on arrival: no plan can be better."""
    position, actions = np.zeros(2), []
    while len(actions) < horizon:
        move = np.clip(GOAL.numpy() - position, -0.1, 0.1)
        position = position + move
        actions.append([*move, 1.0 if np.linalg.norm(GOAL.numpy() - position) < 0.04 else -1.0])
    model = PointWorld()
    plan = np.array(actions, np.float32)
    return plan, float(Objective()(model.imagine(start(model), plan[None]))[0])
