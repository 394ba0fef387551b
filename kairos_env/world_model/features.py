"""The measured form of a scene: proprioception, object positions and their differences, at the scales that matter.

A network that acts or judges on these learns from a fraction of the data that raw positions or latents take: where a
hand stands beside an object decides in millimetres at contact and in decimetres far from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from kairos_env.records import RobotSpec

FAR, NEAR, CONTACT = 0.1, 0.05, 0.02  # metres that one unit of a position, a difference and a saturating one stands for
LIMIT = 10.0  # no feature is larger


def measured_features(spec: RobotSpec, normal: Tensor, proprio: Tensor, objects: Tensor) -> Tensor:
    """The measured form of a state.

    Args:
        spec: the robot; one whose proprioception has no position of its hand gives no differences to it.
        normal: (..., P) normalised proprioception.
        proprio: (..., P) the same in physical units.
        objects: (..., O, 3) positions in metres, in the frame of the hand's.

    Returns:
        (..., K) in [-10, 10], as `feature_names` names them.
    """
    places = list(objects.unbind(-2))
    parts = [normal, objects.flatten(-2) / FAR]
    if spec.hand_fields and places:
        places = [proprio[..., spec.hand_fields], *places]
    for one, other in combinations(places, 2):
        apart = other - one
        parts += [apart / NEAR, (apart / CONTACT).tanh()]
    return torch.cat(parts, -1).clamp(-LIMIT, LIMIT)


def feature_names(spec: RobotSpec, objects: Sequence[str]) -> tuple[str, ...]:
    """Names of the K features: a field, ``object.x``, ``object-hand.x``, and saturating ``object-hand.x.contact``."""
    places = [*(["hand"] if spec.hand_fields and objects else []), *objects]
    names = [field.name for field in spec.proprio] + [f"{name}.{axis}" for name in objects for axis in "xyz"]
    for one, other in combinations(places, 2):
        apart = [f"{other}-{one}.{axis}" for axis in "xyz"]
        names += [*apart, *(f"{name}.contact" for name in apart)]
    return tuple(names)
