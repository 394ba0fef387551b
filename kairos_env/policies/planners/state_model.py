"""The control beside the video model: small networks on the true state, behind the same verbs.

A planner that fails in the video world model may fail because of the planner, the reward, the data or the
model. This model shares planner, reward signal and data, and sees the true state (gripper, object, goal)
instead of pixels: if planning works here and not there, the gap is the video model.

It is an ensemble of small networks that predict the next state's difference. Every member imagines a
future of its own, and rewards are averaged over them: a plan that only one member believes in, as
optimisers love to find, scores little. Their disagreement is the uncertainty. Reward and success of every
task come from one more small network on the predicted state.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.runs import write_bytes

POSITION = ("eef_x", "eef_y", "eef_z")  # proprioception fields that the object's position is compared with
FILE_NAME = "state_model.safetensors"
CONTACT = 0.02  # scale [m] on which touching or not touching is decided


@dataclass(frozen=True)
class StateModelConfig:
    """Sizes of a `StateModel`: width of the hidden layers, members of the ensemble."""

    width: int = 160
    members: int = 4
    reward_width: int = 64


@dataclass(frozen=True)
class TrueState:
    """The state of the state model: a value of B elements, all float32 in physical units.

    Each of the E ensemble members holds its own opinion of where everything is.

    Args:
        particles: (B, E, P + 3), proprioception and object position.
        motion: (B, E, P + 3), how they changed in the last step.
        goal_position: (B, 3), in the frame of the gripper's position.
        task: (B,) int64, index into the model's tasks.
        reward, success: (B,) of this state; success is a probability.
    """

    particles: Tensor
    motion: Tensor
    goal_position: Tensor
    task: Tensor
    reward: Tensor
    success: Tensor

    @property
    def proprio(self) -> Tensor:
        """(B, P), the members' mean."""
        return self.particles.mean(1)[:, :-3]

    @property
    def object_position(self) -> Tensor:
        """(B, 3), the members' mean."""
        return self.particles.mean(1)[:, -3:]

    @property
    def batch_size(self) -> int:
        return len(self.task)

    def _map(self, function: Callable[[Tensor], Tensor]) -> TrueState:
        return TrueState(**{f.name: function(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def fork(self, count: int) -> TrueState:
        """Each element ``count`` times, element-major."""
        return self._map(lambda value: value.repeat_interleave(count, 0))

    def select(self, indices: Any) -> TrueState:
        index = torch.as_tensor(indices, dtype=torch.long)
        return self._map(lambda value: value[index])

    def reseed(self, seeds: Sequence[int]) -> TrueState:
        """Itself: this model has no noise."""
        return self

    @classmethod
    def cat(cls, states: Sequence[TrueState]) -> TrueState:
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: torch.cat([getattr(s, name) for s in states]) for name in names})


@dataclass(frozen=True)
class StateStep:
    """One predicted step: the next state, its reward and success (B,), proprio (B, P).

    ``uncertainty`` (B,) is the standard deviation of the members' rewards.
    """

    state: TrueState
    reward: Tensor
    success: Tensor
    uncertainty: Tensor
    proprio: Tensor


@dataclass(frozen=True)
class StateRollout:
    """Predicted steps (B, Hor, ...) and the state after the last."""

    reward: Tensor
    success: Tensor
    uncertainty: Tensor
    proprio: Tensor
    object_position: Tensor
    state: TrueState


class _EnsembleLinear(nn.Module):
    """One linear layer of all members at once: (E, B, in) -> (E, B, out)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class StateModel(nn.Module):
    """Dynamics and rewards on the true state, with the verbs of the world model.

    Args:
        spec: the robot; its proprioception must hold the fields of `POSITION`.
        tasks: task -> instruction; an observation's instruction says which task is rewarded.
    """

    def __init__(self, spec: RobotSpec, tasks: Mapping[str, str], config: StateModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or StateModelConfig()
        self.spec, self.tasks = spec, dict(tasks)
        names = [f.name for f in spec.proprio]
        missing = [name for name in POSITION if name not in names]
        if missing:
            raise ValueError(f"the state model needs the proprioception fields {POSITION}; {spec.name!r} has {names}")
        self._position = [names.index(name) for name in POSITION]
        self._moves = [i for i, f in enumerate(spec.action) if f.kind == "delta_position"]
        if len(self._moves) != 3:
            raise ValueError(
                f"the state model needs three delta_position actions; {spec.name!r} has {len(self._moves)}"
            )
        self._source: Callable[[], Sequence[Mapping[str, Array]]] | None = None

        size = spec.proprio_dim + 3  # what moves: proprioception and object
        inputs = 2 * size + 4 * 3 + spec.action_dim
        width, members = self.config.width, self.config.members
        self.dynamics = nn.Sequential(
            _EnsembleLinear(members, inputs, width),
            nn.SiLU(),
            _EnsembleLinear(members, width, width),
            nn.SiLU(),
            _EnsembleLinear(members, width, size),
        )
        judged = spec.proprio_dim + 3 + 3 + 3 + 2
        self.judge = nn.Sequential(
            nn.Linear(judged, self.config.reward_width),
            nn.SiLU(),
            nn.Linear(self.config.reward_width, self.config.reward_width),
            nn.SiLU(),
            nn.Linear(self.config.reward_width, 2 * len(self.tasks)),
        )
        # Statistics travel with the weights.
        for name, length in (("input", inputs), ("judged", judged)):
            self.register_buffer(f"{name}_mean", torch.zeros(length))
            self.register_buffer(f"{name}_std", torch.ones(length))
        self.register_buffer("change_std", torch.ones(size))

    # ---- features, shared with training

    def dynamics_input(self, now: Tensor, motion: Tensor, action: Tensor) -> Tensor:
        """(..., P + 3), (..., P + 3), (..., A), physical -> normalised input (..., I) of the dynamics."""
        relative = now[..., -3:] - now[..., self._position]
        commanded = relative - action[..., self._moves]  # where the object would be, seen from the target
        # A network that sees centimetres in units of the whole table learns contact too softly, and a planner
        # finds out: it presses the fingers through the object. These features have the scale of contact.
        contact = [torch.tanh(relative / CONTACT), torch.tanh(commanded / CONTACT)]
        raw = torch.cat([now, relative, commanded, *contact, motion, action], -1)
        return (raw - self.get_buffer("input_mean")) / self.get_buffer("input_std")

    def judged_input(self, now: Tensor, goal: Tensor) -> Tensor:
        """(..., P + 3), (..., 3), physical -> normalised features (..., J) of rewards: offsets and distances."""
        reach = now[..., -3:] - now[..., self._position]
        push = goal - now[..., -3:]
        distances = torch.stack([reach.norm(dim=-1), push[..., :2].norm(dim=-1)], -1)
        raw = torch.cat([now, reach, push, distances], -1)
        return (raw - self.get_buffer("judged_mean")) / self.get_buffer("judged_std")

    def judge_all(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (..., J) -> logits of reward and of success, (..., tasks) each."""
        reward, success = self.judge(features).chunk(2, -1)
        return reward, success

    # ---- verbs

    def reading(self, *envs: Any) -> StateModel:
        """This model, reading object and goal from running environments, one per batch element.

        A copy of it, so that others keep reading from theirs. An environment has its true state as
        ``env.unwrapped.state`` with ``cube`` and ``goal`` (3,).
        """
        for env in envs:
            if not hasattr(env.unwrapped, "state"):
                raise TypeError(f"{type(env.unwrapped).__name__} does not tell its true state (state.cube, state.goal)")

        def read() -> list[Mapping[str, Any]]:
            states = [env.unwrapped.state for env in envs]
            return [{"objects": {"cube": {"position": s.cube}, "goal": {"position": s.goal}}} for s in states]

        attached = StateModel(self.spec, self.tasks, self.config)
        attached.load_state_dict(self.state_dict())
        attached._source = read
        return attached.eval()

    @torch.inference_mode()
    def observe(
        self,
        observation: Observation | Sequence[Observation],
        state: TrueState | None = None,
        action: Any = None,
        seeds: Sequence[int] | None = None,
        privileged: Sequence[Mapping[str, Any]] | None = None,
    ) -> TrueState:
        """Real observations (B of them) -> state.

        Args:
            observation: B of them; proprioception and instruction are read, images are not.
            state: the state before, for the motion since then.
            action: not needed.
            seeds: not needed.
            privileged: ``info["privileged"]`` of each element: positions of ``cube`` and ``goal``; by default read
                from the environments given to `reading`.
        """
        observations = [observation] if isinstance(observation, Observation) else list(observation)
        if privileged is None:
            if self._source is None:
                raise ValueError(
                    "the state model cannot see: pass privileged=[info['privileged']], or plan with model.reading(env)"
                )
            privileged = self._source()
        if len(privileged) != len(observations):
            raise ValueError(f"got {len(observations)} observations and {len(privileged)} true states")
        instructions = {text: i for i, text in enumerate(self.tasks.values())}
        unknown = [o.instruction for o in observations if o.instruction not in instructions]
        if unknown:
            raise ValueError(f"the state model knows no task {unknown[0]!r}; it knows {list(instructions)}")

        def stacked(values: list[Any]) -> Tensor:
            return torch.from_numpy(np.stack(values).astype(np.float32))

        proprio = stacked([o.proprio for o in observations])
        now = torch.cat([proprio, stacked([p["objects"]["cube"]["position"] for p in privileged])], -1)
        goal = stacked([p["objects"]["goal"]["position"] for p in privileged])
        task = torch.tensor([instructions[o.instruction] for o in observations])
        motion = torch.zeros_like(now)
        if state is not None:
            motion = now - torch.cat([state.proprio, state.object_position], -1)
        members = self.config.members
        return self._judged(now[:, None].repeat(1, members, 1), motion[:, None].repeat(1, members, 1), goal, task).state

    @torch.inference_mode()
    def step(self, state: TrueState, action: Any, steps: int | None = None) -> StateStep:
        """Actions (B, A), physical units -> the predicted next step; ``steps`` has no meaning here."""
        action = torch.as_tensor(self.spec.check_action(action))
        if len(action) != state.batch_size:
            raise ValueError(f"got {len(action)} actions for {state.batch_size} states")
        each = action[:, None].expand(-1, self.config.members, -1)
        x = self.dynamics_input(state.particles, state.motion, each)  # (B, E, I)
        motion = self.dynamics(x.transpose(0, 1)).transpose(0, 1) * self.get_buffer("change_std")
        return self._judged(state.particles + motion, motion, state.goal_position, state.task)

    @torch.inference_mode()
    def imagine(self, state: TrueState, actions: Any, steps: int | None = None) -> StateRollout:
        """Actions (B, Hor, A), physical units -> the predicted future."""
        taken = []
        for t in range(np.shape(actions)[1]):
            taken.append(self.step(state, actions[:, t]))
            state = taken[-1].state

        def along(name: str) -> Tensor:
            return torch.stack([getattr(s, name) for s in taken], 1)

        objects = torch.stack([s.state.object_position for s in taken], 1)
        return StateRollout(along("reward"), along("success"), along("uncertainty"), along("proprio"), objects, state)

    def _judged(self, particles: Tensor, motion: Tensor, goal: Tensor, task: Tensor) -> StateStep:
        """Particles (B, E, P + 3) -> the state there, judged for its task by the members' mean."""
        logits = self.judge_all(self.judged_input(particles, goal[:, None].expand(-1, particles.shape[1], -1)))
        mine = task[:, None, None].expand(-1, particles.shape[1], 1)
        reward, success = (torch.sigmoid(value).gather(2, mine)[..., 0] for value in logits)  # (B, E)
        state = TrueState(particles, motion, goal, task, reward.mean(1), success.mean(1))
        return StateStep(state, state.reward, state.success, reward.std(1, correction=0), state.proprio)

    # ---- files

    def save(self, folder: str | Path) -> Path:
        """Writes ``folder/state_model.safetensors`` atomically and returns its path."""
        path = Path(folder) / FILE_NAME
        metadata = {
            "spec": json.dumps(self.spec.to_dict()),
            "tasks": json.dumps(self.tasks),
            "config": json.dumps(dataclasses.asdict(self.config)),
        }
        write_bytes(path, save({k: v.contiguous() for k, v in self.state_dict().items()}, metadata))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> StateModel:
        """Reads what `save` wrote; the name ``"state-model"`` is the bundled one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated, of another kind, or of other sizes.
        """
        if str(folder) == "state-model":
            folder = Path(__file__).parents[2] / "pretrained" / "state-model"
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no state model at {path}; make one with: kairos eval state-model")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights = {key: file.get_tensor(key) for key in file.keys()}
            model = cls(
                RobotSpec.from_dict(json.loads(metadata["spec"])),
                json.loads(metadata["tasks"]),
                StateModelConfig(**json.loads(metadata["config"])),
            )
            model.load_state_dict(weights)
        except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a state model (truncated, or another kind of file): {error}") from None
        return model.eval()


def reward_loss(reward: Tensor, success: Tensor, rewards: Tensor, successes: Tensor) -> Tensor:
    """Cross entropy of logits (B, tasks) with rewards in [0, 1] and successes in {0, 1}, both (B, tasks)."""
    return functional.binary_cross_entropy_with_logits(reward, rewards) + functional.binary_cross_entropy_with_logits(
        success, successes
    )
