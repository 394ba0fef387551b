"""Off-loaded weights give the same clips, and only one block is on the device at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stored_outputs import seeded_miniature
from torch import nn

from kairos_env.world_model import dit
from kairos_env.world_model.published.offload import VisitingBlocks, offload
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.tokenizers.visiting import VisitingVAE


def copies(blocks: VisitingBlocks) -> list[int]:
    """The blocks whose weights are copies of those that wait."""
    return [
        index
        for index, kept in enumerate(blocks._kept)
        if nn.ModuleList.__getitem__(blocks, index).ffn[0].weight.data_ptr() != kept["ffn.0.weight"].data_ptr()
    ]


def test_the_same_clip_with_one_block_at_a_time() -> None:
    model, other = seeded_miniature("4b-robot"), seeded_miniature("4b-robot")
    want = other.generate("lift the cube", steps=2, guidance=3.0, progress=False)
    names = list(model.transformer.state_dict())
    offload(model, "cpu")
    blocks = model.transformer.video_dit.blocks
    assert isinstance(blocks, VisitingBlocks) and isinstance(model.tokenizer, VisitingVAE)
    assert list(model.transformer.state_dict()) == names and copies(blocks) == []
    found = model.generate("lift the cube", steps=2, guidance=3.0, progress=False)
    assert np.array_equal(found.frames, want.frames)
    assert copies(blocks) == [len(blocks) - 1]
    whole = model.generate("lift the cube", steps=2, guidance=3.0, tiled=False, progress=False)
    assert np.array_equal(whole.frames, want.frames)  # a picture of one tile


def test_the_same_chunk_of_both_experts() -> None:
    model, other = seeded_miniature("4b-libero"), seeded_miniature("4b-libero")
    offload(model, "cpu")
    observed = torch.randn(1, 1, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    context = Context(torch.ones(1, 5, model.config.text_dim))
    want = other.act(observed, context, steps=2, horizon=8)
    assert torch.equal(model.act(observed, context, steps=2, horizon=8), want)
    assert copies(model.transformer.action_dit.blocks) == [7]  # type: ignore[union-attr,arg-type]


def test_feed_forward_layers_take_a_long_clip_in_pieces() -> None:
    layers = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8))
    x, seen = torch.randn(2, 5, 7, 8), []
    layers.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    want = layers(x)
    piece, dit.PIECE = dit.PIECE, 10
    try:
        with torch.no_grad():
            torch.testing.assert_close(dit.in_pieces(layers, x), want)
        assert seen[1:] == [10, 10, 10, 5]
        assert dit.in_pieces(layers, x).requires_grad and seen[-1] == 5 and len(seen) == 6  # whole, for the gradient
    finally:
        dit.PIECE = piece


def test_rms_normalisation_does_not_warn_of_mixed_dtypes(recwarn: pytest.WarningsRecorder) -> None:
    norm = dit.WidthNorm(64, eps=1e-6)
    nn.init.normal_(norm.weight)
    x = torch.randn(5, 64).bfloat16()
    want = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) * norm.weight).bfloat16()
    torch.testing.assert_close(norm(x), want)
    assert norm(x).dtype == torch.bfloat16
    assert len(recwarn) == 0
