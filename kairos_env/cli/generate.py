"""`kairos generate`: clips from a prompt, or from a JSON file of jobs.

One folder of clips, all from the same weights::

    config.json  launches.jsonl  <name>-<hash>.mp4  <name>-<hash>.json (written last)  <name>-<hash>.failed.json
    prompts.json (what a rewriter made of the prompts)

The hash covers everything that a clip follows from, so a job whose clip is there is not run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kairos_env.cli import processes
from kairos_env.cli.clip_jobs import ClipJob, JobFile, read_image, read_jobs
from kairos_env.cli.options import Fields
from kairos_env.media import write_mp4
from kairos_env.records import Array
from kairos_env.runs import describe_machine, open_run, write_json, write_text
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.published.generation import GenerationRequest, GenerationSettings, resolve
from kairos_env.world_model.published.releases import miniature

if TYPE_CHECKING:
    from kairos_env.world_model.published.world_action import WorldActionModel

Dtype = Literal["bfloat16", "float32"]
FOLDER, PROMPTS = "runs/generate", "prompts.json"


@dataclass(frozen=True)
class GenerateConfig(ClipJob):
    """A launch of `kairos generate`.

    Args:
        model: folder that `kairos convert` wrote.
        vae: another video tokenizer than the model folder's own, a file or folder.
        text: another text encoder than the model folder's own, a folder or hub repository.
        miniature: instead of a model, a release (for example 4b-robot) in miniature with random weights: noise
            comes out, but the whole pipeline runs, on any machine.
        jobs: JSON file, a list of objects with the clip options above as keys (``negative_prompt``, ...), or one of
            the published example files as it is. What a job does not say, the command line does.
        rewriter: a vision-language model that makes long captions of short prompts, as the weights were trained with:
            a folder, a hub repository, or the address of a server of OpenAI's protocol (http://localhost:8000/v1).
        rewriter_model: its name on a server of several.
        device: cuda, cpu, ...; by default cuda if there is one, else cpu.
        dtype: bfloat16 or float32.
        nproc: processes, each with a GPU of its own, that share every clip: tokens, the two prompts of guidance, and
            the decoding.
        split: with nproc, what the decoding is shared by: rows of the picture, which is exact, or frames, which is
            faster where devices are badly connected.
        offload: for a GPU too small for the model: weights wait in the computer's memory, and of the transformer one
            block at a time is on the device.
        out: folder of the clips; by default runs/generate, or the one that a published example file names.
    """

    model: str | None = None
    vae: str | None = None
    text: str | None = None
    miniature: str | None = None
    jobs: str | None = None
    rewriter: str | None = None
    rewriter_model: str = ""
    device: str | None = None
    dtype: Dtype = "bfloat16"
    nproc: int = 1
    split: Literal["rows", "frames"] = "rows"
    offload: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.miniature is None):
            raise ValueError("give either --model FOLDER or --miniature RELEASE")
        if self.nproc < 1:
            raise ValueError(f"--nproc is a number of processes of at least 1, got {self.nproc}")
        if self.offload and self.nproc > 1:
            raise ValueError("--offload is for one process; several share the work, each with all weights on its GPU")


class Planned(NamedTuple):
    """A checked job: its first frame, uint8 (H, W, 3) or None, what it resolves to, and the name of its files."""

    job: ClipJob
    image: Array | None
    settings: GenerationSettings
    stem: str


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


def rewrite_prompts(planned: Sequence[Planned], options: GenerateConfig, folder: Path, device: str) -> list[ClipJob]:
    """The jobs with the prompts that the rewriter made; what it said before is in the folder and is said again."""
    from kairos_env.world_model.text.rewriter import open_rewriter

    path = folder / PROMPTS
    known: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rewrite, jobs = None, []
    for job, image, _, _ in planned:
        wanted = options.rewriter is not None if job.rewrite is None else job.rewrite
        if not wanted or not job.prompt.strip():
            jobs.append(job)
            continue
        assert options.rewriter is not None  # checked with the jobs
        source = [options.rewriter, options.rewriter_model, job.prompt, _digest(image)]
        key = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
        if key not in known:
            rewrite = rewrite or open_rewriter(options.rewriter, device, options.rewriter_model)
            known[key] = {"prompt": job.prompt, "rewritten": rewrite(job.prompt, image)}
            write_json(path, known)
            print(f"{job.prompt}\n  rewritten: {known[key]['rewritten']}", flush=True)
        jobs.append(dataclasses.replace(job, prompt=known[key]["rewritten"], name=job.name or _words(job.prompt)))
    return jobs


def generate_clips(planned: Sequence[Planned], model: WorldActionModel, folder: Path) -> dict[str, str]:
    """Runs the jobs with a progress bar each. Of several processes that share them the first one writes.

    Returns:
        what became of every job: files' name -> ``"written"`` or the reason why it failed.
    """
    outcome: dict[str, str] = {}
    first, alone = processes.rank() == 0, not processes.started()
    for number, (job, image, settings, stem) in enumerate(planned, 1):
        if first:
            print(f"[{number}/{len(planned)}] {stem}: {_summary(settings)}", flush=True)
        start = time.monotonic()
        try:
            clip = model.generate(**_options(job), image=image, progress=first)
        except (ValueError, RuntimeError, OSError, ArithmeticError) as error:
            if not alone and not isinstance(error, (ValueError, ArithmeticError)):
                raise  # it may have met this process alone, and the others wait for it
            outcome[stem] = f"{type(error).__name__}: {error}"
            if first:
                _write_failure(folder / f"{stem}.failed.json", _description(model, job, settings), outcome[stem])
            continue
        outcome[stem] = "written"
        if first:
            seconds = round(time.monotonic() - start, 3)
            write_mp4(folder / f"{stem}.mp4", clip.frames, clip.fps)
            record = _description(model, job, settings) | {"seconds": seconds, "skipped_steps": clip.skipped_steps}
            write_text(folder / f"{stem}.json", json.dumps(record, indent=2) + "\n")
            (folder / f"{stem}.failed.json").unlink(missing_ok=True)
            skipped = f", TeaCache skipped {clip.skipped_steps} of {settings.steps} steps" if settings.teacache else ""
            print(f"{folder / stem}.mp4: {seconds:.1f} s{skipped}", flush=True)
    return outcome


def run(options: Fields[GenerateConfig]) -> int:
    """Checks all jobs, loads the model, runs them; 1 if a job failed."""
    import torch

    defaults = ClipJob(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ClipJob)})
    config = _config(options)
    file = JobFile([defaults]) if options.jobs is None else read_jobs(options.jobs, defaults)
    jobs = [_as_published(job, config) for job in file.jobs] if file.published else file.jobs
    planned = plan(jobs, config)
    for job in jobs:
        if job.rewrite and options.rewriter is None:
            raise ValueError("a job asks for its prompt to be rewritten; name a model for it with --rewriter")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(options.out or file.out or FOLDER)
    if processes.started():
        return _work(options, planned, config, folder, device)
    if options.nproc > 1:
        _check_processes(options, planned, config, device)
    launch = {"device": device, "jobs": options.jobs, "nproc": options.nproc}
    identity = {field: getattr(options, field) for field in ("model", "vae", "text", "miniature", "dtype")}
    open_run(folder, identity, launch)
    planned = plan(rewrite_prompts(planned, options, folder, device), config)
    pending = _pending(planned, folder)
    if options.nproc > 1 and pending:
        status = processes.launch("generate", dataclasses.replace(options, out=str(folder)), options.nproc)
        failed = len(_pending(planned, folder))
        if status and not failed:
            return status
    else:
        outcome = generate_clips(pending, _load(options, config, device), folder) if pending else {}
        failed = sum(word != "written" for word in outcome.values())
    written = len(pending) - failed
    there = len(planned) - len(pending)
    print(f"{folder}: clips written: {written}, already there: {there}, failed: {failed}")
    if options.miniature is not None:
        print(
            f"random weights in miniature: these clips are noise and only show that the pipeline of {config.name} runs"
        )
    return int(failed > 0)


def _work(
    options: GenerateConfig, planned: Sequence[Planned], config: WorldActionConfig, folder: Path, device: str
) -> int:
    """The share of one of several processes; the prompts were rewritten before they were started."""
    from kairos_env.world_model.deploy.parallel import shard

    own = processes.join(device)
    planned = plan(rewrite_prompts(planned, options, folder, device), config)
    pending = _pending(planned, folder)  # by all of them before the first one writes
    model = shard(_load(options, config, str(own)), guidance=_guided(planned, options), split=options.split)
    generate_clips(pending, model, folder)
    return 0


def _check_processes(
    options: GenerateConfig, planned: Sequence[Planned], config: WorldActionConfig, device: str
) -> None:
    """Raises ValueError unless so many processes can share the clips."""
    from kairos_env.world_model.deploy.parallel import check_world

    processes.check_devices(device, options.nproc)
    for item in planned:
        _, rows, columns = item.settings.latent_shape
        check_world(config, options.nproc, _guided(planned, options), rows * columns // config.video.patch**2)


def _guided(planned: Sequence[Planned], options: GenerateConfig) -> bool:
    """Whether two halves of the processes take a prompt of guidance each."""
    guided = any(item.settings.guidance != 1 and not item.settings.merge_guidance for item in planned)
    return guided and options.nproc % 2 == 0


def _pending(planned: Sequence[Planned], folder: Path) -> list[Planned]:
    """The jobs whose clip is not there yet."""
    return [p for p in planned if not all((folder / f"{p.stem}.{kind}").exists() for kind in ("json", "mp4"))]


def _as_published(job: ClipJob, config: WorldActionConfig) -> ClipJob:
    """A published example for distilled weights, whose sampler does not look at guidance and its prompt."""
    if config.generation.sampler != "dmd":
        return job
    return dataclasses.replace(job, guidance=None, negative_prompt=None, steps=None, teacache=0.0)


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
    small = dataclasses.replace(config.generation, height=64, width=96, frames=9, steps=steps)
    return dataclasses.replace(config, generation=small)


def _load(options: GenerateConfig, config: WorldActionConfig, device: str) -> WorldActionModel:
    import torch

    from kairos_env.world_model.published.offload import offload
    from kairos_env.world_model.published.world_action import WorldActionModel
    from kairos_env.world_model.text.small import UntrainedEncoder
    from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

    dtype = getattr(torch, options.dtype)
    first = "cpu" if options.offload else device
    if options.model is not None:
        parts = {"vae": options.vae, "text": options.text, "progress": processes.rank() == 0}
        model = WorldActionModel.from_pretrained(options.model, first, dtype, **parts)
    else:
        tokenizer = VideoVAE.random(width=8).to(first, dtype)
        model = WorldActionModel.from_release(
            config, device=first, dtype=dtype, tokenizer=tokenizer, encoder=UntrainedEncoder(config.text_dim)
        )
    if options.offload:
        offload(model, device)
    return model


def _options(job: ClipJob) -> dict[str, Any]:
    return {field.name: getattr(job, field.name) for field in dataclasses.fields(GenerationRequest)}


def _description(model: WorldActionModel, job: ClipJob, settings: GenerationSettings) -> dict[str, Any]:
    """What a clip was made of and where."""
    return {
        "settings": dataclasses.asdict(settings),
        "image": job.image,
        "model": model.config.to_dict(),
        "dtype": str(model.dtype),
        "device": str(model.device),
        "machine": describe_machine(),
    }


def _write_failure(path: Path, description: dict[str, Any], reason: str) -> None:
    write_text(path, json.dumps(description | {"error": reason}, indent=2) + "\n")
    print(f"{path.name.removesuffix('.failed.json')} failed: {reason.partition(': ')[2]}", file=sys.stderr)


def _summary(s: GenerationSettings) -> str:
    size = f"{s.frames} frames of {s.height} x {s.width}"
    return f"{s.mode}, {size}, {s.steps} steps, guidance {s.guidance:g}, seed {s.seed}"


def _stem(job: ClipJob, settings: GenerationSettings, image: Array | None) -> str:
    name = job.name or _words(job.prompt)
    name = name or (Path(job.image).stem if job.image else "clip")
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"name {name!r} must consist of letters, digits and . _ - and not begin with a dot")
    text = json.dumps([dataclasses.asdict(settings), _digest(image)], sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _words(prompt: str) -> str:
    """The first words of a prompt, as a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-")


def _digest(image: Array | None) -> str:
    return "" if image is None else hashlib.sha256(image.tobytes()).hexdigest()
