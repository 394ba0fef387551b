"""Files that others wrote: their encodings, and what lies in the place of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kairos_env.datasets.foreign import ForeignText, in_its_place, read_json, read_json_lines, read_utf8


def test_lines_end_where_json_lines_end(tmp_path: Path) -> None:
    """Texts may hold U+2028, U+0085 and others at which Python's splitlines() ends a line."""
    path, words = tmp_path / "tasks.jsonl", "lift\u2028it\u0085now\x0b\x1c"
    path.write_bytes(f'\ufeff{{"task": "{words[:-2]}"}}\r\n\n{{"task": "é"}}\n'.encode())
    assert read_json_lines(path) == [{"task": words[:-2]}, {"task": "é"}]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ('{"a": 1}\n{"task": "café"}\n'.encode("latin-1"), "line 2, is not UTF-8: byte 0xe9.*iconv -f LATIN1"),
        ('{"task": "拿起"}\n'.encode("gbk"), "line 1, is not UTF-8"),
        ('{"task": "é"}\n'.encode("utf-16"), "line 1, is UTF-16; store it as UTF-8"),
        (b'{"a": 1}\n{"a": \n', "line 2, is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a pointer of Git LFS.*`git lfs pull`"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (bytes(300), "is nothing but zeros"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_remedy(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(raw)
    for read in (read_json, read_json_lines) if b"\n" not in raw else (read_json_lines,):
        with pytest.raises(ForeignText, match=f"tasks.jsonl.*{said}"):
            read(path)


def test_what_is_known_of_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert in_its_place(path) == "", "there is none"
    for raw, said in ((b"PK\x03\x04", "zip"), (b"\x1f\x8b\x08", "gzip"), (b"\0\5\x16\7", "macOS"), (b"\x89HDF", "")):
        path.write_bytes(raw)
        assert said in in_its_place(path)
    path.write_text("\ufeffétude")
    assert read_utf8(path) == "étude"
