"""What conditions a transformer beside the video: context tokens, and who makes them of words and pictures."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Context(NamedTuple):
    """What the transformers attend to beside the video.

    Args:
        tokens: (B, S, D).
        mask: (B, S) bool, True = valid; None when every token is.
    """

    tokens: Tensor
    mask: Tensor | None = None

    @classmethod
    def cat(cls, contexts: Sequence[Context]) -> Context:
        """Contexts of any lengths -> one batch, padded with zeros on the right; always a copy."""
        widths = {context.tokens.shape[-1] for context in contexts}
        if len(widths) != 1:
            raise ValueError(f"contexts of one batch need one width, got {sorted(widths) or 'no context'}")
        length = max(context.tokens.shape[1] for context in contexts)
        size = sum(len(context.tokens) for context in contexts)
        tokens = contexts[0].tokens.new_zeros(size, length, widths.pop())
        mask = torch.zeros(size, length, dtype=torch.bool, device=tokens.device)
        row = 0
        for context in contexts:
            b, s, _ = context.tokens.shape
            tokens[row : row + b, :s] = context.tokens
            mask[row : row + b, :s] = True if context.mask is None else context.mask
            row += b
        return cls(tokens, None if mask.all() else mask)

    def rows(self) -> list[Context]:
        """A copy of the valid tokens of each prompt: (1, S_i, D) each, no mask."""
        if self.mask is None:
            return [Context(row[None].clone()) for row in self.tokens]
        return [Context(row[mask][None]) for row, mask in zip(self.tokens, self.mask, strict=True)]


class ContextEncoder(Protocol):
    """What a `WorldActionModel` asks of its conditioning encoder."""

    text_dim: int

    def encode(self, prompts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Context:
        """Instructions and uint8 (H, W, 3) pictures (None: no picture) -> (B, S, text_dim)."""
        ...


class CachedEncoder:
    """Remembers the contexts of the last ``size`` instructions (with their pictures); least recently used ones go.

    An entry stays on the encoder's device: 0.2 MB for a short instruction, 2 MB with a picture, at width 3584 in bf16.
    """

    def __init__(self, encoder: ContextEncoder, size: int = 128) -> None:
        if size < 1:
            raise ValueError(f"a cache needs a size of at least 1, got {size}")
        self.encoder, self.size, self.text_dim = encoder, size, encoder.text_dim
        self.kind = getattr(encoder, "kind", None)
        self._rows: OrderedDict[Hashable, Context] = OrderedDict()

    def encode(self, prompts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Context:
        """As the encoder's own; what is not remembered is encoded in one batch, repetitions once."""
        prompts, images = as_pairs(prompts, images)
        # a picture that the encoder ignores must not make a new entry
        if not getattr(getattr(self.encoder, "settings", None), "use_image", True):
            images = [None] * len(prompts)
        keys = [(prompt, _digest(image)) for prompt, image in zip(prompts, images, strict=True)]
        new = {key: i for i, key in enumerate(keys) if key not in self._rows}
        rows = {key: self._rows[key] for key in keys if key not in new}
        if new:
            fresh = self.encoder.encode([prompts[i] for i in new.values()], [images[i] for i in new.values()])
            rows.update(zip(new, fresh.rows(), strict=True))
        for key in keys:
            self._rows[key] = rows[key]
            self._rows.move_to_end(key)
        while len(self._rows) > self.size:
            self._rows.popitem(last=False)
        return Context.cat([rows[key] for key in keys])

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        self._rows.clear()


def as_pairs(
    prompts: Sequence[str], images: Sequence[np.ndarray | None] | None
) -> tuple[list[str], list[np.ndarray | None]]:
    """Prompts with a picture or None for each."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts must be a sequence of at least one string, got {prompts!r}")
    if images is not None and len(images) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(images)} images; give one for each, None for no image")
    return list(prompts), [None] * len(prompts) if images is None else list(images)


def _digest(image: np.ndarray | None) -> bytes | None:
    if image is None:
        return None
    image = np.asarray(image)
    return hashlib.blake2b(f"{image.dtype} {image.shape} ".encode() + image.tobytes()).digest()
