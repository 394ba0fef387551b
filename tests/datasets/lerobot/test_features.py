"""What datasets declare about their pictures, right and wrong, and what the pictures themselves say."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_layouts import FRONT, WRIST, sample, write_v2, write_v3
from PIL import Image

from kairos_env.datasets.lerobot.documents import DatasetError
from kairos_env.datasets.lerobot.features import read_features
from kairos_env.datasets.lerobot.mapping import CameraMap, FeatureMap, MapError
from kairos_env.datasets.lerobot.reader import LeRobotData
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Camera

LENGTHS = (5, 4)


def declare(root: Path, key: str, **entry: Any) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][key] |= entry
    path.write_text(json.dumps(info))


def replace_pictures(root: Path, key: str, entries: list[Any], kind: Any = None) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    kind = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(table.set_column(table.schema.get_field_index(key), key, pa.array(entries, kind)), path)


@pytest.mark.parametrize("video", [True, False])
@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([64, 48, 3], ["width", "height", "channels"]),
        ([3, 64, 48], ["channels", "width", "height"]),
        ([64, 48, 3], ["height", "width", "channel"]),
        ([48, 64, 3], ["width", "height", "rgb"]),
        ([3, 48, 64], None),
    ],
)
def test_height_and_width_in_any_order_are_those_of_the_pictures(
    tmp_path: Path, shape: list[int], names: list[str] | None, video: bool
) -> None:
    raw = sample(LENGTHS, video=video)
    root = write_v3(tmp_path / "data", raw)
    declare(root, FRONT, shape=shape, names=names)
    data = LeRobotData(root)
    assert data.spec.cameras[0] == Camera("front", 48, 64)
    error = np.abs(data[1].images["front"].astype(int) - raw.images[FRONT][1]).mean()
    assert error < (8 if video else 1e-9)


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    root = write_v3(tmp_path / "data", sample(LENGTHS, video=False))
    declare(root, FRONT, shape=[40, 64, 3])
    with pytest.raises(BrokenEpisode, match="row 0: .*are 48 x 64, info.json says 40 x 64; correct its shape"):
        LeRobotData(root)[0]


@pytest.mark.parametrize("write", [write_v3, write_v2])
def test_bytes_of_pixels_that_are_declared_as_numbers_are_a_camera(tmp_path: Path, write: Any) -> None:
    raw = sample(LENGTHS, video=False)
    raw.columns["observation.pixels"] = raw.images[WRIST]
    raw.features["observation.pixels"] = {"dtype": "uint8", "shape": [32, 32, 3], "names": None}
    data = LeRobotData(write(tmp_path / "data", raw))
    assert [camera.name for camera in data.spec.cameras] == ["front", "wrist-cam_left", "pixels"]
    for e in range(2):
        np.testing.assert_array_equal(data[e].images["pixels"], raw.images[WRIST][e])


def test_channels_may_come_first_in_bytes_of_pixels(tmp_path: Path) -> None:
    raw = sample(LENGTHS, video=False)
    raw.columns["observation.pixels"] = [np.moveaxis(film, -1, 1) for film in raw.images[FRONT]]
    raw.features["observation.pixels"] = {"dtype": "uint8", "shape": [3, 48, 64], "names": None}
    root = write_v3(tmp_path / "data", raw)
    np.testing.assert_array_equal(LeRobotData(root)[0].images["pixels"], raw.images[FRONT][0])


def depth_png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width), 3000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def test_depth_maps_that_nobody_flagged_are_left_out(tmp_path: Path) -> None:
    root = write_v3(tmp_path / "data", sample(LENGTHS, video=False))
    replace_pictures(root, WRIST, [{"bytes": depth_png(32, 32), "path": None}] * sum(LENGTHS))
    with pytest.warns(UserWarning, match="left out observation.images.wrist-cam.left: depth maps"):
        data = LeRobotData(root)
    assert [camera.name for camera in data.spec.cameras] == ["front"] and len(list(data)) == 2
    asked = FeatureMap("x", 10, (CameraMap("d", WRIST),), (), data.mapping.action)
    with pytest.raises(MapError, match="is a depth map, which is not read"):
        LeRobotData(root, asked)


def test_depth_films_that_nobody_flagged_are_left_out(tmp_path: Path) -> None:
    root = write_v3(tmp_path / "data", sample(LENGTHS), episodes_per_file=2)
    with av.open(str(root / f"videos/{WRIST}/chunk-000/file-000.mp4"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "gray16le"
        for _ in range(sum(LENGTHS)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32), 3000, np.uint16), format="gray16le")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.warns(UserWarning, match="depth maps, though info.json does not say so"):
        assert [camera.name for camera in LeRobotData(root).spec.cameras] == ["front"]


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    raw = sample(LENGTHS, video=False)
    root, upright = write_v3(tmp_path / "data", raw), np.concatenate(raw.images[FRONT])
    entries = []
    for image in upright:
        lying, exif, buffer = Image.fromarray(np.rot90(image)), Image.Exif(), io.BytesIO()
        exif[0x0112] = 6  # turn by 90 degrees clockwise to show it
        lying.save(buffer, "PNG", exif=exif)
        entries.append({"bytes": buffer.getvalue(), "path": None})
    replace_pictures(root, FRONT, entries)
    np.testing.assert_array_equal(LeRobotData(root)[1].images["front"], upright[5:])


def test_pictures_that_are_files_are_found_in_the_dataset(tmp_path: Path) -> None:
    raw = sample(LENGTHS, video=False)
    root, pictures = write_v3(tmp_path / "data", raw), np.concatenate(raw.images[FRONT])
    (root / "images").mkdir()
    for number, image in enumerate(pictures[:5]):
        Image.fromarray(image).save(root / f"images/{number}.png")
    Image.fromarray(pictures[0]).save(tmp_path / "outside.png")
    names = [f"images/{number}.png" for number in range(8)] + ["../outside.png"]
    replace_pictures(root, FRONT, [{"bytes": None, "path": name} for name in names])
    data = LeRobotData(root)
    np.testing.assert_array_equal(data[0].images["front"], pictures[:5])
    with pytest.raises(BrokenEpisode, match="row 5: .*only names a file, images/5.png, and there is none"):
        data[1]
    with pytest.raises(BrokenEpisode, match="row 8: .*only names a file, ../outside.png"):
        data.window(1, 3, 1)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "float32", "shape": [-1]},
        {"dtype": "float32", "shape": [10**6, 10**6]},
        {"dtype": "video", "shape": [48, 64]},
        {"dtype": "float32", "shape": "many"},
        "float32",
        {"shape": [1]},
    ],
)
def test_declarations_that_make_no_sense_are_refused(entry: Any) -> None:
    with pytest.raises(DatasetError, match="'x'"):
        read_features({"x": entry})


def test_depth_is_known_by_flag_unit_and_pixel_format() -> None:
    entry = {"dtype": "video", "shape": [48, 64, 1], "names": ["height", "width", "channels"]}
    marks = [{"info": {"is_depth_map": True}}, {"depth_unit": "mm"}, {"video_info": {"video.pix_fmt": "gray12le"}}]
    assert all(read_features({"x": entry | mark})["x"].is_depth for mark in marks)
    assert not read_features({"x": entry | {"info": {"video.pix_fmt": "gray"}}})["x"].is_depth
