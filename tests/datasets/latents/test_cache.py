"""Cached latents: what was encoded comes back, nothing half-written counts, and every damage has a name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from damage import damaged
from paths import ROOT

from kairos_env.cli import main as cli
from kairos_env.collect.encode import EncodeConfig, encode
from kairos_env.datasets.conform import conform
from kairos_env.datasets.hdf5.recorded import EpisodeFile, EpisodeWriter
from kairos_env.datasets.latents.cache import CacheError, LatentCache
from kairos_env.datasets.latents.writer import LatentCacheWriter, write_episode
from kairos_env.datasets.recording import BrokenEpisode
from kairos_env.records import Camera, Episode, RobotSpec
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.training.batches import PER_EPISODE, PER_FRAME, Clips
from kairos_env.training.config import TrainConfig
from kairos_env.training.data import DataConfig, instructions, load_mixture
from kairos_env.training.loop import LoopConfig
from kairos_env.training.passes import LossConfig
from kairos_env.training.run import train
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.tokenizers.image import to_unit

SPEC = dataclasses.replace(make_spec(), cameras=(Camera("scene", 16, 16), Camera("wrist.left", 16, 16)))
LENGTHS = (5, 12, 9, 30, 2, 17)  # decisions


def episode(seed: int, steps: int, spec: RobotSpec = SPEC) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        images={c.name: rng.integers(0, 256, (steps + 1, c.height, c.width, 3), np.uint8) for c in spec.cameras},
        proprio=spec.clip_proprio(rng.normal(0, 0.1, (steps + 1, spec.proprio_dim))),
        actions=rng.uniform(spec.action_low, spec.action_high, (steps, spec.action_dim)).astype(np.float32),
        rewards=rng.random(steps, np.float32),
        success=np.zeros(steps, np.bool_),
        task="push",
        instruction="schiebe den Würfel",
        source="expert",
        condition="wide",
        seed=seed,
        labels={"object_position": rng.random((steps + 1, 3), np.float32)},
    )


def record(folder: Path, lengths: tuple[int, ...] = LENGTHS, spec: RobotSpec = SPEC) -> Path:
    with EpisodeWriter(folder / "shard_0000.hdf5", spec) as writer:
        for number, steps in enumerate(lengths):
            writer.add(episode(number, steps, spec))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording, the model that encodes it, and the cache of both."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("home")
    record(folder / "record")
    for seed, name in enumerate(("model", "other")):
        WorldModel.from_preset("debug", SPEC, TASKS, seed).save_pretrained(folder / name)
    encode(config(folder), progress=False)
    return folder


def config(home: Path, out: Path | None = None, **changes: object) -> EncodeConfig:
    return dataclasses.replace(
        EncodeConfig(str(home / "record"), str(out or home / "cache"), str(home / "model"), batch=7), **changes
    )


def copied(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "cache", tmp_path / "cache"))


def chunk(cache: Path, number: int, key: str) -> Path:
    return next((cache / f"{number:06d}" / key).glob("c.*"))


def flip(path: Path, at: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def same(a: Episode, b: Episode) -> None:
    assert len(a) == len(b) and a.latents.keys() == b.latents.keys()
    for camera, view in a.latents.items():
        assert np.array_equal(view, b.latents[camera])


# what was encoded comes back ------------------------------------------------------------------------------------------


def test_everything_but_the_pictures_comes_back(home: Path) -> None:
    model, recording, cache = (
        WorldModel.from_pretrained(home / "model"),
        EpisodeFile(home / "record"),
        LatentCache(home / "cache"),
    )
    assert cache.spec == SPEC and cache.names == recording.names and len(cache) == len(LENGTHS)
    assert cache.lengths == list(LENGTHS) and cache.origin.encoder == model.encoder_sha256
    for before, after in zip(recording, cache, strict=True):
        assert not after.images and after.cameras == {"scene", "wrist.left"} and after.encoder == model.encoder_sha256
        words = ("task", "instruction", "source", "seed", "initial_state", "condition", "label_tasks", "proprio_mask")
        for key in words:
            assert getattr(after, key) == getattr(before, key)
        for key in ("proprio", "actions", "rewards", "success"):
            new, old = getattr(after, key), getattr(before, key)
            assert new.dtype == old.dtype and np.array_equal(new, old)
        assert np.array_equal(after.labels["object_position"], before.labels["object_position"])
        for camera, view in after.latents.items():
            with torch.no_grad():
                of = model.statistics
                mean, std = (torch.tensor(x)[:, None, None] for x in (of.latent_mean, of.latent_std))
                want = (model.tokenizer.encode(to_unit(torch.from_numpy(before.images[camera]))) - mean) / std
            assert view.dtype == np.float16 and view.shape == (len(before) + 1, *want.shape[1:])
            np.testing.assert_allclose(view, want, rtol=2**-10, atol=1e-4)


def test_zarr_itself_reads_the_same(home: Path) -> None:
    import zarr

    group, cache = zarr.open_group(home / "cache", mode="r"), LatentCache(home / "cache")
    origin = group.attrs["origin"]
    assert (
        origin["recording"] == str(home / "record")
        and origin["encoder"] == WorldModel.from_pretrained(home / "model").encoder_sha256
    )
    assert group.attrs["complete"] and {"torch", "zarr", "kairos-env"} <= group.attrs["versions"].keys()
    assert RobotSpec.from_dict(group.attrs["robot"]) == SPEC
    assert sorted(group.keys()) == [f"{i:06d}" for i in range(len(LENGTHS))]
    view = group["000003/latents/wrist.left"]
    assert view.chunks == view.shape and np.array_equal(view[:], cache[3].latents["wrist.left"])
    assert np.array_equal(group["000003/success"][:], cache[3].success)


def test_a_robot_without_proprioception(home: Path, tmp_path: Path) -> None:
    record(tmp_path / "record", (4,), dataclasses.replace(SPEC, proprio=()))
    cache = encode(dataclasses.replace(config(home, tmp_path / "cache"), data=str(tmp_path / "record")), progress=False)
    assert cache[0].proprio.shape == (5, 0) and cache.lengths == [4]


def test_sizes_that_the_tokenizer_cannot_take(home: Path, tmp_path: Path) -> None:
    record(tmp_path / "record", (4,), dataclasses.replace(SPEC, cameras=(Camera("top", 20, 16),)))
    with pytest.raises(ValueError, match=r"divisible by 8; .* has top \(20 x 16\)"):
        encode(dataclasses.replace(config(home), data=str(tmp_path / "record")), progress=False)


def test_command(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "cache")
    words = ["data", "encode", "--data", str(home / "record"), "--model", str(home / "model"), "--out", out]
    assert cli.main(words) == 0
    assert "6 episodes, 81 frames" in capsys.readouterr().out
    assert cli.main([*words, "--model", str(home / "other")]) == 2
    assert "is a cache of something else" in capsys.readouterr().err
    assert cli.main(["data", "encode", "--data", out, "--model", str(home / "model"), "--out", out + "2"]) == 2
    assert "holds latents already" in capsys.readouterr().err


# nothing half-written counts ------------------------------------------------------------------------------------------


def test_goes_on_after_a_kill(home: Path, tmp_path: Path) -> None:
    """Two workers are killed somewhere in the middle; what they had finished is not touched again."""
    out = tmp_path / "cache"
    code = (
        "import sys; from kairos_env.collect.encode import *\n"
        "if __name__ == '__main__': encode(EncodeConfig(*sys.argv[1:4], batch=7, workers=2), progress=False)"
    )
    (tmp_path / "job.py").write_text(code)
    root = str(ROOT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py"), str(home / "record"), str(out), str(home / "model")],
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    while process.poll() is None and not list(out.glob("0*")):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("0*")}
    assert 0 < len(done) < len(LENGTHS)
    with pytest.raises(CacheError, match="not complete: run the same `kairos data encode` again"):
        LatentCache(out)
    (out / ".000005.1.tmp").mkdir(parents=True, exist_ok=True)  # as a kill leaves it
    cache = encode(config(home, out), progress=False)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not list(out.glob(".*"))
    for a, b in zip(cache, LatentCache(home / "cache"), strict=True):
        same(a, b)


def test_one_writer_at_a_time(home: Path, tmp_path: Path) -> None:
    origin = LatentCache(home / "cache").origin
    with (
        LatentCacheWriter(tmp_path / "cache", origin, SPEC, 6),
        pytest.raises(RuntimeError, match="another process .* is writing"),
    ):
        LatentCacheWriter(tmp_path / "cache", origin, SPEC, 6)


def test_an_episode_that_cannot_be_read_is_left_out_by_name(home: Path, tmp_path: Path) -> None:
    record(tmp_path / "record")
    with h5py.File(tmp_path / "record" / "shard_0000.hdf5", "r+") as file:
        file["data/demo_2/obs/image_scene"].id.write_direct_chunk((1, 0, 0, 0), b"nothing")
    changed = dataclasses.replace(config(home, tmp_path / "cache"), data=str(tmp_path / "record"))
    with pytest.warns(UserWarning, match=r"left out 1 broken .*\n.*demo_2"):
        cache = encode(changed, progress=False)
    assert cache.numbers == [0, 1, 3, 4, 5] and list(cache.broken) == [f"{tmp_path}/record/shard_0000.hdf5:demo_2"]
    with pytest.warns(UserWarning, match="demo_2"):
        mixture = load_mixture(DataConfig(str(tmp_path / "cache")))
    assert [e.seed for e in mixture.episodes] == cache.numbers
    assert np.array_equal(mixture.pictures(2).images["scene"], episode(3, LENGTHS[3]).images["scene"])


# damage has a name ----------------------------------------------------------------------------------------------------


def test_a_wrong_bit_is_found_when_the_episode_is_first_read(home: Path, tmp_path: Path) -> None:
    folder = copied(home, tmp_path)
    flip(chunk(folder, 3, "latents/scene"))
    flip(chunk(folder, 1, "actions"))
    cache = LatentCache(folder)
    with pytest.raises(BrokenEpisode, match=r"demo_3: 'latents/scene' .* is damaged: its checksum differs"):
        cache[3]
    with pytest.warns(UserWarning, match="left out 1 broken episode") as caught:
        assert [e.seed for e in cache] == [0, 2, 4, 5]
    assert len(caught) == 2 and sorted(name[-6:] for name in cache.broken) == ["demo_1", "demo_3"]
    again = encode(config(home, folder, verify=True), progress=False)
    assert [e.seed for e in again] == [0, 1, 2, 3, 4, 5]


def test_damage_is_named_or_does_not_matter(home: Path, tmp_path: Path) -> None:
    """Of the numbers, the episodes' descriptions and that of the whole; more of this kind was tried by hand."""
    folder = copied(home, tmp_path)
    whole = {e.seed: e for e in LatentCache(folder)}
    files = [
        folder / "zarr.json",
        folder / "000003/zarr.json",
        chunk(folder, 3, "proprio"),
        chunk(folder, 1, "actions"),
    ]
    for seed in range(80):
        path = files[seed % len(files)]
        before = path.read_bytes()
        path.write_bytes(damaged(before, seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                left = list(LatentCache(folder))
            except (CacheError, FileNotFoundError):
                left = []
        path.write_bytes(before)
        for found in left:
            same(found, whole[found.seed])
            np.testing.assert_array_equal(found.actions, whole[found.seed].actions)
            np.testing.assert_array_equal(found.proprio, whole[found.seed].proprio)


def test_caches_of_earlier_versions_have_no_checksum_of_the_whole(home: Path, tmp_path: Path) -> None:
    folder = copied(home, tmp_path)
    described = json.loads((folder / "zarr.json").read_text())
    del described["attributes"]["sha256"]
    (folder / "zarr.json").write_text(json.dumps(described))
    assert len(LatentCache(folder)) == len(LENGTHS)
    described["attributes"]["robot"]["akction"] = described["attributes"]["robot"].pop("action")
    (folder / "zarr.json").write_text(json.dumps(described))
    with pytest.raises(CacheError, match="zarr.json is damaged: 'action'"):
        LatentCache(folder)


@pytest.mark.parametrize("damage", ["short", "gone", "words"])
def test_what_is_not_whole_is_found_when_the_cache_is_opened(home: Path, tmp_path: Path, damage: str) -> None:
    folder = copied(home, tmp_path)
    if damage == "short":
        path = chunk(folder, 2, "latents/scene")
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        shutil.rmtree(folder / "000002")
    else:
        path = folder / "000002" / "zarr.json"
        path.write_text(path.read_text().replace("push", "pull"))
    with pytest.warns(UserWarning, match="000002"):
        cache = LatentCache(folder)
    assert cache.numbers == [0, 1, 3, 4, 5]
    assert encode(config(home, folder), progress=False).numbers == [0, 1, 2, 3, 4, 5]


# only its own model, robot and recording ------------------------------------------------------------------------------


def test_another_tokenizer_is_refused(home: Path) -> None:
    with pytest.raises(CacheError, match=r"tokenizer: \w{12} \(of .*/model\) made the latents, \w{12} is wanted"):
        encode(config(home, model=str(home / "other")), progress=False)


def test_statistics_are_part_of_the_encoder() -> None:
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    before = model.encoder_sha256
    model.set_statistics(dataclasses.replace(model.statistics, proprio_mean=(1.0,) * SPEC.proprio_dim))
    assert model.encoder_sha256 == before
    model.set_statistics(dataclasses.replace(model.statistics, latent_mean=(1.0,) * 4))
    assert model.encoder_sha256 != before


def test_another_robot_or_recording_is_refused(home: Path, tmp_path: Path) -> None:
    slow = dataclasses.replace(SPEC, control_rate_hz=1.0)
    with pytest.raises(CacheError, match=r"control_rate_hz: 5\.0 != 1\.0"):
        LatentCacheWriter(home / "cache", LatentCache(home / "cache").origin, slow, len(LENGTHS))
    record(tmp_path / "record", (5, 5))
    with pytest.raises(CacheError, match="recording: .* when the cache was begun"):
        encode(dataclasses.replace(config(home), data=str(tmp_path / "record")), progress=False)
    with pytest.raises(CacheError, match="not empty and no cache"):
        encode(config(home, home / "record"), progress=False)
    with pytest.raises(FileNotFoundError, match="no cache of latents"):
        LatentCache(tmp_path)
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}))
    with pytest.raises(CacheError, match="does not describe a cache"):
        LatentCache(tmp_path)


# clips ----------------------------------------------------------------------------------------------------------------


def test_clips_of_a_cache_are_those_of_its_recording(home: Path) -> None:
    model, cache = WorldModel.from_pretrained(home / "model"), LatentCache(home / "cache")
    drawn = []
    for episodes in (cache, EpisodeFile(home / "record")):
        drawn.append(Clips(model, episodes).sample(8, 6, torch.Generator().manual_seed(3)))
    for name in (*PER_FRAME, *PER_EPISODE):
        torch.testing.assert_close(*(getattr(batch, name) for batch in drawn), atol=2e-3, rtol=1e-3)
    assert drawn[0].latents.shape == (8, 6, 4, 2, 4) and drawn[0].latents.dtype == torch.float32
    assert drawn[0].texts == [["schiebe den Würfel"]] * 8 and drawn[0].view_mask.all()
    with pytest.raises(ValueError, match="made by the encoder"):
        Clips(WorldModel.from_pretrained(home / "other"), cache)


def anonymous_kib() -> int:
    """Memory of this process that is not a mapped file."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


def test_memory_does_not_grow_with_the_data(home: Path, tmp_path: Path) -> None:
    origin, spec = LatentCache(home / "cache").origin, dataclasses.replace(SPEC, cameras=SPEC.cameras[:1])
    with LatentCacheWriter(tmp_path / "cache", origin, spec, 4) as writer:
        for number in writer.missing:
            blind = dataclasses.replace(episode(number, 999, spec), images={})
            write_episode(writer.folder, number, str(number), blind, {"scene": np.ones((1000, 16, 16, 16))})
        writer.finish({})
    cache = LatentCache(tmp_path / "cache")
    assert cache.nbytes == 4 * 8_192_000
    clips = Clips(WorldModel.from_preset("debug", spec, TASKS), [dataclasses.replace(e, encoder="") for e in cache])
    generator = torch.Generator().manual_seed(0)
    clips.sample(8, 8, generator)
    before = anonymous_kib()
    for _ in range(100):
        clips.sample(8, 8, generator)
    held = list(cache)
    assert len(held) == 4 and anonymous_kib() - before < 6000


# training -------------------------------------------------------------------------------------------------------------


def test_latents_of_another_rate_are_thinned_out(home: Path) -> None:
    half = dataclasses.replace(SPEC, control_rate_hz=SPEC.control_rate_hz / 2, cameras=SPEC.cameras[1:])
    cached = LatentCache(home / "cache")[1]
    seen = conform(cached, SPEC, half)
    assert seen.latents.keys() == {"wrist.left"} and not seen.images and seen.encoder == cached.encoder
    assert np.array_equal(seen.latents["wrist.left"], cached.latents["wrist.left"][::2])


def test_training_reads_the_cache_and_only_held_out_pictures(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_mixture(DataConfig(str(home / "cache")))
    assert not any(e.images for e in data.episodes)
    looked: list[str] = []
    read = EpisodeFile._read
    monkeypatch.setattr(EpisodeFile, "_read", lambda self, *where: looked.append(where[2]) or read(self, *where))
    loop = LoopConfig(steps=2, lr=1e-3, log_every=1)
    settings = TrainConfig(
        str(tmp_path / "run"),
        validation=1,
        starts=1,
        model=loop,
        batch=2,
        loss=LossConfig(frames=3),
        init=str(home / "model"),
        init_tokenizer="keep",
    )

    def run(name: str, episodes: list[Episode], **changes: object) -> list[float]:
        here = dataclasses.replace(settings, out=str(tmp_path / name), **changes)
        train(here, episodes, SPEC, instructions(episodes), pictures=data.pictures)
        rows = [json.loads(line) for line in (tmp_path / name / "model.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row]

    cached = run("cached", data.episodes)
    # one of them for validation, one as a start; both again when expected errors are compared with theirs
    assert looked == ["demo_4", "demo_1", "demo_1", "demo_4"]
    assert WorldModel.from_pretrained(tmp_path / "cached" / "model").starts[0].images.keys() == {"scene", "wrist.left"}
    np.testing.assert_allclose(cached, run("pictures", list(EpisodeFile(home / "record"))), rtol=1e-2)
    with pytest.raises(ValueError, match="encode again with `kairos data encode --model .*other`"):
        run("other", data.episodes, init=str(home / "other"))
    with pytest.raises(ValueError, match="go on from it with `init`"):
        run("none", data.episodes, init="")
    with pytest.raises(ValueError, match="latents are of the tokenizer that made them"):
        run("trained", data.episodes, init_tokenizer="train")


def test_held_out_pictures_are_those_that_were_encoded(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "record", tmp_path / "record")
    encode(dataclasses.replace(config(home, tmp_path / "cache"), data=str(tmp_path / "record")), progress=False)
    data = load_mixture(DataConfig(str(tmp_path / "cache")))
    record(tmp_path / "record", (5, 5))
    with pytest.raises(CacheError, match="has changed since"):
        data.pictures(0)
    shutil.rmtree(tmp_path / "record")
    with pytest.raises(FileNotFoundError):
        data.pictures(0)
