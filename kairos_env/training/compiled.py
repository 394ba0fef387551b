"""Training with compiled passes: minutes of compilation at first, then faster steps."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kairos_env.world_model.model import WorldModel

CACHE, IN_USE = "compiled", "in_use"  # folder in that of the run, and the mark in it
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@contextlib.contextmanager
def compiled_passes(model: WorldModel, run: Path, backend: str = "inductor") -> Iterator[None]:
    """While it is open, passes of the video expert's blocks in training are compiled, for each shape once.

    Gradients are those of the plain passes up to rounding. Passes of validation stay plain: their shapes differ, and
    each would be compiled for minutes.

    Kernels are kept in the run's folder ``compiled`` for the next launch. One that was killed may leave half a kernel,
    which would be loaded, so that its mark makes the next launch begin with an empty folder.

    Args:
        model: to be trained.
        run: folder of the run.
        backend: of torch.compile. ``"eager"`` only traces.
    """
    cache, plain, before = run / CACHE, model.mixture.frames, os.environ.get(_VARIABLE)
    if (cache / IN_USE).exists():
        shutil.rmtree(cache)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / IN_USE).touch()
    os.environ[_VARIABLE] = str(cache.resolve())
    compiled = torch.compile(plain, dynamic=False, backend=backend)

    @functools.wraps(plain)
    def frames(*args: Any, **kwargs: Any) -> Any:
        return (compiled if model.mixture.training else plain)(*args, **kwargs)

    model.mixture.frames = frames  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.mixture.frames
        os.environ.pop(_VARIABLE)
        if before is not None:
            os.environ[_VARIABLE] = before
        (cache / IN_USE).unlink()
