from __future__ import annotations

import pytest

from kairos_env.sims.libero.tasks import (
    DIMENSIONS,
    PRO_SUITES,
    SUITES,
    base_suite,
    instruction_of_name,
    short_dimension,
)


def test_instruction_leaves_out_the_scene() -> None:
    assert instruction_of_name("KITCHEN_SCENE10_close_the_drawer") == "close the drawer"
    assert instruction_of_name("LIVING_ROOM_SCENE2_put_it_in_SCENE3_box") == "put it in SCENE3 box"
    assert instruction_of_name("open_the_drawer") == "open the drawer"


def test_dimensions_go_by_both_names() -> None:
    assert [short_dimension(name.upper()) for name in DIMENSIONS.values()] == list(DIMENSIONS)
    assert short_dimension("Position perturbation") == "position"
    with pytest.raises(ValueError, match="did you mean 'camera'"):
        short_dimension("kamera")


def test_suites_of_libero_pro_are_made_from_liberos() -> None:
    assert base_suite("libero_object_object") == base_suite("libero_object") == "libero_object"
    assert {base_suite(suite) for suite in PRO_SUITES} == set(SUITES[:4])
