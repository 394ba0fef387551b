from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import benchmark_points as benchmark
import pytest
from paths import ROOT, TESTS
from point_runs import config
from split_env import Points

from kairos_env.eval.closed_loop.engine import evaluate
from kairos_env.eval.closed_loop.workers import JobQueue
from kairos_env.eval.rows import Job, Row, read_rows


def test_kill_9_of_a_run_with_workers_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path\nfrom benchmark_points import config, play\n"
        f"if __name__ == '__main__': play(config(Path({str(tmp_path)!r}) / 'r', workers=2, slots=2, episodes=3))\n"
    )
    tests = str(TESTS)
    paths = os.pathsep.join([str(Path(tests).parent), tests])
    mark = str(uuid.uuid4())
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": paths, "SPLIT_ENV_STEP_S": "0.02", "SPLIT_ENV_MARK": mark},
    )
    deadline = time.monotonic() + 120
    while len(read_rows(tmp_path / "r")) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    while _with_variable(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _with_variable(mark)
    before = len(read_rows(tmp_path / "r"))
    assert 6 <= before < 84
    new: list[Row] = []
    benchmark.play(benchmark.config(tmp_path / "r", episodes=3, slots=2), on_row=new.append)
    assert len(new) == 84 - before


def _with_variable(value: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if value.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("workers", "slots"), [(0, 1), (0, 3), (2, 2)])
def test_a_mishap_is_an_error_and_touches_nobody_else(tmp_path: Path, workers: int, slots: int) -> None:
    names = ("raise_trouble", "die_trouble", "hang_trouble", *(("kill_trouble",) if workers else ()))
    points = Points(1, extra=names)
    report = benchmark.play(benchmark.config(tmp_path, workers=workers, slots=slots, time_limit_s=3), points)
    assert len(read_rows(tmp_path)) == 14 + len(names)
    rows = {row.job.task.rpartition("/")[2]: row for row in read_rows(tmp_path)}
    assert {name for name, row in rows.items() if row.status == "error"} == set(names)
    assert all(row.status == "success" for name, row in rows.items() if name not in names)
    assert rows["raise_trouble"].message == "FloatingPointError: the physics exploded"
    assert "exit code 3" in rows["die_trouble"].message
    assert "took longer than 3 s" in rows["hang_trouble"].message
    if workers:
        assert rows["kill_trouble"].message == "the worker process died (signal 9)"
    assert rows["raise_trouble"].extra["dimension"] == "noise", "an error's row says what it was about"
    assert len(report.errors) == len(names)


def test_a_queue_keeps_a_slot_at_its_scene() -> None:
    jobs = [Job("p", "s", f"{scene}{i}", i, 0) for scene in "aab" for i in range(2)]
    jobs = list(dict.fromkeys(jobs)) + [Job("p", "s", "c0", 9, 0)]
    queue = JobQueue(jobs, lambda job: job.task[0])
    first, second = queue.take(), queue.take()
    assert (first.task, second.task) == ("a0", "b0"), "another scene for another slot"
    assert queue.take(first).task == "a1" and queue.take(second).task == "b1"
    assert queue.take(first).task == "c0" and not queue
    assert JobQueue(jobs, lambda job: "").take() == jobs[0]


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


def test_a_killed_run_leaves_no_computing_worker(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from kairos_env.eval.closed_loop.config import EvalConfig\n"
        "from kairos_env.eval.closed_loop.engine import evaluate\n"
        "if __name__ == '__main__':\n"
        f"    evaluate(EvalConfig(output={str(tmp_path / 'r')!r}, policies=('point_simulator:thinker',), episodes=1,\n"
        "             simulator='point_simulator:Point', workers=2, tasks=('near', 'far')))\n"
    )
    notes = tmp_path / "thinking"
    notes.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "POINT_NOTES": str(notes)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 120
    while len(list(notes.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    workers = [int(path.name) for path in notes.iterdir()]
    assert len(workers) == 2
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
