"""A curriculum run: killed anywhere it is the same one, and what cannot work is refused before the first step."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from curriculum_parts import run, small_curriculum

from kairos_env.collect.encode import EncodeConfig, encode
from kairos_env.runs import ConfigMismatch, file_sha256
from kairos_env.training.batches import Clips
from kairos_env.training.curriculum.run import check_curriculum, robot_of, train_curriculum
from kairos_env.training.curriculum.stages import Curriculum
from kairos_env.training.data import DataConfig, load_mixture
from kairos_env.training.lineage import write_lineage
from kairos_env.training.log import TIMES
from kairos_env.training.losses import world_model_loss
from kairos_env.training.passes import LossConfig
from kairos_env.training.progress import read_checkpoint
from kairos_env.training.summary import read_summary
from kairos_env.world_model.model import WorldModel

STAGES = ("0-tokenizer", "1-films", "2-robot")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and an uninterrupted run in ``out``."""
    folder = tmp_path_factory.mktemp("curriculum")
    run(folder / "data", folder / "out")
    return folder


def curves(out: Path) -> dict[str, list[dict[str, float]]]:
    found = {}
    for stage in STAGES:
        name = "tokenizer" if stage.startswith("0") else "model"
        rows = map(json.loads, (out / stage / f"{name}.jsonl").read_text().splitlines())
        found[stage] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return found


def require_same(out: Path, whole: Path) -> None:
    assert curves(out) == curves(whole)
    one, other = (torch.load(folder / "2-robot" / "model.pt", weights_only=True) for folder in (out, whole))
    for name, value in other["ema"].items():
        torch.testing.assert_close(one["ema"][name], value, atol=0, rtol=0)
    assert file_sha256(out / "model" / "model.safetensors") == file_sha256(whole / "model" / "model.safetensors")


def test_stages_go_on_from_each_other_and_every_checkpoint_knows_its_lineage(whole: Path) -> None:
    out = whole / "out"
    lineage = json.loads((out / "model" / "training.json").read_text())["lineage"]
    assert [each["run"] for each in lineage] == list(STAGES)
    weights = [file_sha256(out / stage / "model" / "model.safetensors") for stage in STAGES]
    assert [each["parents"] for each in lineage] == [[], weights[:1], weights[1:2]]
    assert [len(each["data"]) for each in lineage] == [2, 1, 2]
    assert json.loads(read_checkpoint(out / "1-films" / "model.pt")["lineage"]) == lineage[:2]
    assert [len(rows) for rows in curves(out).values()] == [6, 3 + 1, 6 + 2]


def test_a_report_is_of_a_stage(whole: Path) -> None:
    assert read_summary(whole / "out" / "2-robot").steps("model") == 6
    with pytest.raises(FileNotFoundError, match="out is a curriculum's; name one of its stages: .*0-tokenizer, "):
        read_summary(whole / "out")


def test_only_what_a_stage_names_learns(whole: Path) -> None:
    first, second, last = (WorldModel.from_pretrained(whole / "out" / stage / "model") for stage in STAGES)
    changed = {name for name, value in first.state_dict().items() if not torch.equal(value, second.state_dict()[name])}
    assert {name.split(".")[0] for name in changed} == {"text", "mixture", "heads", "renderer"}
    assert not any(name.startswith("mixture.action_dit") for name in changed)
    later = {name for name, value in second.state_dict().items() if not torch.equal(value, last.state_dict()[name])}
    assert any(name.startswith("mixture.action_dit") for name in later)
    assert not any(name.startswith("tokenizer") for name in later)
    assert last.tasks == {"push": "push the red cube onto the green disc"}
    assert len(last.starts) >= 1 and not second.starts  # nobody starts from a film


def test_stopped_at_stage_borders_it_goes_on_to_the_identical_end(whole: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    curriculum = small_curriculum(whole / "data", tmp_path)
    for border in ("1-films", "2-robot"):

        def stop(folder: Path, border: str = border) -> None:
            if folder.name == border and (folder / "model").exists():
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_curriculum(curriculum, report=stop)
    told: list[str] = []
    train_curriculum(curriculum, told.append)
    assert [line for line in told if line.endswith("done before")] == [f"{s}: done before" for s in STAGES]
    require_same(tmp_path, whole / "out")


@pytest.mark.slow
def test_killed_at_twenty_moments_it_is_the_identical_curriculum(whole: Path, tmp_path: Path) -> None:
    """Twelve random steps, and eight borders: a checkpoint, a model or a stage's folder has just appeared."""
    rng, started = random.Random(0), multiprocessing.get_context("fork")
    borders = [f"{stage}/{file}" for stage in STAGES for file in ("config.json", "lineage.json", "model")][:8]
    moments: list[str | int] = sorted(rng.sample(range(1, 18), 12))  # rows of all logs, of 18
    for place, border in enumerate(borders):
        moments.insert(int(place * 2.5), border)

    def reached(moment: str | int) -> bool:
        if isinstance(moment, str):
            return (tmp_path / moment).exists()
        logs = (tmp_path / stage / f"{name}.jsonl" for stage in STAGES for name in ("tokenizer", "model"))
        return sum(log.read_bytes().count(b"\n") for log in logs if log.exists()) >= moment

    killed = 0
    for moment in moments:
        process = started.Process(target=run, args=(whole / "data", tmp_path))
        process.start()
        while process.is_alive() and not reached(moment):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed == 20
    run(whole / "data", tmp_path)
    require_same(tmp_path, whole / "out")


def test_another_curriculum_does_not_go_on(whole: Path) -> None:
    curriculum = small_curriculum(whole / "data", whole / "out")
    stages = (curriculum.stages[0], dataclasses.replace(curriculum.stages[1], batch=5))
    with pytest.raises(ConfigMismatch, match=r"another curriculum.*\n  stages\.2\.batch: 4 there, 5 now$"):
        train_curriculum(dataclasses.replace(curriculum, stages=stages))


def test_a_stage_whose_parent_has_changed_does_not_go_on(whole: Path, tmp_path: Path) -> None:
    curriculum = small_curriculum(whole / "data", tmp_path)
    train = dataclasses.replace(curriculum.train, out=str(tmp_path))
    config = dataclasses.replace(train, init=str(whole / "out" / "1-films" / "model"))
    write_lineage(tmp_path, config, {})
    other = dataclasses.replace(train, init=str(whole / "out" / "2-robot" / "model"))
    with pytest.raises(ConfigMismatch, match="went on from weights .* has .* now"):
        write_lineage(tmp_path, other, {})


def test_a_gate_ends_a_stage_before_its_last_step(whole: Path) -> None:
    rows = curves(whole / "out")["1-films"]
    assert [row["step"] for row in rows] == [0, 1, 2, 2]  # the validation after three steps of six is good enough
    assert read_checkpoint(whole / "out" / "1-films" / "model.pt")["step"] == 3


# what is refused before the first step --------------------------------------------------------------------------------


def no_data(c: Curriculum) -> Curriculum:
    return with_stage(c, data=DataConfig(path=""))


def with_stage(c: Curriculum, **changes: object) -> Curriculum:
    return dataclasses.replace(c, stages=(dataclasses.replace(c.stages[0], **changes), *c.stages[1:]))  # type: ignore[arg-type]


def long_clips(c: Curriculum) -> Curriculum:
    return with_stage(c, loss=LossConfig(frames=40))


def films_alone(c: Curriculum) -> Curriculum:
    return dataclasses.replace(c, stages=c.stages[:1])


def nothing_there(c: Curriculum) -> Curriculum:
    return with_stage(c, data=DataConfig(path="/nowhere/films"))


def no_caption(c: Curriculum) -> Curriculum:
    films = Path(c.stages[0].data.path)
    other = films.parent / "uncaptioned"
    other.mkdir(exist_ok=True)
    (other / "films.jsonl").write_text(json.dumps({"video": "../films/0.mp4"}) + "\n")
    return with_stage(c, data=DataConfig(path=str(other)))


def wordy(c: Curriculum) -> Curriculum:
    films = Path(c.stages[0].data.path)
    other = films.parent / "wordy"
    other.mkdir(exist_ok=True)
    row = {"video": "../films/0.mp4", "caption": "and so on " * 20}
    (other / "films.jsonl").write_text(json.dumps(row) + "\n")
    return with_stage(c, data=DataConfig(path=str(other)))


def preferences(c: Curriculum) -> Curriculum:
    return with_stage(c, objective="preference")


def published(c: Curriculum) -> Curriculum:
    return dataclasses.replace(c, frames_per_latent=4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_data, "no data for films: name recordings in a file"),
        (long_clips, r"stage 'films': its mixture cannot be met: clips have 44 frames, .* has 15 observations"),
        (films_alone, "stage 'films': .* holds films, which nobody's actions lead on"),
        (nothing_there, "stage 'films': .*/nowhere/films"),
        (no_caption, r"stage 'films': .*films.jsonl, entry 1 has no 'caption' \(video\)"),
        (wordy, r"stage 'films': .*wordy: instruction has 200 bytes, this model takes at most 128"),
        (preferences, "stage 'films' has the objective 'preference', which can be planned but not yet trained"),
        (published, "4 pictures share a latent frame: .* not yet trained"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(
    spoil: Callable[[Curriculum], Curriculum], message: str, whole: Path, tmp_path: Path
) -> None:
    curriculum = spoil(small_curriculum(whole / "data", tmp_path / "out"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_curriculum(curriculum)
    assert not (tmp_path / "out").exists()


def test_latents_of_another_tokenizer_are_refused(whole: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode(EncodeConfig(data=str(whole / "data" / "robot"), model=str(whole / "out" / "model"), out=str(cache)), False)
    curriculum = small_curriculum(whole / "data", tmp_path / "out")
    own = dataclasses.replace(curriculum.stages[1], data=DataConfig(path=str(cache)))
    spoilt = dataclasses.replace(curriculum, stages=(curriculum.stages[0], own))
    with pytest.raises(ValueError, match=r"stage 'robot': the latents of .* another tokenizer.* trains one of its own"):
        train_curriculum(spoilt)
    go_on = dataclasses.replace(curriculum.train, init=str(whole / "out" / "model"))
    fine = dataclasses.replace(spoilt, train=go_on)
    check_curriculum(fine, robot_of(fine))


def test_several_processes_are_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"one of 3 processes \(WORLD_SIZE\), but a training runs in one"):
        train_curriculum(small_curriculum(whole / "data", tmp_path / "out"))


def test_clips_without_actions_teach_no_action(whole: Path) -> None:
    """Films in a mixture are masked: what they teach does not depend on what stands in the place of actions."""
    model = WorldModel.from_pretrained(whole / "out" / "model")
    curriculum = small_curriculum(whole / "data", whole / "out")
    mixture = load_mixture(curriculum.stages[1].data)
    films = [episode for episode in mixture.episodes if not episode.acts]
    assert len(films) == 6 and {e.instruction for e in films} == {"wander"}
    values = []
    for middle in (0.0, 0.03):
        shifted = [dataclasses.replace(e, actions=np.full_like(e.actions, middle)) for e in films]
        clips, generator = Clips(model, shifted), torch.Generator().manual_seed(0)
        batch = clips.sample(4, 8 + model.chunk_length, generator)
        losses = world_model_loss(model, batch, LossConfig(frames=8), generator)[1]
        assert losses["policy"] == losses["inverse"] == losses["proprio"] == 0
        values.append(losses)
    assert values[0]["video"] > 0 and values[0] == values[1]
