"""Conditioning encoders: tiny random models of the published classes, a byte tokenizer, no network."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from tokenizers import AddedToken, Regex, pre_tokenizers

from kairos_env.world_model.published.passes import check_width
from kairos_env.world_model.published.releases import get_release, miniature
from kairos_env.world_model.text.context import CachedEncoder, Context
from kairos_env.world_model.text.qwen import EncoderSettings, QwenEncoder

transformers = pytest.importorskip("transformers")

KINDS = ("qwen2.5-vl", "qwen3.5")
WIDTH = 48
PATCH = {"qwen2.5-vl": 14, "qwen3.5": 16}
MEAN = {"qwen2.5-vl": (0.48145466, 0.4578275, 0.40821073), "qwen3.5": (0.5, 0.5, 0.5)}
STD = {"qwen2.5-vl": (0.26862954, 0.26130258, 0.27577711), "qwen3.5": (0.5, 0.5, 0.5)}
SYSTEM = "say what you see"
DROP = 32  # "<|im_start|>system\n" 8, SYSTEM 16, "<|im_end|>\n" 2, "<|im_start|>user\n" 6: one token a byte
TAIL = 13  # "<|im_end|>\n" 2, "<|im_start|>assistant\n" 11
SETTINGS = EncoderSettings(system_text=SYSTEM, drop=DROP, max_tokens=160, max_pixels=64 * 64)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEMPLATE = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# the weights are float64 here, but transformers rounds norms and delta rule to float32
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TEXT_ONLY = "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content }}{% endfor %}"


@pytest.fixture(autouse=True, scope="module")
def no_network() -> Iterator[None]:
    def refuse(*args: Any) -> None:
        raise AssertionError("these tests must not open a connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(socket.socket, "connect", refuse)
        yield


def tiny_tokenizer(kind: str) -> Any:
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    cls = transformers.Qwen2Tokenizer if kind == "qwen2.5-vl" else transformers.Qwen3_5Tokenizer
    tokenizer = cls(vocab=vocab, merges=[])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def tiny_model(kind: str, tokenizer: Any) -> Any:
    number = tokenizer.convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": WIDTH}
    ids = {
        "image_token_id": number("<|image_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
        "video_token_id": number("<|endoftext|>"),
    }
    torch.manual_seed(0)
    if kind == "qwen2.5-vl":
        vision |= {"fullatt_block_indexes": [1]}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    else:
        text |= {"head_dim": 24, "layer_types": ["linear_attention", "full_attention"]}
        text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        text["rope_parameters"] |= {"partial_rotary_factor": 0.5}
        vision |= {"num_position_embeddings": 64}
        config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, **ids)
        model = transformers.Qwen3_5ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        elif "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.2)
    return model


def save_tiny(kind: str, folder: Path) -> None:
    """A folder laid out like the hub's: the pictures' template lies apart from the tokenizer's own."""
    tokenizer = tiny_tokenizer(kind)
    tiny_model(kind, tokenizer).save_pretrained(folder)
    if kind == "qwen2.5-vl":
        tokenizer.chat_template = TEXT_ONLY
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": PATCH[kind],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": MEAN[kind],
        "image_std": STD[kind],
        "size": {"shortest_edge": 28 * 28, "longest_edge": 16777216},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in made.items():
        save_tiny(kind, folder)
    return made


def load(folder: Path, kind: Any, **settings: Any) -> QwenEncoder:
    return QwenEncoder.from_pretrained(
        folder, kind, dtype=torch.float64, settings=dataclasses.replace(SETTINGS, **settings)
    )


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, QwenEncoder]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the prefix is exactly what is dropped
        return {kind: load(folder, kind) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest, encoders: dict[str, QwenEncoder]) -> QwenEncoder:
    return encoders[request.param]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# the published computation, written from its description -------------------------------------------------------


def byte_ids(tokenizer: Any, text: str) -> list[int]:
    """One number for each control token and for each byte between them."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in byte-level BPE
    letters = {b: chr(b) for b in seen} | {b: chr(256 + i) for i, b in enumerate(sorted({*range(256)} - {*seen}))}
    pieces = re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text)
    tokens = [[piece] if piece in SPECIAL else [letters[b] for b in piece.encode()] for piece in pieces]
    return [tokenizer.convert_tokens_to_ids(token) for token in sum(tokens, [])]


def direct(folder: Path, kind: str, prompt: str, image: np.ndarray | None = None) -> torch.Tensor:
    """hidden_states[-1] of the whole model behind the dropped tokens, with patches and positions made by hand."""
    cls = getattr(transformers, {"qwen2.5-vl": "Qwen2_5_VL", "qwen3.5": "Qwen3_5"}[kind] + "ForConditionalGeneration")
    model = cls.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vision, kwargs = "", {}
    if image is not None:
        p = PATCH[kind]
        rows, columns = image.shape[0] // p, image.shape[1] // p
        pixels = (image / 255.0 - np.array(MEAN[kind])) / np.array(STD[kind])
        patches = rearrange(
            np.stack([pixels, pixels]),  # a picture is a clip of two equal frames
            "t (gh mh ph) (gw mw pw) c -> (gh gw mh mw) (c t ph pw)",
            mh=2,
            mw=2,
            ph=p,
            pw=p,
        )
        vision = "<|vision_start|>" + "<|image_pad|>" * (rows * columns // 4) + "<|vision_end|>"
        kwargs = {
            "pixel_values": torch.from_numpy(patches).float(),
            "image_grid_thw": torch.tensor([[1, rows, columns]]),
        }
    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{vision}{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = byte_ids(tokenizer, text)
    # text counts up on all three axes; a picture keeps one time, counts rows and columns, and is as long as its side
    positions: list[tuple[int, int, int]] = []
    start = 0
    for index, number in enumerate(ids):
        if number != model.config.image_token_id:
            positions.append((start, start, start))
            start += 1
        elif ids[index - 1] != number:
            h, w = rows // 2, columns // 2
            positions += [(start, start + r, start + c) for r in range(h) for c in range(w)]
            start += max(h, w)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor(positions).T[:, None],
            output_hidden_states=True,
            **kwargs,
        )
    return out.hidden_states[-1][:, DROP:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["push the T", "", "Schließ die Tür 关门"])
def test_text_equals_direct_computation(
    folders: dict[str, Path], encoders: dict[str, QwenEncoder], kind: str, prompt: str
) -> None:
    context = encoders[kind].encode([prompt])
    torch.testing.assert_close(context.tokens, direct(folders[kind], kind, prompt), **CLOSE)
    assert context.tokens.shape == (1, len(prompt.encode()) + TAIL, WIDTH)
    assert context.mask is None


@pytest.mark.parametrize("kind", KINDS)
def test_image_equals_direct_computation(folders: dict[str, Path], encoders: dict[str, QwenEncoder], kind: str) -> None:
    image = picture(2 * 2 * PATCH[kind], 3 * PATCH[kind] // 3 * 2)  # 2x1 tokens
    context = encoders[kind].encode(["open the drawer"], [image])
    torch.testing.assert_close(context.tokens, direct(folders[kind], kind, "open the drawer", image), **CLOSE)
    assert context.tokens.shape[1] == 2 + 2 + 15 + TAIL  # frame of the picture, picture, prompt, end


def test_a_large_image_is_shrunk_to_max_pixels(encoder: QwenEncoder) -> None:
    step = 2 * PATCH[encoder.kind]
    tokens = (64 // step) ** 2
    image = picture(200, 200)
    assert encoder.encode(["a"], [image]).tokens.shape[1] == 2 + tokens + 1 + TAIL
    side = 64 // step * step
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    torch.testing.assert_close(encoder.encode(["a"], [image]).tokens, encoder.encode(["a"], [small]).tokens, **CLOSE)


def test_a_batch_equals_single_prompts(encoder: QwenEncoder) -> None:
    prompts = ["lift", "pull the long green handle", "", "turn"]
    images = [None, picture(56, 64, 1), picture(64, 32, 2), None]
    batch = encoder.encode(prompts, images)
    singles = [encoder.encode([prompt], [image]) for prompt, image in zip(prompts, images, strict=True)]
    assert batch.mask is not None and batch.mask.dtype == torch.bool
    assert batch.mask.sum(1).tolist() == [single.tokens.shape[1] for single in singles]
    for row, single in zip(batch.rows(), singles, strict=True):
        torch.testing.assert_close(row.tokens, single.tokens, **CLOSE)
    assert not batch.tokens[~batch.mask].any()
    assert encoder.encode(["abc", "xyz"]).mask is None


def test_an_image_changes_the_context_and_leaves_nothing_behind(encoder: QwenEncoder) -> None:
    before = encoder.encode(["go"]).tokens
    one, other = (encoder.encode(["go"], [picture(64, 64, seed)]).tokens for seed in (1, 2))
    assert (one - other).abs().max() > 1e-2
    assert one.shape[1] > before.shape[1]
    assert torch.equal(encoder.encode(["go"]).tokens, before)


def test_images_can_be_left_out(folders: dict[str, Path], encoders: dict[str, QwenEncoder]) -> None:
    blind = load(folders["qwen3.5"], "qwen3.5", use_image=False)
    seen = blind.encode(["go"], [picture(64, 64)])
    assert torch.equal(seen.tokens, encoders["qwen3.5"].encode(["go"]).tokens)


def test_the_drop_is_checked_against_the_tokenizer(folders: dict[str, Path]) -> None:
    folder = folders["qwen3.5"]
    with pytest.warns(UserWarning, match=r"have 32 tokens, but the first 30 are dropped: the last 2 of them stay"):
        more = load(folder, "qwen3.5", drop=30)
    assert more.encode(["hi"]).tokens.shape[1] == 2 + 2 + TAIL
    with pytest.warns(UserWarning, match=r"have 32 tokens, but the first 97 are dropped: the first 65 tokens of every"):
        load(folder, "qwen3.5", drop=97)


def test_without_a_system_message_the_drop_stays(folders: dict[str, Path]) -> None:
    bare = load(folders["qwen3.5"], "qwen3.5", system_message=False)
    assert bare.prefix_length() == 6
    assert bare.encode(["x" * 40]).tokens.shape[1] == 6 + 40 + TAIL - DROP
    with pytest.raises(ValueError, match="nothing is left.*has 22 tokens and the first 32 are dropped"):
        bare.encode(["abc"])


def test_our_system_text_fills_the_dropped_tokens() -> None:
    # All its words are common ones, which the published tokenizers hold as one token each.
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
    from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN3_5

    settings = EncoderSettings()
    for pattern in (QWEN2, QWEN3_5):
        words = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(settings.system_text)
        assert 3 + len(words) + 2 + 3 == settings.drop == 97
    assert not settings.has_published_text


def test_too_long_prompts(folders: dict[str, Path], encoders: dict[str, QwenEncoder]) -> None:
    encoder = encoders["qwen2.5-vl"]
    room = SETTINGS.max_tokens - DROP - TAIL
    assert encoder.encode(["x" * room]).tokens.shape[1] == room + TAIL
    with pytest.raises(
        ValueError, match=r"has 163 tokens \(0 for the picture\), at most 160 are taken; shorten it by 3"
    ):
        encoder.encode(["x" * (room + 3)])
    cut = load(folders["qwen2.5-vl"], "qwen2.5-vl", fit="truncate")
    tokens = cut.encode(["x" * (room + 3)]).tokens
    assert tokens.shape[1] == room + TAIL
    torch.testing.assert_close(tokens[:, :room], encoder.encode(["x" * room]).tokens[:, :room], **CLOSE)
    short = load(folders["qwen2.5-vl"], "qwen2.5-vl", fit="truncate", max_tokens=DROP + 3)
    with pytest.raises(ValueError, match="cuts into the picture of 4 tokens"):
        short.encode(["x"], [picture(56, 56)])


@pytest.mark.parametrize(
    ("image", "given"),
    [
        (np.zeros((32, 32), np.uint8), r"uint8 \(32, 32\)"),
        (np.zeros((32, 32, 4), np.uint8), r"uint8 \(32, 32, 4\)"),
        (np.zeros((3, 32, 32), np.uint8), r"uint8 \(3, 32, 32\)"),
        (np.zeros((32, 32, 3), np.float32), r"float32 \(32, 32, 3\)"),
        (Image.new("L", (32, 32)), "Image"),
        (np.zeros((1, 300, 3), np.uint8), "ratio of 200, got 1x300"),
        (np.zeros((0, 8, 3), np.uint8), "ratio of 200, got 0x8"),
    ],
)
def test_wrong_images(encoders: dict[str, QwenEncoder], image: Any, given: str) -> None:
    with pytest.raises(ValueError, match=given):
        encoders["qwen2.5-vl"].encode(["go"], [image])


def test_wrong_prompts(encoders: dict[str, QwenEncoder]) -> None:
    encoder = encoders["qwen3.5"]
    with pytest.raises(ValueError, match="sequence of at least one string, got 'go'"):
        encoder.encode("go")
    with pytest.raises(ValueError, match="at least one string"):
        encoder.encode([])
    with pytest.raises(ValueError, match="2 prompts but 1 images"):
        encoder.encode(["a", "b"], [None])
    with pytest.raises(ValueError, match="control tokens.*<|image_pad|>"):
        encoder.encode(["look <|image_pad|>"])


def test_the_model_is_frozen_and_keeps_its_dtype(folders: dict[str, Path]) -> None:
    encoder = QwenEncoder.from_pretrained(folders["qwen2.5-vl"], "qwen2.5-vl", settings=SETTINGS)
    context = encoder.encode(["go"], [picture(28, 28)])
    assert context.tokens.dtype == torch.bfloat16 and not context.tokens.requires_grad
    assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())
    assert not any("lm_head" in name for name, _ in encoder.model.named_parameters())
    assert (encoder.text_dim, encoder.device.type) == (WIDTH, "cpu")


# loading ---------------------------------------------------------------------------------------------------------


def test_wrong_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder with config.json.*nor a hub repository"):
        QwenEncoder.from_pretrained(tmp_path / "nothing", "qwen3.5")
    with pytest.raises(
        ValueError, match=r"type 'qwen2_5_vl', not the 'qwen3_5' of 'qwen3.5'; it is of kind 'qwen2.5-vl'"
    ):
        QwenEncoder.from_pretrained(folders["qwen2.5-vl"], "qwen3.5")
    with pytest.raises(ValueError, match="unknown kind of encoder 'qwen2'; legal: qwen2.5-vl, qwen3.5"):
        QwenEncoder.from_pretrained(folders["qwen2.5-vl"], "qwen2")  # type: ignore[arg-type]
    pickled = shutil.copytree(folders["qwen2.5-vl"], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors"):
        load(pickled, "qwen2.5-vl")
    plain = shutil.copytree(folders["qwen2.5-vl"], tmp_path / "plain")
    (plain / "chat_template.json").unlink()
    with pytest.raises(ValueError, match="text only.*chat_template.json"):
        load(plain, "qwen2.5-vl")


def test_missing_weights_are_not_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["qwen3.5"], tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if "layers.1" in key and "q_proj" in key)
    del weights[gone]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 keys.*q_proj"):
        load(folder, "qwen3.5")


def test_the_hubs_first_layout_of_keys_loads(
    folders: dict[str, Path], encoders: dict[str, QwenEncoder], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["qwen2.5-vl"], tmp_path / "first")
    weights = load_file(folder / "model.safetensors")
    renamed = {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
        for key, value in weights.items()
    }
    assert any(key.startswith("visual.blocks.0") for key in renamed)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    image = picture(56, 56)
    context = load(folder, "qwen2.5-vl").encode(["go"], [image])
    assert torch.equal(context.tokens, encoders["qwen2.5-vl"].encode(["go"], [image]).tokens)


def test_tokenizer_of_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["qwen3.5"], tmp_path / "mixed")
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not belong together: the model's image token 5"):
        load(folder, "qwen3.5")


def test_hub_names_fetch_no_code(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(repo_id: str, allow_patterns: list[str], **options: Any) -> str:
        asked.update(name=repo_id, patterns=allow_patterns)
        return str(folders["qwen3.5"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    encoder = QwenEncoder.from_pretrained("Qwen/Qwen3.5-2B", "qwen3.5", settings=SETTINGS)
    assert encoder.text_dim == WIDTH and asked["name"] == "Qwen/Qwen3.5-2B"
    assert not any(pattern.endswith((".py", ".bin", ".pth", "*")) for pattern in asked["patterns"])


def test_transformers_is_imported_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, kairos_env.world_model.text.qwen; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'kairos-env\[vlm\]'"):
        QwenEncoder.from_pretrained("Qwen/Qwen3.5-2B", "qwen3.5")


# settings, contexts, cache ---------------------------------------------------------------------------------------


def test_settings_travel_in_the_model_folder(tmp_path: Path) -> None:
    settings = EncoderSettings(system_text="Größe: 大", use_image=False, fit="truncate")
    settings.save(tmp_path)
    assert EncoderSettings.load(tmp_path) == settings
    (tmp_path / "conditioning.json").write_text('{"system": "x"}')
    with pytest.raises(ValueError, match=r"unknown keys \['system'\] and lacks \['drop', 'fit'"):
        EncoderSettings.load(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"drop": 1024}, "drop 1024 must lie in 0 .. max_tokens - 1 = 1023"),
        ({"drop": -1}, "drop -1"),
        ({"max_pixels": 0}, "max_pixels must be positive"),
        ({"fit": "crop"}, "unknown fit 'crop'; legal: error, truncate"),
        ({"system_text": " "}, "system_message=False"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderSettings(**wrong)


def test_contexts_of_different_lengths() -> None:
    torch.manual_seed(0)
    short, long = Context(torch.randn(2, 3, 4)), Context(torch.randn(1, 5, 4))
    both = Context.cat([short, long])
    assert both.tokens.shape == (3, 5, 4) and both.mask is not None
    assert both.mask.sum(1).tolist() == [3, 3, 5]
    assert torch.equal(both.tokens[:2, :3], short.tokens) and not both.tokens[:2, 3:].any()
    assert Context.cat([short, short]).mask is None
    again = Context.cat([both, short])
    assert again.mask is not None and again.mask.sum(1).tolist() == [3, 3, 5, 3, 3]
    assert [row.tokens.shape for row in again.rows()] == [(1, 3, 4), (1, 3, 4), (1, 5, 4), (1, 3, 4), (1, 3, 4)]
    with pytest.raises(ValueError, match=r"one width, got \[4, 6\]"):
        Context.cat([short, Context(torch.randn(1, 3, 6))])
    with pytest.raises(ValueError, match="no context"):
        Context.cat([])


class Counting:
    """Passes on to an encoder and notes what it was asked for."""

    def __init__(self, encoder: QwenEncoder) -> None:
        self.encoder, self.text_dim, self.settings = encoder, encoder.text_dim, encoder.settings
        self.asked: list[list[str]] = []

    def encode(self, prompts: Any, images: Any = None) -> Context:
        self.asked.append(list(prompts))
        return self.encoder.encode(prompts, images)


def test_cached_contexts_equal_fresh_ones(encoder: QwenEncoder) -> None:
    counting = Counting(encoder)
    cached = CachedEncoder(counting)
    image, other = picture(64, 64, 1), picture(64, 64, 2)
    prompts, images = ["go", "go left", "go", "go", "go"], [None, None, image, other, None]
    for _ in range(2):
        context, fresh = cached.encode(prompts, images), encoder.encode(prompts, images)
        assert context.mask is not None and fresh.mask is not None and torch.equal(context.mask, fresh.mask)
        torch.testing.assert_close(context.tokens, fresh.tokens, **CLOSE)
    assert counting.asked == [["go", "go left", "go", "go"]]
    mixed = cached.encode(["stop", "go"], [None, image.copy()])
    assert counting.asked[1:] == [["stop"]]
    torch.testing.assert_close(mixed.tokens[1:], encoder.encode(["go"], [image]).tokens, **CLOSE)
    mixed.tokens.zero_()  # what a caller does to a context is not remembered
    assert cached.encode(["stop"]).tokens.any()
    cached.clear()
    assert len(cached) == 0


def test_the_cache_forgets_what_was_used_longest_ago(encoders: dict[str, QwenEncoder]) -> None:
    counting = Counting(encoders["qwen2.5-vl"])
    cached = CachedEncoder(counting, size=2)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        cached.encode([prompt])
    assert counting.asked == [["a"], ["b"], ["c"], ["b"]]
    assert len(cached) == 2
    wide = cached.encode(["a", "x", "y", "z"])  # more than it holds
    assert wide.tokens.shape[0] == 4 and len(cached) == 2
    with pytest.raises(ValueError, match="at least 1, got 0"):
        CachedEncoder(counting, size=0)


def test_an_ignored_image_makes_no_new_entry(folders: dict[str, Path]) -> None:
    counting = Counting(load(folders["qwen3.5"], "qwen3.5", use_image=False))
    cached = CachedEncoder(counting)
    for seed in range(3):
        cached.encode(["go"], [picture(32, 32, seed)])
    assert counting.asked == [["go"]]


def test_width_and_kind_must_fit_the_weights(encoders: dict[str, QwenEncoder]) -> None:
    config = miniature("4b-libero")
    check_width(encoders["qwen2.5-vl"], config)
    check_width(CachedEncoder(encoders["qwen2.5-vl"]), config)
    with pytest.raises(
        ValueError, match=r"trained with contexts of qwen2.5-vl, width 48; this encoder is qwen3.5, width 48"
    ):
        check_width(CachedEncoder(encoders["qwen3.5"]), config)

    class Other:
        text_dim = 2048

        def encode(self, prompts: Any, images: Any = None) -> Context:
            raise NotImplementedError

    check_width(Other(), get_release("4b-robotwin"))
    with pytest.raises(ValueError) as caught:
        check_width(Other(), get_release("4b-libero"))
    message = str(caught.value)
    assert "qwen2.5-vl, width 3584; this encoder is Other, width 2048" in message
    assert "from_pretrained('Qwen/Qwen2.5-VL-7B-Instruct', 'qwen2.5-vl')" in message
    assert message.endswith("This encoder fits: 4b-3.1-robot, 4b-robotwin")
