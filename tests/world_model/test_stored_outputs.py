"""Bundled models and miniatures of the published releases do what they did when their outputs were stored."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from stored_outputs import BUNDLED, MINIATURES, release_outputs, seeded_miniature, stored_file, world_model_outputs

from kairos_env.world_model.model import WorldModel


def check(found: dict[str, torch.Tensor], name: str) -> None:
    stored = load_file(stored_file(name))
    assert found.keys() == stored.keys()
    for key, value in stored.items():
        picture = key.startswith(("decoded", "generate"))
        torch.testing.assert_close(
            found[key], value, rtol=1e-5, atol=1 if picture else 1e-5, msg=lambda text, key=key: f"{name} {key}: {text}"
        )


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_model(name: str) -> None:
    check(world_model_outputs(WorldModel.from_pretrained(name)), name)


@pytest.mark.parametrize("name", MINIATURES)
def test_release(name: str) -> None:
    check(release_outputs(seeded_miniature(name)), name)
