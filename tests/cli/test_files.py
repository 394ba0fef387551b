"""`kairos verify-files`; a damaged file is refused by name, and never read as other values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damaged
from moving_square import SPEC, moving_square
from torch import nn

from kairos_env.cli import main as cli
from kairos_env.datasets.hdf5.recorded import EpisodeFile, EpisodeWriter
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.log import TrainingLog
from kairos_env.training.loop import LoopConfig, optimise
from kairos_env.training.progress import read_checkpoint
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.interface import ModelStatistics
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import WorldState
from kairos_env.world_model.weights import content_sha256

DAMAGES = 60  # of each kind; the whole campaign had a thousand


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that has checksums."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = WorldModel(get_preset("debug"), SPEC, TASKS, starts=[moving_square(0).observation(0)])
    model.set_statistics(ModelStatistics.identity(model.latent_shape[0], SPEC.proprio_dim))
    model.eval().save_pretrained(folder / "model")
    model.observe(model.starts[:1], seeds=[0]).save(folder / "state.safetensors")
    layer = nn.Linear(64, 3)
    optimise(
        "it",
        layer,
        lambda step, g: (layer(torch.rand(4, 64, generator=g)).square().mean(), {}),
        LoopConfig(2, 0.1),
        TrainingLog(folder),
        0,
        "fp32",
    )
    with EpisodeWriter(folder / "recording.hdf5", SPEC) as writer:
        for number in range(3):
            writer.add(moving_square(number, 5))
    return folder


def of_model(folder: Path) -> dict[str, str]:
    model = WorldModel.from_pretrained(folder / "model")
    start = model.starts[0]
    words = [repr(model.config), repr(model.spec), repr(model.statistics), dict(model.tasks), start.instruction]
    return {"": content_sha256([model.state_dict(), words, torch.tensor(start.proprio)])}


def of_checkpoint(folder: Path) -> dict[str, str]:
    return {"": content_sha256(read_checkpoint(folder / "it.pt"))}


def of_state(folder: Path) -> dict[str, str]:
    return {"": content_sha256(WorldState.load(folder / "state.safetensors").tensors())}


def of_recording(folder: Path) -> dict[str, str]:
    found = EpisodeFile(folder / "recording.hdf5")
    values: dict[str, Any] = {}
    for index, episode in found.sound():
        arrays = [episode.proprio, episode.actions, episode.rewards, np.uint8(episode.success), episode.images["scene"]]
        words = [episode.task, episode.instruction, episode.seed, episode.initial_state, sorted(episode.labels)]
        values[found.names[index].rpartition(":")[2]] = content_sha256([[torch.tensor(a) for a in arrays], words])
    assert len(values) + len(found.broken) == 3  # what is left out is named
    return values


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model/model.safetensors", of_model),
        ("model/config.json", of_model),
        ("model/statistics.json", of_model),
        ("model/starts.safetensors", of_model),
        ("model/SHA256SUMS", of_model),
        ("it.pt", of_checkpoint),
        ("state.safetensors", of_state),
        ("recording.hdf5", of_recording),
    ],
)
def test_damage_is_refused_or_harmless(name: str, read: Callable[[Path], dict[str, str]], saved: Path) -> None:
    right, whole = read(saved), (saved / name).read_bytes()
    refused = 0
    try:
        for seed in range(DAMAGES):
            (saved / name).write_bytes(damaged(whole, seed))
            try:
                with warnings.catch_warnings(action="ignore"):
                    found = read(saved)
            except (ValueError, OSError):
                refused += 1
            else:
                assert found.items() <= right.items(), seed
                refused += len(found) < len(right)
    finally:
        (saved / name).write_bytes(whole)
    assert refused > DAMAGES / 3


def test_tells_sound_damaged_and_bare_apart(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-files", str(saved)]) == 0
    assert capsys.readouterr().out == "4 sound\n"
    for name in ("model/statistics.json", "recording.hdf5"):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: len(whole) // 2])
        assert cli.main(["verify-files", str(saved)]) == 1
        out = capsys.readouterr().out
        assert out.startswith(f"damaged: {saved / name.partition('/')[0]}") and out.endswith("1 damaged, 3 sound\n")
        (saved / name).write_bytes(whole)
    assert cli.main(["verify-files", str(saved / "no")]) == 2


def test_states_the_checksums_of_what_was_changed_on_purpose(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved / "model" / "config.json"
    before = path.read_text()
    path.write_text(before.replace("please push", "push it") + "\n")
    with pytest.raises(ValueError, match=r"config\.json differs from its checksum"):
        WorldModel.from_pretrained(saved / "model")
    assert cli.main(["verify-files", str(saved / "model"), "--write"]) == 0
    WorldModel.from_pretrained(saved / "model")
    (saved / "model" / "SHA256SUMS").unlink()
    capsys.readouterr()
    assert cli.main(["verify-files", str(saved / "model")]) == 0
    assert capsys.readouterr().out == "1 without checksums\n"
    WorldModel.from_pretrained(saved / "model")  # of an earlier version
    path.write_text(before)
    assert cli.main(["verify-files", str(saved / "model"), "--write"]) == 0


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = WorldModel(get_preset("debug"), SPEC, TASKS)
    with torch.no_grad():
        next(model.tokenizer.parameters()).fill_(1e6)  # more than float16 holds
    with pytest.raises(FloatingPointError, match=r"not finite in torch\.float16 are not saved: tokenizer"):
        model.save_pretrained(tmp_path / "model", torch.float16)
    assert not (tmp_path / "model").exists()
    model.save_pretrained(tmp_path / "model", torch.float32)
