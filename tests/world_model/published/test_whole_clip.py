"""Whole clips through the published architecture, against the float64 reference of `reference_transformer`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reference_transformer import Visible, published_transformer
from torch import Tensor

from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.published.passes import build_transformer
from kairos_env.world_model.published.releases import get_release, miniature
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context

ROWS, COLUMNS, CONTEXT = 2, 3, 5  # tokens of a frame, and of the instruction
L = ROWS * COLUMNS


def frame_window(kind: str, history: int, frames: int, restrict: bool, sees_future: bool = False) -> Visible:
    """The rule of the released world-action weights, token by token."""
    length = frames * L

    def visible(query: int, key: int) -> bool:
        if query >= length:  # an action
            return key >= length or sees_future or key < history * L
        if key >= length:
            return False
        if restrict and query < history * L and key >= history * L:
            return False
        difference = query // L - key // L
        if kind == "swa":
            return abs(difference) < 3
        return difference % 4 == 0 and abs(difference // 4) < 3

    return visible


def token_window(kind: str) -> Visible:
    """The rule of the video weights for clips too short to dilate: distance in tokens, not aligned to frames."""
    return lambda query, key: abs(query - key) <= 3 * L


def randomised(config: WorldActionConfig) -> WorldActionModel:
    """A miniature whose every parameter is random: zero-initialised heads would hide errors."""
    model = WorldActionModel.from_release(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.transformer.named_parameters():
            if "A_log" not in name and "dt_bias" not in name:
                spread = 0.5 if weight.ndim == 1 else 1.5 * weight[0].numel() ** -0.5
                weight.copy_(spread * torch.randn(weight.shape, generator=generator) + (0.5 if "norm" in name else 0))
    return model


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(config: WorldActionConfig, frames: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    latents = random(1, frames, config.latent_channels, 2 * ROWS, 2 * COLUMNS)
    return latents, random(1, 6, max(config.action_dim, 1), seed=1), random(1, CONTEXT, config.text_dim, seed=2)


def reference(model: WorldActionModel, visible, latents, sigma, context, actions=None, sigma_a=0.0, mask=None):  # type: ignore[no-untyped-def]
    video = model.config.video
    return published_transformer(
        model.transformer.state_dict(),
        video.heads,
        video.delta_heads,
        video.kinds,
        visible,
        context[0],
        latents[0],
        sigma,
        None if actions is None else actions[0],
        sigma_a,
        model.config.published,
        None if mask is None else mask[0],
    )


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("release", ["4b-libero", "4b-robotwin"])
def test_joint_pass_is_the_published_formula(release: str, published: bool) -> None:
    config = dataclasses.replace(miniature(release), published=published)
    model = randomised(config)
    latents, actions, tokens = inputs(config)
    sigma = [0.0] + [0.97826] * 11  # the first frame was observed: its timestep is 0
    got = model.joint_velocity(
        latents, torch.tensor([sigma]), actions, torch.tensor([0.35714]), Context(tokens), history=1
    )
    want = reference(model, lambda kind: frame_window(kind, 1, 12, True), latents, sigma, tokens, actions, 0.35714)
    torch.testing.assert_close(got[0][0].double(), want[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1][0].double(), want[1], atol=1e-4, rtol=1e-4)


def test_rounded_timesteps_matter() -> None:
    """978.26 becomes 980: the switch is worth having."""
    config = miniature("4b-libero")
    exact = randomised(dataclasses.replace(config, published=False))
    rounded = WorldActionModel(config, exact.transformer)
    latents, _, tokens = inputs(config)
    sigma = torch.full((1, 12), 0.97826)
    difference = exact.velocity(latents, sigma, Context(tokens)) - rounded.velocity(latents, sigma, Context(tokens))
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("release", ["4b", "4b-3.1-robot"])
def test_video_pass_with_token_windows_is_the_published_formula(release: str) -> None:
    config = miniature(release)
    model = randomised(config)
    latents, _, tokens = inputs(config, frames=4)  # 24 tokens = one dilated period: not dilated
    sigma = [0.0, 0.8333, 0.8333, 0.8333]
    got = model.velocity(latents, torch.tensor([sigma]), Context(tokens), history=1)
    want, _ = reference(model, token_window, latents, sigma, tokens)
    torch.testing.assert_close(got[0].double(), want, atol=1e-4, rtol=1e-4)


def test_actions_see_the_future_only_where_asked() -> None:
    config = miniature("4b-libero")
    model = randomised(config)
    latents, actions, tokens = inputs(config)
    sigma = [0.0] + [0.5] * 11
    got = model.joint_velocity(
        latents, torch.tensor([sigma]), actions, torch.tensor([0.5]), Context(tokens), 1, actions_see_future=True
    )
    want = reference(
        model, lambda kind: frame_window(kind, 1, 12, True, sees_future=True), latents, sigma, tokens, actions, 0.5
    )
    torch.testing.assert_close(got[1][0].double(), want[1], atol=1e-4, rtol=1e-4)
    blind = model.joint_velocity(latents, torch.tensor([sigma]), actions, torch.tensor([0.5]), Context(tokens), 1)
    assert (got[1] - blind[1]).abs().max() > 1e-3
    torch.testing.assert_close(got[0], blind[0])  # the video never sees an action


def test_forward_mode_shows_a_frame_the_actions_that_lead_up_to_it() -> None:
    """No later ones directly; in a bidirectional clip later frames still carry word of them."""
    config = miniature("4b-libero")
    model = randomised(config)
    latents, actions, tokens = inputs(config, frames=4)
    sigma = [0.0, 1.0, 1.0, 1.0]

    def visible(kind: str) -> Visible:
        among_frames = frame_window(kind, 1, 4, True)

        def sees(query: int, key: int) -> bool:
            if query < 4 * L <= key:  # six actions lead to three frames, two to each
                return query // L >= 1 + (key - 4 * L) // 2
            return among_frames(query, key)

        return sees

    got = model.joint_velocity(
        latents, torch.tensor([sigma]), actions, torch.zeros(1), Context(tokens), 1, video_sees_actions=True
    )
    want = reference(model, visible, latents, sigma, tokens, actions, 0.0)
    torch.testing.assert_close(got[0][0].double(), want[0], atol=1e-4, rtol=1e-4)
    unseen = model.joint_velocity(latents, torch.tensor([sigma]), actions, torch.zeros(1), Context(tokens), 1)[0]
    torch.testing.assert_close(got[0][:, :1], unseen[:, :1])  # the observed frame knows nothing of the future
    assert (got[0] - unseen).abs().max() > 1e-3


@torch.no_grad()
def test_policy_steps_over_cached_keys_are_the_joint_pass() -> None:
    """With one observed frame and no future, the joint pass and the cached one are the same computation."""
    config = miniature("4b-libero")
    model = randomised(config)
    latents, actions, tokens = inputs(config, frames=1)
    context = model.condition(Context(tokens), proprio=random(1, 8, seed=5))
    cache = model.prefill(latents, context)
    got = model.action_velocity(actions, torch.tensor([0.7]), context, cache)
    want = model.joint_velocity(latents, torch.zeros(1, 1), actions, torch.tensor([0.7]), context)[1]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    # and with several observed frames
    latents, actions, _ = inputs(config, frames=6)
    cache = model.prefill(latents, context)
    got = model.action_velocity(actions, torch.tensor([0.7]), context, cache)
    want = model.joint_velocity(latents, torch.zeros(1, 6), actions, torch.tensor([0.7]), context, history=6)[1]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_proprioception_is_the_last_context_token() -> None:
    config = miniature("4b-libero")
    model = randomised(config)
    _, _, tokens = inputs(config)
    proprio = random(1, 8, seed=3)
    context = model.condition(Context(tokens), proprio)
    w = {k: v.double() for k, v in model.transformer.action_dit.proprio_encoder.state_dict().items()}
    hidden = proprio.double() @ w["0.weight"].T + w["0.bias"]
    token = (hidden * torch.sigmoid(hidden)) @ w["2.weight"].T + w["2.bias"]
    assert context.tokens.shape == (1, CONTEXT + 1, config.text_dim)
    torch.testing.assert_close(context.tokens[0, -1].double(), token[0], atol=1e-5, rtol=1e-5)
    assert context.mask is not None and context.mask.all()
    unknown = model.condition(Context(tokens), proprio, torch.zeros(1, 8, dtype=torch.bool))
    assert unknown.mask is not None and not unknown.mask[0, -1]


def test_masked_context_is_the_published_formula_and_padding_does_not_matter() -> None:
    config = miniature("4b-libero")
    model = randomised(config)
    latents, actions, tokens = inputs(config, frames=3)
    mask = torch.tensor([[True, True, True, False, False]])
    sigma, level = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([0.5])
    got = model.joint_velocity(latents, sigma, actions, level, Context(tokens, mask))
    want = reference(
        model, lambda k: frame_window(k, 1, 3, True), latents, sigma[0].tolist(), tokens, actions, 0.5, mask
    )
    torch.testing.assert_close(got[0][0].double(), want[0], atol=1e-4, rtol=1e-4)
    short = model.joint_velocity(latents, sigma, actions, level, Context(tokens[:, :3]))
    torch.testing.assert_close(got[1], short[1], atol=1e-5, rtol=1e-5)


def test_batched_requests_are_the_single_ones() -> None:
    config = miniature("4b-libero")
    model = randomised(config)
    observed = random(3, 1, config.latent_channels, 2 * ROWS, 2 * COLUMNS)
    context = model.condition(Context(random(3, CONTEXT, config.text_dim, seed=2)), random(3, 8, seed=3))
    chunks = model.act(observed, context, steps=3, seeds=[5, 6, 7])
    assert chunks.shape == (3, 32, 7) and chunks.dtype == torch.float32
    for i in range(3):
        single = Context(context.tokens[i : i + 1], context.mask[i : i + 1])
        alone = model.act(observed[i : i + 1], single, steps=3, seeds=5 + i)
        torch.testing.assert_close(chunks[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert (model.act(observed, context, steps=3, seeds=5)[1] - chunks[1]).abs().max() > 1e-3


def test_the_modes_keep_what_was_observed() -> None:
    config = miniature("4b-libero")
    model = randomised(config)
    observed = random(2, 1, config.latent_channels, 2 * ROWS, 2 * COLUMNS)
    context = model.condition(Context(random(2, CONTEXT, config.text_dim, seed=2)), random(2, 8, seed=3))
    actions, video = model.joint(observed, context, frames=9, steps=2, horizon=8, negative=context, guidance=3.0)
    assert actions.shape == (2, 8, 7) and video.shape == (2, 3, *observed.shape[2:])
    torch.testing.assert_close(video[:, :1], observed)
    future = model.imagine(observed, actions, context, frames=9, steps=2)
    torch.testing.assert_close(future[:, :1], observed)
    other = model.imagine(observed, -actions, context, frames=9, steps=2)
    assert (future[:, 1:] - other[:, 1:]).abs().max() > 1e-3
    assert model.infer_actions(video, context, steps=2, horizon=8).shape == (2, 8, 7)


def test_wrong_requests_name_what_is_wrong() -> None:
    video = WorldActionModel.from_release(miniature("4b"))
    model = WorldActionModel.from_release(miniature("4b-libero"))
    observed = random(1, 1, 16, 4, 6)
    context = Context(random(1, CONTEXT, 48))
    with pytest.raises(ValueError, match="no action expert"):
        video.act(observed, context)
    with pytest.raises(ValueError, match=r"4 n \+ 1 frames, got 8; the nearest are 5 and 9"):
        model.joint(observed, context, frames=8)
    with pytest.raises(ValueError, match=r"\(B, P\) = \(1, 8\)"):
        model.condition(context, random(1, 7))
    with pytest.raises(ValueError, match=r"context tokens \(B, S, 48\)"):
        model.condition(Context(random(1, CONTEXT, 47)))
    with pytest.raises(ValueError, match="2 seeds for a batch of 1"):
        model.act(observed, context, seeds=[1, 2])
    with pytest.raises(ValueError, match="unknown release '4b-liber'.*did you mean '4b-libero'"):
        get_release("4b-liber")


@pytest.mark.parametrize(
    ("release", "video", "action"),
    [
        ("4b", 4_050_613_120, None),
        ("4b-3.1-robot", 4_046_680_960, None),
        ("4b-libero", 4_050_613_120, 966_062_087),
        ("4b-robotwin", 4_046_680_960, 955_849_742),
    ],
)
def test_parameter_counts_are_the_published_ones(release: str, video: int, action: int | None) -> None:
    with torch.device("meta"):
        transformer = build_transformer(get_release(release))
    assert sum(p.numel() for p in transformer.video_dit.parameters()) == video
    if action is None:
        assert transformer.action_dit is None
    else:
        assert sum(p.numel() for p in transformer.action_dit.parameters()) == action
