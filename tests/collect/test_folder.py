from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from libero_table import BUTTER, MILK, Table

from kairos_env.collect.folder import LiberoLayout, RecordingFolder, ShardLayout, write_part
from kairos_env.collect.plans import EpisodePlan, RecordConfig
from kairos_env.collect.recorder import record_episode
from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.recorded import EpisodeFile
from kairos_env.records import Camera, Episode, Field, RobotSpec

SPEC = RobotSpec(
    name="one-joint",
    cameras=(Camera("scene", 8, 6),),
    proprio=(Field("x", -1, 1, "m"),),
    action=(Field("dx", -0.1, 0.1, "m", "delta_position"),),
    control_rate_hz=5.0,
)
KEPT = {"kept": True, "success": True, "attempts": 1}


def episode(seed: int, steps: int = 3) -> Episode:
    rng = np.random.default_rng(seed)
    images = {"scene": rng.integers(0, 256, (steps + 1, 8, 6, 3), dtype=np.uint8)}
    proprio, actions = rng.random((steps + 1, 1), np.float32), 0.1 * rng.random((steps, 1), np.float32)
    return Episode(images, proprio, actions, np.zeros(steps, np.float32), np.zeros(steps, np.bool_), "push", seed=seed)


def folder_of(path: Path, episodes: int, per_file: int = 4) -> RecordingFolder:
    plans = [EpisodePlan(i, i, "push", "expert", i) for i in range(episodes)]
    return RecordingFolder(path, plans, ShardLayout(SPEC, per_file, {"a": 1}))


def fill(folder: RecordingFolder, numbers: list[int]) -> None:
    for number in numbers:
        write_part(folder.folder, folder.layout, number, episode(number))
        folder.add(number, KEPT)


def test_parts_become_shards_and_a_folder_can_grow(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 5)
    assert folder.missing == [0, 1, 2, 3, 4]
    fill(folder, [4, 1, 0, 3])
    # started again after a kill: shard 1 was complete, the parts of shard 0 are still parts
    assert sorted(p.name for p in tmp_path.glob("*.hdf5")) == ["shard_0001.hdf5"]
    folder = folder_of(tmp_path, 7)
    assert folder.missing == [2, 5, 6]
    fill(folder, folder.missing)
    folder.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["episodes.jsonl", "shard_0000.hdf5", "shard_0001.hdf5"]
    episodes = EpisodeFile(tmp_path)
    assert [e.seed for e in episodes] == list(range(7)) and episodes.metadata == {"a": 1}
    for number, found in enumerate(episodes):
        np.testing.assert_array_equal(found.images["scene"], episode(number).images["scene"])


def test_an_episode_that_is_given_up_is_not_missing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 3)
    fill(folder, [0, 2])
    folder.add(1, {"kept": False, "success": False, "attempts": 3})
    again = folder_of(tmp_path, 3)
    assert not again.missing and again.kept == [0, 2] and len(EpisodeFile(tmp_path / "shard_0000.hdf5")) == 2


def test_a_damaged_shard_counts_as_missing(tmp_path: Path) -> None:
    fill(folder_of(tmp_path, 2, per_file=1), [0, 1])
    shard = tmp_path / "shard_0001.hdf5"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="shard_0001"):
        assert folder_of(tmp_path, 2, per_file=1).missing == [1]


def test_what_was_recorded_for_libero_before_a_kill_is_found_again(tmp_path: Path) -> None:
    layout = LiberoLayout(Table(), {})
    plans = [EpisodePlan(i, i, (MILK, BUTTER)[i % 2], "expert", i) for i in range(6)]

    def write(number: int) -> None:
        config = RecordConfig("", layout="libero", decisions=3)
        write_part(tmp_path, layout, number, record_episode(Table(), plans[number], config))

    folder = RecordingFolder(tmp_path, plans, layout)
    for number in (0, 2, 4, 1):  # all of one task, and one of the other, which was killed before it was noted
        write(number)
        if number != 1:
            folder.add(number, KEPT)
    assert [path.name for path in (tmp_path / "libero_object").iterdir()] == [f"{MILK.split('/')[2]}_demo.hdf5"]
    again = RecordingFolder(tmp_path, plans, layout)
    assert again.missing == [3, 5] and again.kept == [0, 1, 2, 4]
    more = RecordingFolder(tmp_path, [*plans, EpisodePlan(6, 6, MILK, "expert", 6)], layout)
    plans.append(more.plans[6])
    write(6)
    more.add(6, KEPT)
    assert [e.initial_state for e in LiberoFile(tmp_path / "libero_object")] == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="tasks named benchmark/suite/name, got 'push'"):
        layout.file_of(EpisodePlan(0, 0, "push", "expert", 0))
