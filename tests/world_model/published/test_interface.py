"""Published weights as a world model: the same function as over whole clips, frame by frame."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from released_models import ROBOTS, TASKS, released_model, see, small_config, small_settings, statistics
from safetensors.torch import save_file

from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.normalisation import Normaliser
from kairos_env.world_model.published.folder import convert, save_parts
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.robot_part import RobotPart
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.state import WorldState
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.two_pass import denoise_frame
from kairos_env.world_model.weights import CheckpointError

pytest.importorskip("diffusers", reason="the video tokenizer is diffusers'")


@pytest.fixture(scope="module", params=ROBOTS)
def model(request: pytest.FixtureRequest) -> WorldModel:
    return released_model(ROBOTS[request.param])


def settings_of(model: WorldModel):  # type: ignore[no-untyped-def]
    return model.interface.settings  # type: ignore[attr-defined]


@torch.no_grad()
def test_streaming_is_the_published_causal_pass(model: WorldModel) -> None:
    """One observed frame and the next: what the whole clip of both says of the second."""
    state = model.observe(see(settings_of(model)))
    latent = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    context = Context(state.context, state.mask)
    contexts = model.contexts(*context)
    proprio = model.normalise_proprio(state.proprio)
    action = torch.zeros(1, model.spec.action_dim)
    for level in (1.0, 0.4):
        got, _, _ = denoise_frame(model, state, contexts, action, latent, proprio, proprio, level)
        clip = torch.stack([state.latent, latent], 1)
        want = model.clips.velocity(clip, torch.tensor([[0.0, level]]), context, history=1)[:, 1]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_acting_is_the_published_policy(model: WorldModel) -> None:
    seen = [see(settings_of(model), 3), see(settings_of(model), 4, TASKS["red"])]
    state = model.observe(seen, seeds=[7, 8])
    chunk = model.act(state, steps=3)
    seeds = [50, 50] if settings_of(model).seed == 50 else [7, 8]
    raw = model.clips.act(state.latent[:, None], Context(state.context, state.mask), 3, seeds=seeds)
    torch.testing.assert_close(chunk, model.physical_actions(raw), atol=1e-4, rtol=1e-4)
    joint, video = model.joint(state, steps=3)
    frames = (model.clips.config.generation.frames - 1) // 4
    torch.testing.assert_close(joint, chunk, atol=1e-3, rtol=1e-3)  # released actions never see the future
    assert video.shape == (2, frames, *model.latent_shape)
    inferred = model.infer_actions(state, [seen, seen], steps=2)
    assert inferred.shape == chunk.shape and (inferred.numpy() <= model.spec.action_high + 1e-5).all()


def test_a_new_observation_begins_a_new_memory(model: WorldModel) -> None:
    settings = settings_of(model)
    first = model.observe(see(settings, 1), seeds=[5])
    later = model.observe(see(settings, 2), first, model.spec.action_space.sample()[None])
    fresh = model.observe(see(settings, 2), seeds=[5])
    assert later.past.tolist() == [1] and later.seed.tolist() == [5]
    torch.testing.assert_close(later.layers[0].keys, fresh.layers[0].keys)


def test_states_of_different_instructions_go_together(model: WorldModel) -> None:
    settings = settings_of(model)
    context = Context(torch.randn(1, 3, model.clips.config.text_dim), None)
    short = model.remember(
        model.initial_state(context.tokens),
        torch.zeros(1, 1, *model.latent_shape),
        torch.zeros(1, 1, model.spec.proprio_dim),
        None,
    )
    longer = model.observe(see(settings))
    both = WorldState.cat([short, longer])
    assert both.mask is not None and both.mask.sum(1).tolist() == [3, longer.context.shape[1]]
    action = np.zeros((1, model.spec.action_dim), np.float32)
    together = model.step(both, action.repeat(2, 0), steps=1)
    for row, alone in enumerate((short, longer)):
        one = model.step(alone, action, steps=1)
        torch.testing.assert_close(together.latent[row], one.latent[0], atol=1e-4, rtol=1e-4)


def test_four_pictures_in_a_frame(model: WorldModel) -> None:
    state = model.observe(see(settings_of(model)))
    out = model.step(state, np.zeros((1, model.spec.action_dim), np.float32), steps=1)
    shown = model.pictures(out.latent, out.state.before)
    newest = model.decode(out.latent, out.state.before)
    torch.testing.assert_close(out.state.before, state.latent)
    clip = model.clips.decode(torch.stack([state.latent, out.latent], 1))
    for camera in model.spec.cameras:
        assert shown[camera.name].shape == (1, 4, camera.height, camera.width, 3)
        np.testing.assert_array_equal(newest[camera.name], shown[camera.name][:, -1])
    first = settings_of(model).layout[0]
    assert (first.height, first.width) == (32, 32)
    np.testing.assert_array_equal(shown[first.camera], clip[:, 1:, :32, :32])
    roll = model.imagine(state, np.zeros((1, 3, model.spec.action_dim), np.float32), steps=1)
    film = model.decode(roll.latents)[first.camera]
    np.testing.assert_array_equal(film, model.clips.decode(roll.latents)[:, ::4, :32, :32])


def test_what_streaming_adds_is_neutral_until_it_is_trained(model: WorldModel) -> None:
    state = model.observe(see(settings_of(model)))
    low, high = model.spec.action_low[None], model.spec.action_high[None]
    one, other = model.step(state, low, steps=1), model.step(state, high, steps=1)
    assert not model.follows_actions
    torch.testing.assert_close(one.latent, other.latent, atol=0, rtol=0)
    torch.testing.assert_close(one.proprio, state.proprio, atol=1e-4, rtol=1e-4)
    assert one.reward.tolist() == [0.0] and one.success.item() < 1e-3 and one.uncertainty.tolist() == [1.0]
    weight = model.additions.action_embedding.weight
    with torch.no_grad():
        weight[:, 0] = 0.5
    try:
        assert model.follows_actions
        assert not torch.equal(model.step(state, low, steps=1).latent, model.step(state, high, steps=1).latent)
    finally:
        with torch.no_grad():
            weight.zero_()


def test_a_folder_comes_back_with_robot_statistics_and_additions(tmp_path: Path, model: WorldModel) -> None:
    with torch.no_grad():
        model.additions.action_embedding.weight[:, 1] = 0.25
    try:
        model.save_pretrained(tmp_path / "m")
        again = WorldModel.from_pretrained(tmp_path / "m")
        assert again.spec == model.spec and again.imagined_spec == model.imagined_spec and again.tasks == model.tasks
        assert len(again.starts) == 2 and again.follows_actions
        state, other = (m.observe(m.starts[0]) for m in (model, again))
        torch.testing.assert_close(again.act(other, 2), model.act(state, 2))
        action = model.spec.action_high[None]
        torch.testing.assert_close(again.step(other, action, 1).latent, model.step(state, action, 1).latent)
    finally:
        with torch.no_grad():
            model.additions.action_embedding.weight.zero_()
    data = json.loads((tmp_path / "m" / "config.json").read_text())
    data["settings"]["layout"] = []
    (tmp_path / "m" / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="cannot read the robot"):
        WorldModel.from_pretrained(tmp_path / "m")


def test_a_folder_without_statistics_does_not_act(tmp_path: Path) -> None:
    settings = small_settings(ROBOTS["libero"])
    clips = released_model().clips
    whole = WorldModel.of_clips(clips, dataclasses.replace(released_model()._robot(), normaliser=None))
    state = whole.observe(see(settings))
    with pytest.raises(ValueError, match="how are the actions of '4b-libero-miniature' normalised"):
        whole.act(state, 1)
    whole.step(state, whole.spec.action_low[None], 1)


def test_weights_without_a_robot_generate_and_say_why_they_do_nothing_else(tmp_path: Path) -> None:
    clips = WorldActionModel.from_release(miniature("4b-robot", layers=4))
    save_parts(clips, tmp_path / "m")
    model = WorldModel.from_pretrained(tmp_path / "m")
    assert model.clips.config == clips.config
    with pytest.raises(ValueError, match="knows no robot.*4b-libero, 4b-robotwin"):
        model.observe(see(ROBOTS["libero"]))
    with pytest.raises(ValueError, match="video tokenizer"):
        model.generate("a cup")


def test_half_precision(tmp_path: Path) -> None:
    released_model().save_pretrained(tmp_path / "m")
    model = WorldModel.from_pretrained(tmp_path / "m", precision="bf16")
    assert model.dtype == torch.bfloat16
    state = model.observe(model.starts[0])
    out = model.step(state, model.spec.action_low[None], 2)
    assert out.latent.dtype == torch.float32 and out.latent.isfinite().all()
    assert model.act(state, 2).dtype == torch.float32


def test_parts_belong_to_published_weights() -> None:
    with pytest.raises(ValueError, match="vae: only folders of published weights"):
        WorldModel.from_pretrained("kairos-tiny", vae="Wan2.1_VAE.pth")
    with pytest.raises(ValueError, match="small model; only published weights"):
        WorldModel.from_pretrained("kairos-tiny").generate("a cup")


def test_settings_and_configuration_must_fit() -> None:
    settings = small_settings(ROBOTS["robotwin"])
    clips = WorldActionModel.from_release(small_config(small_settings(ROBOTS["libero"])))
    with pytest.raises(ValueError, match="'robotwin' do not fit the model '4b-libero"):
        WorldModel.of_clips(clips, dataclasses.replace(released_model()._robot(), settings=settings, normaliser=None))


def test_convert_puts_the_statistics_of_the_fine_tuning_into_the_folder(tmp_path: Path) -> None:
    robot = ROBOTS["robotwin"]
    clips = WorldActionModel.from_release(miniature(robot.release, layers=4))
    file, stats = tmp_path / "weights.safetensors", tmp_path / "stats.json"
    save_file(clips.transformer.state_dict(), file)
    stats.write_text(json.dumps(statistics(robot)))
    convert(file, tmp_path / "m", release=clips.config, statistics=stats)
    part = RobotPart.read(tmp_path / "m")
    assert part is not None and part.settings == robot
    normaliser = Normaliser.from_file(stats, robot.normalisation)
    assert part.normaliser is not None
    np.testing.assert_array_equal(part.normaliser.action.scale, normaliser.action.scale)
    np.testing.assert_array_equal(part.normaliser.state.offset, normaliser.state.offset)
    with pytest.raises(ValueError, match=r"state \(8,\) and action \(7,\), but 'robotwin' needs"):
        stats.write_text(json.dumps(statistics(ROBOTS["libero"])))
        convert(file, tmp_path / "other", release=clips.config, statistics=stats)
