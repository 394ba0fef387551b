"""WorldModel: the verbs. Everything else in the package uses only these.

state = model.observe(observation)          real frames -> WorldState
out   = model.step(state, action)           forward: one imagined decision
chunk = model.act(state)                    policy: an action chunk, no video computed
roll  = model.imagine(state, actions)       many imagined decisions
frames = model.decode(latents)              pixels, only when someone looks
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.world_model.action_expert import StreamingActionDiT
from kairos_env.world_model.config import WorldModelConfig, get_preset
from kairos_env.world_model.dit import StreamingVideoDiT
from kairos_env.world_model.flow import draw_noise, schedule, to_sample
from kairos_env.world_model.heads import FrameHeads, Readout
from kairos_env.world_model.mixture import Contexts, MixtureOfTransformers
from kairos_env.world_model.sampling import Parts, denoise, towards
from kairos_env.world_model.state import Rollout, StepOutput, WorldState
from kairos_env.world_model.text.small import make_encoder
from kairos_env.world_model.tokenizers.image import DOWNSAMPLING, Tokenizer, to_uint8, to_unit

VIDEO_NOISE, PROPRIO_NOISE, ACTION_NOISE = 0, 1, 2  # noise streams
Verb = TypeVar("Verb", bound=Callable[..., Any])
Precision = Literal["fp32", "bf16"]
LATENT_LIMIT = 6.0  # normalised latents beyond this many standard deviations are no picture


@dataclass(frozen=True)
class Statistics:
    """Normalisation that travels with the weights: normalised = (x - mean) / std, per channel or dimension."""

    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    proprio_mean: tuple[float, ...]
    proprio_std: tuple[float, ...]

    @classmethod
    def identity(cls, channels: int, proprio: int) -> Statistics:
        return cls((0.0,) * channels, (1.0,) * channels, (0.0,) * proprio, (1.0,) * proprio)


def _verb(method: Verb) -> Verb:
    """Runs a verb without gradient and in the model's precision."""

    @functools.wraps(method)
    def run(self: WorldModel, *args: Any, **kwargs: Any) -> Any:
        lower = self.precision == "bf16"
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


class WorldModel(nn.Module):
    """A world-action model of one robot. Build with `from_pretrained` or `from_preset`.

    Args:
        config: shapes and defaults.
        spec: the robot whose observations and actions it knows.
        tasks: task name -> instruction text that it was trained on.
        statistics: normalisation; identity if absent (before training).
        starts: real observations from which imagination can start without a simulator.
    """

    def __init__(
        self,
        config: WorldModelConfig,
        spec: RobotSpec,
        tasks: Mapping[str, str],
        statistics: Statistics | None = None,
        starts: Sequence[Observation] = (),
    ) -> None:
        super().__init__()
        sizes = {(c.height, c.width) for c in spec.cameras}
        unit = DOWNSAMPLING * config.video.patch
        if len(sizes) != 1 or any(side % unit for side in next(iter(sizes))):
            raise ValueError(
                f"the cameras of {spec.name!r} have sizes {sorted(sizes)}; this model needs one common size with "
                f"sides divisible by {unit}"
            )
        height, width = next(iter(sizes))
        self.config, self.spec, self.tasks, self.starts = config, spec, dict(tasks), tuple(starts)
        channels = config.tokenizer.latent_channels
        self.latent_shape = (channels, height // DOWNSAMPLING, width // DOWNSAMPLING * len(spec.cameras))
        self.grid = (self.latent_shape[1] // config.video.patch, self.latent_shape[2] // config.video.patch)
        self.frame_tokens = 1 + self.grid[0] * self.grid[1]
        self.tokenizer = Tokenizer(config.tokenizer)
        self.text = make_encoder(config.text)
        self.mixture = MixtureOfTransformers(
            StreamingVideoDiT(config.video, channels, config.text.dim, spec.proprio_dim, spec.action_dim),
            StreamingActionDiT(config.action, config.video, config.text.dim, spec.action_dim),
        )
        self.heads = FrameHeads(config.video.dim, self.frame_tokens, config.text.dim, config.head_dim)
        low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
        self.register_buffer("action_mid", (low + high) / 2, persistent=False)
        self.register_buffer("action_half", (high - low) / 2, persistent=False)
        for name in ("latent_mean", "latent_std", "proprio_mean", "proprio_std"):
            self.register_buffer(name, torch.zeros(0), persistent=False)
        self.set_statistics(statistics or Statistics.identity(channels, spec.proprio_dim))

    mixture: MixtureOfTransformers[StreamingVideoDiT, StreamingActionDiT]
    precision: Precision = "fp32"
    action_mid: Tensor
    action_half: Tensor
    latent_mean: Tensor
    latent_std: Tensor
    proprio_mean: Tensor
    proprio_std: Tensor

    # construction ---------------------------------------------------------------------------------------------

    @classmethod
    def from_preset(cls, name: str, spec: RobotSpec, tasks: Mapping[str, str], seed: int = 0) -> WorldModel:
        """A randomly initialised model (``debug``, ``tiny``, ``small``), in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(get_preset(name), spec, tasks).eval()

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], device: str | torch.device = "cpu", precision: Precision = "fp32"
    ) -> WorldModel:
        """Loads a bundled model by name, or a folder written by `save_pretrained`.

        Args:
            precision: ``"bf16"`` computes the verbs under bfloat16 autocast: faster in large batches on hardware with
                bfloat16 units. A trajectory then depends, by rounding, on the batch around it.
        """
        from kairos_env.world_model.checkpoint import load

        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is 'fp32' or 'bf16', got {precision!r}")
        model = load(name, device)
        model.precision = precision
        return model

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights, configuration, statistics and starts to ``folder``, each file atomically."""
        from kairos_env.world_model.checkpoint import save

        save(self, folder)

    def set_statistics(self, statistics: Statistics) -> None:
        self.statistics = statistics
        device = self.action_mid.device
        for field in dataclasses.fields(statistics):
            setattr(self, field.name, torch.tensor(getattr(statistics, field.name), device=device))

    @property
    def device(self) -> torch.device:
        return self.action_mid.device

    @property
    def chunk_length(self) -> int:
        return self.config.action.chunk

    # boundaries: physical <-> normalised ----------------------------------------------------------------------

    def normalise_actions(self, actions: Array | Tensor) -> Tensor:
        """Physical (..., A) -> [-1, 1]; a wrong size or a non-finite value is an error, excess is clipped."""
        array = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else actions
        legal = torch.as_tensor(self.spec.check_action(array), device=self.device)
        return (legal - self.action_mid) / self.action_half

    def physical_actions(self, actions: Tensor) -> Tensor:
        """[-1, 1] -> physical (..., A), clipped to the robot's range."""
        return actions.float().clamp(-1, 1) * self.action_half + self.action_mid

    def normalise_proprio(self, proprio: Tensor) -> Tensor:
        return (proprio - self.proprio_mean) / self.proprio_std

    def physical_proprio(self, proprio: Tensor) -> Tensor:
        return proprio.float() * self.proprio_std + self.proprio_mean

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """Camera -> uint8 (B, H, W, 3); returns normalised latents (B, C, h, w), cameras side by side."""
        return torch.cat([self.encode_view(images[c.name]) for c in self.spec.cameras], -1)

    def encode_view(self, images: Tensor) -> Tensor:
        """One camera's uint8 (B, H, W, 3) -> its part of the normalised latents."""
        latents = self.tokenizer.encode(to_unit(images)).float()
        return (latents - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    @property
    def encoder_sha256(self) -> str:
        """Of all that makes latents out of pictures: models that agree in it read each other's latents."""
        parts = self.tokenizer.state_dict() | {"mean": self.latent_mean, "std": self.latent_std}
        digest = hashlib.sha256()
        for name, tensor in sorted(parts.items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @_verb
    def encode(self, observations: Sequence[Observation]) -> Tensor:
        """Observations -> normalised latents (B, C, h, w)."""
        images = {
            c.name: torch.from_numpy(np.stack([o.images[c.name] for o in observations])).to(self.device)
            for c in self.spec.cameras
        }
        return self.encode_images(images)

    @_verb
    def decode(self, latents: Tensor) -> dict[str, Array]:
        """Normalised latents (..., C, h, w) -> camera -> uint8 (..., H, W, 3)."""
        flat = latents.reshape(-1, *self.latent_shape)
        flat = flat * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        views = self.tokenizer.decode(torch.cat(flat.chunk(len(self.spec.cameras), -1)))
        images = to_uint8(views).cpu().numpy().reshape(len(self.spec.cameras), *latents.shape[:-3], *views.shape[2:], 3)
        return {c.name: image for c, image in zip(self.spec.cameras, images, strict=True)}

    # the verbs ------------------------------------------------------------------------------------------------

    @_verb
    def observe(
        self,
        observation: Observation | Sequence[Observation],
        state: WorldState | None = None,
        action: Array | Tensor | None = None,
        seeds: Sequence[int] | None = None,
    ) -> WorldState:
        """Remembers one real frame per batch element.

        Args:
            observation: one, or a sequence of B.
            state: memory so far; None starts afresh. Its instruction stays.
            action: (B, A) physical, what led from the last frame of ``state`` to this one; required with ``state``.
            seeds: (B,) noise seeds of a fresh state, default 0.

        Raises:
            SpecMismatch: an observation of another robot.
            ValueError: an action without a state or the reverse, sizes that differ.
        """
        batch = [observation] if isinstance(observation, Observation) else list(observation)
        for item in batch:
            item.check(self.spec)
        if (state is None) != (action is None):
            raise ValueError("observe needs the action that led to the frame exactly when a state is given")
        latent = self.encode(batch)
        proprio = torch.as_tensor(np.stack([o.proprio for o in batch]), dtype=torch.float32, device=self.device)
        if state is None:
            texts = sorted({o.instruction for o in batch})
            codes = self.text(self.text.codes(texts).to(self.device))
            state = self.initial_state(codes[[texts.index(o.instruction) for o in batch]], seeds)
        elif state.batch_size != len(batch):
            raise ValueError(f"{len(batch)} observations for a state of batch size {state.batch_size}")
        lead = None if action is None else self.normalise_actions(action)
        return self.remember(state, latent[:, None], proprio[:, None], None if lead is None else lead[:, None])

    def initial_state(self, context: Tensor, seeds: Sequence[int] | None = None) -> WorldState:
        """The empty memory for an instruction: context (B, S, text)."""
        batch = len(context)
        seed = torch.as_tensor(seeds if seeds is not None else [0] * batch, dtype=torch.int64, device=self.device)
        if seed.shape != (batch,):
            raise ValueError(f"got {tuple(seed.shape)} seeds for {batch} observations")
        zeros = torch.zeros(batch, device=self.device)
        proprio = self.proprio_mean.expand(batch, -1)
        layers = self.mixture.empty_memory(batch, self.frame_tokens)
        latent = torch.zeros(batch, *self.latent_shape, device=self.device)
        return WorldState(layers, seed.new_zeros(batch), latent, proprio, context, seed, zeros, zeros)

    @_verb
    def step(self, state: WorldState, action: Array | Tensor, steps: int | None = None) -> StepOutput:
        """Imagines what one action does.

        Args:
            action: (B, A) physical units.
            steps: denoising steps, default of the model's configuration.
        """
        lead = self.normalise_actions(action)
        if lead.shape[0] != state.batch_size or lead.ndim != 2:
            raise ValueError(
                f"step takes actions (B, A) = ({state.batch_size}, {self.spec.action_dim}), got {tuple(lead.shape)}"
            )
        last_proprio = self.normalise_proprio(state.proprio)
        log_error = lead.new_zeros(state.batch_size)

        def predict(data: Parts, level: tuple[float, ...]) -> Parts:
            nonlocal log_error
            latent, proprio = data
            *samples, tokens = self._denoise(state, lead, latent, proprio, last_proprio, level[0])
            log_error = self.heads.log_error(tokens)[:, 0]
            return tuple(samples)

        levels = schedule(steps or self.config.denoising_steps)
        noise = (
            self._noise(state, VIDEO_NOISE, *self.latent_shape),
            self._noise(state, PROPRIO_NOISE, self.spec.proprio_dim),
        )
        latent, proprio = denoise(predict, noise, [levels] * 2, towards)
        physical = self.physical_proprio(proprio)
        # not clipped when non-finite: NaN must stay visible to whoever steps
        latent = latent.clamp(-LATENT_LIMIT, LATENT_LIMIT)
        new = self.remember(state, latent[:, None], physical[:, None], lead[:, None], self.config.imagined_level)
        return StepOutput(new, latent, physical, new.reward, new.success, (0.5 * log_error).exp())

    @_verb
    def imagine(self, state: WorldState, actions: Array | Tensor, steps: int | None = None) -> Rollout:
        """Imagines the consequences of an action sequence (B, horizon, A), physical units."""
        outputs = []
        for index in range(actions.shape[1]):
            out = self.step(state, actions[:, index], steps)
            state = out.state
            outputs.append(out)
        stacked = {
            name: torch.stack([getattr(out, name) for out in outputs], 1)
            for name in ("proprio", "reward", "success", "uncertainty")
        }
        return Rollout(latents=torch.stack([out.latent for out in outputs], 1), state=state, **stacked)

    @_verb
    def act(self, state: WorldState, steps: int | None = None) -> Tensor:
        """Proposes an action chunk (B, N, A), physical units. No video is computed."""
        expert = self.mixture.action_dit
        context = self.mixture.read_context(state.context, video=False)

        def predict(data: Parts, level: tuple[float, ...]) -> list[Tensor]:
            actions = data[0]
            sigma = actions.new_full((state.batch_size,), level[0])
            _, modulation = expert.embed(sigma)
            chunk = expert.action_encoder(actions), modulation
            tokens = self.mixture.propose(chunk, context, state.layers, state.past)
            return [to_sample(self.config.prediction, self.read_actions(tokens), actions, sigma).float()]

        noise = self._noise(state, ACTION_NOISE, self.chunk_length, self.spec.action_dim)
        levels = schedule(steps or self.config.action_steps)
        return self.physical_actions(denoise(predict, (noise,), [levels], towards)[0])

    @_verb
    def joint(self, state: WorldState, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Denoises a chunk and the video that it leads to together: (B, N, A) physical, (B, N, C, h, w) latents."""
        number = self.chunk_length

        def predict(data: Parts, level: tuple[float, ...]) -> Parts:
            actions, video, proprio = data
            sigma = actions.new_full((state.batch_size,), level[0])
            return self.denoise_jointly(state, actions, video, proprio, sigma, sigma[:, None].expand(-1, number))

        levels = schedule(steps or self.config.action_steps)
        noise = (
            self._noise(state, ACTION_NOISE, number, self.spec.action_dim),
            self._noise(state, VIDEO_NOISE, number, *self.latent_shape),
            self._noise(state, PROPRIO_NOISE, number, self.spec.proprio_dim),
        )
        actions, video, _ = denoise(predict, noise, [levels] * 3, towards)
        return self.physical_actions(actions), video

    @_verb
    def infer_actions(
        self, state: WorldState, future: Sequence[Sequence[Observation]], steps: int | None = None
    ) -> Tensor:
        """Inverse mode: the actions (B, N, A) that lead from the newest frame through N observed ones.

        Args:
            future: N sequences of B observations.
        """
        number = self.chunk_length
        if len(future) != number:
            raise ValueError(f"infer_actions needs {number} future observations per element, got {len(future)}")
        video = torch.stack([self.encode(frame) for frame in future], 1)
        proprio = np.stack([[o.proprio for o in frame] for frame in future], 1)
        states = self.normalise_proprio(torch.as_tensor(proprio, dtype=torch.float32, device=self.device))
        clean = video.new_zeros(state.batch_size, number)

        def predict(data: Parts, level: tuple[float, ...]) -> list[Tensor]:
            sigma = data[0].new_full((state.batch_size,), level[0])
            return [self.denoise_jointly(state, data[0], video, states, sigma, clean)[0]]

        noise = self._noise(state, ACTION_NOISE, number, self.spec.action_dim)
        levels = schedule(steps or self.config.action_steps)
        return self.physical_actions(denoise(predict, (noise,), [levels], towards)[0])

    def _noise(self, state: WorldState, stream: int, *shape: int) -> Tensor:
        return draw_noise(state.seed, shape, state.past, stream)

    # passes that the verbs and the training share -------------------------------------------------------------

    def contexts(self, context: Tensor) -> Contexts:
        """The instruction as the blocks of either expert see it."""
        return self.mixture.read_context(context)

    def read_actions(self, tokens: Tensor) -> Tensor:
        return self.mixture.action_dit.read(tokens)

    def lead(self, action: Tensor, has_action: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and modulation of clean lead actions: (B, F, A), (B, F) -> (B, F, 1, Da), (B, F, 6 Da)."""
        expert = self.mixture.action_dit
        _, modulation = expert.embed(action.new_zeros(action.shape[:2]))
        return expert.embed_lead(action, has_action), modulation

    def denoise_jointly(
        self, state: WorldState, actions: Tensor, video: Tensor, proprio: Tensor, sigma_a: Tensor, sigma_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass of the joint and inverse modes; returns clean samples of actions, latents, proprioception.

        Args:
            actions: (B, N, A) at noise level sigma_a (B,).
            video, proprio: (B, N, C, h, w), (B, N, P) at noise levels sigma_v (B, N).
        """
        dit, expert = self.mixture.video_dit, self.mixture.action_dit
        last = torch.cat([state.latent[:, None], video[:, :-1]], 1)
        last_proprio = torch.cat([self.normalise_proprio(state.proprio)[:, None], proprio[:, :-1]], 1)
        zero = sigma_v.new_zeros(sigma_v.shape)
        t, modulation = dit.condition(sigma_v, torch.zeros_like(actions), zero)
        _, a_modulation = expert.embed(sigma_a)
        a, x = self.mixture.joint(
            (expert.action_encoder(actions), a_modulation),
            (dit.embed_frames(video, proprio, last, last_proprio), modulation),
            self.contexts(state.context),
            state.layers,
            state.past,
            self.grid,
        )
        latents, states = dit.read(x, t, self.latent_shape[1])
        kind = self.config.prediction
        if kind == "sample":
            latents, states = latents + last, states + last_proprio
        return (
            to_sample(kind, self.read_actions(a).float(), actions, sigma_a),
            to_sample(kind, latents.float(), video, sigma_v),
            to_sample(kind, states.float(), proprio, sigma_v),
        )

    def _denoise(
        self, state: WorldState, lead: Tensor, latent: Tensor, proprio: Tensor, last_proprio: Tensor, level: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One denoising pass of the next frame: clean latent (B, C, h, w), proprio (B, P), tokens (B, 1, L, D)."""
        dit = self.mixture.video_dit
        sigma = latent.new_full((state.batch_size, 1), level)
        has_action = torch.ones_like(sigma)
        t, modulation = dit.condition(sigma, lead[:, None], has_action)
        tokens = dit.embed_frames(latent[:, None], proprio[:, None], state.latent[:, None], last_proprio[:, None])
        outputs, _, _ = self.mixture.frames(
            self.lead(lead[:, None], has_action),
            {"noisy": (tokens, modulation)},
            self.contexts(state.context),
            state.layers,
            state.past,
            self.grid,
        )
        out, out_proprio = dit.read(outputs["noisy"], t, self.latent_shape[1])
        out, out_proprio = out[:, 0].float(), out_proprio[:, 0].float()
        if self.config.prediction == "sample":
            out, out_proprio = out + state.latent, out_proprio + last_proprio
        sample = to_sample(self.config.prediction, out, latent, sigma[:, 0])
        return sample, to_sample(self.config.prediction, out_proprio, proprio, sigma[:, 0]), outputs["noisy"]

    def remember(
        self, state: WorldState, latents: Tensor, proprio: Tensor, actions: Tensor | None, level: float = 0.0
    ) -> WorldState:
        """Appends F frames in one pass; any split of a clip into calls gives the same memory.

        Args:
            latents: (B, F, C, h, w) normalised.
            proprio: (B, F, P) physical.
            actions: (B, F, A) normalised, each the one that led to its frame; None for a first frame.
            level: noise level that marks the frames, 0 for observed ones.
        """
        dit = self.mixture.video_dit
        sigma = latents.new_full(latents.shape[:2], level)
        has_action = torch.full_like(sigma, float(actions is not None))
        if actions is None:
            actions = latents.new_zeros(*latents.shape[:2], self.spec.action_dim)
        first = state.past == 0
        normal = self.normalise_proprio(proprio)
        # a first frame is its own predecessor: there is nothing that changed
        before = torch.where(first[:, None, None, None], latents[:, 0], state.latent)
        before_proprio = torch.where(first[:, None], normal[:, 0], self.normalise_proprio(state.proprio))
        last = torch.cat([before[:, None], latents[:, :-1]], 1)
        last_proprio = torch.cat([before_proprio[:, None], normal[:, :-1]], 1)
        has_action[:, 0] = has_action[:, 0] * ~first
        _, modulation = dit.condition(sigma, actions, has_action)
        outputs, _, layers = self.mixture.frames(
            self.lead(actions, has_action),
            {"clean": (dit.embed_frames(latents, normal, last, last_proprio), modulation)},
            self.contexts(state.context),
            state.layers,
            state.past,
            self.grid,
        )
        read = self.readout(outputs["clean"][:, -1:], state.context)
        return WorldState(
            layers,
            state.past + latents.shape[1],
            latents[:, -1],
            proprio[:, -1],
            state.context,
            state.seed,
            read.reward[:, 0],
            read.success[:, 0].sigmoid(),
        )

    def readout(self, tokens: Tensor, context: Tensor) -> Readout:
        """Heads of clean tokens (B, F, L, D)."""
        return self.heads(tokens, context.mean(1))
