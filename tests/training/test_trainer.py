"""Training on small synthetic episodes: exact resumption after kill -9, learning, and readable refusals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kairos_env.records import Episode
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.training.batches import Clips
from kairos_env.training.loop import LoopConfig
from kairos_env.training.losses import LossConfig
from kairos_env.training.trainer import TrainConfig, train, validate
from kairos_env.world_model.checkpoint import CheckpointError, load
from kairos_env.world_model.model import WorldModel

SPEC = make_spec()


def moving_square(seed: int, steps: int = 12) -> Episode:
    """A red square that the action moves over a grey table; no labels, as in most datasets."""
    rng = np.random.default_rng(seed)
    position = rng.uniform(-0.1, 0.1, 2)
    actions = rng.uniform(SPEC.action_low, SPEC.action_high, (steps, 4)).astype(np.float32)
    images, proprio = [], []
    for step in range(steps + 1):
        image = np.full((64, 64, 3), 90, np.uint8)
        row, column = (32 + 150 * position).astype(int)
        image[row - 5 : row + 5, column - 5 : column + 5] = (220, 30, 30)
        images.append(image)
        proprio.append([*position, 0.05, 0.04])
        if step < steps:
            position = np.clip(position + actions[step, :2], -0.17, 0.17)
    return Episode(
        {"scene": np.stack(images)},
        np.array(proprio, np.float32),
        actions,
        np.linspace(0, 1, steps, dtype=np.float32),
        np.zeros(steps, bool),
        task="push",
        instruction=TASKS["push"],
        seed=seed,
    )


def config(out: Path, steps: int = 12) -> TrainConfig:
    return TrainConfig(
        out=str(out),
        preset="debug",
        precision="fp32",
        validation=2,
        starts=3,
        tokenizer=LoopConfig(steps=steps, lr=2e-3, log_every=1, checkpoint_every=4, warmup=5),
        tokenizer_batch=8,
        model=LoopConfig(steps=steps, lr=2e-3, log_every=1, checkpoint_every=5, warmup=5),
        batch=4,
        loss=LossConfig(frames=8),
        sample_every=6,
    )


def run(out: Path, steps: int = 12) -> Path:
    torch.set_num_threads(1)
    return train(config(out, steps), [moving_square(i) for i in range(12)], SPEC, {"push": TASKS["push"]})


def curve(folder: Path, stage: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.slow
def test_killed_run_resumes_to_the_identical_curve(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    code = f"from pathlib import Path; from test_trainer import run; run(Path({str(killed)!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for stage, line in (("tokenizer", 6), ("model", 2), ("model", 8)):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
        metrics = killed / f"{stage}.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= line):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    model = load(run(killed))
    for stage in ("tokenizer", "model"):
        assert curve(killed, stage) == curve(whole, stage)
    for a, b in zip(model.parameters(), load(whole / "model").parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert len(model.starts) == 3 and model.starts[0].instruction == TASKS["push"]


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
    model = load(train(longer, episodes, SPEC, {"push": TASKS["push"]}))
    unseen = [moving_square(1000 + i) for i in range(8)]
    metrics = validate(model, unseen, tmp_path, None)
    assert metrics["psnr_5"] > metrics["psnr_5_copy"] + 1, metrics
    shuffled = [dataclasses.replace(e, actions=o.actions) for e, o in zip(unseen, unseen[1:] + unseen[:1], strict=True)]
    assert metrics["psnr_5"] > validate(model, shuffled, tmp_path, None)["psnr_5"] + 1
    moved = np.mean([np.linalg.norm(e.proprio[-1, :3] - e.proprio[0, :3]) for e in unseen])
    assert metrics["proprio_error_last"] < 0.6 * moved


def test_same_folder_other_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(ValueError, match="another configuration"):
        run(tmp_path, steps=3)


def test_too_few_or_too_short_episodes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few"):
        train(config(tmp_path), [moving_square(0)] * 3, SPEC, TASKS)
    short = dataclasses.replace(config(tmp_path / "b", 2), loss=LossConfig(frames=30))
    with pytest.raises(ValueError, match="clips have 34 frames"):
        train(short, [moving_square(i) for i in range(8)], SPEC, {"push": TASKS["push"]})


def test_hindsight_labels_are_matched_by_name_not_by_order() -> None:
    episode = moving_square(0)
    steps, tasks = len(episode), ("reach", "push", "lift")
    rewards = np.tile(np.array([0.1, 0.2, 0.3], np.float32), (steps, 1))
    expert = np.zeros((steps + 1, 3, 4), np.float32)
    expert[:, :, 0] = [-0.05, 0.0, 0.05]
    labelled = dataclasses.replace(
        episode,
        labels={"task_rewards": rewards, "task_success": rewards > 0.25, "expert_actions": expert},
        label_tasks=tasks,
    )
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    names = {k: TASKS[k] for k in ("lift", "push", "reach")}
    latents = [[torch.zeros(steps + 1, *model.latent_shape)]]
    clips = Clips([labelled], latents, SPEC, names, 4, model.normalise_actions, model.normalise_proprio)
    batch = clips.sample(32, 6, torch.Generator().manual_seed(0))
    want = {TASKS["reach"]: (0.1, -1.0), TASKS["push"]: (0.2, 0.0), TASKS["lift"]: (0.3, 1.0)}
    assert set(batch.texts) == set(want)
    for i, text in enumerate(batch.texts):
        reward, action = want[text]
        torch.testing.assert_close(batch.reward[i, 1:], torch.full((5,), reward))
        torch.testing.assert_close(batch.chunk[i, :, 0, 0], torch.full((6,), action))
    unlabelled = Clips([episode], latents, SPEC, names, 4, model.normalise_actions, model.normalise_proprio)
    batch = unlabelled.sample(8, 6, torch.Generator().manual_seed(0))
    assert set(batch.texts) == {TASKS["push"]}  # only the recorded task is known


def test_the_experts_actions_of_the_own_task_are_learned_in_place_of_the_disturbed_ones() -> None:
    episode = moving_square(0)
    steps = len(episode)
    expert = np.zeros((steps + 1, 1, 4), np.float32)
    expert[:, 0, 0] = np.linspace(-0.05, 0.05, steps + 1)
    done = np.arange(steps) >= steps - 2
    noisy = dataclasses.replace(
        episode,
        actions=expert[:-1, 0] + np.array([0.01, 0, 0, 0], np.float32),
        rewards=done.astype(np.float32),
        success=done,
        instruction="push it, gently",
        labels={"expert_actions": expert},
        label_tasks=(episode.task,),
    )
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    latents = [[torch.zeros(steps + 1, *model.latent_shape)]]
    for names in (TASKS, {"push": TASKS["push"]}):
        clips = Clips([noisy], latents, SPEC, names, 4, model.normalise_actions, model.normalise_proprio)
        batch = clips.sample(4, steps + 1, torch.Generator().manual_seed(0))
        assert set(batch.texts) == {"push it, gently"}
        want = torch.linspace(-1, 1, steps + 1)
        for i in range(4):
            torch.testing.assert_close(batch.chunk[i, :, 0, 0], want)
            torch.testing.assert_close(batch.lead[i, 1:, 0], (want[:-1] + 0.2).clamp(max=1))  # what was executed
            assert batch.chunk_mask[i, -1].tolist() == [1, 0, 0, 0]  # the last frame has its label, too
            assert batch.success[i, 1:].tolist() == batch.reward[i, 1:].tolist() == done.tolist()
    other = dataclasses.replace(noisy, label_tasks=("lift",))
    clips = Clips([other], latents, SPEC, TASKS, 4, model.normalise_actions, model.normalise_proprio)
    batch = clips.sample(1, steps + 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.chunk[0, :-1, 0], batch.lead[0, 1:])  # labels of another task are of no use


def test_nothing_is_learned_from_an_outcome_that_nobody_recorded() -> None:
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    silent = dataclasses.replace(moving_square(0), outcome_known=False)
    latents = [[torch.zeros(len(silent) + 1, *model.latent_shape)]]
    clips = Clips([silent], latents, SPEC, {"push": TASKS["push"]}, 4, model.normalise_actions, model.normalise_proprio)
    batch = clips.sample(4, 12, torch.Generator().manual_seed(0))
    assert not batch.outcome_mask.any() and batch.chunk_mask.any()


def test_broken_model_folders_are_explained(tmp_path: Path) -> None:
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    model.save_pretrained(tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.tasks == TASKS and again.spec == SPEC
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load(tmp_path / "m")
    weights.write_bytes(whole)
    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    settings["model"]["video"]["layers"] = 8
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"missing mixture\.action_dit\.blocks\.4"):
        load(tmp_path / "m")
    settings["model"]["colour"] = "red"
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="colour"):
        load(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="neither a bundled one"):
        load("kairos-huge")
