"""`kairos generate`: clips from a prompt, or from a JSON file of jobs.

One folder of clips, all from the same weights::

    config.json  launches.jsonl  <name>-<hash>.mp4  <name>-<hash>.json (written last)  <name>-<hash>.failed.json

The hash covers everything that a clip follows from, so a job whose clip is there is not run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import time
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kairos_env.cli.options import Fields
from kairos_env.media import write_mp4
from kairos_env.records import Array
from kairos_env.runs import describe_machine, did_you_mean, open_run, write_text
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.published.generation import GenerationRequest, GenerationSettings, resolve
from kairos_env.world_model.published.releases import miniature

if TYPE_CHECKING:
    from kairos_env.world_model.published.world_action import WorldActionModel

Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class ClipJob(GenerationRequest):
    """One clip.

    Args:
        image: file with the first frame, RGB. In a file of jobs, relative to that file.
        name: of the clip's files; the first words of the prompt if empty.
    """

    image: str | None = None
    name: str = ""


@dataclass(frozen=True)
class GenerateConfig(ClipJob):
    """A launch of `kairos generate`.

    Args:
        model: folder that `kairos convert` wrote.
        vae: another video tokenizer than the model folder's own, a file or folder.
        text: another text encoder than the model folder's own, a folder or hub repository.
        miniature: instead of a model, a release (for example 4b-robot) in miniature with random weights: noise
            comes out, but the whole pipeline runs, on any machine.
        jobs: JSON file, a list of objects with the clip options above as keys (``negative_prompt``, ...). What a job
            does not say, the command line does.
        device: cuda, cpu, ...; by default cuda if there is one, else cpu.
        dtype: bfloat16 or float32.
        out: folder of the clips.
    """

    model: str | None = None
    vae: str | None = None
    text: str | None = None
    miniature: str | None = None
    jobs: str | None = None
    device: str | None = None
    dtype: Dtype = "bfloat16"
    out: str = "runs/generate"

    def __post_init__(self) -> None:
        if (self.model is None) == (self.miniature is None):
            raise ValueError("give either --model FOLDER or --miniature RELEASE")


class Planned(NamedTuple):
    """A checked job: its first frame, uint8 (H, W, 3) or None, what it resolves to, and the name of its files."""

    job: ClipJob
    image: Array | None
    settings: GenerationSettings
    stem: str


def read_jobs(path: str | Path, defaults: ClipJob) -> list[ClipJob]:
    """The jobs of a JSON file; ``defaults`` fills in what a job leaves out.

    Raises:
        ValueError: no list of objects, an unknown key, or a value of the wrong type.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path} must hold a list of at least one object, like [{{"prompt": "..."}}]')
    hints = typing.get_type_hints(ClipJob)
    jobs = []
    for number, entry in enumerate(entries, 1):
        for key, value in entry.items():
            if key not in hints:
                raise ValueError(f"{path}: job {number} has an unknown key {key!r}; {did_you_mean(key, hints)}")
            if not _fits(value, hints[key]):
                raise ValueError(f"{path}: job {number}: {key} is {value!r}, expected {_described(hints[key])}")
        if entry.get("image"):
            entry = entry | {"image": str(Path(path).parent / entry["image"])}
        jobs.append(dataclasses.replace(defaults, **entry))
    return jobs


def plan(jobs: Sequence[ClipJob], config: WorldActionConfig) -> list[Planned]:
    """Checks all jobs against the weights that they are for, before the first one runs.

    Raises:
        ValueError: the first job that cannot be done, by number if there are several; or two jobs that are the same.
        FileNotFoundError: its image is not there.
    """
    planned: list[Planned] = []
    for number, job in enumerate(jobs, 1):
        try:
            image = None if job.image is None else read_image(job.image)
            settings = resolve(job, config, image)
            stem = _stem(job, settings, image)
        except ValueError as error:
            raise ValueError(f"job {number}: {error}" if len(jobs) > 1 else str(error)) from None
        twins = [earlier for earlier, other in enumerate(planned, 1) if other.stem == stem]
        if twins:
            raise ValueError(f"jobs {twins[0]} and {number} are the same; change one's seed or leave it out")
        planned.append(Planned(job, image, settings, stem))
    return planned


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


def generate_clips(planned: Sequence[Planned], model: WorldActionModel, folder: Path) -> dict[str, str]:
    """Runs what is not there yet, with a progress bar each.

    Returns:
        what became of every job: files' name -> ``"written"``, ``"there"`` or the reason why it failed.
    """
    outcome: dict[str, str] = {}
    for number, (job, image, settings, stem) in enumerate(planned, 1):
        record, failed = folder / f"{stem}.json", folder / f"{stem}.failed.json"
        if record.exists() and (folder / f"{stem}.mp4").exists():
            outcome[stem] = "there"
            continue
        print(f"[{number}/{len(planned)}] {stem}: {_summary(settings)}", flush=True)
        description: dict[str, Any] = {
            "settings": dataclasses.asdict(settings),
            "image": job.image,
            "model": model.config.to_dict(),
            "dtype": str(model.dtype),
            "device": str(model.device),
            "machine": describe_machine(),
        }
        start = time.monotonic()
        try:
            clip = model.generate(**_options(job), image=image)
        except (ValueError, RuntimeError, OSError, ArithmeticError) as error:
            outcome[stem] = f"{type(error).__name__}: {error}"
            write_text(failed, json.dumps(description | {"error": outcome[stem]}, indent=2) + "\n")
            print(f"{stem} failed: {error}", file=sys.stderr)
            continue
        description |= {"seconds": round(time.monotonic() - start, 3), "skipped_steps": clip.skipped_steps}
        write_mp4(folder / f"{stem}.mp4", clip.frames, clip.fps)
        write_text(record, json.dumps(description, indent=2) + "\n")
        failed.unlink(missing_ok=True)
        outcome[stem] = "written"
        skipped = f", TeaCache skipped {clip.skipped_steps} of {settings.steps} steps" if settings.teacache else ""
        print(f"{folder / stem}.mp4: {description['seconds']:.1f} s{skipped}")
    return outcome


def run(options: Fields[GenerateConfig]) -> int:
    """Checks all jobs, loads the model, runs them; 1 if a job failed."""
    import torch

    defaults = ClipJob(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ClipJob)})
    config = _config(options)
    jobs = [defaults] if options.jobs is None else read_jobs(options.jobs, defaults)
    planned = plan(jobs, config)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    launch = {"device": device, "jobs": options.jobs}
    identity = {field: getattr(options, field) for field in ("model", "vae", "text", "miniature", "dtype")}
    folder = open_run(options.out, identity, launch)
    model = _load(options, config, device)
    outcome = generate_clips(planned, model, folder)
    counts = {word: list(outcome.values()).count(word) for word in ("written", "there")}
    failed = len(outcome) - sum(counts.values())
    print(f"{folder}: clips written: {counts['written']}, already there: {counts['there']}, failed: {failed}")
    if options.miniature is not None:
        print(
            f"random weights in miniature: these clips are noise and only show that the pipeline of {config.name} runs"
        )
    return int(failed > 0)


def _config(options: GenerateConfig) -> WorldActionConfig:
    if options.model is not None:
        from kairos_env.world_model.published.folder import read_folder

        config, parts, _ = read_folder(options.model)
        for part, what in (("vae", "a video tokenizer"), ("text", "a text encoder")):
            if not parts[part] and getattr(options, part) is None:
                raise ValueError(f"{options.model} comes without {what}; name one with --{part}")
        return config
    assert options.miniature is not None
    config = miniature(options.miniature)
    steps = min(config.generation.steps, 8)
    small = dataclasses.replace(config.generation, height=64, width=96, frames=9, steps=steps, tile_first_frame=False)
    return dataclasses.replace(config, generation=small)


def _load(options: GenerateConfig, config: WorldActionConfig, device: str) -> WorldActionModel:
    import torch

    from kairos_env.world_model.published.world_action import WorldActionModel
    from kairos_env.world_model.text.small import UntrainedEncoder
    from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

    dtype = getattr(torch, options.dtype)
    if options.model is not None:
        parts = {"vae": options.vae, "text": options.text, "progress": True}
        return WorldActionModel.from_pretrained(options.model, device, dtype, **parts)
    tokenizer = VideoVAE.random(width=8).to(device, dtype)
    return WorldActionModel.from_release(
        config, device=device, dtype=dtype, tokenizer=tokenizer, encoder=UntrainedEncoder(config.text_dim)
    )


def _options(job: ClipJob) -> dict[str, Any]:
    return {field.name: getattr(job, field.name) for field in dataclasses.fields(GenerationRequest)}


def _summary(s: GenerationSettings) -> str:
    size = f"{s.frames} frames of {s.height} x {s.width}"
    return f"{s.mode}, {size}, {s.steps} steps, guidance {s.guidance:g}, seed {s.seed}"


def _stem(job: ClipJob, settings: GenerationSettings, image: Array | None) -> str:
    name = job.name or re.sub(r"[^a-z0-9]+", "-", job.prompt.lower())[:40].strip("-")
    name = name or (Path(job.image).stem if job.image else "clip")
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"name {name!r} must consist of letters, digits and . _ - and not begin with a dot")
    picture = "" if image is None else hashlib.sha256(image.tobytes()).hexdigest()
    text = json.dumps([dataclasses.asdict(settings), picture], sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


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
