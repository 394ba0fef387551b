"""Single passes of the published weights over whole clips and chunks, and what conditions them.

`world_action` makes verbs of them, `generation` clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from kairos_env.records import Array
from kairos_env.world_model.action_expert import ActionDiT
from kairos_env.world_model.attention.visibility import LayerMemory, Tokens
from kairos_env.world_model.attention.whole_clip import LOCAL, Mixing, WholeClip
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.dit import VideoDiT
from kairos_env.world_model.mixture import Contexts, MixtureOfTransformers
from kairos_env.world_model.published.pixels import bytes_to_pixels, pixels_to_bytes
from kairos_env.world_model.published.releases import RELEASES, get_release
from kairos_env.world_model.sampling import Velocity, guided
from kairos_env.world_model.text.context import Context, ContextEncoder
from kairos_env.world_model.tokenizers.image import VideoTokenizer, to_uint8, to_unit
from kairos_env.world_model.tokenizers.visiting import VisitingVAE
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

Mixture = MixtureOfTransformers[VideoDiT, ActionDiT | None]
VideoCache = tuple[LayerMemory | None, ...]  # of observed frames; None in gated delta layers, which actions do not read


def build_transformer(config: WorldActionConfig) -> Mixture:
    """The transformers of a configuration, on torch's current default device (also ``meta``)."""
    video = VideoDiT(config.video, config.latent_channels, config.text_dim)
    action = None
    if config.action is not None:
        action = ActionDiT(config.action, config.video, config.text_dim, config.action_dim, config.proprio_dim)
    return MixtureOfTransformers(video, action)


class ClipPasses(nn.Module):
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
        if config.generation.tiled and isinstance(tokenizer, VideoVAE):
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
    ) -> Self:
        """A release's architecture with random weights, in evaluation mode: for tests, benchmarks and training."""
        config = get_release(release) if isinstance(release, str) else release
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            transformer = build_transformer(config).to(dtype)
        return cls(config, transformer, tokenizer, encoder).eval()

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

    def rule(self, history: int, keep: bool = False, **visible: bool) -> WholeClip:
        """The release's rule for a clip that starts with ``history`` observed latent frames; ``visible`` as there."""
        config = self.config
        return WholeClip(
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

    def run_video(self, video: Tokens, context: Contexts, rule: WholeClip) -> Tensor:
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
    def prefill(self, latents: Tensor, context: Context | Contexts, history: int | None = None) -> VideoCache:
        """Policy mode, once a decision: keys and values of observed frames (B, F, C, h, w).

        Args:
            history: how many of them are the clip's first frames to the rule; None is all of them.
        """
        video = self.embed_video(latents, latents.new_zeros(latents.shape[:2]))
        history = latents.shape[1] if history is None else history
        contexts, rule = self.read_context(context, action=False), self.rule(history, keep=True)
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
            actions_see_future, video_sees_actions: see `WholeClip`; released weights were trained with neither.

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

    # pictures ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, video: Array, tiled: bool | None = None) -> Tensor:
        """Pictures uint8 (B, T, H, W, 3), T = 4 n + 1, or (B, H, W, 3) for one frame -> latents (B, F, C, h, w).

        Args:
            tiled: in the published tiles, or whole; None as the model's tokenizer does.
        """
        tokenizer = self._tokenizer(tiled)
        frames = np.asarray(video)
        if frames.ndim not in (4, 5) or frames.dtype != np.uint8 or frames.shape[-1] != 3:
            raise ValueError(
                f"pictures are uint8 RGB (B, H, W, 3) or (B, T, H, W, 3), got {frames.dtype} {frames.shape}"
            )
        images = torch.from_numpy(np.array(frames, order="C"))  # a copy: films and pictures are read-only
        pixels = bytes_to_pixels(images, self.dtype) if self.config.published else to_unit(images)
        pixels = pixels if pixels.ndim == 5 else pixels.unsqueeze(1)
        return tokenizer.encode_video(pixels.to(self.device)).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor, tiled: bool | None = None) -> Array:
        """Latents (B, F, C, h, w) -> uint8 (B, T, H, W, 3); ``tiled`` as in `encode`."""
        pixels = self._tokenizer(tiled).decode_video(latents)
        return (pixels_to_bytes if self.config.published else to_uint8)(pixels).cpu().numpy()

    def _tokenizer(self, tiled: bool | None) -> VideoTokenizer:
        """The tokenizer, working in tiles or not."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError("this model was built without a video tokenizer; give one, or work with latents")
        if tiled is None or not isinstance(tokenizer, (VideoVAE, VisitingVAE)):
            return tokenizer
        return tokenizer.tiled() if tiled else tokenizer.tiled(None, None)


def check_width(encoder: ContextEncoder, config: WorldActionConfig) -> None:
    """An encoder fits the weights that were trained with its kind and width.

    Raises:
        ValueError: it does not; the message says which encoder would, and what this one fits.
    """
    kind = getattr(encoder, "kind", None)
    if encoder.text_dim == config.text_dim and kind in (None, config.text_encoder):
        return
    fits = [name for name, r in RELEASES.items() if r.text_dim == encoder.text_dim and kind in (None, r.text_encoder)]
    raise ValueError(
        f"{config.name} was trained with contexts of {config.text_encoder}, width {config.text_dim}; this encoder is "
        f"{kind or type(encoder).__name__}, width {encoder.text_dim}. Use QwenEncoder.from_pretrained("
        f"{config.text_source!r}, {config.text_encoder!r}). "
        f"This encoder fits: {', '.join(fits) or 'no published release'}"
    )
