"""`kairos train` from files to a model folder that loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kairos_env import cli
from kairos_env.datasets.robomimic import EpisodeWriter
from kairos_env.records import Episode
from kairos_env.sims.robosuite import make_spec
from kairos_env.train import DataConfig, instructions, load_episodes

SPEC = make_spec(image_size=64)
TINY = ["preset=debug", "precision=fp32", "validation=1", "starts=1", "batch=2", "tokenizer_batch=4"]
SHORT = ["tokenizer.steps=2", "model.steps=2", "sample_every=2", "loss.frames=6"]


def episode(rng: np.random.Generator, task: str = "reach", steps: int = 12) -> Episode:
    low, high = SPEC.action_low, SPEC.action_high
    return Episode(
        images={"scene": rng.integers(0, 256, (steps + 1, 64, 64, 3), np.uint8)},
        proprio=SPEC.clip_proprio(rng.normal(0, 0.1, (steps + 1, SPEC.proprio_dim))),
        actions=rng.uniform(low, high, (steps, SPEC.action_dim)).astype(np.float32),
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
    episodes, file = load_episodes(DataConfig(str(recording), more=(str(recording),), limit=7))
    assert len(episodes) == 7 and len(file) == 10 and file.spec.diff(SPEC) == []


def test_instructions_come_from_the_data() -> None:
    rng = np.random.default_rng(0)
    assert instructions([episode(rng, "push"), episode(rng)]) == {"push": "please push", "reach": "please reach"}


def test_one_task_has_one_instruction() -> None:
    import dataclasses

    first = episode(np.random.default_rng(0))
    with pytest.raises(ValueError, match="two instructions"):
        instructions([first, dataclasses.replace(first, instruction="other words")])


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
