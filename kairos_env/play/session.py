"""The drive: an imagined robot, its past, and the futures one can look into.

No HTTP here. A `WorldState` is a value, so undo keeps the earlier one and a fork starts three from the newest.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kairos_env.env.initial_observations import InitialObservations, Start
from kairos_env.env.trust import Trust
from kairos_env.records import Array, Observation, RobotSpec

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel
    from kairos_env.world_model.state import StepOutput, WorldState

UNDO_LIMIT = 64  # moments that keep their WorldState; older ones keep only what was seen
MOMENT_LIMIT = 2000  # about 25 MB of 64 x 64 frames
FUTURES = 3
FUTURE_LENGTH = 8  # decisions: 1.6 s at 5 Hz, long enough to see an intention


class StaleFork(ValueError):
    """A future was chosen that no longer starts at the present."""


@dataclass(frozen=True)
class Moment:
    """One decision of the drive: what is seen, and the state that can go on from here.

    Args:
        state: B = 1; None once the moment is too old to be undone to.
        images: camera -> uint8 (H, W, 3).
        proprio: float32 (P,), physical units.
        reward: the model's reward of the task, 0..1 for the bundled tasks.
        success: probability, 0..1.
        uncertainty: >= 0, as in ``info`` of the environment, in metres or in standard deviations of the latent.
        action: float32 (A,) that led here, or None where no time passed (a reset, another instruction).
        task: what was asked for.
        step: decisions since the start.
        actor: ``"start"``, ``"you"``, ``"policy"``, ``"future"`` or ``"instruction"``.
        strangeness: >= 1, of the real observation that the drive began with, see `Familiarity`.
        doubt: uncertainty of the imagined frame that the memory was begun anew with, under another instruction.
    """

    state: WorldState | None
    images: Mapping[str, Array]
    proprio: Array
    reward: float
    success: float
    uncertainty: float
    action: Array | None
    actor: str
    task: str
    step: int = 0
    strangeness: float = 1.0
    doubt: float = 0.0


class PlaySession:
    """One person's drive through one world model. Not thread-safe: the server calls it from one thread.

    Args:
        model: the world model; only its verbs are used.
        start: where a reset begins, see `InitialObservations`; the instruction is replaced by the task's.
        task: a name of ``model.tasks``; None takes the first.
        steps: denoising steps of an imagined frame; None takes the model's own number.
        seed: of the starts' order and of imagination.
        folder: where saved videos go; made on the first save.

    Raises:
        ValueError: the model ships no starts, or an unknown task; the message lists what is legal.
        SpecMismatch: the start's robot is not the model's.
    """

    def __init__(
        self,
        model: WorldModel,
        start: Start = "dataset",
        *,
        task: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        folder: Path = Path("runs/play"),
    ) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}; legal are 1 and more denoising steps")
        self.model = model
        self.tasks: dict[str, str] = dict(model.tasks) or {"task": model.spec.instruction}
        self.moments: list[Moment] = []
        self._starts, self._trust = InitialObservations(start, model), Trust(model)
        self._steps = steps
        self._rng = np.random.default_rng(seed)
        self._folder = folder
        self._futures: list[list[Moment]] = []
        self._largest_uncertainty = 0.0
        self._milliseconds = 0.0
        self.reset(next(iter(self.tasks)) if task is None else task)

    # What the page asks for: each verb changes the drive and returns nothing, or what only it can tell.

    def reset(self, task: str | None = None, start: int | None = None) -> None:
        """Begins again at a new real start, or number ``start`` of the recorded ones, under ``task`` if given."""
        task = self.task if task is None else self._known_task(task)
        wish = {} if start is None else {"start": start}
        observation = self._starts.draw(int(self._rng.integers(2**31)), task, wish)
        self.moments = [self._observed(observation, task, "start")]
        self._largest_uncertainty = 0.0
        self._futures = []

    def instruct(self, task: str) -> None:
        """Another instruction from here on: the newest frame is observed anew under it."""
        now = self.moments[-1]
        self._append(self._observed(self._seen(now), self._known_task(task), "instruction", now))
        self._futures = []

    def step(self, action: Sequence[float]) -> None:
        """One imagined decision under ``action`` (A,), physical units, clipped to the spec's range."""
        checked = self.model.spec.check_action(action)
        if checked.ndim != 1:
            raise ValueError(f"action has shape {checked.shape}; one action ({len(checked)} numbers) is expected")
        self._advance(checked, "you")

    def act(self) -> None:
        """One imagined decision by the action-only policy, which decides anew every time."""
        self._advance(_numpy(self.model.act(self._present()))[0, 0], "policy")

    def undo(self) -> None:
        """Back by one moment. Imagining the same action again gives the same frame: noise is part of the state."""
        if not self.can_undo:
            raise ValueError("nothing to undo: this is the start, or more steps back than are kept")
        self.moments.pop()
        self._futures = []

    def fork(self, kind: str = "policy") -> list[dict[str, Any]]:
        """Looks into three futures from here, without going there.

        Args:
            kind: ``"policy"``: three samples of the policy; ``"tasks"``: the policy under three instructions.

        Returns:
            One record a future: ``label``, and a list of ``moments`` as in `snapshot`.
        """
        state, labels, tasks, begun = self._forked(kind)
        count = len(labels)
        batch: list[list[Moment]] = [[] for _ in range(count)]
        for _ in range(FUTURE_LENGTH):
            actions = _numpy(self.model.act(state))[:, 0]  # (futures, A)
            out = self.model.step(state, actions, steps=self._steps)
            state = out.state
            frames = self.model.decode(out.latent, out.state.before)
            for i in range(count):
                batch[i].append(_imagined(out, frames, actions[i], i, "future", tasks[i], begun))
        self._futures = batch
        return [
            {"label": label, "moments": [self._public(m) for m in future]}
            for label, future in zip(labels, batch, strict=True)
        ]

    def take(self, future: int) -> None:
        """Goes down one of the futures that `fork` showed last.

        Raises:
            StaleFork: time went on (or back) since, so that they no longer begin here.
        """
        if not self._futures:
            raise StaleFork("these futures no longer begin at the present; look into new ones (fork)")
        if not 0 <= future < len(self._futures):
            raise ValueError(f"future is {future}; legal are 0 to {len(self._futures) - 1}")
        for moment in self._futures[future]:
            self._append(moment)
        self._futures = []

    def save(self) -> Path:
        """Writes the drive so far as an mp4 at the robot's own pace and returns its path."""
        from kairos_env.media import enlarge, write_mp4

        frames = np.stack([np.concatenate(list(m.images.values()), axis=1) for m in self.moments])
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{self.task}-{len(frames)}.mp4"
        write_mp4(path, enlarge(frames, max(1, 384 // frames.shape[1])), rate=self.model.spec.control_rate_hz)
        return path

    # What the page shows.

    @property
    def task(self) -> str:
        return self.moments[-1].task

    @property
    def can_undo(self) -> bool:
        return len(self.moments) > 1 and self.moments[-2].state is not None

    def describe(self) -> dict[str, Any]:
        """What never changes during a drive: the robot, its keys, the tasks."""
        spec = self.model.spec
        return {
            "name": spec.name,
            "rate_hz": spec.control_rate_hz,
            "tasks": self.tasks,
            "cameras": [dataclasses.asdict(camera) for camera in spec.cameras],
            "proprio": [dataclasses.asdict(field) for field in spec.proprio],
            "action": [dataclasses.asdict(field) for field in spec.action],
            "keys": key_map(spec),
            "starts": len(self._starts.recorded),
            "futures": FUTURES,
            "metric": self._trust.metric,
            "untrained": list(self.model.untrained),
        }

    def close(self) -> None:
        """Frees the simulator that gave starts, if there was one."""
        self._starts.close()

    def snapshot(self) -> dict[str, Any]:
        """The present and the curves behind it. Images are uint8 arrays; the server encodes them."""
        now = self.moments[-1]
        self._largest_uncertainty = max(self._largest_uncertainty, now.uncertainty)
        tail = self.moments[-120:]
        return self._public(now) | {
            "task": self.task,
            "step": now.step,
            "can_undo": self.can_undo,
            "milliseconds": round(self._milliseconds, 1),
            "largest_uncertainty": _finite(self._largest_uncertainty),
            "history": {
                name: [_finite(getattr(m, name)) for m in tail] for name in ("success", "reward", "uncertainty")
            }
            | {"trust": [self._trusted(m) for m in tail]},
        }

    # Inside.

    def _known_task(self, task: str) -> str:
        if task not in self.tasks:
            raise ValueError(f"unknown task {task!r}; this model knows {', '.join(self.tasks)}")
        return task

    def _present(self) -> WorldState:
        state = self.moments[-1].state
        assert state is not None  # only old moments lose theirs
        return state

    def _seen(self, moment: Moment) -> Observation:
        """A moment as an observation; imagined proprioception may lie a little outside the robot's range."""
        return Observation(moment.images, self.model.spec.clip_proprio(moment.proprio))

    def _observed(self, observation: Observation, task: str, actor: str, before: Moment | None = None) -> Moment:
        """A memory that begins with ``observation``: a real one, or what was imagined at the moment ``before``."""
        observation = dataclasses.replace(observation, instruction=self.tasks[task])
        state = self.model.observe([observation], seeds=[int(self._rng.integers(2**31))])
        if before is None:
            strangeness, doubt = float(self._trust.familiarity.strangeness([observation], state.latent)[0]), 0.0
        else:
            strangeness, doubt = before.strangeness, before.uncertainty
        moment = Moment(
            state=state,
            images=observation.images,
            proprio=np.asarray(observation.proprio, np.float32),
            reward=float(_numpy(state.reward)[0]),
            success=float(_numpy(state.success)[0]),
            uncertainty=self._trust.uncertainty(state, np.array([strangeness]))[0],
            action=None,
            actor=actor,
            task=task,
            strangeness=strangeness,
            doubt=doubt,
        )
        return dataclasses.replace(moment, uncertainty=math.hypot(moment.uncertainty, doubt))

    def _advance(self, action: Array, actor: str) -> None:
        began = time.perf_counter()
        out = self.model.step(self._present(), action[None], steps=self._steps)
        frames = self.model.decode(out.latent, out.state.before)
        self._append(_imagined(out, frames, action, 0, actor, self.task, self.moments[-1]))
        self._futures = []
        self._milliseconds = 1000 * (time.perf_counter() - began)

    def _append(self, moment: Moment) -> None:
        passed = self.moments[-1].step + (moment.action is not None)
        self.moments.append(dataclasses.replace(moment, step=passed))
        if len(self.moments) > UNDO_LIMIT:
            old = len(self.moments) - UNDO_LIMIT - 1
            self.moments[old] = dataclasses.replace(self.moments[old], state=None)
        del self.moments[:-MOMENT_LIMIT]

    def _forked(self, kind: str) -> tuple[WorldState, list[str], list[str], Moment]:
        """B = number of futures, what to call each, the task of each, and the moment they begin from."""
        now = self.moments[-1]
        if kind == "policy":
            seeds = [int(s) for s in self._rng.integers(2**31, size=FUTURES)]
            labels = [f"policy sample {i + 1}" for i in range(FUTURES)]
            return self._present().fork(FUTURES).reseed(seeds), labels, [self.task] * FUTURES, now
        if kind == "tasks":
            names = list(self.tasks)[:FUTURES]
            asked = [dataclasses.replace(self._seen(now), instruction=self.tasks[name]) for name in names]
            seed = int(self._rng.integers(2**31))  # one seed for all: only the instruction differs
            state = self.model.observe(asked, seeds=[seed] * len(asked))
            return state, [self.tasks[name] for name in names], names, dataclasses.replace(now, doubt=now.uncertainty)
        raise ValueError(f"kind is {kind!r}; legal are 'policy' and 'tasks'")

    def _trusted(self, moment: Moment) -> float | None:
        told = self._trust.columns([moment.uncertainty], np.array([moment.strangeness])).get("trust")
        return None if told is None else _finite(told.item())

    def _public(self, moment: Moment) -> dict[str, Any]:
        """What the page may see of a moment."""
        return {
            "images": dict(moment.images),
            "proprio": [_finite(v) for v in moment.proprio.tolist()],
            "reward": _finite(moment.reward),
            "success": _finite(moment.success),
            "uncertainty": _finite(moment.uncertainty),
            "trust": self._trusted(moment),
            "familiarity": _finite(1 / moment.strangeness) if self._trust.familiarity.known else None,
            "action": None if moment.action is None else [_finite(v) for v in moment.action.tolist()],
            "actor": moment.actor,
        }


def key_map(spec: RobotSpec) -> dict[str, tuple[int, float]]:
    """Keyboard codes of the browser -> (action index, sign); empty for a robot without position deltas.

    The first three position deltas are taken as x, y and z of a robot that looks along x. The bundled
    ``scene`` camera faces the robot, so there "up" and "right" on the screen are -x and +y; without a view
    that is known, "up" is ahead (+x) and "right" is the robot's right (-y).
    """
    deltas = [i for i, field in enumerate(spec.action) if field.kind == "delta_position"][:3]
    sign = -1.0 if spec.cameras[0].name == "scene" else 1.0
    rows = (
        (("KeyW", "ArrowUp"), ("KeyS", "ArrowDown"), sign),
        (("KeyA", "ArrowLeft"), ("KeyD", "ArrowRight"), sign),
        (("KeyE",), ("KeyQ",), 1.0),
    )
    keys: dict[str, tuple[int, float]] = {}
    for index, (plus, minus, way) in zip(deltas, rows, strict=False):
        keys |= dict.fromkeys(plus, (index, way)) | dict.fromkeys(minus, (index, -way))
    return keys


def _imagined(
    out: StepOutput, frames: Mapping[str, Array], action: Array, i: int, actor: str, task: str, before: Moment
) -> Moment:
    """Element ``i`` of a model step from the moment ``before`` as a moment."""
    return Moment(
        state=out.state.select([i]),
        images={name: frame[i] for name, frame in frames.items()},
        proprio=_numpy(out.proprio)[i],
        reward=float(_numpy(out.reward)[i]),
        success=float(_numpy(out.success)[i]),
        uncertainty=math.hypot(float(_numpy(out.uncertainty)[i]) * before.strangeness, before.doubt),
        action=np.asarray(action, np.float32),
        actor=actor,
        task=task,
        strangeness=before.strangeness,
        doubt=before.doubt,
    )


def _finite(value: float) -> float | None:
    """JSON has no NaN: None tells the page that the model broke down here."""
    return round(value, 5) if math.isfinite(value) else None


def _numpy(value: Any) -> Array:
    """A tensor of any device, or an array, as an array."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
