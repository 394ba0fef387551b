"""A trained model's folder tells how it was made and what was measured of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from moving_square import SPEC, config, moving_square

from kairos_env.cli import main as cli
from kairos_env.eval.report.training import training_text
from kairos_env.eval.rows import Job, Row
from kairos_env.policies.make import model_digest
from kairos_env.runs import append_jsonl, open_run, write_json
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.card import HORIZONS, MEASURED, Measurement, add_measurement, write_card
from kairos_env.training.launch import LaunchConfig
from kairos_env.training.run import train
from kairos_env.training.summary import read_summary


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps that was changed after six."""
    folder = tmp_path_factory.mktemp("runs") / "square"
    episodes = [dataclasses.replace(moving_square(i), source="expert" if i % 4 else "random") for i in range(12)]
    short = config(folder, 6)
    longer = dataclasses.replace(short, model=dataclasses.replace(short.model, steps=12))
    for wanted in (short, longer):
        train(wanted, episodes, SPEC, {"push": TASKS["push"]}, launch=LaunchConfig(change=True, snapshot_every=9))
    return folder


def test_card_tells_data_recipe_time_and_validation(run: Path) -> None:
    card = (run / "model" / "README.md").read_text()
    assert "# square\n" in card and "- push: push the red cube onto the green disc" in card
    assert "behaviours: expert 75%, random 25%" in card and "12 episodes, 144 decisions; 5 episodes held out" in card
    assert "| model | 12 |" in card and "on `model.steps` 12, before 6" in card
    assert "## Validation after 12 steps" in card and "| `psnr_1` |" in card
    assert "| action | dx | m | -0.05 to 0.05 |" in card and "Preset `debug`" in card
    assert "## Measured" not in card
    snapshot = (run / "snapshots" / "step_000009" / "README.md").read_text()
    assert "## Validation after 6 steps" in snapshot


def test_the_log_travels_with_the_model(run: Path) -> None:
    whole, kept = read_summary(run), read_summary(run / "model")
    assert kept.config == whole.config and kept.data == whole.data and len(kept.launches) == 2
    assert [row["step"] for row in kept.training("model")] == list(range(12))
    assert kept.validations()[-1]["psnr_1"] == pytest.approx(whole.validations()[-1]["psnr_1"], rel=1e-4)
    assert training_text(run / "model").startswith("Progress\n\nstage")


def test_a_long_log_is_thinned_and_keeps_its_ends(run: Path, tmp_path: Path) -> None:
    from kairos_env.training.summary import MOST_ROWS, write_summary

    rows = [{"step": step, "lr": 1e-3, "loss": 1 / (step + 3)} for step in range(5000)]
    write_summary(dataclasses.replace(read_summary(run), rows={"model": rows}), tmp_path)
    kept = read_summary(tmp_path).training("model")
    assert len(kept) == MOST_ROWS and (kept[0]["step"], kept[-1]["step"]) == (0, 4999)
    assert kept[0]["loss"] == 0.33333
    assert (tmp_path / "training.jsonl").stat().st_size < 20_000


def test_measurements_and_own_words_stay_when_the_card_is_written_anew(run: Path) -> None:
    model = run / "model"
    add_measurement(model, "calibration", Measurement("ECE", ["task", "ECE"], [["push", "0.03"]], ["of 50 episodes"]))
    write_json(model / MEASURED, json.loads((model / MEASURED).read_text()) | {HORIZONS: {"push": 14}})
    path = write_card(model)
    path.write_text(path.read_text() + "It knows one square.\n")
    card = write_card(model, "squares").read_text()
    assert card.count("It knows one square.") == 1 and "# squares\n" in card
    assert "### ECE" in card and "| push | 0.03 |" in card and "| push | 14 |" in card


def test_command_adds_what_was_evaluated_of_these_weights_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = run / "model"
    for name, digest in (("right", model_digest(str(model))), ("wrong", "0123456789abcdef")):
        folder = open_run(tmp_path / name, {})
        for state in range(4):
            job = Job("policy", "Kairos-Robosuite-v0", "push", state, 0)
            row = Row(job, "success" if state else "failure", 9, extra={"model": f"model {digest}"})
            append_jsonl(folder / "results.jsonl", row.to_dict())
    assert cli.main(["card", str(model), "--measured", str(tmp_path / "right")]) == 0
    card = (model / "README.md").read_text()
    assert "### Success in Kairos-Robosuite-v0" in card and "| policy | push | 75 [30, 95] | 4 |" in card
    capsys.readouterr()
    assert cli.main(["card", str(model), "--measured", str(tmp_path / "wrong")]) == 2
    assert "evaluated the weights 0123456789abcdef, but the model's are" in capsys.readouterr().err
    assert cli.main(["card", str(model), "--measured", str(tmp_path)]) == 2
    assert "is no folder of `kairos eval closed-loop`" in capsys.readouterr().err
