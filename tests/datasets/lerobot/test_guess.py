"""What is guessed from the names of a LeRobot dataset's features."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from so101 import write_so101

from kairos_env.datasets.layouts import open_recording


def renamed(root: Path, names: dict[str, str], also: dict[str, str]) -> Path:
    """A v2.1 dataset whose features have other names; ``also`` are copies of numbers: new name -> old name."""
    write_so101(root, "v2.1", episodes=1, seconds=0.2, size=(32, 48))
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"] = {names.get(key, key): value for key, value in info["features"].items()}
    for new, old in also.items():
        info["features"][new] = info["features"][names.get(old, old)] | {"names": None}
    path.write_text(json.dumps(info))
    (root / "meta" / "episodes_stats.jsonl").unlink()
    for file in root.rglob("*.parquet"):
        table = pq.read_table(file)
        for new, old in also.items():
            table = table.append_column(new, table[old])
        pq.write_table(table.rename_columns([names.get(column, column) for column in table.column_names]), file)
    for key, new in names.items():
        for folder in list(root.glob(f"videos/*/{key}")):
            folder.rename(folder.with_name(new))
    return root


OPENPI = {"observation.images.front": "image", "observation.images.wrist": "wrist_image", "action": "actions"}


@pytest.mark.parametrize(
    ("state", "also", "found"),
    [
        ("state", {}, ["state"]),
        ("joint_position", {"gripper_position": "observation.state"}, ["joint_position", "gripper_position"]),
        ("observation.state", {}, ["observation.state"]),
    ],
)
def test_the_names_of_openpi_and_droid_are_found(
    state: str, also: dict[str, str], found: list[str], tmp_path: Path
) -> None:
    data = open_recording(renamed(tmp_path / "set", OPENPI | {"observation.state": state}, also))
    assert [camera.name for camera in data.spec.cameras] == ["image", "wrist_image"]
    assert list(dict.fromkeys(scalar.feature for scalar in data.mapping.proprio)) == found
    assert data.spec.action_dim == 6 and len(data[0].images["wrist_image"]) == 6


def test_numbers_that_are_not_used_are_named(tmp_path: Path) -> None:
    path = renamed(tmp_path / "set", {}, {"observation.effort": "observation.state"})
    with pytest.warns(UserWarning, match=r"numbers that are not used: observation.effort; a feature map can"):
        open_recording(path)
