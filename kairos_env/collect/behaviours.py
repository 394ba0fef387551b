"""Behaviours that act while data are recorded: scripted experts, clean and disturbed, random play, and any policy.

Good data for a world model are varied: success and failure, contact from every side, recovery after a
disturbance, stillness, and what comes after success.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kairos_env.collect.movements import Attracted, Behaviour, Expert, NoisyExpert, Wander
from kairos_env.collect.stretches import Mixed, Recovery, Still
from kairos_env.policies.make import NAMES, make_policy, parse_name
from kairos_env.policies.policy import Policy, begin, follow
from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.runs import did_you_mean

_SHAKEN = {"delta_position": 1.0, "delta_rotation": 0.1}  # a turn of the hand disturbs far more than a shift
_DISTURBED = "disturbed_"


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
