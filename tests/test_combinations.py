"""Every model, start, kind of environment and way of deciding fits every other one.

{env, vector env} x {start from each simulator} x {policies, planners}, for the bundled models and a miniature of each
published release. Horizons are as short as they can be: what is tested is that the parts fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from libero_home import libero_home
from released_models import ROBOTS, released_model

import kairos_env  # noqa: F401 (registers the environments)
from kairos_env.env.imagination import Imagination
from kairos_env.policies import (
    PLANNERS,
    ChunkExecution,
    PlannerPolicy,
    Policy,
    RandomPolicy,
    ReplayPolicy,
    TemporalEnsembling,
    WorldModelPolicy,
)
from kairos_env.policies.chunking import ChunkPolicy
from kairos_env.records import Observation
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.published.folder import save_parts
from kairos_env.world_model.published.releases import RELEASES, miniature
from kairos_env.world_model.published.world_action import WorldActionModel

WORLD, TABLETOP, LIBERO = "Kairos-WorldModel-v0", "Kairos-Robosuite-v0", "Kairos-LIBERO-v0"


@dataclass(frozen=True)
class World:
    """A model and where its episodes begin."""

    model: str
    start: str

    def __str__(self) -> str:
        return f"{self.model}-from-{self.start}"


def worlds() -> Iterator[Any]:
    yield pytest.param(World("kairos-tiny", "dataset"), id="tiny-dataset")
    yield pytest.param(World("kairos-tiny", TABLETOP), id="tiny-tabletop")
    yield pytest.param(World("kairos-libero", "dataset"), id="libero-dataset")
    yield pytest.param(World("kairos-libero", LIBERO), id="libero-libero", marks=pytest.mark.slow)
    for settings in ROBOTS.values():
        yield pytest.param(World(settings.release, "dataset"), id=f"{settings.release}-dataset")
    yield pytest.param(World("4b-libero", LIBERO), id="4b-libero-libero", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=worlds())
def imagination(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imagination]:
    world: World = request.param
    with pytest.MonkeyPatch.context() as patch:
        if world.start == LIBERO:  # the simulator's home, as KAIROS_SIMS names it
            home = tmp_path_factory.mktemp("sims")
            (home / "libero").symlink_to(libero_home(), target_is_directory=True)
            patch.setenv("KAIROS_SIMS", os.fspath(home))
        if world.model in RELEASES:
            pytest.importorskip("diffusers", reason="the video tokenizer is diffusers'")
            folder = tmp_path_factory.mktemp(world.model) / "model"
            released_model(next(r for r in ROBOTS.values() if r.release == world.model)).save_pretrained(folder)
            model = WorldModel.from_pretrained(folder)
        else:
            model = WorldModel.from_pretrained(world.model)
        found = Imagination(model, start=world.start, steps=1, success_threshold=None)
    yield found
    found.close()


@pytest.mark.parametrize("release", [name for name, config in RELEASES.items() if config.action is None])
def test_a_release_without_actions_says_what_is_missing(release: str, tmp_path: Path) -> None:
    save_parts(WorldActionModel.from_release(miniature(release, layers=4)), tmp_path / "m")
    with pytest.raises(ValueError, match="knows no robot: .*4b-libero, 4b-robotwin"):
        gym.make(WORLD, model=tmp_path / "m")


def _policy(model: WorldModel) -> Policy:
    return WorldModelPolicy(model, steps=1)


def _replay(model: WorldModel) -> Policy:
    low, high = model.spec.action_low, model.spec.action_high
    return ReplayPolicy(np.tile((low + high) / 2, (3, 1)), model.spec)


def _planner(name: str) -> Callable[[WorldModel], Policy]:
    size: dict[str, Any] = {"n": 2, "act_steps": 1} if name == "best_of_n" else {"population": 2}
    size |= {"elites": 1, "keep": 1} if name == "cem" else {}
    size |= {"iterations": 1} if name in ("cem", "mppi") else {}
    return lambda model: PlannerPolicy(model, PLANNERS[name], horizon=1, steps=1, **size)


DECIDERS: dict[str, Callable[[WorldModel], Policy]] = {
    "random": lambda model: RandomPolicy(model.spec),
    "replay": _replay,
    "policy": _policy,
    "chunk_execution": lambda model: ChunkExecution(_policy(model), 2),
    "temporal_ensembling": lambda model: TemporalEnsembling(_policy(model)),
    **{name: _planner(name) for name in PLANNERS},
}


@pytest.mark.parametrize("decider", DECIDERS)
def test_one_robot(imagination: Imagination, decider: str) -> None:
    env = gym.make(WORLD, model=imagination, max_episode_steps=2)
    policy = DECIDERS[decider](imagination.model)
    policy.reset(seed=1)
    observed, info = env.reset(seed=1)
    assert observed in env.observation_space and info["instruction"]
    for step in (1, 2):
        action = policy.act(Observation.from_gym(observed, info["instruction"]))
        observed, reward, terminated, truncated, info = env.step(action)
        assert observed in env.observation_space and np.isfinite(reward)
        assert (terminated, truncated, info["imagined_step"]) == (False, step == 2, step)


@pytest.mark.parametrize("decider", DECIDERS)
def test_two_robots(imagination: Imagination, decider: str) -> None:
    envs = gym.make_vec(WORLD, num_envs=2, model=imagination, max_episode_steps=2)
    policies = [DECIDERS[decider](imagination.model) for _ in range(2)]
    for seed, policy in enumerate(policies):
        policy.reset(seed)
    observed, info = envs.reset(seed=1)
    for step in (1, 2):
        seen = [
            Observation.from_gym({key: column[i] for key, column in observed.items()}, info["instruction"][i])
            for i in range(2)
        ]
        first: Any = policies[0]
        if isinstance(first, ChunkPolicy):
            actions = first.act_together(policies, seen, size=2)
        else:
            actions = [policy.act(o) for policy, o in zip(policies, seen, strict=True)]
        observed, rewards, terminated, truncated, info = envs.step(np.stack(actions))
        assert observed in envs.observation_space and np.isfinite(rewards).all()
        assert truncated.tolist() == [step == 2] * 2 and not terminated.any()
    envs.close()
