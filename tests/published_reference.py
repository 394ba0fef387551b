"""What the published system's own code made of small random weights: weights, inputs and outputs, in plain arrays.

The folder ``published_reference`` under KAIROS_TEST_DATA; its README says how each array was made. Latents are
(B, F, C, h, w), pictures uint8 (..., H, W, 3). Whatever was run in bfloat16 is stored in float32, exactly.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import DATA
from safetensors.torch import load_file, save_file
from torch import Tensor

from kairos_env.records import Array
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.published.folder import convert
from kairos_env.world_model.published.releases import get_release
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

FOLDER = DATA / "published_reference"
FLOAT32, BFLOAT16_RMS = 1e-5, 3e-2  # largest difference and root mean square, relative to the reference
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEXT_DIM = 48
LAYERS = 8
VIDEO = {
    "dim": 64,
    "heads": 2,
    "head_dim": 32,
    "layers": LAYERS,
    "ffn_dim": 96,
    "delta_heads": 2,
    "delta_head_dim": 256,
}
ACTION = {"dim": 32, "ffn_dim": 48}

needs_reference = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs the published code's outputs, published_reference under KAIROS_TEST_DATA"
)


class Arrays:
    """One file of arrays by name."""

    def __init__(self, file: str, under: str = "") -> None:
        self.under = f"{under}/" if under else ""
        with np.load(FOLDER / f"{file}.npz", allow_pickle=False) as stored:
            self.raw = {name: stored[name] for name in stored.files}

    def __contains__(self, name: str) -> bool:
        return self.under + name in self.raw

    def array(self, name: str) -> Array:
        return self.raw[self.under + name]

    def __getitem__(self, name: str) -> Tensor:
        """A tensor, float32 if it was float16."""
        value = self.array(name)
        return torch.from_numpy(value.astype(np.float32) if value.dtype == np.float16 else value)

    def number(self, name: str) -> Any:
        return self.array(name).item()

    def text(self, name: str) -> str:
        return bytes(self.array(f"{name}_utf8").tolist()).decode()

    def pictures(self, name: str) -> Array:
        """uint8 (..., H, W, 3); a large one is stored small, each of its pixels stands for a square."""
        for side in (4, 8):
            if f"{name}_each_pixel_{side}_times_{side}" in self:
                small = self.array(f"{name}_each_pixel_{side}_times_{side}")
                return np.repeat(np.repeat(small, side, -3), side, -2)
        return self.array(name)

    def context(self, name: str = "context", mask: str = "mask") -> Context:
        return Context(self[name], self[mask] if mask in self else None)


@functools.cache
def arrays(file: str, under: str = "") -> Arrays:
    return Arrays(file, under)


def cases(file: str, suffix: str) -> list[str]:
    """What stands before ``/suffix`` in a file's names; none where the folder is absent."""
    if not FOLDER.is_dir():
        return []
    return sorted(name.removesuffix("/" + suffix) for name in arrays(file).raw if name.endswith("/" + suffix))


def config(release: str) -> WorldActionConfig:
    """The release in the sizes of the reference."""
    base = get_release(release)
    video, action = dataclasses.replace(base.video, **VIDEO), base.action and dataclasses.replace(base.action, **ACTION)
    return dataclasses.replace(base, name=f"{release}-reference", video=video, action=action, text_dim=TEXT_DIM)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Release -> model folder, converted as a user would when it is first asked for."""
    return _Converted(tmp_path_factory.mktemp("reference"))


class _Converted(dict[str, Path]):
    def __init__(self, scratch: Path) -> None:
        super().__init__()
        self.scratch = scratch

    def __missing__(self, release: str) -> Path:
        weights = load_file(FOLDER / "video.safetensors")
        if get_release(release).action:
            weights |= load_file(FOLDER / f"action_{release.removeprefix('4b-')}.safetensors")
        file = self.scratch / f"{release}.safetensors"
        save_file({name: value.float() for name, value in weights.items()}, file)
        convert(file, self.scratch / release, release=config(release))
        self[release] = self.scratch / release
        return self[release]


class GivenContexts:
    """Contexts by prompt, in a text encoder's place."""

    text_dim = TEXT_DIM

    def __init__(self, contexts: Mapping[str, Tensor]) -> None:
        self.contexts = contexts

    def encode(self, prompts: Sequence[str], images: object = None) -> Context:
        return Context.cat([Context(self.contexts[prompt]) for prompt in prompts])


def model(
    folders: Mapping[str, Path],
    release: str,
    dtype: torch.dtype = torch.float32,
    contexts: Mapping[str, Tensor] | None = None,
) -> WorldActionModel:
    """The release on the reference's weights; with contexts it makes whole clips."""
    loaded = WorldActionModel.from_pretrained(folders[release], dtype=dtype)
    if contexts is None:
        return loaded
    return WorldActionModel(loaded.config, loaded.transformer, vae(dtype), GivenContexts(contexts))


def vae(dtype: torch.dtype = torch.float32) -> VideoVAE:
    return VideoVAE.from_file(FOLDER / "vae.safetensors", dtype=dtype)


def levels(timestep: float, batch: int, frames: int, history: int) -> Tensor:
    """Noise levels of a clip whose first frames are observed."""
    sigma = torch.full((batch, frames), timestep / 1000)
    sigma[:, :history] = 0
    return sigma


def check(found: Any, want: Any, limit: float = FLOAT32, rms: bool = False) -> None:
    """Largest difference relative to the largest value, or root mean squares relative to each other."""
    found, want = (torch.as_tensor(x).detach().double() for x in (found, want))
    assert found.shape == want.shape
    difference = (found - want).abs()
    if rms:
        error = math.sqrt(float(difference.square().mean()) / max(float(want.square().mean()), 1e-300))
    else:
        error = float(difference.max()) / max(float(want.abs().max()), 1e-300)
    same = float((difference == 0).double().mean())
    assert error <= limit, f"differs by {error:.1e}, more than {limit:.0e}; {same:.1%} are equal"


def check_velocity(found: Any, want: Any, dtype: torch.dtype) -> None:
    """Within rounding of the arithmetic that it was run in."""
    check(found, want) if dtype == torch.float32 else check(found, want, BFLOAT16_RMS, rms=True)


def unpacked(file: str, name: str) -> Tensor:
    """A boolean mask from its bits."""
    shape = arrays(file).array(f"{name}/shape").tolist()
    bits = np.unpackbits(arrays(file).array(f"{name}/bits"), count=math.prod(shape))
    return torch.from_numpy(bits.reshape(shape)).bool()


def metadata_json(file: str, *names: str) -> Iterator[str]:
    """Texts in the header of a weights' file."""
    from safetensors import safe_open

    with safe_open(FOLDER / file, "pt") as stored:
        found = stored.metadata()
    yield from (found[name] for name in names)
