"""Acting with a world model: its own policy on real observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kairos_env.policies.chunking import pad_rows
from kairos_env.policies.memory import RememberingPolicy
from kairos_env.policies.planners.planning import as_array
from kairos_env.records import ActionChunk, Array, Observation

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


class WorldModelPolicy(RememberingPolicy):
    """Action-only inference: the model's action expert on real observations; no video is imagined.

    Args:
        model: a world model whose spec is the robot's.
        task, instruction: replace the observation's instruction; see `RememberingPolicy`.
        steps: denoising steps of the actions; None is the model's default.
        execute: actions executed per decision, at most the model's chunk length.
        seed: of the sequence from which `reset` without a seed draws.
    """

    def __init__(
        self,
        model: WorldModel,
        task: str | None = None,
        instruction: str | None = None,
        steps: int | None = None,
        execute: int = 1,
        seed: int = 0,
    ) -> None:
        if execute > model.chunk_length:
            raise ValueError(f"the model proposes {model.chunk_length} actions at a time, cannot execute {execute}")
        super().__init__(model, task, instruction, execute, seed)
        self.steps = steps

    def decide(self, state: Any) -> Array:
        return as_array(self.model.act(state, steps=self.steps))[0]

    @classmethod
    def chunk_together(
        cls, policies: Sequence[WorldModelPolicy], observations: Sequence[Observation], size: int
    ) -> list[ActionChunk]:
        states = [policy.observe(observation) for policy, observation in zip(policies, observations, strict=True)]
        model = policies[0].model
        batch = type(states[0]).cat([states[row] for row in pad_rows(len(states), size)])
        chunks = model.spec.check_action(as_array(model.act(batch, steps=policies[0].steps)))
        return [ActionChunk(chunk) for chunk in chunks[: len(states)]]
