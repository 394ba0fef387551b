"""The optimisation loop of every stage: AdamW, EMA, metrics, atomic checkpoints, exact resumption, a clean stop."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kairos_env.training.log import TrainingLog
from kairos_env.training.progress import LoopConfig, Progress, learning_rate

Metrics = Mapping[str, Tensor | float]
LossFunction = Callable[[int, torch.Generator], tuple[Tensor, Metrics]]
Averaged = dict[str, Tensor]
Hook = tuple[int, Callable[[int, Averaged], Mapping[str, float]]]
"""(interval, callback): after every so many steps it is called with (step, averaged parameters); what it returns is
logged."""
PACE = (4, 20)  # steps of a launch between which its pace is measured


class TrainingStopped(KeyboardInterrupt):
    """A training was asked to stop, and has written a checkpoint from which the same command goes on."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """All randomness of one step, a pure function of (seed, step)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


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
    ended: Callable[[], bool] = lambda: False,
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
        ended: asked at the beginning and after every row of a hook: whether the rows of this stage that the log holds
            say that it is over before its last step.

    Raises:
        FloatingPointError: a loss or gradient is not finite (that step is not taken), or what was learned is not (it is
            not saved).
        ValueError: the checkpoint is damaged.
        TrainingStopped: by a signal, after a checkpoint.
    """
    progress, checkpoint = Progress(modules, config), log.folder / f"{name}.pt"
    if checkpoint.exists():
        progress.restore(checkpoint, say)
    log.resume(name, progress.step)
    pace = Pace(progress, config.steps)
    bar = tqdm(total=config.steps, initial=progress.step, desc=name, unit="step", mininterval=2)
    over = ended()
    with stop_signals() as stopped, bar:
        while (step := progress.step) < config.steps and not over:
            last = step + 1 == config.steps
            try:
                if step in config.skip:
                    progress.step += 1
                else:
                    row = _step(modules, loss, progress, seed, precision)
                    if step % config.log_every == 0 or last:
                        row = {k: float(v) for k, v in row.items()}
                        log.add(name, {"step": step, **row, "lr": learning_rate(config, step)} | pace.times())
                        learned = [(k, f"{v:.3g}") for k, v in list(row.items())[2:] if v]  # 0 where data do not say
                        bar.set_postfix(dict(learned[:4]), refresh=False)
                bar.update()
                for interval, call in hooks:
                    if (progress.step % interval == 0 or last) and (found := call(progress.step, progress.ema)):
                        log.add(name, {"step": step, **found})
                        over = over or ended()
                if progress.step % config.checkpoint_every == 0 or last or over or stopped():
                    progress.save(checkpoint)
            except FloatingPointError as error:
                raise FloatingPointError(_advice(name, error, config, step, progress, checkpoint)) from None
            if stopped():
                raise TrainingStopped(f"stopped at step {progress.step} of {name}; the same command goes on from there")
            if sentence := pace.estimate():
                say(f"{name}: {sentence}")
    return progress.ema


def _step(modules: nn.Module, loss: LossFunction, progress: Progress, seed: int, precision: str) -> dict[str, Any]:
    """Takes the next step; returns its loss, the norm of its gradient, and its metrics."""
    modules.train()
    with torch.autocast(progress.device.type, torch.bfloat16, enabled=precision == "bf16"):
        value, parts = loss(progress.step, step_generator(seed, progress.step))
    norm = progress.descend(value)
    return {"loss": value.detach(), "grad_norm": norm, **parts}


def _advice(
    name: str, error: FloatingPointError, config: LoopConfig, step: int, progress: Progress, checkpoint: Path
) -> str:
    """What to do after a value that is not finite; something else where the last advice did not help."""
    if name == "tokenizer":
        return f"{name}: {error}. Begin again in another folder with a learning rate below {config.lr:g}."
    lower = f"with a learning rate below {config.lr:g}: --{name}.lr {config.lr / 2:g} --change"
    if not checkpoint.exists():
        return f"{name}: {error}; there is no checkpoint yet. Begin again {lower}"
    skipped = ",".join(str(number) for number in [*config.skip, step])
    without = f"without this step: --{name}.skip {skipped} --change"
    if progress.taken:
        return f"{name}: {error}; the last checkpoint {checkpoint} is intact. Go on from it {lower}; or {without}"
    return (
        f"{name}: {error}, the first one after the checkpoint {checkpoint}: either this step's clips are at fault, or "
        f"what was learned before. Go on {without}. If that fails too, delete that checkpoint, and the stage begins "
        f"anew {lower}"
    )


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
    """Gives the parameters of ``modules`` these values; others stay as they are."""
    for name, parameter in modules.named_parameters():
        if name in values:
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
