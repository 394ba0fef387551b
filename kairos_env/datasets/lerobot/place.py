"""Where a dataset lies: in a folder, or on the hub, from which its files are brought here first."""

from __future__ import annotations

import re
from pathlib import Path

from kairos_env.datasets.lerobot.documents import DatasetError
from kairos_env.hub import download, is_hub_name


def locate(path: str | Path, revision: str | None, patterns: list[str]) -> Path:
    """The dataset's folder; a hub id is brought here first, as far as ``patterns`` reach."""
    folder = Path(path)
    if folder.is_dir():
        if revision is not None:
            raise DatasetError(f"{path} is a folder; a revision belongs to a dataset on the hub")
        return folder
    if folder.exists():
        raise DatasetError(f"{path} is a file; a LeRobot dataset is a folder with meta/info.json")
    if not is_hub_name(str(path)):
        raise FileNotFoundError(f"no such folder: {path} (nor is it a hub id, which looks like owner/name@revision)")
    try:
        return download(str(path), patterns, "dataset", revision)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is not a folder here, and the hub does not give it: {error}") from error


def video_patterns(feature: str) -> list[str]:
    """Patterns of the paths of a feature's videos in v3.x and v2.x."""
    plain = re.sub(r"([\[*?])", r"[\1]", feature)
    return [f"videos/{plain}/*", f"videos/*/{plain}/*"]
