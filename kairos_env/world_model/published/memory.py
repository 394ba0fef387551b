"""What a pass must cost: operations, bytes and memory, from the configuration alone.

Operations are those of the matrix products, a multiply-add counted as two; norms, activations and rotations are left
out. Bytes are what must be read at least once: weights and cached keys. Time on a device can then not be less than
`Cost.floor`. Measured times are given as multiples of it (``benchmarks/latency.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from kairos_env.world_model.config import ActionConfig, WorldActionConfig
from kairos_env.world_model.published.keys import ACTION, VIDEO, published_shapes

Expert = Literal["video", "action"]
CONTEXT_TOKENS = 128  # of a typical instruction after the dropped prefix, proprioception included


@dataclass(frozen=True)
class Cost:
    """Operations by kind, and bytes read.

    Args:
        linear: operations of products with weights.
        attention: of softmax attention, to frames, actions and context.
        delta: of the gated delta rule as a plain recurrence, its cheapest form.
        bytes: of weights and cached keys and values.
    """

    linear: float = 0.0
    attention: float = 0.0
    delta: float = 0.0
    bytes: float = 0.0

    @property
    def operations(self) -> float:
        return self.linear + self.attention + self.delta

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.linear + other.linear,
            self.attention + other.attention,
            self.delta + other.delta,
            self.bytes + other.bytes,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.linear * times, self.attention * times, self.delta * times, self.bytes * times)

    def floor(self, operations_per_second: float, bytes_per_second: float) -> float:
        """Seconds that a device of these peaks needs at least, computing and reading at the same time."""
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)


def grid(config: WorldActionConfig, frames: int, height: int, width: int) -> tuple[int, int]:
    """Latent frames F and tokens per latent frame L of a clip of ``frames`` pictures (4 n + 1) of this size."""
    cells = 8 * config.video.patch
    return (frames - 1) // 4 + 1, (height // cells) * (width // cells)


def visible_pairs(config: WorldActionConfig, kind: str, frames: int, tokens: int) -> int:
    """How many (query, key) pairs of video tokens a softmax layer of that kind computes."""
    if kind == "fa":
        return (frames * tokens) ** 2
    stride = config.video.dilation if kind == "dswa" else 1
    if config.window_unit == "token" and frames // stride <= 1:
        stride = 1  # too short to dilate
    pairs = 0
    for first in range(min(stride, frames)):
        count = len(range(first, frames, stride))  # frames that can see each other
        reach = config.video.window
        if config.window_unit == "frame":
            pairs += tokens**2 * sum(min(count, f + reach) - max(0, f - reach + 1) for f in range(count))
        else:
            reach *= tokens
            total = count * tokens
            outside = max(0, total - 1 - reach)
            pairs += total**2 - outside * (outside + 1)  # all pairs without the two corners beyond the reach
    return pairs


def context_reading(config: WorldActionConfig, expert: Expert, context: int = CONTEXT_TOKENS) -> Cost:
    """Keys and values of a context in every block of one expert: once for all passes under it."""
    video = config.video
    dim = video.dim if expert == "video" else _action(config).dim
    weights = (config.text_dim + dim) * dim + len(video.kinds) * 2 * dim * video.heads * video.head_dim
    return Cost(linear=2.0 * context * weights, bytes=2.0 * weights)


def video_pass(config: WorldActionConfig, frames: int, tokens: int, context: int = CONTEXT_TOKENS) -> Cost:
    """One pass of the video expert over F frames of L tokens, under a context of that many tokens that was read."""
    video = config.video
    count, width = frames * tokens, video.heads * video.head_dim
    patch = config.latent_channels * video.patch**2
    linear = count * patch * video.dim * 2  # patches in and out
    linear += frames * _time(video.dim)
    attention = delta = 0.0
    for kind in video.kinds:
        if kind == "gdn":
            key = video.delta_heads * video.delta_head_dim
            value = key * video.delta_expand_v
            linear += count * (video.dim * (2 * key + 3 * value + 2 * video.delta_heads) + 4 * (2 * key + value))
            # S^T k, k (x) error, S^T q, and the decay of S
            delta += 7 * count * video.delta_head_dim * value
        else:
            linear += count * 4 * video.dim * width
            attention += 4 * width * visible_pairs(config, kind, frames, tokens)
        linear += count * 2 * video.dim * (width + video.ffn_dim)
        attention += 4 * width * count * context
    return Cost(2 * linear, attention, delta, _weights(config, "video"))


def action_pass(config: WorldActionConfig, horizon: int, observed: int, context: int = CONTEXT_TOKENS) -> Cost:
    """One denoising step of N actions over cached keys and values of ``observed`` video tokens and of the context."""
    video, action = config.video, _action(config)
    width = video.heads * video.head_dim
    linear = horizon * 2 * config.action_dim * action.dim + _time(action.dim)
    attention = cached = 0.0
    for kind in video.kinds:
        seen = 0 if kind == "gdn" else observed
        cached += 2 * (seen + context) * width
        linear += horizon * 2 * action.dim * (3 * width + action.ffn_dim)
        attention += 4 * width * horizon * (seen + horizon + context)
    return Cost(2 * linear, attention, 0.0, _weights(config, "action") + 2 * cached)


def generation(config: WorldActionConfig, frames: int, height: int, width: int, steps: int, guidance: bool) -> Cost:
    """A whole clip: ``steps`` passes, twice as many with guidance."""
    step = video_pass(config, *grid(config, frames, height, width))
    return (context_reading(config, "video") + step * steps) * (2 if guidance else 1)


def action_only(config: WorldActionConfig, height: int, width: int, steps: int, horizon: int) -> Cost:
    """A chunk: the observed frame once, then ``steps`` passes of the action expert."""
    tokens = grid(config, 1, height, width)[1]
    step = action_pass(config, horizon, tokens)
    return _both_readings(config) + video_pass(config, 1, tokens) + step * steps


def joint(config: WorldActionConfig, frames: int, height: int, width: int, steps: int, horizon: int) -> Cost:
    """A chunk and its video side by side, ``steps`` passes of both experts, no guidance."""
    latent_frames, tokens = grid(config, frames, height, width)
    both = video_pass(config, latent_frames, tokens) + action_pass(config, horizon, tokens)
    return _both_readings(config) + both * steps


def weight_count(config: WorldActionConfig) -> tuple[int, int]:
    """Parameters of the video and of the action expert."""
    counts = {VIDEO: 0, ACTION: 0}
    for name, shape in published_shapes(config).items():
        counts[name[: name.index(".") + 1]] += prod(shape)
    return counts[VIDEO], counts[ACTION]


def estimate_memory(
    config: WorldActionConfig, frames: int, height: int, width: int, dtype: torch.dtype, batch: int = 1
) -> int:
    """Bytes that denoising a clip takes: weights of both experts and the widest moment of a pass.

    The widest moment is in a gated delta layer: inputs and outputs of its convolutions, normalised keys, gates. The
    numbers of copies are those measured with PyTorch's own kernels; fused ones keep fewer.
    """
    video = config.video
    latent_frames, tokens = grid(config, frames, height, width)
    key = video.delta_heads * video.delta_head_dim
    value = key * video.delta_expand_v
    widest = 4 * (2 * key + value) + 5 * value if "gdn" in video.kinds else 2 * video.ffn_dim
    size = torch.empty(0, dtype=dtype).element_size()
    activations = batch * latent_frames * tokens * (4 * video.dim + widest)
    return size * (sum(weight_count(config)) + activations)


class OutOfMemory(RuntimeError):
    """A clip does not fit on the device; the message says what to lower."""


@contextmanager
def explain_out_of_memory(
    config: WorldActionConfig,
    frames: int,
    height: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
    batch: int = 1,
    hint: str = "",
) -> Iterator[None]:
    """While it lasts, running out of memory is an `OutOfMemory` with an estimate; other errors pass.

    Args:
        frames, height, width, batch: the clips that are denoised.
        hint: what else would help.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch's CPU allocator raises a plain RuntimeError
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        need = estimate_memory(config, frames, height, width, dtype, batch) / 2**30
        total = ""
        if device.type == "cuda":
            total = f" (the device has {torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GiB)"
        ways = ["frames, height or width", hint or ("the batch" if batch > 1 else "")]
        ways.append("load the model in bfloat16" if dtype == torch.float32 else "")
        raise OutOfMemory(
            f"out of memory on {device}: denoising {frames} frames of {height} x {width}, batch {batch}, in "
            f"{str(dtype).removeprefix('torch.')} takes about {need:.1f} GiB, beside text encoder and video "
            f"decoder{total}; lower {', or '.join(filter(None, ways))}"
        ) from error


def _time(dim: int) -> int:
    return 256 * dim + dim * dim + 6 * dim * dim


def _both_readings(config: WorldActionConfig) -> Cost:
    return context_reading(config, "video") + context_reading(config, "action")


def _action(config: WorldActionConfig) -> ActionConfig:
    if config.action is None:
        raise ValueError(f"release {config.name!r} has no action expert")
    return config.action


def _weights(config: WorldActionConfig, expert: Expert) -> float:
    """Bytes of an expert's weights in bfloat16, without those that read the context."""
    return 2.0 * weight_count(config)[expert == "action"] - context_reading(config, expert).bytes
