"""The published weights: their names and shapes, and which release they are.

A published file holds tensors and says nothing else: neither its release nor resolution, sampler or encoders. Some
of that shows in the shapes; what does not has to be named, and a wrong name is refused where it can be.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.published.releases import RELEASES, get_release
from kairos_env.world_model.weights import CheckpointError, Shapes, StoredTensor, problems, require_same, stored_tensors

VIDEO, ACTION = "video_dit.", "action_dit."
WRAPPERS = ("pipe.dit.", "dit.", "")  # what published files put before the expert's name
ROOTS = ("patch_embedding.", "text_embedding.", "time_embedding.", "time_projection.", "blocks.", "head.")
FREQUENCIES, KERNEL = 256, 4  # of the timestep, of the short convolutions

# What a file's name says about its release; an empty intersection is a contradiction.
_ROBOT = {"4b-robot", "4b-robot-distilled", "4b-3.1-robot", "4b-libero", "4b-robotwin"}
HINTS: Mapping[str, set[str]] = {
    "libero": {"4b-libero"},
    "robotwin": {"4b-robotwin"},
    r"3\.1": {"4b-3.1-robot", "4b-libero", "4b-robotwin"},
    "distill|dmd": {"4b-robot-distilled"},
    "720p": {"4b-720p"},
    "480p": RELEASES.keys() - {"4b-720p"},
    "robot(?!win)": _ROBOT,
    "common": {"4b", "4b-720p"},
    "pretrained": {"4b"},
}


# names and shapes -------------------------------------------------------------------------------------------------


def published_shapes(config: WorldActionConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every published tensor of such a model, written out without our modules.

    The names are those of the world-action files, ``video_dit.*`` and ``action_dit.*``, which are also ours.
    """
    v = config.video
    width, keys = v.heads * v.head_dim, v.delta_heads * v.delta_head_dim
    values = keys * v.delta_expand_v
    shapes = {
        "patch_embedding.weight": (v.dim, config.latent_channels, 1, v.patch, v.patch),
        "patch_embedding.bias": (v.dim,),
        **_embeddings(v.dim, config.text_dim),
        **_linear("head.head", v.dim, config.latent_channels * v.patch**2),
        "head.modulation": (1, 2, v.dim),
    }
    for i, kind in enumerate(v.kinds):
        block, delta = f"blocks.{i}", f"blocks.{i}.gated_delta"
        shapes |= _block(block, v.dim, v.ffn_dim, width)
        if kind != "gdn":
            shapes |= _attention(f"{block}.self_attn", v.dim, width)
            continue
        for name, outputs in (("q", keys), ("k", keys), ("v", values), ("g", values)):
            shapes[f"{delta}.{name}_proj.weight"] = (outputs, v.dim)
        for name, outputs in (("q", keys), ("k", keys), ("v", values)):
            shapes[f"{delta}.{name}_conv1d.weight"] = (outputs, 1, KERNEL)
        shapes |= {f"{delta}.{name}_proj.weight": (v.delta_heads, v.dim) for name in "ab"}
        shapes |= {f"{delta}.{name}": (v.delta_heads,) for name in ("A_log", "dt_bias")}
        shapes[f"{delta}.o_norm.weight"] = (v.delta_head_dim * v.delta_expand_v,)
        shapes[f"{delta}.o_proj.weight"] = (v.dim, values)
    found = {VIDEO + name: shape for name, shape in shapes.items()}
    if config.action is None:
        return found
    a = config.action
    shapes = {
        **_linear("proprio_encoder.0", config.proprio_dim, config.text_dim),
        **_linear("proprio_encoder.2", config.text_dim, config.text_dim),
        **_linear("action_encoder", config.action_dim, a.dim),
        **_embeddings(a.dim, config.text_dim),
        **_linear("head", a.dim, config.action_dim),
    }
    for i in range(v.layers):
        shapes |= _block(f"blocks.{i}", a.dim, a.ffn_dim, width)
        shapes |= _attention(f"blocks.{i}.self_attn", a.dim, width)
    return found | {ACTION + name: shape for name, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _embeddings(dim: int, text_dim: int) -> dict[str, tuple[int, ...]]:
    return {
        **_linear("text_embedding.0", text_dim, dim),
        **_linear("text_embedding.2", dim, dim),
        **_linear("time_embedding.0", FREQUENCIES, dim),
        **_linear("time_embedding.2", dim, dim),
        **_linear("time_projection.1", dim, 6 * dim),
    }


def _attention(name: str, dim: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **_linear(f"{name}.q", dim, width),
        **_linear(f"{name}.k", dim, width),
        **_linear(f"{name}.v", dim, width),
        **_linear(f"{name}.o", width, dim),
        f"{name}.norm_q.weight": (width,),
        f"{name}.norm_k.weight": (width,),
    }


def _block(name: str, dim: int, ffn_dim: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.modulation": (1, 6, dim),
        **_attention(f"{name}.cross_attn", dim, width),
        f"{name}.cross_attn_norm.weight": (dim,),
        f"{name}.cross_attn_norm.bias": (dim,),
        **_linear(f"{name}.ffn.0", dim, ffn_dim),
        **_linear(f"{name}.ffn.2", ffn_dim, dim),
    }


def to_kairos(keys: Iterable[str]) -> dict[str, str]:
    """Names in a published file -> our names.

    Video files come bare or under any of ``video_dit.``, ``dit.video_dit.``, ``pipe.dit.video_dit.``.

    Raises:
        CheckpointError: several of these prefixes in one file, or none and no name that we know.
    """
    names: dict[str, str] = {}
    examples: dict[str, str] = {}
    for key in keys:
        wrapper = next((w for w in WRAPPERS if key.startswith((w + VIDEO, w + ACTION))), None)
        names[key] = VIDEO + key if wrapper is None else key.removeprefix(wrapper)
        examples.setdefault("no prefix" if wrapper is None else f"prefix {(wrapper + VIDEO)!r}", key)
    if len(examples) > 1:
        found = "; ".join(f"{prefix}: {key}" for prefix, key in examples.items())
        raise CheckpointError(f"the names mix prefixes ({found}), so they are not one model's weights")
    if "no prefix" in examples and not any(key.startswith(ROOTS) for key in names):
        legal = ", ".join(f"{w}{VIDEO}" for w in WRAPPERS)
        raise CheckpointError(
            f"no Kairos transformer: names like {next(iter(names))!r} have neither one of the prefixes {legal} nor "
            f"begin with one of {', '.join(ROOTS)}"
        )
    return names


def to_published(keys: Iterable[str], prefix: str | None = None) -> dict[str, str]:
    """Our names -> names in a published file, the inverse of `to_kairos`.

    Args:
        prefix: stands before the video expert's names: ``""`` (video weights only), ``"video_dit."``,
            ``"dit.video_dit."`` or ``"pipe.dit.video_dit."``; None is the form that the release itself has, bare
            for video weights and ``"video_dit."`` for world-action weights.
    """
    keys = list(keys)
    joint = any(key.startswith(ACTION) for key in keys)
    legal = [w + VIDEO for w in WRAPPERS] + ([] if joint else [""])
    if prefix is None:
        prefix = VIDEO if joint else ""
    if prefix not in legal:
        raise ValueError(
            f"illegal prefix {prefix!r} for {'world-action' if joint else 'video'} weights; legal: {legal}"
        )
    return {key: prefix.removesuffix(VIDEO) + key if prefix else key.removeprefix(VIDEO) for key in keys}


def published_weights(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Our name -> stored tensor, from a published file, a sharded one, or a folder; only headers are read.

    Raises:
        FileNotFoundError, CheckpointError: see `weights.stored_tensors` and `to_kairos`.
    """
    stored = stored_tensors(path)
    return {name: stored[key] for key, name in to_kairos(stored).items()}


# which release ----------------------------------------------------------------------------------------------------


def identify(shapes: Shapes) -> list[str]:
    """Names of the releases that have exactly these names and shapes, given under our names."""
    return [name for name, config in RELEASES.items() if published_shapes(config) == dict(shapes)]


def suggested(file: str | os.PathLike[str]) -> set[str]:
    """Releases that agree with every hint in a file's name, or else in its folder's; all if neither says anything."""
    path = Path(file).absolute()
    for name in (path.name.lower(), path.parent.name.lower()):
        hints = [releases for pattern, releases in HINTS.items() if re.search(pattern, name)]
        if hints:
            return set(RELEASES).intersection(*hints)
    return set(RELEASES)


def choose_release(
    shapes: Shapes, file: str | os.PathLike[str], release: str | WorldActionConfig | None = None, force: bool = False
) -> WorldActionConfig:
    """The configuration of weights with these shapes, or a refusal.

    Args:
        shapes: under our names.
        file: where the weights come from; its name must not contradict the release.
        release: name of a published release, or a configuration of weights that are none of them; None: by shape.
        force: accept a contradiction between the file's name and the release.

    Raises:
        CheckpointError: nothing fits, several releases fit, the named one does not, or the file's name contradicts.
    """
    fits, hinted = identify(shapes), suggested(file)
    if isinstance(release, WorldActionConfig):
        require_same(published_shapes(release), shapes, f"{file} does not fit the configuration {release.name!r}")
        return release
    if release is None:
        if not fits:
            nearest = min(RELEASES.values(), key=lambda config: len(problems(published_shapes(config), shapes)))
            require_same(
                published_shapes(nearest),
                shapes,
                f"{file} fits no release; a model of your own needs its configuration named. "
                f"Against {nearest.name!r}, the nearest one",
            )
        if len(fits) > 1:
            likely = [name for name in fits if name in hinted]
            hint = f"\nThe file's name suggests {' or '.join(likely)}." if 0 < len(likely) < len(fits) else ""
            raise CheckpointError(
                f"{file} fits {len(fits)} releases, which differ in how they were trained and not in shape; "
                "name yours (--release):\n" + "\n".join(map(_describe, fits)) + hint
            )
        release = fits[0]
    config = get_release(release)
    other = f"; it fits {', '.join(fits)}" if fits else ""
    require_same(published_shapes(config), shapes, f"{file} is not the release {release!r}{other}")
    if release not in hinted and not force:
        says = f"its name suggests {' or '.join(sorted(hinted))}" if hinted else "its name fits no release"
        raise CheckpointError(
            f"{file} is to be {release!r}, but {says}. Weights that run under another release's settings give bad "
            "pictures without an error; if the name is wrong, force it (--force)"
        )
    return config


def _describe(name: str) -> str:
    g = RELEASES[name].generation
    return (
        f"  {name:<20} {g.height} x {g.width}, {g.frames} frames, {g.sampler} sampler, {g.steps} steps, "
        f"guidance {g.guidance:g}"
    )


def check_config(config: WorldActionConfig) -> None:
    """Compares a configuration with the release whose name it carries; names of your own are not checked.

    Raises:
        CheckpointError: another structure, text width, window rule or encoder than the release.
    """
    if config.name not in RELEASES:
        return
    found = _differences(RELEASES[config.name].to_dict(), config.to_dict())
    sampling = [line for line in found if line.startswith("generation.")]
    others = [line for line in found if line not in sampling and not line.startswith("text_source:")]
    if others:
        raise CheckpointError(
            f"the configuration calls itself {config.name!r} but differs from that release: {'; '.join(others)}. "
            "Put the values back, or give the model a name of its own"
        )
    if sampling:
        warnings.warn(f"sampling defaults differ from release {config.name!r}: {'; '.join(sampling)}", stacklevel=2)


def _differences(release: Mapping[str, Any], own: Mapping[str, Any], path: str = "") -> list[str]:
    lines = []
    for key, value in release.items():
        if isinstance(value, dict) and isinstance(own[key], dict):
            lines += _differences(value, own[key], f"{path}{key}.")
        elif value != own[key]:
            lines.append(f"{path}{key}: {own[key]}, release {value}")
    return lines
