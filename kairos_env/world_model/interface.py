"""Between a robot and a network: pictures, words, proprioception and actions, and the numbers that they are inside.

`WorldModel` asks one `Interface` for all of it: that of the small models here, or that of published weights
(`published.interface`), whose tokenizer sees four pictures in a latent frame and whose text encoder is a Qwen model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kairos_env.records import Array, Observation, RobotSpec
from kairos_env.world_model.flow import draw_noise, schedule
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.text.small import ByteEncoder, WordEncoder
from kairos_env.world_model.tokenizers.image import DOWNSAMPLING, Tokenizer, to_uint8, to_unit

VIDEO_NOISE, PROPRIO_NOISE, ACTION_NOISE = 0, 1, 2  # noise streams


@dataclass(frozen=True)
class ModelStatistics:
    """Normalisation that travels with the weights: normalised = (x - mean) / std, per channel or dimension.

    Args:
        error_offset, error_slope: (E,) each, what turns the errors that the weights expect into those that were made on
            held-out episodes: log(error) = offset + slope log(expected). Empty where nobody has compared them.
    """

    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    proprio_mean: tuple[float, ...]
    proprio_std: tuple[float, ...]
    error_offset: tuple[float, ...] = ()
    error_slope: tuple[float, ...] = ()

    def require(self, channels: int, proprio: int, errors: int) -> None:
        """Raises ValueError unless all are finite numbers, as many as the model has of each, and spreads above 0."""
        sizes = {"latent": channels, "proprio": proprio, "error": errors}
        for name, values in vars(self).items():
            size = sizes[name.split("_")[0]]
            optional = name.startswith("error") and not (self.error_offset or self.error_slope)
            if len(values) != size and not optional:
                raise ValueError(f"{name} has {len(values)} numbers, and the model needs {size}")
            if not all(map(_is_finite, values)):
                raise ValueError(
                    f"{name} holds {next(x for x in values if not _is_finite(x))!r}: it needs finite numbers"
                )
            least = {"std": 1e-12, "slope": 0.0}.get(name.split("_")[1], -math.inf)
            if values and min(values) < least:
                raise ValueError(f"{name} holds {min(values)}: it needs numbers of at least {least:g}")

    @classmethod
    def identity(cls, channels: int, proprio: int) -> ModelStatistics:
        return cls((0.0,) * channels, (1.0,) * channels, (0.0,) * proprio, (1.0,) * proprio)


def _is_finite(x: object) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)


class Interface(Protocol):
    """What `WorldModel` asks.

    spec: the robot, as `act` drives it; imagined_spec: the same robot with one decision for each imagined frame.
    latent_shape: (C, h, w) of a frame; pictures: how many of each camera it holds, the newest last.
    fresh: each real observation begins a memory of its own, because the weights never saw a longer history.
    rounded: timesteps are rounded as the weights were run.
    execute: how many actions of a chunk a policy executes before it decides again.
    """

    spec: RobotSpec
    latent_shape: tuple[int, int, int]
    pictures: int
    fresh: bool
    rounded: bool
    execute: int

    @property
    def imagined_spec(self) -> RobotSpec: ...

    def encode(self, images: Mapping[str, Tensor]) -> Tensor:
        """Camera -> uint8 (B, H, W, 3) of one moment; returns normalised latents (B, C, h, w)."""

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Consecutive normalised latents (B, F, C, h, w) -> camera -> uint8 (B, F, n, H, W, 3).

        The first frame has only itself to be decoded from and shows its picture n times.
        """

    def context(self, observations: Sequence[Observation], proprio: Tensor) -> Context:
        """What conditions every pass: instructions, with normalised proprioception (B, P) where the weights want it."""

    def normalise_actions(self, actions: Array) -> Tensor:
        """Physical (..., A), checked and clipped by the robot -> normalised, on the CPU or the network's device."""

    def physical_actions(self, actions: Tensor) -> Tensor:
        """Normalised -> physical (..., A), clipped to the robot's range."""

    def normalise_proprio(self, proprio: Tensor) -> Tensor: ...

    def physical_proprio(self, proprio: Tensor) -> Tensor: ...

    def noise(self, seeds: Tensor, past: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
        """Noise (B, *shape) of the episodes ``seeds`` (B,) after ``past`` (B,) frames; streams as above."""

    def action_seeds(self, seeds: Tensor) -> Tensor:
        """Seeds (B,) of the noise of chunks in the episodes ``seeds``."""

    def levels(self, steps: int, stream: int) -> list[float]:
        """``steps + 1`` noise levels of a frame or of a chunk."""


class Scale:
    """normalised = (x - mean) / std along one axis, on whatever device ``x`` is.

    Args:
        axes: trailing axes behind the one that is scaled.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], axes: int = 0) -> None:
        self._values = [torch.tensor(x, dtype=torch.float32)[(..., *[None] * axes)] for x in (mean, std)]
        self._there: dict[torch.device, list[Tensor]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation there."""
        if device not in self._there:
            self._there[device] = [x.to(device) for x in self._values]
        mean, std = self._there[device]
        return mean, std

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.on(x.device)
        return (x - mean) / std

    def backward(self, x: Tensor) -> Tensor:
        mean, std = self.on(x.device)
        return x * std + mean


class SmallInterface:
    """Cameras side by side through the image tokenizer, words through a small encoder, ranges of the robot.

    Args:
        spec: its cameras need one common size.
        tokenizer, text: the model's own.
        unit: sides of a picture must divide by it [pixels].
    """

    pictures, fresh, rounded, execute = 1, False, False, 1

    def __init__(
        self,
        spec: RobotSpec,
        tokenizer: Tokenizer,
        text: ByteEncoder | WordEncoder,
        statistics: ModelStatistics | None,
        unit: int,
    ) -> None:
        sizes = {(c.height, c.width) for c in spec.cameras}
        if len(sizes) != 1 or any(side % unit for side in next(iter(sizes))):
            raise ValueError(
                f"the cameras of {spec.name!r} have sizes {sorted(sizes)}; this model needs one common size with "
                f"sides divisible by {unit}"
            )
        height, width = next(iter(sizes))
        self.spec, self.tokenizer, self.text = spec, tokenizer, text
        self.decode_latents: Callable[[Tensor], Tensor] = tokenizer.decode  # or the same, compiled
        rows, columns = height // DOWNSAMPLING, width // DOWNSAMPLING * len(spec.cameras)
        self.latent_shape = (tokenizer.channels, rows, columns)
        low, high = spec.action_low, spec.action_high
        self._actions = Scale(((low + high) / 2).tolist(), ((high - low) / 2).tolist())
        self.set_statistics(statistics or ModelStatistics.identity(tokenizer.channels, spec.proprio_dim))

    def set_statistics(self, statistics: ModelStatistics) -> None:
        self.statistics = statistics
        self._latents = Scale(statistics.latent_mean, statistics.latent_std, axes=2)
        self._proprio = Scale(statistics.proprio_mean, statistics.proprio_std)

    @property
    def imagined_spec(self) -> RobotSpec:
        return self.spec

    def encode(self, images: Mapping[str, Tensor]) -> Tensor:
        """See `Interface`; cameras stand side by side."""
        return torch.cat([self.encode_view(images[c.name]) for c in self.spec.cameras], -1)

    def encode_view(self, images: Tensor) -> Tensor:
        """One camera's uint8 (B, H, W, 3) -> its part of the normalised latents."""
        return self._latents.forward(self.tokenizer.encode(to_unit(images)).float())

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """See `Interface`."""
        cameras = self.spec.cameras
        flat = self._latents.backward(latents.flatten(0, 1))
        views = to_uint8(self.decode_latents(torch.cat(flat.chunk(len(cameras), -1)))).chunk(len(cameras))
        shape = (*latents.shape[:2], 1)
        return {c.name: view.unflatten(0, shape) for c, view in zip(cameras, views, strict=True)}

    @property
    def encoder_sha256(self) -> str:
        """Of all that makes latents out of pictures: models that agree in it read each other's latents."""
        mean, std = self.statistics.latent_mean, self.statistics.latent_std
        parts = self.tokenizer.state_dict() | {"mean": torch.tensor(mean), "std": torch.tensor(std)}
        digest = hashlib.sha256()
        for name, tensor in sorted(parts.items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def context(self, observations: Sequence[Observation], proprio: Tensor) -> Context:
        """See `Interface`: of the words alone."""
        texts = sorted({o.instruction for o in observations})
        tokens = self.text(self.text.codes(texts).to(proprio.device))
        return Context(tokens[[texts.index(o.instruction) for o in observations]])

    def normalise_actions(self, actions: Array) -> Tensor:
        """See `Interface`: the robot's range becomes [-1, 1]."""
        return self._actions.forward(torch.as_tensor(self.spec.check_action(actions)))

    def physical_actions(self, actions: Tensor) -> Tensor:
        """See `Interface`."""
        return self._actions.backward(actions.float().clamp(-1, 1))

    def normalise_proprio(self, proprio: Tensor) -> Tensor:
        return self._proprio.forward(proprio)

    def physical_proprio(self, proprio: Tensor) -> Tensor:
        return self._proprio.backward(proprio.float())

    def noise(self, seeds: Tensor, past: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
        """See `Interface`."""
        return draw_noise(seeds, shape, past, stream)

    def action_seeds(self, seeds: Tensor) -> Tensor:
        """See `Interface`."""
        return seeds

    def levels(self, steps: int, stream: int) -> list[float]:
        """See `Interface`."""
        return schedule(steps)


def stack_images(observations: Sequence[Observation], spec: RobotSpec, device: torch.device) -> dict[str, Tensor]:
    """Camera -> uint8 (B, H, W, 3)."""
    return {
        c.name: torch.from_numpy(np.stack([o.images[c.name] for o in observations])).to(device) for c in spec.cameras
    }
