"""Whether a policy does the same in `Kairos-RoboTwin-v0` and in RoboTwin's own evaluation, episode by episode.

    python benchmarks/robotwin_flows.py --root RoboTwin --home .sims/robotwin --task stack_blocks_two --episodes 20

``--root`` is a checkout of version 2.0, whose ``script/eval_policy.py`` evaluates the policy folder that `kairos
robotwin plugin` writes, in RoboTwin's interpreter, with a policy server in this one. The policy plays the expert's
plans, every fifth of them without its last half, so that both outcomes occur. Needs `kairos sims install robotwin`;
a minute of processor time for each episode of both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import kairos_env
from kairos_env.embodiments import ROBOTWIN_ALOHA
from kairos_env.policies.remote.server import PolicyServer, ServeConfig
from kairos_env.policies.robotwin.folder import write_policy_folder
from kairos_env.records import ActionChunk, Array, Observation
from kairos_env.sims.robotwin.env import RoboTwinEnv
from kairos_env.sims.robotwin.home import CHECKOUT, RoboTwinHome
from kairos_env.sims.robotwin.seeds import FIRST, expert_seeds

EXECUTE = 8  # actions of a chunk
NAME = "KairosFlow"
_PROGRAM = """
import json, sys, types
package = types.ModuleType("kairos_env")
package.__path__ = [sys.argv[1]]
sys.modules["kairos_env"] = package
told = json.loads(sys.argv[2])
from kairos_env.sims.robotwin.runtime import Runtime
runtime = Runtime(**told["worker"])
sys.path[:0] = ["script", "policy"]
import eval_policy
args = runtime.arguments(told["task"], "clean")
args |= {"policy_name": told["name"], "task_config": "demo_clean", "ckpt_setting": "flow"}
model = eval_policy.eval_function_decorator(told["name"], "get_model")({"url": told["url"]})
task = runtime.task(told["task"])
eval_policy.eval_policy(told["task"], task, args, model, told["first"], told["episodes"], instruction_type="seen")
"""


class Plans:
    """Plays one plan an episode, in their order, whatever it sees."""

    def __init__(self, plans: Sequence[Array]) -> None:
        self._plans, self._episode, self._step, self._fresh = plans, -1, 0, True

    def reset(self, seed: int | None = None) -> None:
        self._fresh = True

    def follow(self, observation: Observation, action: Array) -> None:
        pass

    def chunk(self, observation: Observation | None) -> ActionChunk:
        """The next actions of the plan, then its last one."""
        if self._fresh:
            self._episode, self._step, self._fresh = self._episode + 1, 0, False
        plan = self._plans[self._episode]
        rows = np.minimum(np.arange(self._step, self._step + EXECUTE), len(plan) - 1)
        self._step += EXECUTE
        return ActionChunk(plan[rows])

    def act(self, observation: Observation) -> Array:
        return self.chunk(observation).actions[0]

    @classmethod
    def chunk_together(cls, policies: Sequence[Any], seen: Sequence[Observation], size: int) -> list[ActionChunk]:
        return [policy.chunk(observation) for policy, observation in zip(policies, seen, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--task", default="stack_blocks_two")
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    root = options.root.expanduser().absolute()
    env = RoboTwinEnv(options.task, home=options.home, observe_images=False, wording="seen")
    try:
        seeds = expert_seeds(env, options.task, options.episodes, FIRST, print)
        plans, here, steps = adapter(env, seeds, options.episodes)
    finally:
        env.close()
    os.environ[CHECKOUT] = str(root)
    home = RoboTwinHome.open(options.home)
    there = asyncio.run(plugin(home, root, options.task, plans))
    print(f"{'seed':>8}  {'environment':<12}{'plugin':<12}{'actions here':>12}")
    for seed, won, count in zip(seeds, here, steps, strict=True):
        print(f"{seed:>8}  {_word(won):<12}{_word(there.get(seed)):<12}{count:>12}")
    same = sum(there.get(seed) == won for seed, won in zip(seeds, here, strict=True))
    print(f"{options.task}: the same in {same} of {len(seeds)} episodes; {sum(here)} successes here")


def adapter(env: RoboTwinEnv, seeds: Sequence[int], episodes: int) -> tuple[list[Array], list[bool], list[int]]:
    """Plans, and success and actions of each of them in `Kairos-RoboTwin-v0`."""
    plans: list[Array] = []
    policy, successes, steps = Plans(plans), [], []
    for number, seed in enumerate(seeds[:episodes]):
        env.reset(seed=seed, options={"initial_state": seed})
        plan, _ = env.expert_plan()
        plans.append(plan if number % 5 != 4 else plan[: len(plan) // 2])
        policy.reset()
        ended, info = False, {"success": False, "steps": 0}
        while not ended:
            for action in policy.chunk(None).actions:
                _, _, terminated, truncated, info = env.step(action)
                ended = terminated or truncated
                if ended:
                    break
        successes.append(bool(info["success"]))
        steps.append(info["steps"])
        print(f"seed {seed}: {_word(successes[-1])} after {steps[-1]} actions", flush=True)
    return plans, successes, steps


async def plugin(home: RoboTwinHome, root: Path, task: str, plans: Sequence[Array]) -> dict[int, bool]:
    """Seed -> success, as RoboTwin's own evaluation finds it."""
    about = {"protocol": 1, "policy": "plans", "weights": "", "execute": EXECUTE, "remembers": False}
    async with PolicyServer(lambda: Plans(plans), ROBOTWIN_ALOHA, about, ServeConfig(port=0)).running() as server:
        url = f"ws://127.0.0.1:{server.port}"
        write_policy_folder(root, NAME, url)
        told = {"worker": home.worker_options(), "task": task, "name": NAME, "url": url}
        done = await asyncio.to_thread(_evaluate, home, told | {"first": FIRST, "episodes": len(plans)})
    said = re.sub(r"\x1b\[\d+m", "", done.stdout).replace("\r", "\n")
    if done.returncode:
        raise SystemExit(f"RoboTwin's evaluation ended with {done.returncode}:\n{said[-2000:]}{done.stderr[-3000:]}")
    outcomes = re.findall(r"^(Success|Fail)!$", said, re.MULTILINE)
    seeds = map(int, re.findall(r"current seed: (\d+)", said))
    return {seed: outcome == "Success" for seed, outcome in zip(seeds, outcomes, strict=True)}


def _evaluate(home: RoboTwinHome, told: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """RoboTwin's evaluation in its interpreter, to which this one lends what the policy folder needs."""
    with tempfile.TemporaryDirectory() as libraries:
        for name in ("msgpack", "websockets"):
            found = find_spec(name)
            assert found is not None and found.origin is not None
            Path(libraries, name).symlink_to(Path(found.origin).parent)
        command = [str(home.python), "-W", "ignore", "-c", _PROGRAM, str(Path(kairos_env.__file__).parent)]
        variables = os.environ | home.variables() | {"PYTHONPATH": libraries}
        command.append(json.dumps(told))
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def _word(won: bool | None) -> str:
    return {True: "success", False: "failure", None: "not run"}[won]


if __name__ == "__main__":
    main()
