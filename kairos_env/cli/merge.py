"""`kairos merge`: models that went on from one base, as one model."""

from __future__ import annotations

from pathlib import Path

from kairos_env.cli.options import Fields, Positional
from kairos_env.training.merge import MergeConfig, merge_models


def run(
    models: Positional[tuple[str, ...]],
    base: str,
    data: tuple[str, ...],
    config: Fields[MergeConfig],
    out: str = "runs/merged",
) -> int:
    """Merges models in several ways, measures all of them, and writes the best one.

    Args:
        models: folders of the models, two or more.
        base: the model that they went on from.
        data: recordings, on whose held-out episodes candidates are measured: one of what each model is for.
        out: folder of the merged model.
    """
    if Path(out).exists():
        raise FileExistsError(f"{out} is there already; choose another --out")
    print(merge_models(models, base, data, Path(out), config))
    print(f"finished: {out}")
    return 0
