"""The optimisation loop of every stage: AdamW, EMA, metrics, atomic checkpoints, exact resumption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kairos_env.runs import append_jsonl, atomic_write, read_jsonl, write_text

LossFunction = Callable[[int, torch.Generator], tuple[Tensor, dict[str, Tensor | float]]]


@dataclass(frozen=True)
class LoopConfig:
    """One stage of optimisation. ``lr`` follows a linear warm-up and a cosine to a twentieth."""

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.998
    log_every: int = 20
    checkpoint_every: int = 200


def step_generator(seed: int, step: int) -> torch.Generator:
    """All randomness of one step, a pure function of (seed, step)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def learning_rate(config: LoopConfig, step: int) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


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
    """
    parameters = {k: p for k, p in modules.named_parameters() if p.requires_grad}
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.99),
    )
    ema = {k: p.detach().clone() for k, p in parameters.items()}
    checkpoint, metrics_file = folder / f"{name}.pt", folder / f"{name}.jsonl"
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        start = saved["step"]
        for key, value in saved["parameters"].items():
            parameters[key].data.copy_(value)
        for key, value in saved["ema"].items():
            ema[key].copy_(value)
        optimiser.load_state_dict(saved["optimiser"])
    drop_rows_from(metrics_file, start)

    def save(step: int) -> None:
        value = {
            "step": step,
            "parameters": {k: p.detach() for k, p in parameters.items()},
            "ema": ema,
            "optimiser": optimiser.state_dict(),
        }
        with atomic_write(checkpoint) as part:
            torch.save(value, part)

    device = next(iter(parameters.values())).device.type
    bar = tqdm(total=config.steps, initial=start, desc=name, unit="step", dynamic_ncols=True, mininterval=2)
    began = time.monotonic()
    with bar:
        for step in range(start, config.steps):
            modules.train()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, step)
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                value, parts = loss(step, step_generator(seed, step))
            if not torch.isfinite(value):
                raise FloatingPointError(
                    f"{name}: the loss is {float(value)} at step {step}; the last checkpoint in {folder} is intact. "
                    f"Lower the learning rate (now {config.lr}) and resume."
                )
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.clip_grad_norm_(parameters.values(), config.clip)
            optimiser.step()
            decay = min(config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.values()), [p.detach() for p in parameters.values()], 1 - decay)
            bar.update()
            if step % config.log_every == 0 or step == config.steps - 1:
                row = {
                    "step": step,
                    "loss": float(value.detach()),
                    "grad_norm": float(norm),
                    "lr": learning_rate(config, step),
                }
                row |= {k: float(v) for k, v in parts.items()}
                append_jsonl(metrics_file, row | {"seconds": round(time.monotonic() - began, 1)})
                bar.set_postfix({k: f"{float(v):.3g}" for k, v in list(parts.items())[:4]}, refresh=False)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                save(step + 1)
            if every is not None and ((step + 1) % every[0] == 0 or step + 1 == config.steps):
                append_jsonl(metrics_file, {"step": step} | every[1](step + 1, ema))
    return ema


def drop_rows_from(metrics_file: Path, step: int) -> None:
    """Removes rows that will be written again: those at or after ``step``, and a torn last line."""
    if metrics_file.exists():
        kept = [json.dumps(row) + "\n" for row in read_jsonl(metrics_file) if row["step"] < step]
        write_text(metrics_file, "".join(kept))
