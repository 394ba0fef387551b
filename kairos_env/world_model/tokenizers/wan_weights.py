"""Weights of the Wan2.1 autoencoder: reading them under either of their names, and what they were measured with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from kairos_env.extras import require
from kairos_env.world_model.weights import CheckpointError, Source, stored_tensors

CHANNELS = 16
DIFFUSERS_CONFIG = "config.json"

# mean and standard deviation of the latents, measured by the authors of the weights
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def make_network(width: int, device: str = "cpu") -> nn.Module:
    autoencoder = require("diffusers", "vlm").AutoencoderKLWan
    with torch.device(device):
        return autoencoder(base_dim=width, z_dim=CHANNELS)


# One rule per part: diffusers' name -> published name. Both name the same layers; a level of the published decoder
# is flat: three residual blocks, then the resampling.
_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(?<=\d)\.norm1\.", ".residual.0."),
    (r"(?<=\d)\.conv1\.", ".residual.2."),
    (r"(?<=\d)\.norm2\.", ".residual.3."),
    (r"(?<=\d)\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f".upsamples.{4 * int(m[1]) + int(m[2])}."),
    (r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".upsamples.{4 * int(m[1]) + 3}."),
    (r"\.mid_block\.resnets\.(\d)\.", lambda m: f".middle.{2 * int(m[1])}."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.conv_in\.", ".conv1."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
)


def published_names(keys: Iterable[str]) -> dict[str, str]:
    """Key of diffusers' ``AutoencoderKLWan`` -> key of the published ``Wan2.1_VAE.pth``, one to one."""
    names = {}
    for key in keys:
        name = key
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        names[key] = name
    assert len(set(names.values())) == len(names)
    return names


def read_weights(path: Path) -> Source:
    """Tensors of a file or folder, without wrappers and prefixes."""
    if not path.exists():
        raise FileNotFoundError(
            f"no {path}: give Wan2.1_VAE.pth, a .safetensors, or a folder in the diffusers layout (of a whole pipeline "
            "its folder 'vae')"
        )
    if path.is_dir() and (path / DIFFUSERS_CONFIG).exists():
        _check_statistics(path / DIFFUSERS_CONFIG)
    weights = stored_tensors(path) if path.is_dir() or path.suffix != ".pth" else _read_pth(path)
    return {name.removeprefix("model."): value for name, value in weights.items()}


def _read_pth(path: Path) -> Mapping[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} holds more than tensors and is refused, because loading such a file can run code ({reason}); "
            "get the original file, or a .safetensors"
        ) from None
    except (OSError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} is unreadable or truncated ({error}); fetch it again") from None
    if isinstance(weights, Mapping) and "model_state" in weights:
        weights = weights["model_state"]
    if not isinstance(weights, Mapping) or not all(isinstance(x, Tensor) for x in weights.values()):
        raise CheckpointError(f"{path} is not a table of named tensors, but {type(weights).__name__}")
    return weights


def _check_statistics(path: Path) -> None:
    """Raises CheckpointError for other latent statistics, which mean another autoencoder."""
    wanted = {"latents_mean": list(LATENT_MEAN), "latents_std": list(LATENT_STD)}
    try:
        theirs = wanted | dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot read the configuration: {error}") from None
    for name, values in wanted.items():
        if theirs[name] != values:
            raise CheckpointError(f"{path} has {name} {theirs[name]}, the Wan2.1 VAE has {values}")
