"""The tokenizer of the small models: shapes, the light decoder's cost, configurations of older models."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kairos_env.world_model.config import PRESETS, TokenizerConfig, WorldModelConfig
from kairos_env.world_model.tokenizers.image import Tokenizer


def decoding_flops(config: TokenizerConfig) -> int:
    latents = torch.zeros(1, config.latent_channels, 8, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Tokenizer(config).decode(latents)
    return counter.get_total_flops()


@pytest.mark.parametrize("decoder", [(), (32,), (32, 16), (32, 16, 16)])
def test_pictures_of_any_shape_come_back_in_their_size(decoder: tuple[int, ...]) -> None:
    tokenizer = Tokenizer(TokenizerConfig(latent_channels=4, width=8, decoder=decoder))
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = tokenizer.encode(images)
    assert latents.shape == (2, 4, 4, 6)
    assert tokenizer.decode(latents).shape == images.shape


def test_a_decoder_of_more_resolutions_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 3 resolutions.*\(8, 8, 8, 8\)"):
        TokenizerConfig(decoder=(8, 8, 8, 8))


@pytest.mark.parametrize("preset", ["tiny", "tiny-words", "small"])
def test_the_light_decoder_costs_a_third(preset: str) -> None:
    light = PRESETS[preset].tokenizer
    wide = dataclasses.replace(light, decoder=())
    assert light.decoder
    assert decoding_flops(light) <= decoding_flops(wide) / 2.9


def test_a_configuration_from_before_the_light_decoder_means_the_wide_one() -> None:
    stored = json.loads(json.dumps(PRESETS["tiny"].to_dict()))
    assert WorldModelConfig.from_dict(stored) == PRESETS["tiny"]
    del stored["tokenizer"]["decoder"]
    assert WorldModelConfig.from_dict(stored).tokenizer == TokenizerConfig(latent_channels=16)
