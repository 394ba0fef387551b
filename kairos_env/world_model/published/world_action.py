"""WorldActionModel: the published model and its modes, whole clips and action chunks at once.

model  = WorldActionModel.from_pretrained(folder)          what `kairos convert` wrote
clip   = model.generate(prompt, image=None)                 video: t2v, i2v, ti2v

observed = model.encode(pictures)                           latents of real frames
context  = model.context(instructions, proprio=proprio)     what conditions every mode below
chunk  = model.act(observed, context)                       policy: an action chunk, no video computed
chunk, future = model.joint(observed, context)              both denoised together
future = model.imagine(observed, actions, context)          forward: the video under given actions
chunk  = model.infer_actions(video, context)                inverse: the actions behind a video

`WorldModel` drives the same transformers frame by frame, and has these verbs where it was made of published weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor

from kairos_env.records import Array
from kairos_env.runs import did_you_mean
from kairos_env.world_model.flow import draw_noise, draw_video_noise, schedule, shape_aware_shift
from kairos_env.world_model.published.folder import load_parts, save_parts
from kairos_env.world_model.published.generation import GeneratedClip, GenerationRequest, generate
from kairos_env.world_model.published.memory import explain_out_of_memory
from kairos_env.world_model.published.passes import ClipPasses
from kairos_env.world_model.published.robot_part import RobotPart
from kairos_env.world_model.sampling import guided_joint, sample_actions, sample_joint, sample_video
from kairos_env.world_model.text.context import Context


class WorldActionModel(ClipPasses):
    """A published release: transformers, video tokenizer and conditioning encoder; see `ClipPasses`."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.bfloat16,
        **parts: Any,
    ) -> Self:
        """Loads a folder that `kairos convert` or `save_pretrained` wrote.

        Args:
            parts: ``vae`` and ``text`` name other files than the folder's own (see `folder.load_parts`).
        """
        return cls(*load_parts(folder, device, dtype, **parts)).eval()

    def save_pretrained(self, folder: str | os.PathLike[str], robot: RobotPart | None = None) -> None:
        """Writes a folder for `from_pretrained`: weights in shards, and a configuration that names every part."""
        save_parts(self, folder, robot=robot)

    # the verbs ------------------------------------------------------------------------------------------------

    def generate(
        self, prompt: str = "", image: Array | None = None, progress: bool = True, **options: Any
    ) -> GeneratedClip:
        """Video from text, from a first picture, or from both; `GenerationRequest` has the options."""
        legal = [field.name for field in dataclasses.fields(GenerationRequest)]
        for name in options.keys() - legal:
            raise ValueError(f"generate has no option {name!r}; {did_you_mean(name, legal)}")
        return generate(self, GenerationRequest(prompt, **options), image, progress)

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
        return self._chunk(observed, context, steps, horizon, seeds)

    def _chunk(
        self,
        observed: Tensor,
        context: Context,
        steps: int | None,
        horizon: int | None,
        seeds: Sequence[int] | int,
        history: int | None = None,
    ) -> Tensor:
        noise = self.action_noise(len(observed), horizon, seeds)
        steps = steps or self.config.generation.action_steps
        with self._explained(observed, observed.shape[1]):
            return self.denoise_actions(observed, context, noise, steps, history).float()

    def denoise_actions(
        self, observed: Tensor, context: Context, noise: Tensor, steps: int, history: int | None = None
    ) -> Tensor:
        """`act` from given noise: (B, N, A) -> (B, N, A); ``history`` as in `prefill`."""
        cache = self.prefill(observed, context, history)
        contexts = self.read_context(context, video=False)

        def velocity(actions: Tensor, sigma: Tensor) -> Tensor:
            return self.action_velocity(actions, sigma, contexts, cache)

        return sample_actions(velocity, noise, self.action_levels(steps))

    def infer_actions(
        self,
        video: Tensor,
        context: Context,
        steps: int | None = None,
        horizon: int | None = None,
        seeds: Sequence[int] | int = 0,
    ) -> Tensor:
        """Inverse mode: the actions (B, N, A) behind a video (B, F, C, h, w), every frame of which was observed.

        The rule is FastWAM's of inverse dynamics: the first frame sees itself alone, the others see the video, and
        the actions see all of it.
        """
        return self._chunk(video, context, steps, horizon, seeds, history=1)

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
                self.action_noise(len(observed), horizon, seeds),
                self.video_levels(steps, observed, number),
                self.action_levels(steps),
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
            return sample_video(velocity, noise, self.video_levels(steps, observed, number), observed)

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

    def video_levels(self, steps: int, observed: Tensor, frames: int) -> list[float]:
        """Noise levels of a clip of ``frames`` latent frames like the observed ones (..., C, h, w)."""
        tokens = observed.shape[-2] * observed.shape[-1] // self.config.video.patch**2
        return schedule(steps, shape_aware_shift(tokens, frames))

    def action_levels(self, steps: int) -> list[float]:
        """Noise levels of an action chunk."""
        return schedule(steps, self.config.generation.action_shift)

    def _video_noise(self, observed: Tensor, frames: int, seeds: Sequence[int] | int) -> Tensor:
        return self._noise(draw_video_noise(_each(seeds, len(observed)), (frames, *observed.shape[2:])))

    def action_noise(self, batch: int, horizon: int | None, seeds: Sequence[int] | int) -> Tensor:
        """Noise of B chunks (B, N, A), as published."""
        shape = (horizon or self._expert().config.chunk, self.config.action_dim)
        # published: actions and frames start from the same seed, so that their first values coincide
        stream = 0 if self.config.published else 1
        return self._noise(draw_noise(_each(seeds, batch), shape, stream=stream, generator="torch"))

    def _noise(self, noise: Tensor) -> Tensor:
        """Published sampling stays in the weights' dtype; otherwise the data are float32 between the steps."""
        return noise.to(self.device, self.sampling_dtype)

    @property
    def sampling_dtype(self) -> torch.dtype:
        """Of the data between denoising steps."""
        return self.dtype if self.config.published else torch.float32


def _each(seeds: Sequence[int] | int, batch: int) -> Sequence[int]:
    each = [seeds] * batch if isinstance(seeds, int) else list(seeds)
    if len(each) != batch:
        raise ValueError(f"{len(each)} seeds for a batch of {batch}: give one for all, or one each")
    return each
