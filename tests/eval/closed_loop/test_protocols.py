from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmark_points import config, play
from split_env import Points

from kairos_env.eval.closed_loop.protocols import PROTOCOLS
from kairos_env.eval.rows import read_rows


def test_protocols_are_those_that_were_published() -> None:
    from kairos_env.world_model.published.robot_settings import LIBERO

    assert PROTOCOLS["published"].max_steps["libero_10"] == 520 and PROTOCOLS["published"].wait_steps == 10
    assert PROTOCOLS["kairos-suites"].max_steps["libero_goal"] == 400
    pooled = PROTOCOLS["kairos-published"]
    assert set(pooled.max_steps.values()) == {520}
    assert (pooled.wait_steps, pooled.replan) == (LIBERO.wait_steps, LIBERO.replan) == (30, 10)


def test_an_episode_ends_at_the_limit_of_its_suite_and_protocol(tmp_path: Path) -> None:
    settings = config(tmp_path / "a", policies=("benchmark_points:Slow",), dimensions=("camera",), slots=2)
    play(settings, Points(1))
    steps = {row.extra["suite"]: (row.status, row.decisions) for row in read_rows(tmp_path / "a")}
    assert steps == {"libero_object": ("failure", 280), "libero_spatial": ("failure", 220)}
    play(dataclasses.replace(settings, output=str(tmp_path / "b"), protocol="kairos-published"), Points(1))
    assert {row.decisions for row in read_rows(tmp_path / "b")} == {520}
