"""The page of a training run, from its folder and from the model that it left."""

from __future__ import annotations

from pathlib import Path

import pytest
from moving_square import moving_square

from kairos_env.cli import main as cli
from kairos_env.eval.report.training import training_text, write_training_page
from kairos_env.media import film_strip, write_png
from kairos_env.runs import append_jsonl, open_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of 3,000 steps, of which 2,000 are done."""
    folder = tmp_path / "push"
    loop = {"steps": 3000, "lr": 1e-3}
    values = {"out": "runs/push", "tokenizer": {"steps": 100}, "model": loop, "validation": 2, "starts": 1}
    open_run(folder, values, {"changed": {"model.lr": [2e-3, 1e-3]}})
    for step in range(0, 2000, 4):
        times = {"seconds": 7.2 * step, "cpu_seconds": 3.6 * step, "steps_per_second": 0.5}
        losses = {"loss": 2.0, "grad_norm": 0.1, "video": 1.0, "lr": 1e-3}
        append_jsonl(folder / "model.jsonl", {"step": step} | losses | times)
    for step in (999, 1999):
        found = {"psnr_1": 20.0, "psnr_1_copy": 19.0, "psnr_20": 18.0, "validation_video": 1.5, "creep_cm": step / 100}
        append_jsonl(folder / "model.jsonl", {"step": step} | found)
        strip = film_strip({"real": moving_square(step).images["scene"]})
        write_png(folder / "strips" / f"step_{step + 1:06d}" / "0.png", strip)
    return folder


def test_progress_time_changes_and_validation_are_told(run: Path) -> None:
    text = training_text(run)
    assert "1998 of 3000" not in text and "2000 of 3000" in text
    assert " 2.00 " in text and " 3.99 " in text  # 1,996 steps at 3.6 and 7.2 seconds
    assert "Changed at the launch of" in text and "model.lr from 0.002 to 0.001" in text
    line = next(line for line in text.splitlines() if line.startswith("creep_cm"))
    assert line.split() == ["creep_cm", "9.99", "19.99"]


def test_the_page_has_curves_of_losses_and_metrics_and_the_last_strips(run: Path) -> None:
    page = write_training_page(run).read_text()
    for title in ("video", "psnr", "creep_cm", "lr", "grad_norm", "steps a second"):
        assert f"<figcaption>{title}</figcaption>" in page
    assert "after 2000 steps, held-out episode 0" in page and "data:image/jpeg" in page
    longest = max(page.split('points="')[1:], key=len).split('"')[0]
    assert 100 < len(longest.split()) <= 200  # 500 rows, averaged
    assert "stroke-dasharray" in page  # the copied frame


def test_command_writes_the_page_and_says_what_is_no_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train-report", str(run)]) == 0
    assert "2000 of 3000" in capsys.readouterr().out and (run / "report.html").exists()
    assert cli.main(["train-report", str(tmp_path)]) == 2
    assert "neither the folder of a training run nor of a model" in capsys.readouterr().err


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(ValueError, match=r"training\.json is damaged"):
        write_training_page(tmp_path)
