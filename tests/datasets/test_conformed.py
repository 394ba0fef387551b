"""Recordings read at a lower rate and in smaller pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from so101 import write_so101
from two_robots import SPEC, write_recording

from kairos_env.datasets.conform import changes, sampled
from kairos_env.datasets.layouts import open_recording, read_as
from kairos_env.records import SpecMismatch


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_videos_are_thinned_and_made_small_as_they_are_decoded(version: str, tmp_path: Path) -> None:
    path = write_so101(tmp_path / "arm", version, episodes=2, seconds=0.7, size=(96, 128))
    whole, small = open_recording(path), open_recording(path, None, (48, 64), 5)
    assert small.spec.control_rate_hz == 5 and small.lengths == [3, 3] and small.names == whole.names
    assert [(c.height, c.width) for c in small.spec.cameras] == [(48, 64)] * 2
    assert changes(whole.spec, small.spec) == [
        "pictures 96 x 128 -> 48 x 64",
        "30 Hz -> 5 Hz, 6 steps a decision",
    ]
    full, thin = whole[1], small[1]
    np.testing.assert_array_equal(thin.proprio, full.proprio[[0, 6, 12, 18]])
    np.testing.assert_array_equal(thin.actions, full.actions[[5, 11, 17]])  # what was last asked of the joints
    for camera in ("front", "wrist"):
        for index in range(4):
            picture = Image.fromarray(full.images[camera][6 * index]).resize((64, 48), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(thin.images[camera][index], np.asarray(picture))
    assert thin.outcome_known is False and thin.instruction == full.instruction


def test_any_layout_is_resampled_and_keeps_its_labels_at_its_own_rate(tmp_path: Path) -> None:
    recording = open_recording(write_recording(tmp_path / "recording"))
    small = open_recording(tmp_path / "recording", None, (32, 48))
    assert small[0].images["scene"].shape[1:] == (32, 48, 3) and small[0].labels.keys() == recording[0].labels.keys()
    slow = open_recording(tmp_path / "recording", None, (), SPEC.control_rate_hz / 2)
    assert len(slow[0]) == len(recording[0]) // 2
    with pytest.raises(SpecMismatch, match="whole multiple"):
        open_recording(tmp_path / "recording", None, (), SPEC.control_rate_hz * 0.7)
    with pytest.raises(ValueError, match=r"height and width.*such as 48,64; got \(64,\)"):
        open_recording(tmp_path / "recording", None, (64,))


def test_displacements_add_up_and_so_do_their_ranges(tmp_path: Path) -> None:
    recording = open_recording(write_recording(tmp_path / "recording"))
    slow = read_as(recording, sampled(recording.spec, rate=recording.spec.control_rate_hz / 3))
    field = next(i for i, f in enumerate(recording.spec.action) if f.kind == "delta_position")
    want = recording[0].actions[:, field].reshape(-1, 3).sum(1)
    np.testing.assert_allclose(slow[0].actions[:, field], want, atol=1e-6)
    assert slow.spec.action[field].high == 3 * recording.spec.action[field].high
