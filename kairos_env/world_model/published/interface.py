"""Published weights at a robot: one canvas of its cameras, the Wan tokenizer, a Qwen encoder, their own statistics.

A frame of the world model is one latent frame: four pictures, each some actions after the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.dit import VideoDiT
from kairos_env.world_model.flow import draw_noise
from kairos_env.world_model.interface import ACTION_NOISE
from kairos_env.world_model.normalisation import LinearMap, Normaliser
from kairos_env.world_model.published.robot_settings import RobotSettings, compose, decompose
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.tokenizers.wan_vae import SPATIAL, TEMPORAL


class ReleasedInterface:
    """The `Interface` of published weights.

    Args:
        clips: the weights with video tokenizer and conditioning encoder.
        settings: of the robot that they were fine-tuned on.
        normaliser: by the statistics of that fine-tuning. Without one actions and proprioception are taken from the
            robot's ranges, which is good enough to imagine, and `physical_actions` refuses.

    Raises:
        ValueError: parts that do not belong together.
    """

    pictures, fresh = TEMPORAL, True

    def __init__(self, clips: WorldActionModel, settings: RobotSettings, normaliser: Normaliser | None = None) -> None:
        settings.require_model(clips.config)
        if normaliser is not None:
            settings.check_normaliser(normaliser)
        self.clips, self.settings, self.spec = clips, settings, settings.spec
        self.latent_shape = (
            clips.config.latent_channels,
            settings.height // SPATIAL,
            settings.width // SPATIAL,
        )
        self.normaliser = normaliser
        self.rounded, self.execute = clips.config.published, settings.replan
        scales = normaliser or _ranges(self.spec)
        self._proprio, self._actions = scales.state, scales.action

    @property
    def imagined_spec(self) -> RobotSpec:
        """The robot with one decision for each latent frame: its control rate divided by the actions in one."""
        return self.settings.imagined_spec

    def encode(self, images: Mapping[str, Tensor]) -> Tensor:
        """See `Interface`; the first latent frame of a clip."""
        arrays = {name: x.cpu().numpy() for name, x in images.items()}
        size = len(next(iter(arrays.values())))
        canvases = [compose(self.settings, {name: x[row] for name, x in arrays.items()}) for row in range(size)]
        return self.clips.encode(np.stack(canvases))[:, 0].float()

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """See `Interface`."""
        video = self.clips.decode(latents.to(self.clips.dtype))  # (B, 4 F - 3, H, W, 3)
        every = np.concatenate([np.repeat(video[:, :1], TEMPORAL, 1), video[:, 1:]], 1)
        frames = every.reshape(len(video), -1, TEMPORAL, *every.shape[2:])
        return {name: torch.from_numpy(x) for name, x in decompose(self.settings, frames).items()}

    def context(self, observations: Sequence[Observation], proprio: Tensor) -> Context:
        """See `Interface`: prompts, for some weights with the canvas, and proprioception as the last token."""
        settings = self.settings
        prompts = [settings.prompt_for(o.instruction) for o in observations]
        shown = [compose(settings, o.images) for o in observations] if settings.image_in_context else None
        return self.clips.context(prompts, shown, proprio)

    def normalise_actions(self, actions: Array) -> Tensor:
        """See `Interface`; of step-wise statistics those of a chunk's first step."""
        legal, scale = self.spec.check_action(actions), self._actions
        if scale.scale.ndim > 1:
            scale = LinearMap(scale.scale[0], scale.offset[0])
        return torch.from_numpy(scale.forward(legal))

    def physical_actions(self, actions: Tensor) -> Tensor:
        """Normalised chunks (B, N, A) -> float32 in the robot's units and bounds.

        Raises:
            ValueError: no statistics, or an action that is not finite: none leaves.
        """
        name = self.clips.config.name
        if self.normaliser is None:
            raise ValueError(
                f"how are the actions of {name!r} normalised? Give the file of statistics of its fine-tuning: "
                "kairos convert --statistics FILE, or WorldModel.from_pretrained(folder, statistics=FILE)"
            )
        if not actions.isfinite().all():
            raise ValueError(
                f"the model {name!r} proposed a non-finite action; nothing is sent to the robot. "
                "Check that the weights belong to this configuration; float16 overflows where bfloat16 does not"
            )
        physical = self.spec.check_action(self._actions.backward(actions.float().cpu().numpy()))
        if self.settings.binary_gripper:
            gripper = self.settings.gripper
            physical[..., gripper] = np.sign(physical[..., gripper])
        return torch.from_numpy(physical)

    def normalise_proprio(self, proprio: Tensor) -> Tensor:
        return torch.from_numpy(self._proprio.forward(proprio.cpu().numpy())).to(proprio.device)

    def physical_proprio(self, proprio: Tensor) -> Tensor:
        return torch.from_numpy(self._proprio.backward(proprio.float().cpu().numpy())).to(proprio.device)

    def action_seeds(self, seeds: Tensor) -> Tensor:
        """See `Interface`: the seed that the published client always used, or else the episodes'."""
        return seeds if self.settings.seed is None else torch.full_like(seeds, self.settings.seed)

    def noise(self, seeds: Tensor, past: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
        """See `Interface`; that of a chunk is the published one, the same at every decision of an episode."""
        if stream == ACTION_NOISE:
            return self.clips.action_noise(len(seeds), shape[0], seeds.tolist())
        noise = draw_noise(seeds, shape, past, stream, generator="torch")
        return noise.to(self.clips.device, self.clips.sampling_dtype)

    def levels(self, steps: int, stream: int) -> list[float]:
        """See `Interface`; frames follow the schedule of a clip of the weights' own length."""
        if stream == ACTION_NOISE:
            return self.clips.action_levels(steps)
        return self.clips.video_levels(
            steps, torch.empty(self.latent_shape, device="meta"), self.settings.latent_frames
        )


class StreamingAdditions(nn.Module):
    """What the published video expert needs to be driven frame by frame; all of it starts neutral, at zero.

    The action that leads to a frame joins its noise level in the modulation, and the output tokens tell how
    proprioception changes. The methods are those of `StreamingVideoDiT`.
    """

    def __init__(self, config: WorldActionConfig, dit: VideoDiT) -> None:
        super().__init__()
        self._dit = (dit,)  # its weights are not these
        self._rounded = config.published
        self.action_embedding = nn.Linear(config.action_dim, config.video.dim, bias=False)
        self.proprio_head = nn.Linear(config.video.dim, config.proprio_dim)
        for weight in self.parameters():
            nn.init.zeros_(weight)

    @property
    def follows_actions(self) -> bool:
        """Whether fine-tuning has taught the frames what actions do."""
        return bool(self.action_embedding.weight.any())

    def embed_frames(self, latents: Tensor, proprio: Tensor, last_latents: Tensor, last_proprio: Tensor) -> Tensor:
        """Latents (..., C, h, w) -> tokens (..., L, D)."""
        dit = self._dit[0]
        return dit.embed_patches(latents.to(dit.patch_embedding.weight.dtype))

    def condition(self, sigma: Tensor, action: Tensor, has_action: Tensor) -> tuple[Tensor, Tensor]:
        """Conditioning of a frame: its noise level and the action that led to it (zero where there is none)."""
        weight = self.action_embedding.weight
        added = self.action_embedding(action.to(weight.dtype)) * has_action.unsqueeze(-1).to(weight.dtype)
        return self._dit[0].embed(sigma, added, self._rounded)

    def read(self, tokens: Tensor, t: Tensor, height: int) -> tuple[Tensor, Tensor]:
        """Tokens (..., L, D) -> velocity of latents (..., C, h, w), change of proprioception (..., P)."""
        dit = self._dit[0]
        change = self.proprio_head(tokens.mean(-2).to(self.proprio_head.weight.dtype))
        return dit.unpatchify(dit.head(tokens, t), height), change


def _ranges(spec: RobotSpec) -> Normaliser:
    def linear(low: Array, high: Array) -> LinearMap:
        scale = 2 / (high.astype(np.float64) - low)
        return LinearMap(scale, -1 - low * scale)

    low, high = (np.array([getattr(f, side) for f in spec.proprio]) for side in ("low", "high"))
    return Normaliser(linear(low, high), linear(spec.action_low, spec.action_high), 0, 0)
