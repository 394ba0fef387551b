"""The parts of `kairos demo`: imagination beside reality, plans executed blindly, the policy, how fast it all is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kairos_env.records import Array, Observation
from kairos_env.runs import INITIAL_STATES

if TYPE_CHECKING:
    from rich.console import Console

    from kairos_env.env.initial_observations import InitialObservations
    from kairos_env.world_model.model import WorldModel
    from kairos_env.world_model.state import WorldState

FIRST_START = INITIAL_STATES["evaluation"].start
DECISIONS = 24  # length of the filmed rollouts
COMMIT = 4  # planned decisions that are imagined before planning goes on
SURE = 0.5  # imagined success probability from which a plan is taken to have arrived


@dataclass(frozen=True)
class DemoConfig:
    """What to show.

    Args:
        model: bundled name or model folder.
        simulator: id of the real simulator; auto is the one of the model's robot, none is imagination only.
        data: a recording of the robot, beside which it is imagined, instead of a simulator. Of one that the model was
            trained on, the episodes that were held out are used.
        feature_map: what the features of a LeRobot dataset mean, as in training.
        tasks: of the model; by default its first four.
        device: cpu, cuda, ...
        planner: of the plans made in imagination.
        episodes: closed-loop episodes a task.
        out: parent of the run's folder.
        short: one of everything, for a quick look that proves the path and no number.
    """

    model: str = "kairos-tiny"
    simulator: str = "auto"
    data: str = ""
    feature_map: str = ""
    tasks: tuple[str, ...] = ()
    device: str = "cpu"
    planner: Literal["best_of_n", "cem"] = "best_of_n"
    episodes: int = 10
    out: Path = Path("runs/demo")
    short: bool = False

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")

    @property
    def amounts(self) -> Amounts:
        return Amounts(rollouts=1, plans=1, episodes=1, speed_s=0.1) if self.short else Amounts(episodes=self.episodes)


@dataclass(frozen=True)
class Amounts:
    """How much is done.

    Args:
        rollouts: real episodes imagined beside reality.
        plans: initial states of each task planned for and executed.
        episodes: closed-loop episodes of each task.
        speed_s: seconds for which the imagination is timed at each batch size.
    """

    rollouts: int = 4
    plans: int = 2
    episodes: int = 10
    speed_s: float = 1.5


@dataclass(frozen=True)
class Stage:
    """Where every part of the demo plays.

    Args:
        model: what imagines.
        tasks: name -> instruction, of those that are shown.
        config: what was asked for.
        folder: of the run.
        console: of what is told.
    """

    model: WorldModel
    tasks: Mapping[str, str]
    config: DemoConfig
    folder: Path
    console: Console


def first_observation(starts: InitialObservations, task: str, number: int) -> Observation:
    """Resets the simulator to an initial state of a task, one that was held out of training."""
    states = initial_states(starts, starts.task_there(task))
    state = FIRST_START + number if states is None else states - 1 - number % states
    return starts.draw(number, task, {"initial_state": state})


def initial_states(starts: InitialObservations, task: str | None = None) -> int | None:
    """How many initial states the simulator's task (default: the present one) has; None if they are drawn."""
    simulator: Any = starts.simulator
    states: int | None = simulator.unwrapped.initial_states(task)
    return states


Drive = tuple[Observation, Array, Array]  # first observation, actions (T, A), real frames uint8 (T + 1, H, W, 3)


def beside_reality(stage: Stage, drives: Iterable[Drive], who: str) -> dict[str, Any]:
    """The same actions in reality and in imagination; only the first frame is shared.

    Args:
        stage: see `Stage`.
        drives: real ones.
        who: acted in them.
    """
    from kairos_env.eval.imagination.image_metrics import mean_squared_error
    from kairos_env.media import film_strip, side_by_side, write_mp4, write_png

    model = stage.model
    stage.console.print(f"\n[bold]1. Imagine beside reality[/]: {who}'s actions, one real frame, then imagination")
    errors: list[Array] = []
    copy_errors: list[Array] = []
    films: list[Array] = []
    strip: dict[str, Array] = {}
    for i, (first, actions, real) in enumerate(drives):
        roll = model.imagine(model.observe([first], seeds=[i]), actions[None])
        imagined = np.concatenate([real[:1], first_camera(model, roll.latents)[0]])
        errors.append(mean_squared_error(imagined[1:], real[1:]))
        copy_errors.append(mean_squared_error(np.broadcast_to(real[:1], real[1:].shape), real[1:]))
        films.append(side_by_side({"real": real, "imagined": imagined}))
        if i < 2:
            strip |= {f"real {i + 1}": real, f"imagined {i + 1}": imagined}
    psnr, copy_psnr = decibels(errors), decibels(copy_errors)
    write_png(stage.folder / "beside_reality.png", film_strip(strip))
    write_mp4(stage.folder / "beside_reality.mp4", np.concatenate(films), model.spec.control_rate_hz)
    stage.console.print(
        f"   {DECISIONS} decisions ahead, {len(films)} unseen starts: {psnr:.1f} dB; "
        f"repeating the first frame: {copy_psnr:.1f} dB"
    )
    return {"psnr_imagined": psnr, "psnr_copy_first_frame": copy_psnr}


def recorded_drives(stage: Stage) -> Iterator[Drive]:
    """The first decisions of recorded episodes."""
    from kairos_env.training.held_out import unseen_episodes

    config, camera = stage.config, stage.model.spec.cameras[0].name
    unseen = unseen_episodes(config.model, stage.model.spec, config.data, config.feature_map)
    stage.console.print(f"   {unseen.note}", markup=False)
    for episode in unseen.read(config.amounts.rollouts):
        if not episode.images:
            raise ValueError(f"{config.data} holds latents: give the recording itself, with its pictures")
        yield episode.observation(0), episode.actions[:DECISIONS], episode.images[camera][: DECISIONS + 1]


def expert_drives(stage: Stage, starts: InitialObservations) -> Iterator[Drive]:
    """Drives of the scripted expert."""
    for number in range(stage.config.amounts.rollouts):
        yield expert_drive(starts, list(stage.tasks), number)


def expert_drive(starts: InitialObservations, tasks: list[str], number: int) -> Drive:
    """`DECISIONS` decisions of the scripted expert, from one task to the next where the simulator judges them all."""
    simulator: Any = starts.simulator
    first = first_observation(starts, tasks[number % len(tasks)], number)
    task = simulator.unwrapped.task
    waiting = [there for there in map(starts.task_there, tasks) if there != task]
    actions, frames = [], [next(iter(first.images.values()))]
    for _ in range(DECISIONS):
        actions.append(simulator.unwrapped.expert_action(task))
        raw, _, _, _, info = simulator.step(actions[-1])
        frames.append(frame(raw))
        if waiting and info.get("task_success", {}).get(task):
            task = waiting.pop(0)
    return first, np.stack(actions), np.stack(frames)


def plan_blindly(stage: Stage, starts: InitialObservations) -> dict[str, Any]:
    """Whole episodes are planned in imagination from one real frame, then executed with closed eyes."""
    from kairos_env.media import film_strip, side_by_side, write_mp4, write_png

    planner, plans = stage.config.planner, stage.config.amounts.plans
    stage.console.print(f"\n[bold]2. Plan[/] ({planner}) from one real frame, then execute it all without looking")
    counts: dict[str, tuple[int, int]] = {}
    films: list[Array] = []
    strip: dict[str, Array] = {}
    for task in stage.tasks:
        successes = 0
        for i in range(plans):
            first = first_observation(starts, task, i)
            began = time.perf_counter()
            actions, imagined, expected = plan_episode(stage.model, first, planner, seed=i)
            seconds = time.perf_counter() - began
            real, success = execute(starts.simulator, first, actions)
            successes += success
            outcome = "success" if success else "failure"
            stage.console.print(
                f"   {task} {i + 1}: {len(actions)} decisions planned in {seconds:.1f} s, "
                f"imagined success {expected:.2f}, in reality {outcome}"
            )
            if i == 0:
                films.append(side_by_side({f"{task}: planned": imagined, f"executed: {outcome}": real}))
                strip |= {f"{task}, planned": imagined, f"{task}, executed": real}
        counts[task] = successes, plans
    write_png(stage.folder / "plan.png", film_strip(strip))
    write_mp4(stage.folder / "plan.mp4", np.concatenate(films), stage.model.spec.control_rate_hz)
    return {"planned_blindly": counts}


def execute(simulator: Any, first: Observation, actions: Array) -> tuple[Array, bool]:
    """Real frames uint8 (T + 1, H, W, 3) under the actions (T, A), and whether the task succeeded on the way."""
    frames, success = [next(iter(first.images.values()))], False
    for action in actions:
        raw, _, _, _, info = simulator.step(action)
        frames.append(frame(raw))
        success = success or bool(info["success"])
    return np.stack(frames), success


def act(stage: Stage, simulator: str, names: Mapping[str, str], states: int | None) -> dict[str, Any]:
    """The action-only policy in the real simulator, by the evaluation that `kairos eval` runs.

    Args:
        stage: see `Stage`.
        simulator: its id.
        names: the simulator's name of each task -> the model's.
        states: how many initial states it has; the last ones are taken, as training takes the first.
    """
    from kairos_env.eval.closed_loop.config import EvalConfig
    from kairos_env.eval.closed_loop.engine import evaluate

    stage.console.print("\n[bold]3. Act[/]: the action-only policy in the real simulator, looking at every frame")
    episodes = stage.config.amounts.episodes
    results = evaluate(
        EvalConfig(
            output=str(stage.folder / "closed_loop"),
            policies=("policy",),
            tasks=tuple(names),
            episodes=episodes,
            simulator=simulator,
            first_initial_state=None if states is None else max(0, states - episodes),
            model=stage.config.model,
            device=stage.config.device,
            workers=0,
            videos=1,
        ),
        progress=True,
    )
    return {"closed_loop": {ours: dataclasses.asdict(results.cell("policy", name)) for name, ours in names.items()}}


def in_imagination(stage: Stage) -> dict[str, Any]:
    """What needs no simulator: the policy in imagined episodes, from real observations that ship with the model."""
    from kairos_env.media import film_strip, side_by_side, write_mp4, write_png

    model = stage.model
    starts = model.starts[: stage.config.amounts.episodes]
    if not starts:
        stage.console.print("   this model ships no initial observations, so there is nothing to imagine from")
        return {}
    stage.console.print(f"\n[bold]Imagined episodes[/] of the policy from {len(starts)} real initial observations")
    strip, counts = {}, {}
    for task, instruction in stage.tasks.items():
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
        if "success" not in model.untrained:
            counts[task] = int(arrived.sum()), len(asked)
            stage.console.print(f"   {task}: the model expects success in {arrived.sum()} of {len(asked)}")
    write_png(stage.folder / "imagined.png", film_strip(strip))
    write_mp4(stage.folder / "imagined.mp4", side_by_side(strip), model.spec.control_rate_hz)
    return {"imagined_success": counts} if counts else {}


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


def speed(model: WorldModel, batch: int, seconds: float) -> float:
    """Imagined decisions a second, all elements of the batch counted; nothing is decoded."""
    from kairos_env.policies.policy import example_observation

    start: WorldState = model.observe([example_observation(model.spec)] * batch, seeds=range(batch))
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
