"""Opening recordings of any layout, which is recognised by the content of a path, not by its name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from kairos_env.datasets.conform import sampled
from kairos_env.datasets.hdf5.files import blamed_on, find_files, open_file
from kairos_env.datasets.recording import BrokenEpisode, Recording
from kairos_env.records import RobotSpec

if TYPE_CHECKING:
    from kairos_env.datasets.latents.cache import LatentCache
    from kairos_env.datasets.lerobot.reader import LeRobotData

_ENDS = ("next.done", "next.terminated", "next.truncated")


def open_recording(
    path: str | os.PathLike[str],
    feature_map: str | os.PathLike[str] | None = None,
    size: Sequence[int] = (),
    rate: float | None = None,
) -> Recording:
    """Opens a recording of `kairos record`, LeRobot (folder or hub id), LIBERO, RoboTwin, robomimic, or cached latents.

    Captioned films are one, too, see `CaptionedFilms`.

    Args:
        path: a file, a folder, or ``owner/name`` on the hub.
        feature_map: JSON of `kairos data inspect --save`, what a LeRobot dataset's features mean. None guesses.
        size: height and width to which pictures are resized; () leaves them as they are.
        rate: decisions a second, made of whole steps; None is that of the recording.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: files that are no recording, or a feature map for a layout that needs none.
        SpecMismatch: a rate that whole steps do not make.
    """
    recording = _open(path, feature_map)
    return read_as(recording, sampled(recording.spec, size, rate))


def read_as(recording: Recording, spec: RobotSpec, whole: bool = False, foreign: bool = False) -> Recording:
    """The recording with the fields, cameras, picture sizes and rate of a robot, see `conform`.

    Films are what the robot's first camera saw.

    Args:
        whole: it must have all fields and cameras, as is needed where a model looks at them.
        foreign: it may share no field at all with the robot; then all are masked.

    Raises:
        SpecMismatch: a rate that whole steps do not make, or something is missing.
    """
    if recording.spec == spec:
        return recording
    from kairos_env.datasets.video.captioned import CaptionedFilms

    if isinstance(recording, CaptionedFilms) and not whole:
        return recording.seen_by(spec)
    for what in ("cameras", "proprio", "action"):
        wanted, there = ({each.name for each in getattr(robot, what)} for robot in (spec, recording.spec))
        if whole and wanted - there:
            spec.require_same(recording.spec, "model", "data")
    from kairos_env.datasets.conformed import ConformedRecording

    return ConformedRecording(recording, spec, foreign)


def _open(path: str | os.PathLike[str], feature_map: str | os.PathLike[str] | None) -> Recording:
    place = Path(path)
    if is_lerobot(path):
        from kairos_env.datasets.lerobot.reader import LeRobotData

        data = LeRobotData(str(path), None if feature_map is None else Path(feature_map))
        if unused := unused_numbers(data):
            warnings.warn(f"{path}: numbers that are not used: {', '.join(unused)}; a feature map can", stacklevel=4)
        return data
    if (place / "zarr.json").exists() and feature_map is None:
        from kairos_env.datasets.latents.cache import LatentCache

        return LatentCache(place)
    from kairos_env.datasets.video.captioned import CaptionedFilms, is_captioned

    if feature_map is None and is_captioned(place):
        return CaptionedFilms(place)
    if feature_map is not None:
        raise ValueError(f"{path} is no LeRobot dataset: its files say what they hold, and a feature map has no use")
    return _open_hdf5(place)


def is_lerobot(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a LeRobot dataset's, whole or not, or the name of one on the hub."""
    place = Path(path)
    if place.exists():
        return (place / "meta").is_dir()
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)) is not None


def unused_numbers(data: LeRobotData) -> list[str]:
    """Features of numbers that a dataset's map does not use; where episodes end is no such thing."""
    from kairos_env.datasets.lerobot.mapping import numeric

    used = {*data.mapping.number_features, data.mapping.reward, data.mapping.success, *_ENDS}
    return [key for key in numeric(data.meta.features) if key not in used]


def fingerprint(path: str | os.PathLike[str], recording: Recording) -> str:
    """Changes when files of a recording come, go or change their size, or when a LeRobot dataset's map changes."""
    from kairos_env.datasets.lerobot.reader import LeRobotData

    root, meaning = Path(path), ""
    if isinstance(recording, LeRobotData):
        root, meaning = recording.meta.root, recording.mapping.to_json()
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    sizes = [(file.relative_to(root).as_posix(), file.stat().st_size) for file in files]
    return hashlib.sha256(json.dumps([meaning, sizes]).encode()).hexdigest()


def encoded_recording(cache: LatentCache) -> Recording:
    """The recording that a cache was made of, with its pictures.

    Raises:
        FileNotFoundError: it is not where it was.
        CacheError: it has changed since.
    """
    from kairos_env.datasets.latents.cache import CacheError

    origin = cache.origin
    recording = open_recording(origin.recording, origin.feature_map or None)
    if fingerprint(origin.recording, recording) != origin.fingerprint:
        raise CacheError(f"{origin.recording} has changed since {cache.folder} was made of it: encode it again")
    return read_as(recording, cache.spec)


def _open_hdf5(path: Path) -> Recording:
    broken: BrokenEpisode | None = None
    for file in find_files(path, nested=True):
        try:
            reader = _hdf5_reader(file)
        except BrokenEpisode as error:  # where there are other files, the reader names it
            broken = error
            continue
        return reader(path)
    assert broken is not None, "there is at least one file"
    raise broken


def _hdf5_reader(path: Path) -> Callable[[Path], Recording]:
    """The reader of a file's layout."""
    from kairos_env.datasets.hdf5.libero import LiberoFile
    from kairos_env.datasets.hdf5.recorded import EpisodeFile
    from kairos_env.datasets.hdf5.robomimic import RobomimicFile
    from kairos_env.datasets.hdf5.robotwin import RoboTwinFile

    with open_file(path) as file, blamed_on(str(path)):
        if "joint_action" in file or "vision" in file:
            return RoboTwinFile
        data = file.get("data")
        if isinstance(data, h5py.Group):
            if "robot_spec" in data.attrs:
                return EpisodeFile
            demos = [demo for demo in data.values() if isinstance(demo, h5py.Group)]
            return LiberoFile if any("agentview_rgb" in demo.get("obs", ()) for demo in demos) else RobomimicFile
        found = ", ".join(file) or "nothing"
    raise BrokenEpisode(
        f"{path} is no recording: it has neither 'data' (robomimic, LIBERO, `kairos record`) nor 'joint_action' or "
        f"'vision' (RoboTwin), but {found}"
    )
