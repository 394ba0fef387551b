"""The demo, on a randomly initialised model: it measures nothing good, but everything must be there and true."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libero_home import libero_home

from kairos_env.cli import demo, demo_parts
from kairos_env.cli import main as cli
from kairos_env.env.initial_observations import InitialObservations
from kairos_env.policies.policy import example_observation
from kairos_env.sims.tabletop.env import TASKS, make_spec
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
def starts(model: WorldModel) -> Iterator[InitialObservations]:
    name, made = demo.open_simulator(model, "auto", "push")
    assert name == "Kairos-Robosuite-v0"
    with contextlib.closing(made):
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
    monkeypatch.setattr(demo_parts, "DECISIONS", 6)
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
    monkeypatch.setattr(demo_parts, "DECISIONS", 4)
    monkeypatch.setattr(demo_parts, "SURE", 1.0)  # never sure: the plan takes all the time there is
    first = model.starts[0]
    actions, frames, expected = demo_parts.plan_episode(model, first, planner, seed=3)
    assert actions.shape == (4, 4) and frames.shape == (5, 64, 64, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames[0], first.images["scene"]) and 0 <= expected <= 1
    assert np.array_equal(actions, model.spec.check_action(actions))
    again, _, _ = demo_parts.plan_episode(model, first, planner, seed=3)
    assert np.array_equal(actions, again)


def test_a_plan_ends_where_success_is_expected(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_parts, "DECISIONS", 6)
    monkeypatch.setattr(demo_parts, "SURE", 0.0)
    actions, frames, expected = demo_parts.plan_episode(model, model.starts[0], "best_of_n", seed=0)
    assert len(actions) == 1 and len(frames) == 2 and expected > 0


def test_the_experts_drive_is_real_and_repeatable(starts: InitialObservations) -> None:
    first, actions, frames = demo_parts.expert_drive(starts, ["push", "lift"], 0)
    assert actions.shape == (demo_parts.DECISIONS, 4) and frames.shape == (demo_parts.DECISIONS + 1, 64, 64, 3)
    assert np.array_equal(first.images["scene"], frames[0]) and first.instruction == TASKS["push"]
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all(), "the arm moves at every decision"
    again = demo_parts.first_observation(starts, "push", 0)
    real, pushed = demo_parts.execute(starts.simulator, again, actions)
    assert np.array_equal(real, frames) and pushed


def test_initial_states_are_held_out_of_training(starts: InitialObservations) -> None:
    demo_parts.first_observation(starts, "reach", 3)
    assert starts.simulator is not None
    _, _, _, _, info = starts.simulator.step(np.zeros(4))
    assert info["initial_state"] == demo_parts.FIRST_START + 3 and info["task"] == "reach"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "pusch"], "the model knows no task 'pusch'; did you mean 'push'?"),
        (["--simulator", "Kairos-Robosuit-v0"], "did you mean 'Kairos-Robosuite-v0'?"),
        (["--simulator", "Kairos-LIBERO-v0"], "describe different robots"),
    ],
)
def test_wrong_requests_are_explained(
    words: list[str], message: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "runs", "--model", folder, *words)[0] == 2
    assert message in capsys.readouterr().err


def test_speed_counts_every_element(model: WorldModel) -> None:
    assert demo_parts.speed(model, 8, 0.2) > demo_parts.speed(model, 1, 0.2) > 0


def test_one_still_frame_does_not_make_the_mean_infinite() -> None:
    assert demo_parts.decibels([np.zeros(3)]) < 200
    assert demo_parts.decibels([np.full(3, 255.0**2)]) == pytest.approx(0)


@pytest.mark.slow
def test_the_whole_demo_in_its_short_form(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, summary, files = run(tmp_path / "runs", "--model", folder, "--json", "--tasks", "push,lift")
    out, said = capsys.readouterr()
    assert status == 0 and json.loads(out) == summary
    films = {"beside_reality.png", "beside_reality.mp4", "plan.png", "plan.mp4"}
    assert films | {"demo.html", "summary.json", "closed_loop"} <= files
    assert set(summary["closed_loop"]) == set(summary["planned_blindly"]) == {"push", "lift"}
    for cell in summary["closed_loop"].values():
        assert cell["errors"] == 0 and cell["successes"] + cell["failures"] == 1 and cell["decision_ms"] > 0
    assert summary["psnr_imagined"] > 0 and summary["imagined_steps_per_second"]["16"] > 0
    for name in films | {"demo.html"}:
        assert name in said.replace("\n", "")


@pytest.mark.slow
def test_the_demo_of_a_model_of_libero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAIROS_SIMS", str(tmp_path / "sims"))
    (tmp_path / "sims").mkdir()
    (tmp_path / "sims" / "libero").symlink_to(libero_home(), target_is_directory=True)
    monkeypatch.setattr(demo_parts, "DECISIONS", 4)
    task = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
    status, summary, files = run(tmp_path / "runs", "--model", "kairos-libero", "--tasks", task)
    assert status == 0 and {"beside_reality.mp4", "plan.mp4", "closed_loop"} <= files
    assert summary["planned_blindly"][task][1] == 1
    (cell,) = summary["closed_loop"].values()
    assert cell["errors"] == 0 and cell["simulator"] == "Kairos-LIBERO-v0"
