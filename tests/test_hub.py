"""Downloads from the hub are of one commit, which the name may fix, or which is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from kairos_env.hub import download, is_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What the hub was asked for; it gives a snapshot of `COMMIT`."""
    found: list[dict[str, Any]] = []

    def fetch(**options: Any) -> str:
        found.append(options)
        return str(tmp_path / "snapshots" / COMMIT)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    return found


@pytest.mark.parametrize("revision", ["v2.0", COMMIT, "refs/pr/1"])
def test_a_name_may_fix_the_revision(
    revision: str, asked: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert download(f"some/thing@{revision}", ["*.json"]).name == COMMIT
    wanted = {"repo_type": "model", "revision": revision, "allow_patterns": ["*.json"]}
    assert asked == [{"repo_id": "some/thing", **wanted}] and caplog.text == ""


def test_without_one_the_commit_is_said(asked: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        download("some/thing", ["*"], "dataset")
    assert asked[0]["revision"] is None and "to stay with it, write some/thing@0123456789ab" in caplog.text


def test_what_is_no_name_or_contradicts_itself_is_refused(asked: list[dict[str, Any]]) -> None:
    assert is_hub_name("some/thing@main") and not is_hub_name("runs/tiny/model") and not is_hub_name("./some/thing")
    with pytest.raises(ValueError, match="owner/name@revision"):
        download("thing", ["*"])
    with pytest.raises(ValueError, match="contradict each other"):
        download("some/thing@v1", ["*"], revision="v2")
    assert asked == []
