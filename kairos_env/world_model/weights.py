"""Files of tensors: strict reading and atomic writing of safetensors, one tensor at a time.

A model of several gigabytes never lies in memory twice: tensors travel from file to module, or from file to
file, through a memory map, and are cast on the way.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kairos_env.runs import atomic_write, write_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
INDEX = ".safetensors.index.json"
SUFFIX = ".safetensors"
MAPPED = 2**23  # bytes read through one memory map before a fresh one gives the pages back

Shapes = Mapping[str, tuple[int, ...]]


class CheckpointError(ValueError):
    """Weights or a model folder that cannot be loaded; the message lists every problem."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file, as the file's header describes it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


Source = Mapping[str, Tensor | StoredTensor]  # name -> tensor, in memory or still in its file


def stored_tensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Reads the headers only: name in the file -> where and what the tensor is.

    Args:
        path: a ``.safetensors`` file, the ``.safetensors.index.json`` of a sharded one, or a folder with either.

    Raises:
        FileNotFoundError: no weights there.
        CheckpointError: unreadable or truncated files, missing shards, an index that does not fit its shards.
    """
    path = Path(path)
    index = _weights_in(path) if path.is_dir() else path
    if not index.is_file():
        raise FileNotFoundError(f"no weights {index}")
    if index.name.endswith(INDEX):
        return _sharded(index)
    if index.suffix != SUFFIX:
        raise CheckpointError(f"{index} is no {SUFFIX} file; other formats can carry code and are not read")
    return _header(index)


def _weights_in(folder: Path) -> Path:
    """The one file of weights in a folder, or deeper in it: some published repositories keep theirs in subfolders."""
    found: list[Path] = []
    for pattern in ("*", "**/*"):
        found = found or sorted(folder.glob(pattern + INDEX)) or sorted(folder.glob(pattern + SUFFIX))
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(p.relative_to(folder)) for p in found[:8])
    if not found:
        raise FileNotFoundError(f"{folder} holds neither a {SUFFIX} file nor a {INDEX}")
    raise CheckpointError(f"{folder} holds {len(found)} candidates ({names}): name one of them")


def _header(file: Path) -> dict[str, StoredTensor]:
    found = {}
    with _opened(file) as content:
        for key in content.keys():
            part = content.get_slice(key)
            code = str(part.get_dtype())
            if code not in DTYPES:
                raise CheckpointError(
                    f"{file}: {key} is stored as {code}, legal: {', '.join(DTYPES)}; quantised files lack what is "
                    "needed to restore them: take the unquantised weights"
                )
            found[key] = StoredTensor(file, key, tuple(part.get_shape()), DTYPES[code])
    return found


def _sharded(index: Path) -> dict[str, StoredTensor]:
    try:
        where = json.loads(index.read_text())["weight_map"]
        shards = sorted({index.parent / str(name) for name in where.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error!r}") from None
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:20])}")
    found: dict[str, StoredTensor] = {}
    for shard in shards:
        for key, tensor in _header(shard).items():
            if where.get(key) != shard.name:
                raise CheckpointError(f"{index.name} says {where.get(key)!r} for {key}, but it lies in {shard.name}")
            found[key] = tensor
    lost = sorted(where.keys() - found.keys())
    if lost:
        raise CheckpointError(f"{index.name} promises {len(lost)} tensors that no shard has: {', '.join(lost[:20])}")
    return found


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        content = safe_open(str(file), "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is unreadable or truncated ({error}); fetch or write it again") from None
    with content:
        yield content


def read_tensors(source: Source) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor, files in order; a stored one is a view of its file, to be copied before the next."""
    files: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for name, value in source.items():
        if isinstance(value, Tensor):
            yield name, value
        else:
            files.setdefault(value.file, []).append((name, value))
    for file, entries in files.items():
        waiting = iter(entries)
        entry = next(waiting, None)
        while entry is not None:
            budget = MAPPED
            with _opened(file) as content:
                while entry is not None and budget > 0:
                    yield entry[0], content.get_tensor(entry[1].key)
                    budget -= entry[1].nbytes
                    entry = next(waiting, None)


def require_same(want: Shapes, have: Shapes, what: str) -> None:
    """Raises a CheckpointError that counts and lists missing, extra and misshapen names; ``what`` begins it."""
    found = problems(want, have)
    if found:
        counts = ", ".join(
            f"{sum(p.startswith(kind) for p in found)} {kind}" for kind in ("missing", "extra", "misshapen")
        )
        shown = "\n  ".join(found[:20]) + (f"\n  ... and {len(found) - 20} more" if len(found) > 20 else "")
        raise CheckpointError(f"{what}: {counts}\n  {shown}")


def problems(want: Shapes, have: Shapes) -> list[str]:
    """One line for every name that is missing, extra or misshapen in ``have``."""
    lines = [f"missing {k} {want[k]}" for k in sorted(want.keys() - have.keys())]
    lines += [f"extra {k} {have[k]}" for k in sorted(have.keys() - want.keys())]
    both = sorted(want.keys() & have.keys())
    return lines + [f"misshapen {k}: file {have[k]}, model {want[k]}" for k in both if want[k] != have[k]]


def load_weights(
    module: nn.Module,
    source: Source,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    *,
    what: str = "the weights do not fit the model",
    advance: Callable[[int], object] | None = None,
) -> None:
    """Puts the tensors into the module, one at a time; peak memory is the module plus about one tensor.

    Args:
        module: usually built under ``torch.device("meta")``, so that it owns no memory yet; its parameters are
            replaced, not written into.
        source: the names of ``module.state_dict()`` -> tensors, in memory or stored.
        dtype: cast to; None keeps what is stored.
        what: beginning of the message if names or shapes differ.
        advance: called with the number of stored bytes after each tensor.

    Raises:
        CheckpointError: missing, extra or misshapen names; nothing was read then.
        MemoryError: the device is too small.
    """
    want = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    require_same(want, {k: tuple(v.shape) for k, v in source.items()}, what)
    try:
        for name, tensor in read_tensors(source):
            owner, _, leaf = name.rpartition(".")
            home = module.get_submodule(owner)
            value = tensor.detach().to(device, dtype, copy=True)
            old = getattr(home, leaf)
            setattr(home, leaf, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
            if advance:
                advance(tensor.nbytes)
    except torch.OutOfMemoryError:
        total = sum(prod(t.shape) * (dtype or t.dtype).itemsize for t in source.values())
        raise MemoryError(
            f"the weights need {total / 1e9:.1f} GB as {dtype or 'stored'}, more than {device} has free: load them as "
            "torch.bfloat16, free memory, or use device='cpu'"
        ) from None
    left = [name for name, t in chain(module.named_parameters(), module.named_buffers()) if t.is_meta]
    if left:  # a defect of the module: whatever is not stored must be computed, not registered
        raise RuntimeError(f"no file stores {', '.join(left[:20])}, so that a module built on the meta device lacks it")


def content_sha256(value: object) -> str:
    """The SHA-256 of nested mappings, sequences, numbers, strings and tensors, whatever file they came from."""
    digest = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, Mapping):
            digest.update(f"{{{len(part)}".encode())
            for key in sorted(part, key=str):
                add(key)
                add(part[key])
        elif isinstance(part, list | tuple):
            digest.update(f"[{len(part)}".encode())
            for item in part:
                add(item)
        elif isinstance(part, Tensor):
            flat = part.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().data)
        else:
            digest.update(f"{part!r},".encode())

    add(value)
    return digest.hexdigest()


# writing ----------------------------------------------------------------------------------------------------------


def write_tensors(
    path: Path,
    source: Source,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Writes one safetensors file, tensor by tensor; the format: https://github.com/huggingface/safetensors#format.

    The library's own writer wants all tensors in memory, and copies them once more.

    Args:
        dtype: cast to; None keeps what is there.
        advance: called with the number of bytes written after each tensor.
    """
    codes = {v: k for k, v in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    widest_first = sorted(source.items(), key=lambda item: -(dtype or item[1].dtype).itemsize)  # keeps all aligned
    for name, value in widest_first:
        kind = dtype or value.dtype
        begin, end = end, end + prod(value.shape) * kind.itemsize
        header[name] = {"dtype": codes[kind], "shape": list(value.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with atomic_write(path) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, tensor in read_tensors(source):
            raw = tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
            file.seek(8 + len(head) + header[name]["data_offsets"][0])
            file.write(raw.data)
            if advance:
                advance(raw.nbytes)


def write_sharded(
    folder: Path,
    source: Source,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    advance: Callable[[int], object] | None = None,
    limit: int = 4 * 10**9,
) -> None:
    """Writes ``model-00001-of-0000n.safetensors`` of at most ``limit`` bytes each, and their index."""
    sizes = {name: prod(t.shape) * (dtype or t.dtype).itemsize for name, t in source.items()}
    groups = list(_fill(sizes, limit))
    where: dict[str, str] = {}
    for i, names in enumerate(groups, 1):
        shard = f"model-{i:05d}-of-{len(groups):05d}{SUFFIX}"
        write_tensors(folder / shard, {n: source[n] for n in names}, metadata, dtype, advance)
        where |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(where.items()))}
    write_json(folder / f"model{INDEX}", index)


def _fill(sizes: Mapping[str, int], limit: int) -> Iterator[Sequence[str]]:
    names: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if names and filled + size > limit:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names
