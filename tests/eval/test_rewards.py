"""Solving a task pays more than anything else."""

from __future__ import annotations

import pytest

from kairos_env.cli import main as cli
from kairos_env.eval.rewards import Earnings, RewardsConfig, compare_rewards
from kairos_env.sims.tabletop.tasks import TASKS


@pytest.fixture(scope="module")
def played() -> list[Earnings]:
    return compare_rewards(RewardsConfig(episodes=2, first_initial_state=440_000))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("discount", [1.0, 0.95])
def test_solving_earns_more_than_any_behaviour_that_does_not_solve(
    played: list[Earnings], task: str, discount: float
) -> None:
    mine = [e for e in played if e.task == task]
    experts = {e.initial_state: e for e in mine if e.behaviour == "expert"}
    idle = [e for e in mine if not e.solved]
    assert len(experts) == 2 and all(expert.solved for expert in experts.values())
    assert {"hover", "random", "still"} <= {e.behaviour for e in idle}
    for other in idle:
        expert = experts[other.initial_state]
        assert expert.total("shaped", discount) > other.total("shaped", discount), other.behaviour
        assert expert.total("sparse", discount) > other.total("sparse", discount), other.behaviour
        if other.behaviour == "hover":  # which is what the dense reward pays for
            assert expert.total("dense", discount) < other.total("dense", discount)


def test_the_table_is_printed_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("eval rewards --tasks reach --behaviours expert,still --episodes 1 --decisions 8".split()) == 0
    head, _, expert, still = capsys.readouterr().out.strip().splitlines()
    assert head.split()[:4] == ["task", "behaviour", "solved", "shaped"]
    assert expert.split()[:3] == ["reach", "expert", "100%"]
    assert still.split()[:3] == ["reach", "still", "0%"] and "-8.0" in still
    assert cli.main("eval rewards --tasks reech".split()) == 2
    assert "did you mean 'reach'" in capsys.readouterr().err
