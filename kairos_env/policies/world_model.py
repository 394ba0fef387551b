"""Acting with a world model: its own policy on real observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kairos_env.policies.chunking import Continuation, pad_rows
from kairos_env.policies.memory import RememberingPolicy
from kairos_env.policies.planners.objective import as_array
from kairos_env.records import ActionChunk, Array, Observation

if TYPE_CHECKING:
    from kairos_env.world_model.continuation import ChunkGuide
    from kairos_env.world_model.model import WorldModel


class WorldModelPolicy(RememberingPolicy):
    """The model's own actions on real observations, of small models and of published weights.

    Args:
        model: a world model whose spec is the robot's.
        task, instruction: replace the observation's instruction; see `RememberingPolicy`.
        steps: denoising steps of the actions; None is the model's default.
        execute: actions executed per decision, at most the model's chunk length; None is the model's default.
        seed: of the sequence from which `reset` without a seed draws.
        mode: ``"policy"`` computes no video; ``"joint"`` denoises the video beside the actions.
        actions_see_future: in joint mode, of published weights; see `WorldModel.joint`.
        noise_seed: one seed for the noise of every decision; None leaves it to the model and `reset`.
    """

    def __init__(
        self,
        model: WorldModel,
        task: str | None = None,
        instruction: str | None = None,
        steps: int | None = None,
        execute: int | None = None,
        seed: int = 0,
        mode: Literal["policy", "joint"] = "policy",
        actions_see_future: bool | None = None,
        noise_seed: int | None = None,
    ) -> None:
        if execute is None:
            execute = model.execute
        if execute > model.chunk_length:
            raise ValueError(f"the model proposes {model.chunk_length} actions at a time, cannot execute {execute}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if mode not in ("policy", "joint"):
            raise ValueError(f"unknown mode {mode!r}; legal: policy, joint")
        if actions_see_future is not None and mode != "joint":
            raise ValueError("only mode='joint' has a future that actions could see")
        super().__init__(model, task, instruction, execute, seed)
        self.steps, self.mode, self.actions_see_future, self.noise_seed = steps, mode, actions_see_future, noise_seed

    def decide(self, state: Any) -> Array:
        return self._actions(state)[0]

    def continue_chunk(self, observation: Observation, continuation: Continuation) -> ActionChunk:
        """The next chunk, that goes on from the one being executed; see `Continuation`.

        Raises:
            ValueError: in joint mode, or more actions than a chunk has.
        """
        chunk = self.continue_together([self], [observation], [continuation], 1)[0]
        self._action = chunk.actions[0]
        return chunk

    @classmethod
    def continue_together(
        cls,
        policies: Sequence[WorldModelPolicy],
        observations: Sequence[Observation],
        continuations: Sequence[Continuation],
        size: int,
    ) -> list[ActionChunk]:
        """`continue_chunk` of each policy, all in one mode, in passes of ``size`` rows."""
        if policies[0].mode != "policy":
            raise ValueError("chunks are continued in mode 'policy' only")
        states = [policy.observe(observation) for policy, observation in zip(policies, observations, strict=True)]
        rows = pad_rows(len(states), size)
        guide = policies[0]._guide([continuations[row] for row in rows])
        batch = type(states[0]).cat([states[row] for row in rows]) if size > 1 else states[0]
        chunks = policies[0].model.spec.check_action(policies[0]._actions(batch, guide))
        return [ActionChunk(chunk) for chunk in chunks[: len(states)]]

    def _guide(self, continuations: Sequence[Continuation]) -> ChunkGuide:
        import torch

        from kairos_env.world_model.continuation import ChunkGuide, overlap_weights

        length, previous, weights = self.model.chunk_length, [], []
        for continuation in continuations:
            rest = continuation.actions[:length]
            horizon = min(continuation.horizon, len(rest))
            weights.append(overlap_weights(min(continuation.frozen, horizon), horizon, length))
            previous.append(np.concatenate([rest, np.repeat(rest[-1:], length - len(rest), 0)]))
        normalised = self.model.normalise_actions(np.stack(previous))
        return ChunkGuide(normalised, torch.stack(weights).to(normalised), continuations[0].mode)

    def _actions(self, states: Any, guide: ChunkGuide | None = None) -> Array:
        """Chunks (B, N, A) from a batch of states."""
        model = self.model
        drawn: dict[str, Any] = {} if self.noise_seed is None else {"seeds": [self.noise_seed] * states.batch_size}
        if self.mode == "joint":
            return as_array(model.joint(states, self.steps, actions_see_future=self.actions_see_future, **drawn)[0])
        if guide is not None:
            drawn["guide"] = guide
        return as_array(model.act(states, steps=self.steps, **drawn))

    @classmethod
    def chunk_together(
        cls, policies: Sequence[WorldModelPolicy], observations: Sequence[Observation], size: int
    ) -> list[ActionChunk]:
        states = [policy.observe(observation) for policy, observation in zip(policies, observations, strict=True)]
        batch = type(states[0]).cat([states[row] for row in pad_rows(len(states), size)])
        chunks = policies[0].model.spec.check_action(policies[0]._actions(batch))
        return [ActionChunk(chunk) for chunk in chunks[: len(states)]]
