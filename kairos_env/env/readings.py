"""What an imagined step says, as arrays: fetched at once, and finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kairos_env.records import Array

if TYPE_CHECKING:
    from kairos_env.world_model.state import StepOutput


class Readings(NamedTuple):
    """Values of B imagined frames, float32, finite: 0 in the place of what is not.

    Args:
        proprio: (B, P) physical.
        objects: (B, O, 3); errors: (B, E), infinite where a frame is broken.
        reward, success, uncertainty: (B,), the last infinite where a frame is broken.
        broken: (B,), whether anything was not finite: of these, of the latent.
    """

    proprio: Array
    objects: Array
    errors: Array
    reward: Array
    success: Array
    uncertainty: Array
    broken: list[bool]


def read(out: StepOutput, earned: torch.Tensor) -> Readings:
    """The readings of a step, and of what it earned, (B,)."""
    proprio, objects, errors, reward, success, uncertainty, latent = fetched = _fetch(
        out.proprio, out.objects, out.errors, earned, out.success, out.uncertainty, out.latent
    )
    # Nothing is so large that a sum of it overflows, so that the sum is finite if all of it is.
    if math.isfinite(np.concatenate([values.ravel() for values in fetched]).sum()):
        broken = [False] * len(latent)
    else:
        broken = [not all(np.isfinite(values[row]).all() for values in fetched) for row in range(len(latent))]
        proprio, objects, errors, reward, success, uncertainty = (
            np.nan_to_num(values, posinf=0, neginf=0) for values in fetched[:-1]
        )
        errors[broken], uncertainty[broken] = np.inf, np.inf  # whatever it expected: it is not to be believed
    return Readings(proprio, objects, errors, reward, success, uncertainty, broken)


def _fetch(*tensors: torch.Tensor) -> list[Array]:
    """Tensors (B, ...) as float32 arrays; from an accelerator by one copy, because each one would be waited for."""
    exact = [values if values.dtype is torch.float32 else values.float() for values in tensors]
    if exact[0].device.type == "cpu":
        return [values.numpy() for values in exact]
    table = torch.cat([values.flatten(1) if values.ndim > 1 else values[:, None] for values in exact], 1).cpu().numpy()
    ends = np.cumsum([values[0].numel() for values in exact])
    parts = np.split(table, ends[:-1], axis=1)
    return [part.reshape(values.shape) for part, values in zip(parts, exact, strict=True)]
