"""The contract of policies and its checker."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from counting_policy import SPEC, Counting, WindowModel

from kairos_env.policies import (
    ChunkExecution,
    Policy,
    RandomPolicy,
    ReplayPolicy,
    TemporalEnsembling,
    WorldModelPolicy,
    check_policy,
)
from kairos_env.records import Array, Observation


@pytest.mark.parametrize(
    "policy",
    [
        RandomPolicy(SPEC, seed=1),
        ReplayPolicy(np.zeros((3, 4), np.float32), SPEC),
        ChunkExecution(RandomPolicy(SPEC), 3),
        TemporalEnsembling(RandomPolicy(SPEC)),
        ChunkExecution(Counting(), 2),
        TemporalEnsembling(Counting()),
        WorldModelPolicy(WindowModel()),  # type: ignore[arg-type]
        WorldModelPolicy(WindowModel(), execute=3),  # type: ignore[arg-type]
    ],
    ids=lambda p: type(p).__name__,
)
def test_policies_keep_the_contract(policy: Policy) -> None:
    check_policy(policy, SPEC)


def test_the_checker_names_the_mistake() -> None:
    class Forgetful(Counting):
        def reset(self, seed: int | None = None) -> None:
            self.told = []
            self.decisions = getattr(self, "decisions", 0)

    class Wide(Counting):
        def act(self, observation: Observation) -> Array:
            return np.ones(4, np.float32)

    class Double(Counting):
        def act(self, observation: Observation) -> Array:
            return np.zeros(4)

    with pytest.raises(AssertionError, match="reset"):
        check_policy(Forgetful(), SPEC)
    with pytest.raises(AssertionError, match="bounds"):
        check_policy(Wide(), SPEC)
    with pytest.raises(AssertionError, match="float64"):
        check_policy(Double(), SPEC)
    with pytest.raises(AssertionError, match="lacks"):
        check_policy(object(), SPEC)  # type: ignore[arg-type]


def test_importing_policies_loads_no_torch() -> None:
    code = (
        "import sys, kairos_env.policies as p; p.PlannerPolicy, p.cem, p.WorldModelPolicy, p.TemporalEnsembling;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
