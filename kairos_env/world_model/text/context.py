"""What conditions a transformer beside the video: context tokens, and who makes them of words and pictures."""

from __future__ import annotations

from collections.abc import Sequence
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
