"""What a path holds is seen from its content."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from two_robots import write_recording

from kairos_env.datasets.hdf5.recorded import EpisodeFile
from kairos_env.datasets.layouts import open_recording
from kairos_env.datasets.recording import BrokenEpisode


def test_a_file_of_something_else_does_not_hide_the_others(tmp_path: Path) -> None:
    write_recording(tmp_path)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["mean"] = 1
    with pytest.warns(UserWarning, match="a.hdf5 is not of the robomimic layout"):
        assert len(open_recording(tmp_path)) == 5


@pytest.mark.parametrize("name", ["a.hdf5", "z.hdf5"])
def test_a_broken_file_does_not_hide_the_others(name: str, tmp_path: Path) -> None:
    write_recording(tmp_path)
    (tmp_path / name).write_bytes(b"no HDF5")
    with pytest.warns(UserWarning, match=f"{name} is not a readable HDF5 file"):
        found = open_recording(tmp_path)
    assert isinstance(found, EpisodeFile) and len(found) == 5 and list(found.broken) == [str(tmp_path / name)]
    with pytest.raises(BrokenEpisode, match=name):
        open_recording(tmp_path / name)


def test_what_is_no_recording_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_recording(tmp_path / "nowhere")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="is no recording: .* but x"):
        open_recording(tmp_path)
    write_recording(tmp_path / "mine")
    with pytest.raises(ValueError, match="a feature map has no use"):
        open_recording(tmp_path / "mine", "map.json")
