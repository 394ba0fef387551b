"""From the names in a LeRobot dataset to a RobotSpec: an explicit map that can be printed, saved and edited.

A dataset says which features it has, and often neither their units nor their limits. `guess.guess` proposes a
`FeatureMap`; what it cannot know stays open (a unit is then empty) and is for the user to fill in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.datasets.foreign import read_json
from kairos_env.datasets.lerobot.features import BOOKKEEPING, Feature
from kairos_env.datasets.lerobot.meta import LABEL, Meta
from kairos_env.datasets.statistics import DatasetStatistics
from kairos_env.records import Array, Camera, Field, RobotSpec
from kairos_env.runs import did_you_mean

# A guessed range reaches beyond what was seen by this share of it, at each end.
MARGIN = 0.05

# Ranges that are limits by convention; data that touch both ends of one are not given a margin.
_WHOLE_RANGES = ((-1.0, 1.0), (0.0, 1.0), (-100.0, 100.0), (0.0, 100.0))


class MapError(ValueError):
    """A map that does not fit its dataset, or features that no map can be guessed for."""


@dataclass(frozen=True)
class ScalarMap:
    """One scalar of the proprioception or action vector: where it comes from and what it means.

    Args:
        feature, index: scalar ``index`` of the flattened feature.
        name, unit, kind, frame: as in `records.Field`; an empty unit says that nobody knows.
        low, high: its range in the dataset's own units; None for the range of the statistics, widened.
    """

    feature: str
    index: int
    name: str
    low: float | None = None
    high: float | None = None
    unit: str = ""
    kind: str = "other"
    frame: str = ""


@dataclass(frozen=True)
class CameraMap:
    """One camera of the robot.

    Args:
        name: in the RobotSpec.
        feature: for example ``"observation.images.front"``.
        rotate: degrees counter-clockwise, 0, 90, 180 or 270; done before resizing.
        height, width: size of what the model sees, by PIL's bilinear filter; None leaves it as it is stored.
    """

    name: str
    feature: str
    rotate: int = 0
    height: int | None = None
    width: int | None = None

    def size(self, stored: tuple[int, ...]) -> tuple[int, int]:
        """(height, width) of what `picture` makes of images of this stored shape."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        return (stored[1], stored[0]) if self.rotate % 180 else (stored[0], stored[1])

    def picture(self, stored: Array) -> Array:
        """uint8 (H, W, 3) as stored -> uint8 (H', W', 3) as the model sees it."""
        image = np.rot90(stored, self.rotate // 90) if self.rotate else stored
        height, width = self.size(stored.shape)
        if image.shape[:2] == (height, width):
            return np.ascontiguousarray(image)
        from PIL import Image

        whole = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class FeatureMap:
    """Map from the features of one LeRobot dataset to a robot.

    Args:
        robot: name of the RobotSpec.
        control_rate_hz: decisions per second, those of the dataset; nothing is resampled.
        cameras, proprio, action: what to use, in the order in which the model sees it.
        instruction: for episodes to which the dataset gives no task text.
        reward, success: features with the outcome of each action; None if there are none.
    """

    robot: str
    control_rate_hz: float
    cameras: tuple[CameraMap, ...]
    proprio: tuple[ScalarMap, ...]
    action: tuple[ScalarMap, ...]
    instruction: str = ""
    reward: str | None = None
    success: str | None = None

    @property
    def scalars(self) -> tuple[ScalarMap, ...]:
        return self.proprio + self.action

    @property
    def number_features(self) -> list[str]:
        """The features of all scalars, each once."""
        return list(dict.fromkeys(s.feature for s in self.scalars))

    @property
    def open_ranges(self) -> list[str]:
        """The features of scalars whose range still has to come from statistics, each once."""
        return list(dict.fromkeys(s.feature for s in self.scalars if s.low is None or s.high is None))

    def check(self, meta: Meta) -> None:
        """Compares the map with a dataset.

        Raises:
            MapError: what does not fit, one line each.
        """
        problems = [*self._camera_problems(meta.features), *self._number_problems(meta.features)]
        for what, items in (("camera", self.cameras), ("proprio", self.proprio), ("action", self.action)):
            names = [item.name for item in items]  # type: ignore[attr-defined]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                problems.append(f"{what} names must differ: {', '.join(twice)}")
        if not self.action:
            problems.append("no action: a map needs at least one scalar to control")
        if self.control_rate_hz != meta.control_rate_hz:
            problems.append(
                f"control_rate_hz is {self.control_rate_hz:g}, but the dataset has {meta.control_rate_hz:g} frames/s"
            )
        if problems:
            raise MapError("the map does not fit the dataset:\n  " + "\n  ".join(problems))

    def _camera_problems(self, features: Mapping[str, Feature]) -> list[str]:
        problems = []
        legal = [key for key, f in features.items() if f.is_camera and not f.is_depth]
        for camera in self.cameras:
            if camera.feature not in legal:
                depth = camera.feature in features and features[camera.feature].is_depth
                what = "is a depth map, which is not read" if depth else "is not a camera of this dataset"
                problems.append(
                    f"camera {camera.name!r}: {camera.feature!r} {what}; {did_you_mean(camera.feature, legal)}"
                )
            if camera.rotate not in (0, 90, 180, 270):
                problems.append(f"camera {camera.name!r}: rotate is {camera.rotate}, expected 0, 90, 180 or 270")
            sides = (camera.height, camera.width)
            if sides != (None, None) and not all(isinstance(n, int) and n > 0 for n in sides):
                problems.append(f"camera {camera.name!r}: height, width are {sides}, expected two numbers or neither")
        return problems

    def _number_problems(self, features: Mapping[str, Feature]) -> list[str]:
        problems = []
        legal = list(numeric(features))
        for scalar in self.scalars:
            if scalar.feature not in legal:
                what = f"{scalar.name!r}: {scalar.feature!r} is not a feature of numbers"
                problems.append(f"{what}; {did_you_mean(scalar.feature, legal)}")
            elif not 0 <= scalar.index < features[scalar.feature].dim:
                dim = features[scalar.feature].dim
                problems.append(f"{scalar.name!r}: index {scalar.index}, but {scalar.feature!r} has {dim} values")
        for what, key in (("reward", self.reward), ("success", self.success)):
            if key is not None and (key not in legal or features[key].dim != 1):
                problems.append(f"{what}: {key!r} is not a feature of one number; {did_you_mean(key, legal)}")
        return problems

    def with_ranges(self, statistics: Mapping[str, DatasetStatistics]) -> FeatureMap:
        """Fills in missing ranges, see `widened`; those of features without statistics stay open.

        Args:
            statistics: feature -> statistics of all its scalars.
        """
        return dataclasses.replace(
            self,
            proprio=tuple(_with_range(s, statistics) for s in self.proprio),
            action=tuple(_with_range(s, statistics) for s in self.action),
        )

    def spec(self, meta: Meta) -> RobotSpec:
        """The robot that the dataset shows through this map.

        Raises:
            MapError: the map does not fit, or a range is missing or empty.
        """
        self.check(meta)
        return RobotSpec(
            name=self.robot,
            cameras=tuple(Camera(c.name, *c.size(meta.features[c.feature].shape)) for c in self.cameras),
            proprio=tuple(map(_field, self.proprio)),
            action=tuple(map(_field, self.action)),
            control_rate_hz=float(self.control_rate_hz),
            instruction=self.instruction,
        )

    def save(self, path: str | Path) -> None:
        """Writes JSON with one scalar a line, so that people can edit it."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The text that `load` reads."""
        lines = []
        for key, value in dataclasses.asdict(self).items():
            if isinstance(value, (list, tuple)):
                rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in value)
                lines.append(f'  "{key}": [\n{rows}\n  ]' if value else f'  "{key}": []')
            else:
                lines.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: str | Path) -> FeatureMap:
        """Reads a saved map.

        Raises:
            OSError: no such file.
            MapError: the file is not a map; an unknown key is named with the nearest known one.
        """
        try:
            data = read_json(Path(path))
            if not isinstance(data, dict):
                raise TypeError("it is not a JSON object")
            for key, kind in (("cameras", CameraMap), ("proprio", ScalarMap), ("action", ScalarMap)):
                data[key] = tuple(_build(kind, row) for row in data.get(key, ()))
            found: FeatureMap = _build(cls, data)
            return found
        except (TypeError, ValueError) as error:
            raise MapError(f"{path} is not a feature map: {error}") from None

    def table(self) -> str:
        """The map for people: one line a camera or scalar."""
        rows = [("camera", c.name, c.feature, _turned(c), "", "") for c in self.cameras]
        for what, scalars in (("proprio", self.proprio), ("action", self.action)):
            rows += [(what, s.name, f"{s.feature}[{s.index}]", _range(s), s.unit or "?", s.kind) for s in scalars]
        return table(("", "name", "from", "range", "unit", "kind"), rows)


def widened(low: float, high: float) -> tuple[float, float]:
    """A range around ``low ... high`` with room at both ends.

    -1 ... 1, 0 ... 1, -100 ... 100 and 0 ... 100 are limits already and stay. A value that never changed
    gets its own size (at least 1) to both sides, so that noise on it is not blown up by normalisation.
    """
    if (low, high) in _WHOLE_RANGES:
        return low, high
    room = MARGIN * (high - low) if high > low else max(abs(low), 1.0)
    return low - room, high + room


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest entry."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def numeric(features: Mapping[str, Feature]) -> dict[str, Feature]:
    """The features that can be a state, an action or an outcome."""
    return {
        key: f for key, f in features.items() if f.is_numeric and key not in BOOKKEEPING and not key.startswith(LABEL)
    }


def _with_range(scalar: ScalarMap, statistics: Mapping[str, DatasetStatistics]) -> ScalarMap:
    if scalar.feature not in statistics:
        return scalar
    seen = statistics[scalar.feature]
    low, high = widened(float(seen.min[scalar.index]), float(seen.max[scalar.index]))
    return dataclasses.replace(
        scalar,
        low=low if scalar.low is None else scalar.low,
        high=high if scalar.high is None else scalar.high,
    )


def _field(scalar: ScalarMap) -> Field:
    if scalar.low is None or scalar.high is None:
        raise MapError(f"{scalar.name!r} has no range; give it low and high, or statistics")
    try:
        return Field(scalar.name, scalar.low, scalar.high, scalar.unit, scalar.kind, scalar.frame)
    except (TypeError, ValueError) as error:
        raise MapError(f"the map gives an impossible range: {error}") from None


def _build(kind: Any, row: Any) -> Any:
    known = [f.name for f in dataclasses.fields(kind)]
    for key in row:
        if key not in known:
            raise ValueError(f"unknown key {key!r}; {did_you_mean(key, known)}")
    return kind(**row)


def _turned(camera: CameraMap) -> str:
    parts = [f"rotated {camera.rotate}"] if camera.rotate else []
    parts += [f"resized to {camera.height} x {camera.width}"] if camera.height else []
    return ", ".join(parts) or "as stored"


def _range(scalar: ScalarMap) -> str:
    ends = ["?" if end is None else f"{end:.4g}" for end in (scalar.low, scalar.high)]
    return " ... ".join(ends)
