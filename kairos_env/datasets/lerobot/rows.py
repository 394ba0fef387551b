"""An episode in LeRobot's terms: features, columns of rows, statistics of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kairos_env.datasets.statistics import QUANTILES
from kairos_env.media import png_bytes
from kairos_env.records import Array, Episode, RobotSpec

NUMBER_TYPES = ("float32", "float64", "int64", "bool")

FeatureEntry = dict[str, Any]  # an entry of info.json's "features"


def camera_key(name: str) -> str:
    """The feature of a camera."""
    return f"observation.images.{name}"


def features_of_robot(spec: RobotSpec, video: Mapping[str, Any] | None, outcome: bool) -> dict[str, FeatureEntry]:
    """The features that every episode of a robot has, without LeRobot's own bookkeeping.

    Args:
        spec: the robot.
        video: what is true of all its films; None where pictures are stored in the rows.
        outcome: reward and success were recorded.
    """
    features: dict[str, FeatureEntry] = {}
    for camera in spec.cameras:
        entry: FeatureEntry = {
            "dtype": "image" if video is None else "video",
            "shape": [camera.height, camera.width, 3],
            "names": ["height", "width", "channels"],
        }
        if video is not None:
            entry["info"] = {"video.height": camera.height, "video.width": camera.width, **video}
        features[camera_key(camera.name)] = entry
    if spec.proprio:
        features["observation.state"] = _numbers("float32", [f.name for f in spec.proprio])
    features["action"] = _numbers("float32", [f.name for f in spec.action])
    if outcome:
        features |= {"next.reward": _numbers("float32"), "next.success": _numbers("bool")}
    features["next.done"] = _numbers("bool")
    return features


def features_of_labels(episode: Episode) -> dict[str, FeatureEntry]:
    """A feature for each label, with a note that tells (T,), (T, 1) and (T + 1, ...) apart."""
    features: dict[str, FeatureEntry] = {}
    for name, label in episode.labels.items():
        array = np.asarray(label)
        per = "frame" if len(array) == len(episode) + 1 else "decision"
        features[f"kairos.{name}"] = {
            "dtype": array.dtype.name,
            "shape": list(array.shape[1:]) or [1],
            "names": None,
            "info": {"kairos.per": per, "kairos.scalar": array.ndim == 1},
        }
    return features


def bookkeeping_features() -> dict[str, FeatureEntry]:
    """LeRobot's own numbers of every row."""
    names = ("frame_index", "episode_index", "index", "task_index")
    return {"timestamp": _numbers("float32")} | {name: _numbers("int64") for name in names}


def columns_of(spec: RobotSpec, episode: Episode) -> dict[str, Array]:
    """FeatureEntry -> (T + 1,) or (T + 1, ...), without pictures and bookkeeping.

    The last row repeats the last decision, because LeRobot's rows have an action each; its reward is 0.
    """
    steps = len(episode)
    columns: dict[str, Array] = {}
    if spec.proprio:
        columns["observation.state"] = np.asarray(episode.proprio, np.float32)
    columns["action"] = _extended(np.asarray(episode.actions, np.float32))
    if episode.outcome_known:
        columns["next.reward"] = np.append(np.asarray(episode.rewards, np.float32), np.float32(0))
        columns["next.success"] = _extended(np.asarray(episode.success, np.bool_))
    columns["next.done"] = np.arange(steps + 1) >= steps - 1
    for name, label in episode.labels.items():
        array = np.asarray(label)
        columns[f"kairos.{name}"] = array if len(array) == steps + 1 else _extended(array)
    # LeRobot stores features of shape [1] as plain numbers
    return {key: values[:, 0] if values.shape[1:] == (1,) else values for key, values in columns.items()}


def arrow(values: Array) -> pa.Array:
    """(N,) as numbers, (N, D) as lists of fixed size, more axes as lists of lists, as LeRobot has them."""
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(array, values.shape[1])
    for axis in range(values.ndim - 1, 0, -1):
        rows = int(np.prod(values.shape[:axis]))
        array = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * values.shape[axis], array)
    return array


def png_column(pixels: Array) -> pa.Array:
    """Pictures uint8 (N, H, W, 3) inside of a table."""
    rows = [
        {"bytes": png_bytes(image, compression=6), "path": f"frame-{index:06d}.png"}
        for index, image in enumerate(pixels)
    ]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def histogram(pixels: Array) -> Array:
    """Counts of each value in each channel: uint8 (..., 3) -> int64 (3, 256)."""
    return np.stack([np.bincount(pixels[..., channel].reshape(-1), minlength=256) for channel in range(3)])


def pixel_statistics(counts: Array, frames: int) -> dict[str, Any]:
    """Exact statistics of a `histogram`, in [0, 1] and of LeRobot's shape (3, 1, 1).

    Args:
        counts: int64 (3, 256).
        frames: their number, by which LeRobot weighs datasets.
    """
    values, total, up_to = np.arange(256) / 255, counts[0].sum(), counts.cumsum(1)
    mean = counts @ values / total
    found = {
        "min": np.array([values[row > 0][0] for row in counts]),
        "max": np.array([values[row > 0][-1] for row in counts]),
        "mean": mean,
        "std": np.sqrt((counts * np.square(values - mean[:, None])).sum(1) / total),
    }
    for name, q in QUANTILES.items():
        # numpy's default: linear between the two values beside the quantile's rank
        rank = q * (total - 1)
        below, above = (
            np.array([values[np.searchsorted(row, at, "right")] for row in up_to])
            for at in (int(rank), min(int(rank) + 1, total - 1))
        )
        found[name] = below + (rank - int(rank)) * (above - below)
    return {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()} | {"count": [frames]}


def _numbers(dtype: str, names: Sequence[str] | None = None) -> FeatureEntry:
    return {"dtype": dtype, "shape": [len(names) if names else 1], "names": list(names) if names else None}


def _extended(values: Array) -> Array:
    return np.concatenate([values, values[-1:]])
