"""`kairos verify-files`: what was saved, compared with its checksums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from kairos_env.cli.options import Positional
from kairos_env.runs import damaged_files, stored_checksums, write_checksums
from kairos_env.runs.checksums import MANIFEST

_STATED = ("config.json", "statistics.json")  # in a model folder, beside its weights and starts
_SOUND, _BARE = "sound", "without checksums"


def verify(paths: Positional[tuple[Path, ...]], write: bool = False) -> int:
    """Verifies model folders, checkpoints, states, recordings and caches of latents; 1 if one is damaged.

    Args:
        paths: files, and folders with all that is in them.
        write: first state the checksums of model folders and recordings anew, as they are now.
    """
    if write:
        for path in paths:
            _write(path)
    verdicts: Counter[str] = Counter()
    for place, check in (found for path in paths for found in _checks(path)):
        try:
            verdict = check()
        except (ValueError, OSError, KeyError) as error:
            verdict, why = "damaged", " ".join(str(error).split())
            print(f"damaged: {place}: {why}")
        verdicts[verdict] += 1
    if not verdicts:
        raise ValueError(f"nothing that Kairos saves is in {', '.join(map(str, paths))}")
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    return int(bool(verdicts["damaged"]))


def _checks(path: Path) -> Iterator[tuple[Path, Callable[[], str]]]:
    """Everything at a path that may have checksums, and a function that compares them."""
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    stated: set[Path] = set()
    for folder in _model_folders(path):
        stated |= {folder / name for name in _members(folder)}
        yield folder, lambda folder=folder: _folder(folder)  # type: ignore[misc]
    kinds = {".pt": _checkpoint, ".safetensors": _state, ".hdf5": _recording}
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix in kinds and file not in stated and file.is_file() and not file.name.startswith("."):
            yield file, lambda file=file: kinds[file.suffix](file)  # type: ignore[misc]
        elif file.name == "zarr.json" and "kairos_latents" in file.read_text(errors="replace"):
            yield file.parent, lambda folder=file.parent: _latents(folder)  # type: ignore[misc]


def _write(path: Path) -> None:
    import h5py

    from kairos_env.datasets.hdf5.checksums import seal

    for folder in _model_folders(path):
        write_checksums(folder, _members(folder))
        print(f"written: {folder / MANIFEST}")
    for place in [path] if path.suffix == ".hdf5" else sorted(path.rglob("*.hdf5")):
        with h5py.File(place, "r+") as file:
            if isinstance(file.get("data"), h5py.Group):
                seal(file["data"], anew=True)
                print(f"written: {place}")


def _model_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    found = {file.parent for name in (MANIFEST, "config.json") for file in [*path.rglob(name)]}
    return sorted(folder for folder in found if (folder / MANIFEST).exists() or any(folder.glob("*.safetensors")))


def _members(folder: Path) -> list[str]:
    known = [name for name in stored_checksums(folder) if (folder / name).exists()]
    there = [file.name for file in folder.glob("*.safetensors")] + [n for n in _STATED if (folder / n).exists()]
    return sorted({*known, *there})


def _folder(folder: Path) -> str:
    if lines := damaged_files(folder):
        raise ValueError("; ".join(lines))
    return _SOUND if stored_checksums(folder) else _BARE


def _checkpoint(path: Path) -> str:
    from kairos_env.training.progress import read_checkpoint

    return _SOUND if "sha256" in read_checkpoint(path) else _BARE


def _state(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    from kairos_env.world_model.state import read_state

    try:
        with safe_open(str(path), "np") as file:
            bare = "sha256" not in (file.metadata() or {})  # weights of others: gigabytes that nothing is known of
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return _BARE if bare else _SOUND if read_state(path)[1] else _BARE


def _recording(path: Path) -> str:
    from kairos_env.datasets.hdf5.checksums import sealed, verify_all
    from kairos_env.datasets.hdf5.files import blamed_on, open_file

    with open_file(path) as file, blamed_on(str(path)):
        if sealed(file):
            verify_all(file["data"])
            return _SOUND
        return _BARE


def _latents(folder: Path) -> str:
    from kairos_env.datasets.latents.cache import LatentCache

    cache = LatentCache(folder)
    for index in range(len(cache)):
        cache[index]
    if cache.broken:
        raise ValueError("; ".join(cache.broken.values()))
    return _SOUND
