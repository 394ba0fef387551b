"""Clips of a miniature: what the input decides, what is asked of encoder and transformer, and every wrong request."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kairos_env.records import Array
from kairos_env.world_model.flow import schedule, shape_aware_shift
from kairos_env.world_model.published.generation import GenerationRequest, fit_image, resolve
from kairos_env.world_model.published.memory import OutOfMemory
from kairos_env.world_model.published.releases import get_release, miniature
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context

SMALL: dict[str, Any] = {"frames": 9, "height": 32, "width": 48, "progress": False}


class AveragingTokenizer:
    """4 x 8 x 8: the mean colour of a cell in the first three channels; decoding repeats it."""

    channels, spatial, temporal = 16, 8, 4

    def encode_video(self, video: Tensor) -> Tensor:
        cells = video[:, ::4].unfold(3, 8, 8).unfold(4, 8, 8).mean((-1, -2))
        return torch.cat([cells, torch.zeros_like(cells).repeat(1, 1, 5, 1, 1)[:, :, :13]], 2)

    def decode_video(self, latents: Tensor) -> Tensor:
        pixels = latents[:, :, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)
        return torch.cat([pixels[:, :1], pixels[:, 1:].repeat_interleave(4, 1)], 1)


class HashingEncoder:
    """Random context tokens that depend on the prompt and on the picture; remembers what it was asked."""

    text_dim = 48

    def __init__(self) -> None:
        self.asked: list[tuple[str, Array | None]] = []

    def encode(self, prompts: Sequence[str], images: Sequence[Array | None] | None = None) -> Context:
        (prompt,), (image,) = prompts, images or [None]
        self.asked.append((prompt, image))
        seed = sum(map(ord, prompt)) + (0 if image is None else int(image.sum()))
        return Context(torch.randn(1, 3 + len(prompt), 48, generator=torch.Generator().manual_seed(seed)))


def make_model(name: str = "4b-robot", published: bool = False, dtype: torch.dtype = torch.float32) -> WorldActionModel:
    config = dataclasses.replace(miniature(name, layers=4), published=published)
    model = WorldActionModel.from_release(
        config, seed=1, dtype=dtype, tokenizer=AveragingTokenizer(), encoder=HashingEncoder()
    )
    with torch.no_grad():  # an untrained head is zero; a clip should depend on everything
        model.transformer.video_dit.head.head.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    return model


def picture(height: int = 32, width: int = 48, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# what happens


def test_the_input_decides_the_mode() -> None:
    model, image = make_model(), picture()
    modes = [
        model.generate(prompt, image=given, negative_prompt="blurry", prompt_prefix="sharp. ", steps=1, **SMALL)
        for prompt, given in (("lift", None), ("lift", image), ("", image))
    ]
    assert [clip.settings.mode for clip in modes] == ["t2v", "ti2v", "i2v"]
    asked = model.encoder.asked  # type: ignore[union-attr]
    assert [prompt for prompt, _ in asked] == ["lift", "blurry", "sharp. lift", "blurry", "", "blurry"]
    # the picture goes to the positive prompt only
    assert [given is not None for _, given in asked] == [False, False, True, False, True, False]
    for clip in modes:
        assert clip.frames.shape == (9, 32, 48, 3) and clip.frames.dtype == np.uint8
        assert (clip.fps, clip.seed) == (16, 0)


def test_a_clip_is_the_guided_euler_path_written_out() -> None:
    model, image = make_model(), picture()
    words = {"prompt_prefix": "", "negative_prompt": "still"}
    clip = model.generate("push", image, steps=3, guidance=4.0, seed=7, **words, **SMALL)
    noise = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(7)).transpose(1, 2)
    first = model.encode(image[None])
    contexts = [model.context(["push"], [image]), model.context(["still"])]
    levels = schedule(3, shape_aware_shift(2 * 3, 3))
    latents = noise.clone()
    for level, following in zip(levels, levels[1:]):
        latents[:, :1] = first
        sigma = torch.tensor([[0.0, level, level]])
        positive, negative = (model.velocity(latents, sigma, context, history=1) for context in contexts)
        latents = latents + (following - level) * (negative + 4.0 * (positive - negative))
    latents[:, :1] = first
    assert np.abs(clip.frames.astype(int) - model.decode(latents)[0].astype(int)).max() <= 1


def test_the_first_frame_is_the_image() -> None:
    image = picture(4, 6).repeat(8, 0).repeat(8, 1)  # flat cells, which the tokenizer keeps exactly
    clip = make_model().generate("turn", image, steps=2, **SMALL)
    assert np.array_equal(clip.frames[0], image)
    assert not np.array_equal(clip.frames[-1], image)


def test_merged_guidance_gives_the_same_clip() -> None:
    model = make_model()
    clips = [
        model.generate("a long prompt", negative_prompt="no", steps=3, merge_guidance=merged, **SMALL).frames
        for merged in (False, True)
    ]
    assert np.abs(clips[0].astype(int) - clips[1].astype(int)).max() <= 1


def test_teacache_runs_the_same_transformer_and_says_what_it_skipped() -> None:
    model = make_model()
    plain = model.generate("lift", steps=2, **SMALL)
    cached = model.generate("lift", steps=2, teacache=0.1, **SMALL)  # first and last step are always computed
    assert np.array_equal(plain.frames, cached.frames)
    assert (plain.skipped_steps, cached.skipped_steps) == (0, 0)
    lazy = model.generate("lift", steps=10, teacache=1e9, **SMALL)
    assert lazy.skipped_steps == 8


def test_same_seed_same_clip_and_the_global_generator_is_left_alone() -> None:
    model = make_model()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    clips = [model.generate("lift", steps=2, seed=seed, **SMALL).frames for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(clips[0], clips[1]) and not np.array_equal(clips[0], clips[2])


@pytest.mark.parametrize("published", [True, False])
def test_latents_are_in_the_weights_dtype_only_as_published(published: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(published=published, dtype=torch.bfloat16)
    seen, velocity = set(), model.velocity

    def spy(latents: Tensor, *args: Any) -> Tensor:
        seen.add(latents.dtype)
        return velocity(latents, *args)

    monkeypatch.setattr(model, "velocity", spy)
    model.generate("lift", steps=2, **SMALL)
    assert seen == {torch.bfloat16 if published else torch.float32}


def test_distilled_weights_take_four_steps_and_reuse_their_noise_only_as_published() -> None:
    clips = [make_model("4b-robot-distilled", published).generate("lift", **SMALL) for published in (True, False)]
    settings = clips[0].settings
    assert (settings.sampler, settings.steps, settings.guidance) == ("dmd", 4, 1.0)
    assert settings.sigmas == pytest.approx((1, 0.9524, 0.8333, 0.3571, 0), abs=5e-5)
    assert not np.array_equal(clips[0].frames, clips[1].frames)


def test_defaults_are_those_of_the_release() -> None:
    settings = resolve(GenerationRequest("lift"), get_release("4b-720p"))
    assert (settings.frames, settings.height, settings.width, settings.steps) == (81, 704, 1280, 50)
    assert (settings.guidance, settings.fps, settings.latent_shape) == (5.0, 16, (21, 88, 160))
    assert settings.sigmas[25] == pytest.approx(8.91 / (1 + 8.91), abs=1e-3)  # a level of 1/2, shifted


# fitting an image


def test_fit_keeps_an_image_of_the_right_size() -> None:
    assert np.array_equal(fit_image(picture(), 32, 48, None), picture())


@pytest.mark.parametrize("shape", [(32, 96), (64, 48), (20, 90), (47, 33)])
def test_crop_fills_pad_shows_all_stretch_does_both(shape: tuple[int, int]) -> None:
    white = np.full((*shape, 3), 255, np.uint8)
    assert (fit_image(white, 32, 48, "crop") == 255).all()
    assert (fit_image(white, 32, 48, "stretch") == 255).all()
    padded = fit_image(white, 32, 48, "pad")
    assert padded.shape == (32, 48, 3)
    rows, columns = (padded.max((1, 2)) > 0).sum(), (padded.max((0, 2)) > 0).sum()
    assert rows == 32 or columns == 48
    assert rows / columns == pytest.approx(shape[0] / shape[1], rel=0.1)
    assert np.array_equal(padded, padded[::-1, ::-1]) or (rows % 2 or columns % 2)  # centred, up to one pixel


def test_crop_takes_the_centre() -> None:
    image = np.zeros((32, 144, 3), np.uint8)
    image[:, 48:96] = 255
    assert (fit_image(image, 32, 48, "crop") == 255).all()


# wrong requests


@pytest.mark.parametrize(
    ("request_", "image", "message"),
    [
        ({"prompt": ""}, None, "neither a prompt nor an image"),
        ({"prompt": "  \n"}, None, "neither a prompt nor an image"),
        ({"height": 470}, None, "height 470 is not a multiple of 16; nearest legal: 464 or 480"),
        ({"width": 7}, None, "width 7 is not a multiple of 16; nearest legal: 16"),
        ({"width": 0}, None, "width 0 .* nearest legal: 16"),
        ({"width": 160000}, None, "at most 16384 pixels"),
        ({"frames": 80}, None, r"frames 80 is not of the form 4 n \+ 1; nearest legal: 77 or 81"),
        ({"frames": 0}, None, "frames 0 .* nearest legal: 1"),
        ({"frames": -7}, None, "nearest legal: 1"),
        ({"frames": 1}, picture(), "frames 1 with an image leaves nothing to generate; take at least 5"),
        ({"steps": 0}, None, "steps must be 1 ... 1000, got 0"),
        ({"guidance": float("nan")}, None, "guidance must be a finite number"),
        ({"guidance": -1.0}, None, "guidance must be .* got -1"),
        ({"guidance": 1.0, "negative_prompt": "dull"}, None, "negative prompt has no effect with guidance 1"),
        ({"seed": -1}, None, "seed must be from 0"),
        ({"teacache": -0.1}, None, "teacache must be at least 0, got -0.1"),
        ({}, picture(40, 48), "image has 40 x 48 pixels .* the clip 32 x 48; resize .* fit='crop'"),
        ({"fit": "squeeze"}, picture(), "fit 'squeeze'; legal: 'crop', 'pad', 'stretch'"),
        ({}, picture()[..., 0], r"uint8 \(H, W, 3\), got uint8 \(32, 48\)"),
        ({}, np.zeros((32, 48, 4), np.uint8), r"got uint8 \(32, 48, 4\)"),
        ({}, picture() / 255, "got float64"),
        ({}, "start.png", "got str"),
        ({"fit": "pad"}, np.zeros((0, 48, 3), np.uint8), "image has 0 x 48 pixels"),
    ],
)
def test_wrong_requests_say_what_is_legal(request_: dict[str, Any], image: Any, message: str) -> None:
    wish = GenerationRequest(**({"prompt": "lift", "frames": 9, "height": 32, "width": 48} | request_))
    with pytest.raises(ValueError, match=message):
        resolve(wish, miniature("4b-robot"), image)


@pytest.mark.parametrize("option", [{"steps": 8}, {"guidance": 3.0}, {"teacache": 0.1}])
def test_distilled_weights_refuse_what_they_cannot_do(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="distilled to 4 steps without guidance or TeaCache"):
        resolve(GenerationRequest("lift", **option), get_release("4b-robot-distilled"))


def test_a_model_without_its_parts_says_what_to_give() -> None:
    model = make_model()
    model.tokenizer = None
    with pytest.raises(ValueError, match="has none; give it a VideoVAE"):
        model.generate("lift", **SMALL)
    model = make_model()
    model.encoder = None
    with pytest.raises(ValueError, match="without a conditioning encoder"):
        model.generate("lift", **SMALL)


def test_out_of_memory_says_what_to_lower_with_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    enormous = SMALL | {"frames": 4 * 10**13 + 1}  # more than any address space holds
    with pytest.raises(
        OutOfMemory, match=r"out of memory on cpu: denoising 4\d+ frames of 32 x 48, .* GiB.*lower frames"
    ):
        model.generate("lift", **enormous)

    def decode_video(latents: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(model.tokenizer, "decode_video", decode_video)
    with pytest.raises(OutOfMemory, match="leave out merge_guidance, .* bfloat16"):
        model.generate("lift", steps=1, merge_guidance=True, **SMALL)


def test_other_errors_of_the_model_are_not_called_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()

    def decode_video(latents: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(model.tokenizer, "decode_video", decode_video)
    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        model.generate("lift", steps=1, **SMALL)


def test_output_that_is_not_finite_is_no_clip() -> None:
    model = make_model()
    with torch.no_grad():
        model.transformer.video_dit.head.head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        model.generate("lift", steps=1, **SMALL)


def test_a_misspelt_option_is_answered() -> None:
    with pytest.raises(ValueError, match="generate has no option 'guidence'; did you mean 'guidance'"):
        make_model().generate("lift", guidence=3)
