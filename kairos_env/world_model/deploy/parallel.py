"""One model on several devices: sequence, guidance and tokenizer parallel over ``torch.distributed``.

Every process calls the same method with the same arguments and gets the whole result. Start them with ``torchrun``::

    torch.distributed.init_process_group()
    model = shard(WorldActionModel.from_pretrained(folder, device=f"cuda:{rank}"), guidance=True)
    clip = model.generate(prompt)

Weights are whole on every device; work and activations are spread:

* Ulysses (Jacobs et al. 2023): each process has a share of every frame's tokens, except where tokens meet. There it
  has all tokens of some heads: an all-to-all before the attention, one behind it. A frame's modulation stays whole.
* The gated delta rule runs through all tokens in order, so it too is spread over heads, projections included.
* Guidance: half of the processes compute the positive prompt, half the negative one.
* The tokenizer decodes rows of the picture; convolutions borrow the rows at the seam from their neighbours. Or it
  decodes stretches of the clip, which need no messages, but forget what was more than some frames before.

Letters: P processes, l = L / P; the others as in ``bidirectional``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from kairos_env.world_model.attention.kernels import clip_attention
from kairos_env.world_model.attention.patterns import ClipPattern
from kairos_env.world_model.attention.visibility import Tokens
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.gated_delta_net import GatedDeltaNet
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.sampling import Velocity, guide
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

Group = dist.ProcessGroup | None  # None: all processes
Split = Literal["rows", "frames"]
HALO = 4  # latent frames before a stretch, as published


def shard(
    model: WorldActionModel, guidance: bool = False, engine: str | None = None, split: Split = "rows"
) -> WorldActionModel:
    """The same model, its work spread over all processes; each of them has to call this.

    Args:
        guidance: spread classifier-free guidance over two halves of the processes, and tokens within each half.
            Pays twice as much as tokens alone wherever both prompts are computed.
        engine: overrides the choice of the attention engine.
        split: how the tokenizer decodes, see `ParallelVAE`; tiles are left out where it is by rows.

    Raises:
        RuntimeError: there are no processes to spread over.
        ValueError: their number does not fit.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "no process group: start this script with torchrun and call torch.distributed.init_process_group() first"
        )
    world, halves = dist.get_world_size(), 2 if guidance else 1
    check_world(model.config, world, guidance)
    mesh = init_device_mesh(model.device.type, (halves, world // halves), mesh_dim_names=("guidance", "tokens"))
    tokenizer = model.tokenizer
    if isinstance(tokenizer, VideoVAE):
        whole = tokenizer.tiled(tokenizer.encode_tiling, None)
        tokenizer = ParallelVAE(whole if split == "rows" else tokenizer, split=split)
    shared = WorldActionModel(model.config, model.transformer, tokenizer, model.encoder)
    shared.mixing = Ulysses(mesh.get_group("tokens"), engine)
    if guidance:
        shared.guided = guided_apart(mesh.get_group("guidance"))
    return shared


def check_world(config: WorldActionConfig, world: int, guidance: bool, tokens: int | None = None) -> None:
    """Checks that so many processes can share a model.

    Args:
        tokens: of a latent frame, if that is known.

    Raises:
        ValueError: they cannot; the message names the numbers that can.
    """
    halves = 2 if guidance else 1
    heads = min(config.video.heads, config.video.delta_heads)
    legal = [halves * size for size in range(1, heads + 1) if not tokens or tokens % size == 0]
    if world not in legal:
        picture = f" with {tokens} tokens in a latent frame" if tokens else ""
        raise ValueError(
            f"{world} processes cannot share {config.name!r}{picture}: legal {'with guidance ' * guidance}are "
            f"{', '.join(map(str, legal))}"
        )


def spread(number: int, parts: int) -> list[int]:
    """A number in ``parts`` as equal as possible, the larger ones first: 20 in 8 are 3, 3, 3, 3, 2, 2, 2, 2."""
    return [number // parts + (part < number % parts) for part in range(parts)]


def exchange(parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], group: Group) -> list[Tensor]:
    """Part i goes to process i of the group; returns what each of them sent here, of the given shapes."""
    sent = torch.cat([part.flatten() for part in parts])
    counts = [torch.Size(shape).numel() for shape in shapes]
    received = sent.new_empty(sum(counts))
    dist.all_to_all_single(received, sent, counts, [part.numel() for part in parts], group=group)
    return [piece.view(shape) for piece, shape in zip(received.split(counts), shapes, strict=True)]


def gather(part: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
    """Concatenates everybody's part, of ``sizes`` along ``dim``."""
    shapes = [part.shape[:dim] + (size,) + part.shape[dim:][1:] for size in sizes]
    return torch.cat(exchange([part] * len(sizes), shapes, group), dim)


# tokens and heads -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ulysses:
    """A `Mixing` over the processes of a group. Actions are few and computed whole by every process.

    Args:
        group: process i of it has the i-th share of every frame's tokens.
        engine: overrides the choice of the attention engine.
    """

    group: Group = None
    engine: str | None = None

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    def split(self, video: Tokens) -> Tokens:
        """The own share of every frame's tokens.

        Raises:
            ValueError: the tokens of a frame do not divide by the processes.
        """
        length = video.tokens.shape[2]
        if length % self.size:
            legal = [size for size in range(1, 65) if length % size == 0]
            raise ValueError(
                f"the {length} tokens of a latent frame do not divide among {self.size} processes; legal for this "
                f"picture: {', '.join(map(str, legal))}"
            )
        own = slice(self.rank * length // self.size, (self.rank + 1) * length // self.size)
        cos, sin = video.table
        return video._replace(tokens=video.tokens[:, :, own], table=(cos[:, own], sin[:, own]))

    def join(self, tokens: Tensor) -> Tensor:
        """(B, F, l, D) -> (B, F, L, D)."""
        return gather(tokens, 2, [tokens.shape[2]] * self.size, self.group)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, pattern: ClipPattern) -> Tensor:
        """As `clip_attention`, of the own tokens: (B, F l + N, H, K) each, ``pattern.tokens`` = l."""
        if not pattern.frames:
            return clip_attention(q, k, v, pattern, self.engine)
        heads = q.shape[2]
        q, k, v = (self._to_heads(x, pattern) for x in (q, k, v))
        whole = replace(pattern, tokens=pattern.tokens * self.size)
        return self._to_tokens(clip_attention(q, k, v, whole, self.engine), heads, pattern)

    def delta(self, layer: GatedDeltaNet, x: Tensor) -> Tensor:
        """As the layer, of the own tokens (B, F, l, D): all-gathers its input, computes some heads of all tokens."""
        batch, frames, length, _ = x.shape
        counts = spread(layer.heads, self.size)
        first = sum(counts[: self.rank])
        own = heads_of(layer, first, first + counts[self.rank])
        heads = own(self.join(x).flatten(1, 2))[0].unflatten(-1, (-1, layer.head_v_dim))
        pattern = ClipPattern("fa", frames, length)
        return layer.o_proj(self._to_tokens(heads, layer.heads, pattern).flatten(2)).view_as(x)

    def _to_heads(self, x: Tensor, pattern: ClipPattern) -> Tensor:
        """[own tokens | actions] of all heads, (B, F l + N, H, K) -> [all tokens | actions] of the own heads.

        F l is 0 where only actions ask.
        """
        counts = spread(x.shape[2], self.size)
        tokens, actions = x.split([x.shape[1] - pattern.actions, pattern.actions], 1)
        actions = actions.split(counts, 2)[self.rank]
        if not tokens.shape[1]:
            return actions
        shape = (x.shape[0], pattern.frames, pattern.tokens, counts[self.rank], x.shape[3])
        parts = exchange(tokens.split(counts, 2), [shape] * self.size, self.group)
        return torch.cat([torch.cat(parts, 2).flatten(1, 2), actions], 1)

    def _to_tokens(self, x: Tensor, heads: int, pattern: ClipPattern) -> Tensor:
        """Inverse: [all tokens | actions] of the own heads -> [own tokens | actions] of all ``heads``."""
        counts = spread(heads, self.size)
        tokens, actions = x.split([x.shape[1] - pattern.actions, pattern.actions], 1)
        shares = tokens.unflatten(1, (pattern.frames, self.size, -1)).unbind(2) if tokens.shape[1] else ()
        parts = [torch.cat([s.flatten(1, 2), actions], 1) for s in shares] or [actions] * self.size
        shapes = [(x.shape[0], parts[0].shape[1], count, x.shape[3]) for count in counts]
        return torch.cat(exchange(parts, shapes, self.group), 2)


def heads_of(layer: GatedDeltaNet, first: int, last: int) -> GatedDeltaNet:
    """Heads ``first`` up to ``last`` of a layer, on its own weights (views), without the output projection.

    Maps (B, T, D) to (B, T, (last - first) V).

    Raises:
        ValueError: its weights are quantised.
    """
    weights = {name: w for name, w in layer.state_dict().items() if not name.startswith("o_proj")}
    packed = [name for name, w in weights.items() if type(w) is not Tensor]
    if packed:
        raise ValueError(f"quantised weights ({', '.join(packed)}) cannot be spread over heads; shard exact ones")
    with torch.device("meta"):
        expansion = layer.head_v_dim / layer.head_k_dim
        part = GatedDeltaNet(layer.dim, last - first, layer.head_k_dim, expansion, layer.engine)
    part.o_proj = nn.Identity()  # type: ignore[assignment]
    for name, w in weights.items():
        if name != "o_norm.weight":  # one for all heads
            weights[name] = w.unflatten(0, (layer.heads, -1))[first:last].flatten(0, 1)
    part.load_state_dict(weights, assign=True)
    return part


# guidance -------------------------------------------------------------------------------------------------------------


def guided_apart(group: Group = None) -> Callable[[Velocity, Velocity, float], Velocity]:
    """`sampling.guided` for two processes: the first computes the positive prompt, the second the negative one.

    Raises:
        ValueError: the group has not two processes.
    """
    size = dist.get_world_size(group)
    if size != 2:
        raise ValueError(f"guidance has two prompts and takes a group of 2 processes, this one has {size}")

    def guided(positive: Velocity, negative: Velocity, scale: float) -> Velocity:
        own = (positive, negative)[dist.get_rank(group)]

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            both = gather(own(latents, sigma)[None], 0, [1, 1], group)
            return guide(both[0], both[1], scale)

        return velocity

    return guided


# video tokenizer ------------------------------------------------------------------------------------------------------


class ParallelVAE:
    """A `VideoVAE` that decodes in parallel; encoding is as before.

    Args:
        split: ``"rows"``, some rows of the picture each: the result is that of one process, up to rounding, at the
            price of messages in every convolution. ``"frames"``, a stretch of the clip each, as the published
            pipeline does: no messages, and any tiling. The decoder's memory reaches back some forty latent frames;
            here it begins anew ``halo`` before a stretch, so that the result differs a little after each seam.

    Raises:
        ValueError: rows of a tokenizer that decodes in tiles, which share out the picture in another way.
    """

    def __init__(self, vae: VideoVAE, group: Group = None, split: Split = "rows", halo: int = HALO) -> None:
        if split == "rows" and vae.decode_tiling:
            raise ValueError("a tokenizer that decodes in tiles cannot share rows; give vae.tiled(decode=None)")
        if halo < 1:
            raise ValueError(f"a stretch needs at least one latent frame before it, got halo {halo}")
        self.vae, self.group, self.split, self.halo = vae, group, split, halo
        self.channels, self.spatial, self.temporal = vae.channels, vae.spatial, vae.temporal

    def encode_video(self, video: Tensor) -> Tensor:
        """See `VideoVAE.encode_video`."""
        return self.vae.encode_video(video)

    @torch.no_grad()
    def decode_video(self, latents: Tensor) -> Tensor:
        """See `VideoVAE.decode_video`.

        Raises:
            ValueError: as there; or fewer rows or frames than processes.
        """
        size, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        number = latents.shape[-2 if self.split == "rows" else 1]
        if number < size:
            what = "rows of latents" if self.split == "rows" else "latent frames"
            raise ValueError(f"{number} {what} cannot be shared by {size} processes; legal: 1 to {number}")
        shares = spread(number, size)
        if self.split == "rows":
            with _neighbours(self.vae.network, rank, shares, self.group):
                video = self.vae.decode_video(latents.split(shares, -2)[rank])
            return gather(video, 3, [self.spatial * share for share in shares], self.group)
        pictures = [self.temporal * share for share in shares]
        pictures[0] -= self.temporal - 1  # the first latent frame of a clip is one picture
        own = stretch(latents, sum(shares[:rank]), shares[rank], self.halo)
        return gather(self.vae.decode_video(own)[:, -pictures[rank] :], 1, pictures, self.group)


def stretch(latents: Tensor, first: int, count: int, halo: int) -> Tensor:
    """``count`` latent frames (B, F, C, h, w) from ``first`` on, and up to ``halo`` before them."""
    return latents[:, max(0, first - halo) : first + count]


@contextmanager
def _neighbours(network: nn.Module, rank: int, rows: Sequence[int], group: Group) -> Iterator[None]:
    """While it lasts, convolutions see the rows beyond the seams, and attention, which is global, the whole picture."""
    decoder = network.get_submodule("decoder")
    above, below = int(rank > 0), int(rank < len(rows) - 1)

    def widen(x: Tensor) -> Tensor:
        edges = torch.stack([x[..., :1, :], x[..., -1:, :]])
        every = gather(edges[None], 0, [1] * len(rows), group)
        return torch.cat([*every[rank - above : rank, 1], x, *every[rank + 1 : rank + 1 + below, 0]], -2)

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(widen(x) if isinstance(x, Tensor) else x for x in inputs)  # also the frames before, from its cache

    def after(layer: nn.Module, inputs: tuple[Any, ...], x: Tensor) -> Tensor:
        return x[..., above : x.shape[-2] - below, :]

    def whole(layer: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        return gather(inputs[0], inputs[0].ndim - 2, rows, group)

    def own(layer: nn.Module, inputs: tuple[Any, ...], x: Tensor) -> Tensor:
        return x.split(list(rows), -2)[rank]

    hooks = []
    for layer in decoder.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)) and layer.kernel_size[-2] == 3:
            hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    for layer in decoder.get_submodule("mid_block.attentions").children():
        hooks += [layer.register_forward_pre_hook(whole), layer.register_forward_hook(own)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
