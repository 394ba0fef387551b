"""Model folders: what was saved comes back, and a broken one is explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kairos_env.sims.tabletop.env import TASKS, make_spec
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
