"""Short prompts made long by a vision-language model: the published weights were trained on detailed captions.

The model is a folder or hub repository that transformers loads, or the address of a server that speaks OpenAI's
protocol, as vLLM, llama.cpp, Ollama and SGLang do::

    rewrite = open_rewriter("Qwen/Qwen3-VL-8B-Instruct", "cuda")
    rewrite = open_rewriter("http://localhost:8000/v1")
    prompt = rewrite("wipe the table", image)
"""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kairos_env.extras import require

Rewriter = Callable[[str, np.ndarray | None], str]  # a prompt and uint8 (H, W, 3), its first frame -> a prompt

TOKENS = 1024  # of an answer, at most
SECONDS = 600  # to wait for one
ENDING = " (its address usually ends with /v1)"
KEY = "KAIROS_REWRITER_KEY"  # environment variable with the server's access key, where it asks for one

INSTRUCTION = (
    "Turn a short request for a video into the caption that a careful observer would write under the finished video. "
    "Say who and what is in it, with color, shape, material and place; the surroundings and the light; how the camera "
    "stands or moves; and above all what happens, from the first moment to the last, in order and cause by cause. "
    "If a picture is given, it is the first frame: keep to what it shows. Invent nothing that the request and the "
    "picture do not suggest. Write one paragraph of plain, factual English, 80 to 200 words, and nothing else.\n\n"
    "The request: "
)


def open_rewriter(source: str, device: str | torch.device = "cpu", model: str = "") -> Rewriter:
    """The rewriter at ``source``: an address (http, https), a folder, or a hub repository (``owner/name``).

    Args:
        device: of a model that is loaded here.
        model: its name, of a server that serves several; by default its first.

    Raises:
        ImportError: a library that the model needs is missing.
        OSError: no such model, or no answer.
    """
    if source.startswith(("http://", "https://")):
        return _Served(source.rstrip("/"), model)
    return _Loaded(source, device)


class _Loaded:
    """A model in this process; it answers with what it finds most likely, so that a prompt stays the same."""

    def __init__(self, source: str, device: str | torch.device) -> None:
        transformers = require("transformers", "vlm")
        try:
            self.processor = transformers.AutoProcessor.from_pretrained(source)
        except (ImportError, ValueError) as error:
            if "torchvision" not in str(error):
                raise
            raise ImportError(
                f"{source} prepares its pictures with torchvision: pip install torchvision; or serve it (vllm serve "
                f"{source}) and give the server's address"
            ) from None
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            source, dtype="auto", use_safetensors=True
        ).to(device)

    @torch.no_grad()
    def __call__(self, prompt: str, image: np.ndarray | None) -> str:
        from PIL import Image

        shown = [] if image is None else [{"type": "image", "image": Image.fromarray(image)}]
        content = [*shown, {"type": "text", "text": INSTRUCTION + prompt}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        answer = self.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        (text,) = self.processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return _cleaned(text, prompt)


class _Served:
    """A model behind OpenAI's protocol."""

    def __init__(self, address: str, model: str) -> None:
        self.address = address
        self.model = model or self._ask("models")["data"][0]["id"]

    def __call__(self, prompt: str, image: np.ndarray | None) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": INSTRUCTION + prompt}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": _data_url(image)}})
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": TOKENS,
            "temperature": 0,
        }
        return _cleaned(self._ask("chat/completions", request)["choices"][0]["message"]["content"], prompt)

    def _ask(self, what: str, body: dict[str, Any] | None = None) -> Any:
        address, headers = f"{self.address}/{what}", {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise OSError(f"{address} answers {error.code} {error.reason}{ENDING}: {said}") from None
        except (urllib.error.URLError, TimeoutError, ValueError) as error:
            raise OSError(f"{address} does not answer as a server of OpenAI's protocol{ENDING}: {error}") from None


def _cleaned(text: str | None, prompt: str) -> str:
    """An answer in one line; models that think aloud end their thoughts with a tag."""
    words = (text or "").rpartition("</think>")[2].strip().strip('"')
    if not words:
        raise OSError(f"the rewriter gave no answer to {prompt[:80]!r}")
    return " ".join(words.split())


def _data_url(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
