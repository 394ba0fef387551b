"""LeRobot datasets of both layouts come back as episodes: exact numbers, exact frames, named damage."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_layouts import FRONT, WRIST, Raw, decoded, number_shown, sample, write_json, write_mp4, write_v2, write_v3
from PIL import Image

from kairos_env.cli import main as cli
from kairos_env.datasets.lerobot.mapping import CameraMap, FeatureMap, MapError, ScalarMap, widened
from kairos_env.datasets.lerobot.meta import DatasetError
from kairos_env.datasets.lerobot.reader import LeRobotData
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.datasets.video.reader import BrokenVideo, VideoFrames
from kairos_env.records import Camera, Field, RobotSpec

LAYOUTS = ("v3", "v3 images", "v2", "v2 images")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample episodes in every layout; tests only read them."""
    home = tmp_path_factory.mktemp("lerobot")
    return {
        "v3": write_v3(home / "v3", sample()),
        "v3 images": write_v3(home / "v3-images", sample(video=False)),
        "v2": write_v2(home / "v2", sample()),
        "v2 images": write_v2(home / "v2-images", sample(video=False)),
    }


@pytest.fixture
def v3(stored: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(stored["v3"], tmp_path / "data"))


@pytest.fixture
def v2(stored: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored["v2"], tmp_path / "old"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(pq.read_table(path))
    pq.write_table(table, path)


def film_of(root: Path, key: str, episode: int, raw: Raw) -> np.ndarray:
    """The frames of an episode by decoding its whole file from the start."""
    old = root / f"videos/chunk-000/{key}/episode_{episode:06d}.mp4"
    if old.exists():
        return decoded(old)
    file, place = divmod(episode, 2)
    first = sum(raw.lengths[2 * file : 2 * file + place])
    return decoded(root / f"videos/{key}/chunk-000/file-{file:03d}.mp4")[first : first + raw.lengths[episode]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_episodes_come_back_exactly(stored: dict[str, Path], layout: str) -> None:
    raw, data = sample(), LeRobotData(stored[layout])
    assert data.broken == {}
    assert data.names == [f"{stored[layout]}:episode_{i:06d}" for i in range(3)]
    assert data.total == sum(raw.lengths) - 3
    assert [len(episode) for episode in data] == [n - 1 for n in raw.lengths]
    for i, episode in enumerate(data):
        np.testing.assert_array_equal(episode.proprio, raw.columns["observation.state"][i])
        np.testing.assert_array_equal(episode.actions, raw.columns["action"][i][:-1])
        assert episode.proprio.dtype == episode.actions.dtype == episode.rewards.dtype == np.float32
        assert episode.task == episode.instruction == raw.tasks[i % 2]
        # only the last frame, which has no decision, was marked
        assert episode.success.tolist() == [False] * (len(episode) - 1) + [True]
        assert episode.rewards.tolist() == [0.0] * (len(episode) - 1) + [1.0]
        for name, key in (("front", FRONT), ("wrist-cam_left", WRIST)):
            want = raw.images[key][i] if "images" in layout else film_of(stored[layout], key, i, raw)
            np.testing.assert_array_equal(episode.images[name], want)
            offset = 10 * i + (3 if key == WRIST else 0)
            assert [number_shown(image) - offset for image in episode.images[name]] == list(range(raw.lengths[i]))
    assert [len(episode) for episode in data[1:]] == [11, 4]
    assert len(data[-1]) == 4


def test_the_robot_is_guessed(stored: dict[str, Path]) -> None:
    spec = LeRobotData(stored["v3"]).spec
    assert spec.name == "odd_arm"
    assert spec.control_rate_hz == 10
    assert spec.cameras == (Camera("front", 48, 64), Camera("wrist-cam_left", 32, 32))
    assert [(f.name, f.unit, f.kind) for f in spec.proprio] == [
        ("shoulder.pos", "", "joint_position"),
        ("elbow.pos", "", "joint_position"),
        ("x_m", "m", "other"),
        ("gripper.pos", "", "gripper"),
    ]
    states = np.concatenate(sample().columns["observation.state"])
    for field, column in zip(spec.proprio, states.T):
        room = 0.05 * float(column.max() - column.min())
        assert (field.low, field.high) == pytest.approx((column.min() - room, column.max() + room))
    assert spec == LeRobotData(stored["v2"]).spec == LeRobotData(stored["v3 images"]).spec


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_are_parts_of_the_episode(stored: dict[str, Path], layout: str) -> None:
    data, rng = LeRobotData(stored[layout]), np.random.default_rng(0)
    whole = list(data)
    for _ in range(40):
        index = int(rng.integers(3))
        start = int(rng.integers(len(whole[index]) + 1))
        length = int(rng.integers(1, len(whole[index]) + 2 - start))
        window = data.window(index, start, length)
        assert len(window) == length - 1
        np.testing.assert_array_equal(window.proprio, whole[index].proprio[start : start + length])
        np.testing.assert_array_equal(window.actions, whole[index].actions[start : start + length - 1])
        np.testing.assert_array_equal(window.success, whole[index].success[start : start + length - 1])
        for name, frames in whole[index].images.items():
            np.testing.assert_array_equal(window.images[name], frames[start : start + length])
    assert set(data.window(0, 0, 2, ["front"]).images) == {"front"}
    assert data.window(0, 0, 2, ()).images == {}
    with pytest.raises(IndexError, match="has 7 observations, not 3 from number 5 on"):
        data.window(0, 5, 3)
    with pytest.raises(KeyError, match="no camera 'frnt'; there are front, wrist-cam_left"):
        data.window(0, 0, 2, ["frnt"])


def test_one_row_group_for_many_episodes_reads_the_same(stored: dict[str, Path], tmp_path: Path) -> None:
    raw = sample(video=False)
    data = LeRobotData(write_v3(tmp_path / "one", raw, episodes_per_file=3, row_groups=False))
    for episode, want in zip(data, LeRobotData(stored["v3 images"]), strict=True):
        np.testing.assert_array_equal(episode.actions, want.actions)
        np.testing.assert_array_equal(episode.images["front"], want.images["front"])


def test_an_episode_may_span_row_groups(stored: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(stored["v3 images"], tmp_path / "data"))
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=5, write_statistics=False)
    for episode, want in zip(LeRobotData(root), LeRobotData(stored["v3 images"]), strict=True):
        np.testing.assert_array_equal(episode.proprio, want.proprio)
        np.testing.assert_array_equal(episode.images["front"], want.images["front"])
    np.testing.assert_array_equal(
        LeRobotData(root).window(1, 6, 4).images["front"], LeRobotData(stored["v3 images"])[1].images["front"][6:10]
    )


def test_threads_processes_and_copies_read_the_same(stored: dict[str, Path]) -> None:
    data = LeRobotData(stored["v3"])
    want = [episode.images["front"] for episode in data]
    jobs = [(i % 3, i % 4) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for (index, start), window in zip(jobs, pool.map(lambda job: data.window(*job, 2), jobs)):
            np.testing.assert_array_equal(window.images["front"], want[index][start : start + 2])
    copy = pickle.loads(pickle.dumps(data))
    assert copy.spec == data.spec
    np.testing.assert_array_equal(copy[1].images["front"], want[1])
    child = os.fork()  # with files open in the parent
    if child == 0:
        same = all(np.array_equal(data.window(1, s, 3).images["front"], want[1][s : s + 3]) for s in range(9))
        os._exit(0 if same else 1)
    for start in range(9):
        np.testing.assert_array_equal(data.window(1, start, 3).images["front"], want[1][start : start + 3])
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("options", [{"g": "30", "bf": "3"}, {"g": "2", "bf": "0"}, {"g": "1"}, {"g": "40", "bf": "0"}])
def test_video_windows_are_exact_and_convert_only_what_they_need(tmp_path: Path, options: dict[str, str]) -> None:
    path, reader, seen = tmp_path / "film.mp4", VideoFrames(open_files=1), []
    other = tmp_path / "other.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (50, 16, 16, 3), dtype=np.uint8).repeat(2, 1).repeat(2, 2)
    write_mp4(path, frames, 25, options | {"crf": "20"})
    write_mp4(other, frames[::-1].copy(), 25, options)
    full = decoded(path)

    def note(image: np.ndarray) -> np.ndarray:
        seen.append(1)
        return image

    for start in range(0, 50, 3):
        seen.clear()
        times = np.arange(start, min(start + 4, 50)) / 25
        got = reader.read(path, times + 0.003, 0.01, note)
        np.testing.assert_array_equal(got, full[start : start + 4])
        assert len(seen) == len(times)
        reader.read(other, times[:1], 0.01)  # takes the only place among the open files
    np.testing.assert_array_equal(reader.read(path, np.arange(1, 50, 7) / 25, 0.01), full[1::7])
    with pytest.raises(BrokenVideo, match=r"ends before the frame at 2\.0000 s"):
        reader.read(path, np.array([1.96, 2.0]), 0.01)
    with pytest.raises(BrokenVideo, match=r"no frame at 0\.0600 s; the nearest one after it is at 0\.0800 s"):
        reader.read(path, np.array([0.06]), 0.01)
    with pytest.raises(BrokenVideo, match="nothing.mp4 is not a readable video"):
        reader.read(tmp_path / "nothing.mp4", np.zeros(1), 0.01)
    reader.close()


def test_statistics_are_exact(stored: dict[str, Path]) -> None:
    data, raw = LeRobotData(stored["v3"]), sample()
    done: list[int] = []
    found = data.statistics(watch=done.append)
    assert done == [1, 2, 3]
    action = np.concatenate(raw.columns["action"]).astype(np.float64)
    assert found["action"].count == 24
    np.testing.assert_allclose(found["action"].mean, action.mean(0), atol=1e-12)
    np.testing.assert_array_equal(found["action"].quantiles["q99"], np.quantile(action, 0.99, axis=0))
    np.testing.assert_array_equal(found["action"].max, action.max(0))
    # v2.1 stores statistics of each episode; together they are those of the whole
    merged = LeRobotData(stored["v2"]).meta.statistics()["action"]
    np.testing.assert_allclose([merged.mean, merged.std], [action.mean(0), action.std(0)], atol=1e-9)
    assert merged.count == 24


def test_a_map_is_saved_edited_and_used(stored: dict[str, Path], tmp_path: Path) -> None:
    data, path = LeRobotData(stored["v3"]), tmp_path / "map.json"
    data.mapping.save(path)
    assert FeatureMap.load(path) == data.mapping
    assert len(path.read_text().splitlines()) < 30, "one scalar a line"

    def change(value: dict[str, Any]) -> None:
        value["cameras"] = [
            {"name": "hand", "feature": WRIST, "rotate": 90},
            {"name": "side", "feature": FRONT, "rotate": 180, "height": 20, "width": 30},
        ]
        value["proprio"] = [{"feature": "observation.tactile", "index": 4, "name": "pressure", "unit": "N"}]
        value["action"][0] |= {"low": -5, "high": 5, "unit": "rad"}

    edit(path, change)
    mapped = LeRobotData(stored["v3"], path)
    assert mapped.spec.cameras == (Camera("hand", 32, 32), Camera("side", 20, 30))
    assert mapped.spec.action[0] == Field("shoulder.pos", -5, 5, "rad", "joint_position")
    episode = mapped[1]
    np.testing.assert_array_equal(episode.proprio[:, 0], sample().columns["observation.tactile"][1][:, 1, 1])
    # the stored statistics of a feature of two axes have one entry for each of the last
    column = np.concatenate(sample().columns["observation.tactile"])[:, :, 1]
    assert mapped.spec.proprio[0].low == pytest.approx(column.min() - 0.05 * (column.max() - column.min()))
    whole = data[1]
    np.testing.assert_array_equal(episode.images["hand"], np.rot90(whole.images["wrist-cam_left"], axes=(1, 2)))
    turned = Image.fromarray(np.ascontiguousarray(whole.images["front"][3, ::-1, ::-1]))
    np.testing.assert_array_equal(episode.images["side"][3], np.asarray(turned.resize((30, 20), Image.BILINEAR)))


def test_a_map_that_does_not_fit_says_all_that_is_wrong(stored: dict[str, Path]) -> None:
    bad = FeatureMap(
        robot="x",
        control_rate_hz=30,
        cameras=(CameraMap("a", "observation.images.frnt"), CameraMap("b", FRONT, rotate=45, height=3)),
        proprio=(ScalarMap("observation.sate", 0, "s", 0, 1), ScalarMap("observation.state", 4, "t", 0, 1)),
        action=(ScalarMap("action", 0, "u", 0, 1), ScalarMap("action", 1, "u", 0, 1)),
        success="next.sucess",
    )
    with pytest.raises(MapError) as error:
        LeRobotData(stored["v3"], bad)
    for part in (
        "'observation.images.frnt' is not a camera of this dataset; did you mean 'observation.images.front'?",
        "rotate is 45",
        "height, width are (3, None)",
        "'observation.sate' is not a feature of numbers; did you mean 'observation.state'?",
        "index 4, but 'observation.state' has 4 values",
        "action names must differ: u",
        "success: 'next.sucess' is not a feature of one number; did you mean 'next.success'?",
        "control_rate_hz is 30, but the dataset has 10 frames/s",
    ):
        assert part in str(error.value), part


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a feature map"),
        ("[]", "not a JSON object"),
        ('{"robto": "x"}', "unknown key 'robto'; did you mean 'robot'"),
        ('{"cameras": [{"name": "a", "feature": "b", "rotat": 90}]}', "unknown key 'rotat'; did you mean 'rotate'"),
        ('{"robot": "x"}', "control_rate_hz"),
    ],
)
def test_a_damaged_map_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(MapError, match=f"map.json.*{said}"):
        FeatureMap.load(path)


def test_an_empty_range_in_a_map_is_refused(stored: dict[str, Path]) -> None:
    mapping = FeatureMap("x", 10, (), (), (ScalarMap("action", 0, "u", 1.0, 1.0),))
    with pytest.raises(MapError, match="'u' needs finite low < high"):
        LeRobotData(stored["v3"], mapping)


def test_ranges_get_room_but_limits_stay() -> None:
    assert widened(-1.0, 1.0) == (-1.0, 1.0)
    assert widened(0.0, 100.0) == (0.0, 100.0)
    assert widened(2.0, 4.0) == pytest.approx((1.9, 4.1))
    assert widened(3.0, 3.0) == (0.0, 6.0)
    assert widened(0.0, 0.0) == (-1.0, 1.0)


def test_declarations_as_they_are_found_in_the_wild(v3: Path) -> None:
    def change(info: dict[str, Any]) -> None:
        info["fps"], info["codebase_version"] = 10.0, "v3.1"
        features = info["features"]
        features[FRONT] |= {"shape": [3, 48, 64], "names": ["channels", "height", "width"]}
        features[WRIST] |= {"shape": [3, 32, 32], "names": None, "video_info": {"video.is_depth_map": True}}
        features["observation.state"]["names"] = {"motors": ["a", "a", "b_rad", "b_deg"]}
        features["action"]["names"] = [["dx", "droll", "jaw"]]
        features["observation.environment_state"] = {"dtype": "float32", "shape": [2]}
        features["language_instruction"] = {"dtype": "string", "shape": [1], "names": None}
        features["language_events"] = {"dtype": "language", "shape": [1], "names": None}

    edit(v3 / "meta/info.json", change)
    tasks = pq.read_table(v3 / "meta/tasks.parquet").rename_columns(["task_index", "__index_level_0__"])
    pq.write_table(tasks, v3 / "meta/tasks.parquet")
    data = LeRobotData(v3)
    assert data.spec.cameras == (Camera("front", 48, 64),), "the depth map is left out"
    assert [(f.name, f.unit) for f in data.spec.proprio] == [("a", ""), ("a_2", ""), ("b_rad", "rad"), ("b_deg", "deg")]
    assert [f.kind for f in data.spec.action] == ["delta_position", "delta_rotation", "gripper"]
    assert data[0].images["front"].shape == (7, 48, 64, 3)
    assert data[1].instruction == "push it"
    with pytest.raises(MapError, match="is a depth map, which is not read"):
        LeRobotData(v3, FeatureMap("x", 10, (CameraMap("d", WRIST),), (), (ScalarMap("action", 0, "u", -9, 9),)))


def test_features_are_gathered_where_the_usual_ones_are_missing(v3: Path) -> None:
    def change(info: dict[str, Any]) -> None:
        features = info["features"]
        for key in ("next.reward", "next.success", "task_index", "observation.state"):
            del features[key]

    edit(v3 / "meta/info.json", change)
    data = LeRobotData(v3)
    assert [f.name for f in data.spec.proprio] == [f"tactile_{i}" for i in range(6)]
    np.testing.assert_array_equal(data[0].proprio, sample().columns["observation.tactile"][0].reshape(7, 6))
    assert not data[0].success.any()
    assert not data[0].rewards.any()
    assert data[1].instruction == "push it", "from the table of episodes"
    edit(v3 / "meta/info.json", lambda info: info["features"].pop("action"))
    with pytest.raises(MapError, match="no feature 'action' and none that starts with it, only observation.images"):
        LeRobotData(v3)


def test_what_kairos_exported_describes_itself(tmp_path: Path) -> None:
    raw, rng = sample((4, 6)), np.random.default_rng(5)
    spec = RobotSpec(
        name="ours",
        cameras=(Camera("front", 48, 64),),
        proprio=tuple(Field(f"p{i}", -9, 9, "rad", "joint_position", "base") for i in range(4)),
        action=tuple(Field(f"a{i}", -8, 8, "m", "delta_position") for i in range(3)),
        control_rate_hz=9.5,
        instruction="tidy up",
    )
    labels = {"object_position": (3, "frame"), "task_rewards": (2, "decision"), "risk": (1, "decision")}
    for name, (dim, per) in labels.items():
        notes = {"kairos.per": per, "kairos.scalar": dim == 1}
        raw.features[f"kairos.{name}"] = {"dtype": "float64", "shape": [dim], "names": None, "info": notes}
        raw.columns[f"kairos.{name}"] = [rng.normal(size=(n, dim)) for n in raw.lengths]
    raw.extra = {
        "kairos/source": ["expert", "cem"],
        "kairos/seed": [7, 8],
        "kairos/task": ["lift", "push"],
        "kairos/model": ["kairos-tiny", None],
    }
    root = write_v3(tmp_path / "ours", raw)
    own = {"format": 1, "imagined": False, "robot_spec": spec.to_dict(), "label_tasks": ["lift", "push"]}
    write_json(root / "meta/kairos.json", own)
    data = LeRobotData(root)
    assert data.spec == spec
    episode = data[1]
    assert (episode.task, episode.instruction, episode.source, episode.seed) == ("push", "push it", "cem", 8)
    assert episode.initial_state == -1
    assert tuple(episode.label_tasks) == ("lift", "push")
    np.testing.assert_array_equal(episode.labels["object_position"], raw.columns["kairos.object_position"][1])
    np.testing.assert_array_equal(episode.labels["task_rewards"], raw.columns["kairos.task_rewards"][1][:-1])
    np.testing.assert_array_equal(episode.labels["risk"], raw.columns["kairos.risk"][1][:-1, 0])
    np.testing.assert_array_equal(data.window(1, 2, 3).labels["risk"], raw.columns["kairos.risk"][1][2:4, 0])
    assert data.provenance(0) == {"source": "expert", "seed": 7, "task": "lift", "model": "kairos-tiny"}
    edit(root / "meta/kairos.json", lambda own: own.update(format=2))
    with pytest.raises(DatasetError, match="format 2, 1 is known here: update kairos-env"):
        LeRobotData(root)


def change_column(root: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """In the file of episodes 0 and 1."""

    def replaced(table: pa.Table) -> pa.Table:
        values = change(table[name].to_numpy(zero_copy_only=False).copy())
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values))

    rewrite(root / "data/chunk-000/file-000.parquet", replaced)


def nan_state(root: Path) -> None:
    def replaced(table: pa.Table) -> pa.Table:
        values = np.stack(table["observation.state"].to_pylist()).astype(np.float32)
        values[9, 2] = np.nan
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
        return table.set_column(table.schema.get_field_index("observation.state"), "observation.state", column)

    rewrite(root / "data/chunk-000/file-000.parquet", replaced)


def table_of_episodes(root: Path, name: str, values: list[Any]) -> None:
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rewrite(path, lambda t: t.set_column(t.schema.get_field_index(name), name, pa.array(values)))


def cut(path: Path, share: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


V3_VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"


@pytest.mark.parametrize(
    ("damage", "hurt", "said"),
    [
        (lambda r: change_column(r, "timestamp", lambda t: 2 * t), [0, 1], "0.2000 s apart.*says 10 frames/s"),
        (lambda r: change_column(r, "frame_index", lambda f: np.where(f == 9, 3, f)), [1], "missing or out of order"),
        (lambda r: change_column(r, "task_index", lambda t: t * 5), [1], "task_index 5 is not in the dataset's table"),
        (nan_state, [1], r"file-000.parquet, row 9 \(frame 2\): 'observation.state' holds nan at place 2"),
        (lambda r: table_of_episodes(r, "length", [7, 13, 5]), [1], "has 12 rows of it, the metadata promise 13"),
        (
            lambda r: rewrite(r / "data/chunk-000/file-000.parquet", lambda t: t.drop_columns(["action"])),
            [0, 1],
            "no column 'action'; it has .*observation.state",
        ),
        (lambda r: cut(r / "data/chunk-000/file-000.parquet", 0.6), [0, 1], "file-000.parquet is damaged"),
        (lambda r: cut(r / V3_VIDEO, 0.95), [1], "front/chunk-000/file-000.mp4"),
        (lambda r: (r / V3_VIDEO).write_bytes(b"no film"), [0, 1], "file-000.mp4 is not a readable video"),
        (
            lambda r: write_mp4(r / V3_VIDEO, np.zeros((19, 32, 32, 3), np.uint8), 10),
            [0, 1],
            "are 32 x 32, info.json says 48 x 64",
        ),
        (
            lambda r: write_mp4(r / V3_VIDEO, np.concatenate(sample().images[FRONT][:2]), 15),
            [0, 1],
            "no frame at 0.1000 s.*15 frames/s",
        ),
    ],
    ids=["rate", "order", "task", "nan", "length", "column", "parquet", "mp4 cut", "mp4 junk", "size", "mp4 rate"],
)
def test_damaged_episodes_are_named_and_left_out(
    v3: Path, damage: Callable[[Path], Any], hurt: list[int], said: str
) -> None:
    damage(v3)
    data = LeRobotData(v3)
    assert len(data) == 3
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        left = [episode.proprio for episode in data]
    assert len(warned) == len(hurt)
    assert re.search(f"(?s)left out 1 broken episode:.*episode_00000{hurt[0]}: .*{said}", str(warned[0].message))
    assert len(left) == 3 - len(hurt)
    np.testing.assert_array_equal(left[-1], sample().columns["observation.state"][2])
    assert list(data.broken) == [f"{v3}:episode_{i:06d}" for i in hurt]
    with pytest.raises(BrokenEpisode, match=f"episode_00000{hurt[0]}: .*{said}"):
        data[hurt[0]]


def test_missing_files_are_named_when_the_dataset_is_opened(v3: Path) -> None:
    (v3 / f"videos/{WRIST}/chunk-000/file-000.mp4").unlink()
    with pytest.warns(UserWarning, match=r"(?s)left out 2 broken.*episode_000000: videos/.*file-000.mp4 is missing"):
        data = LeRobotData(v3)
    assert [len(episode) for episode in data] == [4]
    assert len(data.broken) == 2
    one = FeatureMap("x", 10, (CameraMap("front", FRONT),), (), (ScalarMap("action", 0, "u"),))
    assert len(LeRobotData(v3, one)) == 3, "files of other cameras are not needed"


def test_missing_files_of_v2(v2: Path) -> None:
    (v2 / "data/chunk-000/episode_000001.parquet").unlink()
    lines = (v2 / "meta/episodes.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"length": 5', '"length": 1')
    (v2 / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n\n")
    with pytest.warns(UserWarning, match=r"(?s)episode_000001: .*is missing\n.*episode_000002: 1 frame\(s\)"):
        assert len(LeRobotData(v2)) == 1
    shutil.rmtree(v2 / "data")
    with pytest.warns(UserWarning), pytest.raises(DatasetError, match="no usable episode"):
        LeRobotData(v2)


def test_a_video_that_the_table_does_not_place(v3: Path) -> None:
    table_of_episodes(v3, f"videos/{FRONT}/file_index", [0, None, 1])
    with pytest.warns(UserWarning, match="episode_000001: the episode table does not say where its video of"):
        assert len(LeRobotData(v3)) == 2


def test_damaged_pictures_are_named(stored: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(stored["v3 images"], tmp_path / "data"))

    def replaced(table: pa.Table) -> pa.Table:
        entries = table[FRONT].to_pylist()
        entries[3]["bytes"], entries[8]["bytes"] = entries[3]["bytes"][:60], None
        return table.set_column(table.schema.get_field_index(FRONT), FRONT, pa.array(entries, table[FRONT].type))

    rewrite(root / "data/chunk-000/file-000.parquet", replaced)
    data = LeRobotData(root)
    with pytest.raises(BrokenEpisode, match="episode_000000: .*, row 3: a picture of .*front' is damaged"):
        data[0]
    with pytest.raises(BrokenEpisode, match="episode_000001: .*, row 8: .*front' only names a file"):
        data[1]
    assert len(data.window(0, 0, 3)) == 2, "the pictures before it are sound"


def stats(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(root / "meta/stats.json", change)


def test_statistics_that_do_not_fit(v3: Path) -> None:
    sound = (v3 / "meta/stats.json").read_text()
    stats(v3, lambda s: s["action"].update({k: v[:2] for k, v in s["action"].items() if k != "count"}))
    with pytest.raises(DatasetError, match="stored statistics of 'action' are of 2 values, but it has 3"):
        LeRobotData(v3)
    (v3 / "meta/stats.json").write_text(sound)
    stats(v3, lambda s: s["action"].update(max=[0.1, 0.1, 0.1]))
    with pytest.raises(DatasetError, match="do not fit the data: 'shoulder.pos' of 'action' is .* at frame"):
        list(LeRobotData(v3))
    stats(v3, lambda s: s["action"].pop("mean"))
    with pytest.raises(DatasetError, match="'action': statistics have no 'mean'"):
        LeRobotData(v3)
    (v3 / "meta/stats.json").unlink()
    computed, raw = LeRobotData(v3), np.concatenate(sample().columns["action"])
    (v3 / "meta/stats.json").write_text(sound)
    assert computed.spec == LeRobotData(v3).spec == LeRobotData(v3, trust_statistics=False).spec
    assert (computed.spec.action_high > raw.max(0)).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: i.update(codebase_version="v4.0"), "written by a newer LeRobot .layout v4.0.; known are"),
        (lambda i: i.update(codebase_version="v1.6"), "old layout v1.6; convert it"),
        (lambda i: i.update(codebase_version="three"), "codebase_version 'three', expected"),
        (lambda i: i.update(fps=0), "fps 0, expected a number above 0"),
        (lambda i: i.update(fps="10"), "fps '10', expected"),
        (lambda i: i.update(features={}), "declares no features"),
        (lambda i: i["features"].update(action={"shape": [3]}), "declares 'action' as .*expected a dtype and a shape"),
        (lambda i: i["features"][FRONT].update(shape=[48, 64]), r"front' have shape \(48, 64\), expected \(height"),
        (lambda i: i["features"].pop("timestamp"), "declares no timestamp"),
        (lambda i: i.update(data_path="../{chunk_index}.parquet"), "data_path .* expected a path inside"),
        (lambda i: i.update(data_path="data/{episode}.parquet"), "data_path .* does not fit its layout"),
        (lambda i: i.update(video_path=None), "video_path None"),
    ],
)
def test_metadata_that_cannot_be_read(v3: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    edit(v3 / "meta/info.json", change)
    with pytest.raises(DatasetError, match=said):
        LeRobotData(v3)


def test_other_folders(v3: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: nowhere \(nor is it a hub id"):
        LeRobotData("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="not a LeRobot dataset: it has no meta/info.json"):
        LeRobotData(tmp_path / "empty")
    with pytest.raises(DatasetError, match="is a file"):
        LeRobotData(v3 / "meta/info.json")
    with pytest.raises(DatasetError, match="a revision belongs to a dataset on the hub"):
        LeRobotData(v3, revision="main")


@pytest.mark.parametrize("name", ["info.json", "tasks.parquet", "episodes/chunk-000/file-000.parquet", "stats.json"])
def test_half_a_file_of_metadata(v3: Path, name: str) -> None:
    cut(v3 / "meta" / name, 0.5)
    with pytest.raises(DatasetError, match=f"{Path(name).name} is damaged"):
        LeRobotData(v3)


def test_folders_of_v2_hold_as_many_episodes_as_it_says(v2: Path) -> None:
    edit(v2 / "meta/info.json", lambda info: info.update(chunks_size=2))
    for file in sorted(v2.glob("*/chunk-000/**/episode_000002.*")):
        target = Path(str(file).replace("chunk-000", "chunk-001"))
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    assert [len(episode) for episode in LeRobotData(v2)] == [6, 11, 4]
    edit(v2 / "meta/info.json", lambda info: info.update(chunks_size=0))
    with pytest.raises(DatasetError, match="chunks_size 0, expected"):
        LeRobotData(v2)


@pytest.mark.parametrize("name", ["episodes.jsonl", "tasks.jsonl"])
def test_half_a_file_of_metadata_of_v2(v2: Path, name: str) -> None:
    whole = (v2 / "meta" / name).read_text()
    (v2 / "meta" / name).write_text(whole[:-9])
    with pytest.raises(DatasetError, match=f"{name}, line [23], is damaged"):
        LeRobotData(v2)
    (v2 / "meta" / name).unlink()
    with pytest.raises(DatasetError, match=f"{name} is missing"):
        LeRobotData(v2)


def test_a_hub_name_is_fetched_as_far_as_needed(stored: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(**options: Any) -> str:
        asked.append(options)
        return str(stored["v3"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    mapping = FeatureMap("x", 10, (CameraMap("front", FRONT),), (), (ScalarMap("action", 0, "u"),))
    data = LeRobotData("somebody/arm-data", mapping, revision="v3.0")
    assert data.names[0] == "somebody/arm-data:episode_000000"
    assert len(data[0]) == 6
    first, second = asked
    common = {"repo_id": "somebody/arm-data", "repo_type": "dataset", "revision": "v3.0"}
    assert first == common | {"allow_patterns": ["meta/*"]}
    patterns = ["meta/*", "data/*", f"videos/{FRONT}/*", f"videos/*/{FRONT}/*"]
    assert second == common | {"allow_patterns": patterns}

    def refused(**options: Any) -> str:
        raise FileNotFoundError("no such repository")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(DatasetError, match="somebody/arm is not a folder here, and the hub does not give it: no such"):
        LeRobotData("somebody/arm")


def test_inspect_shows_saves_and_reads_a_map(
    stored: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "map.json"
    assert cli.main(["data", "inspect", str(stored["v3"]), "--save", str(path)]) == 0
    out = capsys.readouterr().out
    for part in (
        "3, 24 frames at 10 Hz",
        "'lift the cube', 'push it'",
        "48 x 64 x 3",
        "observation.state[3]",
        "gripper",
        "not used",
        "statistics of 24 frames",
        "units of 6 of 7 scalars",
        "no problems",
    ):
        assert part in out, part
    assert FeatureMap.load(path).robot == "odd_arm"
    assert cli.main(["data", "inspect", str(stored["v2"]), "--map", str(path), "--quick"]) == 0
    assert f"map of {path}" in capsys.readouterr().out
    assert cli.main(["data", "inspect", str(stored["v3"]), "--save", str(path)]) == 2
    assert "map.json exists" in capsys.readouterr().err


def test_inspect_tells_scripts(stored: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "inspect", str(stored["v3"]), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["episodes"], told["frames"], told["fps"], told["problems"]) == (3, 24, 10, [])
    assert told["tasks"] == ["lift the cube", "push it"] and told["map"]["robot"] == "odd_arm"
    assert told["statistics"]["action"]["count"] == 24 and "observation.state" in told["features"]


def test_inspect_names_problems(v3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(v3 / "meta/info.json", lambda info: info.update(total_frames=99))
    stats(v3, lambda s: s["action"].update(count=[12], max=[9, 9, 9]))
    cut(v3 / V3_VIDEO, 0.95)
    assert cli.main(["data", "inspect", str(v3)]) == 1
    out = capsys.readouterr().out
    for part in (
        "camera 'front': ",
        "info.json says total_frames 99, but there are 24",
        "the stored statistics of 'action' count 12 frames, but there are 24",
        "the stored max of 'action'[0] is 9, in the data it is",
    ):
        assert part in out, part
