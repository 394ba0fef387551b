"""Opening recordings of any layout, which is recognised by the content of a path, not by its name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from kairos_env.datasets.hdf5.files import blamed_on, find_files, open_file
from kairos_env.datasets.recording import BrokenEpisode, Recording

if TYPE_CHECKING:
    from kairos_env.datasets.latents.cache import LatentCache


def open_recording(path: str | os.PathLike[str], feature_map: str | os.PathLike[str] | None = None) -> Recording:
    """Opens a recording of `kairos record`, LeRobot (folder or hub id), LIBERO, RoboTwin, robomimic, or cached latents.

    Args:
        path: a file, a folder, or ``owner/name`` on the hub.
        feature_map: JSON of `kairos data inspect --save`, what a LeRobot dataset's features mean. None guesses.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: files that are no recording, or a feature map for a layout that needs none.
    """
    place = Path(path)
    on_hub = not place.exists() and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)) is not None
    if on_hub or (place / "meta" / "info.json").exists():
        from kairos_env.datasets.lerobot.reader import LeRobotData

        return LeRobotData(str(path), None if feature_map is None else Path(feature_map))
    if (place / "zarr.json").exists() and feature_map is None:
        from kairos_env.datasets.latents.cache import LatentCache

        return LatentCache(place)
    if feature_map is not None:
        raise ValueError(f"{path} is no LeRobot dataset: its files say what they hold, and a feature map has no use")
    return _open_hdf5(place)


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
    return recording


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
