"""Files that others wrote: texts, which should be UTF-8, and what is in the place of a file that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HEADS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"/annex/objects/": "a pointer of git-annex, not the file itself: fetch it with `git annex get`",
    b"../.git/annex/objects/": "a pointer of git-annex, not the file itself: fetch it with `git annex get`",
    b"<!doctype html": "a web page, not the file itself: download it again",
    b"<html": "a web page, not the file itself: download it again",
    b"\x00\x05\x16\x07": "what macOS keeps beside a file on foreign disks (AppleDouble): delete it",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"(\xb5/\xfd": "compressed with zstd: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
}


class ForeignText(ValueError):
    """A text of others that cannot be read: file, line and remedy."""


def in_its_place(path: Path) -> str:
    """What lies in the place of a file that should have been something else; empty if that is not known."""
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError:
        return ""
    if not head:
        return "empty: copy or download it again"
    if not head.strip(b"\0"):
        return "nothing but zeros at its beginning, as after a download that broke off: download it again"
    lower = head.lstrip().lower()
    return next((what for mark, what in _HEADS.items() if head.startswith(mark) or lower.startswith(mark)), "")


def damage(path: Path, error: object) -> str:
    """One line on a file that ``error`` says cannot be read."""
    found = in_its_place(path)
    return f"{path} is {found}" if found else f"{path} is damaged: {error}"


def utf8(raw: bytes, what: object) -> str:
    """Text as UTF-8, without a byte order mark.

    Raises:
        ForeignText: another encoding, with ``what`` and the line.
    """
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        kind = "UTF-16" if wide else f"not UTF-8: byte 0x{raw[error.start]:02x}, as Latin-1 or GBK write it"
        remedy = "UTF-16" if wide else "LATIN1"
        raise ForeignText(
            f"{what}, line {line}, is {kind}; store it as UTF-8 (`iconv -f {remedy} -t UTF-8`, with the encoding that "
            "it has)"
        ) from None


def read_utf8(path: Path) -> str:
    """A text file as UTF-8.

    Raises:
        OSError: it cannot be read.
        ForeignText: it is something else.
    """
    raw = path.read_bytes()
    found = in_its_place(path)
    if found:
        raise ForeignText(f"{path} is {found}")
    return utf8(raw, path)


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read.
        ForeignText: it is no JSON, or something else.
    """
    text = read_utf8(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ForeignText(f"{path} is damaged: {error}") from None


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file with one JSON value a line, and nothing else on it.

    Raises:
        OSError: it cannot be read.
        ForeignText: a line is no JSON, or the file something else.
    """
    values = []
    # by hand: splitlines() also ends lines at U+2028 and others, which JSON texts may hold
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ForeignText(f"{path}, line {number}, is damaged: {error}") from None
    return values
