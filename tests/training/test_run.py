"""A training run: exact resumption after kill -9, learning, and readable refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from moving_square import SPEC, config, moving_square, run
from paths import TESTS
from released_models import released_model

from kairos_env.runs import ConfigMismatch, FolderInUse, WriteLock
from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.config import TrainConfig
from kairos_env.training.launch import FIXED, LaunchConfig
from kairos_env.training.log import TIMES
from kairos_env.training.passes import LossConfig
from kairos_env.training.run import train
from kairos_env.training.validation import rollout_metrics
from kairos_env.world_model.model import WorldModel

TASK = {"push": TASKS["push"]}
BEFORE = (3.0256159, 2.9648259, 2.1496811, 3.1685545, 3.2360368, 2.9364903, 2.3689885, 2.9936445, 3.7352817, 2.7785695)
BEFORE = (*BEFORE, 2.5818267, 2.6904194)  # losses of this run before there were curricula; bit by bit on one machine
EPISODES = [moving_square(i) for i in range(12)]


def curve(folder: Path, stage: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.mark.slow
def test_killed_run_resumes_to_the_identical_curve(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    code = f"from pathlib import Path; from moving_square import run; run(Path({str(killed)!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    for stage, line in (("tokenizer", 6), ("model", 2), ("model", 8)):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
        metrics = killed / f"{stage}.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= line):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    model = WorldModel.from_pretrained(run(killed))
    for stage in ("tokenizer", "model"):
        assert curve(killed, stage) == curve(whole, stage)
    for a, b in zip(model.parameters(), WorldModel.from_pretrained(whole / "model").parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert len(model.starts) == 3 and model.starts[0].instruction == TASKS["push"]
    np.testing.assert_allclose([row["loss"] for row in curve(whole, "model") if "loss" in row], BEFORE, rtol=1e-3)


@pytest.mark.slow
def test_learns_what_actions_do(tmp_path: Path) -> None:
    """A minute of training on the moving square beats the copy of the first frame and follows the actions."""
    torch.set_num_threads(1)
    base = config(tmp_path / "run")
    longer = dataclasses.replace(
        base,
        tokenizer=dataclasses.replace(base.tokenizer, steps=300, lr=4e-3, checkpoint_every=300),
        tokenizer_batch=16,
        model=dataclasses.replace(base.model, steps=300, lr=4e-3, checkpoint_every=300),
        batch=16,
        sample_every=1000,
    )
    episodes = [moving_square(i) for i in range(80)]
    model = WorldModel.from_pretrained(train(longer, episodes, SPEC, {"push": TASKS["push"]}))
    unseen = [moving_square(1000 + i) for i in range(8)]
    metrics = rollout_metrics(model, unseen)
    assert metrics["psnr_5"] > metrics["psnr_5_copy"] + 1, metrics
    shuffled = [dataclasses.replace(e, actions=o.actions) for e, o in zip(unseen, unseen[1:] + unseen[:1], strict=True)]
    assert metrics["psnr_5"] > rollout_metrics(model, shuffled)["psnr_5"] + 1
    moved = np.mean([np.linalg.norm(e.proprio[-1, :3] - e.proprio[0, :3]) for e in unseen])
    assert metrics["position_error_last"] < 0.6 * moved


def test_same_folder_other_configuration_is_refused_unless_the_change_is_asked_for(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    before = config(tmp_path, 2)
    longer = dataclasses.replace(before, model=dataclasses.replace(before.model, steps=4, lr=1e-3))
    with pytest.raises(ConfigMismatch, match="(?s)another configuration.*or go on under the new one: --change"):
        train(longer, EPISODES, SPEC, TASK)
    train(longer, EPISODES, SPEC, TASK, launch=LaunchConfig(change=True))
    assert [row["step"] for row in curve(tmp_path, "model") if "lr" in row] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "config.json").read_text())["model"]["lr"] == 1e-3
    last = json.loads((tmp_path / "launches.jsonl").read_text().splitlines()[-1])
    assert last["changed"] == {"model.lr": [2e-3, 1e-3], "model.steps": [2, 4]}
    assert curve(tmp_path, "tokenizer")[-1]["step"] == 1  # nothing of stage 1 came again


def test_what_was_learned_before_cannot_change(tmp_path: Path) -> None:
    assert set(FIXED) <= {field.name for field in dataclasses.fields(TrainConfig)}
    run(tmp_path, steps=2)
    other = dataclasses.replace(config(tmp_path, 2), validation=3)
    with pytest.raises(ConfigMismatch, match="cannot change validation while it goes on; begin another"):
        train(other, EPISODES, SPEC, TASK, launch=LaunchConfig(change=True))
    assert json.loads((tmp_path / "config.json").read_text())["validation"] == 2


def test_snapshots_are_whole_model_folders_and_can_be_gone_on_from(tmp_path: Path) -> None:
    launch = LaunchConfig(snapshot_every=2, log=("tensorboard",))
    train(config(tmp_path / "a", 3), EPISODES, SPEC, TASK, launch=launch)
    folders = sorted((tmp_path / "a" / "snapshots").iterdir())
    assert [folder.name for folder in folders] == ["step_000002", "step_000003"]
    early, last, finished = (WorldModel.from_pretrained(f) for f in (*folders, tmp_path / "a" / "model"))
    for a, b in zip(last.parameters(), finished.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert len(early.starts) == 3
    assert {path.name for path in (tmp_path / "a" / "tensorboard").iterdir()} == {"tokenizer", "model"}
    gone_on = dataclasses.replace(config(tmp_path / "b", 1), init=str(folders[0]))
    train(gone_on, EPISODES, SPEC, TASK)
    assert json.loads((tmp_path / "b" / "transfer.json").read_text())["fresh"] == []


def test_a_run_of_an_earlier_version_goes_on_where_it_was_moved(tmp_path: Path) -> None:
    """Its configuration knows no options that came later, and names the folder where it began."""
    run(tmp_path / "before", steps=2)
    stored = json.loads((tmp_path / "before" / "config.json").read_text())
    del stored["model"]["skip"], stored["pixels"]["coloured"]
    (tmp_path / "before" / "config.json").write_text(json.dumps(stored))
    (tmp_path / "before").rename(tmp_path / "after")
    run(tmp_path / "after", steps=2)
    launches = (tmp_path / "after" / "launches.jsonl").read_text().splitlines()
    assert len(launches) == 2 and "changed" not in json.loads(launches[-1])
    other = config(tmp_path / "after", 2)
    other = dataclasses.replace(other, model=dataclasses.replace(other.model, skip=(1,)))
    with pytest.raises(ConfigMismatch, match=r"(?s)skip.*--change"):
        train(other, EPISODES, SPEC, TASK)


def test_a_second_training_in_one_folder_is_refused(tmp_path: Path) -> None:
    with WriteLock(tmp_path, "training into"), pytest.raises(FolderInUse, match=rf"\({os.getpid()}\) is training into"):
        run(tmp_path, steps=2)


def test_other_data_do_not_go_on_with_a_run(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    more = [moving_square(i) for i in range(13)]
    with pytest.raises(ConfigMismatch, match="'episodes': 12.*'episodes': 13"):
        train(config(tmp_path, 2), more, SPEC, {"push": TASKS["push"]})


def test_what_no_episode_teaches_is_marked_and_says_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    blind = [dataclasses.replace(episode, outcome_known=False) for episode in EPISODES]
    model = WorldModel.from_pretrained(train(config(tmp_path / "blind", 2), blind, SPEC, TASK, say=told.append))
    assert model.untrained == ("reward", "success") and model.objects == ()
    state = model.observe(EPISODES[0].observation(0))
    assert float(state.reward) == 0 and float(state.success) < 1e-3
    estimate = next(text for text in told if text.startswith("estimate: about"))
    assert "tokenizer 2 x" in estimate and "model 2 x" in estimate and "GB of memory" in estimate
    taught = WorldModel.from_pretrained(train(config(tmp_path / "taught", 2), EPISODES, SPEC, TASK))
    assert taught.untrained == ()
    # what the data do not teach stays as it was learned before
    gone_on = dataclasses.replace(config(tmp_path / "on", 1), init=str(tmp_path / "taught" / "model"))
    assert WorldModel.from_pretrained(train(gone_on, blind, SPEC, TASK)).untrained == ()


@pytest.mark.parametrize(("choice", "steps"), [("auto", 2), ("keep", 0)])
def test_a_tokenizer_that_does_not_suit_the_pictures_is_trained_on_them(
    choice: Literal["auto", "keep"], steps: int, tmp_path: Path
) -> None:
    run(tmp_path / "before", steps=2)
    told: list[str] = []
    before = str(tmp_path / "before" / "model")
    gone_on = dataclasses.replace(config(tmp_path / "on", 2), init=before, init_tokenizer=choice)
    train(gone_on, EPISODES, SPEC, TASK, say=told.append)
    verdict = next(text for text in told if text.startswith("the tokenizer of"))
    assert "gives these pictures back with scene" in verdict and "(28 dB are good)" in verdict
    assert ("it is trained on them, too" if steps else "imagination can look no better") in verdict
    assert len(curve(tmp_path / "on", "tokenizer") if steps else []) == steps


def test_too_few_or_too_short_episodes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few"):
        train(config(tmp_path), [moving_square(0)] * 3, SPEC, TASKS)
    short = dataclasses.replace(config(tmp_path / "b", 2), loss=LossConfig(frames=30))
    with pytest.raises(ValueError, match="clips have 34 frames"):
        train(short, [moving_square(i) for i in range(8)], SPEC, {"push": TASKS["push"]})


def test_episodes_shorter_than_a_clip_are_counted(tmp_path: Path) -> None:
    told: list[str] = []
    some = [moving_square(i, 9 if i in (0, 4) else 12) for i in range(10)]  # the even ones are for training
    train(config(tmp_path, 1), some, SPEC, {"push": TASKS["push"]}, say=told.append)
    (said,) = [line for line in told if "fewer than" in line]
    assert "2 of 5 episodes have fewer than the 12 frames of a clip" in said and "--loss.frames 6 uses all" in said


def test_published_weights_are_not_fine_tuned_in_silence(tmp_path: Path) -> None:
    released_model().save_pretrained(tmp_path / "published")
    wanted = dataclasses.replace(config(tmp_path / "run", 2), init=str(tmp_path / "published"))
    with pytest.raises(ValueError, match="published weights, which can be run but not yet fine-tuned"):
        train(wanted, [moving_square(i) for i in range(8)], SPEC, {"push": TASKS["push"]})


def test_a_mistyped_preset_is_named_before_data_are_read() -> None:
    with pytest.raises(ValueError, match="unknown preset 'tny'; did you mean 'tiny'"):
        TrainConfig(preset="tny")
