"""`kairos demo`: the main job in one go: imagine beside reality, plan in imagination, act in the real simulator.

Every number that it prints is measured in this very run. Where the simulator does not run it says so, and shows what
needs none: imagined episodes from the real initial observations that ship with the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kairos_env.cli.demo_parts import (
    DECISIONS,
    DemoConfig,
    Stage,
    act,
    beside_reality,
    expert_drives,
    first_observation,
    in_imagination,
    initial_states,
    plan_blindly,
    recorded_drives,
    speed,
)
from kairos_env.cli.options import Fields
from kairos_env.cli.proposal import next_command
from kairos_env.cli.values import print_json
from kairos_env.records import SpecMismatch
from kairos_env.runs import did_you_mean

if TYPE_CHECKING:
    from kairos_env.env.initial_observations import InitialObservations
    from kairos_env.world_model.model import WorldModel

TASKS = 4  # at most so many are shown, of a model that knows more


def run(config: Fields[DemoConfig], json: bool = False) -> int:
    """Runs the demo.

    Args:
        json: print the summary as JSON; what is told goes to standard error.
    """
    from rich.console import Console

    from kairos_env.policies.make import load_model
    from kairos_env.runs import open_run

    began = time.perf_counter()
    console = Console(highlight=False, soft_wrap=True, stderr=json)
    model = load_model(config.model, config.device)
    tasks = choose_tasks(model, config.tasks)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(f"[bold]{config.model}[/]: {millions:.1f} M parameters, {model.spec.name}, tasks {', '.join(tasks)}")
    if model.untrained:
        console.print(f"Nobody taught it {', '.join(model.untrained)}, which is left out.")
    imagined_only = config.simulator == "none" or bool(config.data)
    try:
        simulator = None if imagined_only else open_simulator(model, config.simulator, next(iter(tasks)))
    except SpecMismatch:
        if config.simulator != "auto":
            raise
        console.print(f"\nNo simulator is of this robot ({model.spec.name}). What follows is imagination only;")
        console.print("--data RECORDING shows it beside recorded reality.")
        simulator = None
    except Exception as error:  # GL fails in many ways, and the rest of the demo needs none
        if config.simulator != "auto":
            raise
        console.print("\n[bold yellow]The real simulator does not run here:[/]")
        console.print(f"{type(error).__name__}: {error}", markup=False)
        console.print("Look with: kairos doctor. What follows is imagination only.")
        simulator = None
    folder = config.out / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    open_run(folder, dataclasses.asdict(config) | {"out": str(config.out)})
    stage = Stage(model, tasks, config, folder, console)
    if simulator is None:
        found = beside_reality(stage, recorded_drives(stage), "the recording") if config.data else {}
        found |= in_imagination(stage)
    else:
        name, starts = simulator
        with contextlib.closing(starts):
            found = beside_reality(stage, expert_drives(stage, starts), "the expert") | plan_blindly(stage, starts)
            names, states = {starts.task_there(task): task for task in tasks}, initial_states(starts)
        found |= act(stage, name, names, states)
    console.print("\n[bold]How fast is imagination?[/]")
    found["imagined_steps_per_second"] = {str(b): speed(model, b, config.amounts.speed_s) for b in (1, 16)}
    summary = report(stage, found, time.perf_counter() - began)
    if config.data:
        command = next_command("play", config.model, config.data, config.feature_map)
        console.print(f"\nnext: {command}", markup=False)
    if json:
        print_json(summary)
    return 0


def choose_tasks(model: WorldModel, wanted: tuple[str, ...]) -> dict[str, str]:
    """Name -> instruction of the tasks to show.

    Raises:
        ValueError: the model does not know one.
    """
    known = dict(model.tasks) or {"task": model.spec.instruction}
    for name in wanted:
        if name not in known:
            raise ValueError(f"the model knows no task {name!r}; {did_you_mean(name, known)}")
    return {name: known[name] for name in wanted or list(known)[:TASKS]}


def open_simulator(model: WorldModel, name: str, task: str) -> tuple[str, InitialObservations]:
    """The id of the real simulator of the model's robot, and its initial observations; proven to render.

    Args:
        model: whose robot it must be.
        name: of the simulator; ``"auto"`` looks for the one of the model's robot.
        task: of the model, to try it with.

    Raises:
        RenderingUnavailable, ImportError, FileNotFoundError: it cannot be built or draw here; the message has the
            remedy.
        SpecMismatch: the model is of another robot.
    """
    from kairos_env.env.initial_observations import InitialObservations
    from kairos_env.sims.make import simulator_ids

    mismatch: Exception | None = None
    for candidate in simulator_ids() if name == "auto" else (name,):
        try:
            found = InitialObservations(candidate, model)
        except SpecMismatch as error:
            mismatch = error
            continue
        try:
            first_observation(found, task, 0)
        except BaseException:
            found.close()
            raise
        return candidate, found
    assert mismatch is not None  # there are candidates
    raise mismatch


def report(stage: Stage, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Prints the table; writes ``summary.json`` and ``demo.html``; returns what the first of them holds."""
    from rich.table import Table

    from kairos_env.eval.report.page import html_page
    from kairos_env.eval.report.text import plain
    from kairos_env.runs import write_json, write_text

    console, folder = stage.console, stage.folder
    header, rows = _table(stage.tasks, found)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print()
    if len(header) > 1:
        console.print(table)
    notes = _notes(found)
    for note in notes:
        console.print(note)
    strips = {path.stem.replace("_", " "): path for path in sorted(folder.glob("*.png"))}
    films = {name: path.with_suffix(".mp4").name for name, path in strips.items() if path.with_suffix(".mp4").exists()}
    pictures = {name: path.read_bytes() for name, path in strips.items()}
    summary: dict[str, Any] = plain(found | {"seconds": round(seconds, 1), "folder": str(folder)})
    write_json(folder / "summary.json", summary)
    tables = {"Success": (header, rows)} if len(header) > 1 else {}
    write_text(folder / "demo.html", html_page("Kairos demo", tables, pictures, notes, films))
    console.print(f"\n{seconds:.0f} s. Everything is in {folder}:", markup=False)
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".png", ".mp4", ".html")):
        console.print(f"   {path}", markup=False)
    return summary


def _table(tasks: Mapping[str, str], found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    from kairos_env.eval.statistics import wilson

    header, rows = ["task"], [[task] for task in tasks]
    for key, title in (
        ("planned_blindly", "planned, executed blind"),
        ("imagined_success", "policy, imagined (not real)"),
    ):
        if key in found:
            header.append(title)
            for row, (won, tried) in zip(rows, found[key].values(), strict=True):
                row.append(f"{won}/{tried}")
    if "closed_loop" in found:
        header += ["policy, real simulator", "95 % interval", "ms a decision"]
        for row in rows:
            cell = found["closed_loop"][row[0]]
            tried = cell["successes"] + cell["failures"]
            interval = wilson(cell["successes"], tried)
            row += [f"{cell['successes']}/{tried}", f"{interval.low:.2f} ... {interval.high:.2f}"]
            row.append(f"{cell['decision_ms']:.0f}")
    return header, rows


def _notes(found: dict[str, Any]) -> list[str]:
    rates = found["imagined_steps_per_second"]
    notes = [f"imagined decisions a second: {rates['1']:.0f} alone, {rates['16']:.0f} in a batch of 16"]
    if "psnr_imagined" in found:
        notes.append(
            f"imagination beside reality: {found['psnr_imagined']:.1f} dB over {DECISIONS} decisions, "
            f"{found['psnr_copy_first_frame']:.1f} dB for the repeated first frame"
        )
    errors = sum(cell["errors"] for cell in found.get("closed_loop", {}).values())
    if errors:
        notes.append(f"{errors} episodes ended in an error and are not counted; see closed_loop/report.html")
    return notes
