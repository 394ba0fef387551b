"""A failed pick and place is named by how far it came."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from kairos_env.eval.failures import KINDS, Watch, failure_kind

Point = tuple[float, float, float]


def watched(hand: Sequence[Point], bowl: Sequence[Point], can: Sequence[Point] | None = None) -> dict[str, object]:
    """What a watch reports of an episode; the plate stands 0.3 m beside the bowl, the can is none of the task's."""
    watch = Watch()
    for step, place in enumerate(hand):
        objects = {"bowl": {"position": bowl[step]}, "plate": {"position": (0.3, 0, 0)}}
        if can is not None:
            objects["can"] = {"position": can[step]}
        watch.see({"eef_position": place, "objects": objects, "interest": ["bowl", "plate", "drawer_region"]})
    return json.loads(json.dumps(watch.extra()))


AWAY, UP, DOWN = (0.0, 0.0, 0.5), (0.0, 0.0, 0.2), (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "hand", "bowl", "can"),
    [
        ("never near", [AWAY, AWAY], [DOWN, DOWN], None),
        ("missed", [AWAY, (0, 0, 0.05), AWAY], [DOWN] * 3, None),
        ("pushed", [AWAY, DOWN, AWAY], [DOWN, DOWN, (0.05, 0, 0)], None),
        ("wrong object", [AWAY, DOWN], [DOWN, (0.05, 0, 0)], [DOWN, UP]),
        ("dropped", [AWAY, UP, UP], [DOWN, UP, (0.1, 0, 0)], [DOWN, DOWN, DOWN]),
        ("misplaced", [AWAY, UP, AWAY], [DOWN, UP, (0.3, 0.1, 0.05)], None),
        ("misplaced", [AWAY, UP, AWAY], [DOWN, UP, (0.3, 0.1, -0.4)], None),
        ("out of time", [AWAY, UP, UP], [DOWN, UP, UP], None),
    ],
)
def test_kind(kind: str, hand: list[Point], bowl: list[Point], can: list[Point] | None) -> None:
    assert failure_kind(watched(hand, bowl, can)) == kind
    assert kind in KINDS


def test_nothing_to_follow_is_unknown() -> None:
    assert failure_kind({}) == "unknown"
    watch = Watch()
    watch.see({"eef_position": AWAY, "objects": {"can": {"position": DOWN}}, "interest": ["cabinet_top_region"]})
    assert watch.extra() == {"objects": {}, "other_lifted": 0.0}
    assert failure_kind(watch.extra()) == "unknown"


def test_fields_are_what_the_module_promises() -> None:
    extra = watched([AWAY, (0, 0, 0.25), (0, 0, 0.1)], [DOWN, (0, 0, 0.2), (0, 0.05, 0.02)])
    assert extra["objects"]["bowl"] == {  # type: ignore[index]
        "nearest": 0.05,
        "moved": 0.2,
        "lifted": 0.2,
        "end_lifted": 0.02,
        "end_distance": 0.094,
    }
    assert "other_lifted" not in extra
