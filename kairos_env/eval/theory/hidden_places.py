"""A world in which memory is worth something, and exactly how much is known.

There are n places. In each drifts a value that keeps the share rho of itself from frame to frame:
``z <- rho z + sqrt(1 - rho^2) noise``, of variance 1. The camera sees one place a frame. The action says which place
it will see next, drawn at random; the next frame is to be predicted.

What a place held when it was last seen, d frames ago, is all there is to know about it. So the best prediction is
``rho^(d + 1)`` times that value, and 0 for a place that was never seen. This predictor is a gated delta rule: decay
rho, strength 1, one orthogonal key a place. The decay is the drift, the write is the correction. A predictor that
sees only some of the past frames loses exactly the places that it did not see there.

Letters: B clips, T frames, n places, K key width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kairos_env.world_model.attention.kernels import attend
from kairos_env.world_model.attention.rotary import rope, rotate
from kairos_env.world_model.attention.visibility import window, window_valid
from kairos_env.world_model.config import VideoConfig
from kairos_env.world_model.dit import SelfAttention
from kairos_env.world_model.gated_delta import L2_EPS, gated_delta
from kairos_env.world_model.gated_delta_net import GatedDeltaNet

# (seen (B, T + 1), values (B, T)) -> (B, T) predictions of the next values
Predict = Callable[[Tensor, Tensor], Tensor]


class PlaceSequence(NamedTuple):
    """T + 1 frames: which place each shows (B, T + 1) int64, and its value (B, T + 1) float32.

    The action at frame t is ``seen[:, t + 1]``, what it leads to is ``values[:, t + 1]``.
    """

    seen: Tensor
    values: Tensor


@dataclass(frozen=True)
class HiddenPlaces:
    """The world.

    Args:
        places: n.
        persistence: rho, the share of its value that a place keeps for a frame.
    """

    places: int = 6
    persistence: float = 0.98

    def __post_init__(self) -> None:
        if self.places < 1 or not 0 < self.persistence < 1:
            raise ValueError(f"needs places >= 1 and 0 < persistence < 1, got {self.places} and {self.persistence}")

    def watch(self, clips: int, frames: int, seed: int) -> PlaceSequence:
        """Draws ``clips`` clips of ``frames`` + 1 frames from the stationary process."""
        generator = torch.Generator().manual_seed(seed)
        seen = torch.randint(self.places, (clips, frames + 1), generator=generator)
        noise = torch.randn(frames + 1, clips, self.places, generator=generator)
        kept, z, film = self.persistence, noise[0], [noise[0]]
        for new in noise[1:]:
            z = kept * z + math.sqrt(1 - kept**2) * new
            film.append(z)
        return PlaceSequence(seen, torch.stack(film, 1).gather(2, seen[..., None]).squeeze(2))

    def memory(self, seen: Tensor, values: Tensor, visible: Sequence[int] | None = None) -> Tensor:
        """E[z_t | frames up to t]: seen and values (B, T) -> (B, T, n).

        Args:
            visible: how many frames back the frames lie that are known, 0 is the newest; None is all of them.
        """
        length = seen.shape[1]
        memory = values.new_zeros(*seen.shape, self.places)
        unseen = torch.ones_like(memory, dtype=torch.bool)
        shown = F.one_hot(seen, self.places).bool()
        for back in range(length) if visible is None else sorted(set(visible)):
            if back < length:
                place = F.pad(shown, (0, 0, back, 0))[:, :length] & unseen
                value = F.pad(values, (back, 0))[:, :length, None]
                memory = torch.where(place, self.persistence**back * value, memory)
                unseen = unseen & ~place
        return memory

    def predict(self, seen: Tensor, values: Tensor, visible: Sequence[int] | None = None) -> Tensor:
        """The Bayes predictor of the next value: seen (B, T + 1), values (B, T) -> (B, T)."""
        memory = self.memory(seen[:, :-1], values, visible)
        return self.persistence * memory.gather(2, seen[:, 1:, None]).squeeze(2)

    def risk(self, visible: Sequence[int] | None = None) -> float:
        """Least squared error of a next frame that can be had from these frames of a long past; None is all."""
        hit, kept = 1 / self.places, self.persistence**2
        if visible is None:
            return 1 - hit * kept / (1 - (1 - hit) * kept)
        known = sum(hit * (1 - hit) ** i * kept ** (back + 1) for i, back in enumerate(sorted(set(visible))))
        return 1 - known


def visible(kinds: Sequence[str]) -> tuple[int, ...] | None:
    """Offsets in frames, back in time, that a stack of layers can know of; None if there is no limit."""
    if "gdn" in kinds:
        return None
    config = VideoConfig()
    return tuple(sorted({sum(steps) for steps in product(*(config.offsets(kind) for kind in kinds))}))


class WindowMixer(SelfAttention):
    """The world model's windowed attention over a sequence of one token a frame."""

    def __init__(self, dim: int, heads: int, offsets: tuple[int, ...]) -> None:
        super().__init__(dim, heads, dim // heads)
        self.offsets = offsets

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, frames, _ = x.shape
        q, k, v = self.qkv(x)
        positions = F.pad(torch.arange(frames)[:, None], (0, 2))
        table = rope(positions, k.shape[-1])
        q, k = rotate(q, table), rotate(k, table)
        before = (0, 0, 0, 0, 0, 0, self.offsets[-1], 0)  # frames that do not exist: masked
        keys, values = (window(F.pad(t.unsqueeze(2), before).unbind(1), self.offsets, frames) for t in (k, v))
        valid = window_valid(torch.zeros(batch, dtype=torch.int64), self.offsets, frames)
        return self.o(attend(q.unsqueeze(2), keys, values, valid.unsqueeze(2)).squeeze(2))


class Layer(nn.Module):
    """Mixing over time, then a feed-forward part; both residual."""

    def __init__(self, kind: str, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.norm_mix, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix = (
            GatedDeltaNet(dim, heads, dim // 3)
            if kind == "gdn"
            else WindowMixer(dim, heads, VideoConfig().offsets(kind))
        )
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        h = self.norm_mix(x)
        x = x + (self.mix(h)[0] if isinstance(self.mix, GatedDeltaNet) else self.mix(h))
        return x + self.feed(self.norm_feed(x))


class Predictor(nn.Module):
    """A small world model of `HiddenPlaces`, of the layers that the big one has.

    Args:
        places: n.
        kinds: kind of each layer, ``"swa"``, ``"dswa"`` or ``"gdn"``.
        dim: D.
    """

    def __init__(self, places: int, kinds: Sequence[str], dim: int = 48) -> None:
        super().__init__()
        self.places, self.kinds = places, tuple(kinds)
        self.embed = nn.Linear(2 * places + 1, dim)
        self.layers = nn.ModuleList(Layer(kind, dim) for kind in kinds)
        self.read = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1))

    def forward(self, seen: Tensor, values: Tensor) -> Tensor:
        """seen (B, T + 1), values (B, T) -> (B, T) predictions of the next values."""
        shown = F.one_hot(seen, self.places).to(values.dtype)
        x = self.embed(torch.cat([shown[:, :-1], shown[:, 1:], values[..., None]], -1))
        for layer in self.layers:
            x = layer(x)
        return self.read(x).squeeze(-1)


class DeltaFilter(nn.Module):
    """The delta rule's memory and nothing around it: keys and queries of the places, decay, strength, one scale.

    The Bayes predictor of `HiddenPlaces` is one of these, so that learned and exact memory can be compared.
    """

    def __init__(self, places: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(places, places))
        self.queries = nn.Parameter(torch.randn(places, places))
        self.log_rate = nn.Parameter(torch.tensor(-2.0))  # of the decay
        self.strength = nn.Parameter(torch.tensor(2.0))
        self.scale = nn.Parameter(torch.tensor(1.0))

    @property
    def decay(self) -> Tensor:
        """Alpha, in (0, 1)."""
        return (-self.log_rate.exp()).exp()

    def unit_keys(self) -> Tensor:
        """(n, K) keys as the delta rule normalises them."""
        return self.keys * torch.rsqrt(self.keys.square().sum(-1, keepdim=True) + L2_EPS)

    def write(self, memory: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One step of the memory (..., K): a unit key (..., K) and a value (...)."""
        decayed = self.decay * memory
        error = value - (decayed * key).sum(-1)
        return decayed + self.strength.sigmoid() * error[..., None] * key

    def forward(self, seen: Tensor, values: Tensor) -> Tensor:
        """seen (B, T + 1), values (B, T) -> (B, T) predictions of the next values."""
        k, q = self.keys[seen[:, :-1]].unsqueeze(2), self.queries[seen[:, 1:]].unsqueeze(2)
        gate = torch.ones_like(values)[..., None]
        g, beta = -self.log_rate.exp() * gate, self.strength.sigmoid() * gate
        return self.scale * gated_delta(q, k, values[..., None, None], g, beta)[0][..., 0, 0]


def train(
    world: HiddenPlaces,
    model: nn.Module,
    steps: int,
    seed: int = 0,
    clips: int = 32,
    frames: int = 40,
    rate: float = 5e-3,
) -> nn.Module:
    """Trains ``model`` in place on fresh clips, squared error of every next frame; returns it."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)

    def plan(step: int) -> float:  # linear up for a tenth of the steps, cosine down to zero
        return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2

    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * plan(step)
        seen, values = world.watch(clips, frames, seed=seed * 1_000_003 + step)
        loss = F.mse_loss(model(seen, values[:, :-1]), values[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


def imagine(predict: Predict, clip: PlaceSequence, observed: int) -> Tensor:
    """Imagines on from the first ``observed`` frames, feeding predictions back: values (B, T + 1)."""
    values = clip.values[:, :observed]
    with torch.no_grad():
        for t in range(observed, clip.seen.shape[1]):
            values = torch.cat([values, predict(clip.seen[:, : t + 1], values)[:, -1:]], 1)
    return values


@dataclass(frozen=True)
class Bound:
    """Theorem 2 with measured constants; norms are root mean squares over clips, suprema are over frames.

    Args:
        rho: largest operator norm of the learned memory's transitions.
        rate: their root mean square, which also counts what a write erases; see docs/theory.md.
        perturbation: xi, by how much one learned step errs from the exact memory.
        lemma: what Lemma 4 bounds xi by, from the errors of decay, strength and keys.
        readout: epsilon, error of the read-out given the learned memory.
        memory_error: measured distance of learned and exact memory.
        excess: measured excess risk over the Bayes predictor.
    """

    rho: float
    rate: float
    perturbation: float
    lemma: float
    readout: float
    memory_error: float
    excess: float
    persistence: float  # the Lipschitz constant of the exact read-out

    def of(self, contraction: float, perturbation: float) -> float:
        """(epsilon + L_G xi / (1 - contraction))^2, what the excess risk is at most."""
        return (self.readout + self.persistence * perturbation / (1 - contraction)) ** 2


def theorem_2(world: HiddenPlaces, model: DeltaFilter, clip: PlaceSequence) -> Bound:
    """Measures the constants of Theorem 2 on a trained filter and clips that it was not trained on, in float64.

    The exact memory is written in the learned coordinates: its keys are the orthonormal ones nearest to the learned.
    """
    model = copy.deepcopy(model).double()
    values = clip.values[:, :-1].double()
    seen, asked = clip.seen[:, :-1], clip.seen[:, 1:]
    with torch.no_grad():
        keys, decay, strength = model.unit_keys(), model.decay, model.strength.sigmoid()
        left, _, right = torch.linalg.svd(keys)
        exact_keys = left @ right
        exact = world.memory(seen, values) @ exact_keys  # (B, T, K)
        before = F.pad(exact, (0, 0, 1, 0))[:, :-1]
        xi = (model.write(before, keys[seen], values) - exact).norm(dim=-1)
        memory, memories = torch.zeros_like(exact[:, 0]), []
        for t in range(seen.shape[1]):
            memory = model.write(memory, keys[seen[:, t]], values[:, t])
            memories.append(memory)
        learned = torch.stack(memories, 1)
        prediction = model(clip.seen, values)
        read = world.persistence * (learned * exact_keys[asked]).sum(-1)
        best = world.predict(clip.seen, values)

        transitions = decay * (torch.eye(keys.shape[1]) - strength * keys[:, :, None] * keys[:, None, :])
        size_g, size_v = _rms(exact.norm(dim=-1)), _rms(values)
        off_decay, off_strength = abs(decay.item() - world.persistence), 1 - strength.item()
        off_key = (keys - exact_keys).norm(dim=-1).max().item()
        a = world.persistence
        lemma = size_g * off_decay + (a * size_g + size_v) * off_strength + (2 * a * size_g + size_v) * off_key
        return Bound(
            rho=torch.linalg.matrix_norm(transitions, 2).max().item(),
            rate=torch.linalg.matrix_norm((transitions @ transitions).mean(0), 2).sqrt().item(),
            perturbation=_rms(xi),
            lemma=lemma,
            readout=_rms(prediction - read),
            memory_error=_rms((learned - exact).norm(dim=-1)),
            excess=_rms(prediction - best) ** 2,
            persistence=world.persistence,
        )


def _rms(x: Tensor) -> float:
    """Largest root mean square over clips of any frame: (B, T)."""
    return x.square().mean(0).sqrt().max().item()
