"""Between LeRobot's features and the robot that a Kairos model knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor

from kairos_env.datasets.lerobot.mapping import CameraMap, FeatureMap, ScalarMap
from kairos_env.records import Observation, RobotSpec, SpecMismatch


def guess_features(spec: RobotSpec, given: Mapping[str, PolicyFeature]) -> FeatureMap:
    """Cameras by name, or the only one; ``observation.state`` and ``action`` number by number.

    Args:
        given: the features that LeRobot knows of; empty before it has seen a dataset or an environment.

    Raises:
        SpecMismatch: several cameras, none of which has the name of the model's, or a state of another length.
    """
    seen = [key for key, feature in given.items() if feature.type is FeatureType.VISUAL]
    cameras = []
    for camera in spec.cameras:
        key = f"{OBS_IMAGES}.{camera.name}"
        if seen and key not in seen:
            if len(seen) != 1 or len(spec.cameras) != 1:
                raise SpecMismatch(
                    f"which of {seen} is the model's camera {camera.name!r}? Say so in a feature map "
                    "(`kairos data inspect` writes one to edit) and give it to the policy: --policy.features=map.json"
                )
            key = seen[0]
        cameras.append(CameraMap(camera.name, key))
    names = [f.name for f in spec.proprio]
    if names and OBS_STATE in given and given[OBS_STATE].shape != (len(names),):
        raise SpecMismatch(
            f"{OBS_STATE!r} has shape {given[OBS_STATE].shape}, the model's robot has {len(names)} numbers: {names}. "
            "Say which is which in a feature map, and give it to the policy: --policy.features=map.json"
        )
    return FeatureMap(
        robot=spec.name,
        control_rate_hz=spec.control_rate_hz,
        cameras=tuple(cameras),
        proprio=tuple(
            ScalarMap(OBS_STATE, i, f.name, f.low, f.high, f.unit, f.kind) for i, f in enumerate(spec.proprio)
        ),
        action=tuple(ScalarMap(ACTION, i, f.name, f.low, f.high, f.unit, f.kind) for i, f in enumerate(spec.action)),
        instruction=spec.instruction,
    )


def fit_features(features: FeatureMap, spec: RobotSpec) -> FeatureMap:
    """``features`` with the image sizes that the model of ``spec`` sees.

    Raises:
        SpecMismatch: a map of another robot, or one whose actions are not all of LeRobot's ``action``.
    """
    for what in ("cameras", "proprio", "action"):
        mapped, known = ([item.name for item in getattr(robot, what)] for robot in (features, spec))
        if mapped != known:
            raise SpecMismatch(f"{what}: the feature map has {mapped}, the model's robot {spec.name!r} has {known}")
    places = sorted((scalar.feature, scalar.index) for scalar in features.action)
    if places != [(ACTION, index) for index in range(len(places))]:
        raise SpecMismatch(f"the model's actions go to {places}; they must be all numbers of {ACTION!r}, each once")
    cameras = [
        dataclasses.replace(mapped, height=camera.height, width=camera.width)
        for mapped, camera in zip(features.cameras, spec.cameras, strict=True)
    ]
    return dataclasses.replace(features, cameras=tuple(cameras))


def declare(features: FeatureMap, given: Mapping[str, PolicyFeature]) -> dict[str, PolicyFeature]:
    """What the policy takes and gives, in LeRobot's words.

    Args:
        given: what LeRobot knows of; its shapes are kept, because the policy resizes images itself and picks the
            numbers that it needs.

    Raises:
        SpecMismatch: one that is too small.
    """
    wanted = {c.feature: PolicyFeature(FeatureType.VISUAL, (3, *c.size(()))) for c in features.cameras}
    for scalar in features.scalars:
        kind = FeatureType.ACTION if scalar.feature == ACTION else FeatureType.STATE
        size = 1 + max(s.index for s in features.scalars if s.feature == scalar.feature)
        wanted[scalar.feature] = PolicyFeature(kind, (size,))
    for key, feature in wanted.items():
        if key not in given:
            continue
        have, need = given[key].shape, feature.shape
        exact = feature.type is FeatureType.ACTION
        if feature.type is not FeatureType.VISUAL and (len(have) != 1 or have[0] < need[0] or exact and have != need):
            names = [s.name for s in features.scalars if s.feature == key]
            raise SpecMismatch(f"{key!r} has shape {have}, but the robot {features.robot!r} needs {need}: {names}")
    return {key: given.get(key, feature) for key, feature in wanted.items()}


def read_observations(batch: Mapping[str, Any], features: FeatureMap) -> list[Observation]:
    """What B robots see, of a batch as LeRobot's processors leave it.

    Args:
        batch: images float (B, 3, H, W) in [0, 1], numbers (B, D), ``task`` a text or B of them, or none.

    Raises:
        KeyError: a feature is missing.
        ValueError: one has another shape, or images are not in [0, 1].
    """
    pictures = {
        c.name: [c.picture(image) for image in _uint8(_tensor(batch, c.feature, 4), c.feature)]
        for c in features.cameras
    }
    columns = {key: _tensor(batch, key, 2).float().numpy() for key in {s.feature for s in features.proprio}}
    number = len(next(iter([*pictures.values(), *columns.values()])))
    tasks = batch.get("task") or ""
    texts = [tasks] * number if isinstance(tasks, str) else list(tasks)
    sizes = {len(texts), *map(len, columns.values()), *map(len, pictures.values())}
    if len(sizes) != 1:
        raise ValueError(f"the features of a batch must be of one length, got lengths {sorted(sizes)}")
    proprio = np.zeros((number, len(features.proprio)), np.float32)
    for place, scalar in enumerate(features.proprio):
        proprio[:, place] = columns[scalar.feature][:, scalar.index]
    return [
        Observation({name: views[row] for name, views in pictures.items()}, proprio[row], text)
        for row, text in enumerate(texts)
    ]


def action_order(features: FeatureMap) -> list[int]:
    """For each number of LeRobot's ``action``, which number of the model's it is."""
    return [int(i) for i in np.argsort([scalar.index for scalar in features.action])]


def _tensor(batch: Mapping[str, Any], key: str, rank: int) -> Tensor:
    if key not in batch:
        raise KeyError(f"the batch has no {key!r}, only {sorted(k for k, v in batch.items() if isinstance(v, Tensor))}")
    value = batch[key]
    if value.ndim != rank:
        form = "(B, 3, H, W)" if rank == 4 else "(B, D)"
        raise ValueError(f"{key!r} has shape {tuple(value.shape)}, expected {form}: one observation of each robot")
    return value.detach().cpu()


def _uint8(images: Tensor, key: str) -> np.ndarray:
    """[0, 1] float (B, 3, H, W) -> uint8 (B, H, W, 3)."""
    if images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"{key!r} is {images.dtype} {tuple(images.shape)}, expected float (B, 3, H, W) in [0, 1]")
    low, high = images.amin().item(), images.amax().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{key!r} has values in {low:.3g} ... {high:.3g}, expected 0 ... 1: is it normalised already?")
    return images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
