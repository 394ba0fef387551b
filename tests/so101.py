"""A LeRobot dataset as somebody with an SO-101 arm records one: six joints in degrees, two cameras, v2.1 or v3.0.

The arm is drawn in perspective from its joints: it reaches for a cube, closes the gripper and carries the cube away.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
TASK = "Put the red cube on the blue plate."
CAMERAS = ("front", "wrist")
_UPPER, _LOWER, _HAND, _BASE = 0.116, 0.135, 0.10, 0.10  # metres


def write_so101(
    root: Path,
    version: str = "v3.0",
    episodes: int = 10,
    seconds: float = 10,
    fps: int = 30,
    size: tuple[int, int] = (480, 640),
) -> Path:
    """Writes the dataset; ``size`` is (height, width)."""
    frames = int(seconds * fps)
    rows, films = [], []
    for episode in range(episodes):
        actions, states, cubes = _motion(np.random.default_rng(episode), frames, fps)
        first = episode * frames
        rows.append(
            {
                "action": pa.array(actions.tolist(), pa.list_(pa.float32())),
                "observation.state": pa.array(states.tolist(), pa.list_(pa.float32())),
                "timestamp": pa.array(np.arange(frames, dtype=np.float32) / fps),
                "frame_index": np.arange(frames),
                "episode_index": np.full(frames, episode),
                "index": np.arange(first, first + frames),
                "task_index": np.zeros(frames, int),
            }
        )
        films.append((states, cubes))
    (_write_v3 if version == "v3.0" else _write_v2)(Path(root), rows, films, frames, fps, size)
    return Path(root)


def _motion(rng: np.random.Generator, frames: int, fps: int) -> tuple[Any, Any, Any]:
    """Actions and states (T, 6), places of the cube (T, 3)."""
    angle, reach = rng.uniform(-40, 40), rng.uniform(0.16, 0.24)
    goal = rng.uniform(15, 35) * rng.choice([-1, 1]) - angle / 2
    rest = np.array([rng.uniform(-5, 5), -60, 60, 40, 0, 5])
    at_cube, at_plate = _joints_at(angle, reach, 0.02), _joints_at(goal, 0.2, 0.05)
    above = _joints_at(angle, reach, 0.10)
    roll = rng.uniform(-30, 30)
    way = [(0, rest), (0.22, [*above, roll, 60]), (0.38, [*at_cube, roll, 60]), (0.48, [*at_cube, roll, 15])]
    way += [(0.62, [*above, roll, 15]), (0.8, [*at_plate, 0, 15]), (0.88, [*at_plate, 0, 60]), (1.0, rest)]
    times, values = np.array([t for t, _ in way]), np.array([v for _, v in way], float)
    times[1:-1] += rng.uniform(-0.03, 0.03, len(times) - 2)
    now = np.linspace(0, 1, frames)
    part = np.clip(np.searchsorted(times, now, side="right") - 1, 0, len(times) - 2)
    share = (now - times[part]) / (times[part + 1] - times[part])
    smooth = (share**3 * (10 - 15 * share + 6 * share**2))[:, None]
    actions = values[part] + smooth * (values[part + 1] - values[part])
    states = actions.copy()
    for frame in range(1, frames):  # the follower lags behind the leader
        states[frame] = states[frame - 1] + min(1.0, 9.0 / fps) * (actions[frame - 1] - states[frame - 1])
    states += rng.normal(0, 0.15, states.shape)
    cubes = np.empty((frames, 3))
    cube = np.array([reach * np.cos(np.radians(angle)), reach * np.sin(np.radians(angle)), 0.0])
    for frame in range(frames):
        held = times[3] <= now[frame] <= times[6]
        if held:
            cube = _points(states[frame])[-1] - [0, 0, 0.02]
        elif now[frame] > times[6]:
            cube = np.array([cube[0], cube[1], 0.0])
        cubes[frame] = cube
    return actions.astype(np.float32), states.astype(np.float32), cubes


def _joints_at(pan: float, reach: float, height: float) -> list[float]:
    """Pan, lift, elbow and wrist [degrees] that put the finger tips there, pointing down."""
    x, z = reach, height + _HAND - _BASE
    far = np.hypot(x, z)
    bend = np.arccos(np.clip((_UPPER**2 + _LOWER**2 - far**2) / (2 * _UPPER * _LOWER), -1, 1))
    up = np.arctan2(z, x) + np.arccos(np.clip((_UPPER**2 + far**2 - _LOWER**2) / (2 * _UPPER * far), -1, 1))
    lift, elbow = 90 - np.degrees(up), 90 - np.degrees(bend)
    return [pan, lift, elbow, 90 - (lift + elbow)]


def _points(joints: Any) -> Any:
    """Shoulder, elbow, wrist and finger tips (4, 3) in metres."""
    pan, lift, elbow, wrist = np.radians(joints[:4].astype(float))
    pitch = np.array([np.pi / 2 - lift, -lift - elbow, -lift - elbow - wrist])
    lengths = (_UPPER, _LOWER, _HAND)
    radius, height, found = 0.0, _BASE, [(0.0, _BASE)]
    for length, angle in zip(lengths, pitch, strict=True):
        radius, height = radius + length * np.cos(angle), height + length * np.sin(angle)
        found.append((radius, height))
    return np.array([(r * np.cos(pan), r * np.sin(pan), h) for r, h in found])


class _View:
    """A pinhole camera.

    Args:
        eye, target: metres.
        size: (height, width).
        focal: in image heights.
    """

    def __init__(self, eye: Any, target: Any, size: tuple[int, int], focal: float, up: Any = (0, 0, 1)) -> None:
        forward = np.subtract(target, eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, up)
        right /= np.linalg.norm(right)
        self._axes = np.stack([right, np.cross(forward, right), forward])
        self._eye, self._size, self._focal = np.asarray(eye), size, focal * size[0]

    def __call__(self, points: Any) -> list[tuple[float, float]]:
        x, y, depth = self._axes @ (np.asarray(points, float) - self._eye).T
        depth = np.maximum(depth, 0.01)
        return list(
            zip(self._size[1] / 2 + self._focal * x / depth, self._size[0] / 2 + self._focal * y / depth, strict=True)
        )


def _picture(camera: str, joints: Any, cube: Any, size: tuple[int, int]) -> Any:
    points = _points(joints)
    if camera == "front":
        view = _View((0.5, 0.05, 0.4), (0.13, 0, 0.07), size, 1.0)
    else:
        back = points[-2] - 0.35 * (points[-1] - points[-2])
        out = np.array([np.cos(np.radians(joints[0])), np.sin(np.radians(joints[0])), 0]) * 0.06
        view = _View(back + out, points[-1], size, 0.8, up=(out[0], out[1], 1e-3))
    image = Image.new("RGB", (size[1], size[0]), (176, 160, 138))
    draw = ImageDraw.Draw(image)
    unit = size[0] / 480
    ground = np.array([(x, y, 0) for x in (0, 0.35) for y in (-0.25, 0.25)])
    draw.polygon([view(ground)[i] for i in (0, 1, 3, 2)], fill=(205, 200, 190))
    for x in np.arange(0.05, 0.35, 0.1):
        draw.line(view([(x, -0.25, 0), (x, 0.25, 0)]), fill=(150, 150, 150), width=max(1, round(3 * unit)))
    circle = [(0.22 + 0.045 * np.cos(a), 0.045 * np.sin(a), 0) for a in np.linspace(0, 2 * np.pi, 24)]
    draw.polygon(view(circle), fill=(40, 70, 190))
    half, corners = 0.016, []
    for high in (0, 2 * half):
        corners.append([(cube[0] + dx, cube[1] + dy, cube[2] + high) for dx, dy in _SQUARE * half])
    for i in range(4):
        sides = [corners[0][i], corners[0][(i + 1) % 4], corners[1][(i + 1) % 4], corners[1][i]]
        draw.polygon(view(sides), fill=(150 + 10 * i, 20, 20))
    draw.polygon(view(corners[1]), fill=(225, 45, 40))
    if camera == "front":
        draw.polygon(
            view([(-0.04, -0.05, 0), (-0.04, 0.05, 0), (0, 0.04, _BASE), (0, -0.04, _BASE)]), fill=(30, 30, 30)
        )
        for start, end, thick, colour in zip(points, points[1:], (26, 22, 16), _LINKS, strict=False):
            draw.line(view([start, end]), fill=colour, width=max(1, round(thick * unit)))
    open_by = 0.004 + 0.03 * float(joints[5]) / 100
    side = np.array([-np.sin(np.radians(joints[0] + joints[4])), np.cos(np.radians(joints[0] + joints[4])), 0])
    for sign in (-1, 1):
        finger = [points[-1] * 0.35 + points[-2] * 0.65 + sign * side * open_by, points[-1] + sign * side * open_by]
        draw.line(view(finger), fill=(245, 190, 40), width=max(1, round((9 if camera == "front" else 22) * unit)))
    return np.asarray(image)


_SQUARE = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])
_LINKS = ((235, 150, 30), (240, 170, 40), (60, 60, 60))


def _film(path: Path, camera: str, films: list[Any], fps: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "23", "g": "30"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for states, cubes in films:
            for joints, cube in zip(states, cubes, strict=True):
                picture = av.VideoFrame.from_ndarray(_picture(camera, joints, cube, size), format="rgb24")
                out.mux(stream.encode(picture))
        out.mux(stream.encode())


def _info(version: str, episodes: int, frames: int, fps: int, size: tuple[int, int]) -> dict[str, Any]:
    joints = [f"{name}.pos" for name in JOINTS]
    numbers = {key: {"dtype": "float32", "shape": [6], "names": joints} for key in ("action", "observation.state")}
    videos = {
        f"observation.images.{name}": {
            "dtype": "video",
            "shape": [*size, 3],
            "names": ["height", "width", "channels"],
            "info": {"video.fps": fps, "video.codec": "h264", "video.is_depth_map": False},
        }
        for name in CAMERAS
    }
    counts = {
        key: {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
        for key in ("timestamp", "frame_index", "episode_index", "index", "task_index")
    }
    v3, chunk = version == "v3.0", "chunk-{chunk_index:03d}/file-{file_index:03d}"
    old = "chunk-{episode_chunk:03d}"
    return {
        "codebase_version": version,
        "robot_type": "so101_follower",
        "total_episodes": episodes,
        "total_frames": episodes * frames,
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": f"data/{chunk}.parquet" if v3 else f"data/{old}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{{video_key}}/{chunk}.mp4"
        if v3
        else f"videos/{old}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
        "features": numbers | videos | counts,
    }


def _statistics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for key in ("action", "observation.state"):
        values = np.concatenate([np.array(row[key].to_pylist(), np.float64) for row in rows])
        moments = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        found[key] = {name: value.tolist() for name, value in moments.items()} | {"count": [len(values)]}
    return found


def _write_v3(root: Path, rows: list[Any], films: list[Any], frames: int, fps: int, size: tuple[int, int]) -> None:
    count = len(rows)
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(_info("v3.0", count, frames, fps, size)))
    (root / "meta/stats.json").write_text(json.dumps(_statistics(rows)))
    pq.write_table(pa.table({"task_index": [0], "__index_level_0__": [TASK]}), root / "meta/tasks.parquet")
    pq.write_table(pa.concat_tables([pa.table(row) for row in rows]), root / "data/chunk-000/file-000.parquet")
    table: dict[str, Any] = {
        "episode_index": list(range(count)),
        "tasks": [[TASK]] * count,
        "length": [frames] * count,
        "data/chunk_index": [0] * count,
        "data/file_index": [0] * count,
        "dataset_from_index": [e * frames for e in range(count)],
        "dataset_to_index": [(e + 1) * frames for e in range(count)],
    }
    for camera in CAMERAS:
        key = f"videos/observation.images.{camera}"
        table |= {f"{key}/chunk_index": [0] * count, f"{key}/file_index": [0] * count}
        table[f"{key}/from_timestamp"] = [e * frames / fps for e in range(count)]
        table[f"{key}/to_timestamp"] = [(e + 1) * frames / fps for e in range(count)]
        _film(root / f"{key}/chunk-000/file-000.mp4", camera, films, fps, size)
    pq.write_table(pa.table(table), root / "meta/episodes/chunk-000/file-000.parquet")


def _write_v2(root: Path, rows: list[Any], films: list[Any], frames: int, fps: int, size: tuple[int, int]) -> None:
    for folder in ("meta", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(_info("v2.1", len(rows), frames, fps, size)))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TASK}) + "\n")
    lines = [json.dumps({"episode_index": e, "tasks": [TASK], "length": frames}) + "\n" for e in range(len(rows))]
    (root / "meta/episodes.jsonl").write_text("".join(lines))
    lines = [json.dumps({"episode_index": e, "stats": _statistics([row])}) + "\n" for e, row in enumerate(rows)]
    (root / "meta/episodes_stats.jsonl").write_text("".join(lines))
    for episode, (row, film) in enumerate(zip(rows, films, strict=True)):
        pq.write_table(pa.table(row), root / f"data/chunk-000/episode_{episode:06d}.parquet")
        for camera in CAMERAS:
            path = root / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"
            _film(path, camera, [film], fps, size)


if __name__ == "__main__":
    import sys

    write_so101(Path(sys.argv[1]), *sys.argv[2:3])
