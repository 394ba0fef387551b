"""Trains the state model on recorded episodes, about a minute on one CPU core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from kairos_env.datasets.layouts import open_recording
from kairos_env.policies.planners.state_model import StateModel, StateModelConfig, reward_loss
from kairos_env.records import Episode, RobotSpec
from kairos_env.runs import write_json


@dataclass(frozen=True)
class StateTrainingConfig:
    """Settings of the training of a `StateModel`.

    Args:
        data: recorded episodes of a simulator, file or folder.
        output: the folder for the model and its report.
        updates: optimiser steps of dynamics and rewards, each on its own minibatch per ensemble member.
        batch: transitions per member and update.
        unroll: predicted steps per update; errors of later steps train the model on its own mistakes.
        near, near_weight: starts with the gripper this close to the object [m] are drawn so many times as often:
            contact is rare and decides everything.
        learning_rate: peak of a cosine schedule.
        weight_decay: of AdamW.
        held_out: fraction of episodes kept for the measurement.
        seed: of everything random.
    """

    data: str = "data"
    output: str = "runs/state-model"
    updates: int = 4000
    batch: int = 256
    unroll: int = 3
    near: float = 0.06
    near_weight: int = 3
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("updates", 3), ("batch", 1), ("unroll", 1), ("near_weight", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in 0 ... 1 without 1, got {self.held_out}")


@dataclass(frozen=True)
class _Data:
    """All episodes, stacked: leading dimensions (episodes, T + 1), unused steps masked by ``length``."""

    now: Tensor  # (episodes, T + 1, P + 3): proprioception and object position
    goal: Tensor
    actions: Tensor
    rewards: Tensor
    successes: Tensor
    length: Tensor

    def select(self, index: Tensor) -> _Data:
        return _Data(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def run_state_training(
    config: StateTrainingConfig, progress: Callable[[str], None] = lambda line: None
) -> tuple[StateModel, dict[str, Any]]:
    """Trains on a recording, and writes the model and its errors into ``config.output``.

    Raises:
        FileNotFoundError: no such recording.
        ValueError: no episodes, or episodes without the labels.
    """
    file = open_recording(config.data)
    episodes = [replace(episode, images={}) for episode in file]
    words = {episode.task: episode.instruction for episode in episodes}
    tasks = {name: words[name] for name in file[0].label_tasks if name in words}
    model, report = train_state_model(episodes, file.spec, tasks, config, progress=progress)
    model.save(config.output)
    write_json(Path(config.output) / "report.json", report)
    return model, report


def train_state_model(
    episodes: Iterable[Episode],
    spec: RobotSpec,
    tasks: Mapping[str, str],
    config: StateTrainingConfig | None = None,
    model: StateModelConfig | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[StateModel, dict[str, Any]]:
    """Trains on episodes with privileged labels.

    Args:
        episodes: of one robot.
        spec: that robot.
        config: how to train.
        model: sizes of the networks.
        tasks: task -> instruction; each must be among the episodes' ``label_tasks``.
        progress: called with a line now and then.

    Returns:
        The model in evaluation mode and its errors on held-out episodes, see `measure`.

    Raises:
        ValueError: no episodes, or episodes without the labels.
    """
    config = config or StateTrainingConfig()
    rng = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = StateModel(spec, tasks, model)
    data = _stack(episodes, list(tasks))
    order = torch.randperm(len(data.length), generator=rng)
    aside = max(1, int(config.held_out * len(order))) if len(order) > 1 else 0
    train, test = data.select(order[aside:]), data.select(order[:aside] if aside else order)
    _set_statistics(network, train)
    starts = _starts(network, train, config)

    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.updates, pct_start=max(0.05, 2 / config.updates)
    )
    started = time.process_time()
    for update in range(config.updates):
        loss = _loss(network, train, starts, config, rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if update % 500 == 499:
            progress(f"update {update + 1}/{config.updates}: loss {loss.item():.4f}")
    network.eval()
    report = measure(network, test)
    report |= {
        "train_episodes": len(train.length),
        "test_episodes": len(test.length),
        "cpu_seconds": round(time.process_time() - started),
    }
    return network, report


def _starts(network: StateModel, data: _Data, config: StateTrainingConfig) -> Tensor:
    """(S, 2) int64: episode and step of every possible start of an unrolled piece, near ones repeated."""
    steps = torch.arange(data.actions.shape[1])[None]
    legal = steps <= data.length[:, None] - min(config.unroll, int(data.length.min()))
    away = (data.now[:, :-1, -3:] - data.now[:, :-1, network._position]).norm(dim=-1)
    near = (legal & (away < config.near)).nonzero()
    return torch.cat([legal.nonzero(), near.repeat(config.near_weight - 1, 1)])


def _loss(
    network: StateModel, data: _Data, starts: Tensor, config: StateTrainingConfig, rng: torch.Generator
) -> Tensor:
    """A few predicted steps of every member from its own minibatch, and rewards of recorded states."""
    members, size = network.config.members, config.batch
    unroll = min(config.unroll, int(data.length.min()))
    episode, start = starts[torch.randint(len(starts), (members * size,), generator=rng)].T

    now = data.now[episode, start]
    motion = now - data.now[episode, (start - 1).clamp(min=0)]
    change_std = network.get_buffer("change_std")
    loss = torch.zeros(())
    for k in range(unroll):
        step = start + k
        x = network.dynamics_input(now, motion, data.actions[episode, step])
        motion = network.dynamics(x.view(members, size, -1)).flatten(0, 1) * change_std
        now = now + motion
        error = (now - data.now[episode, step + 1]) / change_std
        # Contact is all or nothing: a robust loss keeps rare jumps from drowning everything else.
        loss = loss + smooth_l1_loss(error, torch.zeros_like(error))

    one, after = episode[:size], start[:size] + 1
    logits = network.judge_all(network.judged_input(data.now[one, after], data.goal[one, after]))
    judged = reward_loss(*logits, data.rewards[one, after - 1], data.successes[one, after - 1])
    return loss / unroll + judged


def measure(network: StateModel, data: _Data, horizons: tuple[int, ...] = (1, 5, 10)) -> dict[str, Any]:
    """Open-loop errors from each episode's start under its own actions: centimetres of gripper and object
    (beside "the object does not move"), reward error, per horizon.
    """
    report: dict[str, Any] = {}
    members = network.config.members
    now = data.now[:, 0][:, None].repeat(1, members, 1)
    with torch.inference_mode():
        state = network._judged(now, torch.zeros_like(now), data.goal[:, 0], torch.zeros(len(now)).long()).state
        for t in range(min(max(horizons), int(data.length.min()))):
            state = network.step(state, data.actions[:, t].numpy()).state
            if t + 1 in horizons:
                eef, truth = network._position, data.now[:, t + 1]
                goals = state.goal_position[:, None].expand(-1, members, -1)
                reward = torch.sigmoid(network.judge_all(network.judged_input(state.particles, goals))[0]).mean(1)
                report[str(t + 1)] = {
                    "gripper_cm": _cm(state.proprio[:, eef] - truth[:, eef]),
                    "object_cm": _cm(state.object_position - truth[:, -3:]),
                    "object_still_cm": _cm(data.now[:, 0, -3:] - truth[:, -3:]),
                    "reward_mae": round(float((reward - data.rewards[:, t]).abs().mean()), 4),
                }
    return report


def _cm(difference: Tensor) -> float:
    return round(100 * float(difference.norm(dim=-1).mean()), 3)


def _set_statistics(network: StateModel, data: _Data) -> None:
    """Mean and standard deviation of all inputs, and the size of changes, from the training episodes."""
    steps = data.actions.shape[1]
    valid = torch.arange(steps)[None] < data.length[:, None]
    now = data.now
    change = (now[:, 1:] - now[:, :-1])[valid]
    motion = torch.cat([torch.zeros_like(now[:, :1]), now[:, 1:-1] - now[:, :-2]], 1)[valid]
    network.get_buffer("change_std").copy_(change.std(0) + 1e-4)
    # The statistics are still 0 and 1, so these are the raw features.
    raw = network.dynamics_input(now[:, :-1][valid], motion, data.actions[valid])
    judged = network.judged_input(now[:, 1:][valid], data.goal[:, 1:][valid])
    for name, features in (("input", raw), ("judged", judged)):
        network.get_buffer(f"{name}_mean").copy_(features.mean(0))
        network.get_buffer(f"{name}_std").copy_(features.std(0) + 1e-4)


def _stack(episodes: Iterable[Episode], tasks: list[str]) -> _Data:
    rows: list[tuple[np.ndarray, ...]] = []
    for episode in episodes:
        needed = ("object_position", "goal_position", "task_rewards", "task_success")
        missing = [name for name in needed if name not in episode.labels]
        missing += [task for task in tasks if task not in episode.label_tasks]
        if missing:
            raise ValueError(
                f"an episode of task {episode.task!r} lacks the labels {missing}; the state model needs recordings of "
                "a simulator, made with `kairos record`"
            )
        columns = [list(episode.label_tasks).index(task) for task in tasks]
        rows.append(
            (
                np.concatenate([episode.proprio, episode.labels["object_position"]], 1),
                np.asarray(episode.labels["goal_position"]),
                episode.actions,
                np.asarray(episode.labels["task_rewards"])[:, columns],
                np.asarray(episode.labels["task_success"])[:, columns],
            )
        )
    if not rows:
        raise ValueError("no episodes to train on")
    longest = max(len(row[2]) for row in rows)

    def padded(part: int, steps: int) -> Tensor:
        out = np.zeros((len(rows), steps, *rows[0][part].shape[1:]), np.float32)
        for i, row in enumerate(rows):
            out[i, : len(row[part])] = row[part]
        return torch.from_numpy(out)

    return _Data(
        now=padded(0, longest + 1),
        goal=padded(1, longest + 1),
        actions=padded(2, longest),
        rewards=padded(3, longest),
        successes=padded(4, longest),
        length=torch.tensor([len(row[2]) for row in rows]),
    )
