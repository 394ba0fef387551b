"""Episodes of one robot as episodes of another: fields and cameras matched by name, rates by whole steps.

What the other robot has and this one lacks is filled in and masked, so that no loss ever asks for it. Nothing is
guessed: a field of the same name but another kind, frame or unit does not match. Multiples of one unit do ("0.05 m"
and "0.2 m"): values are converted. So four commands of up to one in steps of 0.05 m, joined to a decision of 0.2 m,
become their mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kairos_env.records import Array, Episode, Field, RobotSpec, SpecMismatch

SUMMED = ("delta_position", "delta_rotation")  # kinds of action that add up when steps are joined


def steps_per_decision(source: RobotSpec, target: RobotSpec) -> int:
    """The number of steps of ``source`` that make one of ``target``.

    Raises:
        SpecMismatch: not a whole number.
    """
    ratio = source.control_rate_hz / target.control_rate_hz
    steps = round(ratio)
    if steps < 1 or abs(ratio - steps) > 1e-6 * ratio:
        raise SpecMismatch(
            f"{source.name!r} decides at {source.control_rate_hz:g} Hz and {target.name!r} at "
            f"{target.control_rate_hz:g} Hz: the first must be a whole multiple of the second. Resample the recording, "
            "or train a model at its own rate"
        )
    return steps


def conform(episode: Episode, source: RobotSpec, target: RobotSpec) -> Episode:
    """An episode of ``source`` with the fields, cameras and rate of ``target``.

    A field that ``source`` lacks is the middle of its range and masked (``proprio_mask``, ``action_mask``); a missing
    camera is left out. Joined steps keep the first picture, add up displacements and keep the last of other actions.

    Raises:
        SpecMismatch: rates without a whole ratio, cameras of different sizes, fields of one name but another meaning,
            or nothing in common.
    """
    if source == target:
        return episode
    steps = steps_per_decision(source, target)
    decisions = len(episode) // steps
    if decisions == 0:
        raise SpecMismatch(f"an episode of {len(episode)} steps is shorter than one decision of {steps} steps")
    kept = slice(0, decisions * steps + 1, steps)
    cameras = {c.name: c for c in source.cameras}
    shared = [camera for camera in target.cameras if camera.name in cameras and camera.name in episode.cameras]
    for camera in shared:
        found = cameras[camera.name]
        if (found.height, found.width) != (camera.height, camera.width):
            raise SpecMismatch(
                f"camera {camera.name!r} has {found.height} x {found.width} pixels in {source.name!r} and "
                f"{camera.height} x {camera.width} in {target.name!r}: set its size in the feature map"
            )
    if not shared:
        wanted = ", ".join(c.name for c in target.cameras)
        raise SpecMismatch(
            f"{source.name!r} has none of the cameras of {target.name!r} ({wanted}); it has {', '.join(cameras)}: name "
            "them alike in the feature map"
        )
    proprio, proprio_mask = _matched(episode.proprio[kept], source.proprio, target.proprio, episode.proprio_mask)
    joined = _joined(episode.actions[: decisions * steps], source.action, steps)
    actions, action_mask = _matched(joined, source.action, target.action, episode.action_mask)
    actions = np.clip(actions, target.action_low, target.action_high)
    last = slice(steps - 1, decisions * steps, steps)
    success = np.asarray(episode.success[: decisions * steps]).reshape(decisions, steps).max(1)
    return dataclasses.replace(
        episode,
        images={c.name: episode.images[c.name][kept] for c in shared if c.name in episode.images},
        latents={c.name: episode.latents[c.name][kept] for c in shared if c.name in episode.latents},
        proprio=proprio,
        actions=actions,
        rewards=episode.rewards[last],
        success=success,
        labels={},  # their meaning belongs to the other robot's steps
        label_tasks=(),
        proprio_mask=proprio_mask,
        action_mask=action_mask,
    )


def _joined(actions: Array, fields: Sequence[Field], steps: int) -> Array:
    """(T steps, A) -> (T, A)."""
    parts = actions.reshape(-1, steps, actions.shape[-1])
    summed = np.array([f.kind in SUMMED for f in fields])
    return np.where(summed, parts.sum(1), parts[:, -1]).astype(np.float32)


def _matched(
    values: Array, source: Sequence[Field], target: Sequence[Field], known: Array | None
) -> tuple[Array, Array | None]:
    """Columns of ``values`` in the order of ``target``, and which of them are real (None: all)."""
    place = {f.name: i for i, f in enumerate(source)}
    out = np.empty((len(values), len(target)), np.float32)
    mask = np.zeros(len(target), bool)
    for j, field in enumerate(target):
        i = place.get(field.name)
        if i is None:
            out[:, j] = (field.low + field.high) / 2
            continue
        (size, unit), (wanted, wanted_unit) = _unit(source[i].unit), _unit(field.unit)
        if (unit, source[i].kind, source[i].frame) != (wanted_unit, field.kind, field.frame):
            meaning = [(f.unit, f.kind, f.frame) for f in (source[i], field)]
            raise SpecMismatch(
                f"field {field.name!r} means (unit, kind, frame) {meaning[0]} in one robot and {meaning[1]} in the "
                "other: rename it in the feature map"
            )
        out[:, j] = values[:, i] if size == wanted else values[:, i] * (size / wanted)
        mask[j] = known is None or known[i]
    if not mask.any():
        raise SpecMismatch(
            f"the robots share no field: {', '.join(place)} against {', '.join(f.name for f in target)}; name them "
            "alike in the feature map"
        )
    return out, None if mask.all() else mask


def _unit(text: str) -> tuple[float, str]:
    """``"0.05 m"`` -> (0.05, "m"); ``"m"`` is (1, "m")."""
    number, _, unit = text.partition(" ")
    try:
        return (float(number), unit) if unit and float(number) > 0 else (1.0, text)
    except ValueError:
        return 1.0, text
