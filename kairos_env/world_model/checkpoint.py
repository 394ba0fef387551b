"""Model folders: ``config.json``, ``model.safetensors``, ``statistics.json``, ``starts.safetensors``."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from kairos_env.records import Observation, RobotSpec
from kairos_env.runs import did_you_mean, write_json
from kairos_env.world_model.config import WorldModelConfig
from kairos_env.world_model.model import Statistics, WorldModel
from kairos_env.world_model.weights import CheckpointError, load_weights, stored_tensors, write_tensors

__all__ = ["CheckpointError", "bundled_models", "load", "resolve", "save"]

BUNDLED = Path(__file__).resolve().parent.parent / "pretrained"
FORMAT = 2  # 2: embeddings and outputs in the published layout
WEIGHTS, CONFIG, STATISTICS, STARTS = "model.safetensors", "config.json", "statistics.json", "starts.safetensors"


def bundled_models() -> list[str]:
    """Names that `load` finds inside the package."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / CONFIG).exists() and (p / WEIGHTS).exists())


def resolve(name: str | os.PathLike[str]) -> Path:
    """Folder of a bundled model, a local folder, or a hub repository (``owner/name``), in that order."""
    if str(name) in bundled_models():
        return BUNDLED / str(name)
    path = Path(name)
    if (path / CONFIG).exists():
        return path
    if path.exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        hint = did_you_mean(name, bundled_models())
        raise FileNotFoundError(
            f"no model {str(name)!r}: neither a bundled one nor a folder with {CONFIG} and {WEIGHTS}; {hint}"
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(name), allow_patterns=[WEIGHTS, CONFIG, STATISTICS, STARTS]))


def save(model: WorldModel, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
    """Writes a model folder, each file under a temporary name first; the configuration last.

    Args:
        dtype: of the stored weights; the bundled model is stored in float16 to keep the repository small.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, model.state_dict(), {"format": str(FORMAT)}, dtype)
    write_json(folder / STATISTICS, dataclasses.asdict(model.statistics))
    starts: dict[str, torch.Tensor] = {}
    if model.starts:
        for camera in model.spec.cameras:
            starts[f"image_{camera.name}"] = torch.stack([torch.as_tensor(o.images[camera.name]) for o in model.starts])
        starts["proprio"] = torch.stack([torch.as_tensor(o.proprio, dtype=torch.float32) for o in model.starts])
        texts = json.dumps([o.instruction for o in model.starts])
        write_tensors(folder / STARTS, starts, {"instructions": texts})
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "model": model.config.to_dict(),
            "robot": model.spec.to_dict(),
            "tasks": model.tasks,
        },
    )


def load(name: str | os.PathLike[str], device: str | torch.device = "cpu") -> WorldModel:
    """Loads a model folder strictly, in float32 and evaluation mode.

    Raises:
        FileNotFoundError: no such model.
        CheckpointError: unreadable or truncated files, missing, extra or misshapen weights.
    """
    folder = resolve(name)
    try:
        data = json.loads((folder / CONFIG).read_text())
        if "kind" in data:
            raise ValueError(f"it is a {data['kind']} model, which WorldActionModel.from_pretrained loads")
        config, spec = WorldModelConfig.from_dict(data["model"]), RobotSpec.from_dict(data["robot"])
        statistics = Statistics(**{k: tuple(v) for k, v in json.loads((folder / STATISTICS).read_text()).items()})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot read the configuration: {error!r}") from None
    if data.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {data.get('format')}, this version reads {FORMAT}: update kairos-env"
        )
    model = WorldModel(config, spec, data["tasks"], statistics, _load_starts(folder, spec))
    what = f"{folder / WEIGHTS} does not fit its configuration (preset {config.preset!r})"
    load_weights(model, stored_tensors(folder / WEIGHTS), torch.float32, what=what)
    return model.to(device).eval()


def _load_starts(folder: Path, spec: RobotSpec) -> list[Observation]:
    path = folder / STARTS
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
