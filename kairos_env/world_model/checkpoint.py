"""Model folders: ``config.json``, ``model.safetensors``, ``statistics.json``, ``starts.safetensors``, ``SHA256SUMS``.

Those of published weights have more in their ``config.json``, and weights in parts (`published.folder`). What was
measured of a model stands in its ``measured.json``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from kairos_env.hub import download, is_hub_name
from kairos_env.records import Observation, RobotSpec
from kairos_env.runs import did_you_mean, require_sound, write_checksums, write_json
from kairos_env.runs.checksums import MANIFEST
from kairos_env.world_model.config import WorldModelConfig
from kairos_env.world_model.interface import ModelStatistics
from kairos_env.world_model.weights import CheckpointError, load_weights, stored_tensors, write_tensors

BUNDLED = Path(__file__).resolve().parent.parent / "pretrained"
FORMAT = 3  # 2: embeddings and outputs in the published layout; 3: imagines in one pass a frame
EARLIER = {"one_pass": False, "objects": ["object"]}  # what a configuration of format 2 did not say
WEIGHTS, CONFIG, STATISTICS, STARTS = "model.safetensors", "config.json", "statistics.json", "starts.safetensors"
MEASURED = "measured.json"  # what evaluations found of the model
HORIZONS = "trust_horizon"  # in it: task -> decisions up to which imagination may be believed


@dataclass(frozen=True)
class StoredModel:
    """What a folder says about a small model, beside its weights."""

    config: WorldModelConfig
    spec: RobotSpec
    tasks: Mapping[str, str]
    statistics: ModelStatistics
    starts: Sequence[Observation] = ()


def bundled_models() -> list[str]:
    """Names of the models inside the package."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / CONFIG).exists() and (p / WEIGHTS).exists())


def resolve(name: str | os.PathLike[str]) -> Path:
    """Folder of a bundled model, a local folder, or a hub repository (``owner/name@revision``), in that order."""
    if str(name) in bundled_models():
        return BUNDLED / str(name)
    path = Path(name)
    if (path / CONFIG).exists():
        return path
    if path.exists() or not is_hub_name(str(name)):
        hint = did_you_mean(name, bundled_models())
        raise FileNotFoundError(
            f"no model {str(name)!r}: neither a bundled one nor a folder with {CONFIG} and {WEIGHTS}; {hint}"
        )
    return download(str(name), ["*.safetensors", "*.json", MANIFEST])


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The whole ``config.json`` of a model folder of either kind.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        data = json.loads((Path(folder) / CONFIG).read_text())
        return dict(data)
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot read the configuration: {error!r}") from None


def read_robot(folder: str | os.PathLike[str], imagined: bool = False) -> RobotSpec:
    """The robot of a model folder of either kind.

    Args:
        imagined: with one decision for each imagined frame; see `WorldModel.imagined_spec`.

    Raises:
        CheckpointError: unreadable, or weights that know no robot.
    """
    data = read_config(folder)
    try:
        return RobotSpec.from_dict(data.get("imagined_robot", data["robot"]) if imagined else data["robot"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} names no robot ({error!r}): a policy needs weights with an action expert"
        ) from None


def read_measured(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """A model's ``measured.json``; empty if there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = Path(folder) / MEASURED
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def read_horizons(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Task -> decisions up to which imagination may be believed, as far as somebody measured it.

    Raises:
        ValueError: damaged, or a horizon that is no whole number >= 0.
    """
    found = read_measured(folder).get(HORIZONS, {})
    if not isinstance(found, dict):
        raise ValueError(f"{Path(folder) / MEASURED}: {HORIZONS} is {found!r}; it needs task -> decisions")
    for task, decisions in found.items():
        if type(decisions) is not int or decisions < 0:
            raise ValueError(f"{Path(folder) / MEASURED}: the horizon of {task!r} is {decisions!r}; use a number >= 0")
    return dict(found)


def read(folder: Path) -> StoredModel:
    """A small model's folder without its weights, after the checksums of all its files.

    Raises:
        CheckpointError: damaged or unreadable files, or another format.
    """
    data = read_config(folder)
    if data.get("format") not in (2, FORMAT):
        raise CheckpointError(
            f"{folder} has format {data.get('format')}, this version reads 2 and {FORMAT}: update kairos-env"
        )
    require_unharmed(folder)
    try:
        earlier = EARLIER if data["format"] == 2 else {}
        config, spec = WorldModelConfig.from_dict(data["model"] | earlier), RobotSpec.from_dict(data["robot"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot read the configuration: {error!r}") from None
    statistics = _read_statistics(folder / STATISTICS, config, spec)
    return StoredModel(config, spec, data["tasks"], statistics, read_starts(folder / STARTS, spec))


def action_chunk(model: str | os.PathLike[str]) -> int:
    """How many actions a small model proposes at once, from its configuration alone; 0 of published weights."""
    return int(read_config(resolve(model)).get("model", {}).get("action", {}).get("chunk", 0))


def _read_statistics(path: Path, config: WorldModelConfig, spec: RobotSpec) -> ModelStatistics:
    """Raises CheckpointError unless they are there, and fit the model."""
    try:
        statistics = ModelStatistics(**{k: tuple(v) for k, v in dict(json.loads(path.read_text())).items()})
        errors = 2 + len(config.objects) if config.one_pass else 1
        statistics.require(config.tokenizer.latent_channels, spec.proprio_dim, errors)
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold the model's normalisation: {error}") from None
    return statistics


def require_unharmed(folder: Path) -> None:
    """Compares the files of a model folder with their checksums; see `require_sound`.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    try:
        require_sound(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def load_into(module: nn.Module, folder: Path, preset: str) -> None:
    """Puts a small model's stored weights into it, strictly, in float32.

    Raises:
        CheckpointError: unreadable or truncated files, missing, extra or misshapen weights.
    """
    what = f"{folder / WEIGHTS} does not fit its configuration (preset {preset!r})"
    load_weights(module, stored_tensors(folder / WEIGHTS), torch.float32, what=what)


def write(
    folder: str | os.PathLike[str], stored: StoredModel, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """Writes a small model's folder, each file atomically; the configuration and the checksums last.

    Args:
        dtype: of the stored weights; the bundled models are stored in float16 to keep the repository small.

    Raises:
        FloatingPointError: a weight is not finite, or beyond what ``dtype`` holds; nothing is written.
    """
    if wrong := [name for name, value in weights.items() if not torch.isfinite(value.to(dtype)).all()]:
        raise FloatingPointError(f"weights that are not finite in {dtype} are not saved: {', '.join(wrong[:20])}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, weights, {"format": str(FORMAT)}, dtype)
    write_json(folder / STATISTICS, dataclasses.asdict(stored.statistics))
    write_starts(folder / STARTS, stored.starts, stored.spec)
    config, robot, tasks = stored.config.to_dict(), stored.spec.to_dict(), dict(stored.tasks)
    write_json(folder / CONFIG, {"format": FORMAT, "model": config, "robot": robot, "tasks": tasks})
    write_checksums(folder, [WEIGHTS, STATISTICS, CONFIG, *([STARTS] if stored.starts else [])])


def write_starts(path: Path, starts: Sequence[Observation], spec: RobotSpec) -> None:
    """Writes real observations from which imagination can start; nothing if there are none."""
    if not starts:
        return
    tensors = {
        f"image_{c.name}": torch.stack([torch.as_tensor(o.images[c.name]) for o in starts]) for c in spec.cameras
    }
    tensors["proprio"] = torch.stack([torch.as_tensor(o.proprio, dtype=torch.float32) for o in starts])
    write_tensors(path, tensors, {"instructions": json.dumps([o.instruction for o in starts])})


def read_starts(path: Path, spec: RobotSpec) -> list[Observation]:
    """Inverse of `write_starts`.

    Raises:
        CheckpointError: the file is unreadable or truncated.
    """
    if not path.exists():
        return []
    try:
        with safe_open(str(path), "np") as file:
            texts = json.loads(file.metadata()["instructions"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is unreadable or truncated ({error}); fetch or write it again") from None
    names = [c.name for c in spec.cameras]
    return [
        Observation({n: tensors[f"image_{n}"][i] for n in names}, tensors["proprio"][i], text)
        for i, text in enumerate(texts)
    ]
