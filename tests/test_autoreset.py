"""Columns of info and misuse; the modes themselves are tested with the vector environments that have them."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from kairos_env.autoreset import autoreset_mode_of, check_num_envs, columns_info, join_info, rows_info, select_info

ROWS = {
    0: {"success": True, "where": np.arange(3), "rating": 2, "objects": {"cube": {"height": 1.0}}, "task": "push"},
    2: {"success": False, "where": np.ones(3, np.int64), "rating": None, "objects": {"cup": {"height": 2.0}}},
}


def test_what_single_environments_say_becomes_columns_with_masks() -> None:
    info = rows_info(ROWS, 3)
    assert info["success"].tolist() == [True, False, False] and info["success"].dtype == bool
    assert info["_success"].tolist() == [True, False, True]
    assert info["where"].tolist() == [[0, 1, 2], [0, 0, 0], [1, 1, 1]]
    assert info["rating"].tolist() == [2, None, None], "numbers and None together"
    assert info["task"].tolist() == ["push", None, None] and info["_task"].tolist() == [True, False, False]
    assert info["objects"]["cup"]["height"].tolist() == [0.0, 0.0, 2.0]
    assert info["objects"]["_cube"].tolist() == [True, False, False]


def test_arrays_of_different_shapes_are_objects() -> None:
    info = rows_info({0: {"x": np.zeros(2)}, 1: {"x": np.zeros(3)}}, 2)
    assert info["x"].dtype == object and [len(x) for x in info["x"]] == [2, 3]


def test_rows_can_be_selected_and_joined_again() -> None:
    info = rows_info(ROWS, 3)
    first, last = (select_info(info, np.array(mask)) for mask in ([True, False, False], [False, True, True]))
    assert "task" not in last and first["task"].tolist() == ["push", None, None]
    assert last["where"].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    joined = join_info(first, last)
    assert joined.keys() == info.keys()
    for key in ("success", "_success", "where", "rating", "task"):
        np.testing.assert_array_equal(joined[key], info[key])
    assert joined["objects"]["cup"]["height"].tolist() == [0.0, 0.0, 2.0]


def test_columns_are_meant_where_the_mask_says_so() -> None:
    info = columns_info({"x": np.array([1.0, 2.0])}, np.array([False, True]))
    assert info["x"].tolist() == [0.0, 2.0] and info["_x"].tolist() == [False, True]
    assert columns_info({"x": np.array([1.0, 2.0])}, np.zeros(2, bool)) == {}


def test_misuse_is_named() -> None:
    assert autoreset_mode_of("SameStep") is AutoresetMode.SAME_STEP
    with pytest.raises(ValueError, match=r"'Sometimes' is unknown.*NextStep"):
        autoreset_mode_of("Sometimes")
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match="num_envs is"):
            check_num_envs(wrong)  # type: ignore[arg-type]
