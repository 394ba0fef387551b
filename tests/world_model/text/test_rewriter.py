"""Prompts rewritten by a model behind an address, and by one that is loaded here."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from served_model import served_model

from kairos_env.world_model.text import rewriter
from kairos_env.world_model.text.rewriter import INSTRUCTION, open_rewriter

IMAGE = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)


def test_a_served_model_is_shown_the_picture_and_answers_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    with served_model("<think>short?</think>\nA hand wipes\n the table. ") as (address, asked):
        rewrite = open_rewriter(address + "/", model="mine")
        assert rewrite("wipe", IMAGE) == "A hand wipes the table."
        assert rewrite("push", None) == "A hand wipes the table."
    assert [request["model"] for request in asked] == ["mine", "mine"]
    picture, words = asked[0]["messages"][0]["content"]
    assert words == {"type": "text", "text": INSTRUCTION + "wipe"}
    data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert np.array_equal(np.asarray(shown), IMAGE)
    assert [part["type"] for part in asked[1]["messages"][0]["content"]] == ["text"]


def test_a_server_that_does_not_answer_is_named() -> None:
    with served_model("") as (address, _):
        with pytest.raises(OSError, match="the rewriter gave no answer to 'wipe'"):
            open_rewriter(address)("wipe", None)
        with pytest.raises(OSError, match="/models answers 404 Not Found .its address usually ends with /v1"):
            open_rewriter(address.removesuffix("/v1"))
    with pytest.raises(OSError, match="does not answer"):
        open_rewriter(address)


def test_a_local_model_is_shown_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LLaVA with random weights: it answers nonsense, but to words and picture, and always the same."""
    transformers = pytest.importorskip("transformers")
    save_llava(tmp_path, transformers)
    monkeypatch.setattr(rewriter, "TOKENS", 12)
    rewrite = open_rewriter(str(tmp_path))
    first = rewrite("wipe", IMAGE)
    assert first and rewrite("wipe", IMAGE) == first


def save_llava(folder: Path, transformers) -> None:  # type: ignore[no-untyped-def]
    import torch
    from tokenizers import AddedToken, pre_tokenizers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = transformers.Qwen2Tokenizer(vocab=letters, merges=[])
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(num_hidden_layers=2, image_size=28, patch_size=14, **small),
        text_config=transformers.LlamaConfig(
            vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=4096, **small
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
