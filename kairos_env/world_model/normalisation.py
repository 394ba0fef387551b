"""Physical units to and from the numbers that world-action weights were trained on, by their published statistics.

With a dimension's lower and upper bound a, b, mean m and standard deviation s:

    "min/max", "q01/q99", "-1/1" (any constant a/b)    x' = 2 (x - a) / (b - a) - 1,  or x - a where b - a < 1e-4
    "z-score"                                          x' = (x - m) / (s + 1e-8)

The way in clamps x' to [-5, 5]; the way out does not clamp, so that one undoes the other inside that range.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kairos_env.records import Array
from kairos_env.runs import did_you_mean

MODES = {"min/max": ("min", "max"), "q01/q99": ("q01", "q99"), "z-score": ("mean", "std")}
"""The modes that read statistics, and which two they read."""

_CLAMP = 5.0
_LEAST_RANGE = 1e-4  # a dimension that moves less carries no signal; scaling it up would amplify noise
_STD_FLOOR = 1e-8

Part = Literal["state", "action"]


@dataclass(frozen=True)
class LinearMap:
    """x' = scale x + offset, per dimension, or per step of a chunk and dimension.

    Args:
        scale, offset: float64 (D,), or (N, D) for step-wise statistics; scale > 0.
    """

    scale: Array
    offset: Array

    @property
    def dim(self) -> int:
        """D."""
        return int(self.scale.shape[-1])

    def forward(self, x: Any) -> Array:
        """Physical (..., D), or (..., N, D) if step-wise -> float32 of that shape, clamped to [-5, 5]."""
        return np.clip(self._checked(x) * self.scale + self.offset, -_CLAMP, _CLAMP).astype(np.float32)

    def backward(self, x: Any) -> Array:
        """Inverse of `forward`, without a clamp: float32, physical units."""
        return ((self._checked(x) - self.offset) / self.scale).astype(np.float32)

    def _checked(self, x: Any) -> Array:
        array = np.asarray(x, np.float64)
        if array.shape[-self.scale.ndim :] != self.scale.shape:
            want = ", ".join(map(str, self.scale.shape))
            raise ValueError(f"values of shape {array.shape} do not fit statistics of shape (..., {want})")
        if not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))[0].tolist()
            raise ValueError(f"values hold {array[tuple(bad)]} at index {bad}; only finite numbers are normalised")
        return array


@dataclass(frozen=True)
class Normaliser:
    """Both maps of one robot.

    Args:
        state: of proprioception (..., P); always over the whole data set.
        action: of action chunks (..., N, A), or of actions (..., A) if it is not step-wise.
        episodes, transitions: how much data the statistics come from.
    """

    state: LinearMap
    action: LinearMap
    episodes: int
    transitions: int

    def to_dict(self) -> dict[str, Any]:
        maps = {"state": self.state, "action": self.action}
        lists = {name: {"scale": m.scale.tolist(), "offset": m.offset.tolist()} for name, m in maps.items()}
        return {**lists, "episodes": self.episodes, "transitions": self.transitions}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Normaliser:
        """Inverse of `to_dict`."""
        state, action = (
            LinearMap(np.array(data[name]["scale"]), np.array(data[name]["offset"])) for name in ("state", "action")
        )
        return cls(state, action, data["episodes"], data["transitions"])

    @classmethod
    def from_file(cls, path: str | Path, mode: str, stepwise: bool = False) -> Normaliser:
        """Reads a published statistics file; see `from_statistics`."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON file of statistics: {error}") from None
        try:
            return cls.from_statistics(data, mode, stepwise)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_statistics(cls, data: Mapping[str, Any], mode: str, stepwise: bool = False) -> Normaliser:
        """From the published layout.

        Args:
            data: ``state | action -> "default" -> {global_,stepwise_}{min,max,q01,q99,mean,std}``, global ones
                (D,) and step-wise ones (N, D), beside ``num_episodes`` and ``num_transition``.
            mode: ``"min/max"``, ``"q01/q99"``, ``"z-score"``, or a constant range ``"a/b"`` for all dimensions.
            stepwise: whether actions have statistics of their own at every step of a chunk.

        Raises:
            ValueError: an unknown mode, a missing entry, statistics that contradict each other or are not finite.
        """
        counts = []
        for name in ("num_episodes", "num_transition"):
            count = _entry(data, name)
            if not isinstance(count, int):
                raise ValueError(f"{name} is {count!r}, expected a whole number")
            counts.append(count)
        state = _linear_map(data, "state", mode, "global_")
        action = _linear_map(data, "action", mode, "stepwise_" if stepwise else "global_")
        return cls(state, action, *counts)


def check_mode(mode: str) -> str:
    """Returns ``mode``, or raises ValueError with the legal ones."""
    if mode not in MODES and _constant(mode) is None:
        raise ValueError(
            f"unknown normalisation {mode!r}; {did_you_mean(mode, MODES)} A constant like '-1/1' is legal, too"
        )
    return mode


def _constant(mode: str) -> tuple[float, float] | None:
    """The bounds that a mode like ``"-1/1"`` spells out."""
    try:
        low, high = map(float, mode.split("/"))
    except ValueError:
        return None
    if not (np.isfinite([low, high]).all() and high - low >= _LEAST_RANGE):
        raise ValueError(f"normalisation {mode!r} needs finite bounds, the lower one first")
    return low, high


def _linear_map(data: Mapping[str, Any], part: Part, mode: str, prefix: str) -> LinearMap:
    check_mode(mode)
    names = MODES.get(mode, MODES["min/max"])  # a constant range takes only the shape from the file
    first, second = (_statistic(data, part, prefix + name) for name in names)
    if first.shape != second.shape:
        raise ValueError(f"{part}: {prefix}{names[0]} has shape {first.shape}, {prefix}{names[1]} has {second.shape}")
    if mode == "z-score":
        if (second < 0).any():
            raise ValueError(f"{part}: {prefix}std has a negative value: {second.tolist()}")
        scale = 1 / (second + _STD_FLOOR)
        return LinearMap(scale, -first * scale)
    bounds = _constant(mode)
    low, high = (first, second) if bounds is None else (np.full_like(first, value) for value in bounds)
    if (low > high).any():
        raise ValueError(f"{part}: {prefix}{names[0]} lies above {prefix}{names[1]} in dimension {_where(low > high)}")
    still = high - low < _LEAST_RANGE
    scale = 2 / np.where(still, 2, high - low)
    return LinearMap(scale, np.where(still, -low, -1 - scale * low))


def _statistic(data: Mapping[str, Any], part: Part, name: str) -> Array:
    """One entry as float64, (D,) or step-wise (N, D)."""
    entry = _entry(data, part, "default", name)
    try:
        array = np.asarray(entry, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{part}: {name} is no array of numbers") from None
    rank = 2 if name.startswith("stepwise_") else 1
    if array.ndim != rank or array.size == 0:
        raise ValueError(f"{part}: {name} has shape {array.shape}, expected {'(N, D)' if rank == 2 else '(D,)'}")
    if not np.isfinite(array).all():
        raise ValueError(f"{part}: {name} is not finite in dimension {_where(~np.isfinite(array))}")
    return array


def _entry(data: Any, *keys: str) -> Any:
    for depth, key in enumerate(keys):
        if not isinstance(data, Mapping) or key not in data:
            path, have = "/".join(keys[: depth + 1]), sorted(data) if isinstance(data, Mapping) else data
            raise ValueError(f"the statistics lack {path!r}; there is {have}")
        data = data[key]
    return data


def _where(wrong: Array) -> int:
    return int(np.argwhere(wrong)[0][-1])
