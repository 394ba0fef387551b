"""No frame of another episode is read, whatever the table of episodes says about films that episodes share."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_layouts import FRONT, number_shown, sample, write_v3

from kairos_env.cli import main as cli
from kairos_env.datasets.lerobot.reader import LeRobotData
from kairos_env.datasets.recording import BrokenEpisode

LENGTHS = (6, 6, 6)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Three episodes of 6 frames at 10 Hz in one film; frame k of episode e shows the number 10 e + k."""
    return write_v3(tmp_path / "data", sample(LENGTHS), episodes_per_file=3)


def place(root: Path, begins: Sequence[float], ends: Sequence[float | None]) -> None:
    """Says where the episodes lie in the film of the front camera."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for name, values in (("from", begins), ("to", ends)):
        column = f"videos/{FRONT}/{name}_timestamp"
        at = table.schema.get_field_index(column)
        table = table.set_column(at, column, pa.array(list(values), pa.float64()))
    pq.write_table(table, path)


def read(root: Path) -> dict[int, list[int]]:
    """The numbers shown by the episodes that can be read."""
    data, found = LeRobotData(root), {}
    for index in range(len(data)):
        try:
            found[index] = [number_shown(image) for image in data[index].images["front"]]
        except BrokenEpisode:
            continue
    return found


def right(*episodes: int) -> dict[int, list[int]]:
    return {e: [10 * e + k for k in range(6)] for e in episodes}


@pytest.mark.parametrize(
    ("begins", "ends", "readable", "said"),
    [
        ([0, 0.6, 1.2], [0.6, 1.2, 1.8], (0, 1, 2), ""),
        ([0, 0.6, 1.2], [None, None, None], (0, 1, 2), ""),
        ([0, 0.5, 1.1], [0.6, 1.2, 1.8], (0,), "overlap by 1.0 frames.*that of episode 1 is 7.0 frames long"),
        ([0, 0.5, 1.1], [0.6, 1.1, 1.7], (), "episodes 0 and 1 in .* overlap by 1.0 frames: one ends at 0.6 s"),
        ([0, 0.5, 1.1], [None, None, None], (), "episodes 0 and 1 in .* overlap"),
        ([0.1, 0.7, 1.3], [0.7, 1.3, 1.9], (), "begins at 0.1 s, but 0 frames come before it"),
        ([0, 0.6, 1.3], [0.6, 1.2, 1.9], (0, 1), "begins at 1.3 s, but 12 frames come before it, which end at 1.2 s"),
        ([0, 0.6, 1.2], [0.6, 1.0, 1.8], (0, 2), "from 0.6 s to 1 s, is shorter than its 6 frames"),
        ([0, -0.1, 1.2], [0.6, 1.2, 1.8], (2,), "6 frames come before it"),
        ([0, 0.6, 0.6], [0.6, 1.2, 1.2], (0,), "episodes 1 and 2 .* overlap by 6.0 frames"),
    ],
)
def test_parts_of_a_film_that_cannot_be_right_are_not_read(
    shared: Path,
    begins: list[float],
    ends: list[float],
    readable: tuple[int, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place(shared, begins, ends)
    assert read(shared) == right(*readable)
    assert cli.main(["data", "inspect", str(shared)]) == int(bool(said))
    problems = capsys.readouterr().out.split("problems\n")[-1]
    if said:
        with pytest.raises(BrokenEpisode, match=said):
            [LeRobotData(shared)[e] for e in range(3) if e not in readable]
        assert "file-000.mp4" in problems and "the episode table (meta/episodes) is wrong" in problems


def test_gaps_between_the_episodes_of_a_film_are_no_fault(shared: Path) -> None:
    """Films that were put together of one an episode begin each where the clock of the one before has ended."""
    times = [k / 10 + 0.3 * (k // 6) for k in range(18)]
    frames = np.concatenate(sample(LENGTHS).images[FRONT])
    with av.open(str(shared / f"videos/{FRONT}/chunk-000/file-000.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    place(shared, [0, 0.9, 1.8], [0.6, 1.5, 2.4])
    assert read(shared) == right(0, 1, 2)
    place(shared, [0, 0.8, 1.8], [0.6, 1.4, 2.4])
    with pytest.raises(BrokenEpisode, match="begins at 0.8 s, but 6 frames come before it, which end at 0.9 s"):
        LeRobotData(shared)[1]


def test_a_part_that_is_too_long_is_read_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The film of an episode may hold a frame more than it has rows, as converted datasets do."""
    root = write_v3(tmp_path / "data", sample((6, 6, 6)), episodes_per_file=3)
    place(root, [0, 0.6, 1.2], [0.6, 1.2, 1.9])
    assert read(root) == right(0, 1, 2)
    assert cli.main(["data", "inspect", str(root)]) == 1
    assert "from 1.2 s to 1.9 s, is 7.0 frames long, but it has 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t + 0.6, r"does not begin at 0 but at 0.6000 s \(.*file-000.parquet, row 6\).*first row"),
        (lambda t: t + 1.7e9, "does not begin at 0 but at 1700000000"),
    ],
    ids=["whole dataset", "unix"],
)
def test_a_clock_that_does_not_begin_at_0_finds_no_frame(shared: Path, change: object, said: str) -> None:
    path = shared / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    times = [float(t) for t in table["timestamp"].to_pylist()]
    times = [change(round(t, 3)) if 6 <= row < 12 else t for row, t in enumerate(times)]  # type: ignore[operator]
    at = table.schema.get_field_index("timestamp")
    pq.write_table(table.set_column(at, "timestamp", pa.array(times, pa.float64())), path)
    assert read(shared) == right(0, 2)
    with pytest.raises(BrokenEpisode, match=said):
        LeRobotData(shared)[1]


def test_such_a_clock_does_not_matter_without_films(tmp_path: Path) -> None:
    root = write_v3(tmp_path / "data", sample(LENGTHS, video=False), episodes_per_file=3)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    times = pa.array([1.7e9 + k / 10 for k in range(18)], pa.float64())
    pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", times), path)
    assert read(root) == right(0, 1, 2)
