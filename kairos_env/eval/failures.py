"""What went wrong in a failed episode, judged from the simulator's true state.

`Watch` condenses an episode of pick and place into a few numbers for `Row.extra`; `failure_kind` names a
failure by them. Whoever plays episodes calls ``watch.see(info["privileged"])`` after the reset and after
every step, and merges ``watch.extra()`` into the row. The fields, all in metres, rounded to millimetres:

    objects         of each object of interest that the state knows (fixtures and regions are not in it):
        nearest         least distance of gripper and object's centre in the episode
        moved           greatest distance from where the object stood first
        lifted          greatest height above where it stood first
        end_lifted      that height at the end
        end_distance    distance of gripper and object at the end
    other_lifted    greatest height gain of any object that the task does not name; absent if there is none
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kairos_env.records import Array

NEAR = 0.10
"""A gripper this close to an object's centre (a bowl is held by its rim) has come near it."""
MOVED = 0.02
"""An object has been touched if it was ever this far from its first place."""
LIFTED = 0.03
"""An object is lifted if it is this much higher than it stood."""

KINDS: Mapping[str, str] = {
    "never near": f"the gripper never came within {100 * NEAR:.0f} cm of an object of the task",
    "wrong object": "an object that the task does not name was lifted, and none that it names",
    "missed": "the gripper came near, but no object of the task moved",
    "pushed": "an object of the task was moved and never lifted",
    "dropped": "an object of the task was lifted and is down again, not where it belongs",
    "misplaced": "an object of the task was let go at another height than it had, not where it belongs",
    "out of time": "an object of the task was still held when the time was over",
    "unknown": "no object of the task was followed: a drawer, a stove, or nothing was recorded",
}
"""Kind of failure -> what it means, from the earliest stage of a pick and place to the last."""


@dataclass
class Watch:
    """Follows the objects of one episode.

    Every `see` takes ``info["privileged"]``: ``eef_position`` (3,), ``objects`` name -> ``position`` (3,)
    in metres, and ``interest``, the names of the objects that the task speaks of.
    """

    _start: dict[str, Array] = field(default_factory=dict)
    _objects: dict[str, dict[str, float]] = field(default_factory=dict)
    _other_lifted: dict[str, float] = field(default_factory=dict)

    def see(self, privileged: Mapping[str, Any]) -> None:
        """Takes in one state."""
        hand = np.asarray(privileged["eef_position"], np.float64)
        for name, body in privileged["objects"].items():
            place = np.asarray(body["position"], np.float64)
            start = self._start.setdefault(name, place.copy())
            height = float(place[2] - start[2])
            if name not in privileged["interest"]:
                self._other_lifted[name] = max(self._other_lifted.get(name, 0.0), height)
                continue
            distance = float(np.linalg.norm(place - hand))
            seen = self._objects.setdefault(name, {"nearest": distance, "moved": 0.0, "lifted": 0.0})
            seen["nearest"] = min(seen["nearest"], distance)
            seen["moved"] = max(seen["moved"], float(np.linalg.norm(place - start)))
            seen["lifted"] = max(seen["lifted"], height)
            seen["end_lifted"], seen["end_distance"] = height, distance

    def extra(self) -> dict[str, Any]:
        """The fields for `Row.extra`."""
        objects = {name: {key: round(x, 3) for key, x in seen.items()} for name, seen in sorted(self._objects.items())}
        fields: dict[str, Any] = {"objects": objects}
        if self._other_lifted:
            fields["other_lifted"] = round(max(self._other_lifted.values()), 3)
        return fields


def failure_kind(extra: Mapping[str, Any]) -> str:
    """One of `KINDS` for an episode that failed, from the `Row.extra` that a `Watch` has filled.

    With several objects, the one that came furthest decides: the kind says which stage was not passed.
    """
    objects = list(extra.get("objects", {}).values())
    if not objects:
        return "unknown"
    lifted = [seen for seen in objects if seen["lifted"] >= LIFTED]
    if not lifted:
        if extra.get("other_lifted", 0.0) >= LIFTED:
            return "wrong object"
        if any(seen["moved"] >= MOVED for seen in objects):
            return "pushed"
        return "missed" if any(seen["nearest"] <= NEAR for seen in objects) else "never near"
    raised = [seen for seen in lifted if abs(seen["end_lifted"]) >= LIFTED]
    if any(seen["end_lifted"] > 0 and seen["end_distance"] <= NEAR for seen in raised):
        return "out of time"
    return "misplaced" if raised else "dropped"
