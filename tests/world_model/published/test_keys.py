"""Published weights: names and shapes, key maps, strict streaming loading, releases, folders, `kairos convert`."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import kairos_env
from kairos_env.cli.main import main as kairos
from kairos_env.world_model.config import TokenizerConfig, WorldActionConfig
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.published import folder as model_folder
from kairos_env.world_model.published.folder import convert, export, read_folder, save_parts
from kairos_env.world_model.published.keys import (
    HINTS,
    check_config,
    choose_release,
    identify,
    published_shapes,
    published_weights,
    suggested,
    to_kairos,
    to_published,
)
from kairos_env.world_model.published.passes import build_transformer
from kairos_env.world_model.published.releases import RELEASES, get_release, miniature
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.tokenizers.image import Tokenizer
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE
from kairos_env.world_model.weights import CheckpointError, load_weights, read_tensors, stored_tensors

VIDEO_PREFIXES = ("", "video_dit.", "dit.video_dit.", "pipe.dit.video_dit.")
SAME_SHAPE = ["4b", "4b-robot", "4b-robot-distilled", "4b-720p"]


load = functools.partial(WorldActionModel.from_pretrained, dtype=None)  # as stored


def small(release: str) -> WorldActionConfig:
    return miniature(release, layers=4)


def random_weights(config: WorldActionConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every published name and shape, under our names."""
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(shape, generator=generator).to(dtype) for k, shape in published_shapes(config).items()}


def publish(weights: dict[str, Tensor], file: Path, prefix: str | None = None) -> Path:
    """A file as its authors write it: by the safetensors library, under the published names."""
    names = to_published(weights, prefix)
    save_file({names[k]: v for k, v in weights.items()}, file)
    return file


def publish_sharded(weights: dict[str, Tensor], folder: Path, shards: int = 3) -> Path:
    folder.mkdir()
    names = to_published(weights)
    where = {}
    for i in range(shards):
        part = {names[k]: v for k, v in list(weights.items())[i::shards]}
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def assert_identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype and torch.equal(value, b[name]), name


def transformer_weights(model: WorldActionModel) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in model.transformer.state_dict().items()}


# names and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [get_release, miniature, small])
@pytest.mark.parametrize("release", RELEASES)
def test_our_module_has_exactly_the_published_names_and_shapes(
    release: str, size: Callable[[str], WorldActionConfig]
) -> None:
    config = size(release)
    with torch.device("meta"):
        state = build_transformer(config).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == published_shapes(config)


@pytest.mark.parametrize(
    ("release", "video", "action"),
    [
        ("4b", 4_050_613_120, 0),
        ("4b-3.1-robot", 4_046_680_960, 0),
        ("4b-libero", 4_050_613_120, 966_062_087),
        ("4b-robotwin", 4_046_680_960, 955_849_742),
    ],
)
def test_published_parameter_counts(release: str, video: int, action: int) -> None:
    shapes = published_shapes(get_release(release))
    counts = {"video": 0, "action": 0}
    for name, shape in shapes.items():
        counts[name.split("_dit.")[0]] += prod(shape)
    assert counts == {"video": video, "action": action}
    assert sum(counts.values()) in (4_050_613_120, 4_046_680_960, 5_016_675_207, 5_002_530_702)


def test_some_published_shapes_spelled_out() -> None:
    shapes = published_shapes(get_release("4b-libero"))
    assert shapes["video_dit.patch_embedding.weight"] == (2560, 16, 1, 2, 2)
    assert shapes["video_dit.text_embedding.0.weight"] == (2560, 3584)
    assert shapes["video_dit.time_projection.1.weight"] == (15360, 2560)
    assert shapes["video_dit.blocks.3.gated_delta.v_proj.weight"] == (10240, 2560)
    assert shapes["video_dit.blocks.31.gated_delta.k_conv1d.weight"] == (5120, 1, 4)
    assert shapes["video_dit.blocks.7.gated_delta.o_norm.weight"] == (512,)
    assert shapes["video_dit.head.modulation"] == (1, 2, 2560)
    assert "video_dit.blocks.3.self_attn.q.weight" not in shapes and "video_dit.blocks.2.self_attn.q.weight" in shapes
    assert shapes["action_dit.blocks.3.self_attn.o.weight"] == (1024, 2560)
    assert shapes["action_dit.proprio_encoder.0.weight"] == (3584, 8)
    assert shapes["action_dit.head.weight"] == (7, 1024)
    assert "action_dit.head.modulation" not in shapes and "action_dit.patch_embedding.weight" not in shapes


@pytest.mark.parametrize("release", RELEASES)
def test_key_maps_are_inverse(release: str) -> None:
    ours = list(published_shapes(small(release)))
    joint = RELEASES[release].action is not None
    for prefix in [None, *VIDEO_PREFIXES[1:], *([] if joint else [""])]:
        there = to_published(ours, prefix)
        back = to_kairos(there.values())
        assert [back[there[k]] for k in ours] == ours
        lead = there["video_dit.patch_embedding.weight"].removesuffix("patch_embedding.weight")
        assert lead == (("video_dit." if joint else "") if prefix is None else prefix)
    if joint:
        assert to_published(ours, "pipe.dit.video_dit.")["action_dit.head.bias"] == "pipe.dit.action_dit.head.bias"


def test_mixed_unknown_and_illegal_prefixes() -> None:
    with pytest.raises(CheckpointError, match=r"mix prefixes.*'video_dit\.'.*no prefix"):
        to_kairos(["video_dit.head.head.bias", "patch_embedding.bias"])
    with pytest.raises(CheckpointError, match="mix prefixes"):
        to_kairos(["dit.video_dit.head.head.bias", "video_dit.patch_embedding.bias"])
    with pytest.raises(CheckpointError, match=r"'model\.blocks\.0\.modulation'.*neither one of the prefixes pipe\.dit"):
        to_kairos(["model.blocks.0.modulation", "model.head.head.bias"])
    with pytest.raises(ValueError, match=r"illegal prefix 'model\.' for video weights"):
        to_published(["video_dit.head.head.bias"], "model.")
    with pytest.raises(ValueError, match="illegal prefix '' for world-action weights"):
        to_published(["video_dit.head.head.bias", "action_dit.head.bias"], "")


# round trips ------------------------------------------------------------------------------------------------------

CASES = [(release, prefix) for release in SAME_SHAPE[:1] + ["4b-3.1-robot"] for prefix in VIDEO_PREFIXES]
CASES += [(release, prefix) for release in ("4b-libero", "4b-robotwin") for prefix in VIDEO_PREFIXES[1:]]
CASES += [(release, "") for release in SAME_SHAPE[1:]]


@pytest.mark.parametrize(("release", "prefix"), CASES)
def test_published_to_ours_and_back_bit_for_bit(release: str, prefix: str, tmp_path: Path) -> None:
    config = small(release)
    weights = random_weights(config, torch.bfloat16 if prefix == "video_dit." else torch.float32)
    file = publish(weights, tmp_path / "model.safetensors", prefix)
    assert convert(file, tmp_path / "ours", release=config) == config
    model = load(tmp_path / "ours")
    assert model.config == config and not model.training
    assert_identical(transformer_weights(model), weights)
    export(tmp_path / "ours", tmp_path / "again.safetensors", prefix)
    assert_identical(load_file(tmp_path / "again.safetensors"), load_file(file))


@pytest.mark.parametrize("whole", [True, False])
def test_sharded_weights_by_index_and_by_folder(whole: bool, tmp_path: Path) -> None:
    config = small("4b-libero")
    weights = random_weights(config)
    index = publish_sharded(weights, tmp_path / "published")
    convert(index.parent if whole else index, tmp_path / "ours", release=config)
    assert_identical(transformer_weights(load(tmp_path / "ours")), weights)


def test_our_shards_are_bounded_and_readable_by_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kairos_env.world_model import weights as files

    config = small("4b-libero")
    weights = random_weights(config)
    original = files.write_sharded
    monkeypatch.setattr(model_folder, "write_sharded", lambda *a, **k: original(*a, **k, limit=10**5))
    model = WorldActionModel.from_release(config)
    load_weights(model.transformer, weights)
    save_parts(model, tmp_path / "ours")
    folder = tmp_path / "ours" / "transformer"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    found: dict[str, Tensor] = {}
    for name in names:
        shard = load_file(folder / name)
        assert len(shard) == 1 or sum(v.nbytes for v in shard.values()) <= 10**5
        assert all(index["weight_map"][k] == name for k in shard)
        found |= shard
    assert_identical(found, weights)
    assert_identical(transformer_weights(load(tmp_path / "ours")), weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_casting_on_the_way(dtype: torch.dtype, tmp_path: Path) -> None:
    config = small("4b-robotwin")
    weights = random_weights(config)
    file = publish(weights, tmp_path / "model.safetensors")
    convert(file, tmp_path / "ours", release=config, dtype=dtype)
    cast = {k: v.to(dtype) for k, v in weights.items()}
    assert_identical(transformer_weights(load(tmp_path / "ours")), cast)
    half = {k: v.to(torch.float16) for k, v in cast.items()}
    assert_identical(transformer_weights(load(tmp_path / "ours", dtype=torch.float16)), half)
    with pytest.raises(CheckpointError, match="says float16, but the weights are"):
        data = json.loads((tmp_path / "ours" / "config.json").read_text())
        (tmp_path / "ours" / "config.json").write_text(json.dumps(data | {"dtype": "float16"}))
        read_folder(tmp_path / "ours")


def test_mixed_dtypes_stay_aligned_and_identical(tmp_path: Path) -> None:
    config = small("4b")
    weights = random_weights(config)
    for i, name in enumerate(weights):
        weights[name] = weights[name].to((torch.bfloat16, torch.float32, torch.float64)[i % 3])
    convert(publish(weights, tmp_path / "model.safetensors"), tmp_path / "ours", release=config)
    assert read_folder(tmp_path / "ours")[1]["dtype"] == "bfloat16 and float32 and float64"
    model = load(tmp_path / "ours")
    assert_identical(transformer_weights(model), weights)


def test_a_model_computes_the_same_after_saving(tmp_path: Path) -> None:
    config = miniature("4b-libero")
    model = WorldActionModel.from_release(config)
    load_weights(model.transformer, {k: 0.1 * v for k, v in random_weights(config).items()})
    model.save_pretrained(tmp_path / "ours")
    again = WorldActionModel.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    latents, context = torch.randn(1, 3, 16, 4, 4), Context(torch.randn(1, 5, 48))
    sigma = torch.tensor([[0.0, 0.5, 0.5]])
    a, b = (m.velocity(latents, sigma, context, history=1) for m in (model, again))
    assert torch.equal(a, b) and a.abs().sum() > 0
    model.save_pretrained(tmp_path / "ours")  # an older folder is replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours"]


_MEASURE = """
import sys, torch
from pathlib import Path
from kairos_env.world_model.weights import load_weights, stored_tensors, write_tensors

def peak():  # of this process since the last reset, in bytes
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def restart():
    Path("/proc/self/clear_refs").write_text("5")
    return peak()

def grown(act):  # beyond the start of the program
    restart()
    act()
    return peak() - start

def layers():
    return torch.nn.Sequential(*(torch.nn.Linear(2048, 1024) for _ in range(32)))

file = Path(sys.argv[1])
one = torch.ones(1)
one.expand(8, 8).to(torch.bfloat16, copy=True)
start = restart()
with torch.device("meta"):
    module = layers()
write_tensors(file, {name: one.expand(value.shape) for name, value in module.state_dict().items()}, {})
loading = grown(lambda: load_weights(module, stored_tensors(file), torch.bfloat16))
total = sum(p.nbytes for p in module.parameters())
assert all((p == 1).all() for p in module.parameters())
copying = grown(lambda: write_tensors(file.with_suffix(".copy"), stored_tensors(file), {})) - total
print(total, file.stat().st_size, loading, copying)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_loading_and_copying_never_hold_two_copies(tmp_path: Path) -> None:
    program = [sys.executable, "-c", _MEASURE, str(tmp_path / "model.safetensors")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, stored, loading, copying = map(int, done.stdout.split())
    assert stored > 2e8 and stored > 1.9 * total  # float32 in the file, bfloat16 in memory
    assert 0.9 * total < loading < 1.3 * total
    assert copying < 0.3 * total


# refusals ---------------------------------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_are_counted_and_listed_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("4b-libero")
    weights = random_weights(config)
    for name in [k for k in weights if k.startswith("action_dit.blocks.2.")]:
        del weights[name]
    weights["video_dit.img_emb.proj.0.weight"] = torch.zeros(3)
    weights["video_dit.head.head.bias"] = torch.zeros(65)
    file = publish(weights, tmp_path / "model.safetensors")
    with torch.device("meta"):
        module = build_transformer(config)
    monkeypatch.setattr("kairos_env.world_model.weights.read_tensors", lambda source: pytest.fail("read too early"))
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, published_weights(file))
    text = str(caught.value)
    assert "27 missing, 1 extra, 1 misshapen" in text and "and 9 more" in text
    assert "missing action_dit.blocks.2.cross_attn.k.weight (64, 32)" in text
    assert len(text.splitlines()) == 22
    few = {k: v for k, v in random_weights(config).items() if k != "action_dit.head.bias"}
    few["video_dit.new"] = few["video_dit.head.head.bias"] = torch.zeros(65)
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, few, what="wrong file")
    assert str(caught.value).splitlines() == [
        "wrong file: 1 missing, 1 extra, 1 misshapen",
        "  missing action_dit.head.bias (7,)",
        "  extra video_dit.new (65,)",
        "  misshapen video_dit.head.head.bias: file (65,), model (64,)",
    ]


def test_whatever_no_file_stores_must_not_stay_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2)
        module.register_buffer("table", torch.zeros(2), persistent=False)
    with pytest.raises(RuntimeError, match="no file stores table"):
        load_weights(module, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})


def test_unreadable_files_are_explained(tmp_path: Path) -> None:
    weights = random_weights(small("4b"))
    file = publish(weights, tmp_path / "model.safetensors")
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole[:100], b"", b"\0" * 64, whole + b"\0" * 8):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="unreadable or truncated"):
            published_weights(file)
    with pytest.raises(FileNotFoundError, match="no weights .*absent"):
        published_weights(tmp_path / "absent.safetensors")
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="other formats can carry code"):
        published_weights(tmp_path / "model.pth")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds neither a \.safetensors file nor"):
        published_weights(empty)
    for name in ("a", "b"):
        (empty / f"{name}.safetensors").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"2 candidates \(a.safetensors, b.safetensors\): name one"):
        published_weights(empty)
    save_file({"head.head.bias": torch.zeros(64, dtype=torch.int8)}, file)
    with pytest.raises(CheckpointError, match="stored as I8.*take the unquantised weights"):
        published_weights(file)


def test_broken_indices_are_explained(tmp_path: Path) -> None:
    index = publish_sharded(random_weights(small("4b")), tmp_path / "w")
    table = json.loads(index.read_text())["weight_map"]
    shards = sorted(set(table.values()))
    first = min(table)

    def written(weight_map: object) -> Path:
        index.write_text(json.dumps({"weight_map": weight_map}))
        return index

    with pytest.raises(CheckpointError, match="promises 1 tensors that no shard has: blocks.9.modulation"):
        stored_tensors(written(table | {"blocks.9.modulation": shards[0]}))
    with pytest.raises(CheckpointError, match="says None for"):
        stored_tensors(written({k: v for k, v in table.items() if k != first}))
    with pytest.raises(CheckpointError, match=f"but it lies in {table[first]}"):
        stored_tensors(written(table | {first: next(s for s in shards if s != table[first])}))
    with pytest.raises(CheckpointError, match="no index of shards"):
        stored_tensors(written(["a"]))
    index.write_text("{")
    with pytest.raises(CheckpointError, match="no index of shards"):
        stored_tensors(index)
    written(table)
    (index.parent / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of 3 shards: {shards[1]}"):
        stored_tensors(index)


def test_a_file_that_shrinks_while_it_is_read_is_noticed_at_the_next_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kairos_env.world_model.weights.MAPPED", 1)
    file = publish(random_weights(small("4b")), tmp_path / "model.safetensors")
    reading = read_tensors(published_weights(file))
    next(reading)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="truncated"):
        next(reading)


# releases ---------------------------------------------------------------------------------------------------------


def full(release: str) -> dict[str, tuple[int, ...]]:
    return published_shapes(get_release(release))


@pytest.mark.parametrize("release", RELEASES)
def test_releases_are_identified_by_shape(release: str) -> None:
    assert identify(full(release)) == (SAME_SHAPE if release in SAME_SHAPE else [release])
    assert identify(published_shapes(miniature(release))) == []


def test_equal_shapes_must_be_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        choose_release(full("4b"), "x/model.safetensors")
    text = str(caught.value)
    assert "fits 4 releases" in text and "--release" in text and "suggests" not in text
    assert "4b-720p              704 x 1280, 81 frames, euler sampler, 50 steps, guidance 5" in text
    assert "4b-robot-distilled   480 x 640, 81 frames, dmd sampler, 4 steps, guidance 1" in text
    with pytest.raises(CheckpointError, match=r"suggests 4b-robot or 4b-robot-distilled\."):
        choose_release(full("4b"), "x/kairos-robot-4B-480P.safetensors")
    with pytest.raises(CheckpointError, match=r"suggests 4b-720p\."):
        choose_release(full("4b"), "kairos-sensenova-4B-720P/model.safetensors")
    assert choose_release(full("4b"), "x/model.safetensors", "4b-720p") is RELEASES["4b-720p"]
    assert choose_release(full("4b-libero"), "x/model.safetensors") is RELEASES["4b-libero"]


def test_a_release_of_another_shape_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not the release '4b-robotwin'; it fits 4b-libero: 0 missing") as caught:
        choose_release(full("4b-libero"), "x/m.safetensors", "4b-robotwin")
    assert "misshapen action_dit.action_encoder.weight: file (1024, 7), model (1024, 14)" in str(caught.value)
    with pytest.raises(CheckpointError, match="missing action_dit.action_encoder.bias"):
        choose_release(full("4b"), "x/m.safetensors", "4b-libero")
    with pytest.raises(ValueError, match="unknown release '4b-liberro'.*did you mean '4b-libero'"):
        choose_release(full("4b-libero"), "x/m.safetensors", "4b-liberro")
    shapes = full("4b-libero") | {"action_dit.head.bias": (9,)}
    with pytest.raises(CheckpointError, match="fits no release.*Against '4b-libero', the nearest one: 0 missing, 0 ex"):
        choose_release(shapes, "x/m.safetensors")


@pytest.mark.parametrize(
    ("name", "releases"),
    [
        ("kairos-robot-4B-480P-distilled.safetensors", {"4b-robot-distilled"}),
        ("kairos-4b-480p-dmd.safetensors", {"4b-robot-distilled"}),
        ("kairos-4B-robot-RoboTwin2.0.safetensors", {"4b-robotwin"}),
        ("kairos-4B-robot-LIBERO-plus.safetensors", {"4b-libero"}),
        ("kairos-sensenova-4B-480P-pretrained", {"4b"}),
        ("kairos-sensenova-4B-720P/model.safetensors", {"4b-720p"}),
        ("kairos-common-4B-720P-16fps.safetensors", {"4b-720p"}),
        ("kairos-common-4B-480P-16fps.safetensors", {"4b"}),
        ("kairos-robot-4B-480P-16fps-distilled.safetensors", {"4b-robot-distilled"}),
        ("kairos-4B-robot-3.1-480P.safetensors", {"4b-3.1-robot", "4b-libero", "4b-robotwin"}),
        ("robot-720P.safetensors", set()),
        ("weights/model.safetensors", set(RELEASES)),
    ],
)
def test_hints_in_file_names(name: str, releases: set[str]) -> None:
    assert suggested(Path("/x") / name) == releases
    assert set().union(*HINTS.values()) <= RELEASES.keys()


def test_weights_deep_in_a_downloaded_repository_are_found(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from kairos_env.world_model.weights import stored_tensors

    deep = tmp_path / "models" / "robot"
    deep.mkdir(parents=True)
    save_file({"blocks.0.modulation": torch.zeros(2)}, deep / "kairos-robot-4B-480P-16fps.safetensors")
    assert list(stored_tensors(tmp_path)) == ["blocks.0.modulation"]
    save_file({"blocks.0.modulation": torch.zeros(2)}, deep / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"2 candidates \(models/robot/kairos-robot.*name one of them"):
        stored_tensors(tmp_path)


def test_a_contradicting_file_name_must_be_forced() -> None:
    name = "x/kairos-robot-4B-480P-distilled.safetensors"
    with pytest.raises(CheckpointError, match="is to be '4b-robot', but its name suggests 4b-robot-distilled.*--force"):
        choose_release(full("4b-robot"), name, "4b-robot")
    assert choose_release(full("4b-robot"), name, "4b-robot", force=True) is RELEASES["4b-robot"]
    with pytest.raises(CheckpointError, match="its name suggests 4b-robotwin"):
        choose_release(full("4b-libero"), "x/RoboTwin.safetensors")
    with pytest.raises(CheckpointError, match="its name fits no release"):
        choose_release(full("4b"), "x/robot-720p.safetensors", "4b-720p")


def test_a_configuration_that_differs_from_its_release(recwarn: pytest.WarningsRecorder) -> None:
    libero = get_release("4b-libero")
    check_config(libero)
    check_config(dataclasses.replace(libero, text_source="/models/qwen"))
    assert not recwarn
    with pytest.warns(UserWarning, match="sampling defaults differ.*generation.action_steps: 20, release 10"):
        check_config(dataclasses.replace(libero, generation=dataclasses.replace(libero.generation, action_steps=20)))
    other = dataclasses.replace(libero, window_unit="token", video=dataclasses.replace(libero.video, dilation=6))
    with pytest.raises(CheckpointError, match="video.dilation: 6, release 4; window_unit: token, release frame"):
        check_config(other)
    check_config(dataclasses.replace(other, name="mine"))


# folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = small("4b-libero")
    convert(publish(random_weights(config), tmp_path / "libero.safetensors"), tmp_path / "ours", release=config)
    return tmp_path / "ours"


def edited(folder: Path, change: Callable[[dict], object]) -> Path:  # type: ignore[type-arg]
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def test_the_folder_names_everything(folder: Path) -> None:
    import hashlib

    data = json.loads((folder / "config.json").read_text())
    source = folder.parent / "libero.safetensors"
    assert WorldActionConfig.from_dict(data["model"]) == small("4b-libero")
    assert data["model"]["generation"]["height"] == 224 and data["model"]["text_encoder"] == "qwen2.5-vl"
    assert data["origin"] == [
        {
            "file": source.name,
            "bytes": source.stat().st_size,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    ]
    assert (data["dtype"], data["text"], data["vae"]) == ("float32", None, None) and data["kairos"]
    assert sorted(p.name for p in folder.iterdir()) == ["SHA256SUMS", "conditioning.json", "config.json", "transformer"]
    (weights,) = (folder / "transformer").glob("*.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ValueError, match=r"safetensors differs from its checksum"):
        load(folder)


def test_weights_and_configuration_of_a_folder_must_belong_together(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit its config\.json.* 0 missing, 0 extra, 3 mis") as e:
        load(edited(folder, lambda d: d["model"].update(action_dim=14)))
    assert "file (32, 7), model (32, 14)" in str(e.value)
    with pytest.raises(CheckpointError, match="calls itself '4b-libero' but differs from that release: video.dim: 64"):
        load(edited(folder, lambda d: d["model"].update(action_dim=7, name="4b-libero")))
    with pytest.raises(CheckpointError, match="unknown keys .'colour'"):
        load(edited(folder, lambda d: d["model"].update(colour="red")))
    with pytest.raises(CheckpointError, match="format 7, this version reads 1"):
        load(edited(folder, lambda d: d.update(format=7)))
    with pytest.raises(CheckpointError, match="holds no world-action model; WorldModel.from_pretrained"):
        load(edited(folder, lambda d: d.update(kind="small")))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the configuration"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="not a model folder; kairos convert makes one"):
        load(folder.parent)


def test_other_models_are_told_apart(folder: Path) -> None:
    assert WorldModel.from_pretrained(folder).clips.config == load(folder).config  # one class loads either kind
    with pytest.raises(CheckpointError, match=r"holds no world-action model; WorldModel\.from_pretrained"):
        WorldActionModel.from_pretrained(Path(kairos_env.__file__).parent / "pretrained" / "kairos-tiny")


def test_only_what_can_be_loaded_again_is_saved(tmp_path: Path) -> None:
    config = small("4b")
    model = WorldActionModel.from_release(config)
    model.transformer.video_dit.head.extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(CheckpointError, match="0 missing, 1 extra"):
        model.save_pretrained(tmp_path / "ours")
    with torch.device("meta"):
        empty = WorldActionModel(config, build_transformer(config))
    with pytest.raises(ValueError, match="only plain weights are saved"):
        empty.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="not a Tokenizer"):
        WorldActionModel.from_release(config, tokenizer=Tokenizer(TokenizerConfig())).save_pretrained(tmp_path / "ours")
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("4b")
    file = publish(random_weights(config), tmp_path / "model.safetensors")
    target = tmp_path / "deep" / "ours"
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    left = target.with_name(f".ours.{done.pid}.tmp")
    left.mkdir(parents=True)
    (left / "left").write_text("from a run that was killed")

    def stop(*args: object) -> None:
        assert not left.exists()
        assert (target.with_name(f".ours.{os.getpid()}.tmp") / "transformer" / "model.safetensors.index.json").exists()
        assert not target.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "_sha256", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(file, target, release=config)
    assert not list(target.parent.iterdir())
    convert(file, target, release=config)
    assert [p.name for p in target.parent.iterdir()] == ["ours"]
    with pytest.raises(FileExistsError, match="ours exists; remove it"):
        convert(file, target, release=config)
    with pytest.raises(FileExistsError, match="is no model folder"):
        WorldActionModel.from_release(config).save_pretrained(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 10})())
    with pytest.raises(OSError, match="needs 0.0 GB, but 0.0 GB are free"):
        convert(file, tmp_path / "other", release=config)
    assert not (tmp_path / "other").exists()


def test_the_video_tokenizer_travels_in_the_folder(tmp_path: Path) -> None:
    config = small("4b")
    vae = VideoVAE.random(width=8)
    torch.save(vae.published_weights(), tmp_path / "Wan2.1_VAE.pth")
    file = publish(random_weights(config), tmp_path / "model.safetensors")
    convert(file, tmp_path / "ours", release=config, vae=tmp_path / "Wan2.1_VAE.pth")
    model = load(tmp_path / "ours")
    assert isinstance(model.tokenizer, VideoVAE)
    assert_identical(dict(model.tokenizer.published_weights()), dict(vae.published_weights()))
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", dtype=torch.bfloat16)
    assert isinstance(again.tokenizer, VideoVAE) and again.tokenizer.dtype == torch.bfloat16
    assert load(tmp_path / "again", vae=False).tokenizer is None
    (tmp_path / "again" / "vae" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="vae/model.safetensors"):
        load(tmp_path / "again")
    assert load(tmp_path / "again", vae=tmp_path / "Wan2.1_VAE.pth").tokenizer is not None


class Recorded:
    """Stands for a Qwen encoder: remembers how it was asked for."""

    def __init__(self, source: object, kind: str, device: object, settings: object) -> None:
        self.source, self.kind, self.settings, self.text_dim = source, kind, settings, 48

    def encode(self, prompts: object, images: object = None) -> Context:
        return Context(torch.zeros(1, 1, 48))


def test_the_text_encoder_is_recorded_and_must_have_the_right_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("4b-3.1-robot")
    file = publish(random_weights(config), tmp_path / "model.safetensors")
    encoder, prompt = tmp_path / "text" / "qwen", tmp_path / "system.txt"
    encoder.mkdir(parents=True)
    prompt.write_text("Say what you see.\n")
    (encoder / "config.json").write_text(json.dumps({"text_config": {"hidden_size": 2048}}))
    with pytest.raises(CheckpointError, match="width 2048, but '4b-3.1-robot-miniature' was trained with 48"):
        convert(file, tmp_path / "ours", release=config, text=str(encoder))
    (encoder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no hidden_size"):
        convert(file, tmp_path / "ours", release=config, text=str(encoder))
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub repository"):
        convert(file, tmp_path / "ours", release=config, text="./qwen")
    (encoder / "config.json").write_text(json.dumps({"hidden_size": 48}))
    convert(file, tmp_path / "ours", release=config, text=str(encoder), system_prompt=prompt)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["text"] == "../text/qwen"
    monkeypatch.setattr(model_folder.QwenEncoder, "from_pretrained", Recorded)
    model = load(tmp_path / "ours")
    found = model.encoder.encoder  # type: ignore[union-attr]
    assert (found.source, found.kind) == (encoder, "qwen3.5")
    assert found.settings.system_text == "Say what you see."
    assert load(tmp_path / "ours", text=False).encoder is None
    model.save_pretrained(tmp_path / "deeper" / "again")
    again = load(tmp_path / "deeper" / "again").encoder.encoder  # type: ignore[union-attr]
    assert again.source == encoder and again.settings == found.settings
    convert(file, tmp_path / "hub", release=config, text="Qwen/Qwen3.5-2B")
    assert load(tmp_path / "hub").encoder.encoder.source == "Qwen/Qwen3.5-2B"  # type: ignore[union-attr]


def test_only_libero_weights_ignore_the_picture_in_the_context() -> None:
    shown = {name: model_folder.encoder_settings(config).use_image for name, config in RELEASES.items()}
    assert [name for name, image in shown.items() if not image] == ["4b-libero"]


# the command ------------------------------------------------------------------------------------------------------


def test_convert_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small("4b-robotwin")
    Path("config.json").write_text(json.dumps(config.to_dict()))
    file = str(publish(random_weights(config), tmp_path / "weights.safetensors", "pipe.dit.video_dit."))
    assert kairos(["convert", file, "--check"]) == 1
    out = capsys.readouterr().out
    assert "named like pipe.dit." in out and "problem     " in out and "fits no release" in out
    assert f"together {sum(prod(shape) for shape in published_shapes(config).values()):,}" in out
    assert kairos(["convert", file, "--release", "config.json", "--check"]) == 0
    assert "no problems" in capsys.readouterr().out and not Path("models").exists()

    assert kairos(["convert", file, "--release", "config.json", "--dtype", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "4b-robotwin-miniature: models/4b-robotwin-miniature" in out and "--vae" in out and "Qwen/Qwen3.5-2B" in out
    ours = "models/4b-robotwin-miniature"
    assert kairos(["convert", ours, "--check"]) == 0
    out = capsys.readouterr().out
    for words in ("bfloat16", "384 x 320", "actions in 30 steps", "sha256", "no problems"):
        assert words in out, out
    assert kairos(["convert", ours, "--to-published", "--dtype", "fp32", "--out", "back.safetensors"]) == 0
    back, bf16 = load_file("back.safetensors"), {k: v.bfloat16().float() for k, v in random_weights(config).items()}
    assert_identical(back, bf16)
    edited(Path(ours), lambda d: d["model"].update(action_dim=3))
    assert kairos(["convert", ours, "--check"]) == 1
    assert "problem     models/4b-robotwin-miniature/transformer does not fit" in capsys.readouterr().out


def test_requests_that_cannot_be_met(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small("4b")
    file = str(publish(random_weights(config), tmp_path / "weights.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "broken.json").write_text("[]")
    ours = str(tmp_path / "ours")
    assert kairos(["convert", file, "--release", str(tmp_path / "config.json"), "--out", ours]) == 0
    capsys.readouterr()
    for words, message in (
        ([file, "--release", "4b"], "not the release '4b'"),
        ([file, "--release", "4c"], "unknown release '4c'"),
        ([file, "--release", str(tmp_path / "broken.json")], "is no configuration of a model"),
        ([file, "--to-published"], "takes a model folder that kairos convert wrote"),
        ([file, "--prefix", "dit.video_dit."], "belongs to --to-published"),
        ([ours], "is a model folder already"),
        ([ours, "--to-published", "--out", file], "exists; name another file"),
        ([ours, "--to-published", "--prefix", "x.", "--out", str(tmp_path / "new")], "illegal prefix 'x.'"),
        ([str(tmp_path / "absent.safetensors")], "no weights"),
    ):
        assert kairos(["convert", *words]) == 2, words
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
