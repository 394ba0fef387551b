"""Instructions of the small models: what the encoders tell apart, and what they refuse."""

import dataclasses

import pytest
import torch

from kairos_env.world_model.config import TextConfig, WorldModelConfig, get_preset
from kairos_env.world_model.text.small import VOCABULARY, ByteEncoder, WordEncoder, make_encoder, to_words

WORDS = TextConfig(dim=32, tokens=24, heads=2, unit="word")
PLACES = ("plate", "ramekin", "cookie box")
SIMILAR = [f"pick up the black bowl next to the {place} and place it on the plate" for place in PLACES]


def test_the_unit_names_the_encoder():
    assert isinstance(make_encoder(TextConfig()), ByteEncoder)
    assert isinstance(make_encoder(WORDS), WordEncoder)
    assert get_preset("tiny-words").text.unit == "word"


def test_words_are_read_in_small_letters_without_punctuation():
    codes = to_words(["Pick up, the BOWL!", "pick up the bowl", ""], 6)
    assert codes.shape == (3, 6) and torch.equal(codes[0], codes[1])
    assert (codes[0, 4:] == 0).all() and (codes[2] == 0).all()
    assert codes.min() >= 0 and codes.max() < VOCABULARY
    assert torch.equal(to_words(["bowl up the pick"], 6)[0, :4], codes[0, [3, 1, 2, 0]])


@pytest.mark.parametrize("unit", ["byte", "word"])
def test_an_instruction_is_encoded_whatever_the_company(unit):
    torch.manual_seed(0)
    encoder = make_encoder(dataclasses.replace(WORDS, unit=unit)).double()
    together = encoder(encoder.codes([*SIMILAR, "lift", ""]))
    assert together.shape == (5, 24, 32) and together.isfinite().all()
    for text, expected in zip([*SIMILAR, "lift", ""], together, strict=True):
        torch.testing.assert_close(encoder(encoder.codes([text]))[0], expected, rtol=1e-9, atol=1e-9)


def test_words_keep_similar_sentences_apart_where_bytes_blur_them():
    def apart(unit: str) -> float:
        torch.manual_seed(0)
        encoder = make_encoder(dataclasses.replace(WORDS, unit=unit))
        one, two = encoder(encoder.codes(SIMILAR[:2])).detach()
        return float((one - two).norm() / one.norm())

    assert apart("word") > 3 * apart("byte")


def test_order_counts():
    torch.manual_seed(0)
    encoder = make_encoder(WORDS)
    one, two = encoder(encoder.codes(["the cup on the plate", "the plate on the cup"])).detach()
    assert float((one - two).abs().max()) > 0.1


def test_a_sentence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="3 words, this model takes at most 2"):
        to_words(["one two three"], 2)


def test_models_of_before_read_bytes():
    saved = get_preset("tiny").to_dict()
    del saved["text"]["unit"]
    assert WorldModelConfig.from_dict(saved).text.unit == "byte"
