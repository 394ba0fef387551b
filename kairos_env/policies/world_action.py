"""Acting with a published world-action model: from what a robot sees to a chunk of what it does, and back in its units.

Example:
    >>> model = WorldActionModel.from_pretrained("kairos-libero")
    >>> settings = get_settings("libero")
    >>> normaliser = Normaliser.from_file("libero_plus_dataset_stats.json", settings.normalisation)
    >>> policy = WorldActionPolicy(model, settings, normaliser)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from kairos_env.policies.chunking import ChunkPolicy, pad_rows
from kairos_env.records import ActionChunk, Array, Observation
from kairos_env.world_model.normalisation import Normaliser
from kairos_env.world_model.published.robot_settings import RobotSettings, compose

if TYPE_CHECKING:
    from kairos_env.world_model.published.world_action import WorldActionModel


class WorldActionPolicy(ChunkPolicy):
    """Decides from the present observation alone and executes part of each chunk; it remembers nothing.

    Args:
        model: with a video tokenizer and a conditioning encoder.
        settings: of the robot; see `robots.get_settings`.
        normaliser: of the data that the model was fine-tuned on, in the mode ``settings.normalisation``.
        mode: ``"policy"`` computes no video; ``"joint"`` denoises the future video beside the actions.
        actions_see_future: in joint mode the actions see that video. Released weights were not trained so.
        steps: denoising steps; replan: actions executed per decision. Both default to the settings.
        seed: of the noise, the same at every decision. None takes the one of the settings, and where they leave it
            open the one given to `reset`.

    Raises:
        ValueError: model, settings and normaliser do not belong together.
    """

    def __init__(
        self,
        model: WorldActionModel,
        settings: RobotSettings,
        normaliser: Normaliser,
        mode: Literal["policy", "joint"] = "policy",
        actions_see_future: bool = False,
        steps: int | None = None,
        replan: int | None = None,
        seed: int | None = None,
    ) -> None:
        settings.require_model(model.config)
        _check_normaliser(normaliser, settings)
        if mode not in ("policy", "joint"):
            raise ValueError(f"unknown mode {mode!r}; legal: policy, joint")
        if actions_see_future and mode != "joint":
            raise ValueError("only mode='joint' has a future that actions could see")
        self.steps = settings.steps if steps is None else steps
        replan = settings.replan if replan is None else replan
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not 1 <= replan <= settings.horizon:
            raise ValueError(f"replan must be 1 ... {settings.horizon}, the length of a chunk, got {replan}")
        super().__init__(execute=replan)
        self.model, self.settings, self.normaliser = model, settings, normaliser
        self.mode, self.actions_see_future = mode, actions_see_future
        self._fixed_seed = settings.seed if seed is None else seed
        self._sequence = np.random.default_rng(0)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        drawn = int(self._sequence.integers(2**31)) if seed is None else int(seed)
        self.seed = drawn if self._fixed_seed is None else self._fixed_seed
        super().reset()

    @classmethod
    def chunk_together(
        cls, policies: Sequence[WorldActionPolicy], observations: Sequence[Observation], size: int
    ) -> list[ActionChunk]:
        rows = pad_rows(len(policies), size)
        chunks = policies[0].chunks([observations[row] for row in rows], [policies[row].seed for row in rows])
        return chunks[: len(policies)]

    def chunk(self, observation: Observation) -> ActionChunk:
        return self.chunks([observation])[0]

    def chunks(self, observations: Sequence[Observation], seeds: Sequence[int] | None = None) -> list[ActionChunk]:
        """Chunks (N, A) for B robots in one pass; each is what `chunk` would say alone.

        Args:
            observations: of B robots.
            seeds: of the noise, one for each robot; None takes this policy's own for all.

        Raises:
            ValueError: an observation that is not of this robot, one without an instruction, or a model that
                proposes a non-finite action: none leaves.
        """
        settings = self.settings
        seen = [observation.check(settings.spec) for observation in observations]
        if not seen:
            raise ValueError("no observation was given")
        canvases = np.stack([compose(settings, o.images) for o in seen])
        proprio = torch.from_numpy(self.normaliser.state.forward(np.stack([o.proprio for o in seen])))
        context = self.model.context(
            [settings.prompt_for(o.instruction) for o in seen],
            list(canvases) if settings.image_in_context else None,
            proprio,
        )
        latents = self.model.encode(canvases)
        noise = self.seed if seeds is None else seeds
        if self.mode == "policy":
            actions = self.model.act(latents, context, self.steps, settings.horizon, noise)
        else:
            actions, _ = self.model.joint(
                latents,
                context,
                settings.video_frames,
                self.steps,
                settings.horizon,
                noise,
                self.actions_see_future,
            )
        return [ActionChunk(chunk) for chunk in self._physical(actions)]

    def _physical(self, actions: Tensor) -> Array:
        """Normalised (B, N, A) -> float32 in the robot's units and bounds."""
        if not actions.isfinite().all():
            raise ValueError(
                f"the model {self.model.config.name!r} proposed a non-finite action; nothing is sent to the robot. "
                "Check that the weights belong to this configuration; float16 overflows where bfloat16 does not"
            )
        physical = self.settings.spec.check_action(self.normaliser.action.backward(actions.float().cpu().numpy()))
        if self.settings.binary_gripper:
            gripper = self.settings.gripper
            physical[..., gripper] = np.sign(physical[..., gripper])
        return physical


def _check_normaliser(normaliser: Normaliser, settings: RobotSettings) -> None:
    spec, action = settings.spec, normaliser.action.scale.shape
    chunk = (settings.horizon, spec.action_dim)
    if normaliser.state.scale.shape != (spec.proprio_dim,) or action not in (chunk, chunk[1:]):
        raise ValueError(
            f"the statistics are of state {normaliser.state.scale.shape} and action {action}, but {settings.name!r} "
            f"needs ({spec.proprio_dim},) and {chunk[1:]}, or {chunk} step-wise"
        )
