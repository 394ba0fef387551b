"""A folder of generated films: goes on where it stopped, is the same for any number of workers, and trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kairos_env.cli import main as cli
from kairos_env.collect.films.record import FilmsConfig, record_films, write_film
from kairos_env.datasets.layouts import open_recording
from kairos_env.runs import ConfigMismatch


def config(out: Path, clips: int = 3, **changes: object) -> FilmsConfig:
    return FilmsConfig(str(out), "hands", clips, 1.0, 5.0, 32, workers=1, **changes)  # type: ignore[arg-type]


def test_a_folder_goes_on_and_is_read(tmp_path: Path) -> None:
    (tmp_path / "a" / "clips").mkdir(parents=True)
    write_film(config(tmp_path / "a"), 1)  # as a run that was killed left it
    before = (tmp_path / "a" / "clips" / "000001.mp4").stat().st_mtime_ns
    path = record_films(config(tmp_path / "a"), progress=False)
    assert (tmp_path / "a" / "clips" / "000001.mp4").stat().st_mtime_ns == before
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["video"] for row in rows] == [f"clips/{i:06d}.mp4" for i in range(3)]
    assert cli.main(["record-films", "--out", str(tmp_path / "b"), "--scene", "hands", "--clips", "3", "--seconds", "1",
                     "--size", "32", "--workers", "2"]) == 0  # fmt: skip
    for name in ("captions.jsonl", *(row["video"] for row in rows)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    films = open_recording(tmp_path / "a")
    assert films.lengths == [5] * 3 and films[2].caption == rows[2]["caption"]
    with pytest.raises(ConfigMismatch, match="another configuration"):
        record_films(config(tmp_path / "a", seed=1), progress=False)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="0.1 s at 5 pictures a second are less than two pictures"):
        FilmsConfig("x", seconds=0.1)
    with pytest.raises(ValueError, match="size must be at least 16, got 8"):
        FilmsConfig("x", size=8)
