"""Jobs of `kairos generate`: clips as a JSON file describes them, ours or one of the published repository."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kairos_env.records import Array
from kairos_env.runs import did_you_mean
from kairos_env.world_model.published.generation import GenerationRequest

# A key of the published example files -> the option that it is here; None has no effect on a clip.
PUBLISHED_KEYS = {
    "input_image": "image",
    "num_frames": "frames",
    "cfg_scale": "guidance",
    "num_inference_steps": "steps",
    "cfg_merge": "merge_guidance",
    "tea_cache_l1_thresh": "teacache",
    "use_prompt_rewriter": "rewrite",
    "sigma_shift": None,  # the published schedule follows from the clip's size, whatever this says
    "output_dir": None,
}


@dataclass(frozen=True)
class ClipJob(GenerationRequest):
    """One clip.

    Args:
        image: file with the first frame, RGB. In a file of jobs, relative to that file or a folder above it.
        name: of the clip's files; the first words of the prompt if empty.
        rewrite: have the prompt rewritten by --rewriter; by default if there is one.
    """

    image: str | None = None
    name: str = ""
    rewrite: bool | None = None


@dataclass(frozen=True)
class JobFile:
    """What a file of jobs says.

    Args:
        jobs: its clips.
        published: it is an example file of the published repository, which describes one clip.
        out: the folder that such a file names for its clip.
    """

    jobs: list[ClipJob]
    published: bool = False
    out: str | None = None


def read_jobs(path: str | Path, defaults: ClipJob) -> JobFile:
    """The jobs of a JSON file; ``defaults`` fills in what a job leaves out.

    Args:
        path: a list of objects with the options of `ClipJob` as keys; or one object with the keys of the published
            example files, which are read as they are.

    Raises:
        ValueError: neither of these, an unknown key, or a value of the wrong type.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if isinstance(entries, dict) and entries.keys() & PUBLISHED_KEYS.keys():
        out = entries.get("output_dir")
        job = _job(path, 1, {"name": path.stem, "fit": "stretch", **_translated(entries)}, defaults)
        return JobFile([job], published=True, out=out if isinstance(out, str) and out else None)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f'{path} must hold a list of at least one object, like [{{"prompt": "..."}}], or be an example file of '
            "the published repository"
        )
    return JobFile([_job(path, number, entry, defaults) for number, entry in enumerate(entries, 1)])


def _translated(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A published example under the names that its options have here."""
    found = {PUBLISHED_KEYS.get(key, key): value for key, value in entry.items()}
    found.pop(None, None)
    if not found.get("image"):  # it says "" where there is none
        found.pop("image", None)
    return {str(key): value for key, value in found.items() if value is not None}


def _job(path: Path, number: int, entry: Mapping[str, Any], defaults: ClipJob) -> ClipJob:
    hints = typing.get_type_hints(ClipJob)
    for key, value in entry.items():
        if key not in hints:
            raise ValueError(f"{path}: job {number} has an unknown key {key!r}; {did_you_mean(key, hints)}")
        if not _fits(value, hints[key]):
            raise ValueError(f"{path}: job {number}: {key} is {value!r}, expected {_described(hints[key])}")
    if entry.get("image"):
        entry = {**entry, "image": str(_beside(path, entry["image"]))}
    return dataclasses.replace(defaults, **entry)


def _beside(path: Path, name: str) -> Path:
    """A file that another one names: relative to it, or to a folder above it, as the published examples do."""
    folder = path.parent
    for above in (folder, *folder.absolute().parents):
        if (above / name).is_file():
            return above / name
    return folder / name


def read_image(path: str | Path) -> Array:
    """An image file, upright: uint8 (H, W, 3).

    Raises:
        FileNotFoundError: not there.
        ValueError: no image, or another mode than RGB (an alpha channel could be shown in many ways).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode != "RGB":
                raise ValueError(f"{path} has mode {image.mode}, expected RGB; convert it first")
            return np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no image that can be read") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of the type of a field; a whole number is a float too, a bool is no number."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint is float and type(value) is int:
        return True
    return type(value) is hint


def _described(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_described(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    names = {types.NoneType: "null", str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names[hint]
