"""Weights that wait in the computer's memory while a device too small for all of them computes.

Of the transformers and of the text encoder one block at a time is on the device, and the video tokenizer only while it
works. A block is copied before its turn and dropped after it; its weights do not change, so nothing is copied back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kairos_env.world_model.published.passes import ClipPasses
from kairos_env.world_model.text.qwen import QwenEncoder
from kairos_env.world_model.tokenizers.visiting import VisitingVAE
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE


def offload(model: ClipPasses, device: str | torch.device) -> None:
    """Has a model that was loaded into the computer's memory compute on ``device``, in place; for inference only."""
    device = torch.device(device)
    for expert in (model.transformer.video_dit, model.transformer.action_dit):
        if expert is not None:
            blocks, expert.blocks = expert.blocks, nn.ModuleList()
            expert.to(device).blocks = VisitingBlocks(blocks, device)
    vae = model.tokenizer
    if isinstance(vae, VideoVAE):
        del model.tokenizer  # a module gives way to something else only so
        model.tokenizer = VisitingVAE(vae, device)
    inner = getattr(model.encoder, "encoder", model.encoder)
    if isinstance(inner, QwenEncoder):
        visit_layers(inner.model, device)


class VisitingBlocks(nn.ModuleList):
    """Blocks of which the one that was asked for last is on the device."""

    def __init__(self, blocks: nn.ModuleList, device: torch.device) -> None:
        super().__init__(blocks)
        self.place = device
        self.resident = -1
        self._kept = [_waiting(block, device) for block in blocks]

    def __getitem__(self, index: int) -> nn.Module:  # type: ignore[override]
        block: nn.Module = super().__getitem__(index)
        if index != self.resident:
            if self.resident >= 0:
                _point(super().__getitem__(self.resident), self._kept[self.resident])
            _point(block, _copied(self._kept[index], self.place))
            self.resident = index
        return block

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[index] for index in range(len(self)))


def _waiting(block: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Its weights in the computer's memory, where a GPU copies them fastest from."""
    pinned = device.type == "cuda"
    kept = {name: x.detach().pin_memory() if pinned else x.detach() for name, x in block.named_parameters()}
    _point(block, kept)
    return kept


def _copied(kept: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: x.to(device, non_blocking=True, copy=True) for name, x in kept.items()}


def _point(block: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, parameter in block.named_parameters():
        parameter.data = tensors[name]


def visit_layers(model: nn.Module, device: torch.device) -> None:
    """Has the layers of a model (the children of its `ModuleList`) visit the device as they are called, in place.

    The rest of it, such as the embedding of words, is there to stay.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack]
    waiting = [(layer, _waiting(layer, device)) for layer in layers]
    model.to(device)
    for layer, kept in waiting:
        _point(layer, kept)
        layer.register_forward_pre_hook(lambda module, _, kept=kept: _point(module, _copied(kept, device)))
        layer.register_forward_hook(lambda module, _, __, kept=kept: _point(module, kept))
