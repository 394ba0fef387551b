"""The optimisation loop of every stage: AdamW, EMA, metrics, atomic checkpoints, exact resumption."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kairos_env.runs import append_jsonl, atomic_write, read_jsonl, write_text

Metrics = Mapping[str, Tensor | float]
LossFunction = Callable[[int, torch.Generator], tuple[Tensor, Metrics]]
FLOOR = 0.05  # share of the peak learning rate that a stage ends with


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


def step_generator(seed: int, step: int) -> torch.Generator:
    """All randomness of one step, a pure function of (seed, step)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to `FLOOR`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Progress:
    """All that a checkpoint holds: parameters, their moving average, the optimiser and the number of steps taken.

    Attributes:
        step: taken so far.
        ema: name -> moving average of a parameter.
    """

    def __init__(self, modules: nn.Module, config: LoopConfig) -> None:
        self.step, self._config = 0, config
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

    def restore(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint."""
        try:
            saved = torch.load(checkpoint, weights_only=True)
        except (RuntimeError, EOFError, IndexError, UnpicklingError) as error:
            raise ValueError(f"{checkpoint} is damaged; delete it, and this stage begins anew ({error!r})") from None
        self.step = saved["step"]
        for key, value in saved["parameters"].items():
            self._parameters[key].data.copy_(value)
        for key, value in saved["ema"].items():
            self.ema[key].copy_(value)
        self._optimiser.load_state_dict(saved["optimiser"])

    def save(self, checkpoint: Path) -> None:
        """Writes a checkpoint, whole or not at all."""
        value = {
            "step": self.step,
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


def optimise(
    name: str,
    modules: nn.Module,
    loss: LossFunction,
    config: LoopConfig,
    folder: Path,
    seed: int,
    precision: str,
    every: tuple[int, Callable[[int, dict[str, Tensor]], dict[str, float]]] | None = None,
) -> dict[str, Tensor]:
    """Trains the parameters of ``modules``; returns their exponential moving average.

    A checkpoint ``<name>.pt`` in ``folder`` is written atomically every ``checkpoint_every`` steps and at the
    end; if one exists, training continues from it and repeats exactly what an uninterrupted run would have
    done (same clips, same noise, same curve on the same CPU and thread count).

    Args:
        loss: (step, generator) -> loss and metrics.
        precision: ``"bf16"`` (autocast) or ``"fp32"``.
        every: (interval, callback(step, ema) -> metrics to log), for validation and sample strips.

    Raises:
        FloatingPointError: a loss or gradient is not finite; that step is not taken.
    """
    progress, checkpoint, rows = Progress(modules, config), folder / f"{name}.pt", folder / f"{name}.jsonl"
    if checkpoint.exists():
        progress.restore(checkpoint)
    drop_rows_from(rows, progress.step)
    began = time.monotonic()
    with tqdm(total=config.steps, initial=progress.step, desc=name, unit="step", mininterval=2) as bar:
        while (step := progress.step) < config.steps:
            modules.train()
            with torch.autocast(progress.device.type, torch.bfloat16, enabled=precision == "bf16"):
                value, parts = loss(step, step_generator(seed, step))
            try:
                norm = progress.descend(value)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{name}: {error}; the last checkpoint in {folder} is intact. Lower the learning rate (now "
                    f"{config.lr}) and resume."
                ) from None
            bar.update()
            last = progress.step == config.steps
            if step % config.log_every == 0 or last:
                shown = {k: float(v) for k, v in parts.items()}
                row = {"step": step, "loss": float(value.detach()), "grad_norm": norm, **shown}
                row |= {"lr": learning_rate(config, step), "seconds": round(time.monotonic() - began, 1)}
                append_jsonl(rows, row)
                bar.set_postfix({k: f"{v:.3g}" for k, v in list(shown.items())[:4]}, refresh=False)
            if progress.step % config.checkpoint_every == 0 or last:
                progress.save(checkpoint)
            if every is not None and (progress.step % every[0] == 0 or last):
                append_jsonl(rows, {"step": step} | every[1](progress.step, progress.ema))
    return progress.ema


def drop_rows_from(rows: Path, step: int) -> None:
    """Removes rows that will be written again, those at or after ``step``, and a torn last line."""
    if rows.exists():
        write_text(rows, "".join(json.dumps(row) + "\n" for row in read_jsonl(rows) if row["step"] < step))


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
