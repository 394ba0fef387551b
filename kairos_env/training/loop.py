"""The optimisation loop of every stage: AdamW, EMA, metrics, atomic checkpoints, exact resumption, a clean stop."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kairos_env.runs import atomic_write
from kairos_env.training.log import TrainingLog

Metrics = Mapping[str, Tensor | float]
LossFunction = Callable[[int, torch.Generator], tuple[Tensor, Metrics]]
Averaged = dict[str, Tensor]
Hook = tuple[int, Callable[[int, Averaged], Mapping[str, float]]]
"""(interval, callback): after every so many steps it is called with (step, averaged parameters); what it returns is
logged."""
FLOOR = 0.05  # share of the peak learning rate that a stage ends with
PACE = (4, 20)  # steps of a launch between which its pace is measured


@dataclass(frozen=True)
class LoopConfig:
    """One stage of optimisation.

    Args:
        steps: of the optimiser.
        lr: peak of the learning rate, which rises linearly and falls by a cosine to a twentieth.
        warmup: steps of the rise.
        weight_decay: of matrices; vectors are not decayed.
        clip: largest norm of the gradient; longer ones are shortened to it.
        ema: decay of the moving average of the parameters, which is what is kept in the end.
        log_every: steps between two rows of the log.
        checkpoint_every: steps between two checkpoints.
    """

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.998
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0, got {self.lr}")


class TrainingStopped(KeyboardInterrupt):
    """A training was asked to stop, and has written a checkpoint from which the same command goes on."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """All randomness of one step, a pure function of (seed, step)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to `FLOOR`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def cpu_seconds() -> float:
    """Processor time of this process and of those that it started and that have ended, such as compilers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Progress:
    """All that a checkpoint holds: parameters, their moving average, the optimiser, steps taken, time spent.

    Attributes:
        step: taken so far.
        ema: name -> moving average of a parameter.
    """

    def __init__(self, modules: nn.Module, config: LoopConfig) -> None:
        self.step, self._config = 0, config
        self._began, self._cpu_began = time.monotonic(), cpu_seconds()
        self._parameters = {k: p for k, p in modules.named_parameters() if p.requires_grad}
        matrices = [p for p in self._parameters.values() if p.ndim >= 2]
        others = [p for p in self._parameters.values() if p.ndim < 2]
        self._optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=(0.9, 0.99),
        )
        self.ema = {k: p.detach().clone() for k, p in self._parameters.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    @property
    def seconds(self) -> float:
        """Wall time of this stage, of all launches together; what was done again after a kill counts once."""
        return time.monotonic() - self._began

    @property
    def cpu_seconds(self) -> float:
        """Processor time of this stage, like `seconds`."""
        return cpu_seconds() - self._cpu_began

    def restore(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint."""
        try:
            saved = torch.load(checkpoint, weights_only=True)
        except (RuntimeError, EOFError, IndexError, UnpicklingError) as error:
            raise ValueError(f"{checkpoint} is damaged; delete it, and this stage begins anew ({error!r})") from None
        self.step = saved["step"]
        self._began -= saved["seconds"]
        self._cpu_began -= saved["cpu_seconds"]
        for key, value in saved["parameters"].items():
            self._parameters[key].data.copy_(value)
        for key, value in saved["ema"].items():
            self.ema[key].copy_(value)
        decays = [group["weight_decay"] for group in self._optimiser.param_groups]
        self._optimiser.load_state_dict(saved["optimiser"])
        for group, decay in zip(self._optimiser.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # the configuration's, which may have changed

    def save(self, checkpoint: Path) -> None:
        """Writes a checkpoint, whole or not at all."""
        value = {
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "parameters": {k: p.detach() for k, p in self._parameters.items()},
            "ema": self.ema,
            "optimiser": self._optimiser.state_dict(),
        }
        with atomic_write(checkpoint) as part:
            torch.save(value, part)

    def descend(self, loss: Tensor) -> float:
        """Takes one step down the gradient of ``loss``, and returns the gradient's norm.

        Raises:
            FloatingPointError: loss or gradient is not finite; nothing has changed.
        """
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        value = float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self._config.clip))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise FloatingPointError(f"the loss is {value}, the norm of its gradient {norm}, at step {self.step}")
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self._config, self.step)
        self._optimiser.step()
        decay = min(self._config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self._parameters.values()], 1 - decay)
        self.step += 1
        return norm


class Pace:
    """How fast a launch goes.

    Args:
        progress: of the stage.
        steps: of the whole stage.
    """

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress, self._steps, self._first = progress, steps, progress.step
        self._marks: dict[int, tuple[float, float]] = {}
        self._last = (progress.step, progress.seconds)

    def times(self) -> dict[str, float]:
        """Seconds of the stage, and steps a second since the last call."""
        step, seconds = self._progress.step, self._progress.seconds
        rate = (step - self._last[0]) / max(1e-9, seconds - self._last[1])
        self._last = (step, seconds)
        spent = {"seconds": seconds, "cpu_seconds": self._progress.cpu_seconds}
        return {name: round(value, 1) for name, value in spent.items()} | {"steps_per_second": round(rate, 3)}

    def estimate(self) -> str:
        """After the first steps of a launch, once, a sentence on how long the rest will take; otherwise empty."""
        taken, left = self._progress.step - self._first, self._steps - self._progress.step
        if taken in PACE:
            self._marks[taken] = (self._progress.seconds, self._progress.cpu_seconds)
        if taken != PACE[-1] or not left:
            return ""
        wall, cpu = ((b - a) / (PACE[1] - PACE[0]) for a, b in zip(*(self._marks[mark] for mark in PACE), strict=True))
        done = time.strftime("%a %H:%M", time.localtime(time.time() + left * wall))
        return (
            f"{wall:.2f} s and {cpu:.2f} CPU-seconds a step; {left} steps are left, without validation "
            f"{left * wall / 60:.0f} minutes ({left * cpu / 3600:.1f} CPU-hours), until {done}"
        )


def optimise(
    name: str,
    modules: nn.Module,
    loss: LossFunction,
    config: LoopConfig,
    log: TrainingLog,
    seed: int,
    precision: str,
    hooks: Sequence[Hook] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Averaged:
    """Trains the parameters of ``modules``; returns their exponential moving average.

    A checkpoint ``<name>.pt`` in the log's folder is written atomically every ``checkpoint_every`` steps, at the end,
    and when SIGTERM or Ctrl-C asks to stop; if one exists, training continues from it and repeats exactly what an
    uninterrupted run would have done (same clips, same noise, same curve on the same CPU and thread count).

    Args:
        loss: (step, generator) -> loss and metrics.
        precision: ``"bf16"`` (autocast) or ``"fp32"``.
        hooks: called at their intervals and after the last step, in this order, for validation, film strips, snapshots.
        say: is told once how long the stage will take.

    Raises:
        FloatingPointError: a loss or gradient is not finite; that step is not taken.
        TrainingStopped: by a signal, after a checkpoint.
    """
    progress, checkpoint = Progress(modules, config), log.folder / f"{name}.pt"
    if checkpoint.exists():
        progress.restore(checkpoint)
    log.resume(name, progress.step)
    pace = Pace(progress, config.steps)
    bar = tqdm(total=config.steps, initial=progress.step, desc=name, unit="step", mininterval=2)
    with stop_signals() as stopped, bar:
        while (step := progress.step) < config.steps:
            modules.train()
            with torch.autocast(progress.device.type, torch.bfloat16, enabled=precision == "bf16"):
                value, parts = loss(step, step_generator(seed, step))
            try:
                norm = progress.descend(value)
            except FloatingPointError as error:
                raise FloatingPointError(_advice(name, error, config.lr, checkpoint)) from None
            bar.update()
            last = progress.step == config.steps
            if step % config.log_every == 0 or last:
                shown = {k: float(v) for k, v in parts.items()}
                row = {"step": step, "loss": float(value.detach()), "grad_norm": norm, **shown}
                log.add(name, row | {"lr": learning_rate(config, step)} | pace.times())
                bar.set_postfix({k: f"{v:.3g}" for k, v in list(shown.items())[:4]}, refresh=False)
            for interval, call in hooks:
                if (progress.step % interval == 0 or last) and (found := call(progress.step, progress.ema)):
                    log.add(name, {"step": step, **found})
            if progress.step % config.checkpoint_every == 0 or last or stopped():
                progress.save(checkpoint)
            if stopped():
                raise TrainingStopped(f"stopped at step {progress.step} of {name}; the same command goes on from there")
            if sentence := pace.estimate():
                say(f"{name}: {sentence}")
    return progress.ema


def _advice(name: str, error: FloatingPointError, lr: float, checkpoint: Path) -> str:
    kept = f"the last checkpoint {checkpoint} is intact" if checkpoint.exists() else "there is no checkpoint yet"
    if name == "tokenizer":
        return f"{name}: {error}; {kept}. Begin again in another folder with a learning rate below {lr:g}."
    return f"{name}: {error}; {kept}. Go on from it with a learning rate below {lr:g}: --{name}.lr {lr / 2:g} --change"


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """While it is open, SIGTERM and Ctrl-C only ask to stop, and the function that it gives says whether they did.

    A second Ctrl-C interrupts at once. Outside of the main thread nothing is caught.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.no_grad()
def load_values(modules: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Gives the parameters of ``modules`` these values."""
    for name, parameter in modules.named_parameters():
        parameter.copy_(values[name])


@contextlib.contextmanager
def swapped(modules: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Temporarily gives the parameters of ``modules`` other values."""
    kept = {name: p.detach().clone() for name, p in modules.named_parameters()}
    load_values(modules, values)
    try:
        yield
    finally:
        load_values(modules, kept)
