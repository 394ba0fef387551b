"""`kairos data encode`: the pictures of a recording through a model's tokenizer, once and for all.

Data and model meet here: the cache knows neither what made its latents, nor the model where they are stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from kairos_env.collect.pool import WorkerDied, in_workers
from kairos_env.datasets.conform import changes, sampled
from kairos_env.datasets.latents.cache import CacheError, LatentCache, Origin
from kairos_env.datasets.latents.writer import LatentCacheWriter, write_episode
from kairos_env.datasets.layouts import fingerprint, open_recording, read_as
from kairos_env.datasets.recording import BrokenEpisode, Recording
from kairos_env.records import RobotSpec

if TYPE_CHECKING:
    from kairos_env.world_model.model import WorldModel


@dataclass(frozen=True)
class EncodeConfig:
    """Settings of `encode`: a recording, and the model whose tokenizer encodes it.

    Args:
        data: a recording of any layout that can be read; a folder, a file or the hub name of a LeRobot dataset.
        out: folder of the cache; one of the same recording and model is continued.
        model: whose tokenizer; a bundled name, a folder or a hub name. Training goes on from this model.
        size: height and width to which all pictures are resized, such as 48,64; empty leaves them.
        rate: decisions a second, made of whole steps; None is the recording's.
        feature_map: what a LeRobot dataset's features mean (kairos data inspect --save); by default that is guessed.
        workers: processes.
        batch: pictures that a process encodes at once.
        device: of the model.
        verify: first read all that is already there; what is damaged is encoded anew.
    """

    data: str
    out: str = "runs/cache"
    model: str = "kairos-tiny"
    size: tuple[int, ...] = ()
    rate: float | None = None
    feature_map: str = ""
    workers: int = 1
    batch: int = 64
    device: str = "cpu"
    verify: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def encode(config: EncodeConfig, progress: bool = True, say: Callable[[str], None] = lambda text: None) -> LatentCache:
    """Encodes what is missing and returns the complete cache.

    Args:
        say: is told what becomes of pictures and rate, and how well the tokenizer gives pictures back.

    Raises:
        FileNotFoundError: no such recording or model.
        CacheError: the folder holds a cache of something else, the recording is a cache, or no episode can be used.
        ValueError: cameras that the tokenizer cannot encode.
        RuntimeError: another process writes the cache, or a worker died. What was encoded is kept.
    """
    from tqdm import tqdm

    from kairos_env import __version__
    from kairos_env.training.transfer import tokenizer_verdict

    source, model = _load(config)
    recording = read_as(source, sampled(source.spec, config.size, config.rate))
    if isinstance(recording, LatentCache):
        raise CacheError(f"{config.data} holds latents already, of {recording.origin.recording}: encode that")
    _require_encodable(recording.spec)
    path = Path(config.data)
    origin = Origin(
        recording=str(path.resolve()) if path.exists() else config.data,
        feature_map=str(Path(config.feature_map).resolve()) if config.feature_map else "",
        fingerprint=fingerprint(config.data, source),
        model=config.model,
        encoder=model.encoder_sha256,
    )
    total = len(recording)
    say(", ".join([f"{config.data}: {total} episodes", *changes(source.spec, recording.spec)]))
    say(tokenizer_verdict(model, [recording[0]], config.model))
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "zarr")} | {"kairos-env": __version__}
    with LatentCacheWriter(config.out, origin, recording.spec, total, versions, config.verify) as writer:
        missing, left_out = writer.missing, {}
        with tqdm(total=total, initial=total - len(missing), unit="episode", disable=not progress) as bar:
            for place, why in writer.damaged.items():
                bar.write(f"damaged, encoded anew: {place}: {why}")
            for number, error in _encoded(config, missing, recording, model):
                if error:
                    left_out[number] = (recording.names[number], error)
                bar.update()
        writer.finish(left_out)
    return LatentCache(config.out)


def _load(config: EncodeConfig) -> tuple[Recording, WorldModel]:
    from kairos_env.world_model.model import WorldModel

    return open_recording(config.data, config.feature_map or None), WorldModel.from_pretrained(
        config.model, config.device
    )


def _require_encodable(spec: RobotSpec) -> None:
    from kairos_env.world_model.tokenizers.image import DOWNSAMPLING

    unit = DOWNSAMPLING
    wrong = [f"{c.name} ({c.height} x {c.width})" for c in spec.cameras if c.height % unit or c.width % unit]
    if wrong or not spec.cameras:
        raise ValueError(
            f"the tokenizer takes pictures with sides divisible by {unit}; {spec.name!r} has "
            f"{', '.join(wrong) or 'no camera'}: resize them, such as by --size 48,64"
        )


def _encoded(
    config: EncodeConfig, missing: list[int], recording: Recording, model: WorldModel
) -> Iterator[tuple[int, str]]:
    """Yields (number, what is wrong with it or "") as episodes are stored."""
    workers = min(config.workers, len(missing))
    if workers <= 1:
        for number in missing:
            yield number, _encode_episode(config, number, recording, model)
        return
    try:
        for number, future in in_workers(_encode_number, missing, workers, _start_worker, config, workers):
            yield number, future.result()
    except WorkerDied as error:
        raise RuntimeError(f"{error}. What was encoded is safe in {config.out}; run the same command again") from None


def _encode_episode(config: EncodeConfig, number: int, recording: Recording, model: WorldModel) -> str:
    from kairos_env.training.batches import encode_pictures

    try:
        episode = recording[number]
        if not episode.images:
            return f"{recording.names[number]}: it has no pictures"
        latents = {c: encode_pictures(model, images, config.batch).numpy() for c, images in episode.images.items()}
        write_episode(Path(config.out), number, recording.names[number], episode, latents)
    except BrokenEpisode as error:
        return str(error)
    return ""


_worker: tuple[EncodeConfig, Recording, WorldModel]


def _start_worker(config: EncodeConfig, workers: int) -> None:
    global _worker
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    source, model = _load(config)
    _worker = (config, read_as(source, sampled(source.spec, config.size, config.rate)), model)


def _encode_number(number: int) -> str:
    config, recording, model = _worker
    return _encode_episode(config, number, recording, model)
