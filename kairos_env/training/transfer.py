"""Initialisation from a finished model, of the same robot or of another one, and how well its tokenizer suits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kairos_env.records import Array, Episode, RobotSpec
from kairos_env.training.batches import encode_pictures
from kairos_env.training.tokenizer import moments
from kairos_env.world_model.model import WorldModel

GOOD_DB = 28.0  # of a picture through a tokenizer and back: below it, small things are lost or smeared
_LOOKED_AT = 64  # pictures of each camera

# parts of the names of tensors that belong to the fields of a robot
_BOUND = {"action": ("action_embedding", "action_encoder", "action_dit.head."), "proprio": ("proprio_",)}


@dataclass(frozen=True)
class Transfer:
    """The tensors that a model takes over from another.

    Args:
        source: name or folder of the other model.
        kept: number of tensors taken over.
        fresh: names of those that start anew, since shapes, fields or cameras differ.
        differences: of the two robots, in words; empty for the same robot.
    """

    source: str
    kept: int
    fresh: tuple[str, ...]
    differences: tuple[str, ...]

    def __str__(self) -> str:
        if not self.fresh:
            return f"goes on from {self.source}: all {self.kept} tensors kept"
        return (
            f"goes on from {self.source}: {self.kept} tensors kept, {len(self.fresh)} start anew "
            f"({', '.join(self.fresh)}), because the robots differ: {'; '.join(self.differences)}"
        )


def initialise_from(source: WorldModel, model: WorldModel, episodes: Sequence[Episode], name: str) -> Transfer:
    """Copies what fits from a finished model into one of the same configuration for a robot that may differ.

    A field of the same place but another meaning does not fit either: embeddings and read-outs of actions or
    proprioception are kept only if all their fields are the same.
    """
    old, new = source.spec, model.spec
    unlike = {what: getattr(old, what) != getattr(new, what) for what in _BOUND}
    have, kept, fresh = source.state_dict(), {}, []
    for key, tensor in model.state_dict().items():
        other = any(unlike[what] and part in key for what, parts in _BOUND.items() for part in parts)
        if not other and key in have and have[key].shape == tensor.shape:
            kept[key] = have[key]
        else:
            fresh.append(key)
    model.load_state_dict(kept, strict=False)
    statistics = source.statistics
    if unlike["proprio"]:
        mean, std = moments(episodes)
        statistics = dataclasses.replace(statistics, proprio_mean=mean, proprio_std=std)
    model.set_statistics(statistics)
    differences = [f"{what} fields {_names(old, what)} -> {_names(new, what)}" for what in unlike if unlike[what]]
    if len(old.cameras) != len(new.cameras):
        differences.append(f"cameras {[c.name for c in old.cameras]} -> {[c.name for c in new.cameras]}")
    return Transfer(name, len(kept), tuple(fresh), tuple(differences))


def _names(spec: RobotSpec, what: str) -> str:
    return ", ".join(f"{f.name} [{f.low:g}, {f.high:g}] {f.unit}" for f in getattr(spec, what))


def tokenizer_verdict(model: WorldModel, episodes: Sequence[Episode], name: str) -> str:
    """A sentence on how well the tokenizer of a model, taken over from ``name``, gives pictures back."""
    found = reconstruction(model, episodes)
    told = ", ".join(f"{camera} {value:.1f} dB" for camera, value in found.items())
    return f"the tokenizer of {name} gives these pictures back with {told} ({GOOD_DB:g} dB are good)"


def reconstruction(model: WorldModel, episodes: Sequence[Episode]) -> dict[str, float]:
    """How well a model's tokenizer gives pictures back: camera -> PSNR in dB, over pictures from all episodes."""
    found = {}
    for place, camera in enumerate(model.spec.cameras):
        seen = [episode.images[camera.name] for episode in episodes if camera.name in episode.images]
        count = sum(map(len, seen))
        if not count:
            continue
        chosen = np.linspace(0, count - 1, min(_LOOKED_AT, count)).astype(int)
        found[camera.name] = _psnr(model, _drawn(seen, chosen), place)
    return found


def _drawn(seen: Sequence[Array], chosen: Array) -> Array:
    """Pictures by their number over all episodes."""
    ends = np.cumsum([len(images) for images in seen])
    places = np.searchsorted(ends, chosen, side="right")
    return np.stack([seen[p][i - ends[p] + len(seen[p])] for p, i in zip(places, chosen, strict=True)])


def _psnr(model: WorldModel, pictures: Array, place: int) -> float:
    """PSNR of one camera's pictures, through latents that hold nothing of the others."""
    latents = encode_pictures(model, pictures)
    views = [latents if index == place else latents * 0 for index in range(len(model.spec.cameras))]
    back = model.decode(torch.cat(views, -1).to(model.device))[model.spec.cameras[place].name]
    error = np.square(back.astype(np.float32) - pictures).reshape(len(pictures), -1).mean(1)
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-6))).mean())
