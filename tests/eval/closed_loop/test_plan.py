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
        ({"policies": ("expert", "cem(horizon=long)")}, "option horizon='long' of 'cem' should be like its default, 8"),
        ({"policies": ("point_simulator:half_blind(skil=1)",)}, "no option 'skil'; did you mean 'skill'"),
        ({"tasks": ("fra",)}, "point_simulator:Point has no task 'fra'; did you mean 'far'"),
        ({"max_decisions": 99}, "ends its episodes after 24 decisions, before max_decisions 99"),
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
