"""Two models for the tests of environments.

`CountingModel` only counts: every value it returns says which episode and which step it belongs to.
Bookkeeping (autoreset, masks, final observations, branches) is tested on it, because a mix-up shows as a
wrong number. `shaken_model` is the real thing with random weights, where the numbers themselves matter.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kairos_env.records import Camera, Field, Observation, RobotSpec
from kairos_env.sims.tabletop.env import TASKS as TABLETOP_TASKS
from kairos_env.sims.tabletop.env import make_spec
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import StepOutput, WorldModel

SPEC = RobotSpec(
    name="counter",
    cameras=(Camera("scene", 36, 36),),
    proprio=(Field("frames", 0.0, 100.0, ""), Field("moved", -100.0, 100.0, "m")),
    action=(Field("dx", -0.5, 0.5, "m", "delta_position"), Field("grip", -1.0, 1.0, "", "gripper")),
    control_rate_hz=5.0,
    instruction="count",
)
TASKS = {"count": "count", "wait": "do nothing"}


def observation(moved: float = 0.0, spec: RobotSpec = SPEC) -> Observation:
    images = {c.name: np.full((c.height, c.width, 3), 7, np.uint8) for c in spec.cameras}
    return Observation(images, np.array([1.0, moved], np.float32))


STARTS = tuple(observation(float(i)) for i in range(10))


@dataclasses.dataclass(frozen=True)
class CountingState:
    """Frames so far, seed and summed dx of each episode; everything else follows."""

    past: Tensor
    seed: Tensor
    moved: Tensor
    before: None = None

    @property
    def batch_size(self) -> int:
        return len(self.past)

    @property
    def latent(self) -> Tensor:
        """(B, 2, 3, 3): frames / 100, and a digest of the seed."""
        values = torch.stack([self.past / 100, (self.seed % 97) / 97], 1).float()
        return values[:, :, None, None].expand(-1, -1, 3, 3).clone()

    @property
    def proprio(self) -> Tensor:
        return torch.stack([self.past.float(), self.moved], 1)

    @property
    def objects(self) -> Tensor:
        return self.proprio[:, None, :1].expand(-1, 1, 3)

    @property
    def errors(self) -> Tensor:
        return self.past[:, None] / 10

    @property
    def reward(self) -> Tensor:
        return self.past.float() + self.moved

    @property
    def success(self) -> Tensor:
        """Episodes last 2 ... 6 decisions, depending on their seed."""
        return (self.past >= 3 + self.seed % 5).float()

    def select(self, indices: Sequence[int]) -> CountingState:
        index = torch.as_tensor(indices)
        return CountingState(self.past[index], self.seed[index], self.moved[index])

    def fork(self, copies: int) -> CountingState:
        return self.select(torch.arange(self.batch_size).repeat_interleave(copies).tolist())

    @staticmethod
    def cat(states: Sequence[CountingState]) -> CountingState:
        return CountingState(*(torch.cat([getattr(s, f) for s in states]) for f in ("past", "seed", "moved")))


class CountingModel:
    """The verbs of `WorldModel`, counted in ``calls``.

    Args:
        breaks_at: number of frames from which every value is NaN.
    """

    def __init__(self, starts: Sequence[Observation] = STARTS, breaks_at: int | None = None) -> None:
        self.spec = self.imagined_spec = SPEC
        self.tasks, self.starts, self.follows_actions = TASKS, tuple(starts), True
        self.device = torch.device("cpu")
        self.latent_shape = (2, 3, 3)
        self.error_names, self.horizons, self.released = ("picture",), dict[str, int](), False
        self.untrained: tuple[str, ...] = ()
        self.objects, self.feature_names = ("thing",), ("x", "y", "thing.x", "thing.y", "thing.z")
        self.breaks_at = breaks_at
        self.calls: Counter[str] = Counter()
        self.instructions: list[str] = []

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What tells it from another."""
        return {"breaks_at": torch.tensor([-1 if self.breaks_at is None else self.breaks_at])}

    def observe(self, observations: Sequence[Observation], seeds: Sequence[int]) -> CountingState:
        self.calls["observe"] += 1
        self.instructions = [o.instruction for o in observations]
        moved = torch.tensor([float(o.check(SPEC).proprio[1]) for o in observations])
        return CountingState(torch.ones(len(moved), dtype=torch.int64), torch.as_tensor(seeds), moved)

    def step(self, state: CountingState, action: Any, steps: int | None = None) -> StepOutput:
        self.calls["step"] += 1
        new = CountingState(state.past + 1, state.seed, state.moved + torch.as_tensor(SPEC.check_action(action))[:, 0])
        broken = new.past >= (self.breaks_at or 10**9)
        latent = new.latent.masked_fill(broken[:, None, None, None], torch.nan)
        read = new.reward, new.success, new.past / 10, new.objects, new.errors
        return StepOutput(new, latent, new.proprio, *read)  # type: ignore[arg-type]

    def features(self, proprio: Tensor, objects: Tensor) -> Tensor:
        return torch.cat([proprio, objects.flatten(-2)], -1).clamp(-10, 10)

    def decode(self, latent: Tensor, before: None = None) -> dict[str, np.ndarray]:
        self.calls["decode"] += 1
        frames = (latent[:, 0, 0, 0] * 100).round().to(torch.uint8).numpy()
        return {"scene": np.broadcast_to(frames[:, None, None, None], (len(frames), 36, 36, 3)).copy()}

    def encode(self, observations: Sequence[Observation]) -> Tensor:
        self.calls["encode"] += 1
        return torch.stack([torch.full((2, 3, 3), float(o.images["scene"].mean())) for o in observations])


def shaken_model() -> WorldModel:
    """The real architecture, small, with random starts, and with noise on every weight: fresh models start
    from zeroed output layers, so that neither actions nor seeds would matter."""
    torch.manual_seed(0)
    spec = make_spec()
    config = dataclasses.replace(get_preset("debug"), objects=("object", "goal"))
    model = WorldModel(config, spec, TABLETOP_TASKS).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    space = spec.observation_space
    space.seed(0)
    model.starts = tuple(Observation.from_gym(space.sample(), "recorded for something else") for _ in range(5))
    return model
