"""What a path holds is seen from its content."""

from __future__ import annotations

import warnings
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


@pytest.mark.parametrize("name", ["._shard_0000.hdf5", ".cache/huggingface/a.hdf5", "__MACOSX/._a.hdf5", ".a.h5"])
def test_hidden_files_are_no_recordings(name: str, tmp_path: Path) -> None:
    """macOS, editors and downloads leave such; nobody wants to hear of them."""
    write_recording(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_recording(tmp_path)
    assert len(found) == 5 and not found.broken


def test_what_lies_in_the_place_of_a_recording_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    for raw, said in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a.hdf5 is a pointer of Git LFS.*`git lfs pull`"),
        (b"<!DOCTYPE html>", "a.hdf5 is a web page"),
        (b"", "a.hdf5 is empty"),
    ):
        path.write_bytes(raw)
        with pytest.raises(BrokenEpisode, match=said):
            open_recording(path)


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
