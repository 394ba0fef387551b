"""Simulators by name, as the command line, result rows and worker processes know them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from kairos_env.records import RobotSpec
from kairos_env.runs import did_you_mean
from kairos_env.sims.simulator import check_names


def make_simulator(name: str, spec: RobotSpec | None = None, **options: Any) -> Any:
    """The bare environment of a Gymnasium id, or of ``module:factory`` with ``factory(**options) -> env``.

    Without Gymnasium's wrappers: ``gym.make`` would keep the option ``max_episode_steps`` from the simulator.

    Args:
        name: such as ``"Kairos-Robosuite-v0"``.
        spec: the robot that is wanted; cameras, image sizes and rate follow from it, unless ``options`` say them.
        options: arguments of the simulator's constructor.

    Raises:
        ValueError: an unknown id, factory or option.
        SpecMismatch: the simulator is of another robot; the message prints the difference.
    """
    factory, own = find_simulator(name)
    wanted = {} if spec is None or not hasattr(factory, "arguments_for") else factory.arguments_for(spec)
    arguments = own | wanted | options
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        check_names(arguments, parameters, f"option of {name}")
    env = factory(**arguments)
    if spec is not None:
        try:
            spec.require_same(spec_of(env), "wanted robot", "simulator")
        except ValueError:
            env.close()
            raise
    return env


def simulator_ids() -> list[str]:
    """Every registered Gymnasium id of a simulator of the contract."""
    from gymnasium import registry

    importlib.import_module("kairos_env")
    return [id for id, spec in registry.items() if str(spec.entry_point).startswith("kairos_env.sims.")]


def spec_of(env: Any) -> RobotSpec:
    """The robot of an environment: of a simulator its own, of an imagined one the model's."""
    inner = env.unwrapped
    found = getattr(inner, "robot_spec", None) or getattr(getattr(inner, "model", None), "spec", None)
    if not isinstance(found, RobotSpec):
        raise TypeError(f"{type(inner).__name__} has no robot_spec (a RobotSpec), which policies are matched with")
    return found


def load_factory(name: str) -> Callable[..., Any]:
    """The attribute that ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot load {name!r} (expected an importable module:function): {error}") from error
    if not callable(found):
        raise ValueError(f"{name!r} is a {type(found).__name__}, expected a function or class")
    return found


def find_simulator(name: str) -> tuple[Any, dict[str, Any]]:
    """What makes the simulator, and the arguments that its id was registered with.

    Raises:
        ValueError: an unknown id or factory.
    """
    if ":" in name and not re.search(r"-v\d+$", name):
        return load_factory(name), {}
    from gymnasium import error, registry, spec
    from gymnasium.envs.registration import load_env_creator

    importlib.import_module("kairos_env")  # registers the ids
    try:
        found = spec(name)
    except error.Error:
        own = [known for known in registry if known.startswith("Kairos-")]
        raise ValueError(f"unknown simulator {name!r}; {did_you_mean(name, own)}") from None
    entry = found.entry_point
    return (load_env_creator(entry) if isinstance(entry, str) else entry), dict(found.kwargs)
