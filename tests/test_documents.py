"""The Python in README and docs runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from libero_home import libero_home

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.fixture(scope="module")
def folder_with_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which ``runs/record`` and ``runs/lerobot`` exist, as the pages assume."""
    from kairos_env.datasets.hdf5.recorded import EpisodeWriter
    from kairos_env.datasets.lerobot.writer import LeRobotWriter
    from kairos_env.records import Episode
    from kairos_env.sims.tabletop.env import make_spec

    folder, spec = tmp_path_factory.mktemp("reader"), make_spec()
    episode = Episode(
        images={"scene": np.zeros((3, 64, 64, 3), np.uint8)},
        proprio=np.zeros((3, spec.proprio_dim), np.float32),
        actions=np.zeros((2, spec.action_dim), np.float32),
        rewards=np.zeros(2, np.float32),
        success=np.zeros(2, np.bool_),
    )
    with EpisodeWriter(folder / "runs" / "record" / "shard_0.hdf5", spec) as writer:
        writer.add(episode)
    with LeRobotWriter(folder / "runs" / "lerobot", spec) as export:
        export.add(episode)
    return folder


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, folder_with_recording: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if "Kairos-LIBERO" in block:
        sims = folder_with_recording / "sims"
        sims.mkdir(exist_ok=True)
        if not (sims / "libero").exists():
            (sims / "libero").symlink_to(libero_home(), target_is_directory=True)
        environment["KAIROS_SIMS"] = str(sims)
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=folder_with_recording,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
