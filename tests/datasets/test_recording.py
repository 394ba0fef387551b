"""What every recording does: index, slice, iterate, and leave broken episodes out by name."""

from __future__ import annotations

import numpy as np
import pytest
from two_robots import SPEC, episode

from kairos_env.datasets.recording import BrokenEpisode, Recording, episode_problem
from kairos_env.records import Episode


class InMemory(Recording):
    def __init__(self, lengths: list[int]) -> None:
        super().__init__()
        self.spec, self.lengths = SPEC, lengths
        self.names = [f"memory:{number}" for number in range(len(lengths))]

    def _episode(self, index: int) -> Episode:
        if index == 1:
            raise BrokenEpisode("memory:1: torn")
        return episode(np.random.default_rng(index), steps=self.lengths[index])


def test_broken_episodes_are_named_once_and_left_out() -> None:
    recording = InMemory([3, 4, 5])
    assert (len(recording), recording.total, len(recording[-1]), [len(e) for e in recording[2:]]) == (3, 12, 5, [5])
    with pytest.warns(UserWarning, match=r"left out 1 broken episode:\n  memory:1: torn$"):
        assert [(index, len(e)) for index, e in recording.sound()] == [(0, 3), (2, 5)]
    assert recording.broken == {"memory:1": "torn"}
    with pytest.raises(BrokenEpisode, match="memory:1: torn"):
        recording[1]
    with pytest.raises(IndexError):
        recording[3]
    with pytest.warns(UserWarning, match=r"left out 30 broken episodes:(\n.*){20}\n  and 10 more$"):
        recording.leave_out({str(number): "gone" for number in range(30)})


def test_what_an_episode_to_be_written_lacks_is_said() -> None:
    whole = episode(np.random.default_rng(0))
    assert episode_problem(whole, SPEC) == ""
    whole.proprio[2, 0] = np.nan
    assert episode_problem(whole, SPEC) == "proprio holds a non-finite value"
