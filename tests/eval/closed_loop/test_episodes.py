from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT, TESTS
from point_simulator import SPEC, Point

from kairos_env.eval.closed_loop.episodes import EvalConfig, episode_seed, evaluate, summarize
from kairos_env.eval.closed_loop.workers import SetupFailed
from kairos_env.eval.rows import Row, read_rows
from kairos_env.policies.make import make_policy, model_digest, parse_name
from kairos_env.policies.policy import check_policy
from kairos_env.records import SpecMismatch


def config(output: Path, **changes: Any) -> EvalConfig:
    base = EvalConfig(
        output=str(output),
        policies=("expert", "random"),
        tasks=("near", "far"),
        episodes=3,
        simulator="point_simulator:Point",
        workers=0,
        time_limit_s=20,
    )
    return dataclasses.replace(base, **changes)


def outcomes(rows: Any) -> list[tuple[Any, ...]]:
    """All of a row that is not a time."""
    return [(row.job, row.status, row.decisions, row.episode_return) for row in rows]


def test_rates_and_steps(tmp_path: Path) -> None:
    report = evaluate(config(tmp_path, videos=1))
    near = report.cell("expert", "near")
    assert (near.successes, near.failures, near.errors) == (3, 0, 0)
    assert near.rate.low == pytest.approx(0.4385, abs=1e-4)
    assert 1 <= near.median_decisions <= 10
    assert report.cell("random", "far").rate.value < 1
    assert ["expert", "near", "100", "[44,", "100]", "3", "0"] in [
        line.split()[:7] for line in report.table().splitlines()
    ]
    assert {p.name for p in (tmp_path / "videos").iterdir()} >= {"expert_near_300000.mp4", "expert_near_300000.png"}
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.replace("http-equiv", "")
    assert json.loads((tmp_path / "report.json").read_text())["cells"][0]["rate"]["value"] == 1
    assert outcomes(summarize(tmp_path).rows) == outcomes(report.rows)


def test_the_result_does_not_depend_on_workers_or_order(tmp_path: Path) -> None:
    one = evaluate(config(tmp_path / "a"))
    two = evaluate(config(tmp_path / "b", workers=2))
    turned = evaluate(config(tmp_path / "c", tasks=("far", "near"), policies=("random", "expert")))
    assert outcomes(one.rows) == outcomes(two.rows) == outcomes(turned.rows)
    assert len({row.episode_return for row in one.rows}) > 6, "starts, tasks and policies differ"


def test_policies_meet_the_same_starts_and_luck(tmp_path: Path) -> None:
    jobs = config(tmp_path).jobs()
    assert len(set(jobs)) == 12 and {job.initial_state for job in jobs} == {300_000, 300_001, 300_002}
    assert len({episode_seed(job) for job in jobs}) == 3


def test_more_episodes_continue_a_run(tmp_path: Path) -> None:
    evaluate(config(tmp_path))
    new: list[Row] = []
    report = evaluate(config(tmp_path, episodes=4), on_row=new.append)
    assert len(new) == 4 and len(report.rows) == 16
    assert len(evaluate(config(tmp_path, episodes=1), on_row=new.append).rows) == 4
    assert len(new) == 4, "nothing is run twice"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_crash_is_an_error_and_not_a_failure(tmp_path: Path, workers: int) -> None:
    trouble = {"300001": "raise"} | ({"300002": "die"} if workers else {})
    report = evaluate(config(tmp_path, workers=workers, simulator_options={"trouble": trouble}))
    cell = report.cell("expert", "near")
    assert (cell.successes, cell.failures, cell.errors) == (3 - len(trouble), 0, len(trouble))
    messages = {row.job.initial_state: row.message for row in report.errors}
    assert messages[300_001] == "FloatingPointError: the physics exploded"
    if workers:
        assert messages[300_002] == "the worker process died (exit code 3)"
    assert "not counted: FloatingPointError" in report.table()


def test_a_hanging_episode_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    report = evaluate(
        config(
            tmp_path,
            policies=("expert",),
            tasks=("near",),
            workers=1,
            time_limit_s=2,
            simulator_options={"trouble": {"300000": "hang"}},
        )
    )
    assert time.monotonic() - began < 300
    assert [row.status for row in report.rows] == ["error", "success", "success"]
    assert report.rows[0].message == "timed out: the episode took longer than 2 s"


def test_errors_are_tried_again_when_asked(tmp_path: Path) -> None:
    settings = config(tmp_path, simulator_options={"trouble": {"300000": "raise"}}, policies=("expert",))
    new: list[Row] = []
    evaluate(settings)
    evaluate(settings, on_row=new.append)
    assert not new
    evaluate(dataclasses.replace(settings, retry_errors=True), on_row=new.append)
    assert [row.status for row in new] == ["error", "error"]
    assert len(read_rows(tmp_path / "results.jsonl")) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_set_up_is_not_recorded_as_results(tmp_path: Path, workers: int) -> None:
    with pytest.raises(SetupFailed, match="no GL on this machine"):
        evaluate(config(tmp_path / "a", simulator="point_simulator:broken_simulator", workers=workers))
    assert read_rows(tmp_path / "a" / "results.jsonl") == []
    with pytest.raises(ValueError, match="unknown policy 'polcy'; did you mean 'policy'"):
        evaluate(config(tmp_path / "b", policies=("polcy",), workers=workers))
    assert not (tmp_path / "b").exists()


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    slow = config(tmp_path / "killed", workers=1, simulator_options={"seconds_a_step": 0.03})
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from kairos_env.eval.closed_loop.episodes import EvalConfig, evaluate\n"
        f"if __name__ == '__main__': evaluate(EvalConfig(**{dataclasses.asdict(slow)!r}))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    results = Path(slow.output) / "results.jsonl"
    root = str(ROOT)
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root})
    deadline = time.monotonic() + 300
    while len(read_rows(results)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_rows(results)
    assert 2 <= len(before) < 12
    new: list[Row] = []
    report = evaluate(dataclasses.replace(slow, workers=0), on_row=new.append)
    assert len(new) == 12 - len(before)
    undisturbed = evaluate(config(tmp_path / "whole", simulator_options={"seconds_a_step": 0.0}))
    assert outcomes(report.rows) == outcomes(undisturbed.rows)


def test_names_take_options_and_noise() -> None:
    options = {"horizon": 10, "warm_start": False}
    assert parse_name("cem(horizon=10;warm_start=False)+noise=0.5") == ("cem", options, 0.5)
    assert parse_name("a.b:make(x=text)") == ("a.b:make", {"x": "text"}, 0.0)
    for bad in ("policy+", "cem(horizon)", "cem(", "what"):
        with pytest.raises(ValueError, match="policy|option"):
            parse_name(bad)


def test_factories_and_noise_make_sound_policies(tmp_path: Path) -> None:
    env = Point()
    env.reset(seed=0, options={"initial_state": 0, "task": "far"})
    for name in ("random", "random+noise=0.3", "point_simulator:half_blind(skill=0.2)"):
        check_policy(make_policy(name, env), SPEC)
    report = evaluate(config(tmp_path, policies=("expert", "expert+noise=3"), episodes=8))
    steps = [report.cell(policy, "far").median_decisions for policy in ("expert", "expert+noise=3")]
    assert steps[1] > steps[0] or report.cell("expert+noise=3", "far").failures


def test_a_model_of_another_robot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        spec = dataclasses.replace(SPEC, control_rate_hz=10.0)

    monkeypatch.setattr("kairos_env.policies.make.load_model", lambda *_: Model())
    with pytest.raises(SpecMismatch, match="control_rate_hz: 10.0 != 5.0"):
        make_policy("policy", Point())


def test_a_digest_knows_other_weights(tmp_path: Path) -> None:
    assert model_digest(str(tmp_path)) == ""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = model_digest(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert first and model_digest(str(tmp_path)) != first
