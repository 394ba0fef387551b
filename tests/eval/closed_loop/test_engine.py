from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT, TESTS
from point_runs import config, outcomes
from point_simulator import SPEC, Point

from kairos_env.cli.main import main
from kairos_env.eval.closed_loop.engine import evaluate
from kairos_env.eval.closed_loop.plan import SetupFailed
from kairos_env.eval.report.report import make_report
from kairos_env.eval.rows import Row, read_rows
from kairos_env.policies.make import make_policy
from kairos_env.policies.policy import check_policy
from kairos_env.runs import ConfigMismatch


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
    assert {p.name for p in (tmp_path / "videos").iterdir()} >= {"expert_near_300000_0.mp4", "expert_near_300000_0.png"}
    page = (tmp_path / "report.html").read_text()
    assert "data:image/jpeg;base64," in page and '<video controls preload="none" width="512" src="videos/' in page
    assert "http" not in page
    assert json.loads((tmp_path / "report.json").read_text())["cells"][0]["rate"]["value"] == 1
    assert outcomes(make_report(read_rows(tmp_path)).rows) == outcomes(report.rows)


def test_the_result_does_not_depend_on_workers_or_order(tmp_path: Path) -> None:
    one = evaluate(config(tmp_path / "a"))
    two = evaluate(config(tmp_path / "b", workers=2))
    turned = evaluate(config(tmp_path / "c", tasks=("far", "near"), policies=("random", "expert")))
    slots = evaluate(config(tmp_path / "d", slots=3))
    shards = [evaluate(config(tmp_path / "e", shard=f"{i}/2")) for i in (2, 1)]
    for other in (two, turned, slots, shards[-1]):
        assert outcomes(other.rows) == outcomes(one.rows) and other.table() == one.table()
    assert len({row.episode_return for row in one.rows}) > 6, "starts, tasks and policies differ"


def test_more_episodes_continue_a_run(tmp_path: Path) -> None:
    evaluate(config(tmp_path))
    new: list[Row] = []
    report = evaluate(config(tmp_path, episodes=4), on_row=new.append)
    assert len(new) == 4 and len(report.rows) == 16
    assert len(evaluate(config(tmp_path, episodes=1), on_row=new.append).rows) == 16, "all that the folder holds"
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
    assert re.search(r"FloatingPointError: the physics exploded +4", report.table())


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
    with pytest.raises(ValueError, match="unknown policy 'polcy'.*did you mean 'policy'"):
        evaluate(config(tmp_path / "b", policies=("polcy",), workers=workers))


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    slow = config(tmp_path / "killed", workers=1, simulator_options={"seconds_a_step": 0.03})
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from kairos_env.eval.closed_loop.config import EvalConfig\n"
        "from kairos_env.eval.closed_loop.engine import evaluate\n"
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


def test_factories_and_noise_make_sound_policies(tmp_path: Path) -> None:
    env = Point()
    env.reset(seed=0, options={"initial_state": 0, "task": "far"})
    for name in ("random", "random+noise=0.3", "point_simulator:half_blind(skill=0.2)"):
        check_policy(make_policy(name, env), SPEC)
    report = evaluate(config(tmp_path, policies=("expert", "expert+noise=3"), episodes=8))
    steps = [report.cell(policy, "far").median_decisions for policy in ("expert", "expert+noise=3")]
    assert steps[1] > steps[0] or report.cell("expert+noise=3", "far").failures


def test_imagination_is_evaluated_like_a_simulator(tmp_path: Path) -> None:
    imagined = {"simulator": "Kairos-WorldModel-v0", "max_decisions": 2, "tasks": ("push",), "policies": ("policy",)}
    report = evaluate(config(tmp_path, **imagined))
    assert [row.job.initial_state for row in report.rows] == [0, 1, 2], "the starts that ship with the model"
    assert all(row.decisions <= 2 and 0 <= row.extra["success_probability"] <= 1 for row in report.rows)
    with pytest.raises(ValueError, match="does not end its episodes: say after how many decisions"):
        evaluate(config(tmp_path, **imagined | {"max_decisions": 0}))


def test_another_policy_joins_the_report(tmp_path: Path) -> None:
    evaluate(config(tmp_path, policies=("expert",)))
    report = evaluate(config(tmp_path, policies=("random",)))
    assert {row.job.policy for row in report.rows} == {"expert", "random"}
    assert {cell["policy"] for cell in json.loads((tmp_path / "report.json").read_text())["cells"]} == {
        "expert",
        "random",
    }
    with pytest.raises(ConfigMismatch, match="max_decisions"):
        evaluate(config(tmp_path, max_decisions=5))


def test_table_and_compare_read_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(tmp_path / name) for name in "ab"]
    evaluate(config(Path(runs[0]), policies=("expert",)))
    evaluate(config(Path(runs[1]), policies=("expert+noise=3",), max_decisions=6))
    assert main(["eval", "compare", *runs]) == 0
    text = capsys.readouterr().out
    assert [line.split()[:2] for line in text.splitlines()[2:5]] == [["total", "6"], ["far", "3"], ["near", "3"]]
    assert "The runs differ in max_decisions: 0 | 6" in text
    assert main(["eval", "table", *runs, "--out", str(tmp_path / "all")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^expert +near +100 ", text, re.MULTILINE) and re.search(r"^expert\+noise=3 +near ", text, re.M)
    assert "s/episode" in text and (tmp_path / "all" / "report.html").exists()
