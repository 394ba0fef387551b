"""WorldState: everything the model remembers, as a value of constant size; and what an imagined step returns."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kairos_env.runs import atomic_write
from kairos_env.world_model.attention.visibility import LayerMemory
from kairos_env.world_model.gated_delta_net import GatedDeltaState
from kairos_env.world_model.weights import content_sha256

logger = logging.getLogger(__name__)

LATENT_LIMIT = 6.0  # normalised latents beyond this many standard deviations are no picture


@dataclass(frozen=True)
class WorldState:
    """Memory after the newest frame. Verbs take one and return a new one; nothing is changed in place.

    Args:
        layers: per layer, the keys and values of the last few frames and the delta rule's matrices.
        past: (B,) int64, number of frames so far.
        latent: (B, C, h, w) newest latent frame, normalised (what ``WorldModel.decode`` takes).
        proprio: (B, P) float32, physical units.
        context: (B, S, text) instruction tokens.
        seed: (B,) int64; with ``past`` it fixes all noise, whatever stands beside an element in the batch.
        reward, success: (B,) read-outs of the newest frame (success as a probability).
        objects: (B, O, 3) positions read in the newest frame, metres, in the frame of the hand's position.
        errors: (B, E) expected root mean squared errors of the newest frame, see `WorldModel.error_names`; the largest
            since the newest observation, because what went wrong stays wrong until somebody looks.
        mask: (B, S) bool, which instruction tokens count; None if all do.
        before: (B, C, h, w) the latent frame before it, where a frame is decoded from both; None elsewhere.
        own_errors: (B, E) what the weights expect of the newest frame alone, as the next pass is told; None where that
            is ``errors``.
    """

    layers: tuple[LayerMemory, ...]
    past: Tensor
    latent: Tensor
    proprio: Tensor
    context: Tensor
    seed: Tensor
    reward: Tensor
    success: Tensor
    objects: Tensor
    errors: Tensor
    mask: Tensor | None = None
    before: Tensor | None = None
    own_errors: Tensor | None = None

    @property
    def batch_size(self) -> int:
        return len(self.past)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def map(self, transform: Callable[[Tensor], Tensor]) -> WorldState:
        """Applies ``transform`` to every tensor."""
        return WorldState.of_tensors({name: transform(value) for name, value in self.tensors().items()})

    def fork(self, copies: int) -> WorldState:
        """Each element ``copies`` times, copies of one element side by side: [0, 0, 0, 1, 1, 1]."""
        return self.map(lambda t: t.repeat_interleave(copies, 0))

    def select(self, indices: Sequence[int] | Tensor) -> WorldState:
        """The elements at ``indices``, in that order, repeated where repeated."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.past.device)
        return self.map(lambda t: t.index_select(0, index))

    def reseed(self, seeds: Sequence[int] | Tensor) -> WorldState:
        """The same memory with other noise to come."""
        seed = torch.as_tensor(seeds, dtype=torch.int64, device=self.past.device)
        if seed.shape != self.past.shape:
            raise ValueError(f"{tuple(seed.shape)} seeds for a state of batch size {self.batch_size}")
        return dataclasses.replace(self, seed=seed)

    def to(self, device: torch.device | str) -> WorldState:
        return self.map(lambda t: t.to(device))

    @staticmethod
    def cat(states: Sequence[WorldState]) -> WorldState:
        """States of the same model, one batch."""
        longest = max(s.context.shape[1] for s in states)
        ragged = any(s.mask is not None or s.context.shape[1] != longest for s in states)
        flats = [(s._padded(longest) if ragged else s).tensors() for s in states]
        return WorldState.of_tensors({k: torch.cat([f[k] for f in flats]) for k in flats[0]})

    def _padded(self, length: int) -> WorldState:
        """The same with ``length`` instruction tokens, those behind the own ones masked."""
        missing = length - self.context.shape[1]
        mask = torch.ones(self.context.shape[:2], dtype=torch.bool, device=self.past.device)
        mask = F.pad(mask if self.mask is None else self.mask, (0, missing))
        return dataclasses.replace(self, context=F.pad(self.context, (0, 0, 0, missing)), mask=mask)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file with its checksum, atomically."""
        flat = {k: v.detach().cpu().contiguous().clone() for k, v in self.tensors().items()}
        with atomic_write(path) as part:
            save_file(flat, str(part), {"sha256": content_sha256(flat)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WorldState:
        """Inverse of `save`.

        Raises:
            ValueError: the file is no state, a damaged one, or one of another version.
        """
        flat, checked = read_state(path)
        if not checked:
            logger.warning("%s was written without a checksum, by an earlier version: it is read as it is", path)
        needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING} - {"layers"}
        needed |= {"layers.0.keys.0"}  # all remembered frames were one tensor
        if needed - set(flat):
            lacking = ", ".join(sorted(needed - set(flat)))
            raise ValueError(
                f"{path} lacks {lacking}: a state of another version cannot be gone on from; observe again"
            )
        names = {f.name for f in dataclasses.fields(cls)}
        state = cls.of_tensors({k: v for k, v in flat.items() if k in names or k.startswith("layers.")})
        odd = set(flat) ^ set(state.tensors())
        odd |= {f"{m}.values" for m, one in enumerate(state.layers) if len(one.keys) != len(one.values)}
        if odd:
            raise ValueError(f"{path} is no whole state: {', '.join(sorted(odd))} belong to none; observe again")
        if broken := sorted(k for k, v in flat.items() if v.is_floating_point() and not v.isfinite().all()):
            raise ValueError(f"{path} holds numbers that are not finite, in {', '.join(broken)}; observe again")
        return state

    def _own(self) -> dict[str, Tensor]:
        """The tensors beside the layers' memory."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "layers"}
        return {name: value for name, value in values.items() if value is not None}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: fields, and ``layers.<layer>.<part>``, remembered frames with their number behind."""
        flat = self._own()
        for i, memory in enumerate(self.layers):
            for kind, frames in (("keys", memory.keys), ("values", memory.values)):
                flat |= {f"layers.{i}.{kind}.{at}": frame for at, frame in enumerate(frames)}
            if memory.delta is not None:
                flat |= {f"layers.{i}.recurrent": memory.delta.recurrent, f"layers.{i}.conv": memory.delta.conv}
        return flat

    @classmethod
    def of_tensors(cls, flat: dict[str, Tensor]) -> WorldState:
        """Inverse of `tensors`."""
        layers: list[LayerMemory] = []
        while keys := _numbered(flat, f"layers.{len(layers)}.keys."):
            at = f"layers.{len(layers)}."
            delta = None
            if at + "recurrent" in flat:
                delta = GatedDeltaState(flat[at + "recurrent"], flat[at + "conv"])
            layers.append(LayerMemory(keys, _numbered(flat, at + "values."), delta))
        values = {k: v for k, v in flat.items() if not k.startswith("layers.")}
        return cls(layers=tuple(layers), **values)


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file of `WorldState.save`, and whether it had a checksum, which is right.

    Raises:
        ValueError: damaged, or no such file of tensors.
    """
    try:
        with safe_open(str(path), "pt") as file:
            stored, flat = (file.metadata() or {}).get("sha256"), {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no state ({error})") from None
    if stored not in (None, content_sha256(flat)):
        raise ValueError(f"{path} is damaged: its checksum differs")
    return flat, stored is not None


def _numbered(flat: dict[str, Tensor], name: str) -> tuple[Tensor, ...]:
    """The tensors ``name + "0"``, ``name + "1"``, and so on."""
    found: list[Tensor] = []
    while f"{name}{len(found)}" in flat:
        found.append(flat[f"{name}{len(found)}"])
    return tuple(found)


@dataclass(frozen=True)
class StepOutput:
    """One imagined decision.

    Args:
        state: the new memory.
        latent: (B, C, h, w) normalised latent frame.
        proprio: (B, P) physical units.
        reward: (B,) predicted reward of the task.
        success: (B,) probability that the task is solved in this frame.
        uncertainty: (B,) the largest expected error of a position, in metres; of models that expect none, the error of
            the latent frame in standard deviations.
        objects: (B, O, 3) positions in the imagined frame, metres, in the frame of the hand's position.
        errors: (B, E) expected root mean squared errors, see `WorldModel.error_names`.
    """

    state: WorldState
    latent: Tensor
    proprio: Tensor
    reward: Tensor
    success: Tensor
    uncertainty: Tensor
    objects: Tensor
    errors: Tensor


@dataclass(frozen=True)
class Rollout:
    """Imagined decisions, stacked along axis 1; fields as in `StepOutput`."""

    latents: Tensor
    proprio: Tensor
    reward: Tensor
    success: Tensor
    uncertainty: Tensor
    objects: Tensor
    errors: Tensor
    state: WorldState
