"""Clips as training passes see them, against the verbs of the product."""

from __future__ import annotations

import dataclasses

import torch
from moving_square import SPEC, moving_square

from kairos_env.sims.tabletop.env import TASKS
from kairos_env.training.batches import Clips
from kairos_env.training.losses import measured
from kairos_env.training.passes import (
    Conditions,
    Draws,
    LossConfig,
    conditioned,
    instructions,
    main_pass,
    noised,
    rolled_out,
    sighted,
    without_words,
)
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel


@torch.no_grad()
def test_a_rolled_out_clip_is_what_imagining_frame_by_frame_gives() -> None:
    """The one pass of training, told what the model predicts, against observe, step and act of the product."""
    torch.manual_seed(0)
    model = WorldModel(dataclasses.replace(get_preset("debug"), objects=("object", "goal")), SPEC, TASKS).eval()
    for weight in (model.mixture.video_dit.head.head.weight, model.mixture.video_dit.proprio_head.head.weight):
        torch.nn.init.normal_(weight, std=0.03)
    episode = moving_square(0)
    batch = Clips(model, [episode]).sample(1, len(episode) + 1, torch.Generator().manual_seed(0))
    config, draw = LossConfig(frames=len(episode) + 1, observed=0, partly=0, no_action=0), None
    for seed in range(20):  # until two frames are observed
        draw = Draws(config, torch.Generator().manual_seed(seed), torch.device("cpu"))
        frames = noised(batch, model.see(batch.latents, batch.proprio), draw, config, video=True)
        if frames.sigma[0].tolist() == [0, 0] + [1] * (len(episode) - 1):
            break
    contexts = model.contexts(instructions(model, batch)[:, 0])
    told = rolled_out(model, frames, contexts, horizon=len(episode))
    done = main_pass(model, dataclasses.replace(frames, before=told), contexts)

    state = model.observe(episode.observation(0))
    state = model.observe(episode.observation(1), state, episode.actions[:1])
    roll = model.imagine(state, episode.actions[None, 1:])
    imagined = done.estimate
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(imagined.latents[:, 2:], roll.latents, **close)
    torch.testing.assert_close(model.physical_proprio(imagined.proprio[:, 2:]), roll.proprio, **close)
    torch.testing.assert_close(0.1 * imagined.objects[:, 2:], roll.objects, **close)
    own = (0.5 * imagined.errors[:, 2:]).exp() * model.error_scale
    torch.testing.assert_close(torch.maximum(own, state.errors[:, None]).cummax(1)[0], roll.errors, **close)
    for memory, whole in zip(roll.state.layers, done.memory, strict=True):
        torch.testing.assert_close(memory.keys, whole.keys[-len(memory.keys) :], **close)

    chunk = torch.randn(1, len(episode) + 1, model.chunk_length, SPEC.action_dim)
    sigma = torch.full(chunk.shape[:2], 0.4)
    words = model.mixture.read_context(instructions(model, batch)[:, 0], video=False)
    embedded = model.embed_chunk(chunk, sigma, measured(model, done))
    whole = model.mixture.propose(embedded, words, done.memory, torch.tensor([len(episode) + 1]))
    alone = model.embed_chunk(
        chunk[:, -1:], sigma[:, -1:], model.features(roll.state.proprio, roll.state.objects)[:, None]
    )
    newest = model.mixture.propose(alone, words, roll.state.layers, roll.state.past)
    torch.testing.assert_close(newest[:, 0], whole[:, -1], **close)


def test_the_truth_is_told_again_after_the_horizon() -> None:
    model = WorldModel.from_preset("debug", SPEC, TASKS)
    batch = Clips(model, [moving_square(0)]).sample(2, 12, torch.Generator().manual_seed(0))
    config = LossConfig(frames=12, observed=0)
    draw = Draws(config, torch.Generator().manual_seed(0), torch.device("cpu"))
    frames = noised(batch, sighted(model, batch, draw), draw, config, video=True)
    told = rolled_out(model, frames, model.contexts(instructions(model, batch)[:, 0]), horizon=4)
    for row in range(2):
        first = int((frames.sigma[row] > 0).int().argmax())
        truth = [f for f in range(first, 12) if torch.equal(told.latents[row, f], frames.before.latents[row, f])]
        assert truth == list(range(first + 4, 12, 4))


@torch.no_grad()
def test_clips_are_imagined_from_what_their_condition_gives() -> None:
    """Words alone, first frames alone, both, nothing, single pictures; what is not given is not told by other ways."""
    model = WorldModel(get_preset("debug"), SPEC, TASKS).eval()
    batch = Clips(model, [moving_square(0)]).sample(400, 6, torch.Generator().manual_seed(0))
    shares = Conditions(t2v=0.1, ti2v=0.2, i2v=0.3, null2v=0.4, images=0.25)
    config = LossConfig(frames=6, observed=0, partly=0, conditions=shares)
    draw = Draws(config, torch.Generator().manual_seed(0), torch.device("cpu"))
    condition = conditioned(batch, shares, draw)
    assert condition is not None and conditioned(batch, Conditions(), draw) is None
    assert abs(float(condition.words.float().mean()) - 0.3) < 0.07
    assert abs(float(condition.single.float().mean()) - 0.25) < 0.07
    assert abs(float(condition.frames.float().mean()) - 0.5 * 0.75) < 0.07
    silent = without_words(batch, condition.words)
    assert [bool(texts[0]) for texts in silent.texts] == condition.words.tolist()
    frames = noised(batch, sighted(model, batch, draw), draw, config, True, condition)
    unseen = frames.sigma[:, 0] > 0
    assert unseen.tolist() == (~condition.frames).tolist()
    assert not frames.before.latents[unseen, 0].any() and not frames.before.proprio[unseen, 0].any()
    assert frames.before.latents[~unseen, 0].any()
    assert not frames.sigma[condition.single, 1:].any() and frames.sigma[condition.single, 0].all()
    assert frames.sigma[unseen & ~condition.single].all()
