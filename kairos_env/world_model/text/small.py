"""Instruction -> context tokens: the encoders of the small models, over bytes or over words."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kairos_env.records import Array
from kairos_env.world_model.config import TextConfig
from kairos_env.world_model.text.context import Context

PAD = 256
VOCABULARY = 4096  # rows that words are hashed to; the first stands for no word


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
        self.max_bytes = config.max_bytes
        self.embedding = nn.Embedding(PAD + 1, config.dim, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(config.max_bytes, config.dim) * 0.1)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 2 * config.dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.queries = nn.Parameter(torch.randn(config.tokens, config.dim) * 0.1)
        self.pool = nn.MultiheadAttention(config.dim, config.heads, batch_first=True)
        self.norm = nn.LayerNorm(config.dim)

    def codes(self, texts: Sequence[str]) -> Tensor:
        """What `forward` takes, see `to_bytes`."""
        return to_bytes(texts, self.max_bytes)

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


def to_words(texts: Sequence[str], most: int) -> Tensor:
    """Hashes of the words in small letters, padded with 0: (B, most) int64, each below `VOCABULARY`.

    Raises:
        ValueError: an instruction of more than ``most`` words; it is never cut silently.
    """
    rows = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        if len(words) > most:
            raise ValueError(f"instruction has {len(words)} words, this model takes at most {most}: {text!r}")
        hashes = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
        rows.append(hashes + [0] * (most - len(words)))
    return torch.tensor(rows, dtype=torch.int64)


class WordEncoder(nn.Module):
    """A context token for each word: its embedding, mixed with those of the others by a transformer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.embedding = nn.Embedding(VOCABULARY, config.dim)
        self.position = nn.Parameter(torch.randn(config.tokens, config.dim) * 0.1)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 2 * config.dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.dim)

    def codes(self, texts: Sequence[str]) -> Tensor:
        """What `forward` takes, see `to_words`."""
        return to_words(texts, self.tokens)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, tokens) word codes -> (B, tokens, dim)."""
        # the first position always counts, so that an empty instruction is legal
        padding = codes == 0
        padding[:, 0] = False
        x = self.embedding(codes) + self.position
        return self.norm(self.layers(x, src_key_padding_mask=padding))


def make_encoder(config: TextConfig) -> ByteEncoder | WordEncoder:
    """The encoder of the unit that ``config`` names."""
    return WordEncoder(config) if config.unit == "word" else ByteEncoder(config)


class UntrainedEncoder:
    """Byte encoder with random weights in the place of a big one: for miniatures of published releases.

    Args:
        text_dim: width of its context tokens. Pictures are ignored.
    """

    def __init__(self, text_dim: int) -> None:
        self.text_dim, self.most = text_dim, 4096
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = ByteEncoder(TextConfig(dim=text_dim, max_bytes=self.most)).eval().requires_grad_(False)

    def encode(self, prompts: Sequence[str], images: Sequence[Array | None] | None = None) -> Context:
        """See `qwen.ContextEncoder`."""
        return Context(self.network(to_bytes(prompts, self.most)))
