"""`kairos train` from files to a model folder that loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from two_robots import OTHER, write_other_recording, write_recording

from kairos_env.cli import main as cli

TINY = ["preset=debug", "precision=fp32", "validation=1", "starts=1", "batch=2", "tokenizer_batch=4"]
SHORT = ["tokenizer.steps=2", "model.steps=2", "sample_every=2", "loss.frames=6"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recording"))


@pytest.fixture(scope="module")
def other_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other_recording(tmp_path_factory.mktemp("other"))


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
    words = [f"data.path={other_recording}", f"out={second}", f"init={first / 'model'}", "init_tokenizer=keep", *TINY]
    words += SHORT
    assert cli.main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert "start anew" in said and "twist" in said and "cameras ['scene'] -> ['scene', 'top']" in said
    transfer = json.loads((second / "transfer.json").read_text())
    assert any("action_encoder" in name for name in transfer["fresh"]) and transfer["kept"] > 100
    before, after = WorldModel.from_pretrained(first / "model"), WorldModel.from_pretrained(second / "model")
    assert after.spec == OTHER and after.statistics.latent_mean == before.statistics.latent_mean
    for a, b in zip(before.tokenizer.parameters(), after.tokenizer.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach())


def test_command_trains_a_model_that_loads(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", f"data.path={recording}", f"out={out}", *TINY, *SHORT]) == 0
    assert str(out / "model") in capsys.readouterr().out
    assert list((out / "strips").rglob("*.png"))

    from kairos_env.world_model.model import WorldModel

    model = WorldModel.from_pretrained(out / "model")
    assert dict(model.tasks) == {"push": "please push", "reach": "please reach"}
    assert len(model.starts) == 1


def test_a_runs_configuration_is_a_file_of_options(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", f"data.path={recording}", f"out={out}", *TINY, *SHORT]) == 0
    capsys.readouterr()
    written = json.loads((out / "config.json").read_text())
    assert cli.main(["train", "--config", str(out / "config.json"), "--seed", "7", "--show"]) == 0
    assert json.loads(capsys.readouterr().out) == written | {"seed": 7}


def test_sigterm_stops_with_a_checkpoint_and_the_same_command_goes_on(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [f"data.path={recording}", f"out={out}", *TINY, *SHORT, "tokenizer.steps=2000", "tokenizer.log_every=1"]
    command = [sys.executable, "-m", "kairos_env.cli", "train", *words]
    # the OpenMP library says when it is loaded what it was set to
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "true"}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rows = out / "tokenizer.jsonl"
    while process.poll() is None and not (rows.exists() and rows.read_text().count("\n") >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the same command goes on from there" in said
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in said
    assert (out / "tokenizer.pt").exists()


def test_show_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--show", "model.steps=7", "data.path=somewhere"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["steps"] == 7 and shown["data"]["path"] == "somewhere"


def test_a_curriculum_is_planned_shown_and_needs_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--curriculum", "cedc", "--plan"]) == 0
    assert "video-480*" in capsys.readouterr().out
    path = tmp_path / "own.yaml"
    path.write_text("base: cedc\nkeep: [image]\nstages: {image: {model: {steps: 5}}}\n")
    assert cli.main(["train", "--curriculum", str(path), "--out", "runs/own", "--seed", "3", "--show"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [stage["model"]["steps"] for stage in shown["stages"]] == [5]
    assert shown["train"]["out"] == "runs/own" and shown["train"]["seed"] == 3
    assert cli.main(["train", "--curriculum", str(path), "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert "image*" in said.out and "no data for image: name recordings in a file" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--curriculum", "laptob"], "no curriculum 'laptob', and no such file; did you mean 'laptop'"),
        (["--curriculum", "laptop", "--model.lr", "1e-4"], "model cannot be given beside --curriculum"),
        (["--plan"], "--plan is of a curriculum"),
        (["learns=video"], "learns video: without `init` the tokenizer has to be learned, too"),
        (["loss.conditions.t2v=1"], "conditions t2v, ti2v, i2v and null2v are shares that sum to 1"),
        (["device=cuda:99"], "device 'cuda:99' cannot be used"),
        (["own_from=nan"], "own_from is a share of stage 2"),
        (["model.stesp=1"], "did you mean '--model.steps'"),
        (["--data.path", "nowhere/at/all"], "no such file or folder"),
        (["--video-every", "0"], "video_every must be at least 1, got 0"),
        (["--model.steps", "0"], "steps must be at least 1, got 0"),
    ],
)
def test_wrong_requests_are_explained(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *words]) == 2
    assert message in capsys.readouterr().err
