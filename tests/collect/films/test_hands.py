"""Films of a hand at the table top: it does what its caption says, by the true state."""

from __future__ import annotations

import numpy as np
import pytest

from kairos_env.collect.films.hands import INSTRUCTIONS, hands_clip
from kairos_env.sims.tabletop.tasks import TASKS


def test_a_film_follows_from_seed_and_number() -> None:
    one, same = (hands_clip(1, 2, 32, 1.0, 5.0) for _ in range(2))
    np.testing.assert_array_equal(one.frames, same.frames)
    assert one.frames.shape == (6, 32, 32, 3) and one.caption == same.caption


@pytest.mark.parametrize("number", range(4))
def test_every_task_is_done_and_told_step_by_step(number: int) -> None:
    clip = hands_clip(0, number, 16, 6.0, 5.0)
    task = list(TASKS)[number]
    assert clip.facts["task"] == task and clip.facts["success"], clip.caption
    assert clip.instruction == INSTRUCTIONS[task] and "gripper" not in clip.instruction
    steps = list(clip.facts["steps"])
    wanted = {
        "reach": ["reaches the red cube"],
        "push": ["reaches the red cube", "pushes the cube", "leaves it on the green disc"],
        "lift": ["reaches the red cube", "grasps it", "lifts it"],
        "place": ["reaches the red cube", "grasps it", "carries it over the green disc", "leaves it on the green disc"],
    }[task]
    assert [step for step in steps if step in wanted] == wanted
    assert all(step in clip.caption for step in steps) and len(clip.caption.split()) <= 48
