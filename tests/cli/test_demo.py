"""The demo, on a randomly initialised model: it measures nothing good, but everything must be there and true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kairos_env.cli import demo
from kairos_env.cli import main as cli
from kairos_env.policies.policy import example_observation
from kairos_env.sims.tabletop.env import TASKS, RobosuiteEnv, make_spec
from kairos_env.world_model.model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    made = WorldModel.from_preset("debug", make_spec(), TASKS)
    made.starts = tuple(example_observation(made.spec, seed) for seed in range(2))
    return made


@pytest.fixture(scope="module")
def folder(model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "debug"
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def simulator(model: WorldModel) -> Iterator[RobosuiteEnv]:
    with demo.open_simulator(model) as made:
        yield made


def run(out: Path, *words: str) -> tuple[int, dict[str, Any], set[str]]:
    """Exit status, summary and files of one demo."""
    status = cli.main(["demo", *words, "--short", "--out", str(out)])
    runs = list(out.iterdir()) if out.exists() else []
    if not runs:
        return status, {}, set()
    assert len(runs) == 1
    return status, json.loads((runs[0] / "summary.json").read_text()), {p.name for p in runs[0].iterdir()}


def test_without_a_simulator_it_shows_imagination_and_says_so(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_gl(*_: object) -> None:
        raise RuntimeError("no off-screen OpenGL found")

    monkeypatch.setattr(demo, "open_simulator", no_gl)
    monkeypatch.setattr(demo, "DECISIONS", 6)
    status, summary, files = run(tmp_path / "runs", "--model", folder)
    said = capsys.readouterr().out
    assert status == 0 and "no off-screen OpenGL found" in said and "kairos doctor" in said
    assert {"imagined.mp4", "imagined.png", "demo.html", "summary.json", "config.json"} <= files
    assert set(summary["imagined_success"]) == set(TASKS)
    assert "closed_loop" not in summary and "real simulator" not in said.split("imagination only")[1]


def test_a_model_that_is_not_there_is_an_answer_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, files = run(tmp_path / "runs", "--model", str(tmp_path / "nowhere"))
    assert status == 2 and not files and "nowhere" in capsys.readouterr().err


def test_no_episodes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "runs", "--episodes", "0")[0] == 2
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("planner", ["best_of_n", pytest.param("cem", marks=pytest.mark.slow)])
def test_a_plan_is_as_long_as_its_film_and_legal(
    model: WorldModel, planner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DECISIONS", 4)
    monkeypatch.setattr(demo, "SURE", 1.0)  # never sure: the plan takes all the time there is
    first = model.starts[0]
    actions, frames, expected = demo.plan_episode(model, first, planner, seed=3)
    assert actions.shape == (4, 4) and frames.shape == (5, 64, 64, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames[0], first.images["scene"]) and 0 <= expected <= 1
    assert np.array_equal(actions, model.spec.check_action(actions))
    again, _, _ = demo.plan_episode(model, first, planner, seed=3)
    assert np.array_equal(actions, again)


def test_a_plan_ends_where_success_is_expected(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DECISIONS", 6)
    monkeypatch.setattr(demo, "SURE", 0.0)
    actions, frames, expected = demo.plan_episode(model, model.starts[0], "best_of_n", seed=0)
    assert len(actions) == 1 and len(frames) == 2 and expected > 0


def test_the_experts_drive_is_real_and_repeatable(simulator: RobosuiteEnv) -> None:
    first, actions, frames = demo.expert_drive(simulator, demo.FIRST_START)
    assert actions.shape == (demo.DECISIONS, 4) and frames.shape == (demo.DECISIONS + 1, 64, 64, 3)
    assert np.array_equal(first.images["scene"], frames[0])
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all(), "the arm moves at every decision"
    raw, info = simulator.reset(options={"initial_state": demo.FIRST_START, "task": "push"})
    pushed = False
    for action in actions:
        raw, _, _, _, info = simulator.step(action)
        pushed = pushed or info["task_success"]["push"]
    assert np.array_equal(demo.frame(raw), frames[-1]) and pushed


def test_speed_counts_every_element(model: WorldModel) -> None:
    assert demo.speed(model, 8, 0.2) > demo.speed(model, 1, 0.2) > 0


def test_one_still_frame_does_not_make_the_mean_infinite() -> None:
    assert demo.decibels([np.zeros(3)]) < 200
    assert demo.decibels([np.full(3, 255.0**2)]) == pytest.approx(0)


@pytest.mark.slow
def test_the_whole_demo_in_its_short_form(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, summary, files = run(tmp_path / "runs", "--model", folder)
    said = capsys.readouterr().out
    assert status == 0
    films = {"beside_reality.png", "beside_reality.mp4", "plan.png", "plan.mp4"}
    assert films | {"demo.html", "summary.json", "closed_loop"} <= files
    assert set(summary["closed_loop"]) == set(summary["planned_blindly"]) == set(TASKS)
    for cell in summary["closed_loop"].values():
        assert cell["errors"] == 0 and cell["successes"] + cell["failures"] == 1 and cell["decision_ms"] > 0
    assert summary["psnr_imagined"] > 0 and summary["imagined_steps_per_second"]["16"] > 0
    for name in films | {"demo.html"}:
        assert name in said.replace("\n", "")
