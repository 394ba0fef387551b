from __future__ import annotations

from pathlib import Path

import benchmark_points as benchmark
from benchmark_points import Together
from point_runs import config, outcomes
from split_env import Points

from kairos_env.eval.closed_loop.engine import evaluate
from kairos_env.eval.rows import read_rows


def test_a_hanging_answer_ends_before_the_episode_would(tmp_path: Path) -> None:
    settings = benchmark.config(tmp_path, time_limit_s=600, answer_limit_s=0.5, dimensions=("noise",))
    benchmark.play(settings, Points(1, extra=("hang_trouble",)))
    messages = [row.message for row in read_rows(tmp_path) if row.status == "error"]
    assert messages == ["TimeoutError: no answer from the simulator in 0.5 s"]


def test_ready_episodes_are_decided_in_one_pass(tmp_path: Path) -> None:
    benchmark.play(benchmark.config(tmp_path / "one", policies=("benchmark_points:Together",), slots=6))
    assert not Together.passes, "one by one is the default"
    benchmark.play(benchmark.config(tmp_path / "many", policies=("benchmark_points:Together",), slots=6, batch=4))
    assert {size for _, size in Together.passes} == {4} and max(rows for rows, _ in Together.passes) <= 4
    assert benchmark.outcomes(tmp_path / "one") == benchmark.outcomes(tmp_path / "many")


def test_slots_of_one_process_decide_together(tmp_path: Path) -> None:
    one = evaluate(config(tmp_path / "one", policies=("random",)))
    many = evaluate(config(tmp_path / "many", policies=("random",), slots=4, batch=3))
    assert outcomes(many.rows) == outcomes(one.rows)
