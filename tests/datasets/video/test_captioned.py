"""Captioned films: which are found, which frames are read, and what is said of those that lack something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kairos_env.cli import main as cli
from kairos_env.datasets.layouts import open_recording, read_as
from kairos_env.datasets.video.captioned import CaptionedFilms
from kairos_env.media import write_mp4
from kairos_env.sims.tabletop.env import make_spec
from kairos_env.training.data import DataConfig, load_mixture

SPEC = make_spec()


def grey_film(path: Path, frames: int = 31, rate: float = 10.0, size: tuple[int, int] = (48, 80)) -> Path:
    """Frame i is grey of level 8 i."""
    pictures = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None] * 8, (frames, *size, 3))
    return write_mp4(path, pictures, rate)


def listed(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "films.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_films_are_read_as_what_a_robots_first_camera_saw(tmp_path: Path) -> None:
    grey_film(tmp_path / "a.mp4")
    path = listed(tmp_path, {"video": "a.mp4", "caption": "It grows light, slowly.", "instruction": "dawn"})
    films = read_as(open_recording(path), SPEC)  # 5 pictures a second of 10
    assert films.lengths == [15]
    episode = films[0]
    assert episode.images["scene"].shape == (16, 64, 64, 3)
    levels = episode.images["scene"].mean((1, 2, 3))
    np.testing.assert_allclose(levels, np.arange(16) * 16, atol=3)
    assert (episode.caption, episode.instruction, episode.task) == ("It grows light, slowly.", "dawn", "")
    assert not episode.acts and not episode.outcome_known
    assert episode.proprio_mask is not None and not episode.proprio_mask.any()
    assert episode.actions.shape == (15, 4) and episode.proprio.shape == (16, 4)


def test_pieces_of_films_and_other_rates(tmp_path: Path) -> None:
    grey_film(tmp_path / "a.mp4")
    row = {"video": "a.mp4", "caption": "x"}
    listed(tmp_path, row | {"start": 1.0, "end": 2.0}, row | {"start": 2.55}, row)
    films = CaptionedFilms(tmp_path)
    assert films.spec.control_rate_hz == 10 and films.lengths == [10, 4, 30]
    np.testing.assert_allclose(films[0].images["film"].mean((1, 2, 3)), np.arange(10, 21) * 8, atol=3)


def test_a_folder_with_a_text_beside_each_film(tmp_path: Path) -> None:
    for name in "ba":
        grey_film(tmp_path / f"{name}.mp4", 6)
        (tmp_path / f"{name}.txt").write_text(f"film {name}\n")
    films = open_recording(tmp_path)
    assert [episode.instruction for episode in films] == ["film a", "film b"]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a\.mp4 has no caption: write it to a\.txt"):
        open_recording(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"video": "a.mp4"}, r"films.jsonl, entry 2 has no 'caption' \(video\); every film needs one"),
        ({"caption": "x"}, r"entry 2 has no 'video' \(caption\)"),
        ({"video": "a.mp4", "caption": 3}, "entry 2 has no 'caption'"),
        ({"video": "a.mp4", "caption": "x", "start": "1s"}, "entry 2: 'start' is a time in seconds, got '1s'"),
    ],
)
def test_lines_that_lack_something_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    grey_film(tmp_path / "a.mp4", 6)
    path = listed(tmp_path, {"video": "a.mp4", "caption": "x"}, row)
    with pytest.raises(ValueError, match=message):
        open_recording(path)


def test_films_that_cannot_be_read_are_left_out_by_name(tmp_path: Path) -> None:
    grey_film(tmp_path / "good.mp4")
    grey_film(tmp_path / "short.mp4", 1)
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:200])
    rows = [{"video": f"{name}.mp4", "caption": name} for name in ("torn", "good", "short", "gone")]
    with pytest.warns(UserWarning, match=r"(?s)left out 3 broken episodes.*torn.*short.*shows 0\.00 s.*gone"):
        films = CaptionedFilms(listed(tmp_path, *rows))
    assert [Path(name).stem for name in films.names] == ["good"]


def test_captions_give_way_to_instructions(tmp_path: Path) -> None:
    from two_robots import write_recording

    for i in range(8):
        grey_film(tmp_path / f"{i}.mp4")
    listed(tmp_path, *({"video": f"{i}.mp4", "caption": "long", "instruction": "short"} for i in range(8)))
    robot = write_recording(tmp_path / "robot")
    for share, detailed in ((0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)):
        found = load_mixture(DataConfig(path=str(robot), more=(str(tmp_path / "films.jsonl"),), captions=share))
        assert [e.instruction for e in found.episodes].count("long") == detailed
        assert len(found.episodes) == 5 + 8


def test_films_are_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey_film(tmp_path / "a.mp4")
    listed(tmp_path, {"video": "a.mp4", "caption": "one two three"})
    assert cli.main(["data", "inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["films"], found["pictures"], found["seconds"]) == (1, "48 x 80 at 10 Hz", [3.0, 3.0])
    assert found["most_words"] == 3 and found["next"].endswith(f"--data.more {tmp_path}")
    (tmp_path / "films.jsonl").write_text('{"video": "a.mp4", "caption": ""}\n{"video": "b.mp4", "caption": ""}\n')
    assert cli.main(["data", "inspect", str(tmp_path)]) == 1
    assert "problems" in (said := capsys.readouterr().out) and "b.mp4" in said


def test_films_alone_have_no_robot(tmp_path: Path) -> None:
    grey_film(tmp_path / "a.mp4")
    listed(tmp_path, {"video": "a.mp4", "caption": "x"})
    with pytest.raises(ValueError, match="holds films, which nobody's actions lead on: name a robot's recording first"):
        load_mixture(DataConfig(path=str(tmp_path)))
