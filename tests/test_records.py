from __future__ import annotations

import pytest

from kairos_env.records import stored_initial_state


@pytest.mark.parametrize(
    ("attributes", "number"), [({"initial_state": 3}, 3), ({"initial_state_id": 4, "seed": 1}, 4), ({}, -1)]
)
def test_files_of_both_spellings_name_the_initial_state(attributes: dict[str, int], number: int) -> None:
    assert stored_initial_state(attributes) == number
