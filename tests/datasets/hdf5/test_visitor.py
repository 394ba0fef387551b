"""Files that crash libhdf5 or keep it busy for ever harm a process beside, and are named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from damage import damaged
from foreign_hdf5 import crash_in, libero_file, no_end_in, robomimic_file, robotwin_file

from kairos_env.datasets.hdf5 import visitor
from kairos_env.datasets.hdf5.files import open_file
from kairos_env.datasets.layouts import open_recording
from kairos_env.datasets.recording import BrokenEpisode


def test_a_file_that_crashes_libhdf5_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    crash_in(robomimic_file(tmp_path / "a.hdf5"))
    robomimic_file(tmp_path / "b.hdf5")
    with pytest.raises(BrokenEpisode, match=r"a.hdf5 is damaged: libhdf5 crashes when it is opened \(SIGSEGV\); copy"):
        open_recording(tmp_path / "a.hdf5")
    with pytest.warns(UserWarning, match="skipped a broken file: .*a.hdf5 is damaged"):
        assert len(open_recording(tmp_path)) == 2


def test_a_file_without_an_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitor, "SILENCE_S", 2.0)
    no_end_in(robomimic_file(tmp_path / "a.hdf5"))
    robomimic_file(tmp_path / "b.hdf5")
    with pytest.warns(UserWarning, match="libhdf5 does not come to an end with it"):
        assert len(open_recording(tmp_path)) == 2


def test_a_file_is_looked_at_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = robomimic_file(tmp_path / "a.hdf5")
    open_file(path).close()
    asked: list[Path] = []
    monkeypatch.setattr(visitor._Visitor, "visit", lambda self, path: asked.append(path) or "")
    open_file(path).close()
    assert asked == []
    with h5py.File(path, "r+") as file:
        file["more"] = np.zeros(9)
    open_file(path).close()
    assert asked == [path]


def test_the_process_beside_ends_with_its_parent(tmp_path: Path) -> None:
    """Even when that is killed."""
    path = robomimic_file(tmp_path / "a.hdf5")
    program = (
        "import sys; from pathlib import Path; from kairos_env.datasets.hdf5 import visitor, files\n"
        "files.open_file(Path(sys.argv[1])); print(visitor._current._process.pid, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it lives on")


@pytest.mark.parametrize("write", [robomimic_file, libero_file, robotwin_file])
def test_damage_is_named_or_does_not_matter(
    tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No crash, no hang, no error but the reader's own; more files of this kind were tried by hand."""
    monkeypatch.setattr(visitor, "SILENCE_S", 5.0)
    raw, read = write(tmp_path / "lift_it_demo.hdf5").read_bytes(), 0
    path = tmp_path / "damaged_demo.hdf5"
    for seed in range(60):
        path.write_bytes(damaged(raw, seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read += len(list(open_recording(path)))
            except BrokenEpisode as error:
                assert "damaged_demo.hdf5" in str(error)
    assert read > 0
