"""The plan of a run on RoboTwin: its seeds, words, limits and labels; no simulator is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from robotwin_home import note_outcomes, robotwin_home, separate_home

from kairos_env.eval.closed_loop.config import RoboTwinConfig
from kairos_env.eval.closed_loop.robotwin import plan_robotwin, robotwin_options, robotwin_tasks
from kairos_env.sims.robotwin.env import ExpertOutcome, RoboTwinEnv
from kairos_env.sims.robotwin.home import RoboTwinHome
from kairos_env.sims.robotwin.seeds import expert_seeds, skipped


@pytest.fixture
def home(tmp_path: Path) -> RoboTwinHome:
    return separate_home(tmp_path)


def config(**changes: Any) -> RoboTwinConfig:
    return RoboTwinConfig(**{"policies": ("random", "expert"), "home": str(robotwin_home()), **changes})


def test_seeds_are_robotwins_and_their_expert_solves_them(home: RoboTwinHome) -> None:
    outcomes: list[ExpertOutcome] = ["solved", "unstable", "solved", "failed", "no path", "solved"]
    note_outcomes(home, "stack_blocks_two", 100000, outcomes)
    env = RoboTwinEnv(home=home)
    assert expert_seeds(env, "stack_blocks_two", 3) == [100000, 100002, 100005]
    left_out = skipped(home, "stack_blocks_two", "clean", [100000, 100002, 100005])
    assert left_out == {"unstable": 1, "no path": 1, "failed": 1}
    plan = plan_robotwin(config(tasks=("stack_blocks_two",), episodes=2, protocol="A"), None, env)
    assert [job.initial_state for job in plan.jobs] == [100000, 100000, 100002, 100002]
    assert plan.labels["stack_blocks_two"] == {
        "protocol": "A",
        "config": "clean",
        "wording": "seen",
        "rendering": "fast",
        "assets": "not the published ones",
        "expert_check": True,
        "step_limit": 800,
        "seeds_left_out": {"unstable": 1},
    }
    later = plan_robotwin(config(tasks=("stack_blocks_two",), episodes=2, seed=3, expert_check=False), None, env)
    assert {job.initial_state for job in later.jobs} == {400000, 400001}
    env.close()


def test_too_few_solved_starts_are_told(home: RoboTwinHome) -> None:
    note_outcomes(home, "handover_block", 100000, ["failed"] * 10)
    with pytest.raises(ValueError, match="solves 0 of the 10 starts of handover_block from seed 100000 on, not 1"):
        expert_seeds(RoboTwinEnv(home=home), "handover_block", 1)


def test_what_is_asked_for() -> None:
    home = RoboTwinHome.open(robotwin_home())
    assert robotwin_tasks(config(), home)[0] == "blocks_ranking_rgb" and len(robotwin_tasks(config(), home)) == 5
    options = robotwin_options(config(tasks=("handover_block",), simulator_options={"draw_every": 8}))
    assert (options["task"], options["config"], options["wording"]) == ("handover_block", "clean", "seen")
    assert options["draw_every"] == 8 and config(scenes="randomized").words == "unseen"
    with pytest.raises(ValueError, match="did you mean 'handover_block'"):
        robotwin_tasks(config(tasks=("handover_blok",)), home)
    with pytest.raises(FileNotFoundError, match="objects/041_shoe"):
        robotwin_tasks(config(tasks=("place_shoe",)), home)
    with pytest.raises(ValueError, match=r"no task of RoboTwin has its assets.*sims check robotwin"):
        robotwin_tasks(config(scenes="randomized"), home)


def test_what_would_be_no_official_result_is_refused() -> None:
    home = RoboTwinHome.open(robotwin_home())
    with pytest.raises(ValueError, match="no official result: the assets .*rendering is 'fast'; 5 episodes, not 100"):
        robotwin_tasks(config(official=True, episodes=5), home)
