"""Checksums of a folder: what sha256sum reads, damage by name, and folders without any."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from kairos_env.runs import damaged_files, require_sound, stored_checksums, write_checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("a.bin", "in/b.bin"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    write_checksums(tmp_path, ["a.bin", "in/b.bin"])
    return tmp_path


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no coreutils")
def test_is_what_sha256sum_reads(folder: Path) -> None:
    assert subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


def test_damaged_and_missing_files_are_named(folder: Path) -> None:
    assert damaged_files(folder) == [] and list(stored_checksums(folder)) == ["a.bin", "in/b.bin"]
    raw = bytearray((folder / "a.bin").read_bytes())
    raw[77] ^= 4
    (folder / "a.bin").write_bytes(raw)
    (folder / "in" / "b.bin").unlink()
    with pytest.raises(ValueError, match=r"b\.bin is missing; .*a\.bin differs .*kairos verify-files .* --write"):
        require_sound(folder)


@pytest.mark.parametrize("text", ["", "abc  a.bin\n", "\0" * 80, f"{'0' * 64}  ../../a\n"])
def test_damaged_checksums_are_no_missing_ones(folder: Path, text: str) -> None:
    (folder / "SHA256SUMS").write_text(text)
    with pytest.raises(ValueError, match="SHA256SUMS|missing"):
        require_sound(folder)


def test_a_folder_without_any_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_sound(tmp_path)
        require_sound(tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "no checksums" in caplog.text
