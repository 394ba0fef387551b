"""What a stage of training has reached, and its checkpoints: whole, with a checksum, and never with a value that is not
finite.
"""

from __future__ import annotations

import math
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kairos_env.runs import atomic_write
from kairos_env.world_model.weights import content_sha256, problems

LINEAGE = "lineage.json"  # beside a checkpoint, which holds a copy
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
        skip: numbers of steps that are not taken, such as one whose clips gave a gradient that is not finite.
    """

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.998
    log_every: int = 20
    checkpoint_every: int = 200
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")


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
        step: number of the next one.
        taken: steps taken in this launch.
        ema: name -> moving average of a parameter.
    """

    def __init__(self, modules: nn.Module, config: LoopConfig) -> None:
        self.step, self.taken, self._config = 0, 0, config
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

    def restore(self, checkpoint: Path, say: Callable[[str], None]) -> None:
        """Goes on from a checkpoint; one of an earlier version without a checksum is taken, which is said.

        Raises:
            ValueError: it is damaged, or of another model.
        """
        saved = read_checkpoint(checkpoint)
        if "sha256" not in saved:
            say(f"{checkpoint} was written without a checksum, by an earlier version; the next one has one")
        shapes = ({k: tuple(v.shape) for k, v in values.items()} for values in (self.ema, saved["parameters"]))
        if wrong := problems(*shapes):
            raise ValueError(
                f"{checkpoint} is of another model; choose another run folder:\n  " + "\n  ".join(wrong[:20])
            )
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
        """Writes a checkpoint, whole or not at all.

        Raises:
            FloatingPointError: a parameter, its average or the optimiser's moment is not finite; nothing is written.
        """
        value: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "parameters": {k: p.detach() for k, p in self._parameters.items()},
            "ema": self.ema,
            "optimiser": self._optimiser.state_dict(),
        }
        if (lineage := checkpoint.with_name(LINEAGE)).exists():
            value["lineage"] = lineage.read_text()
        moments = self._optimiser.state.values()
        kept = [*self._parameters.values(), *self.ema.values(), *(t for state in moments for t in state.values())]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in kept if isinstance(tensor, Tensor)):
            raise FloatingPointError(f"what was learned is not finite after step {self.step - 1}")
        with atomic_write(checkpoint) as part:
            torch.save(value | {"sha256": content_sha256(value)}, part)

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
        self.taken += 1
        return norm


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, after its checksums.

    Raises:
        ValueError: it is empty, cut or damaged, by the archive's checksums (CRC-32) or that of its content (SHA-256;
            earlier versions wrote none).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if torn := archive.testzip():
                raise ValueError(f"the checksum of {torn} differs")
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content = {key: value for key, value in saved.items() if key != "sha256"}
        if "sha256" in saved and saved["sha256"] != content_sha256(content):
            raise ValueError("its checksum differs")
        if not {"step", "seconds", "cpu_seconds", "parameters", "ema", "optimiser"} <= content.keys():
            raise ValueError(f"it holds {', '.join(sorted(content)) or 'nothing'}")
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged bytes make the parsers of an archive raise anything
        empty = "is empty" if path.stat().st_size == 0 else "is damaged"
        raise ValueError(f"{path} {empty}; delete it, and this stage begins anew ({error})") from None
    return saved
