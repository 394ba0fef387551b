"""States of imagined episodes and results of their resets and steps: values with one row for each episode."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kairos_env.records import Array

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel
    from kairos_env.world_model.state import WorldState


@dataclass(frozen=True)
class EpisodeState:
    """The state of B imagined episodes. A value: keep it, branch from it, come back to it.

    Args:
        world_state: the model's memory of the B episodes.
        steps: int64 (B,), imagined decisions so far.
        seeds: int64 (B,), the episode seeds; ``reset(seed=...)`` with one starts the same episode again.
        tasks: str objects (B,), task names, empty for a free instruction.
        instructions: str objects (B,).
        known: objects (B,), whether the model was trained on the instruction, see `Wish`.
        strangeness: float64 (B,), >= 1, of the real observation that the episode started from, see `Familiarity`.
        finished: bool (B,), the episode has terminated or was truncated.
        model: `model_fingerprint` of the model that imagines them.
    """

    world_state: WorldState
    steps: Array
    seeds: Array
    tasks: Array
    instructions: Array
    known: Array
    strangeness: Array
    finished: Array
    model: str

    def __len__(self) -> int:
        """Number of episodes B."""
        return len(self.steps)

    def select(self, rows: Array) -> EpisodeState:
        """The episodes ``rows`` (int), in that order; repeating one branches it."""
        columns = {k: getattr(self, k)[rows] for k in _COLUMNS}
        return EpisodeState(self.world_state.select(rows.tolist()), **columns, model=self.model)

    def after(self, world_state: WorldState, steps: Array, ended: Array) -> EpisodeState:
        """The episodes one decision later; those of ``ended`` (B,) have finished."""
        return EpisodeState(
            world_state,
            steps,
            self.seeds,
            self.tasks,
            self.instructions,
            self.known,
            self.strangeness,
            self.finished | ended,
            self.model,
        )

    def overwrite(self, rows: Array, other: EpisodeState) -> EpisodeState:
        """Episode ``rows[i]`` becomes episode ``i`` of ``other``; the rest stays."""
        if len(rows) == len(self):
            return other.select(np.argsort(rows))
        order = np.arange(len(self))
        order[rows] = len(self) + np.arange(len(rows))
        columns = {k: np.concatenate([getattr(self, k), getattr(other, k)])[order] for k in _COLUMNS}
        return EpisodeState(
            type(self.world_state).cat([self.world_state, other.world_state]).select(order.tolist()),
            **columns,
            model=self.model,
        )


def check_episodes(state: object, count: int, model: str) -> EpisodeState:
    """``state`` if it is one of ``count`` episodes of the model of this fingerprint.

    Raises:
        TypeError: no state. ValueError: of another number of episodes, or another model.
    """
    if not isinstance(state, EpisodeState):
        raise TypeError(f"set_state takes what get_state returned, got {type(state).__name__}")
    if len(state) != count:
        raise ValueError(f"the state holds {len(state)} episodes, this environment {count}; use state.select")
    if state.model != model:
        raise ValueError("the state is of another model, whose memory means nothing to this one: reset instead")
    return state


def model_fingerprint(model: WorldModel) -> str:
    """Tells models apart by a few numbers of each of their weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        flat = value.detach().flatten()
        few = flat[:: max(1, len(flat) // 8)].float().cpu()
        digest.update(f"{name} {tuple(value.shape)}".encode() + few.numpy().tobytes())
    return digest.hexdigest()


_COLUMNS = ("steps", "seeds", "tasks", "instructions", "known", "strangeness", "finished")


@dataclass(frozen=True)
class Outcome:
    """The result of a reset or step of B environments: arrays with leading B, and the episodes' state after it.

    ``info`` holds one column (B,) per key; ``truncated_reason`` is empty where nothing was truncated.
    """

    episodes: EpisodeState
    observation: dict[str, Array]
    reward: Array
    terminated: Array
    truncated: Array
    info: dict[str, Array]

    def overwrite(self, rows: Array, other: Outcome) -> Outcome:
        """Row ``rows[i]`` becomes row ``i`` of ``other``; the rest stays."""

        def put(mine: Array, theirs: Array) -> Array:
            merged = mine.copy()
            merged[rows] = theirs
            return merged

        return Outcome(
            self.episodes.overwrite(rows, other.episodes),
            {k: put(v, other.observation[k]) for k, v in self.observation.items()},
            put(self.reward, other.reward),
            put(self.terminated, other.terminated),
            put(self.truncated, other.truncated),
            {k: put(v, other.info[k]) for k, v in self.info.items()},
        )
