"""Reinforcement learning in imagination, by Stable-Baselines3: the recipe that examples, guide and evaluation share.

An agent finds what a model gets wrong. What keeps it honest here: it sees measured features, which mean the same in
reality (`PerceivedEnv`); episodes are short, and start from hundreds of real observations; success stops no episode, so
that being solved beyond doubt pays, and not one claim of it; it begins as the model's own policy, near the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from kairos_env.env.imagination import load_model
from kairos_env.env.vector_env import WorldModelVectorEnv
from kairos_env.extras import require
from kairos_env.records import Array, Observation
from kairos_env.runs import INITIAL_STATES, split_initial_states
from kairos_env.sims.make import make_simulator

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from kairos_env.env.sb3 import SB3VecEnv
    from kairos_env.world_model.model import WorldModel

Algorithm = Literal["ppo", "sac"]

SETTINGS: Mapping[Algorithm, Mapping[str, Any]] = {
    "ppo": {
        "n_steps": 24,
        "batch_size": 192,
        "n_epochs": 10,
        "gamma": 0.95,
        "gae_lambda": 0.9,
        "learning_rate": 3e-4,
        "policy_kwargs": {"net_arch": [128, 128], "log_std_init": -1.5},
    },
    "sac": {
        "learning_rate": 1e-3,
        "buffer_size": 100_000,
        "learning_starts": 0,
        "batch_size": 256,
        "gamma": 0.95,
        "tau": 0.01,
        "gradient_steps": 8,
        "ent_coef": 0.01,
        "policy_kwargs": {"net_arch": [128, 128]},
    },
}
"""Arguments of SB3's algorithms."""


@dataclass(frozen=True)
class PracticeConfig:
    """Settings of practice in imagination.

    Args:
        task: one of the model's.
        algorithm: of Stable-Baselines3.
        model: bundled name, folder or hub name.
        simulator: of the robot, whose first observations imagination starts from; ``"dataset"`` needs none, and has
            only those that ship with the model, which can be learned by heart.
        starts: how many of the simulator's initial states.
        robots: imagined side by side.
        demonstrations: imagined decisions of the model's own policy, disturbed, which the agent imitates before it
            practises; 0 begins with nothing.
        decisions: imagined decisions of practice.
        horizon: decisions after which an imagined episode is cut off.
        success_threshold: imagined success probability from which a decision costs nothing.
        uncertainty_limit: imagined uncertainty above which an episode is cut off; None never.
        seed: everything follows from it.
        device: of the model.
    """

    task: str = "reach"
    algorithm: Algorithm = "ppo"
    model: str = "kairos-tiny"
    simulator: str = "Kairos-Robosuite-v0"
    starts: int = 512
    robots: int = 32
    demonstrations: int = 3072
    decisions: int = 7_680
    horizon: int = 16
    success_threshold: float = 0.9
    uncertainty_limit: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.algorithm not in SETTINGS:
            raise ValueError(f"algorithm={self.algorithm!r}: give one of {', '.join(SETTINGS)}")
        for name in ("starts", "robots", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")


def practise(config: PracticeConfig, model: WorldModel | None = None) -> BaseAlgorithm:
    """An agent that has practised in imagination only; its environment is that of `practice_env`.

    Args:
        config: the settings.
        model: in place of loading ``config.model``.
    """
    sb3 = require("stable_baselines3", "rl")
    env = practice_env(config, load_model(config.model, config.device) if model is None else model)
    algorithm = {"ppo": sb3.PPO, "sac": sb3.SAC}[config.algorithm]
    agent: BaseAlgorithm = algorithm(
        "MultiInputPolicy", env, seed=config.seed, device="cpu", **SETTINGS[config.algorithm]
    )
    if config.demonstrations:
        imitate(agent, config)
    if config.decisions:
        agent.learn(config.decisions)
    return agent


def practice_env(config: PracticeConfig, model: WorldModel) -> SB3VecEnv:
    """The imagined robots that an agent practises with."""
    from kairos_env.env.sb3 import SB3VecEnv  # a subclass of what the extra `rl` brings

    envs = WorldModelVectorEnv(
        config.robots,
        model,
        task=config.task,
        start="dataset" if config.simulator == "dataset" else real_starts(config, model),
        observation="features",
        max_episode_steps=config.horizon,
        success_threshold=config.success_threshold,
        success_ends=False,
        uncertainty_limit=config.uncertainty_limit,
        autoreset_mode="SameStep",
    )
    return SB3VecEnv(envs)


def real_starts(config: PracticeConfig, model: WorldModel) -> list[Observation]:
    """First observations of ``config.starts`` of the simulator's initial states, of those that are for training."""
    simulator = make_simulator(config.simulator, model.imagined_spec)
    try:
        rng = np.random.default_rng(config.seed)
        there = simulator.initial_states()
        training = INITIAL_STATES["training"] if there is None else split_initial_states(there)[0]
        chosen = rng.choice(len(training), min(config.starts, len(training)), replace=False)
        found = []
        for state in (int(training[index]) for index in chosen):
            raw, info = simulator.reset(seed=state, options={"initial_state": state})
            found.append(Observation.from_gym(raw, info["instruction"]))
        return found
    finally:
        simulator.close()


def imitate(agent: Any, config: PracticeConfig, noise: float = 0.2, epochs: int = 120) -> float:
    """Makes the agent choose as the model's own policy does in imagination.

    Args:
        agent: of SB3, with a `SB3VecEnv` of the features of imagined robots. An agent with a replay buffer remembers
            the demonstrations.
        config: how many decisions.
        noise: largest standard deviation of the disturbance of what is executed, in half ranges of an action; each
            robot has one of its own.
        epochs: how often each decision is looked at.

    Returns:
        The mean squared error of the last epoch.
    """
    seen, wanted = demonstrations(agent, config, noise)
    optimiser = torch.optim.Adam(agent.policy.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(config.seed)
    error = 0.0
    for _ in range(epochs):
        losses = []
        for rows in torch.randperm(len(seen), generator=generator).split(256):
            loss = (_choose(agent, {"features": seen[rows]}) - wanted[rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
        error = float(np.mean(losses))
    return error


def demonstrations(agent: Any, config: PracticeConfig, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, K) of imagined states, and what the model's own policy would do there (N, A) in [-1, 1]."""
    env = agent.get_env()
    imagined, rng, seen, wanted = env.env, np.random.default_rng(config.seed), [], []
    env.seed(config.seed)
    observed, strength = env.reset(), noise * rng.random((config.robots, 1))
    for _ in range(-(-config.demonstrations // config.robots)):
        proposed = imagined.model.act(imagined.get_state().world_state)[:, 0].cpu().numpy()
        action = env.scaled(proposed)
        seen.append(observed["features"])
        wanted.append(action)
        executed = np.clip(action + strength * rng.normal(size=action.shape), -1, 1).astype(np.float32)
        after, rewards, dones, infos = env.step(executed)
        if hasattr(agent, "replay_buffer"):
            agent.replay_buffer.add(observed, _last(after, dones, infos), executed, rewards, dones, infos)
        observed = after
    return torch.as_tensor(np.concatenate(seen)), torch.as_tensor(np.concatenate(wanted))


def _last(after: dict[str, Array], dones: Array, infos: list[dict[str, Any]]) -> dict[str, Array]:
    """``after``, but with what finished episodes ended with in place of what the next ones begin with."""
    last = {key: column.copy() for key, column in after.items()}
    for row in np.flatnonzero(dones):
        for key, column in last.items():
            column[row] = infos[row]["terminal_observation"][key]
    return last


def _choose(agent: Any, observed: dict[str, torch.Tensor]) -> torch.Tensor:
    """The agent's actions (N, A) without exploration, with gradients."""
    if hasattr(agent, "actor"):
        return agent.actor(observed, deterministic=True)
    return agent.policy.get_distribution(observed).mode()
