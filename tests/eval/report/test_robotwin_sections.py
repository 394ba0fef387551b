"""RoboTwin's table by task, with mean, settings, and others' results: right values, and never called official."""

from __future__ import annotations

from typing import Any

import pytest

from kairos_env.eval.report.published_results import published_results
from kairos_env.eval.report.report import make_report
from kairos_env.eval.rows import Job, Row

RUN = {"protocol": "A", "config": "clean", "wording": "seen", "rendering": "fast", "expert_check": True}
RUN["assets"] = "not the published ones"


def rows(task: str, outcomes: str, **extra: Any) -> list[Row]:
    """An episode for each letter: success, failure, error."""
    status = {"s": "success", "f": "failure", "e": "error"}
    return [
        Row(Job("mine", "Kairos-RoboTwin-v0", task, 100000 + i, 0), status[letter], 90, seconds=36, extra=RUN | extra)
        for i, letter in enumerate(outcomes)
    ]


def test_each_task_and_their_mean_whatever_their_episodes() -> None:
    one = rows("stack_blocks_two", "ssff", seeds_left_out={"unstable": 1, "failed": 2})
    report = make_report([*one, *rows("handover_block", "sse", seeds_left_out={})])
    lines = report.table().splitlines()
    assert lines[0] == "RoboTwin 2.0, mine: protocol A: trained on 50 clean demonstrations of the one task, clean"
    table = {line.split("  ")[0]: line.split() for line in lines[2:]}
    assert table["stack_blocks_two"][1:8] == ["50", "[15,", "85]", "4", "0", "1", "unstable,"]
    assert table["handover_block"][1:7] == ["100", "[34,", "100]", "2", "1", "none"]
    assert table["mean over tasks"][3:4] == ["75.0"]  # of 50 and 100: not 4 of 6
    reasons = "the assets are not the published ones; rendering is fast; 2 of 50 tasks; 2 episodes of a task, not 100"
    assert f"No official result: {reasons}." in report.table()
    beside = report.published()
    assert "mine (here), 2 of 50 tasks" in beside and "arxiv.org/abs/2606.16533" in beside
    kairos = next(line for line in beside.splitlines() if line.startswith("Kairos "))
    assert kairos.split() == ["Kairos", "B", "96.9", "95.2", "96.1"]
    assert report.to_dict()["published"]["robotwin"][-1]["method"] == "Kairos"
    assert report.times[0]["projected_hours"] == {"1": 50.0, "64": pytest.approx(50 / 64)}
    assert "h on 64" in report.timing()


def test_ways_of_running_are_apart_and_a_missing_protocol_is_told() -> None:
    seen = rows("stack_blocks_two", "s", protocol="none")
    unseen = [Row(Job("other", *list(vars(row.job).values())[1:]), "failure", extra=row.extra) for row in seen]
    report = make_report([*seen, *unseen])
    assert "RoboTwin 2.0, mine: no protocol, clean" in report.table()
    assert "RoboTwin 2.0, other: no protocol, clean" in report.table()
    assert "no protocol says what the policy was trained on" in report.table()


def test_published_averages_follow_from_their_columns() -> None:
    apart = []
    for result in published_results("robotwin"):
        if result.total != pytest.approx(sum(result.values.values()) / 2, abs=0.06):
            apart.append(result.method)
        assert result.training in ("", "A", "B")
    assert apart == ["Being-H0.7"]  # 90.2 and 89.6, and 89.8 as published
