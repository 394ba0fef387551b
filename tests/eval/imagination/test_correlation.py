from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from point_simulator import Point

from kairos_env.eval.imagination.correlation import (
    CorrelationConfig,
    common_ground,
    correlate,
    halves,
    scatter,
    success_correlation,
)
from kairos_env.eval.rows import Job, Row


def rows(world: dict[tuple[str, str], str]) -> list[Row]:
    """("policy", "task") -> a letter for each start: s, f or e."""
    names = {"s": "success", "f": "failure", "e": "error"}
    return [
        Row(Job(policy, "x", task, start, 0), names[letter])
        for (policy, task), letters in world.items()
        for start, letter in enumerate(letters)
    ]


def test_errors_in_one_world_leave_a_start_out_of_both() -> None:
    real = rows({("a", "t"): "ssse", ("b", "t"): "ffff", ("c", "t"): "sfsf"})
    imagined = rows({("a", "t"): "esss", ("b", "t"): "ffff", ("c", "t"): "ssff"})
    result = correlate(real, imagined, ("a", "b", "c"), ("t",))
    points = {point.policy: point for point in result.points}
    assert points["a"].episodes == 2 and points["a"].real.value == points["a"].imagined.value == 1
    assert points["c"].agreement == 0.5
    assert result.pearson.value == pytest.approx(1) and result.by_task["t"].value == pytest.approx(1)
    assert result.errors == 2 and result.bias == 0 and result.agreement == pytest.approx(8 / 10)


def test_an_upside_down_imagination_is_anticorrelated() -> None:
    real = {("a", "t"): "ssss", ("b", "t"): "ffff", ("c", "t"): "sssf", ("d", "t"): "sfff"}
    turned = {key: letters.translate(str.maketrans("sf", "fs")) for key, letters in real.items()}
    result = correlate(rows(real), rows(turned), ("a", "b", "c", "d"), ("t",))
    assert result.pearson.value == pytest.approx(-1) and result.pearson.high < 0
    assert result.spearman == pytest.approx(-1) and result.agreement == 0


def test_both_worlds_are_run_and_related(tmp_path: Path) -> None:
    config = CorrelationConfig(
        output=str(tmp_path),
        policies=("expert", "expert+noise=4", "expert+noise=30", "random"),
        tasks=("near", "far"),
        episodes=6,
        model="none",
        simulator="point_simulator:Point",
        imagination="point_simulator:ImaginedPoint",
        success_threshold=0.6,
        workers=0,
    )
    result = success_correlation(config)
    assert len(result.points) == 8 and result.pearson.value > 0.5
    assert result.bias >= 0, "imagined success is easier by construction"
    again: list[Row] = []
    assert success_correlation(config, on_row=again.append) == result and not again
    written = json.loads((tmp_path / "correlation.json").read_text())
    assert written["pearson"]["value"] == pytest.approx(result.pearson.value)
    picture = scatter(result)
    assert picture.shape == (480, 700, 3) and picture.dtype == np.uint8
    assert (picture.max(-1).astype(int) - picture.min(-1) > 60).sum() > 500, "coloured points"
    assert "Pearson's r over 8 points" in result.table()
    imagined = (tmp_path / "imagined" / "results.jsonl").read_text().splitlines()
    assert 0 <= json.loads(imagined[0])["extra"]["success_probability"] <= 1


def test_needs_policies_of_different_quality() -> None:
    with pytest.raises(ValueError, match="at least two policies"):
        success_correlation(CorrelationConfig(policies=("policy",)))


class Numbered(Point):
    """A simulator with few initial states, whose tasks have longer names than the model's."""

    def tasks(self) -> dict[str, str]:
        return {"suite/near": "go near", "suite/elsewhere": "go far"}

    def initial_states(self, task: str) -> int:
        return 10


def test_tasks_are_matched_by_name_or_words_and_held_out_states_are_asked() -> None:
    here = f"{Numbered.__module__}:Numbered"
    config = CorrelationConfig(model="none", simulator=here, imagination="point_simulator:ImaginedPoint", episodes=2)
    ground = common_ground(config)
    assert ground.tasks == {"near": "suite/near", "far": "suite/elsewhere"}
    assert ground.first_initial_state == 8 and ground.max_decisions == 24
    real, imagined = halves(config, ground)
    assert real.tasks == ("suite/near", "suite/elsewhere") and imagined.tasks == ("near", "far")
    with pytest.raises(ValueError, match="10 initial states, 2 from number 8 on, and not 3"):
        common_ground(replace(config, episodes=3))
    with pytest.raises(ValueError, match="'naer'; did you mean 'near'"):
        common_ground(replace(config, tasks=("naer",)))
