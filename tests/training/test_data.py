"""What a training run reads: several recordings as the episodes of one robot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from two_robots import SPEC, episode, write_other_recording, write_recording

from kairos_env.records import SpecMismatch
from kairos_env.training.data import DataConfig, instructions, load_mixture


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recording"))


@pytest.fixture(scope="module")
def other_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other_recording(tmp_path_factory.mktemp("other"))


def test_limit_and_several_recordings(recording: Path) -> None:
    data = load_mixture(DataConfig(str(recording), more=(str(recording),), limit=3))
    assert len(data.episodes) == 6 and data.spec.diff(SPEC) == [] and data.odds is None


def test_robots_mix_and_weights_are_shared_out(recording: Path, other_recording: Path) -> None:
    data = load_mixture(DataConfig(str(recording), more=(str(other_recording),), weights=(0.5, 2.0)))
    assert data.spec == SPEC and [len(e) for e in data.episodes] == [12] * 9
    assert data.odds == [0.1] * 5 + [0.5] * 4
    ours, theirs = data.episodes[0], data.episodes[-1]
    assert ours.proprio_mask is None and ours.action_mask is None
    assert theirs.proprio_mask is not None and theirs.proprio_mask.tolist() == [False, True, True, True]
    assert theirs.action_mask is None  # it has all four, and one that nobody asks for
    with pytest.raises(ValueError, match="data.weights has 1 entries for 2 recordings"):
        load_mixture(DataConfig(str(recording), more=(str(other_recording),), weights=(1.0,)))
    with pytest.raises(SpecMismatch, match="5 Hz and 'other' at 10 Hz"):
        load_mixture(DataConfig(str(other_recording), more=(str(recording),)))
    with pytest.raises(ValueError, match="feature map has no use"):
        load_mixture(DataConfig(str(recording), maps=("map.json",)))


def test_instructions_come_from_the_data() -> None:
    rng = np.random.default_rng(0)
    assert instructions([episode(rng, "push"), episode(rng)]) == {"push": "please push", "reach": "please reach"}


def test_a_task_in_several_wordings_is_listed_with_the_first() -> None:
    first = episode(np.random.default_rng(0))
    assert instructions([first, dataclasses.replace(first, instruction="other words")]) == {"reach": "please reach"}
