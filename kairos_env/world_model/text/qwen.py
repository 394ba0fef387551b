"""Instruction and picture -> context tokens of the published models: the last hidden state of a frozen Qwen model.

A ChatML conversation goes in: system message, then the picture and the instruction. Its first `EncoderSettings.drop`
tokens (the system message) are dropped; picture, instruction and the end of the conversation stay.

Example:
    >>> qwen = QwenEncoder.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl", device="cuda")
    >>> encoder = CachedEncoder(qwen)  # an instruction costs one pass, however often it is repeated
    >>> context = encoder.encode(["pick up the red bowl"], [image])  # image: uint8 (H, W, 3)
    >>> negative = encoder.encode(["blurry, static"])  # text only
    >>> settings = EncoderSettings.load("my_model")  # with the system text that the weights were trained with
    >>> qwen = QwenEncoder.from_pretrained("Qwen/Qwen3.5-2B", "qwen3.5", settings=settings)

Legend: B prompts, S context tokens of the longest one, D width of a token (``text_dim``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kairos_env.extras import require
from kairos_env.hub import download, is_hub_name
from kairos_env.world_model.text.context import Context, as_pairs

Kind = Literal["qwen2.5-vl", "qwen3.5"]

# model_type in the Qwen model's own config.json, and its class
_FAMILIES: dict[str, tuple[str, str]] = {
    "qwen2.5-vl": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3.5": ("qwen3_5", "Qwen3_5ForConditionalGeneration"),
}
IMAGE_TOKEN = "<|image_pad|>"
SETTINGS = "conditioning.json"

# 97 tokens with its chat frame: what the published weights drop
SYSTEM_TEXT = (
    "Put into words what the video shows. The scene: what it is about and who takes part. "
    "Each object: its color, form, size, material, number and place. "
    "The actions: what happens, in which order, how things move, meet and change with time. "
    "The world around: the setting, the light, the mood, the visual style. "
    "The camera: where it stands, how it moves, when the view changes."
)

# digest of the published system text; the text itself is not ours to carry
PUBLISHED_TEXT_SHA256 = "7149fef58a222d80295dfc398a592ed2e31d24b56c2e4178d430a2d11b6c816f"


@dataclass(frozen=True)
class EncoderSettings:
    """How a conversation is built and cut. The weights were trained with one choice; it travels in their folder.

    Args:
        system_text: the system message. **The default is our own wording.** The published weights were trained with
            another one of the same content and length (``text_encoder_qwenvl.py`` of the published repository has
            it): only with that text are their contexts reproduced bit for bit. ``kairos convert --system-prompt
            FILE`` writes it into the model folder, `has_published_text` recognises it.
        system_message: send it. Without it ``drop`` stays as it is, so that it cuts into picture and instruction:
            only for weights that were trained so.
        use_image: False ignores pictures (weights for LIBERO), True passes them on (RoboTwin, video).
        drop: tokens cut off at the front: the system message and the frame around it.
        max_tokens: longest conversation, system message and picture included.
        max_pixels: a larger picture is shrunk to this area.
        fit: what happens to a longer conversation: "error", or "truncate" (its end is cut, as in the published code).
    """

    system_text: str = SYSTEM_TEXT
    system_message: bool = True
    use_image: bool = True
    drop: int = 97
    max_tokens: int = 1024
    max_pixels: int = 448 * 448
    fit: Literal["error", "truncate"] = "error"

    def __post_init__(self) -> None:
        if not 0 <= self.drop < self.max_tokens:
            raise ValueError(f"drop {self.drop} must lie in 0 .. max_tokens - 1 = {self.max_tokens - 1}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be positive, got {self.max_pixels}")
        if self.fit not in ("error", "truncate"):
            raise ValueError(f"unknown fit {self.fit!r}; legal: error, truncate")
        if self.system_message and not self.system_text.strip():
            raise ValueError("system_text is empty; system_message=False leaves the system message out")

    @property
    def has_published_text(self) -> bool:
        """Whether ``system_text`` is letter for letter the one that the published weights were trained with."""
        return hashlib.sha256(self.system_text.encode()).hexdigest() == PUBLISHED_TEXT_SHA256

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``conditioning.json`` into a model folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (Path(folder) / SETTINGS).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> EncoderSettings:
        """Inverse of `save`; unknown or missing keys are an error, not a default."""
        path = Path(folder) / SETTINGS
        data = json.loads(path.read_text(encoding="utf-8"))
        want = {f.name for f in dataclasses.fields(cls)}
        if set(data) != want:
            raise ValueError(f"{path} has unknown keys {sorted(set(data) - want)} and lacks {sorted(want - set(data))}")
        return cls(**data)


class _Picture(NamedTuple):
    patches: Tensor  # (patches, values of one patch)
    grid: Tensor  # (1, 3) patches along time, height, width
    tokens: int


class QwenEncoder:
    """Frozen Qwen2.5-VL or Qwen3.5. Not a module: its weights are no part of the world-action model.

    Args:
        model: ``Qwen2_5_VLForConditionalGeneration`` or ``Qwen3_5ForConditionalGeneration``; its language head
            is not kept.
        tokenizer, image_processor: of the same folder. The image processor is the PIL one in every environment, so
            that a context does not depend on whether torchvision is installed.
        kind: which of the two.
        settings: how a conversation is built and cut; fixed for the life of the encoder.
        chat_template: of the folder; None takes the tokenizer's own.

    Attributes:
        text_dim: D, 3584 for Qwen2.5-VL-7B and 2048 for Qwen3.5-2B.

    Raises:
        ValueError: the three parts do not belong together, or the chat template takes no pictures.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        kind: Kind,
        settings: EncoderSettings = EncoderSettings(),
        chat_template: str | None = None,
    ) -> None:
        _check_kind(kind, model.config.model_type, type(model).__name__)
        self._image_token = model.config.image_token_id
        token = tokenizer.convert_ids_to_tokens(self._image_token)
        if token != IMAGE_TOKEN or tokenizer.pad_token_id is None:
            raise ValueError(
                f"tokenizer and model do not belong together: the model's image token {self._image_token} is {token!r} "
                f"in the tokenizer, not {IMAGE_TOKEN!r} (padding token: {tokenizer.pad_token!r})"
            )
        self.kind: Kind = kind
        self.model = model.model.eval().requires_grad_(False)
        _round_rotations(self.model, model.dtype)
        self.text_dim: int = model.config.text_config.hidden_size
        self._tokenizer, self._image_processor, self._settings = tokenizer, image_processor, settings
        self._template = chat_template or tokenizer.chat_template
        self._control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        prefix, drop = self.prefix_length(), settings.drop
        if settings.system_message and prefix != drop:
            effect = (
                f"the last {prefix - drop} of them stay in every context"
                if prefix > drop
                else f"the first {drop - prefix} tokens of every picture or prompt are lost"
            )
            warnings.warn(
                f"the system message and its frame have {prefix} tokens, but the first {drop} are dropped: {effect}. "
                "Give the system_text that the weights were trained with, or another drop",
                stacklevel=2,
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        kind: Kind,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        settings: EncoderSettings = EncoderSettings(),
    ) -> QwenEncoder:
        """Loads a local folder, or a hub repository (``owner/name``) into the hub's cache.

        Safetensors only, and no code from the repository. Weights quantised with AWQ are left to transformers, which
        needs a GPU and names the library that it wants.

        Raises:
            ImportError: transformers is not installed.
            FileNotFoundError: no such folder, or one without safetensors.
            ValueError: another kind of model, or weights that lack some keys.
        """
        transformers = require("transformers", "vlm")
        folder = _fetch(source)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        _check_kind(kind, config.model_type, str(folder))
        if not any(folder.glob("*.safetensors")):
            raise FileNotFoundError(f"{folder} holds no *.safetensors; formats that can run code are not read")
        # Not AutoProcessor: it needs torchvision for its video half, which is not used here.
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        images = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        model, found = getattr(transformers, _FAMILIES[kind][1]).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        # transformers fills a missing weight with random numbers
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("lm_head"))
        if missing:
            raise ValueError(f"{folder}: the weights lack {len(missing)} keys, among them {', '.join(missing[:5])}")
        return cls(model.to(device), tokenizer, images, kind, settings, _chat_template(folder))

    @property
    def settings(self) -> EncoderSettings:
        return self._settings

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prefix_length(self) -> int:
        """Tokens of the conversation before the user's picture and prompt; should equal ``settings.drop``."""
        prompt = "prompt"
        text = self._chat(prompt, image=False)
        return len(self._ids(text[: text.rindex(prompt)]))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Context:
        """Instructions, each with a picture or without, -> (B, S, text_dim) in the model's dtype.

        Args:
            prompts: an empty one is legal (negative branch, image to video); the caller knows where it is not.
            images: uint8 (H, W, 3) RGB of any size, or None; all None when not given. The published models show the
                picture to the positive branch only.

        Raises:
            ValueError: wrong image, a prompt with control tokens, a conversation that is too long or wholly dropped.
        """
        prompts, images = as_pairs(prompts, images)
        if not self.settings.use_image:
            images = [None] * len(prompts)
        pictures = [None if image is None else self._picture(image) for image in images]
        rows = [self._conversation(prompt, picture) for prompt, picture in zip(prompts, pictures, strict=True)]
        # Right padding: attention is causal, so the valid tokens never see it.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        shown = [picture for picture in pictures if picture is not None]
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long().to(self.device),
            # without the token types Qwen2.5-VL gives a picture the positions of text, silently
            mm_token_type_ids=(ids == self._image_token).long().to(self.device),
            pixel_values=torch.cat([p.patches for p in shown]).to(self.device) if shown else None,
            image_grid_thw=torch.cat([p.grid for p in shown]).to(self.device) if shown else None,
            use_cache=False,
        )
        # After the final norm: transformers puts this same tensor into hidden_states[-1] of both models.
        hidden = output.last_hidden_state
        drop = self.settings.drop
        return Context.cat([Context(hidden[i : i + 1, drop : len(row)]) for i, row in enumerate(rows)])

    def _chat(self, prompt: str, image: bool) -> str:
        content = [{"type": "image"}] * image + [{"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.settings.system_message:
            messages.insert(0, {"role": "system", "content": self.settings.system_text})
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, chat_template=self._template
            )
        except TypeError as error:
            raise ValueError(
                f"the chat template is one for text only ({error}); the model's chat_template.json or "
                "chat_template.jinja is missing beside its weights"
            ) from None
        if text.count(IMAGE_TOKEN) != image:
            raise ValueError(f"the chat template makes {text.count(IMAGE_TOKEN)} images of {int(image)}: {text!r}")
        return text

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _conversation(self, prompt: str, picture: _Picture | None) -> Tensor:
        """Token numbers of one conversation, (S,) int64."""
        control = [token for token in self._control if token in prompt]
        if control:
            raise ValueError(f"the prompt contains control tokens of the model, {', '.join(control)}: {prompt!r}")
        text = self._chat(prompt, image=picture is not None)
        places = picture.tokens if picture else 0
        ids = torch.tensor(self._ids(text.replace(IMAGE_TOKEN, IMAGE_TOKEN * places)))
        drop, most = self.settings.drop, self.settings.max_tokens
        if len(ids) > most and self.settings.fit == "error":
            raise ValueError(
                f"prompt too long: its conversation has {len(ids)} tokens ({places} for the picture), at most {most} "
                f"are taken; shorten it by {len(ids) - most}, or have it cut by EncoderSettings(fit='truncate'): "
                f"{prompt[:80]!r}"
            )
        ids = ids[:most]
        if (ids == self._image_token).sum() < places:
            raise ValueError(f"max_tokens {most} cuts into the picture of {places} tokens; lower max_pixels")
        if len(ids) <= drop:
            raise ValueError(
                f"nothing is left of the conversation: it has {len(ids)} tokens and the first {drop} are dropped; "
                f"lengthen the prompt or lower drop: {prompt!r}"
            )
        return ids

    def _picture(self, image: np.ndarray) -> _Picture:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(
                f"an image must be a uint8 RGB array of shape (height, width, 3), got {given}; "
                "from PIL: np.asarray(image.convert('RGB'))"
            )
        height, width = image.shape[:2]
        if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
            raise ValueError(f"an image needs sides within a ratio of 200, got {height}x{width}")
        processor = self._image_processor
        size = {"shortest_edge": processor.size["shortest_edge"], "longest_edge": self.settings.max_pixels}  # areas
        data = processor([image], size=size, input_data_format="channels_last", return_tensors="pt")
        grid = data["image_grid_thw"]
        return _Picture(data["pixel_values"], grid, int(grid.prod()) // processor.merge_size**2)


def _round_rotations(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts rotary frequencies to the dtype of the weights, as the published pipeline does.

    transformers keeps them in float32. The published weights were trained with rounded ones: in bfloat16 a context
    differs by 1 to 4 % without.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq"):
                setattr(module, name, buffer.to(dtype))


def _check_kind(kind: str, model_type: str, what: str) -> None:
    if kind not in _FAMILIES:
        raise ValueError(f"unknown kind of encoder {kind!r}; legal: {', '.join(_FAMILIES)}")
    if model_type != _FAMILIES[kind][0]:
        right = [name for name, family in _FAMILIES.items() if family[0] == model_type]
        hint = f"it is of kind {right[0]!r}" if right else f"legal types: {', '.join(f[0] for f in _FAMILIES.values())}"
        raise ValueError(
            f"{what} is a model of type {model_type!r}, not the {_FAMILIES[kind][0]!r} of {kind!r}; {hint}"
        )


def _fetch(source: str | os.PathLike[str]) -> Path:
    folder = Path(source)
    if (folder / "config.json").exists():
        return folder
    if folder.exists() or not is_hub_name(str(source)):
        raise FileNotFoundError(
            f"no encoder {str(source)!r}: neither a folder with config.json, tokenizer and safetensors nor a hub "
            "repository (owner/name)"
        )
    return download(str(source), ["*.json", "*.jinja", "*.txt", "*.safetensors"])


def _chat_template(folder: Path) -> str | None:
    """The processor's template, which takes pictures; the tokenizer's own may be an older one for text only."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").exists():
        return json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    return None
