"""Video tokenizer of the published models: the Wan2.1 autoencoder, 16 latent channels, 4x8x8 compression.

The layers are diffusers' ``AutoencoderKLWan``. Its own ``encode`` and ``decode`` keep their state in the module,
copy the clip so far once per latent frame and hold all tiles of the whole clip, so the loops are ours: one latent
frame at a time, with a cache that goes in and comes out. A clip of any length therefore needs the memory of one
latent frame, and a chunked clip equals the whole one. Time is causal: latent frame 0 is picture 0 alone, each
further one holds four pictures.

Letters: B batch, T frames, F latent frames (T = 4 F - 3), C latent channels, H, W pixels, h, w latent cells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kairos_env.world_model.tokenizers.tiling import Tiling
from kairos_env.world_model.tokenizers.wan_weights import (
    CHANNELS,
    LATENT_MEAN,
    LATENT_STD,
    make_network,
    published_names,
    read_weights,
)
from kairos_env.world_model.weights import load_weights, require_same

SPATIAL, TEMPORAL = 8, 4
WIDTH = 96  # of the published weights

# Live tensors while one latent frame is decoded in one piece at the published width, per pixel; see `decoding_bytes`.
BYTES_PER_PIXEL = {torch.bfloat16: 10_124, torch.float16: 10_124, torch.float32: 19_465}

# A resized picture may overshoot by a rounding error; an unnormalised one is far outside.
RANGE_TOLERANCE = 1e-2


# The published pipeline encodes with half-overlapping tiles and decodes with an overlap of four cells.
PUBLISHED_ENCODE_TILING = Tiling((30, 52), (15, 26))
PUBLISHED_DECODE_TILING = Tiling((30, 52), (26, 48))

State = list[Any]  # per causal convolution: a tensor, None, or diffusers' marker of "first frame seen"


class StreamKey(NamedTuple):
    """What a cache belongs to."""

    verb: str  # "encode" or "decode"
    batch: int
    rows: int  # h
    columns: int  # w
    tiling: Tiling | None


class StreamCache(NamedTuple):
    """Memory of a stream: per tile and causal convolution, the last two frames that it saw.

    Comes from `VideoVAE.encode_stream` or `VideoVAE.decode_stream` and is never written into, so a stream can be
    continued twice from the same point.
    """

    key: StreamKey
    tiles: tuple[tuple[Any, ...], ...]


class VideoVAE(nn.Module):
    """The Wan2.1 autoencoder as a `VideoTokenizer`; frozen, in evaluation mode.

    Args:
        network: diffusers' ``AutoencoderKLWan`` in the Wan2.1 layout; see `random` and `from_file`.
        encode_tiling: tiles of `encode_video` and `encode_stream`; None takes the picture as a whole.
        decode_tiling: tiles of `decode_video` and `decode_stream`. Tiles bound the activations; the caches of all
            tiles are held.
    """

    channels, spatial, temporal = CHANNELS, SPATIAL, TEMPORAL

    def __init__(
        self, network: nn.Module, encode_tiling: Tiling | None = None, decode_tiling: Tiling | None = None
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.encode_tiling, self.decode_tiling = encode_tiling, decode_tiling

    @classmethod
    def random(cls, width: int = WIDTH, seed: int = 0) -> VideoVAE:
        """Random float32 weights; ``width`` is that of the first layer, 96 in the published weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(make_network(width))

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> VideoVAE:
        """Loads published weights strictly; the width is read off them.

        Args:
            path: the published ``.pth`` (also under ``model_state``, also with the prefix ``model.``), a
                ``.safetensors`` with those names or diffusers' names, or a folder in the diffusers layout.
            device: where the weights go.
            dtype: of weights, latents and pictures.

        Raises:
            FileNotFoundError: nothing there.
            CheckpointError: unreadable, not only tensors, other latent statistics, or missing, extra or misshapen
                weights, all of them listed.
        """
        path = Path(path)
        weights = read_weights(path)
        first = weights.get("encoder.conv_in.weight", weights.get("encoder.conv1.weight"))
        network = make_network(first.shape[0] if first is not None and first.shape else WIDTH, "meta")
        expected = network.state_dict()
        names = {key: key for key in expected} if "quant_conv.weight" in weights else published_names(expected)
        what = f"{path} is not a Wan2.1 VAE (the 48-channel one of Wan2.2 does not fit)"
        want = {names[key]: tuple(value.shape) for key, value in expected.items()}
        require_same(want, {name: tuple(value.shape) for name, value in weights.items()}, what)
        load_weights(network, {key: weights[name] for key, name in names.items()}, dtype, device)
        return cls(network)

    def tiled(
        self,
        encode: Tiling | None = PUBLISHED_ENCODE_TILING,
        decode: Tiling | None = PUBLISHED_DECODE_TILING,
    ) -> VideoVAE:
        """The same weights working in tiles, by default the published ones.

        The published LIBERO client encodes its 224x448 picture this way: two tiles 416 and 240 pixels wide, the
        second one from column 208.
        """
        return VideoVAE(self.network, encode, decode)

    def published_weights(self) -> dict[str, Tensor]:
        """The weights under the names of the published ``.pth``."""
        weights = self.network.state_dict()
        return {name: weights[key] for key, name in published_names(weights).items()}

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter.dtype

    @property
    def _parameter(self) -> Tensor:
        return next(self.network.parameters())

    # whole clips ----------------------------------------------------------------------------------------------

    def encode_video(self, video: Tensor) -> Tensor:
        """Mean of the posterior, normalised by the published latent statistics.

        Args:
            video: (B, T, 3, H, W) in [-1, 1], any float dtype, T = 4 n + 1, H and W multiples of 8. It may lie on
                another device: it is moved four frames at a time.

        Returns:
            (B, F, C, h, w) in the dtype and on the device of the weights.

        Raises:
            ValueError: other shape, dtype or range.
        """
        return self.encode_stream(video)[0]

    def decode_video(self, latents: Tensor) -> Tensor:
        """Inverse of `encode_video`; long clips can be written piece by piece with `decode_pieces`.

        Args:
            latents: (B, F, C, h, w), normalised.

        Returns:
            (B, 4 F - 3, 3, 8 h, 8 w) in [-1, 1], in the dtype and on the device of the weights.

        Raises:
            ValueError: other shape or dtype.
        """
        _check_latents(latents)
        batch, frames, _, rows, columns = latents.shape
        shape = (batch, TEMPORAL * (frames - 1) + 1, 3, SPATIAL * rows, SPATIAL * columns)
        video = torch.empty(shape, dtype=self.dtype, device=self.device)
        end = 0
        for pictures in self.decode_pieces(latents):
            start, end = end, end + pictures.shape[1]
            video[:, start:end] = pictures
        return video

    def decode_pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """The pictures of `decode_video` as they come: one, then four at a time, (B, 1 or 4, 3, 8 h, 8 w).

        A writer that consumes them needs the memory of one latent frame, however long the clip.
        """
        _check_latents(latents)
        key = self._decode_key(latents)
        states = self._states(key, None)
        for latent in latents.split(1, dim=1):
            yield self._decode(latent, key, states)

    # streams --------------------------------------------------------------------------------------------------

    def encode_stream(self, frames: Tensor, cache: StreamCache | None = None) -> tuple[Tensor, StreamCache]:
        """The next frames of a clip; the pieces of a clip give the same latents as the whole.

        Args:
            frames: (B, T, 3, H, W) as for `encode_video`: T = 4 n + 1 to begin with, a multiple of 4 from then on.
            cache: of the call before; None begins a clip.

        Returns:
            latents (B, F, C, h, w), and the cache for the next call.

        Raises:
            ValueError: other shape, dtype or range, or a cache of another stream.
        """
        _check_video(frames, begin=cache is None)
        batch, count, _, height, width = frames.shape
        key = StreamKey("encode", batch, height // SPATIAL, width // SPATIAL, self.encode_tiling)
        states = self._states(key, cache)
        first = [1] if cache is None else []
        pieces = frames.split(first + [TEMPORAL] * (count // TEMPORAL), dim=1)
        latents = torch.cat([self._encode(piece, key, states) for piece in pieces], dim=1)
        return latents, StreamCache(key, tuple(map(tuple, states)))

    def decode_stream(self, latents: Tensor, cache: StreamCache | None = None) -> tuple[Tensor, StreamCache]:
        """The next latent frames of a clip: any number of them; the pieces give the same pictures as the whole.

        Args:
            latents: (B, F, C, h, w), normalised.
            cache: of the call before; None begins a clip.

        Returns:
            pictures (B, T, 3, 8 h, 8 w) in [-1, 1], T = 4 F - 3 to begin with and 4 F from then on, and the cache
            for the next call.

        Raises:
            ValueError: other shape or dtype, or a cache of another stream.
        """
        _check_latents(latents)
        key = self._decode_key(latents)
        states = self._states(key, cache)
        pictures = torch.cat([self._decode(latent, key, states) for latent in latents.split(1, dim=1)], dim=1)
        return pictures, StreamCache(key, tuple(map(tuple, states)))

    def _decode_key(self, latents: Tensor) -> StreamKey:
        batch, _, _, rows, columns = latents.shape
        return StreamKey("decode", batch, rows, columns, self.decode_tiling)

    def _states(self, key: StreamKey, cache: StreamCache | None) -> list[State]:
        """Lists of our own, one per tile, to be written into while a call runs.

        diffusers replaces the entries and never writes into the tensors, so the cache stays as it was; and what is
        replaced is freed at once if nobody else holds it.
        """
        if cache is not None:
            if cache.key != key:
                raise ValueError(f"the cache belongs to another stream: it is of {cache.key}, the call is {key}")
            return [list(state) for state in cache.tiles]
        convolutions = sum(isinstance(layer, nn.Conv3d) for layer in self.network.modules())
        return [[None] * convolutions for _ in (key.tiling.tiles(key.rows, key.columns) if key.tiling else [None])]

    # one latent frame -----------------------------------------------------------------------------------------

    def _encode(self, frames: Tensor, key: StreamKey, states: list[State]) -> Tensor:
        """(B, 1 or 4, 3, H, W) -> (B, 1, C, h, w)."""

        def run(pixels: Tensor, state: State) -> Tensor:
            features = self.network.encoder(pixels, feat_cache=state, feat_idx=[0])
            return self.network.quant_conv(features)[:, :CHANNELS]  # the other half is the log variance

        pixels = frames.to(self.device, self.dtype).transpose(1, 2)
        latent = _in_tiles(run, pixels, key, states, SPATIAL, 1)
        mean, std = _statistics(latent)
        return ((latent - mean) / std).to(self.dtype).transpose(1, 2)

    def _decode(self, latent: Tensor, key: StreamKey, states: list[State]) -> Tensor:
        """(B, 1, C, h, w) -> (B, 1 or 4, 3, H, W)."""

        def run(cells: Tensor, state: State) -> Tensor:
            return self.network.decoder(self.network.post_quant_conv(cells), feat_cache=state, feat_idx=[0])

        latent = latent.to(self.device).transpose(1, 2)
        mean, std = _statistics(latent)
        pixels = _in_tiles(run, (latent * std + mean).to(self.dtype), key, states, 1, SPATIAL)
        return pixels.clamp(-1, 1).to(self.dtype).transpose(1, 2)


def _in_tiles(
    run: Callable[[Tensor, State], Tensor], x: Tensor, key: StreamKey, states: list[State], before: int, after: int
) -> Tensor:
    """``run`` on (B, C, T, rows, columns), tile by tile; a latent cell is ``before`` of x and ``after`` of the result.

    A tiled result is float32 or better.
    """
    if key.tiling is None:
        return run(x, states[0])
    output = None
    for tile, state in zip(key.tiling.tiles(key.rows, key.columns, after), states, strict=True):
        top, bottom, left, right = (edge * before // after for edge in tile[:4])
        part = run(x[..., top:bottom, left:right], state)
        if output is None:
            shape, dtype = (key.rows * after, key.columns * after), torch.promote_types(part.dtype, torch.float32)
            output = part.new_zeros(*part.shape[:3], *shape, dtype=dtype)
        output[..., tile.top : tile.bottom, tile.left : tile.right] += part * tile.share.to(output)
    assert output is not None
    return output


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that broadcast against (B, C, F, h, w), in float32 or better."""
    dtype = torch.promote_types(latents.dtype, torch.float32)
    mean, std = (torch.tensor(x, dtype=dtype, device=latents.device) for x in (LATENT_MEAN, LATENT_STD))
    return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)


def decoding_bytes(height: int, width: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """Peak memory of decoding one clip at the published width, whatever its length, beside weights and output.

    Counted are tensors, not the scratch space of kernels. `PUBLISHED_DECODE_TILING` saves about a quarter at 480x640
    and a third at 704x1280.

    Raises:
        ValueError: a dtype that was not counted.
    """
    if dtype not in BYTES_PER_PIXEL:
        raise ValueError(f"no figures for {dtype}; there are some for {', '.join(map(str, BYTES_PER_PIXEL))}")
    return height * width * BYTES_PER_PIXEL[dtype]


# bad input --------------------------------------------------------------------------------------------------------


def _check_video(video: Tensor, begin: bool) -> None:
    if video.ndim != 5 or video.shape[2] != 3 or video.shape[0] < 1:
        raise ValueError(f"a video is (B, T, 3, H, W) with B >= 1, got {tuple(video.shape)}")
    if not video.is_floating_point():
        raise ValueError(f"a video is float in [-1, 1], got {video.dtype}: convert bytes with tokenizer.to_unit first")
    frames, height, width = video.shape[1], video.shape[3], video.shape[4]
    extra = 1 if begin else 0
    if frames < 1 or frames % TEMPORAL != extra:
        rule = "4 n + 1 frames" if begin else "a multiple of 4 frames after its beginning"
        raise ValueError(f"a clip has {rule}, got {frames}: take {_nearest(frames, TEMPORAL, extra)}")
    for name, side in (("height", height), ("width", width)):
        if side < 1 or side % SPATIAL:
            raise ValueError(f"the {name} of a video is a multiple of {SPATIAL}, got {side}: {_nearest(side, SPATIAL)}")
    low, high = (float(x) for x in video.detach().aminmax())
    if not -1 - RANGE_TOLERANCE <= low <= high <= 1 + RANGE_TOLERANCE:
        raise ValueError(f"a video lies in [-1, 1], this one from {low:.4g} to {high:.4g}; bytes: tokenizer.to_unit")


def _check_latents(latents: Tensor) -> None:
    if latents.ndim != 5 or latents.shape[2] != CHANNELS or 0 in latents.shape:
        raise ValueError(f"latents are (B, F, {CHANNELS}, h, w), none of them 0, got {tuple(latents.shape)}")
    if not latents.is_floating_point():
        raise ValueError(f"latents are float, got {latents.dtype}")


def _nearest(value: int, step: int, offset: int = 0) -> str:
    """The legal values around an illegal one."""
    below = (value - offset) // step * step + offset
    return f"{below} or {below + step}" if below > 0 else str(below + step)
