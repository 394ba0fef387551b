"""The inequalities of docs/theory.md hold: on random numbers, on trained predictors and on a trained world model."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from counting_model import shaken_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kairos_env.eval.theory.forgetting import (
    LatentClips,
    delta_inputs,
    delta_layers,
    divergence,
    forget,
    forgetting,
    imagined_clips,
    log_decay,
    recorded_clips,
    rollout_error,
)
from kairos_env.eval.theory.hidden_places import (
    DeltaFilter,
    HiddenPlaces,
    Predictor,
    imagine,
    theorem_2,
    train,
    visible,
)
from kairos_env.records import Episode
from kairos_env.world_model.checkpoint import bundled_models
from kairos_env.world_model.gated_delta import naive_gated_delta
from kairos_env.world_model.model import WorldModel

ROUNDING = 1e-12
shapes = {"tokens": st.integers(1, 30), "width": st.integers(2, 12), "seed": st.integers(0, 2**31)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def draw(tokens: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values (1, T, 1, K), log decay and strength (1, T, 1), float64."""
    rng = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, tokens, 1, width, generator=rng, dtype=torch.float64)
    g = -torch.randn(1, tokens, 1, generator=rng, dtype=torch.float64).square() * 0.3
    return k, v, g, torch.rand(1, tokens, 1, generator=rng, dtype=torch.float64)


def norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix, 2).item()


# Lemma 3, as it holds for the code's update ----------------------------------------------------------------------


@given(**shapes)
def test_a_transition_contracts_by_alpha_and_no_less(tokens: int, width: int, seed: int) -> None:
    k, v, g, beta = draw(tokens, width, seed)
    # With nothing to write and the identity as memory, what is left is the product of the transitions.
    identity = torch.eye(width, dtype=torch.float64)[None, None]
    _, product = naive_gated_delta(k, k, torch.zeros_like(v), g, beta, identity)
    assert norm(product[0, 0]) <= g.sum().exp().item() + ROUNDING
    _, one = naive_gated_delta(k[:, :1], k[:, :1], 0 * v[:, :1], g[:, :1], beta[:, :1], identity)
    assert norm(one[0, 0]) == pytest.approx(g[0, 0, 0].exp().item(), rel=1e-9)


@given(**shapes)
def test_two_memories_approach_each_other_at_least_as_fast_as_the_alphas(tokens: int, width: int, seed: int) -> None:
    k, v, g, beta = draw(tokens, width, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    first, second = torch.randn(2, 1, 1, width, width, generator=rng, dtype=torch.float64)
    ends = [naive_gated_delta(k, k, v, g, beta, state)[1] for state in (first, second)]
    for size in (torch.linalg.matrix_norm, lambda x: torch.linalg.matrix_norm(x, 2)):
        assert size(ends[0] - ends[1]).item() <= g.sum().exp().item() * size(first - second).item() + ROUNDING


@given(alpha=st.floats(0.001, 0.999), beta=st.floats(0, 1), seed=st.integers(0, 1000))
def test_the_papers_update_contracts_too_although_its_condition_fails(alpha: float, beta: float, seed: int) -> None:
    key = torch.nn.functional.normalize(torch.randn(6, generator=torch.Generator().manual_seed(seed)).double(), dim=0)
    transition = alpha * torch.eye(6, dtype=torch.float64) - beta * torch.outer(key, key)
    assert norm(transition) == pytest.approx(max(alpha, abs(alpha - beta)), abs=1e-9)
    assert norm(transition) < 1  # whether or not alpha + beta < 1


@given(**shapes, size=st.floats(0, 0.5))
def test_lemma_4_bounds_what_errors_of_one_step_do(tokens: int, width: int, seed: int, size: float) -> None:
    rng = torch.Generator().manual_seed(seed)

    def unit() -> Tensor:
        return torch.nn.functional.normalize(torch.randn(width, generator=rng).double(), dim=0)

    def off(x: Tensor) -> Tensor:
        return x + size * torch.randn(x.shape, generator=rng).double()

    memory, key, value = torch.randn(width, width, generator=rng).double(), unit(), torch.randn(width).double()
    wrong_key, wrong_value = torch.nn.functional.normalize(off(key), dim=0), off(value)
    alpha, beta, wrong_alpha, wrong_beta = torch.rand(4, generator=rng).double().tolist()

    def step(a: float, b: float, k: Tensor, v: Tensor) -> Tensor:
        state = memory[None, None]
        gates = [torch.tensor([[[x]]], dtype=torch.float64) for x in (math.log(a), b)]
        return naive_gated_delta(k[None, None, None], k[None, None, None], v[None, None, None], *gates, state)[1][0, 0]

    moved = norm(step(wrong_alpha, wrong_beta, wrong_key, wrong_value) - step(alpha, beta, key, value))
    size_g, size_v = norm(memory), max(value.norm().item(), wrong_value.norm().item())
    off_key, off_value = (wrong_key - key).norm().item(), (wrong_value - value).norm().item()
    assert moved <= ROUNDING + 1e-5 * (size_g + size_v) + (  # the layer's keys are a little shorter than 1
        size_g * abs(wrong_alpha - alpha)
        + (alpha * size_g + size_v) * abs(wrong_beta - beta)
        + beta * off_value
        + beta * (2 * alpha * size_g + size_v) * off_key
    )


# A world whose Bayes risk is known ---------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [HiddenPlaces(1, 0.9), HiddenPlaces(3, 0.7), HiddenPlaces(6, 0.98)])
@pytest.mark.parametrize("kinds", [("gdn",), ("swa",), ("swa", "swa"), ("swa", "dswa")])
def test_bayes_predictors_have_the_closed_form_risk(world: HiddenPlaces, kinds: tuple[str, ...]) -> None:
    seen, values = world.watch(2000, 60, seed=1)
    told = world.predict(seen, values[:, :-1], visible(kinds))
    risks = (told - values[:, 1:]).square()[:, 30:].mean(1)
    assert risks.mean().item() == pytest.approx(world.risk(visible(kinds)), abs=4 * risks.std().item() / 2000**0.5)


def test_a_window_costs_exactly_what_theorem_1_says() -> None:
    world, window = HiddenPlaces(), visible(("swa", "swa"))
    assert window == (0, 1, 2, 3, 4)
    seen, values = world.watch(4000, 60, seed=2)
    full, limited = (world.predict(seen, values[:, :-1], frames)[:, 30:] for frames in (None, window))
    gaps = (full - limited).square().mean(1)
    assert gaps.mean().item() == pytest.approx(world.risk(window) - world.risk(), abs=4 * gaps.std().item() / 4000**0.5)
    # Corollary 1, cruder: the place was out of sight for five frames, and above 0 before or below.
    hit, kept = 1 / world.places, world.persistence
    mean = math.sqrt(2 / math.pi) * kept**6 * hit / (1 - (1 - hit) * kept)
    assert world.risk(window) - world.risk() >= (1 - hit) ** 5 * 0.5 * 0.5 * (mean - -mean) ** 2


def test_the_exact_memory_is_a_gated_delta_rule() -> None:
    world = HiddenPlaces(5, 0.9)
    seen, values = world.watch(8, 40, seed=3)
    k = torch.eye(5, dtype=torch.float64)[seen[:, :, None]]
    v = values.double()[..., None, None]
    gates = torch.full(seen.shape, math.log(0.9)).double()[..., None], torch.ones(*seen.shape, 1).double()
    _, memory = naive_gated_delta(k, k, v, *gates)
    torch.testing.assert_close(memory[:, 0, :, 0], world.memory(seen, values.double())[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kinds", [("swa", "swa"), ("swa", "dswa")])
def test_a_window_model_cannot_know_what_its_layers_cannot_reach(kinds: tuple[str, ...]) -> None:
    reach = visible(kinds)
    assert reach is not None
    torch.manual_seed(0)
    model = Predictor(4, kinds)
    seen, values = HiddenPlaces(4).watch(3, 20, seed=4)
    before = model(seen, values[:, :-1])[:, -1]
    for back in range(16):
        changed = values[:, :-1].clone()
        changed[:, -1 - back] += 1
        assert torch.equal(model(seen, changed)[:, -1], before) == (back not in reach), back


def test_a_delta_model_knows_of_every_frame() -> None:
    torch.manual_seed(0)
    model = Predictor(4, ("swa", "gdn")).double()
    for layer in model.layers:
        if hasattr(layer.mix, "A_log"):
            nn.init.constant_(layer.mix.A_log, -9.0)  # hardly any decay: the first frame is not lost in rounding
    seen, values = HiddenPlaces(4).watch(3, 40, seed=4)
    changed = values[:, :-1].double()
    changed[:, 0] += 1
    assert not torch.equal(model(seen, changed)[:, -1], model(seen, values[:, :-1].double())[:, -1])


def excess(world: HiddenPlaces, model: nn.Module, frames: tuple[int, ...] | None = None) -> Tensor:
    """(B,) excess risk over the Bayes predictor of these frames, one value a clip never trained on."""
    seen, values = world.watch(512, 60, seed=-1)
    with torch.no_grad():
        told = model(seen, values[:, :-1])
    return (told - world.predict(seen, values[:, :-1], frames)).square()[:, 30:].mean(1)


def test_windows_keep_the_irreducible_error_and_a_hybrid_does_not() -> None:
    world, risks = HiddenPlaces(4, 0.98), {}
    for name, kinds, steps in (("window", ("swa", "swa"), 100), ("hybrid", ("swa", "gdn"), 250)):
        torch.manual_seed(0)
        risks[name] = excess(world, train(world, Predictor(4, kinds, dim=32), steps, frames=32))
    irreducible = world.risk(visible(("swa", "swa"))) - world.risk()
    error = 3 * risks["window"].std().item() / 512**0.5
    assert risks["window"].mean().item() >= irreducible - error  # Theorem 1, at any stage of training
    assert risks["hybrid"].mean().item() < irreducible  # which no window model can reach


def test_a_trained_filter_keeps_the_bound_of_theorem_2() -> None:
    world = HiddenPlaces()
    torch.manual_seed(0)
    model = train(world, DeltaFilter(world.places), steps=500, rate=3e-2)
    assert isinstance(model, DeltaFilter)
    b = theorem_2(world, model, world.watch(256, 60, seed=-1))
    assert b.rho == pytest.approx(model.decay.item(), rel=1e-6)  # the supremum of alpha is the norm
    assert b.rate <= b.rho < 1
    assert b.perturbation <= b.lemma
    assert b.memory_error <= b.perturbation / (1 - b.rate) <= b.perturbation / (1 - b.rho)
    assert b.excess <= b.of(b.rate, b.perturbation) <= b.of(b.rho, b.perturbation) <= b.of(b.rho, b.lemma)
    # and the sharper bound alone proves that no window model is as good
    assert b.of(b.rate, b.perturbation) < world.risk(visible(("swa", "swa"))) - world.risk()


def test_the_exact_filter_has_no_error_at_all() -> None:
    world = HiddenPlaces(5, 0.9)  # Corollary 2
    exact = DeltaFilter(5).double()
    with torch.no_grad():
        for table in (exact.keys, exact.queries):
            table.copy_(1e4 * torch.eye(5))  # long, so that the normalisation's epsilon does not count
        exact.log_rate.fill_(math.log(-math.log(0.9)))
        exact.strength.fill_(40.0)
        exact.scale.fill_(0.9 * 5**0.5)
    b = theorem_2(world, exact, world.watch(16, 40, seed=5))
    assert b.rho == pytest.approx(0.9)
    assert max(b.perturbation, b.readout, b.memory_error, b.excess) < 1e-6


def test_imagined_frames_are_the_predictors_own() -> None:
    world = HiddenPlaces(3, 0.9)
    clip = world.watch(4, 20, seed=6)
    film = imagine(world.predict, clip, observed=15)
    assert torch.equal(film[:, :15], clip.values[:, :15])
    # From its own frames the Bayes predictor tells what it told before: the value when last seen, decayed on.
    memory = world.memory(clip.seen[:, :15], clip.values[:, :15])[:, -1]
    for t in range(15, 21):
        expected = 0.9 ** (t - 14) * memory.gather(1, clip.seen[:, t : t + 1])[:, 0]
        torch.testing.assert_close(film[:, t], expected)


def test_impossible_worlds_are_refused() -> None:
    for places, persistence in ((0, 0.5), (3, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="persistence"):
            HiddenPlaces(places, persistence)


# The world model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.from_pretrained("kairos-tiny") if "kairos-tiny" in bundled_models() else shaken_model()


@pytest.fixture(scope="module")
def clips(model: WorldModel) -> LatentClips:
    return imagined_clips(model, model.starts[:4], frames=3, policy=True)


def test_log_decay_is_what_the_layer_applies(model: WorldModel, clips: LatentClips) -> None:
    inputs = delta_inputs(model, clips)
    assert set(inputs) == set(delta_layers(model)) != set()
    for index, layer in delta_layers(model).items():
        x = inputs[index]
        assert x.shape[:2] == (4, 3 * model.frame_tokens)
        state = clips.state.layers[index].delta
        assert state is not None
        # What one token does to the difference of two memories is its transition; its norm is alpha.
        rng = torch.randn(state.recurrent.shape, generator=torch.Generator().manual_seed(0))
        moved = [layer(x[:, :1], dataclasses.replace(state, recurrent=r))[1].recurrent for r in (rng, 0 * rng)]
        singular = torch.linalg.svdvals(torch.linalg.lstsq(rng.mT, (moved[0] - moved[1]).mT).solution)
        alpha = log_decay(layer, x[:, 0]).exp().float()
        torch.testing.assert_close(singular[..., 0], alpha, rtol=1e-3, atol=1e-4)


def test_memories_of_the_trained_model_approach_within_the_bound(model: WorldModel, clips: LatentClips) -> None:
    for layer in delta_layers(model):
        gap = divergence(model, clips, layer, tokens=model.frame_tokens)
        assert gap.error.shape == gap.bound.shape == (4, model.frame_tokens, delta_layers(model)[layer].heads)
        assert (gap.error <= gap.bound + ROUNDING).all()
        assert (gap.error[:, 0] > 0).all()


def test_forgetting_is_consistent(model: WorldModel, clips: LatentClips) -> None:
    rows = forgetting(model, clips)
    assert len(rows) == sum(layer.heads for layer in delta_layers(model).values())
    for r in rows:
        assert 0 <= r.token[0] <= r.token[1] <= r.token[2] < 1
        assert r.frame[2] <= r.token[2] ** model.frame_tokens + ROUNDING
        assert r.half_life.low <= r.half_life.value <= r.half_life.high
        assert 0 <= r.lemma_3_fails <= 1


def test_rollouts_differ_by_nothing_but_the_memory(model: WorldModel, clips: LatentClips) -> None:
    # The clips were imagined from this very state: with its whole memory the model tells them again.
    again = rollout_error(model, clips, "all")
    assert again.shape == (4, 3)
    assert again.max() < 1e-9
    one, none = rollout_error(model, clips, "newest frame"), rollout_error(model, clips, "nothing")
    assert one[:, 0].max() < 1e-9 and none[:, 0].min() > 0  # after one observed frame there is nothing older to forget
    empty = forget(clips.state)
    for before, after in zip(clips.state.layers, empty.layers, strict=True):
        assert all(map(torch.equal, before.keys, after.keys))
        assert (after.delta is None) == (before.delta is None)
        assert after.delta is None or after.delta.recurrent.abs().max() == 0


def test_recorded_clips_continue_the_observed_frames(model: WorldModel) -> None:
    starts = model.starts[:6]
    actions = np.stack([model.spec.action_space.sample() for _ in range(5)])
    images = {c.name: np.stack([o.images[c.name] for o in starts]) for c in model.spec.cameras}
    proprio = np.stack([o.proprio for o in starts])
    episode = Episode(images, proprio, actions, np.zeros(5, np.float32), np.zeros(5, np.bool_))
    whole, later = recorded_clips(model, [episode]), recorded_clips(model, [episode], context=3)
    assert (whole.frames, later.frames) == (5, 3)
    torch.testing.assert_close(later.latents, whole.latents[:, 2:])
    lead = model.normalise_actions(whole.actions)
    with torch.no_grad():
        state = model.remember(whole.state, whole.latents[:, :2], whole.proprio[:, :2], lead[:, :2])
    torch.testing.assert_close(later.state.layers[0].keys, state.layers[0].keys, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="at least"):
        recorded_clips(model, [episode], context=6)
    with pytest.raises(ValueError, match="at least"):
        recorded_clips(model, [])
