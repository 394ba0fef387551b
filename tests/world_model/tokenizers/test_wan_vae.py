"""The Wan2.1 tokenizer: against a float64 reference on the published names, in pieces, in tiles, from every layout."""

from __future__ import annotations

import json
import math
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kairos_env.world_model.config import TokenizerConfig
from kairos_env.world_model.tokenizers.image import Tokenizer, VideoTokenizer
from kairos_env.world_model.tokenizers.tiling import Tiling
from kairos_env.world_model.tokenizers.wan_vae import (
    PUBLISHED_DECODE_TILING,
    PUBLISHED_ENCODE_TILING,
    VideoVAE,
    decoding_bytes,
)
from kairos_env.world_model.tokenizers.wan_weights import published_names
from kairos_env.world_model.weights import CheckpointError

WIDTH = 4
FRAMES = 17  # five latent frames
MEAN = (
    "-0.7571 -0.7089 -0.9113 0.1075 -0.1745 0.9653 -0.1517 1.5508 "
    "0.4134 -0.0715 0.5517 -0.3632 -0.1922 -0.9497 0.2503 -0.2921"
)
STD = "2.8184 1.4541 2.3275 2.6558 1.2196 1.7708 2.6052 2.0743 3.2687 2.1526 2.8652 1.5579 1.6382 1.1253 2.8251 1.9160"
diffusers.logging.set_verbosity_error()


# the published layout, written down from its structure -------------------------------------------------------------


def published_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file for another width than 96."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, out: int, *rest: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, *rest), (out,)

    def residual(name: str, into: int, out: int) -> None:
        shapes[f"{name}.residual.0.gamma"], shapes[f"{name}.residual.3.gamma"] = (into, 1, 1, 1), (out, 1, 1, 1)
        layer(f"{name}.residual.2", out, into, 3, 3, 3)
        layer(f"{name}.residual.6", out, out, 3, 3, 3)
        if into != out:
            layer(f"{name}.shortcut", out, into, 1, 1, 1)

    def middle(name: str, dim: int) -> None:
        residual(f"{name}.0", dim, dim)
        shapes[f"{name}.1.norm.gamma"] = (dim, 1, 1)
        layer(f"{name}.1.to_qkv", 3 * dim, dim, 1, 1)
        layer(f"{name}.1.proj", dim, dim, 1, 1)
        residual(f"{name}.2", dim, dim)

    def head(name: str, into: int, out: int) -> None:
        shapes[f"{name}.0.gamma"] = (into, 1, 1, 1)
        layer(f"{name}.2", out, into, 3, 3, 3)

    one, two, four = width, 2 * width, 4 * width
    layer("encoder.conv1", one, 3, 3, 3, 3)
    index = 0
    for level, (into, out) in enumerate(((one, one), (one, two), (two, four), (four, four))):
        residual(f"encoder.downsamples.{index}", into, out)
        residual(f"encoder.downsamples.{index + 1}", out, out)
        if level < 3:
            layer(f"encoder.downsamples.{index + 2}.resample.1", out, out, 3, 3)
        if level in (1, 2):
            layer(f"encoder.downsamples.{index + 2}.time_conv", out, out, 3, 1, 1)
        index += 3
    middle("encoder.middle", four)
    head("encoder.head", four, 32)
    layer("conv1", 32, 32, 1, 1, 1)

    layer("conv2", 16, 16, 1, 1, 1)
    layer("decoder.conv1", four, 16, 3, 3, 3)
    middle("decoder.middle", four)
    index = 0
    for level, (into, out) in enumerate(((four, four), (two, four), (two, two), (one, one))):
        for j in range(3):
            residual(f"decoder.upsamples.{index + j}", into if j == 0 else out, out)
        if level < 3:
            layer(f"decoder.upsamples.{index + 3}.resample.1", out // 2, out, 3, 3)
        if level < 2:
            layer(f"decoder.upsamples.{index + 3}.time_conv", 2 * out, out, 3, 1, 1)
        index += 4
    head("decoder.head", one, 3)
    return shapes


def published_weights(width: int = WIDTH, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in published_shapes(width).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("gamma"):
            weights[name] = 1 + 0.3 * noise
        elif name.endswith("bias"):
            weights[name] = 0.2 * noise
        else:
            weights[name] = noise / math.sqrt(math.prod(shape[1:]))
    weights["decoder.head.2.weight"] *= 0.5  # keeps the pictures within [-1, 1]
    return weights


class Reference:
    """The published autoencoder on whole clips, in float64, without caches; remembers which weights it used."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights, self.used = weights, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(name)
        return self.weights[name].double()

    def has(self, name: str) -> bool:
        return name in self.weights

    def causal(self, name: str, x: Tensor) -> Tensor:
        """Past frames are zeros; the future is not seen."""
        weight = self[f"{name}.weight"]
        time, rows, columns = weight.shape[2:]
        x = F.pad(x, (columns // 2, columns // 2, rows // 2, rows // 2, time - 1, 0))
        return F.conv3d(x, weight, self[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        length = x.square().sum(1, keepdim=True).sqrt()
        return x / length * math.sqrt(x.shape[1]) * self[f"{name}.gamma"].view(-1, 1, 1, 1)

    def residual(self, name: str, x: Tensor) -> Tensor:
        y = self.causal(f"{name}.residual.2", F.silu(self.norm(f"{name}.residual.0", x)))
        y = self.causal(f"{name}.residual.6", F.silu(self.norm(f"{name}.residual.3", y)))
        return y + (self.causal(f"{name}.shortcut", x) if self.has(f"{name}.shortcut.weight") else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        """Every cell of a frame sees every cell of the same frame."""
        b, c, t, h, w = x.shape
        tokens = self.norm(f"{name}.norm", x).permute(0, 2, 3, 4, 1).reshape(b, t, h * w, c)
        q, k, v = (tokens @ self[f"{name}.to_qkv.weight"].view(3 * c, c).T + self[f"{name}.to_qkv.bias"]).chunk(3, -1)
        seen = torch.softmax(q @ k.mT / math.sqrt(c), -1) @ v
        seen = seen @ self[f"{name}.proj.weight"].view(c, c).T + self[f"{name}.proj.bias"]
        return x + seen.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)

    def middle(self, name: str, x: Tensor) -> Tensor:
        return self.residual(f"{name}.2", self.attention(f"{name}.1", self.residual(f"{name}.0", x)))

    def spatial(self, name: str, x: Tensor, stride: int) -> Tensor:
        """One picture at a time; x is padded already."""
        weight, bias = self[f"{name}.resample.1.weight"], self[f"{name}.resample.1.bias"]
        return torch.stack([F.conv2d(picture, weight, bias, stride) for picture in x.unbind(2)], 2)

    def down(self, name: str, x: Tensor) -> Tensor:
        x = self.spatial(name, F.pad(x, (0, 1, 0, 1)), 2)
        if self.has(f"{name}.time_conv.weight") and x.shape[2] > 1:  # the first frame stays alone
            rest = F.conv3d(x, self[f"{name}.time_conv.weight"], self[f"{name}.time_conv.bias"], stride=(2, 1, 1))
            x = torch.cat([x[:, :, :1], rest], 2)
        return x

    def up(self, name: str, x: Tensor) -> Tensor:
        if self.has(f"{name}.time_conv.weight") and x.shape[2] > 1:  # the first frame is neither doubled nor seen
            even, odd = self.causal(f"{name}.time_conv", x[:, :, 1:]).chunk(2, 1)
            x = torch.cat([x[:, :, :1], torch.stack([even, odd], 3).flatten(2, 3)], 2)
        x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        return self.spatial(name, F.pad(x, (1, 1, 1, 1)), 1)

    def levels(self, name: str, x: Tensor, resample: Callable[[str, Tensor], Tensor], count: int) -> Tensor:
        for i in range(count):
            layer = resample if self.has(f"{name}.{i}.resample.1.weight") else self.residual
            x = layer(f"{name}.{i}", x)
        return x

    def statistics(self) -> tuple[Tensor, ...]:
        return tuple(torch.tensor([float(x) for x in text.split()]).double().view(-1, 1, 1, 1) for text in (MEAN, STD))

    def encode(self, video: Tensor) -> Tensor:
        x = self.causal("encoder.conv1", video.double().transpose(1, 2))
        x = self.middle("encoder.middle", self.levels("encoder.downsamples", x, self.down, 11))
        x = self.causal("conv1", self.causal("encoder.head.2", F.silu(self.norm("encoder.head.0", x))))
        mean, std = self.statistics()
        return ((x[:, :16] - mean) / std).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self.statistics()
        x = self.causal("conv2", latents.double().transpose(1, 2) * std + mean)
        x = self.middle("decoder.middle", self.causal("decoder.conv1", x))
        x = self.levels("decoder.upsamples", x, self.up, 15)
        return self.causal("decoder.head.2", F.silu(self.norm("decoder.head.0", x))).transpose(1, 2)


# helpers ----------------------------------------------------------------------------------------------------------


def clip(frames: int = FRAMES, height: int = 16, width: int = 24, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, frames, 3, height, width, generator=generator) * 2 - 1


def noise(frames: int = 5, rows: int = 2, columns: int = 3, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, frames, 16, rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "Wan2.1_VAE.pth"
    torch.save(published_weights(), path)
    return path


@pytest.fixture(scope="module")
def vae(file: Path) -> VideoVAE:
    return VideoVAE.from_file(file)


# the architecture -------------------------------------------------------------------------------------------------


def test_the_published_file_has_these_tensors() -> None:
    shapes = published_shapes(96)
    assert len(shapes) == 194
    assert sum(math.prod(s) for s in shapes.values()) == 126_892_531


def test_names_map_one_to_one_and_as_in_diffusers_own_conversion(vae: VideoVAE) -> None:
    theirs = {k: tuple(v.shape) for k, v in vae.network.state_dict().items()}
    names = published_names(theirs)
    assert {names[k]: shape for k, shape in theirs.items()} == published_shapes(WIDTH)
    converted = convert_wan_vae_to_diffusers({name: name for name in published_shapes(WIDTH)})
    assert converted == names


@pytest.mark.parametrize("frames", [1, 5, FRAMES])
def test_encode_equals_the_reference(file: Path, frames: int) -> None:
    reference, video = Reference(torch.load(file, weights_only=True)), clip(frames, batch=2)
    want = reference.encode(video)
    assert want.shape == (2, (frames + 3) // 4, 16, 2, 3)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        got = VideoVAE.from_file(file, dtype=dtype).encode_video(video)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_decode_equals_the_reference(file: Path, frames: int) -> None:
    reference, latents = Reference(torch.load(file, weights_only=True)), noise(frames, batch=2)
    want = reference.decode(latents)
    assert want.shape == (2, 4 * frames - 3, 3, 16, 24)
    assert (want.abs() < 1).double().mean() > 0.5  # most of it is not clamped
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)):  # diffusers doubles pixels in float32
        got = VideoVAE.from_file(file, dtype=dtype).decode_video(latents)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want.clamp(-1, 1), atol=tolerance, rtol=tolerance)


def test_pictures_are_clamped(vae: VideoVAE) -> None:
    assert Reference(vae.published_weights()).decode(noise(2)).abs().max() > 1
    assert vae.decode_video(noise(2)).abs().max() == 1


def test_the_reference_uses_every_weight(file: Path) -> None:
    reference = Reference(torch.load(file, weights_only=True))
    reference.decode(reference.encode(clip(5)))
    assert reference.used == set(published_shapes(WIDTH))


def test_bfloat16_stays_close(file: Path) -> None:
    low, high = VideoVAE.from_file(file, dtype=torch.bfloat16), VideoVAE.from_file(file)
    latents, pictures = low.encode_video(clip()), low.decode_video(noise())
    assert latents.dtype == pictures.dtype == torch.bfloat16
    assert (latents.float() - high.encode_video(clip())).square().mean().sqrt() < 2e-2
    assert (pictures.float() - high.decode_video(noise())).square().mean().sqrt() < 2e-2


def test_a_batch_is_its_elements(vae: VideoVAE) -> None:
    video, latents = clip(5, batch=3), noise(2, batch=3)
    torch.testing.assert_close(vae.encode_video(video), torch.cat([vae.encode_video(v) for v in video.split(1)]))
    torch.testing.assert_close(vae.decode_video(latents), torch.cat([vae.decode_video(z) for z in latents.split(1)]))


# in pieces --------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, 4)))
def test_pieces_equal_the_whole(vae: VideoVAE, cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 5]
    sizes = [b - a for a, b in zip(edges, edges[1:])]
    latents, cache = [], None
    frames = [4 * n - (3 if i == 0 else 0) for i, n in enumerate(sizes)]
    for piece in clip().split(frames, 1):
        latent, cache = vae.encode_stream(piece, cache)
        latents.append(latent)
    torch.testing.assert_close(torch.cat(latents, 1), vae.encode_video(clip()), atol=1e-5, rtol=0)

    pictures, cache = [], None
    for piece in noise().split(sizes, 1):
        picture, cache = vae.decode_stream(piece, cache)
        pictures.append(picture)
    assert [p.shape[1] for p in pictures] == frames
    torch.testing.assert_close(torch.cat(pictures, 1), vae.decode_video(noise()), atol=1e-5, rtol=0)


def test_a_stream_can_be_continued_twice(vae: VideoVAE) -> None:
    _, cache = vae.decode_stream(noise(2))
    first, _ = vae.decode_stream(noise(2, seed=1), cache)
    other, _ = vae.decode_stream(noise(2, seed=2), cache)
    again, _ = vae.decode_stream(noise(2, seed=1), cache)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_pieces_of_a_whole_clip(vae: VideoVAE) -> None:
    pieces = list(vae.decode_pieces(noise()))
    assert [p.shape[1] for p in pieces] == [1, 4, 4, 4, 4]
    assert torch.equal(torch.cat(pieces, 1), vae.decode_video(noise()))


def test_a_cache_of_another_stream_is_refused(vae: VideoVAE) -> None:
    _, cache = vae.decode_stream(noise(1))
    with pytest.raises(ValueError, match="another stream.*columns=3.*columns=4"):
        vae.decode_stream(noise(1, columns=4), cache)
    with pytest.raises(ValueError, match="another stream.*'decode'.*'encode'"):
        vae.encode_stream(clip(4), cache)
    with pytest.raises(ValueError, match="another stream.*Tiling"):
        vae.tiled().decode_stream(noise(1), cache)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive; works on the meta device, too."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def peak(run: Callable[[Tensor], object], x: Tensor) -> int:
    """The most bytes alive during ``run(x)``, beside x."""
    with LiveBytes() as counter:
        run(x)
    return counter.peak - x.nbytes


@pytest.mark.parametrize("tiling", [None, Tiling((4, 4), (2, 2))])
def test_memory_does_not_grow_with_the_clip(vae: VideoVAE, tiling: Tiling | None) -> None:
    vae = vae.tiled(tiling, tiling)

    def write(latents: Tensor) -> None:
        for pictures in vae.decode_pieces(latents):
            assert pictures.shape[1] in (1, 4)

    few, many = noise(3, 4, 6), noise(9, 4, 6)
    assert peak(write, few) == peak(write, many)
    output = 4 * 6 * 3 * 32 * 48 * 4  # of 6 latent frames more, float32
    assert peak(vae.decode_video, many) - peak(vae.decode_video, few) == output
    latents = 6 * 16 * 4 * 6 * 4
    grown = peak(vae.encode_video, clip(33, 32, 48)) - peak(vae.encode_video, clip(9, 32, 48))
    assert grown <= 2 * latents  # in pieces and as a whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_estimate_of_decoding_memory(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        vae = VideoVAE(diffusers.AutoencoderKLWan().to(dtype))
        latents = torch.empty(1, 4, 16, 60, 80, dtype=dtype)
    traced = peak(lambda x: [None for _ in vae.decode_pieces(x)], latents)
    assert traced == pytest.approx(decoding_bytes(480, 640, dtype), rel=0.02)
    with pytest.raises(ValueError, match="no figures for torch.float64"):
        decoding_bytes(480, 640, torch.float64)


# in tiles ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_shares_sum_to_one(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    stride = tuple(data.draw(st.integers(1, side)) for side in size)
    scale = data.draw(st.sampled_from([1, 8]))
    total = torch.zeros(rows * scale, columns * scale)
    for tile in Tiling(size, stride).tiles(rows, columns, scale):  # type: ignore[arg-type]
        assert tile.bottom - tile.top <= size[0] * scale and tile.right - tile.left <= size[1] * scale
        assert (tile.share >= 0).all()
        total[tile.top : tile.bottom, tile.left : tile.right] += tile.share
    torch.testing.assert_close(total, torch.ones_like(total))


def test_one_tile_is_no_tile(vae: VideoVAE) -> None:
    video, latents = clip(5), noise(2)
    assert torch.equal(vae.tiled().encode_video(video), vae.encode_video(video))
    assert torch.equal(vae.tiled().decode_video(latents), vae.decode_video(latents))


def edges(tiling: Tiling, rows: int, columns: int) -> list[tuple[int, ...]]:
    return [tile[:4] for tile in tiling.tiles(rows, columns)]


def test_where_the_published_tiles_lie() -> None:
    assert edges(PUBLISHED_ENCODE_TILING, 28, 56) == [(0, 28, 0, 52), (0, 28, 26, 56)]  # LIBERO, 224x448
    assert edges(PUBLISHED_DECODE_TILING, 28, 56) == [(0, 28, 0, 52), (0, 28, 48, 56)]
    assert edges(PUBLISHED_ENCODE_TILING, 48, 40) == [(0, 30, 0, 40), (15, 45, 0, 40), (30, 48, 0, 40)]


def test_the_published_first_frame_of_libero(vae: VideoVAE) -> None:
    """224x448: columns [0, 416) and [208, 448) apart, then a linear change over 26 latent columns."""
    image = clip(1, 224, 448)
    left, right = vae.encode_video(image[..., :416]), vae.encode_video(image[..., 208:])
    rising = torch.arange(1, 27) / 26
    falling = rising.flip(0)
    mixed = (left[..., 26:] * falling + right[..., :26] * rising) / (rising + falling)
    want = torch.cat([left[..., :26], mixed, right[..., 26:]], -1)
    assert want.shape == (1, 1, 16, 28, 56)
    torch.testing.assert_close(vae.tiled().encode_video(image), want, atol=1e-5, rtol=1e-5)
    assert (want - vae.encode_video(image)).abs().max() > 1e-3  # it does matter


def test_decoding_in_four_tiles(vae: VideoVAE) -> None:
    """Tiles of 4 cells every 3: they share one cell, 8 pixels, and a corner takes the smaller weight."""
    latents = noise(2, 5, 6)
    rows, columns = (slice(0, 4), slice(3, 5)), (slice(0, 4), slice(3, 6))
    rise = torch.arange(1, 9) / 8
    down = (torch.cat([torch.ones(24), rise.flip(0)]), torch.cat([rise, torch.ones(8)]))
    across = (torch.cat([torch.ones(24), rise.flip(0)]), torch.cat([rise, torch.ones(16)]))
    total, want = torch.zeros(40, 48), torch.zeros(1, 5, 3, 40, 48)
    for i in range(2):
        for j in range(2):
            weight = torch.minimum(down[i][:, None], across[j][None])
            area = (..., slice(8 * rows[i].start, 8 * rows[i].stop), slice(8 * columns[j].start, 8 * columns[j].stop))
            reference = Reference(vae.published_weights()).decode(latents[..., rows[i], columns[j]])
            want[area] += weight * reference.float()
            total[area] += weight
    tiled = vae.tiled(decode=Tiling((4, 4), (3, 3)))
    torch.testing.assert_close(tiled.decode_video(latents), (want / total).clamp(-1, 1), atol=1e-4, rtol=0)


def test_tiles_in_pieces_equal_tiles_of_the_whole(vae: VideoVAE) -> None:
    vae = vae.tiled(Tiling((2, 2), (1, 1)), Tiling((2, 2), (1, 1)))
    first, cache = vae.encode_stream(clip(9)[:, :5])
    rest, _ = vae.encode_stream(clip(9)[:, 5:], cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), vae.encode_video(clip(9)), atol=1e-5, rtol=0)
    first, cache = vae.decode_stream(noise(3)[:, :2])
    rest, _ = vae.decode_stream(noise(3)[:, 2:], cache)
    torch.testing.assert_close(torch.cat([first, rest], 1), vae.decode_video(noise(3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "stride"), [((4, 4), (0, 4)), ((4, 4), (4, 5)), ((0, 4), (0, 4))])
def test_illegal_tiles(size: tuple[int, int], stride: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="strides from 1 to their size"):
        Tiling(size, stride)


# weights ----------------------------------------------------------------------------------------------------------


def raw_pth(weights: dict[str, Tensor], folder: Path, _: VideoVAE) -> Path:
    torch.save(weights, folder / "Wan2.1_VAE.pth")
    return folder / "Wan2.1_VAE.pth"


def wrapped_pth(weights: dict[str, Tensor], folder: Path, _: VideoVAE) -> Path:
    torch.save({"model_state": weights}, folder / "a.pth")
    return folder / "a.pth"


def prefixed_pth(weights: dict[str, Tensor], folder: Path, _: VideoVAE) -> Path:
    torch.save({f"model.{name}": value for name, value in weights.items()}, folder / "a.pth")
    return folder / "a.pth"


def raw_safetensors(weights: dict[str, Tensor], folder: Path, _: VideoVAE) -> Path:
    save_file(weights, folder / "a.safetensors")
    return folder / "a.safetensors"


def diffusers_safetensors(weights: dict[str, Tensor], folder: Path, _: VideoVAE) -> Path:
    save_file(convert_wan_vae_to_diffusers(weights), folder / "a.safetensors")
    return folder / "a.safetensors"


def diffusers_folder(weights: dict[str, Tensor], folder: Path, vae: VideoVAE) -> Path:
    vae.network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "write", [raw_pth, wrapped_pth, prefixed_pth, raw_safetensors, diffusers_safetensors, diffusers_folder]
)
def test_every_layout_is_read_bit_for_bit(write: Callable[..., Path], vae: VideoVAE, tmp_path: Path) -> None:
    weights = published_weights()
    back = VideoVAE.from_file(write(weights, tmp_path, vae)).published_weights()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_pickled_object_is_refused(tmp_path: Path) -> None:
    torch.save({**published_weights(), "config": Tiling((1, 1), (1, 1))}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="refused, because loading such a file can run code"):
        VideoVAE.from_file(tmp_path / "a.pth")


def test_all_wrong_weights_are_listed(tmp_path: Path) -> None:
    weights = published_weights()
    del weights["conv2.bias"]
    weights["conv3.bias"] = torch.zeros(1)
    weights["decoder.head.0.gamma"] = torch.zeros(5, 1, 1, 1)
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as error:
        VideoVAE.from_file(tmp_path / "a.safetensors")
    for line in ("missing conv2.bias (16,)", "extra conv3.bias (1,)", "misshapen decoder.head.0.gamma: file (5, 1,"):
        assert line in str(error.value)


def test_unreadable_files(tmp_path: Path, file: Path, vae: VideoVAE) -> None:
    with pytest.raises(FileNotFoundError, match="Wan2.1_VAE.pth"):
        VideoVAE.from_file(tmp_path / "none.pth")
    (tmp_path / "short.pth").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="unreadable or truncated"):
        VideoVAE.from_file(tmp_path / "short.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="not a table of named tensors, but list"):
        VideoVAE.from_file(tmp_path / "list.pth")
    vae.network.save_pretrained(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    (tmp_path / "folder" / "config.json").write_text(json.dumps({**config, "latents_mean": [0.0] * 16}))
    with pytest.raises(CheckpointError, match="latents_mean"):
        VideoVAE.from_file(tmp_path / "folder")


def test_without_diffusers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="kairos-env\\[vlm\\]"):
        VideoVAE.random(WIDTH)


def test_random_weights_are_a_matter_of_the_seed() -> None:
    a, b, c = (VideoVAE.random(WIDTH, seed).encode_video(clip(1)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_frozen_but_differentiable(vae: VideoVAE) -> None:
    latents = noise(1).requires_grad_()
    vae.decode_video(latents).sum().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0
    assert not any(p.requires_grad for p in vae.parameters()) and not vae.network.training


# the interface, and bad input -------------------------------------------------------------------------------------


def test_both_tokenizers_have_one_interface(vae: VideoVAE) -> None:
    small = Tokenizer(TokenizerConfig(latent_channels=4, width=8))

    def round_trip(tokenizer: VideoTokenizer) -> tuple[int, ...]:
        latents = tokenizer.encode_video(clip(9))
        assert latents.shape == (1, 8 // tokenizer.temporal + 1, tokenizer.channels, 2, 3)
        pictures = tokenizer.decode_video(latents)
        assert pictures.abs().max() <= 1
        return tuple(pictures.shape)

    assert round_trip(vae) == round_trip(small) == (1, 9, 3, 16, 24)
    torch.testing.assert_close(small.encode_video(clip(3))[:, 1], small.encode(clip(3)[:, 1]))


BAD_VIDEOS = [
    (clip(4), "4 n \\+ 1 frames, got 4: take 1 or 5"),
    (clip(1)[:, :0], "got 0: take 1"),
    (clip(1, 20, 24), "height of a video is a multiple of 8, got 20: 16 or 24"),
    (clip(1, 16, 4), "width of a video is a multiple of 8, got 4: 8"),
    (clip(1)[0], "\\(B, T, 3, H, W\\).*\\(1, 3, 16, 24\\)"),
    (clip(1).transpose(1, 2), "\\(B, T, 3, H, W\\)"),
    (clip(1).mul(127).to(torch.uint8), "torch.uint8.*to_unit"),
    (clip(1) * 255, "\\[-1, 1\\], this one from -25"),
    (clip(1) * math.nan, "from nan to nan"),
]


@pytest.mark.parametrize(("video", "message"), BAD_VIDEOS)
def test_bad_videos(vae: VideoVAE, video: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.encode_video(video)


def test_a_stream_goes_on_in_fours(vae: VideoVAE) -> None:
    _, cache = vae.encode_stream(clip(1))
    with pytest.raises(ValueError, match="a multiple of 4 frames after its beginning, got 6: take 4 or 8"):
        vae.encode_stream(clip(6), cache)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (noise(1)[0], "\\(B, F, 16, h, w\\).*\\(1, 16, 2, 3\\)"),
        (noise(2).transpose(1, 2), "\\(B, F, 16, h, w\\).*\\(1, 16, 2, 2, 3\\)"),
        (noise(1)[:, :0], "none of them 0"),
        (noise(1).long(), "torch.int64"),
    ],
)
def test_bad_latents(vae: VideoVAE, latents: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.decode_video(latents)
    with pytest.raises(ValueError, match=message):
        vae.decode_stream(latents)
