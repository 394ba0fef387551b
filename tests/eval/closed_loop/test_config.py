from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_points import config, play
from split_env import Points


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
