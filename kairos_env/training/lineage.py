"""The lineage of a model: every training that it comes from, oldest first, with its data and its parents.

It stands in ``lineage.json`` of a run, in the checkpoints beside it, and in ``training.json`` of every model that it
writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kairos_env.runs import ConfigMismatch, file_sha256, write_json
from kairos_env.training.config import TrainConfig
from kairos_env.training.progress import LINEAGE
from kairos_env.training.summary import SUMMARY, read_summary
from kairos_env.world_model.checkpoint import WEIGHTS, resolve

Ancestor = Mapping[str, Any]
MERGED = "merge.json"  # in the folder of a merged model: what it was made of, and how all candidates did


def model_lineage(model: str | Path) -> list[Ancestor]:
    """What a model's folder says of its trainings; of one that says nothing, its weights alone."""
    folder = resolve(model)
    known = list(read_summary(folder).lineage) if (folder / SUMMARY).exists() else []
    if (folder / MERGED).exists():
        known = json.loads((folder / MERGED).read_text())["lineage"]
    return known or [{"run": str(model), "parents": [], "data": {}}]


def weights_sha256(model: str | Path) -> str:
    """SHA-256 of a model's weights, by which its children name it."""
    return file_sha256(resolve(model) / WEIGHTS)


def write_lineage(folder: Path, config: TrainConfig, digests: Mapping[str, str]) -> None:
    """Writes the lineage of a run before its first step; what is there already stays.

    Args:
        digests: path of each recording -> what changes with its files.

    Raises:
        ConfigMismatch: the run went on from a model whose weights have changed since.
    """
    ancestors = model_lineage(config.init) if config.init else []
    parents = [weights_sha256(config.init)] if config.init else []
    own: dict[str, Any] = {"run": folder.resolve().name, "parents": parents, "data": dict(digests)}
    own |= {"learns": sorted(config.learned), "steps": config.model.steps, "seed": config.seed}
    path = folder / LINEAGE
    if not path.exists():
        write_json(path, [*ancestors, own])
        return
    before = json.loads(path.read_text())[-1]["parents"]
    if before != parents:
        raise ConfigMismatch(
            f"{folder} went on from weights {_short(before)}, but {config.init} has {_short(parents)} now (sha256): "
            "choose another `out`"
        )


def _short(digests: Sequence[str]) -> str:
    return ", ".join(digest[:12] for digest in digests) or "none"
