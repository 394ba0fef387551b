"""An agent is judged in imagination and in reality from the same initial states."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kairos_env.world_model.checkpoint import bundled_models
from kairos_env.world_model.model import WorldModel

pytest.importorskip("stable_baselines3")

from kairos_env.env.practice import PracticeConfig
from kairos_env.eval.imagination.practice import Judgement, judge, practice_table, practise_and_judge


class Reacher:
    """Moves its hand to the object by what the features say, or away from it."""

    def __init__(self, model: WorldModel, sign: float) -> None:
        self.axes, self.sign = [model.feature_names.index(f"object-hand.{axis}") for axis in "xyz"], sign

    def get_env(self) -> Any:
        return SimpleNamespace(physical=lambda action: action)

    def predict(self, seen: dict[str, np.ndarray], deterministic: bool) -> tuple[np.ndarray, None]:
        move = self.sign * np.clip(0.05 * seen["features"][..., self.axes], -0.05, 0.05)
        return np.concatenate([move, np.full((*move.shape[:-1], 1), -1)], -1).astype(np.float32), None


@pytest.mark.skipif("kairos-tiny" not in bundled_models(), reason="needs the bundled model")
@pytest.mark.parametrize(("sign", "solves"), [(1.0, True), (-1.0, False)])
def test_who_reaches_succeeds_in_both(sign: float, solves: bool) -> None:
    model = WorldModel.from_pretrained("kairos-tiny")
    states = range(440_000, 440_003)
    imagined, real = judge(Reacher(model, sign), "reach", model, "Kairos-Robosuite-v0", states, 8)
    assert imagined.tolist() == real.tolist() == [solves] * 3


def test_the_table_has_each_agent_and_all_of_them() -> None:
    config = PracticeConfig(task="lift", algorithm="sac")
    first = Judgement(config, np.array([True] * 10), np.array([True] * 8 + [False] * 2), 10.0)
    second = Judgement(PracticeConfig(seed=1), np.array([True] * 10), np.array([True] * 6 + [False] * 4), 20.0)
    head, _, one, two, every = practice_table([first, second]).splitlines()
    assert head.startswith("lift, sac") and "real ÷ imagined" in head
    assert one.startswith("seed 0") and two.startswith("seed 1")
    assert one.split()[2] == "100" and "80 [49, 94]" in one and "0.80" in one
    assert "70 [48, 85]" in every and "0.70" in every and every.endswith("15")


def test_an_agent_needs_a_reality() -> None:
    with pytest.raises(ValueError, match="names no reality to judge an agent in"):
        next(practise_and_judge(PracticeConfig(simulator="dataset")))
