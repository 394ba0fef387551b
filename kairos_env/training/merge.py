"""Merging of models that went on from one base: their weights as one model, without training.

With base θ and parents θᵢ, τᵢ = θᵢ - θ is what parent i learned. Every method gives one τ; the merged model is θ + τ:

    soup   the mean of the τᵢ, hence of the parents (Wortsman et al. 2022)
    ties   of each τᵢ only the largest entries; of these, only those of the sign that weighs more; their mean
           (Yadav et al. 2023)
    dare   of each τᵢ a random share of the entries, enlarged for what is left out; their mean (Yu et al. 2024)
    wudi   for every matrix the τ that disturbs the inputs of no parent: it minimises the sum of
           |(τ - τᵢ) τᵢᵀ|² / |τᵢ|², found by Adam from the sum of the τᵢ; the mean for all else (Cheng et al. 2025)

Which of them is best cannot be told beforehand: `merge_models` measures all on held-out episodes of each parent's data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kairos_env.records import Episode
from kairos_env.runs import atomic_write, write_json
from kairos_env.training.batches import Clips
from kairos_env.training.calibration import calibrate
from kairos_env.training.held_out import unseen_episodes
from kairos_env.training.lineage import MERGED, model_lineage, weights_sha256
from kairos_env.training.losses import world_model_loss
from kairos_env.training.passes import LossConfig
from kairos_env.world_model.interface import SmallInterface
from kairos_env.world_model.model import WorldModel

Method = Literal["soup", "ties", "dare", "wudi"]
Weights = Mapping[str, Tensor]
_BATCH, _DRAWS = 16, 4  # clips of a measurement, and how many measurements


@dataclass(frozen=True)
class MergeConfig:
    """How models are merged.

    Args:
        methods: those that are tried: soup, ties, dare, wudi; the best one is kept.
        density: share of the entries that ties and dare keep.
        scale: factor of what was learned, before it is added to the base.
        seed: of the entries that dare keeps.
        wudi_lr, wudi_steps: of wudi's Adam.
        frames: of the clips on which candidates are measured; shorter where episodes are.
        limit: episodes of each recording that are looked at.
    """

    methods: tuple[Method, ...] = ("soup", "ties", "dare", "wudi")
    density: float = 0.3
    scale: float = 1.0
    seed: int = 0
    wudi_lr: float = 1e-5
    wudi_steps: int = 300
    frames: int = 24
    limit: int = 16

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods is empty: name one or more of soup, ties, dare, wudi")
        if not 0 < self.density <= 1:
            raise ValueError(f"density is a share, above 0 and at most 1, got {self.density}")
        for name in ("scale", "wudi_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name, least in (("wudi_steps", 1), ("frames", 2), ("limit", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


# the methods, tensor by tensor ----------------------------------------------------------------------------------------


def merged(base: Weights, parents: Sequence[Weights], method: Method, config: MergeConfig) -> dict[str, Tensor]:
    """The weights θ + scale τ of a method; what is no floating-point number stays the base's."""
    generator = torch.Generator().manual_seed(config.seed)
    found = {}
    for name, value in base.items():
        if not value.is_floating_point() or all(torch.equal(parent[name], value) for parent in parents):
            found[name] = value
            continue
        learned = torch.stack([(parent[name] - value).float() for parent in parents])
        found[name] = (value + config.scale * _METHODS[method](learned, config, generator)).to(value.dtype)
    return found


def soup(learned: Tensor, config: MergeConfig, generator: torch.Generator) -> Tensor:
    """Mean over the parents: (parents, ...) -> (...)."""
    return learned.mean(0)


def ties(learned: Tensor, config: MergeConfig, generator: torch.Generator) -> Tensor:
    """Trim, elect a sign, mean of those that have it."""
    flat = learned.flatten(1)
    kept = max(1, round(config.density * flat.shape[1]))
    least = flat.abs().kthvalue(flat.shape[1] - kept + 1, 1, keepdim=True).values
    trimmed = torch.where(flat.abs() >= least, flat, 0.0)
    agreeing = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
    mean = (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)
    return mean.view(learned.shape[1:])


def dare(learned: Tensor, config: MergeConfig, generator: torch.Generator) -> Tensor:
    """Drop and rescale, then the mean."""
    kept = torch.rand(learned.shape, generator=generator) < config.density
    return (learned * kept / config.density).mean(0)


def wudi(learned: Tensor, config: MergeConfig, generator: torch.Generator) -> Tensor:
    """The τ of least interference for a matrix; the mean for all else."""
    if learned.ndim != 3:
        return learned.mean(0)
    sizes = learned.square().sum((1, 2)).clamp_min(1e-12)
    with torch.enable_grad():
        tau = learned.sum(0).requires_grad_()
        optimiser = torch.optim.Adam([tau], lr=config.wudi_lr)
        for _ in range(config.wudi_steps):
            optimiser.zero_grad()
            disturbed = (tau - learned) @ learned.mT
            loss = (disturbed.square().sum((1, 2)) / sizes).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return tau.detach()


_METHODS: dict[str, Callable[[Tensor, MergeConfig, torch.Generator], Tensor]] = {
    "soup": soup,
    "ties": ties,
    "dare": dare,
    "wudi": wudi,
}


# models ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeReport:
    """Held-out losses of parents and candidates, and the method that was kept.

    Args:
        losses: name of a parent or method -> recording -> loss on its held-out episodes.
        chosen: the method of the least loss, each recording's in units of the best parent's there, the worst counting.
    """

    losses: Mapping[str, Mapping[str, float]]
    chosen: str

    def __str__(self) -> str:
        sets = list(next(iter(self.losses.values())))
        width = max(map(len, self.losses))
        lines = [f"{'':{width}}  " + "  ".join(sets)]
        for name, values in self.losses.items():
            cells = (f"{values[each]:.4f}".ljust(len(each)) for each in sets)
            lines.append(f"{name:{width}}  {'  '.join(cells)}{'  <- kept' if name == self.chosen else ''}")
        return "\n".join(lines)


def merge_models(parents: Sequence[str], base: str, data: Sequence[str], out: Path, config: MergeConfig) -> MergeReport:
    """Merges model folders in every way, keeps the best, and writes it with ``merge.json`` beside its weights.

    Args:
        parents: folders or names, two or more, that went on from ``base``.
        data: recordings; of each the episodes that the parents' trainings held out tell how good a candidate is.

    Raises:
        ValueError: models that do not fit each other, or nothing to measure them on.
    """
    models = [WorldModel.from_pretrained(name) for name in parents]
    origin = WorldModel.from_pretrained(base)
    require_alike([base, *parents], [origin, *models])
    if not data:
        raise ValueError("name one or more recordings, on whose held-out episodes candidates are measured")
    sets = {path: _held_out(parents, origin, path, config.limit) for path in data}
    measures = {path: _Measure(origin, episodes, config) for path, episodes in sets.items()}
    losses = {name: {p: m(model) for p, m in measures.items()} for name, model in zip(parents, models, strict=True)}
    best = {path: min(values[path] for values in losses.values()) for path in measures}
    weights = [model.state_dict() for model in models]
    candidates: dict[str, dict[str, Tensor]] = {}
    for method in config.methods:
        candidates[method] = merged(origin.state_dict(), weights, method, config)
        candidate = _with(models[0], candidates[method])
        losses[method] = {path: measure(candidate) for path, measure in measures.items()}
    worst = {method: max(losses[method][path] / best[path] for path in best) for method in config.methods}
    report = MergeReport(losses, min(worst, key=worst.__getitem__))
    chosen = _with(models[0], candidates[report.chosen])
    whole = [e for episodes in sets.values() for e in episodes if e.acts and len(e.images) == len(origin.spec.cameras)]
    chosen.set_statistics(calibrate(chosen, whole))
    lineage = [ancestor for parent in parents for ancestor in model_lineage(parent)]
    own = {"run": f"merge by {report.chosen}", "parents": [weights_sha256(p) for p in parents], "data": {}}
    with atomic_write(out) as part:
        chosen.save_pretrained(part)
        values = {"config": dataclasses.asdict(config), "parents": list(parents), "base": base}
        write_json(part / MERGED, values | dataclasses.asdict(report) | {"lineage": [*lineage, own]})
    return report


def require_alike(names: Sequence[str], models: Sequence[WorldModel]) -> None:
    """Raises ValueError unless all models are of one robot, one shape and one tokenizer."""
    if len(models) < 3:
        raise ValueError(f"merging takes a base and two or more models, got {', '.join(names)}")
    first = models[0]
    for name, model in zip(names, models, strict=True):
        if not isinstance(model.interface, SmallInterface):
            raise ValueError(f"{name} has published weights: small models are merged")
        first.spec.require_same(model.spec, names[0], name)
        shapes, wanted = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, first))
        if shapes != wanted:
            unlike = [k for k in wanted.keys() | shapes.keys() if wanted.get(k) != shapes.get(k)]
            raise ValueError(f"{name} has other weights than {names[0]}: {', '.join(sorted(unlike)[:5])}")
        if model.encoder_sha256 != first.encoder_sha256:
            raise ValueError(
                f"{name} has another tokenizer than {names[0]}: merge models that went on from it with "
                "--init-tokenizer keep, or stages of one curriculum"
            )


def _with(model: WorldModel, weights: Weights) -> WorldModel:
    """A model like another, with other weights."""
    found = WorldModel(model.config, model.spec, model.tasks, model.statistics, model.starts)
    found.load_state_dict(dict(weights))
    return found.eval()


def _held_out(parents: Sequence[str], model: WorldModel, path: str, limit: int) -> list[Episode]:
    """Episodes of a recording that no parent has seen, as far as their folders say."""
    seen = [unseen_episodes(parent, model.spec, path) for parent in parents]
    common = sorted(set(seen[0].numbers).intersection(*(each.numbers for each in seen)))
    if not common:
        raise ValueError(f"{path}: every episode was seen in the training of one of {', '.join(parents)}")
    return [seen[0].recording[number] for number in common[:limit]]


class _Measure:
    """The loss on held-out episodes, of always the same clips and noise."""

    def __init__(self, model: WorldModel, episodes: Sequence[Episode], config: MergeConfig) -> None:
        self._clips = Clips(model, episodes)
        self._frames = min(config.frames, max(self._clips.lengths) - model.chunk_length)
        if self._frames < 2:
            raise ValueError(f"the longest held-out episode has {max(self._clips.lengths)} observations: too few")

    @torch.no_grad()
    def __call__(self, model: WorldModel) -> float:
        config, total = LossConfig(frames=self._frames), 0.0
        for draw in range(_DRAWS):
            generator = torch.Generator().manual_seed(draw)
            batch = self._clips.sample(_BATCH, self._frames + model.chunk_length, generator, config.tasks)
            total += float(world_model_loss(model, batch, config, generator, horizon=self._frames)[0])
        return total / _DRAWS
