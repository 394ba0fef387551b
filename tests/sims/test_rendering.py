"""Drawing from other threads, and in processes that were forked from one that had drawn."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kairos_env.sims.tabletop.env import RobosuiteEnv

FORK = """
import sys
import gymnasium as gym
import kairos_env

env = gym.make("Kairos-Robosuite-v0", task="reach")
env.reset(seed=0)
if sys.argv[1] == "closed":
    env.close()
envs = gym.make_vec("Kairos-Robosuite-v0", num_envs=2, vectorization_mode="async", task="reach")
try:
    envs.reset_async(seed=0)
    envs.reset_wait(timeout=60)
except Exception as error:
    print(type(error).__name__, error)
finally:
    envs.close(terminate=True)
"""


@pytest.mark.parametrize("before", ["open", "closed"])
def test_a_fork_after_drawing_says_at_once_what_to_do(before: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, before], capture_output=True, text=True, timeout=50)
    assert "RenderingUnavailable" in done.stdout and 'context="spawn"' in done.stdout, done.stdout + done.stderr


def in_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    assert found, "the thread raised"
    return found[0]


def test_any_thread_may_draw_and_close() -> None:
    env = in_thread(RobosuiteEnv)
    here, _ = env.reset(seed=0, options={"initial_state": 3})
    there = in_thread(env.observe)
    np.testing.assert_array_equal(here["image_scene"], there["image_scene"])
    other = RobosuiteEnv()
    observed, _ = in_thread(lambda: other.reset(seed=0, options={"initial_state": 3}))
    np.testing.assert_array_equal(here["image_scene"], observed["image_scene"])
    in_thread(env.close)
    np.testing.assert_array_equal(other.observe()["image_scene"], observed["image_scene"])
    other.close()
