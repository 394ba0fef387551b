"""Options, names and numbers that every simulator checks in the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from point_simulator import Point

from kairos_env.sims.simulator import AnswersAtOnce, as_initial_state, check_names, require_state

LEGAL = ("task", "initial_state")


def test_options_are_checked_by_name() -> None:
    assert check_names({"task": "push"}, LEGAL, "reset option") == {"task": "push"}
    for old in ("initial_state_id", "init_state"):
        with pytest.raises(ValueError, match=f"the reset option '{old}' is called 'initial_state' now"):
            check_names({old: 3}, LEGAL, "reset option")
    with pytest.raises(ValueError, match="unknown reset option 'tusk'; did you mean 'task'"):
        check_names({"tusk": 3}, LEGAL, "reset option")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (-1, "initial_state=-1: push has 50, 0 ... 49"),
        (50, "push has 50"),
        (2.0, "give an integer"),
        (True, "give an integer"),
        ("3", "give an integer"),
    ],
)
def test_an_initial_state_is_a_number_that_there_is(chosen: Any, said: str) -> None:
    assert as_initial_state(np.int64(7), 50, "push") == 7
    with pytest.raises(ValueError, match=said):
        as_initial_state(chosen, 50, "push")


@pytest.mark.parametrize("chosen", [2**63, 2**70, -1])
def test_an_initial_state_without_a_limit_has_64_bits(chosen: int) -> None:
    assert as_initial_state(2**63 - 1, None, "push") == 2**63 - 1
    with pytest.raises(ValueError, match=r"from 0 to 2\*\*63 - 1"):
        as_initial_state(chosen, None, "push")


def test_what_is_no_state_is_named() -> None:
    require_state({"physics": 0}, ("physics",))
    with pytest.raises(TypeError, match="takes what get_state returned, got int"):
        require_state(3, ("physics",))
    with pytest.raises(ValueError, match="lacks physics: it is of another simulator"):
        require_state({}, ("physics",))


def test_a_simulator_of_this_process_answers_in_halves() -> None:
    halves, whole = AnswersAtOnce(Point()), Point()
    options = {"task": "near", "initial_state": 3}
    halves.send_reset(seed=1, options=options)
    observation, reward, terminated, truncated, info = halves.receive()
    assert repr((observation, info)) == repr(whole.reset(seed=1, options=options))
    assert (reward, terminated, truncated) == (0.0, False, False)
    halves.send_step(np.zeros(2, np.float32))
    assert repr(halves.receive()) == repr(whole.step(np.zeros(2, np.float32)))
