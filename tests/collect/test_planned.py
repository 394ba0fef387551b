"""Recordings of what a planner gets wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kairos_env.collect.planned import PlannerErrors, planner_errors
from kairos_env.collect.plans import RecordConfig, plan_episodes
from kairos_env.collect.recorder import record, record_episode
from kairos_env.datasets.hdf5.recorded import EpisodeFile
from kairos_env.records import Episode
from kairos_env.runs import read_jsonl
from kairos_env.sims.tabletop.env import RobosuiteEnv

SEARCH = "cem(horizon=2;population=4;iterations=1;elites=2;keep=1;execute=2)"


@pytest.fixture(scope="module")
def played() -> Iterator[Episode]:
    """An episode of five decisions of the planner and five of the expert."""
    config = RecordConfig("", from_planner=SEARCH, tasks={"push": 1.0}, episodes=1)
    env = RobosuiteEnv(max_episode_steps=5)
    yield record_episode(env, plan_episodes(config, env)[0], config)
    env.close()


def test_the_expert_goes_on_where_the_planner_has_failed(played: Episode) -> None:
    assert played.source == SEARCH and len(played) == 10
    labels = played.labels
    assert labels["planned"].tolist() == [True] * 5 + [False] * 5
    expert = labels["expert_actions"][5:-1, played.label_tasks.index("push")]
    assert np.array_equal(played.actions[5:], expert)
    assert not np.array_equal(played.actions[:5], labels["expert_actions"][:5, played.label_tasks.index("push")])


def test_what_the_model_imagined_of_each_decision_is_labelled(played: Episode) -> None:
    imagined = played.labels["imagined_rewards"]
    assert imagined.shape == played.labels["imagined_success"].shape == (10,)
    assert np.ptp(imagined[:5]) > 0 and not imagined[5:].any()
    assert np.abs(imagined[:5] - played.rewards[:5]).max() < 0.5, "in the unit of the true reward"


def test_failures_and_imagined_successes_are_errors(played: Episode) -> None:
    def errors(success: list[int], imagined: list[float]) -> PlannerErrors:
        labels = {
            **played.labels,
            "imagined_success": np.array(imagined + [0.0] * 5, np.float32),
            "imagined_rewards": played.rewards + np.float32(0.25),
        }
        solved = np.array(success + [1] * 5, np.bool_)  # the expert's success is none of the planner's
        return planner_errors(dataclasses.replace(played, success=solved, labels=labels))

    failed = errors([0, 0, 0, 0, 0], [0.1, 0.2, 0.9, 0.6, 0.4])
    assert (failed.failed, failed.surprises, failed.any) == (True, 2, True)
    assert failed.optimism == pytest.approx(0.25)
    assert errors([0, 0, 1, 1, 1], [0.0, 0.6, 0.9, 0.9, 0.9]) == PlannerErrors(False, 1, pytest.approx(0.25))
    assert not errors([0, 0, 1, 1, 1], [0.0, 0.4, 0.9, 0.9, 0.9]).any


@pytest.mark.slow
def test_only_what_was_wrong_is_kept_and_a_continued_recording_is_the_same(tmp_path: Path) -> None:
    config = RecordConfig(
        str(tmp_path / "whole"),
        from_planner=SEARCH,
        options={"max_episode_steps": 8},
        tasks={"reach": 1.0},
        episodes=4,
        workers=1,
    )
    whole = record(config, progress=False)
    rows = {row["episode"]: row for row in read_jsonl(tmp_path / "whole" / "episodes.jsonl")}
    kept = [number for number, row in sorted(rows.items()) if row["kept"]]
    assert len(rows) == 4 and all(row["kept"] == (row["failed"] or row["surprises"] > 0) for row in rows.values())
    assert not whole.short and whole.tasks == {"reach": (len(kept), 4)}
    for episodes in (2, 4):
        record(dataclasses.replace(config, out=str(tmp_path / "parts"), episodes=episodes), progress=False)
    first, second = (EpisodeFile(tmp_path / name) for name in ("whole", "parts"))
    assert len(first) == len(second) == len(kept)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.actions, b.actions) and np.array_equal(a.images["scene"], b.images["scene"])
        assert np.array_equal(a.labels["imagined_success"], b.labels["imagined_success"])
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model_digest"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from_planner": "policy"}, "'policy' is no planner over the world model"),
        ({"from_planner": "cem(horizn=3)"}, "'cem' has no option 'horizn'; did you mean 'horizon'"),
        ({"from_planner": "cem", "behaviours": {"expert": 1.0}}, "leave behaviours out"),
        ({"from_planner": "cem", "keep": "successes"}, "leave keep out"),
        ({"from_planner": "cem", "layout": "libero"}, "no place for what a planner imagined"),
    ],
)
def test_what_would_be_ignored_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecordConfig("", **changes)  # type: ignore[arg-type]
