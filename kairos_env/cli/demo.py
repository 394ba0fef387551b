"""`kairos demo`: the main job in one go: imagine beside reality, plan in imagination, act in the real simulator.

Every number that it prints is measured in this very run. Without OpenGL for the simulator it says so and shows
what needs none: imagined episodes from the real starts that ship with the model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kairos_env.cli.options import Fields
from kairos_env.records import Array, Observation
from kairos_env.runs import INITIAL_STATES

if TYPE_CHECKING:
    from rich.console import Console

    from kairos_env.sims.tabletop.env import RobosuiteEnv
    from kairos_env.world_model.model import WorldModel
    from kairos_env.world_model.state import WorldState

FIRST_START = INITIAL_STATES["evaluation"].start
DECISIONS = 24  # length of the filmed rollouts, 4.8 s, and of an episode
COMMIT = 4  # planned decisions that are imagined before planning goes on
SURE = 0.5  # imagined success probability from which a plan is taken to have arrived
SIMULATOR = "Kairos-Robosuite-v0"


@dataclass(frozen=True)
class Amount:
    """How much is done; ``--short`` takes the least of everything, which proves the path and no number.

    Args:
        rollouts: real episodes imagined beside reality.
        plans: starts of each task planned for and executed.
        episodes: closed-loop episodes of each task.
        speed_s: seconds for which the imagination is timed at each batch size.
    """

    rollouts: int = 4
    plans: int = 2
    episodes: int = 10
    speed_s: float = 1.5

    @classmethod
    def short(cls) -> Amount:
        return cls(rollouts=1, plans=1, episodes=1, speed_s=0.1)


@dataclass(frozen=True)
class DemoConfig:
    """What to show.

    Args:
        model: bundled name or model folder.
        device: cpu, cuda, ...
        planner: of the plans made in imagination.
        episodes: closed-loop episodes a task; by default 10.
        out: parent of the run's folder.
        short: one of everything, for a quick look.
        no_simulator: imagination only, as on a machine without OpenGL.
    """

    model: str = "kairos-tiny"
    device: str = "cpu"
    planner: Literal["best_of_n", "cem"] = "best_of_n"
    episodes: int | None = None
    out: Path = Path("runs/demo")
    short: bool = False
    no_simulator: bool = False

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")


def run(args: Fields[DemoConfig]) -> int:
    """Runs the demo."""
    from rich.console import Console

    from kairos_env.policies.make import load_model
    from kairos_env.runs import open_run

    console = Console(highlight=False, soft_wrap=True)
    settings = Amount.short() if args.short else Amount()
    if args.episodes is not None:
        settings = dataclasses.replace(settings, episodes=args.episodes)
    began = time.perf_counter()
    model = load_model(args.model, args.device)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(
        f"[bold]{args.model}[/]: {millions:.1f} M parameters, {model.spec.name}, tasks {', '.join(model.tasks)}"
    )
    config = dataclasses.asdict(settings) | {"model": args.model, "planner": args.planner}
    folder = open_run(args.out / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", config)

    try:
        simulator = None if args.no_simulator else open_simulator(model)
    except Exception as error:  # noqa: BLE001 (GL fails in many ways, and the rest of the demo needs none)
        console.print("\n[bold yellow]The real simulator does not run here:[/]")
        console.print(f"{type(error).__name__}: {error}", markup=False)
        console.print("Look with: kairos doctor. What follows is imagination only.")
        simulator = None
    if simulator is None:
        found = in_imagination(model, settings, folder, console)
    else:
        with simulator:
            found = beside_reality(model, simulator, settings, folder, console)
            found |= plan_blindly(model, simulator, settings, args.planner, folder, console)
        found |= act(model, args, settings, folder, console)
    console.print("\n[bold]How fast is imagination?[/]")
    found["imagined_steps_per_second"] = {str(b): speed(model, b, settings.speed_s) for b in (1, 16)}
    report(found, model, folder, console, time.perf_counter() - began)
    return 0


def open_simulator(model: WorldModel) -> RobosuiteEnv:
    """The bundled simulator of the model's robot, proven to render.

    Raises:
        RenderingUnavailable, ImportError: it cannot be built or draw here; the message has the remedy.
        SpecMismatch: the model is of another robot.
    """
    from kairos_env.sims.tabletop.env import RobosuiteEnv

    cameras = model.spec.cameras
    simulator = RobosuiteEnv(cameras=[c.name for c in cameras], image_size=cameras[0].height)
    try:
        model.spec.require_same(simulator.robot_spec, "model", "simulator")
        simulator.reset(options={"initial_state": FIRST_START})
    except BaseException:
        simulator.close()
        raise
    return simulator


def beside_reality(
    model: WorldModel, simulator: RobosuiteEnv, settings: Amount, folder: Path, console: Console
) -> dict[str, Any]:
    """The same actions in the simulator and in imagination; only the first frame is shared."""
    from kairos_env.eval.imagination.image_metrics import mean_squared_error
    from kairos_env.media import film_strip, side_by_side, write_mp4, write_png

    console.print("\n[bold]1. Imagine beside reality[/]: the expert's actions, one real frame, then imagination alone")
    errors: list[Array] = []
    copy_errors: list[Array] = []
    films: list[Array] = []
    strip: dict[str, Array] = {}
    for i in range(settings.rollouts):
        first, actions, real = expert_drive(simulator, FIRST_START + i)
        roll = model.imagine(model.observe([first], seeds=[i]), actions[None])
        imagined = np.concatenate([real[:1], first_camera(model, roll.latents)[0]])
        errors.append(mean_squared_error(imagined[1:], real[1:]))
        copy_errors.append(mean_squared_error(np.broadcast_to(real[:1], real[1:].shape), real[1:]))
        films.append(side_by_side({"real": real, "imagined": imagined}))
        if i < 2:
            strip |= {f"real {i + 1}": real, f"imagined {i + 1}": imagined}
    psnr, copy_psnr = decibels(errors), decibels(copy_errors)
    write_png(folder / "beside_reality.png", film_strip(strip))
    write_mp4(folder / "beside_reality.mp4", np.concatenate(films), model.spec.control_rate_hz)
    console.print(
        f"   {DECISIONS} decisions ahead, {settings.rollouts} unseen starts: {psnr:.1f} dB; "
        f"repeating the first frame: {copy_psnr:.1f} dB"
    )
    return {"psnr_imagined": psnr, "psnr_copy_first_frame": copy_psnr}


def plan_blindly(
    model: WorldModel, simulator: RobosuiteEnv, settings: Amount, planner: str, folder: Path, console: Console
) -> dict[str, Any]:
    """Whole episodes are planned in imagination from one real frame, then executed with closed eyes."""
    from kairos_env.media import film_strip, side_by_side, write_mp4, write_png

    console.print(f"\n[bold]2. Plan[/] ({planner}) from one real frame, then execute the whole plan without looking")
    counts: dict[str, tuple[int, int]] = {}
    films: list[Array] = []
    strip: dict[str, Array] = {}
    for task in model.tasks:
        successes = 0
        for i in range(settings.plans):
            raw, info = simulator.reset(options={"initial_state": FIRST_START + i, "task": task})
            first = Observation.from_gym(raw, info["instruction"])
            began = time.perf_counter()
            actions, imagined, expected = plan_episode(model, first, planner, seed=i)
            seconds = time.perf_counter() - began
            real, success = [frame(raw)], False
            for action in actions:
                raw, _, _, _, info = simulator.step(action)
                real.append(frame(raw))
                success = success or bool(info["success"])
            successes += success
            outcome = "success" if success else "failure"
            console.print(
                f"   {task} {i + 1}: {len(actions)} decisions planned in {seconds:.1f} s, "
                f"imagined success {expected:.2f}, in reality {outcome}"
            )
            if i == 0:
                films.append(side_by_side({f"{task}: planned": imagined, f"executed: {outcome}": np.stack(real)}))
                strip |= {f"{task}, planned": imagined, f"{task}, executed": np.stack(real)}
        counts[task] = successes, settings.plans
    write_png(folder / "plan.png", film_strip(strip))
    write_mp4(folder / "plan.mp4", np.concatenate(films), model.spec.control_rate_hz)
    return {"planned_blindly": counts}


def act(model: WorldModel, args: DemoConfig, settings: Amount, folder: Path, console: Console) -> dict[str, Any]:
    """The action-only policy in the real simulator, by the evaluation that `kairos eval` runs."""
    from kairos_env.eval.closed_loop.config import EvalConfig
    from kairos_env.eval.closed_loop.engine import evaluate

    console.print("\n[bold]3. Act[/]: the action-only policy in the real simulator, looking at every frame")
    config = EvalConfig(
        output=str(folder / "closed_loop"),
        policies=("policy",),
        tasks=tuple(model.tasks),
        episodes=settings.episodes,
        simulator=SIMULATOR,
        simulator_options={"cameras": [c.name for c in model.spec.cameras], "image_size": model.spec.cameras[0].height},
        model=args.model,
        device=args.device,
        first_initial_state=FIRST_START,
        max_decisions=DECISIONS,
        workers=0,
        videos=1,
    )
    results = evaluate(config, progress=True)
    return {"closed_loop": {task: dataclasses.asdict(results.cell("policy", task)) for task in model.tasks}}


def in_imagination(model: WorldModel, settings: Amount, folder: Path, console: Console) -> dict[str, Any]:
    """What needs no simulator: the policy in imagined episodes, from real starts that ship with the model."""
    from kairos_env.media import film_strip, side_by_side, write_mp4, write_png

    starts = model.starts[: settings.episodes]
    if not starts:
        console.print("   this model ships no starts, so there is nothing to imagine from")
        return {}
    console.print(f"\n[bold]Imagined episodes[/] of the policy from {len(starts)} real starts")
    strip, counts = {}, {}
    for task, instruction in model.tasks.items():
        asked = [dataclasses.replace(start, instruction=instruction) for start in starts]
        state = model.observe(asked, seeds=range(len(asked)))
        latents, arrived = [], np.zeros(len(asked), bool)
        for _ in range(DECISIONS):
            out = model.step(state, model.act(state)[:, 0])
            state = out.state
            latents.append(out.latent)
            arrived |= out.success.cpu().numpy() > SURE
        frames = np.stack([first_camera(model, latent[:1])[0] for latent in latents])
        strip[task] = np.concatenate([next(iter(asked[0].images.values()))[None], frames])
        counts[task] = int(arrived.sum()), len(asked)
        console.print(f"   {task}: the model expects success in {arrived.sum()} of {len(asked)}")
    write_png(folder / "imagined.png", film_strip(strip))
    write_mp4(folder / "imagined.mp4", side_by_side(strip), model.spec.control_rate_hz)
    return {"imagined_success": counts}


def plan_episode(model: WorldModel, first: Observation, planner: str, seed: int) -> tuple[Array, Array, float]:
    """Plans on in imagination until it expects success or time is over.

    Returns:
        Actions (T, A), imagined frames uint8 (T + 1, H, W, 3) with the real one first, and the last success
        probability.
    """
    from kairos_env.policies.planners import best_of_n, cem

    state = model.observe([first], seeds=[seed])
    actions: list[Array] = []
    frames = [next(iter(first.images.values()))]
    expected = 0.0
    while len(actions) < DECISIONS and expected <= SURE:
        turn = seed * DECISIONS + len(actions)
        if planner == "cem":
            plan = cem(model, state, horizon=10, population=128, iterations=3, seed=turn)
        else:
            plan = best_of_n(model, state, n=16, horizon=12, commit=COMMIT, seed=turn)
        for action in plan.actions[:COMMIT]:
            out = model.step(state, action[None])
            state = out.state
            actions.append(action)
            frames.append(first_camera(model, out.latent)[0])
            expected = float(out.success[0])
            if expected > SURE or len(actions) == DECISIONS:
                break
    return np.stack(actions), np.stack(frames), expected


def expert_drive(simulator: RobosuiteEnv, start: int) -> tuple[Observation, Array, Array]:
    """`DECISIONS` decisions of the scripted expert: the cube onto the disc, then up into the air.

    Returns:
        The first observation, actions (T, A), real frames uint8 (T + 1, H, W, 3).
    """
    raw, info = simulator.reset(options={"initial_state": start, "task": "push"})
    first, task = Observation.from_gym(raw, info["instruction"]), "push"
    actions, frames = [], [frame(raw)]
    for _ in range(DECISIONS):
        actions.append(simulator.expert_action(task))
        raw, _, _, _, info = simulator.step(actions[-1])
        frames.append(frame(raw))
        if info["task_success"]["push"]:
            task = "lift"
    return first, np.stack(actions), np.stack(frames)


def speed(model: WorldModel, batch: int, seconds: float) -> float:
    """Imagined decisions a second, all elements of the batch counted; nothing is decoded."""
    low = np.array([f.low for f in model.spec.proprio], np.float32)
    high = np.array([f.high for f in model.spec.proprio], np.float32)
    blank = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in model.spec.cameras}
    start: WorldState = model.observe([Observation(blank, (low + high) / 2)] * batch, seeds=range(batch))
    action = np.zeros((batch, model.spec.action_dim), np.float32)
    state = model.step(start, action).state  # the first call allocates
    steps, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not steps:
        out = model.step(state, action)
        state = out.state
        float(out.reward[0])  # a GPU's work is only over when it is read
        steps += batch
    return steps / passed


def first_camera(model: WorldModel, latents: Any) -> Array:
    """(..., C, h, w) latents -> uint8 (..., H, W, 3) of the first camera."""
    return model.decode(latents)[model.spec.cameras[0].name]


def frame(observation: dict[str, Array]) -> Array:
    """The first camera's image of a gym observation."""
    return next(image for key, image in observation.items() if key.startswith("image_"))


def decibels(squared_errors: list[Array]) -> float:
    """PSNR of the mean squared error over all frames: one still frame cannot make it infinite."""
    return float(10 * np.log10(255.0**2 / max(float(np.mean(squared_errors)), 1e-6)))


def report(found: dict[str, Any], model: WorldModel, folder: Path, console: Console, seconds: float) -> None:
    """Prints the table; writes ``summary.json`` and ``demo.html``."""
    from rich.table import Table

    from kairos_env.eval.report.page import html_page
    from kairos_env.eval.report.text import plain
    from kairos_env.eval.statistics import wilson
    from kairos_env.runs import write_text

    header, lines = ["task"], [[task] for task in model.tasks]
    for key, title in (
        ("planned_blindly", "planned, executed blind"),
        ("imagined_success", "policy, imagined (not real)"),
    ):
        if key in found:
            header.append(title)
            for line, (won, tried) in zip(lines, found[key].values(), strict=True):
                line.append(f"{won}/{tried}")
    if "closed_loop" in found:
        header += ["policy, real simulator", "95 % interval", "ms a decision"]
        for line, cell in zip(lines, found["closed_loop"].values(), strict=True):
            tried = cell["successes"] + cell["failures"]
            interval = wilson(cell["successes"], tried)
            line += [f"{cell['successes']}/{tried}", f"{interval.low:.2f} ... {interval.high:.2f}"]
            line.append(f"{cell['decision_ms']:.0f}")
    table = Table(*header)
    for line in lines:
        table.add_row(*line)
    console.print()
    console.print(table)
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
    for note in notes:
        console.print(note)
    pictures = {path.stem.replace("_", " "): path.read_bytes() for path in sorted(folder.glob("*.png"))}
    write_text(folder / "summary.json", json.dumps(plain(found | {"seconds": round(seconds, 1)}), indent=2) + "\n")
    write_text(folder / "demo.html", html_page("Kairos demo", {"Success": (header, lines)}, pictures, notes))
    console.print(f"\n{seconds:.0f} s. Everything is in {folder}:", markup=False)
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".png", ".mp4", ".html")):
        console.print(f"   {path}", markup=False)
