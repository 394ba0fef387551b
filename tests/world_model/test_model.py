"""The verbs of the world model on a randomly initialised `debug` preset."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kairos_env.records import Camera, Observation, SpecMismatch
from kairos_env.sims.tabletop.env import TASKS, make_spec
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.state import WorldState

SPEC = make_spec()
FRAMES = 13  # more than the dilated window reaches


CONFIGS = {
    "one-pass": dataclasses.replace(get_preset("debug"), objects=("object", "goal")),
    "two-pass": dataclasses.replace(
        get_preset("debug"),
        one_pass=False,
        objects=("object",),
        video=dataclasses.replace(get_preset("debug").video, words=True),
    ),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> WorldModel:
    torch.manual_seed(0)
    model = WorldModel(CONFIGS[request.param], SPEC, TASKS).eval()
    with torch.no_grad():  # untrained heads are zero, which would hide differences
        for head in (model.mixture.video_dit.head.head, model.mixture.video_dit.proprio_head.head):
            torch.nn.init.normal_(head.weight, std=0.1)
    return model


def observation(seed: int = 0, instruction: str = TASKS["lift"]) -> Observation:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    return Observation({"scene": image}, rng.uniform(-0.1, 0.1, 4).astype(np.float32), instruction)


def clip(model: WorldModel, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, FRAMES, *model.latent_shape, generator=generator)
    proprio = 0.1 * torch.randn(batch, FRAMES, SPEC.proprio_dim, generator=generator)
    actions = torch.rand(batch, FRAMES, SPEC.action_dim, generator=generator) * 2 - 1
    return latents, proprio, actions


def empty(model: WorldModel, batch: int = 2) -> WorldState:
    return model.initial_state(torch.randn(batch, 2, 16, generator=torch.Generator().manual_seed(2)))


def assert_same_state(a: WorldState, b: WorldState, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a.past, b.past)
    for name in ("latent", "proprio", "reward", "success", "objects", "errors"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=tolerance, rtol=tolerance)
    for x, y in zip(a.layers, b.layers, strict=True):
        torch.testing.assert_close(x.keys, y.keys, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(x.values, y.values, atol=tolerance, rtol=tolerance)
        if x.delta is not None:
            torch.testing.assert_close(x.delta.recurrent, y.delta.recurrent, atol=tolerance, rtol=tolerance)


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, FRAMES - 1)))
@torch.no_grad()
def test_streaming_equals_one_pass_for_every_split(model: WorldModel, cuts: set[int]) -> None:
    latents, proprio, actions = clip(model)
    whole = model.remember(empty(model), latents, proprio, actions)
    state, edges = empty(model), [0, *sorted(cuts), FRAMES]
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        state = model.remember(state, latents[:, a:b], proprio[:, a:b], actions[:, a:b])
    assert_same_state(whole, state)


def relative_difference(a: WorldState, b: WorldState) -> float:
    """Largest root mean squared difference of any remembered tensor, as a share of that tensor's own size."""
    frames = [(x.keys + x.values, y.keys + y.values) for x, y in zip(a.layers, b.layers)]
    pairs = [pair for one, other in frames for pair in zip(one, other, strict=True)]
    pairs += [(x.delta.recurrent, y.delta.recurrent) for x, y in zip(a.layers, b.layers) if x.delta and y.delta]
    return max(float((x.float() - y.float()).norm() / x.float().norm()) for x, y in pairs)


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_streaming_equals_one_pass_for_the_pattern_of_the_4b_model(precision: torch.dtype, tolerance: float) -> None:
    """All 32 layers, window 3, dilation 4, at a reduced width."""
    published = get_preset("4b")
    config = dataclasses.replace(
        published,
        tokenizer=get_preset("debug").tokenizer,
        text=get_preset("debug").text,
        video=dataclasses.replace(
            published.video, dim=64, heads=4, head_dim=16, ffn_dim=128, delta_heads=4, delta_head_dim=8
        ),
        action=dataclasses.replace(published.action, dim=32, ffn_dim=64, chunk=4),
    )
    torch.manual_seed(0)
    model = WorldModel(config, SPEC, TASKS).eval()
    latents, proprio, actions = clip(model)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        whole = model.remember(empty(model), latents, proprio, actions)
        state = empty(model)
        for frame in range(FRAMES):
            at = slice(frame, frame + 1)
            state = model.remember(state, latents[:, at], proprio[:, at], actions[:, at])
    assert relative_difference(whole, state) < tolerance


@torch.no_grad()
def test_joint_mode_never_shows_a_frame_a_later_action_or_frame(model: WorldModel) -> None:
    latents, proprio, actions = clip(model)
    state = model.remember(empty(model), latents[:, :5], proprio[:, :5], actions[:, :5])
    n = model.chunk_length
    inputs = [actions[:, 5 : 5 + n], latents[:, 5 : 5 + n], proprio[:, 5 : 5 + n]]
    sigma_a, sigma_v = torch.full((2,), 0.5), torch.full((2, n), 0.5)
    _, video, _ = model.denoise_jointly(state, *inputs, sigma_a, sigma_v)
    changed = [x.clone() for x in inputs]
    changed[0][:, -1] += 1
    _, other, _ = model.denoise_jointly(state, *changed, sigma_a, sigma_v)
    torch.testing.assert_close(video[:, :-1], other[:, :-1])
    assert (video[:, -1] - other[:, -1]).abs().max() > 1e-4
    changed = [x.clone() for x in inputs]
    changed[1][:, 2] += 1
    got, other, _ = model.denoise_jointly(state, *changed, sigma_a, sigma_v)
    torch.testing.assert_close(video[:, :2], other[:, :2])
    base, _, _ = model.denoise_jointly(state, *inputs, sigma_a, sigma_v)
    assert (got - base).abs().max() > 1e-5  # actions do see the future video


def test_actions_and_instruction_matter(model: WorldModel) -> None:
    state = model.observe([observation()] * 2)
    low, high = SPEC.action_low, SPEC.action_high
    out = model.step(state, np.stack([low, high]))
    assert (out.latent[0] - out.latent[1]).abs().max() > 1e-3
    other = model.observe([observation(), observation(instruction=TASKS["reach"])])
    if model.config.one_pass:  # the world does not listen
        for frame in other.layers[0].keys:
            torch.testing.assert_close(frame[0], frame[1])
    assert (model.act(other)[0] - model.act(other)[1]).abs().max() > 1e-6


def test_same_trajectory_whatever_the_batch(model: WorldModel) -> None:
    actions = np.stack([SPEC.action_space.sample() for _ in range(4)])[None]
    alone = model.imagine(model.observe(observation(1), seeds=[5]), actions, steps=2)
    crowd = [observation(i) for i in (7, 1, 9)]
    together = model.imagine(model.observe(crowd, seeds=[1, 5, 2]), np.repeat(actions, 3, 0), steps=2)
    torch.testing.assert_close(alone.latents[0], together.latents[1], atol=1e-4, rtol=1e-4)
    for name in ("proprio", "objects", "errors", "reward", "success"):
        torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[1], atol=1e-4, rtol=1e-4)
    other = model.imagine(model.observe(observation(1), seeds=[6]), actions, steps=2)
    assert (alone.latents - other.latents).abs().max() > 1e-3


def test_objects_and_their_errors_are_told_of_every_frame(model: WorldModel) -> None:
    state = model.observe([observation(0), observation(1)])
    names, errors = model.objects, model.error_names
    assert state.objects.shape == (2, len(names), 3) and state.errors.shape == (2, len(errors))
    assert model.features(state.proprio, state.objects).shape == (2, len(model.feature_names))
    roll = model.imagine(state, np.zeros((2, 3, 4), np.float32))
    assert roll.objects.shape == (2, 3, len(names), 3) and roll.errors.shape == (2, 3, len(errors))
    torch.testing.assert_close(roll.objects[:, -1], roll.state.objects)
    assert (roll.errors >= 0).all() and errors[-1] == "picture"
    if model.config.one_pass:
        assert errors == ("hand", "object", "goal", "picture")
        assert state.errors[:, [0, -1]].max() < 0.01 < state.errors[:, 1:-1].min()  # what is seen is known
        torch.testing.assert_close(roll.uncertainty, roll.errors[..., :-1].amax(-1))


def test_one_pass_models_imagine_and_remember_in_one_pass(model: WorldModel) -> None:
    calls: list[int] = []
    hook = model.mixture.video_dit.blocks[0].ffn.register_forward_hook(lambda *_: calls.append(1))
    state = model.observe(observation())
    for steps, passes in ((1, 1), (3, 3)) if model.config.one_pass else ((1, 2), (3, 4)):
        calls.clear()
        assert model.step(state, np.zeros((1, 4), np.float32), steps=steps).state.past.tolist() == [2]
        assert len(calls) == passes
    hook.remove()


def test_state_is_a_value_of_constant_size(model: WorldModel, tmp_path) -> None:
    state = model.observe([observation(0), observation(1)], seeds=[3, 4])
    before = state.latent.clone()
    size = state.nbytes
    stepped = state
    for _ in range(20):
        stepped = model.step(stepped, np.zeros((2, 4), np.float32)).state
    assert stepped.nbytes == size and stepped.past.tolist() == [21, 21]
    torch.testing.assert_close(state.latent, before, atol=0, rtol=0)
    forked = state.fork(2)
    assert forked.seed.tolist() == [3, 3, 4, 4]
    assert_same_state(forked.select([0, 2]), state, 0)
    assert_same_state(WorldState.cat([state.select([0]), state.select([1])]), state, 0)
    stepped.save(tmp_path / "state.safetensors")
    loaded = WorldState.load(tmp_path / "state.safetensors")
    assert_same_state(loaded, stepped, 0)
    older = {k: v for k, v in load_file(tmp_path / "state.safetensors").items() if k not in ("objects", "errors")}
    save_file(older, tmp_path / "older.safetensors")
    with pytest.raises(ValueError, match="lacks errors, objects"):
        WorldState.load(tmp_path / "older.safetensors")
    action = np.full((2, 4), 0.01, np.float32)
    torch.testing.assert_close(model.step(loaded, action).latent, model.step(stepped, action).latent)
    save_file({"layers.0.keys": torch.zeros(2, 3, 4, 2, 8)}, tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match="old.safetensors lacks .*layers.0.keys.0"):
        WorldState.load(tmp_path / "old.safetensors")


def test_incomplete_and_foreign_states_are_refused(model: WorldModel, tmp_path: Path) -> None:
    whole = model.observe(observation()).tensors()
    path = tmp_path / "state.safetensors"
    last = max(name for name in whole if ".values." in name)
    for change, message in (
        ({last: None}, "no whole state"),
        ({"mine": torch.zeros(1)}, "no whole state: mine"),
        ({"errors": torch.full_like(whole["errors"], torch.nan)}, "not finite, in errors"),
    ):
        changed = {k: v.contiguous().clone() for k, v in (whole | change).items() if v is not None}
        save_file(changed, str(path))
        with pytest.raises(ValueError, match=message):
            WorldState.load(path)


def test_policy_runs_no_video(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Action-only inference: the video branch once per observation, the decoder never."""
    calls = {"video": 0, "decoder": 0}

    def count(name: str):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    hooks = [
        model.mixture.video_dit.blocks[0].ffn.register_forward_hook(count("video")),
        model.tokenizer.decoder.register_forward_hook(count("decoder")),
    ]
    state = model.observe(observation())
    chunk = model.act(state, steps=6)
    for hook in hooks:
        hook.remove()
    assert chunk.shape == (1, model.chunk_length, 4) and calls == {"video": 1, "decoder": 0}


def test_inverse_and_joint_shapes(model: WorldModel) -> None:
    state = model.observe([observation(0), observation(1)])
    actions, video = model.joint(state, steps=2)
    assert actions.shape == (2, model.chunk_length, 4) and video.shape == (2, model.chunk_length, *model.latent_shape)
    future = [[observation(10 + i), observation(20 + i)] for i in range(model.chunk_length)]
    inferred = model.infer_actions(state, future)
    assert inferred.shape == actions.shape
    assert (inferred.numpy() <= SPEC.action_high + 1e-6).all()
    with pytest.raises(ValueError, match="future observations"):
        model.infer_actions(state, future[:1])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros((1, 3), np.float32), "dx, dy, dz, gripper"),
        (np.full((1, 4), np.nan, np.float32), "non-finite"),
        (np.zeros((2, 4), np.float32), "step takes actions"),
    ],
)
def test_bad_actions_are_refused(model: WorldModel, action: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.step(model.observe(observation()), action)


def test_observation_of_another_robot_is_refused(model: WorldModel) -> None:
    good = observation()
    with pytest.raises(SpecMismatch, match="cameras"):
        model.observe(dataclasses.replace(good, images={"wrist": good.images["scene"]}))
    with pytest.raises(SpecMismatch, match="proprio"):
        model.observe(dataclasses.replace(good, proprio=np.zeros(7, np.float32)))
    with pytest.raises(ValueError, match="uint8"):
        model.observe(dataclasses.replace(good, images={"scene": good.images["scene"].astype(np.float32)}))
    with pytest.raises(ValueError, match="exactly when a state"):
        model.observe(good, state=model.observe(good))
    with pytest.raises(ValueError, match="got dict; Observation.from_gym makes one"):
        model.observe([good.to_gym()])


def test_two_cameras_side_by_side() -> None:
    spec = make_spec(cameras=("scene", "wrist"))
    model = WorldModel.from_preset("debug", spec, TASKS)
    image = np.zeros((64, 64, 3), np.uint8)
    out = model.step(
        model.observe(Observation({"scene": image, "wrist": image}, np.zeros(4, np.float32))), np.zeros((1, 4))
    )
    assert model.frame_tokens == 33
    assert {k: v.shape for k, v in model.decode(out.latent).items()} == {
        "scene": (1, 64, 64, 3),
        "wrist": (1, 64, 64, 3),
    }
    odd = dataclasses.replace(spec, cameras=(Camera("scene", 64, 64), Camera("wrist", 48, 48)))
    with pytest.raises(ValueError, match="one common size"):
        WorldModel.from_preset("debug", odd, TASKS)


def test_unknown_preset_names_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'tiny'"):
        WorldModel.from_preset("tinny", SPEC, TASKS)


def test_a_model_is_named_in_a_line(model: WorldModel) -> None:
    assert repr(model).startswith("WorldModel(preset='debug', robot='panda-tabletop', ") and "\n" not in repr(model)
