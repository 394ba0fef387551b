"""Initialisation from a finished model, of the same robot or of another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from kairos_env.records import Episode, RobotSpec
from kairos_env.training.tokenizer import moments
from kairos_env.world_model.model import WorldModel

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
        mean, std = moments([e.proprio for e in episodes])
        statistics = dataclasses.replace(statistics, proprio_mean=mean, proprio_std=std)
    model.set_statistics(statistics)
    differences = [f"{what} fields {_names(old, what)} -> {_names(new, what)}" for what in unlike if unlike[what]]
    if len(old.cameras) != len(new.cameras):
        differences.append(f"cameras {[c.name for c in old.cameras]} -> {[c.name for c in new.cameras]}")
    return Transfer(name, len(kept), tuple(fresh), tuple(differences))


def _names(spec: RobotSpec, what: str) -> str:
    return ", ".join(f"{f.name} [{f.low:g}, {f.high:g}] {f.unit}" for f in getattr(spec, what))
