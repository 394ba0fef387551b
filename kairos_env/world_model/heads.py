"""What a frame's tokens tell beside the picture: reward, success, object position, and how sure the model is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Readout(NamedTuple):
    """Raw head outputs of a frame: reward (...), success logit (...), object position in decimetres (..., 3)."""

    reward: Tensor
    success: Tensor
    object_position: Tensor


UNLIKELY = -10.0  # logit of a success that nobody has learnt to see


class FrameHeads(nn.Module):
    """Heads on the output tokens of a frame.

    Tokens are narrowed and then flattened, never averaged: where the cube is, is the question, and a
    mean over tokens forgets it.

    Args:
        neutral: untrained heads say nothing: no reward, no success, an error of one standard deviation.
    """

    def __init__(self, dim: int, tokens: int, text_dim: int, width: int, neutral: bool = False) -> None:
        super().__init__()
        narrow = max(8, dim // 10)
        self.norm = nn.LayerNorm(dim)
        self.narrow = nn.Linear(dim, narrow)
        self.task = nn.Sequential(nn.Linear(tokens * narrow + text_dim, width), nn.SiLU(), nn.Linear(width, 2))
        self.object = nn.Sequential(nn.Linear(tokens * narrow, width), nn.SiLU(), nn.Linear(width, 3))
        self.error = nn.Sequential(nn.Linear(tokens * narrow, width), nn.SiLU(), nn.Linear(width, 1))
        if neutral:
            for head in (self.task, self.object, self.error):
                for weight in head[-1].parameters():
                    nn.init.zeros_(weight)
            with torch.no_grad():
                self.task.get_parameter("2.bias")[1] = UNLIKELY

    def _flat(self, tokens: Tensor) -> Tensor:
        return torch.nn.functional.silu(self.narrow(self.norm(tokens))).flatten(-2)

    def forward(self, tokens: Tensor, context: Tensor) -> Readout:
        """Clean tokens (B, F, L, D), pooled instruction (B, text_dim) -> `Readout` with leading (B, F)."""
        flat = self._flat(tokens)
        task = self.task(torch.cat([flat, context.unsqueeze(1).expand(-1, flat.shape[1], -1)], -1)).float()
        return Readout(task[..., 0], task[..., 1], self.object(flat).float())

    def objects(self, tokens: Tensor) -> Tensor:
        """Object position of noisy tokens (training only): keeps small things alive in a predicted frame."""
        return self.object(self._flat(tokens)).float()

    def log_error(self, tokens: Tensor) -> Tensor:
        """Predicted log mean squared error of the latent frame that these noisy tokens denoise to: (B, F)."""
        return self.error(self._flat(tokens)).squeeze(-1).float()
