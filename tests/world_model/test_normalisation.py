"""Statistics files and the four normalisation modes, against the formulas in float64."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos_env.world_model.normalisation import MODES, Normaliser, check_mode

DATA = Path(os.environ.get("KAIROS_TEST_DATA", ""), "robotwin", "meta", "robotwin_dataset_stats.json")
STEPS = 3


def statistics(seed: int = 0, state: int = 4, action: int = 3) -> dict[str, Any]:
    """A file of the published layout; the last dimension of each part hardly moves."""
    rng = np.random.default_rng(seed)

    def part(dim: int, steps: int) -> dict[str, Any]:
        values = rng.normal(rng.uniform(-2, 2, dim), rng.uniform(0.1, 3, dim), (500, steps, dim))
        values[..., -1] = 0.7 + 1e-6 * rng.random((500, steps))
        out = {}
        for prefix, axes in (("global_", (0, 1)), ("stepwise_", (0,))):
            out[prefix + "min"], out[prefix + "max"] = values.min(axes), values.max(axes)
            out[prefix + "q01"], out[prefix + "q99"] = np.quantile(values, [0.01, 0.99], axis=axes)
            out[prefix + "mean"], out[prefix + "std"] = values.mean(axes), values.std(axes)
        return {"default": {k: v.tolist() for k, v in out.items()}}

    return {"state": part(state, 1), "action": part(action, STEPS), "num_episodes": 12, "num_transition": 500}


def reference(entries: dict[str, Any], mode: str, prefix: str, x: np.ndarray) -> np.ndarray:
    """The formulas, one number at a time."""
    get = lambda name: np.asarray(entries["default"][prefix + name], np.float64)
    out = np.empty(x.shape)
    for index, value in np.ndenumerate(x):
        where = index[-2:] if prefix == "stepwise_" else index[-1:]
        if mode == "z-score":
            y = (value - get("mean")[where]) / (get("std")[where] + 1e-8)
        else:
            names = {"min/max": ("min", "max"), "q01/q99": ("q01", "q99")}
            low, high = (get(name)[where] for name in names[mode]) if mode in names else (-2.0, 3.0)
            y = value - low if high - low < 1e-4 else 2 * (value - low) / (high - low) - 1
        out[index] = min(max(y, -5), 5)
    return out


@pytest.mark.parametrize("mode", [*MODES, "-2/3"])
@pytest.mark.parametrize("stepwise", [False, True])
def test_both_maps_follow_the_formulas(mode: str, stepwise: bool) -> None:
    data = statistics()
    normaliser = Normaliser.from_statistics(data, mode, stepwise)
    rng = np.random.default_rng(1)
    state, action = rng.normal(0, 4, (6, 4)), rng.normal(0, 4, (2, STEPS, 3))
    prefix = "stepwise_" if stepwise else "global_"
    np.testing.assert_allclose(normaliser.state.forward(state), reference(data["state"], mode, "global_", state), 1e-6)
    np.testing.assert_allclose(normaliser.action.forward(action), reference(data["action"], mode, prefix, action), 1e-6)
    assert normaliser.state.forward(state).dtype == normaliser.action.backward(action).dtype == np.float32
    assert (normaliser.state.dim, normaliser.action.dim) == (4, 3)
    assert (normaliser.episodes, normaliser.transitions) == (12, 500)


@given(seed=st.integers(0, 99), mode=st.sampled_from([*MODES, "-1/1", "0/255"]), stepwise=st.booleans())
def test_the_way_out_undoes_the_way_in(seed: int, mode: str, stepwise: bool) -> None:
    action = Normaliser.from_statistics(statistics(seed), mode, stepwise).action
    inside = np.random.default_rng(seed).uniform(-5, 5, (2, STEPS, 3)).astype(np.float32)
    physical = action.backward(inside)
    again = action.forward(physical)
    # float32 physical values resolve the normalised ones only to scale * spacing
    spacing = action.scale * np.spacing(np.abs(physical).max(axis=(0, 1)).astype(np.float32))
    assert (np.abs(again - inside) <= 1e-5 + spacing).all()


def test_the_way_in_clamps_and_the_way_out_does_not() -> None:
    action = Normaliser.from_statistics(statistics(), "-1/1").action
    assert action.forward([100.0, -100.0, 3.0]).tolist() == [5, -5, 3]
    assert action.backward([100.0, -100.0, 3.0]).tolist() == [100, -100, 3]


@pytest.mark.parametrize("mode", ["min/max", "q01/q99"])
def test_a_dimension_that_does_not_move_is_centred_not_scaled(mode: str) -> None:
    state = Normaliser.from_statistics(statistics(), mode).state
    moved = state.forward([[0, 0, 0, 0.7], [0, 0, 0, 0.75]])[:, -1]
    np.testing.assert_allclose(moved, [0, 0.05], atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("min-max", "did you mean 'min/max'"),
        ("zscore", "did you mean 'z-score'"),
        ("", "legal: min/max, q01/q99, z-score"),
        ("a/b", "constant like"),
        ("1/2/3", "constant like"),
        ("1/-1", "lower one first"),
        ("1/1", "lower one first"),
        ("nan/1", "finite bounds"),
        ("-inf/1", "finite bounds"),
    ],
)
def test_unknown_modes(mode: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Normaliser.from_statistics(statistics(), mode)
    with pytest.raises(ValueError, match=says):
        check_mode(mode)


@pytest.mark.parametrize(
    ("path", "value", "mode", "says"),
    [
        ("state", None, "min/max", "lack 'state'"),
        ("action default", None, "min/max", "lack 'action/default'"),
        ("action default global_q99", None, "q01/q99", "lack 'action/default/global_q99'; there is .*global_min"),
        ("num_episodes", None, "min/max", "lack 'num_episodes'"),
        ("num_transition", "many", "min/max", "num_transition is 'many'"),
        ("state default global_min", [0.0, 0.0], "min/max", r"global_min has shape \(2,\), global_max has \(4,\)"),
        ("state default global_min", [[0.0] * 4], "min/max", r"expected \(D,\)"),
        ("state default global_min", [], "min/max", r"expected \(D,\)"),
        ("state default global_min", ["a"] * 4, "min/max", "no array of numbers"),
        ("state default global_min", [0.0, [1.0]], "min/max", "no array of numbers"),
        ("state default global_min", [0.0, 0.0, 1e9, 0.0], "min/max", "min lies above global_max in dimension 2"),
        ("action default global_std", [1.0, float("nan"), 1.0], "z-score", "global_std is not finite in dimension 1"),
        ("action default global_std", [1.0, -1.0, 1.0], "z-score", "negative"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(path: str, value: Any, mode: str, says: str, tmp_path: Path) -> None:
    data = statistics()
    *parents, last = path.split()
    node: Any = data
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    file = tmp_path / "stats.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=says) as error:
        Normaliser.from_file(file, mode)
    assert "stats.json" in str(error.value)


def test_files_that_are_no_statistics(tmp_path: Path) -> None:
    file = tmp_path / "stats.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="no JSON file of statistics"):
        Normaliser.from_file(file, "min/max")
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="lack 'num_episodes'"):
        Normaliser.from_file(file, "min/max")
    with pytest.raises(FileNotFoundError):
        Normaliser.from_file(tmp_path / "absent.json", "min/max")


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 5)), np.float64(0)])
def test_values_of_the_wrong_width(values: Any) -> None:
    with pytest.raises(ValueError, match=r"do not fit statistics of shape \(\.\.\., 4\)"):
        Normaliser.from_statistics(statistics(), "min/max").state.forward(values)


def test_step_wise_statistics_need_the_whole_chunk() -> None:
    action = Normaliser.from_statistics(statistics(), "min/max", stepwise=True).action
    with pytest.raises(ValueError, match=r"\(2, 3\) do not fit statistics of shape \(\.\.\., 3, 3\)"):
        action.backward(np.zeros((2, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    state = Normaliser.from_statistics(statistics(), "z-score").state
    for way in (state.forward, state.backward):
        with pytest.raises(ValueError, match=r"at index \[1, 2\]"):
            way([[0, 0, 0, 0], [0, 0, bad, 0]])


@pytest.mark.skipif(not DATA.is_file(), reason="needs the published RoboTwin statistics under KAIROS_TEST_DATA")
def test_the_published_robotwin_file() -> None:
    normaliser = Normaliser.from_file(DATA, "z-score")
    assert (normaliser.episodes, normaliser.transitions) == (95_262, 21_121_454)
    assert normaliser.state.scale.shape == normaliser.action.scale.shape == (14,)
    raw = json.loads(DATA.read_text())["action"]["default"]
    np.testing.assert_allclose(normaliser.action.backward(np.zeros((32, 14))), [raw["global_mean"]] * 32, rtol=1e-6)
    np.testing.assert_allclose(
        normaliser.action.forward(np.asarray(raw["global_mean"]) + raw["global_std"]), 1, rtol=1e-5
    )
    stepwise = Normaliser.from_file(DATA, "q01/q99", stepwise=True).action
    assert stepwise.scale.shape == (32, 14)
    np.testing.assert_allclose(stepwise.forward(raw["stepwise_q99"]), 1, rtol=1e-5)
