"""`kairos robotwin`: what RoboTwin's own scripts need of Kairos, and what its experts solve."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kairos_env.cli.values import print_json
from kairos_env.eval.report.text import format_table
from kairos_env.eval.statistics import wilson
from kairos_env.policies.robotwin.folder import write_policy_folder
from kairos_env.sims.robotwin.env import ExpertOutcome, RoboTwinEnv
from kairos_env.sims.robotwin.home import Config
from kairos_env.sims.robotwin.seeds import FIRST, OUTCOMES, ask_expert, known_outcomes, made_with


def plugin(root: Path, name: str = "Kairos", url: str = "ws://127.0.0.1:8000") -> int:
    """Writes the policy folder.

    Args:
        root: checkout of RoboTwin, of version 2.0 or newer.
        name: of the policy in RoboTwin.
        url: of the policy server, see kairos serve.
    """
    folder = write_policy_folder(root.expanduser().absolute(), name, url)
    newest = (folder / "model.py").is_file()
    how = "through XPolicyLab" if newest else f"bash {folder / 'eval.sh'} TASK demo_clean mine 0"
    print(
        f"{folder} asks the policy server at {url}\nserve:    kairos serve --model FOLDER\n"
        f"its interpreter needs: pip install msgpack websockets\nevaluate: {how}"
    )
    return 0


def seeds(
    tasks: tuple[str, ...] = (),
    count: int = 20,
    first: int = FIRST,
    scenes: Config = "clean",
    home: Path | None = None,
    again: bool = False,
    json: bool = False,
) -> int:
    """Asks RoboTwin's experts, and notes in the installation which seeds they solve, for evaluations.

    Args:
        tasks: none: all whose assets are there.
        count: of seeds for each task.
        first: of the seeds.
        scenes: clean or randomized.
        home: folder of the installation; by default the usual one.
        again: ask about seeds that are known, too.
        json: print the outcomes as Kairos ships them, instead of the table.
    """
    if count < 1 or first < 0:
        raise ValueError(f"--count {count} --first {first}: give at least 1 seed, from 0 on")
    env = RoboTwinEnv(config=scenes, home=home, observe_images=False)
    try:
        for task in tasks:
            env.home.require_assets(env.home.require_task(task), scenes)
        wanted, found = range(first, first + count), {}
        for task in tasks or env.tasks():
            known: Mapping[int, ExpertOutcome] = {} if again else known_outcomes(env.home, task, scenes)
            new = ask_expert(env, task, [seed for seed in wanted if seed not in known], _progress)
            found[task] = {seed: new.get(seed) or known[seed] for seed in wanted}
    finally:
        env.close()
    if json:
        sorted_out = {f"{task}-{scenes}": _by_outcome(outcomes) for task, outcomes in found.items()}
        print_json(made_with(env.home) | {"outcomes": sorted_out})
    else:
        print(format_table(["task", "solved %", *OUTCOMES, "not solved"], [_line(*item) for item in found.items()]))
    return 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _by_outcome(outcomes: Mapping[int, ExpertOutcome]) -> dict[str, list[int]]:
    sorted_out = {name: [seed for seed, outcome in outcomes.items() if outcome == name] for name in OUTCOMES}
    return {name: seeds for name, seeds in sorted_out.items() if seeds}


def _line(task: str, outcomes: Mapping[int, ExpertOutcome]) -> list[Any]:
    """Success among the stable seeds, counts, and the others by number."""
    counts = Counter(outcomes.values())
    rate = wilson(counts["solved"], len(outcomes) - counts["unstable"])
    others = " ".join(str(seed) for seed, outcome in outcomes.items() if outcome in ("no path", "failed"))
    return [task, rate.format(0, 100), *(str(counts[name]) for name in OUTCOMES), others]
