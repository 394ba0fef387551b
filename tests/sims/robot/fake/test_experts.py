"""The scripted experts solve the tasks of every fake arm, from every start."""

from __future__ import annotations

import numpy as np
import pytest

from kairos_env.sims.robot.fake.arms import ARMS
from kairos_env.sims.robot.fake.experts import expert_goal, joint_angles
from kairos_env.sims.robot.fake.leader import ScriptedLeader
from kairos_env.sims.robot.fake.twin import BROUGHT, REACHED, ArmTwin
from kairos_env.sims.robot.spec import robot_spec


@pytest.mark.parametrize("name", ARMS)
def test_angles_put_the_finger_tips_there(name: str) -> None:
    twin = ArmTwin(ARMS[name])
    for place in ([0.18, 0.02, 0.05], [0.14, -0.09, 0.03]):
        pan, reach = np.arctan2(place[1], place[0]), np.hypot(place[0], place[1])
        twin.set_angles(joint_angles(ARMS[name], pan, reach, place[2]))
        assert np.allclose(twin.tip, place, atol=1e-6)


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("task", ["reach", "push"])
def test_an_expert_solves_its_task(name: str, task: str) -> None:
    twin, near = ArmTwin(ARMS[name]), {"reach": REACHED, "push": BROUGHT}[task]
    for seed in range(8):
        twin.place(np.random.default_rng(seed))
        assert twin.distance(task) > near, "solved before it begins"
        for _ in range(80):
            twin.advance(0.1, expert_goal(ARMS[name], task, *twin.places()), np.ones(6))
            if twin.distance(task) < near:
                break
        assert twin.distance(task) < near, f"{name} {task} {seed}"


def test_a_leader_is_led_astray_and_comes_back() -> None:
    fields = [{"name": f"j{i}", "low": -50.0, "high": 50.0, "unit": "deg", "kind": "joint_position"} for i in range(3)]
    spec = robot_spec("arm", fields, {}, 10)
    leader = ScriptedLeader(lambda: np.zeros(3), spec, 0.1)
    first = np.stack([leader.lead() for _ in range(100)])
    astray = np.abs(first).max(1) > 0
    assert 0.1 < astray.mean() < 0.5 and np.abs(first).max() <= 7 and not astray[0] | astray[-1]
    leader.begin(0)
    assert np.array_equal(first, [leader.lead() for _ in range(100)])  # the same episode, the same disturbances
    with pytest.raises(ValueError, match="share"):
        ScriptedLeader(lambda: np.zeros(3), spec, 2)
    with pytest.raises(ValueError, match="no expert for 'fly'"):
        expert_goal(ARMS["so101"], "fly", *ArmTwin(ARMS["so101"]).places())
