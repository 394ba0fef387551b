from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmark_points import config, outcomes, play
from paths import TESTS
from split_env import Points


def test_ray_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    tests = TESTS
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), str(tests)]))
    points = Points(1, extra=("raise_trouble", "kill_trouble"))
    local = play(config(tmp_path / "local", workers=1), points)
    cluster = play(config(tmp_path / "ray", workers=2, slots=2, cluster="ray"), points)
    assert outcomes(tmp_path / "ray") == outcomes(tmp_path / "local") and cluster.table() == local.table()
