"""Episodes as LeRobot datasets: what lies in the folder, that it comes back, and that nothing broken stays behind."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paths import TESTS

from kairos_env.datasets.lerobot import files
from kairos_env.datasets.lerobot import writer as lerobot_write
from kairos_env.datasets.lerobot.reader import LeRobotData
from kairos_env.datasets.lerobot.writer import LeRobotWriter
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Camera, Episode, Field, RobotSpec

SPEC = RobotSpec(
    name="two-joint arm",
    cameras=(Camera("scene", 32, 48), Camera("wrist.left", 16, 16)),
    proprio=(
        Field("shoulder", -1.5, 1.5, "rad", "joint_position"),
        Field("elbow", -2, 2, "rad", "joint_position"),
        Field("grip", 0, 0.08, "m", "gripper", "base"),
    ),
    action=(Field("shoulder", -0.1, 0.1, "rad", "joint_position"), Field("grip", -1, 1, "1", "gripper")),
    control_rate_hz=10.0,
    instruction="do something",
)
PROVENANCE = {"model": "m", "checkpoint_sha256": "ab12", "version": "0", "policy": "random", "start": "s"}
SCENE = "observation.images.scene"


def pictures(rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    """Soft colours that move: a codec can do them well, but a neighbouring frame is not the same."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    time = 0.5 * np.arange(frames)[:, None, None, None]
    waves = np.sin(time + rng.uniform(0, 6, (3, 1, 1)) + 2 * x + y)
    return (128 + 50 * np.moveaxis(waves, 1, -1)).astype(np.uint8)


def episode(seed: int = 0, steps: int = 5, **changes: Any) -> Episode:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "images": {c.name: pictures(rng, steps + 1, c.height, c.width) for c in SPEC.cameras},
        "proprio": rng.normal(size=(steps + 1, 3)).astype(np.float32),
        "actions": rng.normal(size=(steps, 2)).astype(np.float32),
        "rewards": rng.random(steps).astype(np.float32),
        "success": rng.random(steps) < 0.5,
        "task": "push",
        "instruction": ["push it", "lift it", "do something"][seed % 3],
        "source": "noisy_expert",
        "condition": "varied",
        "seed": seed + 100,
        "initial_state": 7,
        "labels": {
            "height": rng.normal(size=steps + 1),
            "column": rng.normal(size=(steps, 1)).astype(np.float32),
            "expert_actions": rng.normal(size=(steps + 1, 3, 2)).astype(np.float32),
            "task_success": rng.random((steps, 3)) < 0.5,
            "count": rng.integers(0, 9, steps),
        },
        "label_tasks": ("push", "lift", "reach"),
    }
    return Episode(**values | changes)


def imagined(seed: int = 0, steps: int = 3) -> Episode:
    labels = {"imagined": np.arange(steps + 1) > 0, "uncertainty": np.linspace(0, 1, steps + 1, dtype=np.float32)}
    return episode(seed, steps, labels=labels, label_tasks=())


def written(folder: Path, count: int = 3, images: Any = "png", **options: Any) -> list[Episode]:
    episodes = [episode(seed, steps=4 + seed) for seed in range(count)]
    with LeRobotWriter(folder, SPEC, images=images, **options) as writer:
        assert [writer.add(one) for one in episodes] == list(range(count))
    return episodes


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(np.float64) - b).mean()))


def assert_same_numbers(a: Episode, b: Episode) -> None:
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in ("proprio", "actions", "rewards", "success")}
    assert set(a.labels) == set(b.labels)
    for name, (one, other) in (pairs | {k: (v, b.labels[k]) for k, v in a.labels.items()}).items():
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        assert one.tobytes() == other.tobytes(), name
    for name in ("task", "instruction", "source", "seed", "initial_state", "condition"):
        assert getattr(a, name) == getattr(b, name), name
    assert tuple(a.label_tasks) == tuple(b.label_tasks)


# There and back


def test_png_comes_back_bit_for_bit(tmp_path: Path) -> None:
    episodes = written(tmp_path / "data")
    found = LeRobotData(tmp_path / "data")
    assert found.spec == SPEC
    assert len(found) == len(episodes)
    for before, after in zip(episodes, found, strict=True):
        assert_same_numbers(before, after)
        for camera in SPEC.cameras:
            assert np.array_equal(before.images[camera.name], after.images[camera.name])


def test_outcome_that_nobody_recorded_stays_unknown(tmp_path: Path) -> None:
    nothing = {"rewards": np.zeros(5, np.float32), "success": np.zeros(5, np.bool_), "outcome_known": False}
    with LeRobotWriter(tmp_path / "data", SPEC, images="png") as writer:
        writer.add(episode(**nothing))
    found = LeRobotData(tmp_path / "data")
    assert not found[0].outcome_known
    assert found.mapping.reward is None and found.mapping.success is None
    assert not {"next.reward", "next.success"} & set(found.meta.features)


@pytest.mark.parametrize(("images", "least"), [("h264", 34.0), ("h264_444", 42.0)])
def test_film_comes_back_within_the_codecs_error(tmp_path: Path, images: str, least: float) -> None:
    episodes = written(tmp_path / "data", images=images)
    found = LeRobotData(tmp_path / "data")
    assert found.spec == SPEC
    for before, after in zip(episodes, found, strict=True):
        assert_same_numbers(before, after)
        for camera in SPEC.cameras:
            shown, true = after.images[camera.name], before.images[camera.name]
            # frame by frame: a film that is shifted by one would be worse than any codec
            assert min(psnr(a, b) for a, b in zip(shown, true, strict=True)) > least


def test_files_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TABLE_MB", 0)
    monkeypatch.setattr(lerobot_write, "_FILM_SECONDS", 1.3)  # the first two episodes, then one each
    monkeypatch.setattr(files, "CHUNK", 2)
    monkeypatch.setattr(lerobot_write, "_ROWS", 2)
    episodes = written(tmp_path / "data", 4, "h264")
    found_files = sorted(str(p.relative_to(tmp_path / "data")) for p in (tmp_path / "data").rglob("chunk-*/*"))
    assert [f for f in found_files if f.startswith("data/")] == [
        f"data/chunk-{c:03d}/file-{f:03d}.parquet" for c in (0, 1) for f in (0, 1)
    ]
    assert [f for f in found_files if f.startswith("meta/")] == [
        f"meta/episodes/chunk-000/file-{f:03d}.parquet" for f in (0, 1)
    ]
    places = [f"videos/{SCENE}/chunk-{c:03d}/file-{f:03d}.mp4" for c, f in ((0, 0), (0, 1), (1, 0))]
    assert [f for f in found_files if f.startswith(f"videos/{SCENE}/")] == places
    found = LeRobotData(tmp_path / "data")
    for before, after in zip(episodes, found, strict=True):
        assert_same_numbers(before, after)
        assert psnr(before.images["scene"], after.images["scene"]) > 34


def test_rate_that_is_not_whole_is_kept_beside_a_nominal_one(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, control_rate_hz=12.5)
    with pytest.raises(ValueError, match="12.5 times a second; give fps=12"):
        LeRobotWriter(tmp_path / "data", spec)
    with LeRobotWriter(tmp_path / "data", spec, fps=12, metadata={"recorder": 7}) as writer:
        writer.add(episode())
    found = LeRobotData(tmp_path / "data")
    assert found.spec == spec and found.metadata == {"recorder": 7}
    assert json.loads((tmp_path / "data/meta/info.json").read_text())["fps"] == 12
    assert_same_numbers(episode(), found[0])


# The layout


def test_rows(tmp_path: Path) -> None:
    episodes = written(tmp_path / "data")
    file = pq.ParquetFile(tmp_path / "data/data/chunk-000/file-000.parquet")
    assert file.num_row_groups == len(episodes)
    table = file.read()
    lengths = [len(e) + 1 for e in episodes]
    assert table["index"].to_pylist() == list(range(sum(lengths)))
    assert table["frame_index"].to_pylist() == [i for n in lengths for i in range(n)]
    assert table["episode_index"].to_pylist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert table["task_index"].to_pylist() == table["episode_index"].to_pylist()  # every one has its own words
    times = np.array([np.float32(i / 10) for n in lengths for i in range(n)])
    assert np.array_equal(table["timestamp"].to_numpy(), times)
    assert table.schema.field("action").type == pa.list_(pa.float32(), 2)
    assert table.schema.field("next.success").type == pa.bool_()
    assert table.schema.field("kairos.expert_actions").type == pa.list_(pa.list_(pa.float32()))
    first = {name: column.to_pylist()[: lengths[0]] for name, column in zip(table.column_names, table.columns)}
    assert first["action"][-1] == first["action"][-2] == episodes[0].actions[-1].tolist()
    assert first["next.reward"][-1] == 0
    assert first["next.success"][-1] == episodes[0].success[-1]
    assert first["next.done"] == [False] * (lengths[0] - 2) + [True, True]
    assert first[SCENE][0]["bytes"].startswith(b"\x89PNG")


def test_metadata(tmp_path: Path) -> None:
    episodes = written(tmp_path / "data", images="h264")
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    frames = sum(len(e) + 1 for e in episodes)
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 10, "two-joint arm")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, frames, 3)
    assert info["splits"] == {"train": "0:3"}
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["shoulder", "grip"]}
    camera = info["features"][SCENE]
    assert (camera["dtype"], camera["shape"]) == ("video", [32, 48, 3])
    assert camera["info"]["video.pix_fmt"] == "yuv420p"
    assert not any("/" in key for key in info["features"])
    rows = pq.read_table(tmp_path / "data/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["length"] for row in rows] == [len(e) + 1 for e in episodes]
    assert [row["dataset_from_index"] for row in rows] == [0, 5, 11]
    assert rows[1]["dataset_to_index"] == 11
    assert rows[1]["tasks"] == ["lift it"]
    assert (rows[1]["kairos/seed"], rows[1]["kairos/source"]) == (101, "noisy_expert")
    begins = [row[f"videos/{SCENE}/from_timestamp"] for row in rows]
    assert begins == [0.0, 0.5, 1.1]
    tasks = pq.read_table(tmp_path / "data/meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1, 2], "task": ["push it", "lift it", "do something"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    card = (tmp_path / "data/README.md").read_text()
    assert "Recorded episodes of two-joint arm" in card
    assert "| state | grip | m | 0 to 0.08 |" in card


def test_frames_of_a_film_lie_at_exact_times(tmp_path: Path) -> None:
    episodes = written(tmp_path / "data", images="h264")
    with av.open(str(tmp_path / f"data/videos/{SCENE}/chunk-000/file-000.mp4")) as film:
        stream = film.streams.video[0]
        assert stream.average_rate == 10
        frames = [(frame.pts * stream.time_base, frame.key_frame) for frame in film.decode(stream)]
    total = sum(len(e) + 1 for e in episodes)
    assert [time for time, _ in frames] == [Fraction(k, 10) for k in range(total)]
    keys = [k for k, (_, key) in enumerate(frames) if key]
    assert {0, 5, 11} <= set(keys)  # every episode begins with one
    assert max(np.diff(keys)) <= 2


def test_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    episodes = written(tmp_path / "data")
    stats = json.loads((tmp_path / "data/meta/stats.json").read_text())
    table = pq.read_table(tmp_path / "data/data/chunk-000/file-000.parquet")
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    assert set(stats) == set(info["features"])
    columns = {key: np.array(table[key].to_pylist(), np.float64) for key in stats if "images" not in key}
    frames = sum(len(e) + 1 for e in episodes)
    for key, values in columns.items():
        values = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values[:, None]
        check_statistics(stats[key], values, frames)
    pixels = np.concatenate([e.images["scene"] for e in episodes]).reshape(-1, 3) / 255
    check_statistics(stats[SCENE], pixels, frames)
    assert np.shape(stats[SCENE]["mean"]) == (3, 1, 1)
    row = pq.read_table(tmp_path / "data/meta/episodes/chunk-000/file-000.parquet").to_pylist()[2]
    own = {
        key.removeprefix(f"stats/{SCENE}/"): value for key, value in row.items() if key.startswith(f"stats/{SCENE}/")
    }
    check_statistics(own, episodes[2].images["scene"].reshape(-1, 3) / 255, len(episodes[2]) + 1)
    own = {key.removeprefix("stats/action/"): value for key, value in row.items() if key.startswith("stats/action/")}
    check_statistics(own, np.concatenate([episodes[2].actions, episodes[2].actions[-1:]]), len(episodes[2]) + 1)


def check_statistics(found: dict[str, Any], values: np.ndarray, count: int) -> None:
    values = values.astype(np.float64)
    want = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    want |= {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    assert set(found) == {*want, "count"}
    assert found["count"] == [count]
    for name, value in want.items():
        np.testing.assert_allclose(np.reshape(found[name], -1), value, rtol=1e-9, atol=1e-12, err_msg=name)


# Imagined episodes


def test_imagined_episodes_say_so_everywhere(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "data", SPEC, images="png", imagined=True) as writer:
        for seed in range(2):
            writer.add(imagined(seed), PROVENANCE | {"ended": "time_limit"})
    assert json.loads((tmp_path / "data/meta/info.json").read_text())["robot_type"] == "two-joint arm-imagined"
    assert json.loads((tmp_path / "data/meta/kairos.json").read_text())["imagined"] is True
    card = (tmp_path / "data/README.md").read_text()
    assert "# Imagined episodes" in card
    assert "model `m`, sha256 of its weights `ab12`" in card
    table = pq.read_table(tmp_path / "data/data/chunk-000/file-000.parquet")
    assert table["kairos.imagined"].to_pylist() == [False, True, True, True] * 2
    found = LeRobotData(tmp_path / "data")
    assert PROVENANCE.items() <= found.provenance(1).items()
    assert_same_numbers(imagined(1), found[1])


@pytest.mark.parametrize(
    ("labels", "provenance", "message"),
    [
        (imagined().labels, {}, "lacks model, checkpoint_sha256, version, policy, start"),
        ({}, PROVENANCE, "lacks imagined, uncertainty"),
    ],
)
def test_imagined_episode_without_its_marks(
    tmp_path: Path, labels: dict[str, Any], provenance: dict[str, str], message: str
) -> None:
    with LeRobotWriter(tmp_path / "data", SPEC, images="png", imagined=True) as writer:
        with pytest.raises(BrokenEpisode, match=message):
            writer.add(episode(steps=3, labels=labels, label_tasks=()), provenance)
        writer.add(imagined(), PROVENANCE)


def test_imagined_episode_among_recorded_ones(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "data", SPEC, images="png")
    with pytest.raises(BrokenEpisode, match="it is imagined; it belongs into a dataset that says so"):
        writer.add(imagined(), PROVENANCE)
    writer.discard()


# Bad input


def with_nan(name: str) -> Episode:
    value = getattr(episode(), name).copy()
    value[2] = np.nan
    return episode(**{name: value})


BAD = {
    "no decisions": (lambda: episode(steps=0), "no decisions"),
    "other camera": (lambda: episode(images={"scene": episode().images["scene"]}), "wrist.left"),
    "other size": (
        lambda: episode(images=episode().images | {"scene": np.zeros((6, 8, 8, 3), np.uint8)}),
        r"images\['scene'\] is uint8 \(6, 8, 8, 3\)",
    ),
    "other robot": (lambda: episode(actions=np.zeros((5, 4), np.float32)), r"actions has shape \(5, 4\)"),
    "action": (lambda: with_nan("actions"), "actions holds a non-finite value"),
    "proprio": (lambda: with_nan("proprio"), "proprio holds a non-finite value"),
    "reward": (lambda: with_nan("rewards"), "rewards holds a non-finite value"),
    "masked": (lambda: episode(action_mask=np.array([True, False])), "action_mask says that some fields"),
    "no labels": (lambda: episode(labels={}), "labels are not those of the episodes before: kairos.column"),
    "label type": (lambda: episode(labels={"a": np.zeros(5, np.float16)}), "'kairos.a' is float16"),
    "label name": (lambda: episode(labels={"a/b": np.zeros(5)}), "named without '/'"),
    "outcome": (lambda: episode(outcome_known=False), "outcome is not recorded, that of those before is recorded"),
    "label tasks": (lambda: episode(label_tasks=("push",)), r"labels are of the tasks \['push'\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_episode_is_refused_and_the_dataset_stays_as_it_was(tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    with LeRobotWriter(tmp_path / "data", SPEC, images="png") as writer:
        writer.add(episode(0))
        with pytest.raises(BrokenEpisode, match=message):
            writer.add(make())
        writer.add(episode(1))
    found = LeRobotData(tmp_path / "data")
    assert [len(one) for one in found] == [5, 5]
    assert_same_numbers(episode(1), found[1])


def test_provenance_must_stay_the_same_in_kind(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "data", SPEC, images="png") as writer:
        with pytest.raises(BrokenEpisode, match="provenance holds None"):
            writer.add(episode(), {"robot": None})  # type: ignore[dict-item]
        writer.add(episode(), {"robot": "a"})
        with pytest.raises(BrokenEpisode, match="that of the episodes before"):
            writer.add(episode(), {"robot": 1})


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"control_rate_hz": 0.5}, {}, "0.5 times a second; give fps=1"),
        ({"cameras": (Camera("scene", 31, 48),)}, {}, "31 x 48 pixels, and 4:2:0 video needs even sides"),
        ({"cameras": (Camera("a/b", 32, 32),)}, {}, "rename the camera 'a/b'"),
        ({}, {"images": "gif"}, "'gif'; use one of h264, h264_444, png"),
    ],
)
def test_what_lerobot_cannot_express(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path / "data", dataclasses.replace(SPEC, **changes), **options)
    assert list(tmp_path.iterdir()) == []


def test_odd_sides_in_full_colour(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, cameras=(Camera("scene", 31, 47),))
    given = episode(images={"scene": pictures(np.random.default_rng(0), 6, 31, 47)})
    with LeRobotWriter(tmp_path / "data", spec, images="h264_444") as writer:
        writer.add(given)
    assert psnr(LeRobotData(tmp_path / "data")[0].images["scene"], given.images["scene"]) > 42


# Nothing half-written


def test_existing_folder_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(FileExistsError, match="never changes a dataset"):
        LeRobotWriter(tmp_path / "data", SPEC)


def test_two_exports_to_one_folder(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "data", SPEC, images="png") as writer:
        with pytest.raises(RuntimeError, match="another process .* is exporting"):
            LeRobotWriter(tmp_path / "data", SPEC)
        writer.add(episode())
    assert len(LeRobotData(tmp_path / "data")) == 1


@pytest.mark.parametrize("images", ["h264", "png"])
def test_exception_leaves_nothing(tmp_path: Path, images: Any) -> None:
    with pytest.raises(KeyboardInterrupt), LeRobotWriter(tmp_path / "data", SPEC, images=images) as writer:
        writer.add(episode())
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no episode was added"), LeRobotWriter(tmp_path / "data", SPEC):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_that_appears_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="has appeared meanwhile"):
        with LeRobotWriter(tmp_path / "data", SPEC, images="png") as writer:
            writer.add(episode())
            (tmp_path / "data").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_closed_writer(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "data", SPEC, images="png")
    writer.add(episode())
    writer.close()
    writer.close()
    writer.discard()
    with pytest.raises(ValueError, match="the export is closed"):
        writer.add(episode())
    assert len(LeRobotData(tmp_path / "data")) == 1


def test_killed_export_is_started_afresh(tmp_path: Path) -> None:
    script = (
        "import os, sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_writer import *\n"
        "writer = LeRobotWriter(sys.argv[3], SPEC)\n"
        "for seed in range(5): writer.add(episode(seed))\n"
        "os._exit(9)\n"
    )
    here = TESTS / "datasets" / "lerobot"
    run = subprocess.run([sys.executable, "-c", script, str(TESTS), str(here), str(tmp_path / "data")], check=False)
    assert run.returncode == 9
    (left,) = tmp_path.glob(".data.*.tmp")
    assert not (tmp_path / "data").exists()
    with pytest.raises((ValueError, OSError)):
        LeRobotData(left)
    written(tmp_path / "data", 2, "h264")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [len(one) for one in LeRobotData(tmp_path / "data")] == [4, 5]


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writing beyond that size fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 500, 3_000, 12_000, 20_000])
@pytest.mark.parametrize("images", ["h264", "png"])
def test_full_disk(tmp_path: Path, images: Any, size: int) -> None:
    episodes = [episode(seed, 20) for seed in range(3)]
    with (
        files_limited_to(size),
        pytest.raises(OSError),
        LeRobotWriter(tmp_path / "data", SPEC, images=images) as writer,
    ):
        for one in episodes:
            writer.add(one)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_added_after_a_failure(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "data", SPEC, images="png")
    with files_limited_to(500), pytest.raises(OSError):
        writer.add(episode())
    with pytest.raises(ValueError, match="the export is failed"):
        writer.add(episode())
    with pytest.raises(ValueError, match="incomplete"):
        writer.close()
    assert list(tmp_path.iterdir()) == []
