"""WorldActionModel: the published model and its modes, whole clips and action chunks at once.

model  = WorldActionModel.from_pretrained(folder)          what `kairos convert` wrote
clip   = model.generate(prompt, image=None)                 video: t2v, i2v, ti2v

observed = model.encode(pictures)                           latents of real frames
context  = model.context(instructions, proprio=proprio)     what conditions every mode below
chunk  = model.act(observed, context)                       policy: an action chunk, no video computed
chunk, future = model.joint(observed, context)              both denoised together
future = model.imagine(observed, actions, context)          forward: the video under given actions
chunk  = model.infer_actions(video, context)                inverse: the actions behind a video

`WorldModel` drives the same transformer frame by frame; this class is for what needs a whole clip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kairos_env.records import Array
from kairos_env.world_model.action_expert import ActionDiT
from kairos_env.world_model.attention.visibility import LOCAL, Clip, LayerMemory, Mixing, Tokens
from kairos_env.world_model.config import WorldActionConfig, get_release
from kairos_env.world_model.dit import VideoDiT
from kairos_env.world_model.flow import draw_noise, draw_video_noise, schedule, shape_aware_shift
from kairos_env.world_model.mixture import Contexts, MixtureOfTransformers
from kairos_env.world_model.published.memory import explain_out_of_memory
from kairos_env.world_model.sampling import (
    Velocity,
    guided,
    guided_joint,
    sample_actions,
    sample_joint,
    sample_video,
)
from kairos_env.world_model.text.qwen import Context, ContextEncoder, check_width
from kairos_env.world_model.tokenizers.image import VideoTokenizer, to_uint8, to_unit
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

if TYPE_CHECKING:
    from kairos_env.world_model.published.generation import Clip as Video

Mixture = MixtureOfTransformers[VideoDiT, ActionDiT | None]
VideoCache = tuple[LayerMemory | None, ...]  # of observed frames; None in gated delta layers, which actions do not read


def build_transformer(config: WorldActionConfig) -> Mixture:
    """The transformers of a configuration, on torch's current default device (also ``meta``)."""
    video = VideoDiT(config.video, config.latent_channels, config.text_dim)
    action = None
    if config.action is not None:
        action = ActionDiT(config.action, config.video, config.text_dim, config.action_dim, config.proprio_dim)
    return MixtureOfTransformers(video, action)


class WorldActionModel(nn.Module):
    """A published release: transformers, video tokenizer and conditioning encoder.

    Args:
        config: everything that the weights do not say.
        transformer: ``video_dit`` and, with an action expert, ``action_dit``.
        tokenizer: pixels <-> latents; without one the latent methods still work.
        encoder: instructions and pictures -> context tokens; without one contexts must be given.

    Raises:
        ValueError: the encoder's width is not the one that the weights were trained with.
    """

    def __init__(
        self,
        config: WorldActionConfig,
        transformer: Mixture,
        tokenizer: VideoTokenizer | None = None,
        encoder: ContextEncoder | None = None,
    ) -> None:
        super().__init__()
        if encoder is not None:
            check_width(encoder, config)
        if config.generation.tile_first_frame and isinstance(tokenizer, VideoVAE):
            tokenizer = tokenizer.tiled()
        self.config, self.transformer, self.encoder = config, transformer, encoder
        self.tokenizer = tokenizer
        # where tokens meet, and where prompts do: `parallel` replaces both
        self.mixing: Mixing = LOCAL
        self.guided: Callable[[Velocity, Velocity, float], Velocity] = guided

    @classmethod
    def from_release(
        cls,
        release: str | WorldActionConfig,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: VideoTokenizer | None = None,
        encoder: ContextEncoder | None = None,
    ) -> WorldActionModel:
        """A release's architecture with random weights, in evaluation mode: for tests, benchmarks and training."""
        config = get_release(release) if isinstance(release, str) else release
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            transformer = build_transformer(config).to(dtype)
        return cls(config, transformer, tokenizer, encoder).eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        **parts: Any,
    ) -> WorldActionModel:
        """Loads a folder that `kairos convert` or `save_pretrained` wrote.

        Args:
            parts: ``vae`` and ``text`` name other files than the folder's own (see `model_folder.load_world_action`).
        """
        from kairos_env.world_model.published.folder import load_world_action

        return load_world_action(folder, device, dtype, **parts)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes a folder for `from_pretrained`: weights in shards, and a configuration that names every part."""
        from kairos_env.world_model.published.folder import save_world_action

        save_world_action(self, folder)

    @property
    def device(self) -> torch.device:
        return self.transformer.video_dit.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.video_dit.patch_embedding.weight.dtype

    # conditioning ---------------------------------------------------------------------------------------------

    def context(
        self,
        instructions: Sequence[str],
        images: Sequence[Array | None] | None = None,
        proprio: Tensor | None = None,
        proprio_mask: Tensor | None = None,
    ) -> Context:
        """Context tokens of B instructions, and of pictures where the release was trained with them.

        Args:
            images: uint8 (H, W, 3) each, or None where the encoder sees no picture.
            proprio: (B, P) or (B, T, P) normalised; becomes the last token(s). Required with an action expert.
            proprio_mask: like ``proprio``, False for dimensions that the robot does not have.
        """
        if self.encoder is None:
            raise ValueError("this model was built without a conditioning encoder; give one, or a Context")
        return self.condition(self.encoder.encode(instructions, images), proprio, proprio_mask)

    def condition(self, context: Context, proprio: Tensor | None = None, proprio_mask: Tensor | None = None) -> Context:
        """Appends proprioception to encoded instructions, one token a time step; see `context`."""
        tokens = context.tokens.to(self.device, self.dtype)
        mask = None if context.mask is None else context.mask.to(self.device)
        if tokens.ndim != 3 or tokens.shape[-1] != self.config.text_dim:
            raise ValueError(
                f"context tokens (B, S, {self.config.text_dim}) expected by {self.config.name!r}, "
                f"got {tuple(tokens.shape)}"
            )
        if proprio is None:
            return Context(tokens, mask)
        expert = self._expert()
        state = proprio if proprio.ndim == 3 else proprio.unsqueeze(1)
        if state.shape[0] != tokens.shape[0] or state.shape[-1] != self.config.proprio_dim:
            raise ValueError(
                f"proprioception (B, P) = ({tokens.shape[0]}, {self.config.proprio_dim}) expected by "
                f"{self.config.name!r}, got {tuple(proprio.shape)}"
            )
        known = torch.ones_like(state, dtype=torch.bool) if proprio_mask is None else proprio_mask.view_as(state)
        state, known = state.to(self.device, self.dtype), known.to(self.device)
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        return Context(
            torch.cat([tokens, expert.proprio_encoder(state * known)], 1), torch.cat([mask, known.any(-1)], 1)
        )

    # single passes --------------------------------------------------------------------------------------------

    def rule(self, history: int, keep: bool = False, **visible: bool) -> Clip:
        """The release's rule for a clip that starts with ``history`` observed latent frames; ``visible`` as there."""
        config = self.config
        return Clip(
            config.video,
            history,
            config.restrict_history,
            window_unit=config.window_unit,
            pad_dilated=config.published,
            mixing=self.mixing,
            keep=keep,
            **visible,
        )

    def embed_video(self, latents: Tensor, sigma: Tensor) -> Tokens:
        """Latents (B, F, C, h, w) at noise levels sigma (B, F), as the blocks take them here."""
        return self.transformer.video_dit.embed_clip(latents.to(self.dtype), sigma, self.config.published)

    def run_video(self, video: Tokens, context: Contexts, rule: Clip) -> Tensor:
        """Embedded frames through all blocks: (B, F, L, D)."""
        tokens = self.transformer.run(self.mixing.split(video), None, context, rule).video
        assert tokens is not None
        return self.mixing.join(tokens)

    @torch.no_grad()
    def read_context(self, context: Context | Contexts, video: bool = True, action: bool = True) -> Contexts:
        """A context as the blocks see it, for the experts that will run. Every pass takes it in the context's place:
        whoever makes several under one context reads it once.
        """
        if isinstance(context, Contexts):
            return context
        return self.transformer.read_context(context.tokens.to(self.dtype), context.mask, video, action)

    @torch.no_grad()
    def velocity(self, latents: Tensor, sigma: Tensor, context: Context | Contexts, history: int = 0) -> Tensor:
        """Video mode: velocity (B, F, C, h, w) of noisy latents at noise levels sigma (B, F).

        Args:
            history: number of observed frames at the start; their noise level is 0.
        """
        video = self.embed_video(latents, sigma)
        tokens = self.run_video(video, self.read_context(context, action=False), self.rule(history))
        return self.transformer.video_dit.read_clip(tokens, video, latents.shape[-2])

    @torch.no_grad()
    def prefill(self, latents: Tensor, context: Context | Contexts) -> VideoCache:
        """Policy mode, once a decision: keys and values of observed frames (B, F, C, h, w)."""
        video = self.embed_video(latents, latents.new_zeros(latents.shape[:2]))
        contexts, rule = self.read_context(context, action=False), self.rule(latents.shape[1], keep=True)
        return self.transformer.run(self.mixing.split(video), None, contexts, rule).memory

    @torch.no_grad()
    def action_velocity(self, actions: Tensor, sigma: Tensor, context: Context | Contexts, cache: VideoCache) -> Tensor:
        """Policy mode, every denoising step: velocity (B, N, A) at noise levels sigma (B,). No video is computed."""
        action = self._embed_actions(actions, sigma)
        contexts = self.read_context(context, video=False)
        tokens = self.transformer.run(None, action, contexts, self.rule(1), cache).action
        assert tokens is not None
        return self._expert().read(tokens)

    @torch.no_grad()
    def joint_velocity(
        self,
        latents: Tensor,
        sigma_v: Tensor,
        actions: Tensor,
        sigma_a: Tensor,
        context: Context | Contexts,
        history: int = 1,
        actions_see_future: bool = False,
        video_sees_actions: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Video and actions in one pass, each at its own noise level: joint, inverse and forward mode.

        Args:
            latents: (B, F, C, h, w) at noise levels sigma_v (B, F).
            actions: (B, N, A) at noise levels sigma_a (B,).
            actions_see_future, video_sees_actions: see `Clip`; released weights were trained with neither.

        Returns:
            velocities (B, F, C, h, w) and (B, N, A).
        """
        video = self.embed_video(latents, sigma_v)
        rule = self.rule(history, actions_see_future=actions_see_future, video_sees_actions=video_sees_actions)
        action = self._embed_actions(actions, sigma_a)
        contexts, own = self.read_context(context), self.mixing.split(video)
        tokens, action_tokens, _ = self.transformer.run(own, action, contexts, rule)
        assert tokens is not None and action_tokens is not None
        velocity = self.transformer.video_dit.read_clip(self.mixing.join(tokens), video, latents.shape[-2])
        return velocity, self._expert().read(action_tokens)

    def _expert(self) -> ActionDiT:
        expert = self.transformer.action_dit
        if expert is None:
            raise ValueError(f"release {self.config.name!r} has no action expert; world-action releases have one")
        return expert

    def _embed_actions(self, actions: Tensor, sigma: Tensor) -> Tokens:
        if actions.ndim != 3 or actions.shape[-1] != self.config.action_dim:
            raise ValueError(f"actions (B, N, {self.config.action_dim}) expected, got {tuple(actions.shape)}")
        return self._expert().embed_chunk(actions.to(self.dtype), sigma, self.config.published)

    # the verbs ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, video: Array) -> Tensor:
        """Pictures uint8 (B, T, H, W, 3), T = 4 n + 1, or (B, H, W, 3) for one frame -> latents (B, F, C, h, w)."""
        if self.tokenizer is None:
            raise ValueError("this model was built without a video tokenizer; give one, or latents")
        frames = np.asarray(video)
        if frames.ndim not in (4, 5) or frames.dtype != np.uint8 or frames.shape[-1] != 3:
            raise ValueError(
                f"pictures are uint8 RGB (B, H, W, 3) or (B, T, H, W, 3), got {frames.dtype} {frames.shape}"
            )
        pixels = to_unit(torch.from_numpy(np.ascontiguousarray(frames)))
        pixels = pixels if pixels.ndim == 5 else pixels.unsqueeze(1)
        return self.tokenizer.encode_video(pixels.to(self.device)).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Array:
        """Latents (B, F, C, h, w) -> uint8 (B, T, H, W, 3)."""
        if self.tokenizer is None:
            raise ValueError("this model was built without a video tokenizer: its latents cannot be shown")
        return to_uint8(self.tokenizer.decode_video(latents)).cpu().numpy()

    def generate(self, prompt: str = "", image: Array | None = None, **settings: Any) -> Video:
        """Video from text, from a first picture, or from both; see `generation.generate` for the settings."""
        from kairos_env.world_model.published.generation import generate

        return generate(self, prompt, image, **settings)

    def act(
        self,
        observed: Tensor,
        context: Context,
        steps: int | None = None,
        horizon: int | None = None,
        seeds: Sequence[int] | int = 0,
    ) -> Tensor:
        """Policy mode: a normalised action chunk (B, N, A), float32. The video runs once, for its keys and values.

        Args:
            observed: latents (B, F, C, h, w) of what was seen; released policies know F = 1.
            context: of `context`, proprioception included.
            steps: denoising steps; horizon: N; both default to the release's.
            seeds: of the noise, one for all elements or one each; an element's chunk depends on its own seed alone.
        """
        noise = self._action_noise(len(observed), horizon, seeds)
        steps = steps or self.config.generation.action_steps
        with self._explained(observed, observed.shape[1]):
            return self.denoise_actions(observed, context, noise, steps).float()

    def denoise_actions(self, observed: Tensor, context: Context, noise: Tensor, steps: int) -> Tensor:
        """`act` from given noise: (B, N, A) -> (B, N, A)."""
        cache = self.prefill(observed, context)
        contexts = self.read_context(context, video=False)

        def velocity(actions: Tensor, sigma: Tensor) -> Tensor:
            return self.action_velocity(actions, sigma, contexts, cache)

        return sample_actions(velocity, noise, self._action_levels(steps))

    def infer_actions(
        self,
        video: Tensor,
        context: Context,
        steps: int | None = None,
        horizon: int | None = None,
        seeds: Sequence[int] | int = 0,
    ) -> Tensor:
        """Inverse mode: the actions (B, N, A) behind a video (B, F, C, h, w), every frame of which was observed."""
        return self.act(video, context, steps, horizon, seeds)

    def joint(
        self,
        observed: Tensor,
        context: Context,
        frames: int | None = None,
        steps: int | None = None,
        horizon: int | None = None,
        seeds: Sequence[int] | int = 0,
        actions_see_future: bool = False,
        negative: Context | None = None,
        guidance: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Joint mode: actions (B, N, A) and the video (B, F, C, h, w) that goes with them, denoised side by side.

        Args:
            observed: latents (B, n, C, h, w) of the first frames; they come back unchanged.
            frames: of the clip in pictures, 4 n + 1.
            actions_see_future: the actions see the frames as they are denoised; released weights never did.
            negative, guidance: classifier-free guidance of the frames against this context.
        """
        number = self._latent_frames(frames)
        history = observed.shape[1]
        contexts = self.read_context(context)
        other = negative and self.read_context(negative, action=False)

        def both(latents: Tensor, sigma: Tensor, actions: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
            return self.joint_velocity(latents, sigma, actions, level, contexts, history, actions_see_future)

        def against(latents: Tensor, sigma: Tensor) -> Tensor:
            assert other is not None
            return self.velocity(latents, sigma, other, history)

        steps = steps or self.config.generation.action_steps
        with self._explained(observed, number):
            latents, actions = sample_joint(
                both if negative is None or guidance == 1 else guided_joint(both, against, guidance),
                self._video_noise(observed, number, seeds),
                self._action_noise(len(observed), horizon, seeds),
                self._video_levels(steps, observed, number),
                self._action_levels(steps),
                observed,
            )
        return actions.float(), latents

    def imagine(
        self,
        observed: Tensor,
        actions: Tensor,
        context: Context,
        frames: int | None = None,
        steps: int | None = None,
        seeds: Sequence[int] | int = 0,
    ) -> Tensor:
        """Forward mode: the video (B, F, C, h, w) that normalised actions (B, N, A) lead to.

        A frame sees the actions that lead up to it. Released weights were never trained so: their video ignores
        actions, and this mode needs fine-tuned ones.
        """
        number, history = self._latent_frames(frames), observed.shape[1]
        clean = actions.new_zeros(len(actions), dtype=torch.float32)
        contexts = self.read_context(context)

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            return self.joint_velocity(latents, sigma, actions, clean, contexts, history, video_sees_actions=True)[0]

        steps = steps or self.config.generation.steps
        with self._explained(observed, number):
            noise = self._video_noise(observed, number, seeds)
            return sample_video(velocity, noise, self._video_levels(steps, observed, number), observed)

    def _explained(self, observed: Tensor, number: int) -> AbstractContextManager[None]:
        """For a clip of ``number`` latent frames that begins with the observed ones."""
        height, width = (8 * cells for cells in observed.shape[-2:])
        size = 4 * (number - 1) + 1, height, width
        return explain_out_of_memory(self.config, *size, self.device, self.dtype, len(observed))

    def _latent_frames(self, frames: int | None) -> int:
        frames = frames or self.config.generation.frames
        if frames % 4 != 1:
            low = max(1, (frames - 1) // 4 * 4 + 1)
            raise ValueError(f"a clip has 4 n + 1 frames, got {frames}; the nearest are {low} and {low + 4}")
        return (frames - 1) // 4 + 1

    def _video_levels(self, steps: int, observed: Tensor, frames: int) -> list[float]:
        tokens = observed.shape[-2] * observed.shape[-1] // self.config.video.patch**2
        return schedule(steps, shape_aware_shift(tokens, frames))

    def _action_levels(self, steps: int) -> list[float]:
        return schedule(steps, self.config.generation.action_shift)

    def _video_noise(self, observed: Tensor, frames: int, seeds: Sequence[int] | int) -> Tensor:
        return self._noise(draw_video_noise(_each(seeds, len(observed)), (frames, *observed.shape[2:])))

    def _action_noise(self, batch: int, horizon: int | None, seeds: Sequence[int] | int) -> Tensor:
        shape = (horizon or self._expert().config.chunk, self.config.action_dim)
        # published: actions and frames start from the same seed, so that their first values coincide
        stream = 0 if self.config.published else 1
        return self._noise(draw_noise(_each(seeds, batch), shape, stream=stream, generator="torch"))

    def _noise(self, noise: Tensor) -> Tensor:
        """Published sampling stays in the weights' dtype; otherwise the data are float32 between the steps."""
        return noise.to(self.device, self.dtype if self.config.published else torch.float32)


def _each(seeds: Sequence[int] | int, batch: int) -> Sequence[int]:
    each = [seeds] * batch if isinstance(seeds, int) else list(seeds)
    if len(each) != batch:
        raise ValueError(f"{len(each)} seeds for a batch of {batch}: give one for all, or one each")
    return each
