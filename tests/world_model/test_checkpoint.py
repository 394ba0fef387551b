"""Model folders: what was saved comes back, and a broken one is explained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.checkpoint import action_chunk
from kairos_env.world_model.config import WorldModelConfig, get_preset
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.weights import CheckpointError

SPEC = make_spec()


def test_broken_model_folders_are_explained(tmp_path: Path) -> None:
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    model.save_pretrained(tmp_path / "m")
    again = WorldModel.from_pretrained(tmp_path / "m")
    assert again.tasks == TASKS and again.spec == SPEC
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors differs from its checksum: fetch or write it again"):
        WorldModel.from_pretrained(tmp_path / "m")
    weights.write_bytes(whole)
    (tmp_path / "m" / "SHA256SUMS").unlink()
    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    settings["model"]["video"]["layers"] = 8
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"missing mixture\.action_dit\.blocks\.4"):
        WorldModel.from_pretrained(tmp_path / "m")
    settings["model"]["colour"] = "red"
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="colour"):
        WorldModel.from_pretrained(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="neither a bundled one"):
        WorldModel.from_pretrained("kairos-huge")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error_offset": [0.0] * 3, "error_slope": [1.0] * 3}, "error_offset has 3 numbers, and the model needs 4"),
        ({"error_offset": [0.0] * 4}, "error_slope has 0 numbers, and the model needs 4"),
        ({"error_offset": [0.0] * 4, "error_slope": [float("nan")] * 4}, "error_slope holds nan: it needs finite"),
        ({"error_offset": [0.0] * 4, "error_slope": ["1"] * 4}, "error_slope holds '1': it needs finite"),
        ({"error_offset": [0.0] * 4, "error_slope": [-1.0] * 4}, "error_slope holds -1.0"),
        ({"proprio_std": [0.0] * 4}, "proprio_std holds 0.0"),
        ({"proprio_mean": [0.0] * 3}, "proprio_mean has 3 numbers, and the model needs 4"),
        ({"latent_mean": [0.0]}, "latent_mean has 1 numbers"),
        ({"latent_mean": None}, "does not hold the model's normalisation"),
        ({"colour": [1.0]}, "colour"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    WorldModel(one_pass(), SPEC, TASKS).save_pretrained(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=f"statistics.json.*{message}"):
        WorldModel.from_pretrained(tmp_path)
    for text in ("[1]", "null", "{", ""):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="statistics.json does not hold"):
            WorldModel.from_pretrained(tmp_path)


def one_pass() -> WorldModelConfig:
    return dataclasses.replace(get_preset("debug"), objects=("object", "goal"))


def test_the_length_of_a_chunk_is_read_without_the_weights(tmp_path: Path) -> None:
    WorldModel(one_pass(), SPEC, TASKS).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert action_chunk(tmp_path) == one_pass().action.chunk
    assert action_chunk("kairos-tiny") == 4
