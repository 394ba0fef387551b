"""Folders of the big models: what the published files do not say, beside the weights.

    config.json                    release and sampling defaults, encoders, dtype, origin of the weights
    transformer/                   shards of at most 4 GB and their index, under the published names
    vae/model.safetensors          optional: the video tokenizer
    conditioning.json              what the text encoder is told, and what is cut from its answer
    additions.safetensors          optional: what fine-tuning taught the parts that streaming adds
    starts.safetensors             optional: real observations from which imagination can start

A folder is written beside its place and moved there when it is whole; loading checks every part against the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kairos_env.runs import atomic_write, require_sound, write_checksums, write_json
from kairos_env.world_model.checkpoint import CONFIG
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.normalisation import Normaliser
from kairos_env.world_model.published.keys import (
    check_config,
    choose_release,
    published_shapes,
    published_weights,
    to_published,
)
from kairos_env.world_model.published.passes import ClipPasses, Mixture, build_transformer
from kairos_env.world_model.published.robot_part import RobotPart
from kairos_env.world_model.published.robot_settings import SETTINGS as ROBOTS
from kairos_env.world_model.text.context import CachedEncoder, ContextEncoder
from kairos_env.world_model.text.qwen import EncoderSettings, QwenEncoder
from kairos_env.world_model.text.small import UntrainedEncoder
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE
from kairos_env.world_model.weights import (
    CheckpointError,
    Source,
    StoredTensor,
    load_weights,
    require_same,
    stored_tensors,
    write_sharded,
    write_tensors,
)

FORMAT = 1
KIND = "world-action"
UNTRAINED = "untrained"  # in the place of a text encoder's source: see `UntrainedEncoder`
TRANSFORMER, VAE = "transformer", "vae/model.safetensors"


def encoder_settings(config: WorldActionConfig) -> EncoderSettings:
    """What is known of a release's conversation with its encoder: whether it was trained with the picture in it."""
    shown = {robot.release: robot.image_in_context for robot in ROBOTS.values()}
    return EncoderSettings(use_image=shown.get(config.name, True))


def is_world_action(folder: str | os.PathLike[str]) -> bool:
    """Whether it is a folder that `save_parts` or `convert` wrote."""
    try:
        return bool(json.loads((Path(folder) / CONFIG).read_text()).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False


def save_parts(
    model: ClipPasses,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    progress: bool = False,
    robot: RobotPart | None = None,
) -> None:
    """Writes a model's folder: transformer, video tokenizer, and by what encoder it is conditioned.

    The encoder's weights stay where ``model.config.text_source`` says. An older model folder there is replaced.

    Args:
        dtype: of the stored transformer; None keeps the model's.
        robot: what the weights were fine-tuned on; None is what is known of the release.

    Raises:
        FileExistsError: something else lies there.
        ValueError: a tokenizer other than the published one, or weights that are quantised or do not fit the
            configuration.
    """
    weights = model.transformer.state_dict()
    require_same(
        published_shapes(model.config),
        {name: tuple(value.shape) for name, value in weights.items()},
        f"the transformer does not fit its configuration {model.config.name!r}",
    )
    odd = sorted({f"{type(t).__name__} {t.dtype}" for t in weights.values() if type(t) is not Tensor or t.is_meta})
    if odd:
        raise ValueError(f"only plain weights are saved, not {', '.join(odd)}: save the model before it is quantised")
    vae, encoder = model.tokenizer, getattr(model.encoder, "encoder", model.encoder)  # within its cache
    if vae is not None and not isinstance(vae, VideoVAE):
        raise ValueError(f"a folder holds the published video tokenizer or none, not a {type(vae).__name__}")
    _write_folder(
        Path(folder),
        model.config,
        weights,
        dtype,
        vae=None if vae is None else vae.published_weights(),
        text=_text_of(encoder, model.config),
        settings=getattr(encoder, "settings", None) or encoder_settings(model.config),
        origin=[],
        progress=progress,
        robot=robot or RobotPart.of_release(model.config.name),
    )


def convert(
    weights: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    release: str | WorldActionConfig | None = None,
    vae: str | os.PathLike[str] | None = None,
    text: str | None = None,
    system_prompt: str | os.PathLike[str] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: bool = False,
) -> WorldActionConfig:
    """Published weights in, a model folder out, one tensor at a time; see `choose_release` for what is refused.

    Args:
        weights: file, sharded file or folder.
        folder: to write; must not exist, or be empty.
        release: see `choose_release`.
        vae: weights of the video tokenizer, copied; see `VideoVAE.from_file`.
        text: folder or hub repository of the text encoder, recorded so that loading the model loads it too.
        system_prompt: text file with the words that the encoder is told first; line ends after them do not count.
        statistics: published file of the fine-tuning's statistics, which normalise actions and proprioception.
        dtype: of the stored transformer; None keeps the file's.
        force: accept a file name that contradicts the release.

    Returns:
        the configuration that was written.

    Raises:
        FileNotFoundError, FileExistsError: something is missing, or something else lies at ``folder``.
        CheckpointError: unreadable, unknown or ambiguous weights, or an encoder of another width.
        OSError: the disk is too small.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists; remove it, or name another folder")
    source = published_weights(weights)
    config = choose_release({name: t.shape for name, t in source.items()}, weights, release, force)
    settings = encoder_settings(config)
    if system_prompt is not None:
        settings = dataclasses.replace(settings, system_text=Path(system_prompt).read_text("utf-8").rstrip("\n"))
    if text is not None:
        _check_text(text, config)
    robot = RobotPart.of_release(config.name)
    if statistics is not None:
        if robot is None:
            raise ValueError(f"{config.name} drives no robot that is known here: statistics have no use")
        normaliser = Normaliser.from_file(str(statistics), robot.settings.normalisation)
        robot.settings.check_normaliser(normaliser)
        robot = RobotPart(robot.settings, normaliser)
    _write_folder(
        folder,
        config,
        source,
        dtype,
        vae=None if vae is None else VideoVAE.from_file(vae).published_weights(),
        text=text,
        settings=settings,
        origin=sorted({tensor.file for tensor in source.values()}),
        progress=progress,
        robot=robot,
    )
    return config


def export(
    folder: str | os.PathLike[str],
    file: str | os.PathLike[str],
    prefix: str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> None:
    """A model folder in, one file under the published names out; see `to_published` for ``prefix``."""
    _, _, source = read_folder(folder)
    names = to_published(source, prefix)
    with _bar(_size(source, dtype), progress, f"writing {file}") as advance:
        write_tensors(
            Path(file), {names[name]: t for name, t in source.items()}, {"format": "pt"}, dtype, advance=advance
        )


def read_folder(
    folder: str | os.PathLike[str],
) -> tuple[WorldActionConfig, Mapping[str, Any], dict[str, StoredTensor]]:
    """Configuration, the rest of ``config.json`` and the stored transformer of a model folder, all checked.

    Raises:
        FileNotFoundError: no such folder.
        CheckpointError: another kind of folder or format, or weights that do not belong to its configuration.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}: not a model folder; kairos convert makes one")
    try:
        data = json.loads((folder / CONFIG).read_text())
        if data.get("kind") != KIND:
            raise CheckpointError(f"{folder} holds no {KIND} model; WorldModel.from_pretrained loads a small one")
        if data["format"] != FORMAT:
            raise CheckpointError(f"{folder} has format {data['format']}, this version reads {FORMAT}: convert again")
        config = WorldActionConfig.from_dict(data["model"])
        rest = {key: data[key] for key in ("kairos", "dtype", "text", "vae", "origin")}
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: cannot read the configuration: {error!r}") from None
    check_config(config)
    source = stored_tensors(folder / TRANSFORMER)
    require_same(
        published_shapes(config),
        {name: t.shape for name, t in source.items()},
        f"{folder / TRANSFORMER} does not fit its {CONFIG} ({config.name!r})",
    )
    if rest["dtype"] != _dtype_name(source):
        raise CheckpointError(f"{folder / CONFIG} says {rest['dtype']}, but the weights are {_dtype_name(source)}")
    return config, rest, source


def load_parts(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    vae: str | os.PathLike[str] | Literal[False] | None = None,
    text: str | os.PathLike[str] | Literal[False] | None = None,
    progress: bool = False,
) -> tuple[WorldActionConfig, Mixture, VideoVAE | None, ContextEncoder | None]:
    """Loads the parts of a model folder, strictly.

    Args:
        dtype: of transformer and video tokenizer; None keeps what is stored. The published code runs in bfloat16.
        vae: other weights of the video tokenizer; None takes the folder's if it has one, False leaves it out.
        text: another text encoder, folder or hub repository; None takes the recorded one if there is one, False
            leaves it out.

    Raises:
        FileNotFoundError, CheckpointError: see `read_folder`.
        MemoryError: the device is too small.
    """
    folder = Path(folder)
    config, rest, source = read_folder(folder)
    require_sound(folder, whole=False)  # of the parts that are there: another one may be given
    with torch.device("meta"):
        transformer = build_transformer(config)
    with _bar(_size(source), progress, f"loading {folder.name}") as advance:
        load_weights(transformer, source, dtype, device, advance=advance)
    tokenizer: VideoVAE | None = None
    encoder: ContextEncoder | None = None
    if vae is None and rest["vae"]:
        vae = folder / VAE
    if vae:
        tokenizer = VideoVAE.from_file(vae, device, transformer.video_dit.patch_embedding.weight.dtype)
    if text is None and rest["text"]:
        text = (folder / rest["text"]).resolve() if (folder / rest["text"]).is_dir() else rest["text"]
    if text == UNTRAINED:
        encoder = UntrainedEncoder(config.text_dim)
    elif text:
        config = dataclasses.replace(config, text_source=str(text))
        settings = EncoderSettings.load(folder)
        encoder = CachedEncoder(QwenEncoder.from_pretrained(text, config.text_encoder, device, settings=settings))
    return config, transformer, tokenizer, encoder


def _write_folder(
    folder: Path,
    config: WorldActionConfig,
    source: Source,
    dtype: torch.dtype | None,
    *,
    vae: Source | None,
    text: str | None,
    settings: EncoderSettings,
    origin: Iterable[Path],
    progress: bool,
    robot: RobotPart | None,
) -> None:
    if folder.exists() and not (folder.is_dir() and (is_world_action(folder) or not any(folder.iterdir()))):
        raise FileExistsError(f"{folder} exists and is no model folder; name another one")
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = _size(source, dtype) + (_size(vae) if vae else 0)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise OSError(f"{folder} needs {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free there")
    origin = list(origin)
    with (
        _bar(size + sum(file.stat().st_size for file in origin), progress, f"writing {folder.name}") as advance,
        atomic_write(folder) as part,
    ):
        part.mkdir()
        (part / TRANSFORMER).mkdir()
        write_sharded(part / TRANSFORMER, source, {"format": "pt"}, dtype, advance)
        if vae:
            (part / VAE).parent.mkdir()
            write_tensors(part / VAE, vae, {"format": "pt"}, advance=advance)
        settings.save(part)
        known = {"robot": None} if robot is None else robot.write(part)
        if text is not None and Path(text).is_dir():
            text = os.path.relpath(text, folder)
        write_json(
            part / CONFIG,
            {
                "kind": KIND,
                "format": FORMAT,
                "kairos": _version(),
                "model": config.to_dict(),
                "dtype": str(dtype).removeprefix("torch.") if dtype else _dtype_name(source),
                "text": text,
                "vae": VAE if vae else None,
                "origin": [
                    {"file": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file, advance)}
                    for file in origin
                ],
                **known,
            },
        )
        write_checksums(part, [str(file.relative_to(part)) for file in part.rglob("*") if file.is_file()])


def _text_of(encoder: object, config: WorldActionConfig) -> str | None:
    """What a folder says of its text encoder."""
    if isinstance(encoder, UntrainedEncoder):
        return UNTRAINED
    return None if encoder is None else config.text_source


def _check_text(text: str, config: WorldActionConfig) -> None:
    """A local encoder says its width; one on the hub is checked when it is loaded."""
    if not Path(text).exists():
        if text.count("/") != 1 or text.startswith((".", "/", "~")):
            raise FileNotFoundError(f"no text encoder {text}: neither a folder nor a hub repository (owner/name)")
        return
    try:
        data = json.loads((Path(text) / CONFIG).read_text())
        width = data.get("text_config", data)["hidden_size"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{text} is no folder of a text encoder: its {CONFIG} names no hidden_size") from None
    if width != config.text_dim:
        raise CheckpointError(
            f"{text} gives contexts of width {width}, but {config.name!r} was trained with {config.text_dim}: "
            f"take {config.text_source}"
        )


def _version() -> str:
    try:
        return importlib.metadata.version("kairos-env")
    except importlib.metadata.PackageNotFoundError:
        return "a checkout that is not installed"


def _dtype_name(source: Source) -> str:
    names = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in source.values()})
    return " and ".join(names)


def _size(source: Source, dtype: torch.dtype | None = None) -> int:
    return sum(prod(t.shape) * (dtype or t.dtype).itemsize for t in source.values())


def _sha256(file: Path, advance: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**24):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


@contextmanager
def _bar(total: int, show: bool, label: str) -> Iterator[Callable[[int], object]]:
    """A progress bar over bytes, or nothing."""
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc=label, disable=not show) as bar:
        yield bar.update
