"""The records that every layer shares: what a robot is, what it saw, what it does.

Letters used in the whole repository
    B batch, F latent frames, L tokens per latent frame, T tokens or time steps,
    D model width, H heads (image height where it stands beside a width), K key width,
    V value width, C latent channels, A action dimension, N action-chunk length,
    P proprioception dimension, W attention window in frames (one side).

At these boundaries images are uint8 ``(H, W, 3)`` RGB, proprioception and actions are float32 in
physical units. Normalised values exist only inside the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ActionKind = Literal["delta_position", "delta_rotation", "joint_position", "gripper", "other"]


class SpecMismatch(ValueError):
    """Two robots were connected whose descriptions differ."""


@dataclass(frozen=True)
class Camera:
    """One camera: its name and the size of its uint8 RGB image in pixels."""

    name: str
    height: int
    width: int

    @property
    def key(self) -> str:
        """The observation key of this camera's image, for example ``image_scene``."""
        return f"image_{self.name}"


@dataclass(frozen=True)
class Field:
    """One scalar of the proprioception or action vector, with its physical range.

    ``frame`` names the coordinate frame of a Cartesian value (``"world"``, ``"base"``) or is empty.
    """

    name: str
    low: float
    high: float
    unit: str
    kind: str = "other"
    frame: str = ""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"field {self.name!r} needs finite low < high, got {self.low} and {self.high}")


@dataclass(frozen=True)
class RobotSpec:
    """The one description that simulator, dataset, model and policy share.

    Gymnasium spaces are derived from it and written nowhere else.

    Args:
        name: embodiment, for example ``"panda-tabletop"``.
        cameras: in the order in which the model sees them.
        proprio: scalar fields of the proprioception vector, in order.
        action: scalar fields of the action vector, in order.
        control_rate_hz: decisions per second (one action, one observation each).
        instruction: the default task instruction.
    """

    name: str
    cameras: tuple[Camera, ...]
    proprio: tuple[Field, ...]
    action: tuple[Field, ...]
    control_rate_hz: float
    instruction: str = ""

    @property
    def action_dim(self) -> int:
        return len(self.action)

    @property
    def proprio_dim(self) -> int:
        return len(self.proprio)

    @property
    def hand_fields(self) -> list[int]:
        """Indices in the proprioception of the x, y and z of the hand; empty if it does not hold them."""
        found = [index for index, field in enumerate(self.proprio) if field.kind == "position"]
        return found if len(found) == 3 else []

    @property
    def gripper_field(self) -> int | None:
        """Index in the proprioception of how far the gripper is open; None if there is no gripper, or several."""
        found = [index for index, field in enumerate(self.proprio) if field.kind == "gripper"]
        return found[0] if len(found) == 1 else None

    @property
    def action_low(self) -> Array:
        """(A,) float32, physical units."""
        return np.array([f.low for f in self.action], np.float32)

    @property
    def action_high(self) -> Array:
        """(A,) float32, physical units."""
        return np.array([f.high for f in self.action], np.float32)

    @property
    def action_space(self) -> gym.spaces.Box:
        return gym.spaces.Box(self.action_low, self.action_high, dtype=np.float32)

    @property
    def observation_space(self) -> gym.spaces.Dict:
        """``image_<camera>`` uint8 (H, W, 3) for each camera, and ``proprio`` float32 (P,)."""
        spaces: dict[str, gym.Space[Any]] = {
            c.key: gym.spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for c in self.cameras
        }
        low = np.array([f.low for f in self.proprio], np.float32)
        high = np.array([f.high for f in self.proprio], np.float32)
        spaces["proprio"] = gym.spaces.Box(low, high, dtype=np.float32)
        return gym.spaces.Dict(spaces)

    def clip_proprio(self, proprio: Array) -> Array:
        """Clips (..., P) to the declared range, so that an observation is always inside its space."""
        low = np.array([f.low for f in self.proprio], np.float32)
        high = np.array([f.high for f in self.proprio], np.float32)
        return np.clip(np.asarray(proprio, np.float32), low, high)

    def check_action(self, action: Any) -> Array:
        """Returns ``action`` as float32 (..., A), clipped to its range.

        Raises:
            ValueError: wrong last dimension, not numeric, or not finite. Nothing is ever sent to a
                robot after that.
        """
        try:
            array = np.asarray(action)
            if array.dtype.kind in "cSUV":
                raise ValueError(f"got {array.dtype}")
            array = array.astype(np.float32)
        except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor that has a gradient
            raise ValueError(f"action must be numeric with shape (..., {self.action_dim}): {error}") from None
        if array.ndim == 0 or array.shape[-1] != self.action_dim:
            names = ", ".join(f.name for f in self.action)
            raise ValueError(
                f"action has shape {array.shape}, but {self.name!r} takes (..., {self.action_dim}): {names}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"action holds a non-finite value: {array.tolist()}")
        return np.clip(array, self.action_low, self.action_high)

    def diff(self, other: RobotSpec) -> list[str]:
        """Differences between two robots, one readable line each; empty if they can be connected.

        The default instruction and the name are labels and do not count.
        """
        lines = []
        for what in ("cameras", "proprio", "action"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if [f.name for f in mine] != [f.name for f in theirs]:
                lines.append(f"{what}: {[f.name for f in mine]} != {[f.name for f in theirs]}")
                continue
            lines += [f"{what}: {a} != {b}" for a, b in zip(mine, theirs, strict=True) if a != b]
        if self.control_rate_hz != other.control_rate_hz:
            lines.append(f"control_rate_hz: {self.control_rate_hz} != {other.control_rate_hz}")
        return lines

    def require_same(self, other: RobotSpec, mine: str = "model", theirs: str = "environment") -> None:
        """Raises `SpecMismatch` that lists every difference."""
        lines = self.diff(other)
        if lines:
            raise SpecMismatch(
                f"the {mine} ({self.name}) and the {theirs} ({other.name}) describe different robots "
                f"({mine} != {theirs}):\n  " + "\n  ".join(lines)
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RobotSpec:
        return cls(
            name=data["name"],
            cameras=tuple(Camera(**c) for c in data["cameras"]),
            proprio=tuple(Field(**f) for f in data["proprio"]),
            action=tuple(Field(**f) for f in data["action"]),
            control_rate_hz=data["control_rate_hz"],
            instruction=data.get("instruction", ""),
        )


@dataclass(frozen=True)
class Observation:
    """The knowledge of a robot at one decision.

    Args:
        images: camera name -> uint8 (H, W, 3).
        proprio: float32 (P,), physical units.
        instruction: the task in words.
    """

    images: Mapping[str, Array]
    proprio: Array
    instruction: str = ""

    def to_gym(self) -> dict[str, Array]:
        """The dict of `RobotSpec.observation_space` (the instruction travels in ``info``)."""
        return {f"image_{name}": image for name, image in self.images.items()} | {"proprio": self.proprio}

    @classmethod
    def from_gym(cls, observation: Mapping[str, Array], instruction: str = "") -> Observation:
        """The observation that a Gymnasium environment of a robot returned.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(observation, Mapping) or "proprio" not in observation:
            have = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise ValueError(f"an observation is a dict with 'proprio' and an 'image_<camera>' for each, got {have}")
        images = {k.removeprefix("image_"): v for k, v in observation.items() if k.startswith("image_")}
        return cls(images, np.asarray(observation["proprio"], np.float32), instruction)

    def check(self, spec: RobotSpec) -> Observation:
        """Returns itself, or raises `SpecMismatch` / ValueError saying what was given and what is legal."""
        want = {c.name: (c.height, c.width, 3) for c in spec.cameras}
        have = {name: np.shape(image) for name, image in self.images.items()}
        if have != want:
            raise SpecMismatch(
                f"observation has cameras {have}, but {spec.name!r} needs {want} (uint8, height x width x RGB)"
            )
        for name, image in self.images.items():
            if np.asarray(image).dtype != np.uint8:
                raise ValueError(f"image {name!r} is {np.asarray(image).dtype}, expected uint8 in 0..255")
        if np.shape(self.proprio) != (spec.proprio_dim,):
            names = ", ".join(f.name for f in spec.proprio)
            raise SpecMismatch(
                f"proprio has shape {np.shape(self.proprio)}, but {spec.name!r} needs ({spec.proprio_dim},): {names}"
            )
        if not np.isfinite(self.proprio).all():
            raise ValueError(f"proprio holds a non-finite value: {np.asarray(self.proprio).tolist()}")
        return self


def check_observation(observation: object, spec: RobotSpec) -> None:
    """Raises ValueError unless it is an `Observation` of this robot, see `Observation.check`."""
    if not isinstance(observation, Observation):
        raise ValueError(
            f"a model observes an Observation, got {type(observation).__name__}; Observation.from_gym makes one of "
            "what an environment returns"
        )
    observation.check(spec)


@dataclass(frozen=True)
class ActionChunk:
    """N consecutive actions proposed at one decision: float32 (N, A), physical units."""

    actions: Array

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Episode:
    """A recorded episode of T decisions, hence T + 1 observations.

    Args:
        images: camera name -> uint8 (T + 1, H, W, 3); a camera that was not there is left out.
        proprio: float32 (T + 1, P).
        actions: float32 (T, A), physical units, as executed.
        rewards: float32 (T,), of the episode's own task, after each action.
        success: bool (T,), the simulator's own predicate after each action.
        task, instruction: what the robot was asked to do.
        caption: what happens, in detail; empty where nobody wrote it down.
        source: who acted (``"expert"``, ``"random"``, ``"noisy_expert"``, a policy's name).
        seed, initial_state, condition: reproduce the start; ``condition`` is empty where the simulator has none.
        labels: privileged or hindsight arrays with leading T or T + 1, absent in most datasets. The
            simulator recorder writes ``object_position`` (T + 1, 3), ``goal_position`` (T + 1, 3) and, for
            every task of ``label_tasks``, ``task_rewards`` (T, tasks), ``task_success`` (T, tasks) and
            ``expert_actions`` (T + 1, tasks, A), which may also be there alone.
        label_tasks: task names of the task axis of ``labels``.
        outcome_known: False if nobody recorded reward and success; both are then zero and nothing learns from them.
        proprio_mask, action_mask: bool (P,) and (A,), False for fields that the recorded robot does not have and that
            only stand for another's; None: it has all of them.
        latents: camera name -> float16 (T + 1, C, h, w), normalised: what a model's tokenizer made of the pictures. An
            episode of a cache of latents has them instead of ``images``.
        encoder: `WorldModel.encoder_sha256` of the model that made ``latents``, the only one that can read them.
    """

    images: Mapping[str, Array]
    proprio: Array
    actions: Array
    rewards: Array
    success: Array
    task: str = ""
    instruction: str = ""
    source: str = ""
    seed: int = -1
    initial_state: int = -1
    condition: str = ""
    labels: Mapping[str, Array] = field(default_factory=dict)
    label_tasks: Sequence[str] = ()
    proprio_mask: Array | None = None
    action_mask: Array | None = None
    outcome_known: bool = True
    latents: Mapping[str, Array] = field(default_factory=dict)
    encoder: str = ""
    caption: str = ""

    def __len__(self) -> int:
        """Number of decisions T."""
        return len(self.actions)

    @property
    def acts(self) -> bool:
        """Whether its actions are known; those of a film, or of a robot that shares no field, are all masked."""
        return self.action_mask is None or bool(np.any(self.action_mask))

    @property
    def cameras(self) -> frozenset[str]:
        """Names of the cameras that were there, whether their pictures or only their latents are."""
        return frozenset(self.images) | frozenset(self.latents)

    def __post_init__(self) -> None:
        steps = len(self.actions)
        lengths = {"proprio": len(self.proprio)} | {f"images[{k}]": len(v) for k, v in self.images.items()}
        lengths |= {f"latents[{k}]": len(v) for k, v in self.latents.items()}
        wrong = {k: n for k, n in lengths.items() if n != steps + 1}
        wrong |= {k: len(getattr(self, k)) for k in ("rewards", "success") if len(getattr(self, k)) != steps}
        wrong |= {f"labels[{k}]": len(v) for k, v in self.labels.items() if len(v) not in (steps, steps + 1)}
        if wrong:
            raise ValueError(
                f"episode with {steps} actions needs {steps + 1} observations and {steps} rewards; got {wrong}"
            )

    def observation(self, step: int) -> Observation:
        """The observation before action ``step`` (0 ... T)."""
        return Observation({k: v[step] for k, v in self.images.items()}, self.proprio[step], self.instruction)


def stored_initial_state(attributes: Mapping[str, Any]) -> int:
    """The initial state that a file's ``attributes`` name; older files call it ``initial_state_id``. -1: none."""
    return int(attributes.get("initial_state", attributes.get("initial_state_id", -1)))
