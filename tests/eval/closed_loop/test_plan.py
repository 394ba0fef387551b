from __future__ import annotations

import re
from pathlib import Path

import pytest
from point_runs import config

from kairos_env.eval.closed_loop.engine import evaluate, make_plan
from kairos_env.eval.closed_loop.player import episode_seed


def test_policies_meet_the_same_starts_and_luck(tmp_path: Path) -> None:
    jobs = make_plan(config(tmp_path)).jobs
    assert len(set(jobs)) == 12 and {job.initial_state for job in jobs} == {300_000, 300_001, 300_002}
    assert len({episode_seed(job) for job in jobs}) == 6, "one for each task and initial state"


def test_policies_options_and_tasks_are_checked_before_the_first_job(tmp_path: Path) -> None:
    for changes, message in [
        ({"policies": ("cem(horizn=3)",)}, "'cem' has no option 'horizn'; did you mean 'horizon'"),
        ({"policies": ("expert", "cem(horizon=long)")}, "option horizon='long' of 'cem' should be like its default, 6"),
        ({"policies": ("point_simulator:half_blind(skil=1)",)}, "no option 'skil'; did you mean 'skill'"),
        ({"tasks": ("fra",)}, "point_simulator:Point has no task 'fra'; did you mean 'far'"),
        ({"max_decisions": 99}, "ends its episodes after 24 decisions, before max_decisions 99"),
        ({"conditions": ("windi",)}, "point_simulator:Point has no condition 'windi'; did you mean 'windy'"),
        ({"simulator_options": {"trobule": {}}}, "did you mean 'trouble'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            evaluate(config(tmp_path / "a", **changes))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no model 'kairos-tini'.*did you mean 'kairos-tiny'"):
        evaluate(config(tmp_path / "a", policies=("policy",), model="kairos-tini"))
    assert not (tmp_path / "a").exists()


def test_all_tasks_are_evaluated_unless_some_are_named(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, tasks=()))
    assert {job.task for job in plan.jobs} == {"near", "far"}


def test_conditions_share_starts_and_luck_and_are_told_apart(tmp_path: Path) -> None:
    report = evaluate(config(tmp_path, policies=("expert",), tasks=("near",), conditions=("calm", "windy")))
    assert report.cell("expert", "near", "calm").successes == 3
    assert report.cell("expert", "near", "windy").successes == 0, "blown out of the goal"
    jobs = [row.job for row in report.rows]
    assert len({episode_seed(job) for job in jobs}) == 3 and len(jobs) == 6
    assert re.search(r"policy +task +condition +success %", report.table())
    with pytest.raises(KeyError, match="no results of policy 'expert' on task 'near'; there are expert/near/calm"):
        report.cell("expert", "near")
    usual = evaluate(config(tmp_path, policies=("expert",), tasks=("near",)))
    assert usual.cell("expert", "near").successes == 3 and len(usual.rows) == 9


def test_a_table_without_conditions_has_no_column_of_them(tmp_path: Path) -> None:
    report = evaluate(config(tmp_path, policies=("expert",), tasks=("near",), episodes=1))
    assert "condition" not in report.table()
    assert "condition" not in (tmp_path / "results.jsonl").read_text()
