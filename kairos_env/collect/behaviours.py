"""Behaviours that act while data are recorded: scripted experts, clean and disturbed, random play, and any policy.

Good data for a world model are varied: success and failure, contact from every side, recovery after a
disturbance, and what comes after success. Random play reads the true state from ``info`` and moves any robot whose
action displaces its hand; experts need a simulator with ``expert_action(task)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from kairos_env.policies.make import NAMES, make_policy, parse_name
from kairos_env.policies.policy import Policy, begin, follow
from kairos_env.records import Array, Field, Observation, RobotSpec
from kairos_env.runs import did_you_mean

_LARGEST_WORKSPACE = 1.0  # m; a wider range of the hand's position says nothing about where it can work
_AROUND = 0.2  # m; random play then stays this close to where the hand began
_SHAKEN = {"delta_position": 1.0, "delta_rotation": 0.1}  # a turn of the hand disturbs far more than a shift
_DISTURBED = "disturbed_"


class Behaviour(Protocol):
    """Chooses the actions of one episode."""

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        """(A,) float32 in physical units, for the state that ``info`` describes."""
        ...

    def follow(self, observation: Observation, action: Array) -> None:
        """Tells what is really executed."""


class _Forgetful:
    """Reads the true state, so that what was executed before does not matter."""

    def follow(self, observation: Observation, action: Array) -> None:
        pass


class Expert(_Forgetful):
    """The scripted expert of the episode's task, without noise."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        if not hasattr(env, "expert_action"):
            raise ValueError(f"{type(env).__name__} has no scripted expert: choose another behaviour")
        self.env, self.task, self.rng = env, task, rng

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        """(A,) float32 for the state that ``info`` describes."""
        return np.asarray(self.env.expert_action(self.task), np.float32)


class Wander(_Forgetful):
    """Smooth random play: straight, noisy moves to random way-points, the gripper held for a while.

    Way-points lie anywhere in the workspace, or near the object where the interesting things happen.
    """

    def __init__(self, env: Any, task: str, rng: np.random.Generator, near_object: bool = False) -> None:
        self.spec, self.rng, self.near_object = env.robot_spec, rng, near_object
        self.moves, self.metres, self.gripper_index = _hand(self.spec)
        self.limit = self.spec.action_high[self.moves] * self.metres
        self.workspace: tuple[Array, Array] | None = None
        self.waypoint: Array = np.zeros(3)
        self.gripper, self.pace, self.left = 0.0, 1.0, 0

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        eef = np.asarray(info["privileged"]["eef_position"], float)
        if self.workspace is None:
            self.workspace = _workspace(self.spec, eef)
        if self.left == 0 or np.linalg.norm(self.waypoint - eef) < 0.01:
            self._choose(info["privileged"])
        self.left -= 1
        delta = self.waypoint - eef
        # one step of at most `pace` times the limit along the straight line, not clipped axis by axis
        delta *= min(1.0, self.pace / max(1e-6, float(np.max(np.abs(delta) / self.limit))))
        move = delta + self.rng.normal(0, 0.15, 3) * self.limit
        action = np.zeros(self.spec.action_dim, np.float32)
        action[self.moves] = move / self.metres
        if self.gripper_index is not None:
            action[self.gripper_index] = self.gripper
        return self.spec.check_action(action)

    def _choose(self, privileged: Mapping[str, Any]) -> None:
        assert self.workspace is not None, "set by the first act"
        low, high = self.workspace
        self.waypoint = self.rng.uniform(low, high)
        if self.near_object:
            wanted = np.asarray(privileged["objects"][privileged["interest"][0]]["position"])
            self.waypoint = np.clip(wanted + self.rng.normal(0, [0.06, 0.06, 0.03]), low, high)
        closed, opened = (-1.0, 1.0)
        if self.gripper_index is not None:
            field = self.spec.action[self.gripper_index]
            closed, opened = field.low, field.high
        self.gripper = float(self.rng.choice([closed, opened, self.rng.uniform(closed, opened)]))
        self.pace = self.rng.uniform(0.4, 1.0)
        self.left = int(self.rng.integers(3, 8))


class Attracted(Wander):
    """Random play around the object: pushes it, grasps it by chance, knocks it away."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        super().__init__(env, task, rng, near_object=True)


class NoisyExpert(Expert):
    """The expert with correlated noise, disturbed by bursts of random play from which it recovers.

    After success has been held for a while it does something else, so that the data also show how a
    finished task is undone and begun again.
    """

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        super().__init__(env, task, rng)
        self.scale = rng.uniform(0.03, 0.4)
        self.noise: Array = np.zeros(3)
        self.burst, self.patience = 0, int(rng.integers(2, 9))
        self.play = Wander(env, task, rng)

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        solved = info.get("task_success", {self.task: info["success"]})
        if solved[self.task]:
            self.patience -= 1
            if self.patience == 0:
                self.task, self.burst = str(self.rng.choice(list(solved))), int(self.rng.integers(2, 6))
                self.patience = int(self.rng.integers(2, 9))
        elif self.burst == 0 and self.rng.random() < 0.035:
            self.burst = int(self.rng.integers(1, 5))
        if self.burst > 0:
            self.burst -= 1
            return self.play.act(observation, info)
        spec, moves, gripper = self.play.spec, self.play.moves, self.play.gripper_index
        action = np.array(super().act(observation, info), np.float32)
        self.noise = 0.6 * self.noise + 0.8 * self.rng.normal(0, self.scale, 3)
        action[moves] += self.noise * spec.action_high[moves]
        if self.rng.random() < 0.02 and gripper is not None:
            action[gripper] = spec.action_low[gripper] + spec.action_high[gripper] - action[gripper]
        return spec.check_action(action)


class Beside(Wander):
    """Random play in contact: through the cube from any side, onto it, to and fro beside it, mostly closed.

    These are the places in which policies stall.
    """

    def _choose(self, privileged: Mapping[str, Any]) -> None:
        super()._choose(privileged)
        assert self.workspace is not None, "set by the first act"
        wanted = np.asarray(privileged["objects"][privileged["interest"][0]]["position"], float)
        eef = np.asarray(privileged["eef_position"], float)
        angle, radius = self.rng.uniform(-np.pi, np.pi), self.rng.uniform(0.03, 0.06)
        place = wanted + np.append(radius * np.array([np.cos(angle), np.sin(angle)]), self.rng.uniform(0.0, 0.01))
        kind = self.rng.random()
        if kind < 0.4:  # straight through, from wherever the hand is
            through = (wanted - eef)[:2]
            place[:2] = wanted[:2] + 0.06 * through / max(float(np.linalg.norm(through)), 1e-6)
        elif kind < 0.6:  # on top
            place = wanted + np.append(self.rng.normal(0, 0.012, 2), 0.03)
        self.waypoint = np.clip(place, *self.workspace)
        if self.rng.random() < 0.6 and self.gripper_index is not None:
            self.gripper = self.spec.action[self.gripper_index].high


class Hold(_Forgetful):
    """The hand stays where it is; the gripper keeps its command for a while, then opens or closes in place.

    Args:
        env, task, rng: as of every behaviour.
        gripper: the first command; None: drawn, as the later ones are.
    """

    def __init__(self, env: Any, task: str, rng: np.random.Generator, gripper: float | None = None) -> None:
        self.spec, self.rng = env.robot_spec, rng
        self.gripper_index = _hand(self.spec)[2]
        self.gripper, self.left = gripper, int(rng.integers(6, 25))

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        action = np.zeros(self.spec.action_dim, np.float32)
        if self.gripper_index is not None:
            if self.left == 0 or self.gripper is None:
                field = self.spec.action[self.gripper_index]
                middle = (field.low + field.high) / 2
                self.gripper = float(
                    self.rng.choice([field.low, field.high, middle, self.rng.uniform(field.low, field.high)])
                )
                self.left = int(self.rng.integers(3, 25))
            self.left -= 1
            action[self.gripper_index] = self.gripper
        return self.spec.check_action(action)


class _Stretches(_Forgetful):
    """One behaviour after another, each for some decisions; what comes next is drawn by `choose`."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        self.env, self.task, self.rng = env, task, rng
        self.gripper_index = _hand(env.robot_spec)[2]
        self.now: Behaviour = Hold(env, task, rng)
        self.left, self.count = 0, 0
        self.gripper: float | None = None

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        if self.left == 0:
            self.now, self.left = self.choose(self.count, list(info.get("task_success", (self.task,))))
            self.count += 1
        self.left -= 1
        action = self.now.act(observation, info)
        if self.gripper_index is not None:
            self.gripper = float(action[self.gripper_index])
        return action

    def choose(self, number: int, tasks: list[str]) -> tuple[Behaviour, int]:
        """The stretch of that number and its decisions; ``tasks`` are those of the scene."""
        raise NotImplementedError

    def some_expert(self, tasks: list[str]) -> Behaviour:
        """The expert of one of the tasks, at times with noise."""
        kind = Expert if self.rng.random() < 0.5 else NoisyExpert
        return kind(self.env, str(self.rng.choice(tasks)), self.rng)


class Still(_Stretches):
    """Nothing is done: in half of the episodes all the time, in the others for stretches amid other behaviour."""

    def __init__(self, env: Any, task: str, rng: np.random.Generator) -> None:
        super().__init__(env, task, rng)
        self.always = rng.random() < 0.5

    def choose(self, number: int, tasks: list[str]) -> tuple[Behaviour, int]:
        if self.always or number % 2 == 1:
            return Hold(self.env, self.task, self.rng, self.gripper), int(self.rng.integers(8, 25))
        kind = self.rng.choice(["expert", "attracted", "random"], p=[0.6, 0.25, 0.15])
        other = self.some_expert(tasks) if kind == "expert" else BEHAVIOURS[kind](self.env, self.task, self.rng)
        return other, int(self.rng.integers(3, 15))


class Recovery(_Stretches):
    """The expert from the states in which policies stall, again and again.

    The trouble before it: the cube pushed from a wrong side, the fingers beside or on top of it, let fall, or what the
    expert of another task has left behind.
    """

    def choose(self, number: int, tasks: list[str]) -> tuple[Behaviour, int]:
        if number % 2 == 1:
            kind = Expert if self.rng.random() < 0.7 else NoisyExpert
            return kind(self.env, self.task, self.rng), int(self.rng.integers(10, 22))
        trouble = self.rng.random()
        if trouble < 0.5:
            return Beside(self.env, self.task, self.rng), int(self.rng.integers(4, 12))
        if trouble < 0.8:
            return self.some_expert(tasks), int(self.rng.integers(3, 14))
        if trouble < 0.9 and self.gripper_index is not None:  # lets go wherever it is
            opened = self.env.robot_spec.action[self.gripper_index].low
            return Hold(self.env, self.task, self.rng, opened), int(self.rng.integers(2, 4))
        return Wander(self.env, self.task, self.rng), int(self.rng.integers(3, 8))


class Mixed(_Stretches):
    """The experts of all tasks in turn, each for a while."""

    def choose(self, number: int, tasks: list[str]) -> tuple[Behaviour, int]:
        return self.some_expert(tasks), int(self.rng.integers(6, 18))


class PolicyBehaviour:
    """A policy, which sees observations only."""

    def __init__(self, policy: Policy, rng: np.random.Generator) -> None:
        self.policy, self.begun = policy, False
        policy.reset(int(rng.integers(2**31)))

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        if not self.begun:
            begin(self.policy, info)
            self.begun = True
        return self.policy.act(observation)

    def follow(self, observation: Observation, action: Array) -> None:
        follow(self.policy, observation, action)


class Disturbed:
    """Another behaviour with smooth noise on the motion of the hand, told what was really executed.

    The noise is of one strength in an episode, drawn up to ``largest``: a standard deviation in units of the largest
    action.
    """

    def __init__(self, behaviour: Behaviour, spec: RobotSpec, rng: np.random.Generator, largest: float) -> None:
        self.behaviour, self.spec, self.rng = behaviour, spec, rng
        shaken = np.array([_SHAKEN.get(field.kind, 0.0) for field in spec.action])
        self.scale = rng.uniform(0.25, 1.0) * largest * shaken * spec.action_high
        self.noise: Array = np.zeros(spec.action_dim)

    def act(self, observation: Observation, info: Mapping[str, Any]) -> Array:
        wanted = self.behaviour.act(observation, info)
        self.noise = 0.6 * self.noise + 0.8 * self.rng.normal(size=len(self.noise))  # of unit variance
        return self.spec.check_action(wanted + self.scale * self.noise)

    def follow(self, observation: Observation, action: Array) -> None:
        self.behaviour.follow(observation, action)


BEHAVIOURS: dict[str, Callable[[Any, str, np.random.Generator], Behaviour]] = {
    "expert": Expert,
    "noisy_expert": NoisyExpert,
    "attracted": Attracted,
    "random": Wander,
    "recovery": Recovery,
    "mixed": Mixed,
    "still": Still,
}


def check_behaviour(name: str) -> str:
    """Returns the name of a behaviour or policy, perhaps with ``disturbed_`` before it.

    Raises:
        ValueError: there is none of that name; the message has the nearest ones.
    """
    inner = name.removeprefix(_DISTURBED)
    if inner not in BEHAVIOURS:
        if inner.isidentifier() and inner not in NAMES:
            raise ValueError(f"unknown behaviour {name!r}; {did_you_mean(inner, [*BEHAVIOURS, *NAMES])}")
        parse_name(inner)
    return name


def make_behaviour(
    name: str, env: Any, task: str, rng: np.random.Generator, noise: float = 0.2, model: str = "", device: str = "cpu"
) -> Behaviour:
    """The behaviour of that name for one episode.

    Args:
        name: a key of `BEHAVIOURS`, or a policy as `policies.make` knows it; ``disturbed_`` before it adds noise.
        env: the simulator, which has been reset.
        task: of the episode.
        rng: everything random is drawn from it.
        noise: the largest disturbance, see `Disturbed`.
        model, device: of policies.
    """
    inner = name.removeprefix(_DISTURBED)
    if inner in BEHAVIOURS:
        behaviour = BEHAVIOURS[inner](env, task, rng)
    else:
        behaviour = PolicyBehaviour(make_policy(inner, env, model or "kairos-tiny", device), rng)
    return Disturbed(behaviour, env.robot_spec, rng, noise) if inner != name else behaviour


def disturbed(name: str) -> str:
    """The disturbed form of a behaviour's name."""
    return name if name.startswith(_DISTURBED) else _DISTURBED + name


def _hand(spec: RobotSpec) -> tuple[list[int], Array, int | None]:
    """Indices in the action of the hand's motion along x, y, z, the metres of their units, and the gripper's index.

    Raises:
        ValueError: the robot's action is of another kind.
    """
    moves = [i for i, field in enumerate(spec.action) if field.kind == "delta_position"]
    if len(moves) != 3:
        raise ValueError(
            f"random play moves a hand along x, y and z, but the action of {spec.name!r} has {len(moves)} fields of "
            "the kind delta_position: choose another behaviour"
        )
    gripper = next((i for i, field in enumerate(spec.action) if field.kind == "gripper"), None)
    return moves, np.array([_metres(spec.action[i]) for i in moves]), gripper


def _metres(field: Field) -> float:
    """Metres a unit of the field: its unit is ``m``, or a multiple such as ``0.2 m``."""
    factor, _, unit = field.unit.rpartition(" ")
    if unit != "m":
        raise ValueError(f"action field {field.name!r} is in {field.unit!r}; random play needs metres")
    return float(factor or 1)


def _workspace(spec: RobotSpec, eef: Array) -> tuple[Array, Array]:
    """Lowest and highest way-point (3,): the declared range of the hand, or a box around where it is."""
    fields = [spec.proprio[index] for index in spec.hand_fields]
    low, high = (np.array([getattr(field, side) for field in fields]) for side in ("low", "high"))
    if not fields or np.max(high - low) > _LARGEST_WORKSPACE:
        return eef - _AROUND, eef + _AROUND
    return low, high
