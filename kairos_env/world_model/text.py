"""Instruction -> context tokens: the byte-level encoder of the small models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kairos_env.world_model.config import TextConfig

PAD = 256


def to_bytes(texts: Sequence[str], max_bytes: int) -> Tensor:
    """UTF-8 bytes, padded: (B, S) int64 with S the longest text (at least 1).

    Raises:
        ValueError: an instruction longer than ``max_bytes``; it is never cut silently.
    """
    encoded = [text.encode() for text in texts]
    for text, code in zip(texts, encoded, strict=True):
        if len(code) > max_bytes:
            raise ValueError(f"instruction has {len(code)} bytes, this model takes at most {max_bytes}: {text!r}")
    length = max(1, *(len(code) for code in encoded))
    rows = [list(code) + [PAD] * (length - len(code)) for code in encoded]
    return torch.tensor(rows, dtype=torch.int64)


class ByteEncoder(nn.Module):
    """Transformer over bytes, pooled into a fixed number of context tokens by learned queries."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(PAD + 1, config.dim, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(config.max_bytes, config.dim) * 0.1)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 2 * config.dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.queries = nn.Parameter(torch.randn(config.tokens, config.dim) * 0.1)
        self.pool = nn.MultiheadAttention(config.dim, config.heads, batch_first=True)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, S) byte codes -> (B, tokens, dim)."""
        # the first position always counts, so that an empty instruction is legal
        padding = codes == PAD
        padding[:, 0] = False
        x = self.embedding(codes) + self.position[: codes.shape[1]]
        x = self.layers(x, src_key_padding_mask=padding)
        queries = self.queries.expand(len(codes), -1, -1)
        pooled, _ = self.pool(queries, x, x, key_padding_mask=padding, need_weights=False)
        return self.norm(queries + pooled)
