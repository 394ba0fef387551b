"""Small LeRobot datasets of both layouts, written field for field as LeRobot writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FRONT, WRIST = "observation.images.front", "observation.images.wrist-cam.left"
SIZES = {FRONT: (48, 64), WRIST: (32, 32)}
BOOKKEEPING = {"timestamp": "float32"} | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")


@dataclass
class Raw:
    """Episodes before they are stored: feature -> one array an episode."""

    lengths: tuple[int, ...]
    features: dict[str, dict[str, Any]]
    columns: dict[str, list[np.ndarray]]
    images: dict[str, list[np.ndarray]]
    tasks: tuple[str, ...] = ("lift the cube", "push it")
    fps: int = 10
    extra: dict[str, list[Any]] = field(default_factory=dict)  # columns of the episode table

    def task(self, episode: int) -> int:
        return episode % len(self.tasks)

    def bookkeeping(self, episode: int) -> dict[str, np.ndarray]:
        length, before = self.lengths[episode], sum(self.lengths[:episode])
        return {
            "timestamp": (np.arange(length) / self.fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": before + np.arange(length),
            "task_index": np.full(length, self.task(episode)),
        }


def sample(lengths: tuple[int, ...] = (7, 12, 5), seed: int = 0, video: bool = True) -> Raw:
    """Two cameras, a named state, an action, a feature of two axes, outcomes."""
    rng = np.random.default_rng(seed)
    state, action = ["shoulder.pos", "elbow.pos", "x_m", "gripper.pos"], ["shoulder.pos", "elbow.pos", "gripper.pos"]
    features: dict[str, dict[str, Any]] = {
        key: {
            "dtype": "video" if video else "image",
            "shape": [*SIZES[key], 3],
            "names": ["height", "width", "channels"],
        }
        for key in SIZES
    }
    features |= {
        "observation.state": {"dtype": "float32", "shape": [4], "names": state},
        "observation.tactile": {"dtype": "float32", "shape": [2, 3], "names": None},
        "action": {"dtype": "float32", "shape": [3], "names": action},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
    }
    features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in BOOKKEEPING.items()}

    def numbers(*shape: int) -> list[np.ndarray]:
        return [rng.normal(size=(length, *shape)).astype(np.float32) for length in lengths]

    columns = {"observation.state": numbers(4), "observation.tactile": numbers(2, 3), "action": numbers(3)}
    ends = [np.arange(length) == length - 1 for length in lengths]
    columns |= {"next.reward": [end.astype(np.float32) for end in ends], "next.success": ends}
    images = {
        key: [film(length, *SIZES[key], offset=10 * e + 3 * k) for e, length in enumerate(lengths)]
        for k, key in enumerate(SIZES)
    }
    return Raw(lengths, features, columns, images)


def film(length: int, height: int, width: int, offset: int) -> np.ndarray:
    """uint8 (length, H, W, 3); every frame shows its number (plus ``offset``) as squares that survive a codec."""
    frames = np.full((length, height, width, 3), 60, np.uint8)
    for t in range(length):
        frames[t, 8:, :, 2] = (7 * t) % 200
        for bit in range(8):
            on = (t + offset) >> bit & 1
            frames[t, :8, 4 * bit : 4 * bit + 4] = 230 if on else 20
    return frames


def number_shown(image: np.ndarray) -> int:
    """What `film` wrote into a frame."""
    return sum(int(image[1:7, 4 * bit + 1 : 4 * bit + 3].mean() > 125) << bit for bit in range(8))


def write_mp4(path: Path, frames: np.ndarray, fps: float, options: Mapping[str, str] | None = None) -> None:
    """H.264 with B-frames and long groups of pictures: the hard case for exact seeking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = dict(options or {"g": "9", "bf": "3", "crf": "18"})
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def decoded(path: Path) -> np.ndarray:
    """Every frame of a file, one after the other."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def arrow(values: np.ndarray) -> pa.Array:
    """(N,) or (N, 1) as plain numbers, (N, D) as lists of fixed size, more axes as lists of lists."""
    if values.ndim == 1 or values.shape[1:] == (1,):
        return pa.array(values.reshape(-1))
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    kind = pa.from_numpy_dtype(values.dtype)
    for _ in range(values.ndim - 1):
        kind = pa.list_(kind)
    return pa.array(values.tolist(), kind)


def rows(raw: Raw, episode: int) -> pa.Table:
    """The rows of one episode."""
    columns: dict[str, pa.Array] = {}
    for key, feature in raw.features.items():
        if feature["dtype"] == "image":
            pictures = enumerate(raw.images[key][episode])
            entries = [{"bytes": png(image), "path": f"frame-{t:06d}.png"} for t, image in pictures]
            columns[key] = pa.array(entries, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns |= {key: arrow(values[episode]) for key, values in raw.columns.items()}
    return pa.table(columns | {key: arrow(values) for key, values in raw.bookkeeping(episode).items()})


def statistics(raw: Raw, episodes: list[int]) -> dict[str, Any]:
    """LeRobot's entries: over all axes but the last; count is frames."""
    found = {}
    for key in raw.columns:
        values = np.concatenate([raw.columns[key][e].astype(np.float64) for e in episodes])
        count, flat = len(values), values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
        found[key] = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
        found[key] |= {f"q{round(100 * q):02d}": np.quantile(flat, q, axis=0) for q in (0.01, 0.1, 0.5, 0.9, 0.99)}
        found[key] = {name: value.tolist() for name, value in found[key].items()} | {"count": [count]}
    for key in raw.images:  # cameras: shape (3, 1, 1), in [0, 1]
        values = np.concatenate([raw.images[key][e] for e in episodes]) / 255.0
        moments = {name: getattr(values, name)((0, 1, 2)).reshape(3, 1, 1) for name in ("min", "max", "mean", "std")}
        found[key] = {name: value.tolist() for name, value in moments.items()} | {"count": [len(values)]}
    return found


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")


def info(raw: Raw, version: str, **more: Any) -> dict[str, Any]:
    totals = {"total_episodes": len(raw.lengths), "total_frames": sum(raw.lengths), "total_tasks": len(raw.tasks)}
    splits = {"train": f"0:{len(raw.lengths)}"}
    head = {"codebase_version": version, "robot_type": "odd_arm", "fps": raw.fps, "chunks_size": 1000}
    return head | totals | {"splits": splits, "features": raw.features} | more


def write_v3(root: Path, raw: Raw, episodes_per_file: int = 2, row_groups: bool = True) -> Path:
    """v3.0, with two episodes in a file so that there are several files; ``row_groups``: one for each episode."""
    video = [key for key, f in raw.features.items() if f["dtype"] == "video"]
    meta = info(
        raw,
        "v3.0",
        data_files_size_in_mb=100,
        video_files_size_in_mb=200,
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if video else None,
    )
    write_json(root / "meta/info.json", meta)
    everything = list(range(len(raw.lengths)))
    write_json(root / "meta/stats.json", statistics(raw, everything))
    table = pa.table({"task_index": pa.array(range(len(raw.tasks))), "task": pa.array(raw.tasks)})
    # LeRobot reads this table with pandas and needs the text to be its index.
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
        for name, (kind, numpy_kind) in kinds.items()
    ]
    labels = [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}]
    pandas = {"index_columns": ["task"], "column_indexes": labels, "columns": columns, "pandas_version": "2.3.3"}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), root / "meta/tasks.parquet")
    listed: list[dict[str, Any]] = []
    for file, first in enumerate(range(0, len(raw.lengths), episodes_per_file)):
        members = everything[first : first + episodes_per_file]
        tables = [rows(raw, episode) for episode in members]
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, tables[0].schema, compression="snappy") as writer:
            for one in tables if row_groups else [pa.concat_tables(tables)]:
                writer.write_table(one)
        for key in video:
            frames = np.concatenate([raw.images[key][episode] for episode in members])
            write_mp4(root / f"videos/{key}/chunk-000/file-{file:03d}.mp4", frames, raw.fps)
        for episode in members:
            start = sum(raw.lengths[first:episode]) / raw.fps
            before, length = sum(raw.lengths[:episode]), raw.lengths[episode]
            row: dict[str, Any] = {"episode_index": episode, "tasks": [raw.tasks[raw.task(episode)]], "length": length}
            row |= {"data/chunk_index": 0, "data/file_index": file}
            row |= {"dataset_from_index": before, "dataset_to_index": before + length}
            for key in video:
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": file}
                row |= {f"videos/{key}/from_timestamp": start, f"videos/{key}/to_timestamp": start + length / raw.fps}
            for key, values in statistics(raw, [episode]).items():
                row |= {f"stats/{key}/{name}": value for name, value in values.items()}
            row |= {key: values[episode] for key, values in raw.extra.items()}
            listed.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(listed), path)
    return root


def write_v2(root: Path, raw: Raw) -> Path:
    """v2.1: files of their own for each episode."""
    video = [key for key, f in raw.features.items() if f["dtype"] == "video"]
    meta = info(
        raw,
        "v2.1",
        total_videos=len(video) * len(raw.lengths),
        total_chunks=1,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4" if video else None,
    )
    write_json(root / "meta/info.json", meta)
    listed: dict[str, list[dict[str, Any]]] = {"episodes": [], "episodes_stats": []}
    listed["tasks"] = [{"task_index": i, "task": text} for i, text in enumerate(raw.tasks)]
    for episode, length in enumerate(raw.lengths):
        path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(raw, episode), path)
        for key in video:
            write_mp4(root / f"videos/chunk-000/{key}/episode_{episode:06d}.mp4", raw.images[key][episode], raw.fps)
        task = raw.tasks[raw.task(episode)]
        listed["episodes"].append({"episode_index": episode, "tasks": [task], "length": length})
        listed["episodes_stats"].append({"episode_index": episode, "stats": statistics(raw, [episode])})
    for name, lines in listed.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"meta/{name}.jsonl").write_text(text, encoding="utf-8")
    return root
