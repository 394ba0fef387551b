"""A model's folder goes to the hub whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from kairos_env.cli import main as cli
from kairos_env.world_model.hub import push_to_hub


class Hub:
    """Remembers what it was asked for."""

    asked: list[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        Hub.asked = []

    def create_repo(self, name: str, **options: Any) -> None:
        self.asked.append((name, options))

    def upload_folder(self, **options: Any) -> str:
        self.asked.append(("upload", options))
        return "https://hub/commit"


def test_a_model_is_uploaded_with_its_card(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert cli.main(["push", "kairos-tiny", "me/tiny", "--private"]) == 0
    (name, options), (_, upload) = Hub.asked
    assert (name, options) == ("me/tiny", {"private": True, "exist_ok": True})
    files = {path for pattern in upload["allow_patterns"] for path in Path(upload["folder_path"]).glob(pattern)}
    assert {"model.safetensors", "config.json", "README.md"} <= {path.name for path in files}
    assert "https://hub/commit" in capsys.readouterr().out


def test_wrong_names_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tiny' is no name on the hub; it looks like owner/name"):
        push_to_hub("kairos-tiny", "tiny")
    with pytest.raises(FileNotFoundError):
        push_to_hub(tmp_path / "nothing", "me/tiny")
