from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_points import Together, config, play
from paths import TESTS
from split_env import SPEC, Points

from kairos_env.cli.main import main
from kairos_env.eval.closed_loop.config import LiberoConfig
from kairos_env.eval.closed_loop.engine import describe
from kairos_env.eval.closed_loop.libero import plan_libero
from kairos_env.eval.closed_loop.plan import SetupFailed
from kairos_env.eval.closed_loop.player import episode_seed
from kairos_env.eval.closed_loop.protocols import PROTOCOLS
from kairos_env.eval.closed_loop.workers import JobQueue
from kairos_env.eval.report.report import Report, make_report
from kairos_env.eval.rows import Job, Row, read_rows
from kairos_env.records import Camera, SpecMismatch
from kairos_env.runs import ConfigMismatch


def outcomes(folder: Path | str) -> list[tuple[Any, ...]]:
    """All of a row that is not a time."""
    return [(r.job, r.status, r.decisions, r.episode_return, r.extra.get("objects")) for r in read_rows(folder)]


def summarize(folder: Path, benchmarks: Any) -> Report:
    return make_report(read_rows(folder), benchmarks)


def test_rows_say_all_that_tables_need(tmp_path: Path) -> None:
    report = play(config(tmp_path, videos=1, suites=("libero_object",), dimensions=("camera", "noise")))
    rows = read_rows(tmp_path)
    assert len(rows) == 4 and {row.status for row in rows} == {"success"}
    extra = rows[0].extra
    assert extra["suite"] == "libero_object" and extra["dimension"] == "camera" and extra["base_task"] == "base"
    assert rows[0].job.initial_state == 0
    assert extra["instruction"] == "do t0_camera" and extra["assets"] == "original" and extra["mujoco"] == "0.0"
    assert {"protocol": "published", "prompt": "official", "rendering": "official"}.items() <= extra.items()
    assert set(extra["objects"]) == {"cup"} and extra["ours"] is False
    films = [row.extra["film"] for row in rows if "film" in row.extra]
    assert len(films) == 2 and all((tmp_path / f"{film}.{end}").exists() for film in films for end in ("png", "mp4"))
    assert "camera" in report.table() and (tmp_path / "report.html").exists()
    assert summarize(tmp_path, Points().benchmarks).table() == report.table()


def test_the_table_does_not_depend_on_workers_slots_order_or_shards(tmp_path: Path) -> None:
    points = Points(1)
    policies = ("expert", "expert+noise=2")
    one = play(config(tmp_path / "one", policies=policies, episodes=2), points)
    assert len(outcomes(tmp_path / "one")) == 2 * 2 * 14
    assert len({row.episode_return for row in read_rows(tmp_path / "one")}) > 50, "starts and policies differ"
    others: dict[str, dict[str, Any]] = {"slots": {"slots": 5}, "two": {"workers": 2, "slots": 2}}
    others["four"] = {"workers": 4, "policies": policies[::-1]}
    tables = [
        play(config(tmp_path / name, **({"policies": policies, "episodes": 2} | more)), points).table()
        for name, more in others.items()
    ]
    for i in (2, 3, 1):
        tables.append(
            play(config(tmp_path / "s", policies=policies, episodes=2, shard=f"{i}/3", slots=2), points).table()
        )
    assert len(list((tmp_path / "s").glob("results-*-of-3.jsonl"))) == 3
    for name in [*others, "s"]:
        assert outcomes(tmp_path / name) == outcomes(tmp_path / "one")
    assert {table for table in tables if table != one.table()} == set(tables[-3:-1]), "only a part of the shards"
    assert (tmp_path / "s/report.json").read_text() == (tmp_path / "one/report.json").read_text()


def test_shards_are_parts_of_the_whole() -> None:
    whole = plan_libero(LiberoConfig(policies=("expert",), episodes=2), Points(5))  # type: ignore[arg-type]
    parts = [
        plan_libero(LiberoConfig(policies=("expert",), episodes=2, shard=f"{i}/4"), Points(5))  # type: ignore[arg-type]
        for i in (1, 2, 3, 4)
    ]
    assert sorted(job for part in parts for job in part.jobs) == sorted(whole.jobs)
    assert max(len(part.jobs) for part in parts) - min(len(part.jobs) for part in parts) <= 2


def test_a_start_follows_from_task_and_trial() -> None:
    settings = LiberoConfig(policies=("expert",), episodes=5)
    plan = plan_libero(settings, Points(1))  # type: ignore[arg-type]
    mine = [job for job in plan.jobs if job.task == "libero-plus/libero_object/t0_camera"]
    assert [(job.initial_state, job.seed) for job in mine] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    assert len({episode_seed(job) for job in plan.jobs}) == len(plan.jobs)
    later = plan_libero(dataclasses.replace(settings, first_initial_state=2, episodes=2), Points(1))  # type: ignore[arg-type]
    assert [job.initial_state for job in later.jobs[:2]] == [2, 0]
    assert episode_seed(mine[0]) == episode_seed(dataclasses.replace(mine[0], policy="random"))


def test_a_sample_is_even_and_always_the_same() -> None:
    settings = LiberoConfig(policies=("expert",), sample=14)
    plan = plan_libero(settings, Points(6))  # type: ignore[arg-type]
    groups = {(plan.labels[job.task]["suite"], plan.labels[job.task]["dimension"]) for job in plan.jobs}
    assert len(plan.jobs) == len(groups) == 14
    larger = plan_libero(dataclasses.replace(settings, sample=42), Points(6))  # type: ignore[arg-type]
    assert set(plan.jobs) < set(larger.jobs)
    lacking = plan_libero(dataclasses.replace(settings, sample=12), Points(6, lacking=("light",)))  # type: ignore[arg-type]
    assert set(lacking.jobs) == {job for job in plan.jobs if plan.labels[job.task]["dimension"] != "light"}


def test_kill_9_at_20_random_moments_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, settings = Points(8), config(tmp_path / "killed", policies=("expert", "expert+noise=2"), slots=2)
    play(dataclasses.replace(settings, output=str(tmp_path / "whole")), points)
    monkeypatch.setenv("SPLIT_ENV_STEP_S", "0.001")
    chance, context = random.Random(5), multiprocessing.get_context("fork")
    results = Path(settings.output) / "results.jsonl"
    for _ in range(20):
        size = results.stat().st_size + chance.randrange(2000) if results.exists() else 0
        process = context.Process(target=play, args=(settings, points))
        process.start()
        while process.is_alive() and (results.stat().st_size if results.exists() else 0) <= size:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    before = read_rows(settings.output)
    assert 20 < len(before) < 224
    monkeypatch.delenv("SPLIT_ENV_STEP_S")
    new: list[Row] = []
    report = play(settings, points, on_row=new.append)
    assert len(new) == 224 - len(before)
    assert outcomes(settings.output) == outcomes(tmp_path / "whole")
    assert len(results.read_text().splitlines()) == 224, "nothing was run twice"
    assert report.table() == summarize(tmp_path / "whole", points.benchmarks).table()


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
    play(config(tmp_path / "r", episodes=3, slots=2), on_row=new.append)
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
    report = play(config(tmp_path, workers=workers, slots=slots, time_limit_s=3), points)
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


def test_a_hanging_answer_ends_before_the_episode_would(tmp_path: Path) -> None:
    settings = config(tmp_path, time_limit_s=600, answer_limit_s=0.5, dimensions=("noise",))
    play(settings, Points(1, extra=("hang_trouble",)))
    messages = [row.message for row in read_rows(tmp_path) if row.status == "error"]
    assert messages == ["TimeoutError: no answer from the simulator in 0.5 s"]


def test_errors_are_tried_again_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLIT_ENV_MARK", uuid.uuid4().hex)
    points, settings = Points(0, extra=("once_trouble", "raise_trouble")), config(tmp_path)
    new: list[Row] = []
    assert len(play(settings, points).errors) == 2
    play(settings, points, on_row=new.append)
    assert not new
    report = play(dataclasses.replace(settings, retry_errors=True), points, on_row=new.append)
    assert sorted(row.status for row in new) == ["error", "success"] and len(report.errors) == 1


def test_results_of_another_protocol_are_refused(tmp_path: Path) -> None:
    settings = config(tmp_path, limit=2)
    play(settings)
    for change in ({"protocol": "kairos-published"}, {"prompt": "base"}, {"rendering": "fast"}, {"batch": 4}):
        with pytest.raises(ConfigMismatch, match=next(iter(change))):
            play(dataclasses.replace(settings, **change))
    new: list[Row] = []
    play(dataclasses.replace(settings, limit=0, slots=3, policies=("random",)), on_row=new.append)
    assert len(new) == 28


def test_a_policy_with_another_model_needs_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kairos_env.policies.make.model_digest", lambda _: "one")
    settings = config(tmp_path, policies=("benchmark_points:Slow",), limit=2)
    play(settings)
    play(dataclasses.replace(settings, policies=("expert", "benchmark_points:Slow")))
    assert {row.extra["model"] for row in read_rows(tmp_path)} == {"", "kairos-tiny one"}
    monkeypatch.setattr("kairos_env.policies.make.model_digest", lambda _: "two")
    with pytest.raises(ConfigMismatch, match="with the model 'kairos-tiny one', not 'kairos-tiny two'"):
        play(settings)
    play(dataclasses.replace(settings, policies=("expert",)))


def test_protocols_are_those_that_were_published() -> None:
    from kairos_env.world_model.published.robot_settings import LIBERO

    assert PROTOCOLS["published"].max_steps["libero_10"] == 520 and PROTOCOLS["published"].wait_steps == 10
    theirs = PROTOCOLS["kairos-suites"]
    assert {suite: LIBERO.max_steps[suite] for suite in theirs.max_steps} == theirs.max_steps
    pooled = PROTOCOLS["kairos-published"]
    assert set(pooled.max_steps.values()) == {LIBERO.max_steps["libero_mix"]}
    assert (pooled.wait_steps, pooled.replan) == (LIBERO.wait_steps, LIBERO.replan) == (30, 10)


def test_an_episode_ends_at_the_limit_of_its_suite_and_protocol(tmp_path: Path) -> None:
    settings = config(tmp_path / "a", policies=("benchmark_points:Slow",), dimensions=("camera",), slots=2)
    play(settings, Points(1))
    steps = {row.extra["suite"]: (row.status, row.decisions) for row in read_rows(tmp_path / "a")}
    assert steps == {"libero_object": ("failure", 280), "libero_spatial": ("failure", 220)}
    play(dataclasses.replace(settings, output=str(tmp_path / "b"), protocol="kairos-published"), Points(1))
    assert {row.decisions for row in read_rows(tmp_path / "b")} == {520}


def test_ready_episodes_are_decided_in_one_pass(tmp_path: Path) -> None:
    play(config(tmp_path / "one", policies=("benchmark_points:Together",), slots=6))
    assert not Together.passes, "one by one is the default"
    play(config(tmp_path / "many", policies=("benchmark_points:Together",), slots=6, batch=4))
    assert {size for _, size in Together.passes} == {4} and max(rows for rows, _ in Together.passes) <= 4
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "many")


def test_world_model_policies_decide_alike_alone_and_together() -> None:
    from kairos_env.policies.policy import BatchedPolicy, example_observation
    from kairos_env.policies.world_model import WorldModelPolicy
    from kairos_env.world_model.model import WorldModel

    model = WorldModel.from_preset("debug", _square(), {"go": "go"})
    alone = [WorldModelPolicy(model, execute=2) for _ in range(3)]
    together = [WorldModelPolicy(model, execute=2) for _ in range(3)]
    assert isinstance(together[0], BatchedPolicy)
    for number, (a, b) in enumerate(zip(alone, together, strict=True)):
        a.reset(number)
        b.reset(number)
    for step in range(5):
        # the third episode begins later, and one is missing now and then
        here = [i for i in range(3) if step >= i and (step + i) % 4]
        seen = {i: example_observation(model.spec, seed=10 * step + i) for i in here}
        expected = [alone[i].act(seen[i]) for i in here]
        if here:
            actions = WorldModelPolicy.act_together([together[i] for i in here], list(seen.values()), 4)
            np.testing.assert_allclose(actions, expected, atol=1e-4)


def _square() -> Any:
    return dataclasses.replace(SPEC, cameras=(Camera("scene", 32, 32),))


def test_a_policy_of_another_robot_is_refused_before_the_first_episode(tmp_path: Path) -> None:
    with pytest.raises(SpecMismatch, match=r"cameras: \['scene'\] != \['agentview', 'eye_in_hand'\]"):
        play(config(tmp_path, policies=("policy",), model="kairos-tiny"))
    with pytest.raises(SpecMismatch, match="policy 'policy' != policy '4b"):
        play(config(tmp_path, policies=("policy", "4b(statistics=x.json)"), model="kairos-libero"))
    with pytest.raises(SpecMismatch, match="wanted robot != simulator"):
        play(config(tmp_path, policies=("policy",), model="kairos-libero"))
    assert not (tmp_path / "results.jsonl").exists()


def test_a_broken_simulator_is_no_series_of_errors(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="(?s)no GL on this machine.*kairos sims check"):
        play(config(tmp_path, simulator="split_env:BrokenEnv"))
    assert not read_rows(tmp_path)


def test_a_policy_that_cannot_be_built_is_no_series_of_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing_module"):
        play(config(tmp_path, policies=("missing_module:make",)))
    with pytest.raises(ValueError, match=r"needs the option path: replay\(path=...\)"):
        play(config(tmp_path, policies=("replay",)))
    for workers in (0, 1):
        with pytest.raises(SetupFailed, match="is no folder of demonstrations"):
            play(config(tmp_path, policies=("replay(path=nowhere)",), workers=workers))
    assert not read_rows(tmp_path)


def test_bad_requests_say_what_is_legal(tmp_path: Path) -> None:
    for changes, message in [
        ({"protocol": "publish"}, "did you mean 'published'"),
        ({"shard": "3/2"}, "expected i/n"),
        ({"slots": 0}, "slots must be at least 1"),
        ({"policies": ("polcy",)}, "did you mean 'policy'"),
        ({"benchmark": "libero", "dimensions": ("noise",)}, "unperturbed"),
        ({"policies": ()}, "no policies"),
    ]:
        with pytest.raises(ValueError, match=message):
            config(tmp_path, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="(?s)none of the 28 tasks can run.*scenes/lost.xml.*kairos sims check"):
        play(config(tmp_path), Points(lacking=tuple({task.dimension for task in Points().all})))
    with pytest.raises(ValueError, match="no task of libero-plus"):
        play(config(tmp_path, difficulties=(9,)))
    with pytest.raises(ValueError, match="(?s)no official result.*28 of 10,030.*tasks lack assets.*sample"):
        play(config(tmp_path, official=True, sample=3), Points(lacking=("light",)))


def test_tasks_without_assets_are_named_and_not_counted(tmp_path: Path) -> None:
    points = Points(1, lacking=("light",))
    text = describe(config(tmp_path), points)  # type: ignore[arg-type]
    assert re.search(r"light +0 \(1\) +0 \(1\) +0 \(2\)", text) and re.search(
        r"total +6 \(1\) +6 \(1\) +12 \(2\)", text
    )
    assert "scenes/lost.xml (2 tasks)" in text and "about" in text
    report = play(config(tmp_path), points)
    assert len(read_rows(tmp_path)) == 12 and not report.errors
    lacking = json.loads((tmp_path / "not_runnable.json").read_text())
    assert lacking["libero-plus/libero_object/t0_light"] == ["scenes/lost.xml"]
    assert "measured in this folder" in describe(config(tmp_path), points)  # type: ignore[arg-type]


def test_scenes_of_ours_take_the_place_of_the_benchmarks(tmp_path: Path) -> None:
    report = play(config(tmp_path, ours=True, dimensions=("light",)), Points(1))
    rows = read_rows(tmp_path)
    assert len(rows) == 2 and all(row.extra["ours"] and row.job.task.startswith("libero/") for row in rows)
    assert report.tables[0].ours and report.tables[0].cell().of == 0


def test_a_queue_keeps_a_slot_at_its_scene() -> None:
    jobs = [Job("p", "s", f"{scene}{i}", i, 0) for scene in "aab" for i in range(2)]
    jobs = list(dict.fromkeys(jobs)) + [Job("p", "s", "c0", 9, 0)]
    queue = JobQueue(jobs, lambda job: job.task[0])
    first, second = queue.take(), queue.take()
    assert (first.task, second.task) == ("a0", "b0"), "another scene for another slot"
    assert queue.take(first).task == "a1" and queue.take(second).task == "b1"
    assert queue.take(first).task == "c0" and not queue
    assert JobQueue(jobs, lambda job: "").take() == jobs[0]


def test_ray_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    tests = TESTS
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), str(tests)]))
    points = Points(1, extra=("raise_trouble", "kill_trouble"))
    local = play(config(tmp_path / "local", workers=1), points)
    cluster = play(config(tmp_path / "ray", workers=2, slots=2, cluster="ray"), points)
    assert outcomes(tmp_path / "ray") == outcomes(tmp_path / "local") and cluster.table() == local.table()


def test_the_command_says_what_it_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "libero-plus", "--help"]) == 0
    assert "--dimensions" in capsys.readouterr().out
    assert main(["eval", "libero-plus", "--home", str(tmp_path), "--policy", "random"]) == 2
    assert "kairos sims install" in capsys.readouterr().err
