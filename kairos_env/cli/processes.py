"""One command in several processes, started by torchrun: each reads the same options and works on its share."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairos_env.runs import exit_with_parent, write_json

if TYPE_CHECKING:
    import torch


def started() -> bool:
    """Whether torchrun started this process."""
    import torch.distributed

    return torch.distributed.is_torchelastic_launched()


def rank() -> int:
    """Number of this process; 0 of one that is alone."""
    import torch.distributed

    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def launch(command: str, options: Any, processes: int) -> int:
    """Runs ``kairos <command>`` in so many processes on this machine; returns the exit status.

    If one of them fails, torchrun ends the others.

    Args:
        options: the config dataclass of the command.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "options.json")
        write_json(path, dataclasses.asdict(options))
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        words += ["-m", "kairos_env.cli", *command.split(), "--config", str(path)]
        process = subprocess.Popen(words)
        try:
            return process.wait()
        finally:
            process.terminate()  # torchrun passes it on
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


def join(device: str) -> torch.device:
    """Joins the other processes; returns the device of this one.

    Args:
        device: cuda, of which each process takes its own, or cpu.
    """
    import os

    import torch

    exit_with_parent()
    own = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    torch.distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    return own


def check_devices(device: str, processes: int) -> None:
    """Raises ValueError unless every process can have a device of its own."""
    import torch

    if device not in ("cuda", "cpu"):
        raise ValueError(f"several processes take device cuda, one GPU each, or cpu; got {device}")
    if device == "cuda" and torch.cuda.device_count() < processes:
        raise ValueError(f"{processes} processes need a GPU each, this machine has {torch.cuda.device_count()}")
