"""`kairos train` from files to a model folder that loads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kairos_env.cli import main as cli
from kairos_env.datasets.hdf5.recorded import EpisodeWriter
from kairos_env.records import Camera, Episode, Field, RobotSpec, SpecMismatch
from kairos_env.sims.tabletop.env import make_spec
from kairos_env.training.data import DataConfig, instructions, load_mixture

SPEC = make_spec(image_size=64)
TINY = ["preset=debug", "precision=fp32", "validation=1", "starts=1", "batch=2", "tokenizer_batch=4"]
SHORT = ["tokenizer.steps=2", "model.steps=2", "sample_every=2", "loss.frames=6"]


def episode(rng: np.random.Generator, task: str = "reach", steps: int = 12, spec: RobotSpec = SPEC) -> Episode:
    low, high = spec.action_low, spec.action_high
    return Episode(
        images={c.name: rng.integers(0, 256, (steps + 1, 64, 64, 3), np.uint8) for c in spec.cameras},
        proprio=spec.clip_proprio(rng.normal(0, 0.1, (steps + 1, spec.proprio_dim))),
        actions=rng.uniform(low, high, (steps, spec.action_dim)).astype(np.float32),
        rewards=rng.random(steps, np.float32),
        success=np.zeros(steps, np.bool_),
        task=task,
        instruction=f"please {task}",
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    rng = np.random.default_rng(0)
    with EpisodeWriter(folder / "shard_0.hdf5", SPEC) as writer:
        for task in ("reach", "push", "reach", "push", "reach"):
            writer.add(episode(rng, task))
    return folder


def test_limit_and_several_recordings(recording: Path) -> None:
    data = load_mixture(DataConfig(str(recording), more=(str(recording),), limit=3))
    assert len(data.episodes) == 6 and data.spec.diff(SPEC) == [] and data.odds is None


OTHER = dataclasses.replace(
    SPEC,
    name="other",
    cameras=(Camera("scene", 64, 64), Camera("top", 64, 64)),
    proprio=(*SPEC.proprio[1:], Field("force", -1, 1, "N")),
    action=(*SPEC.action, Field("twist", -1, 1, "rad", "delta_rotation")),
    control_rate_hz=10.0,
)


@pytest.fixture(scope="module")
def other_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another robot: twice the rate, one field less and one more, a further camera and a further action."""
    path = tmp_path_factory.mktemp("other") / "other.hdf5"
    rng = np.random.default_rng(1)
    with EpisodeWriter(path, OTHER) as writer:
        for _ in range(4):
            writer.add(episode(rng, "twist", 24, OTHER))
    return path


def test_robots_mix_and_weights_are_shared_out(recording: Path, other_recording: Path) -> None:
    data = load_mixture(DataConfig(str(recording), more=(str(other_recording),), weights=(0.5, 2.0)))
    assert data.spec == SPEC and [len(e) for e in data.episodes] == [12] * 9
    assert data.odds == [0.1] * 5 + [0.5] * 4
    ours, theirs = data.episodes[0], data.episodes[-1]
    assert ours.proprio_mask is None and ours.action_mask is None
    assert theirs.proprio_mask is not None and theirs.proprio_mask.tolist() == [False, True, True, True]
    assert theirs.action_mask is None  # it has all four, and one that nobody asks for
    with pytest.raises(ValueError, match="data.weights has 1 entries for 2 recordings"):
        load_mixture(DataConfig(str(recording), more=(str(other_recording),), weights=(1.0,)))
    with pytest.raises(SpecMismatch, match="5 Hz and 'other' at 10 Hz"):
        load_mixture(DataConfig(str(other_recording), more=(str(recording),)))
    with pytest.raises(ValueError, match="feature map has no use"):
        load_mixture(DataConfig(str(recording), maps=("map.json",)))


def test_a_mixture_trains_and_goes_on_from_a_model(
    recording: Path, other_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kairos_env.world_model.model import WorldModel

    first, second = tmp_path / "first", tmp_path / "second"
    mixed = [f"data.path={recording}", f"data.more=[{other_recording}]", "data.weights=[1,1]"]
    assert cli.main(["train", *mixed, f"out={first}", *TINY, *SHORT]) == 0
    rows = [json.loads(line) for line in (first / "model.jsonl").read_text().splitlines()]
    for mode in ("video", "policy", "inverse", "future"):
        assert np.isfinite(rows[-1][f"validation_{mode}"])
    capsys.readouterr()
    # the other robot, on the first one's weights: its own fields and cameras start anew, and that is said
    words = [f"data.path={other_recording}", f"out={second}", f"init={first / 'model'}", *TINY, *SHORT]
    assert cli.main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert "start anew" in said and "twist" in said and "cameras ['scene'] -> ['scene', 'top']" in said
    transfer = json.loads((second / "transfer.json").read_text())
    assert any("action_encoder" in name for name in transfer["fresh"]) and transfer["kept"] > 100
    before, after = WorldModel.from_pretrained(first / "model"), WorldModel.from_pretrained(second / "model")
    assert after.spec == OTHER and after.statistics.latent_mean == before.statistics.latent_mean
    for a, b in zip(before.tokenizer.parameters(), after.tokenizer.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach())


def test_instructions_come_from_the_data() -> None:
    rng = np.random.default_rng(0)
    assert instructions([episode(rng, "push"), episode(rng)]) == {"push": "please push", "reach": "please reach"}


def test_a_task_in_several_wordings_is_listed_with_the_first() -> None:
    first = episode(np.random.default_rng(0))
    assert instructions([first, dataclasses.replace(first, instruction="other words")]) == {"reach": "please reach"}


def test_command_trains_a_model_that_loads(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", f"data.path={recording}", f"out={out}", *TINY, *SHORT]) == 0
    assert str(out / "model") in capsys.readouterr().out
    assert list((out / "strips").rglob("*.png"))

    from kairos_env.world_model.model import WorldModel

    model = WorldModel.from_pretrained(out / "model")
    assert dict(model.tasks) == {"push": "please push", "reach": "please reach"}
    assert len(model.starts) == 1


def test_show_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--show", "model.steps=7", "data.path=somewhere"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["steps"] == 7 and shown["data"]["path"] == "somewhere"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.stesp=1"], "did you mean model.steps"),
        (["data.path=nowhere/at/all"], "no such file or folder"),
    ],
)
def test_wrong_requests_are_explained(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *words]) == 2
    assert message in capsys.readouterr().err
