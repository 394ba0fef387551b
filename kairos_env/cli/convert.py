"""`kairos convert`: published weights in, a model folder out, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kairos_env.cli.options import Fields, Positional

if TYPE_CHECKING:
    from kairos_env.world_model.config import WorldActionConfig
    from kairos_env.world_model.weights import StoredTensor

DTYPES = {"keep": None, "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert, and how.

    Args:
        weights: published .safetensors, its .index.json or its folder; or a model folder.
        release: which weights these are, needed only where shapes and names do not tell. For a model of your own: a
            JSON file with its configuration.
        check: only look: release, names, shapes, dtype, problems; writes nothing.
        out: model folder to write, by default models/RELEASE; the file with --to-published.
        dtype: of the transformer; bf16 halves fp32.
        vae: Wan2.1_VAE.pth or its diffusers folder, to be copied into the folder.
        text: text encoder, or its hub name (owner/name): recorded, loaded with the model.
        system_prompt: file with the text that the encoder is told first; the published weights know another one than
            the default wording.
        statistics: published JSON of the fine-tuning's statistics: what the actions of world-action weights mean.
        to_published: the way back: one file under the published names.
        prefix: of the video names with --to-published, such as pipe.dit.video_dit.; by default the release's.
        force: accept a file name that contradicts the release.
    """

    weights: Positional[Path]
    release: str | None = None
    check: bool = False
    out: Path | None = None
    dtype: Literal["keep", "bf16", "fp32"] = "keep"
    vae: Path | None = None
    text: str | None = None
    system_prompt: Path | None = None
    statistics: Path | None = None
    to_published: bool = False
    prefix: str | None = None
    force: bool = False


def run(args: Fields[ConvertConfig]) -> int:
    """Converts or checks; 1 if a check finds a problem.

    Raises:
        ValueError, OSError: the request cannot be met.
    """
    import torch

    from kairos_env.world_model.published.folder import convert, export, is_world_action, read_folder

    ours = is_world_action(args.weights)
    dtype = None if args.dtype == "keep" else getattr(torch, str(DTYPES[args.dtype]))
    if args.prefix is not None and not args.to_published:
        raise ValueError("--prefix belongs to --to-published; prefixes of published files are recognised")
    if args.check:
        return _check(args, ours)
    if args.to_published:
        if not ours:
            raise ValueError(f"--to-published takes a model folder that kairos convert wrote, {args.weights} is none")
        config = read_folder(args.weights)[0]
        file = args.out or Path(f"{config.name}.safetensors")
        if file.exists():
            raise FileExistsError(f"{file} exists; name another file with --out")
        export(args.weights, file, args.prefix, dtype, progress=True)
        print(f"{config.name} under its published names: {file}")
        return 0
    if ours:
        raise ValueError(f"{args.weights} is a model folder already; --to-published is the way back, --check looks")
    folder = args.out
    if folder is None:
        folder = Path("models") / _identified(args).name
    config = convert(
        args.weights,
        folder,
        release=_release(args.release),
        vae=args.vae,
        text=args.text,
        system_prompt=args.system_prompt,
        statistics=args.statistics,
        dtype=dtype,
        force=args.force,
        progress=True,
    )
    print(f"{config.name}: {folder}")
    if args.vae is None:
        print("without a video tokenizer (--vae Wan2.1_VAE.pth): pictures go neither in nor out")
    if args.text is None:
        print(f"without a text encoder (--text {config.text_source}): instructions must come as context tokens")
    if config.action and args.statistics is None:
        print("without statistics of the fine-tuning (--statistics FILE): what it proposes is not sent to a robot")
    return 0


def _release(name: str | None) -> str | WorldActionConfig | None:
    """A release's name, or the configuration in a JSON file."""
    from kairos_env.world_model.config import WorldActionConfig

    if name is None or not name.endswith(".json"):
        return name
    try:
        return WorldActionConfig.from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} is no configuration of a model: {error}") from None


def _identified(args: ConvertConfig) -> WorldActionConfig:
    from kairos_env.world_model.published.keys import choose_release, published_weights

    shapes = {name: tensor.shape for name, tensor in published_weights(args.weights).items()}
    return choose_release(shapes, args.weights, _release(args.release), args.force)


def _check(args: ConvertConfig, ours: bool) -> int:
    from kairos_env.world_model.published.folder import TRANSFORMER, read_folder
    from kairos_env.world_model.published.keys import published_weights

    try:
        print(_contents(args.weights, published_weights(args.weights / TRANSFORMER if ours else args.weights)))
        if ours:
            config, rest, _ = read_folder(args.weights)
            print(f"written by  kairos {rest['kairos']}\ntokenizer   {rest['vae']}\nencoder     {rest['text']}")
            for file in rest["origin"]:
                print(f"from        {file['file']}, {file['bytes']:,} bytes, sha256 {file['sha256']}")
        else:
            config = _identified(args)
    except (ValueError, OSError) as error:
        print(f"problem     {error}")
        return 1
    g = config.generation
    actions = f"; actions in {g.action_steps} steps" if config.action else ""
    print(
        f"release     {config.name}\n"
        f"trained for {g.height} x {g.width} pixels, {g.frames} frames; {g.sampler} sampler, {g.steps} steps{actions}\n"
        f"conditioned by {config.text_encoder}, width {config.text_dim}: {config.text_source}\n"
        "no problems"
    )
    return 0


def _contents(path: Path, source: Mapping[str, StoredTensor]) -> str:
    files = sorted({tensor.file for tensor in source.values()})
    first = next(iter(source))
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in source.values()})
    counts = {
        word: sum(prod(t.shape) for name, t in source.items() if name.startswith(f"{word}_dit."))
        for word in ("video", "action")
    }
    size = sum(file.stat().st_size for file in files)
    return (
        f"weights     {path}: {len(files)} {'file' if len(files) == 1 else 'files'}, {size / 1e9:.2f} GB\n"
        f"tensors     {len(source)}, {' and '.join(dtypes)}, named like {source[first].key}\n"
        f"parameters  video {counts['video']:,}, action {counts['action']:,}, together {sum(counts.values()):,}"
    )
