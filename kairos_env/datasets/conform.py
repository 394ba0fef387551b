"""Episodes of one robot as episodes of another: fields and cameras matched by name, rates by whole steps.

Pictures are resized to those of the other robot's cameras.

What the other robot has and this one lacks is filled in and masked, so that no loss ever asks for it. Nothing is
guessed: a field of the same name but another kind, frame or unit does not match. Multiples of one unit do ("0.05 m"
and "0.2 m"): values are converted. So four commands of up to one in steps of 0.05 m, joined to a decision of 0.2 m,
become their mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kairos_env.records import Array, Camera, Episode, Field, RobotSpec, SpecMismatch

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
            f"{target.control_rate_hz:g} Hz: the first must be a whole multiple of the second; whole steps make "
            f"{', '.join(f'{source.control_rate_hz / n:g}' for n in _near(ratio))} Hz"
        )
    return steps


def sampled(spec: RobotSpec, size: Sequence[int] = (), rate: float | None = None) -> RobotSpec:
    """The same robot with smaller pictures and fewer decisions a second.

    Args:
        size: height and width of every camera's pictures in pixels; () leaves them.
        rate: decisions a second, of which the robot's rate is a whole multiple; None leaves it. Displacements of
            joined steps add up, and their ranges grow.

    Raises:
        SpecMismatch: a rate that whole steps do not make.
        ValueError: another size than two whole numbers above 0.
    """
    if size:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size is the height and width of pictures in pixels, such as 48,64; got {tuple(size)}")
        cameras = tuple(dataclasses.replace(c, height=size[0], width=size[1]) for c in spec.cameras)
        spec = dataclasses.replace(spec, cameras=cameras)
    if rate is None:
        return spec
    if not rate > 0:
        raise ValueError(f"rate is decisions a second, above 0; got {rate}")
    steps = round(spec.control_rate_hz / rate)
    exact = dataclasses.replace(spec, control_rate_hz=spec.control_rate_hz / max(steps, 1))
    if abs(exact.control_rate_hz - rate) > 1e-3 * rate:  # 4.995 of 29.97
        steps_per_decision(spec, dataclasses.replace(spec, control_rate_hz=rate))
    action = tuple(
        dataclasses.replace(f, low=f.low * steps, high=f.high * steps) if f.kind in SUMMED else f for f in spec.action
    )
    return dataclasses.replace(exact, action=action)


def changes(source: RobotSpec, target: RobotSpec) -> list[str]:
    """What reading one robot as another does to pictures and rate, a phrase each."""
    sizes = {c.name: (c.height, c.width) for c in source.cameras}
    found = {
        f"pictures {sizes[c.name][0]} x {sizes[c.name][1]} -> {c.height} x {c.width}": None
        for c in target.cameras
        if sizes.get(c.name, (c.height, c.width)) != (c.height, c.width)
    }
    if source.control_rate_hz != target.control_rate_hz:
        steps = steps_per_decision(source, target)
        found[f"{source.control_rate_hz:g} Hz -> {target.control_rate_hz:g} Hz, {steps} steps a decision"] = None
    return list(found)


def conform(episode: Episode, source: RobotSpec, target: RobotSpec, foreign: bool = False) -> Episode:
    """An episode of ``source`` with the fields, cameras, picture sizes and rate of ``target``.

    A field that ``source`` lacks is the middle of its range and masked (``proprio_mask``, ``action_mask``); a missing
    camera is left out. Labels stay where steps and actions are the same.

    Args:
        foreign: the robots may share no field, or mean others by the same name; such fields are masked. Of cameras
            with other names the first stands for the first.

    Raises:
        SpecMismatch: rates without a whole ratio, latents of pictures of another size, fields of one name but another
            meaning, or nothing in common.
    """
    if source == target:
        return episode
    episode = joined(episode, source.action, steps_per_decision(source, target))
    if foreign and not {c.name for c in source.cameras} & {c.name for c in target.cameras}:
        episode, source = _first_camera_as(target.cameras[0].name, episode, source)
    cameras = {c.name: c for c in source.cameras}
    shared = [camera for camera in target.cameras if camera.name in cameras and camera.name in episode.cameras]
    for camera in shared:
        found = cameras[camera.name]
        if camera.name in episode.latents and (found.height, found.width) != (camera.height, camera.width):
            raise SpecMismatch(
                f"the latents of camera {camera.name!r} are of {found.height} x {found.width} pixels, but "
                f"{camera.height} x {camera.width} are wanted: encode the recording again with that --size"
            )
    if not shared:
        wanted = ", ".join(c.name for c in target.cameras)
        raise SpecMismatch(
            f"{source.name!r} has none of the cameras of {target.name!r} ({wanted}); it has {', '.join(cameras)}: name "
            "them alike in the feature map"
        )
    proprio, proprio_mask = _matched(episode.proprio, source.proprio, target.proprio, episode.proprio_mask, foreign)
    actions, action_mask = _matched(episode.actions, source.action, target.action, episode.action_mask, foreign)
    same = source.action == target.action
    return dataclasses.replace(
        episode,
        images={c.name: resized(episode.images[c.name], c) for c in shared if c.name in episode.images},
        latents={c.name: episode.latents[c.name] for c in shared if c.name in episode.latents},
        proprio=proprio,
        actions=np.clip(actions, target.action_low, target.action_high),
        labels=episode.labels if same else {},
        label_tasks=episode.label_tasks if same else (),
        proprio_mask=proprio_mask,
        action_mask=action_mask,
    )


def _first_camera_as(name: str, episode: Episode, spec: RobotSpec) -> tuple[Episode, RobotSpec]:
    """The episode with another name for its first camera, which alone is kept."""
    first = spec.cameras[0]
    images, latents = (
        {name: views[first.name]} if first.name in views else {} for views in (episode.images, episode.latents)
    )
    spec = dataclasses.replace(spec, cameras=(dataclasses.replace(first, name=name),))
    return dataclasses.replace(episode, images=images, latents=latents), spec


def joined(episode: Episode, fields: Sequence[Field], steps: int) -> Episode:
    """The episode with so many steps made one decision.

    Each keeps its first picture, adds up displacements and keeps the last of other actions; labels are left out, since
    their meaning belongs to single steps.

    Raises:
        SpecMismatch: fewer steps than that.
    """
    if steps == 1:
        return episode
    decisions = len(episode) // steps
    if decisions == 0:
        raise SpecMismatch(f"an episode of {len(episode)} steps is shorter than one decision of {steps} steps")
    kept, last = slice(0, decisions * steps + 1, steps), slice(steps - 1, decisions * steps, steps)
    parts = episode.actions[: decisions * steps].reshape(decisions, steps, -1)
    summed = np.array([f.kind in SUMMED for f in fields])
    return dataclasses.replace(
        episode,
        images={name: images[kept] for name, images in episode.images.items()},
        latents={name: latents[kept] for name, latents in episode.latents.items()},
        proprio=episode.proprio[kept],
        actions=np.where(summed, parts.sum(1), parts[:, -1]).astype(np.float32),
        rewards=episode.rewards[last],
        success=np.asarray(episode.success[: decisions * steps]).reshape(decisions, steps).max(1),
        labels={},
        label_tasks=(),
    )


def resized(images: Array, camera: Camera) -> Array:
    """Pictures uint8 (T, H, W, 3) in the size of a camera, by PIL's bilinear filter, which averages when it shrinks."""
    if images.shape[1:3] == (camera.height, camera.width):
        return images
    from PIL import Image

    size = camera.width, camera.height
    whole = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
    return np.stack([np.asarray(image.resize(size, Image.Resampling.BILINEAR)) for image in whole])


def _near(ratio: float) -> list[int]:
    """Whole steps around a ratio that is none."""
    return sorted({max(1, int(ratio)), int(ratio) + 1})


def _matched(
    values: Array, source: Sequence[Field], target: Sequence[Field], known: Array | None, foreign: bool
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
            if foreign:
                out[:, j] = (field.low + field.high) / 2
                continue
            meaning = [(f.unit, f.kind, f.frame) for f in (source[i], field)]
            raise SpecMismatch(
                f"field {field.name!r} means (unit, kind, frame) {meaning[0]} in one robot and {meaning[1]} in the "
                "other: rename it in the feature map"
            )
        out[:, j] = values[:, i] if size == wanted else values[:, i] * (size / wanted)
        mask[j] = known is None or known[i]
    if not mask.any() and not foreign:
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
