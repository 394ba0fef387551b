from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from libero_table import BUTTER, MILK, Table, make_table

from kairos_env.collect.plans import RecordConfig
from kairos_env.collect.recorder import record
from kairos_env.collect.replay import read_demonstrations, replay_all
from kairos_env.datasets.hdf5.libero import LiberoFile
from kairos_env.datasets.hdf5.recorded import EpisodeWriter


@pytest.mark.parametrize("layout", ["libero", "kairos"])
def test_replays_come_to_the_same_places_and_tell_when_they_do_not(tmp_path: Path, layout: str) -> None:
    config = RecordConfig(
        str(tmp_path / "demos"),
        per_task=2,
        behaviours={"expert": 1.0},
        layout=layout,  # type: ignore[arg-type]
        workers=1,
    )
    record(config, partial(make_table), progress=False)
    results = replay_all([tmp_path / "demos"], make_env=lambda one: Table(), progress=False)
    assert len(results) == 4 and all(one.agrees and one.apart < 1e-5 for one in results)
    never = replay_all([tmp_path / "demos"], 2, make_env=lambda one: Table(never=(MILK, BUTTER)), progress=False)
    assert [one.agrees for one in never] == [False, False]
    if layout == "kairos":
        return
    first = LiberoFile(tmp_path / "demos")[0]
    np.savez(tmp_path / "libero_object_4.npz", actions_0=first.actions, eef_0=first.proprio[:-1, :4])
    (one,) = read_demonstrations(tmp_path / "libero_object_4.npz")
    assert one.start == {"benchmark": "libero", "suite": "libero_object", "task": 4, "initial_state": 0}
    assert one.spec.control_rate_hz == 20
    np.testing.assert_array_equal(one.hand, first.proprio[:-1, :3])
    np.savez(tmp_path / "mine.npz", actions_0=first.actions)
    with pytest.raises(ValueError, match="not named <suite>_<task index>.npz"):
        list(read_demonstrations(tmp_path / "mine.npz"))
    with EpisodeWriter(tmp_path / "others.hdf5", LiberoFile(tmp_path / "demos").spec) as writer:
        writer.add(first)
    with pytest.raises(ValueError, match="does not say in which simulator"):
        list(read_demonstrations(tmp_path / "others.hdf5"))
