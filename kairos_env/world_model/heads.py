"""What a frame's tokens tell beside the picture: reward, success, where objects are, and how sure the model is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kairos_env.world_model.dit import in_float32

CERTAIN, LOST = -10.0, 4.0  # least and largest logarithm of an expected mean squared error
UNLIKELY = -10.0  # logit of a success that nobody has learnt to see


class FrameHeads(nn.Module):
    """Heads on the output tokens of a frame.

    Tokens are narrowed and then flattened, never averaged: where the cube is, is the question, and a
    mean over tokens forgets it.

    Args:
        objects: O; features: K, of the measured features that reward and success also see.
        errors: E, how many expected errors there are.
        neutral: untrained heads say nothing: no reward, no success, an error of one standard deviation.
    """

    def __init__(
        self,
        dim: int,
        tokens: int,
        text_dim: int,
        width: int,
        objects: int = 1,
        features: int = 0,
        errors: int = 1,
        neutral: bool = False,
    ) -> None:
        super().__init__()
        narrow = max(8, dim // 10)
        self.norm = nn.LayerNorm(dim)
        self.narrow = nn.Linear(dim, narrow)

        def head(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))

        self.task = head(tokens * narrow + features + text_dim, 2)
        if objects:
            self.object = head(tokens * narrow, 3 * objects)
        self.error = head(tokens * narrow, errors)
        if neutral:
            for part in (self.object, self.error):
                for weight in part[-1].parameters():
                    nn.init.zeros_(weight)
            self.silence_outcome()

    @torch.no_grad()
    def silence_outcome(self) -> None:
        """Lets reward and success say nothing: none and unlikely, whatever the frame."""
        for weight in self.task[-1].parameters():
            nn.init.zeros_(weight)
        self.task.get_parameter("2.bias")[1] = UNLIKELY

    def flat(self, tokens: Tensor) -> Tensor:
        """Output tokens (..., L, D) -> what every head reads, (..., L n)."""
        return F.silu(self.narrow(self.norm(tokens))).flatten(-2)

    def outcome(self, flat: Tensor, context: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reward and logit of success (...), for pooled instructions (..., text_dim) and features (..., K)."""
        parts = [flat, context] if features is None else [flat, features, context]
        found = _precisely(self.task, torch.cat(parts, -1))
        return found[..., 0], found[..., 1]

    def objects(self, flat: Tensor) -> Tensor:
        """What positions (..., O, 3) in decimetres differ by from what was known before the pass."""
        if not hasattr(self, "object"):
            return flat.new_zeros(*flat.shape[:-1], 0, 3).float()
        return _precisely(self.object, flat).unflatten(-1, (-1, 3))

    def errors(self, flat: Tensor) -> Tensor:
        """Logarithm of the expected mean squared errors (..., E)."""
        return _precisely(self.error, flat)


def _precisely(head: nn.Sequential, x: Tensor) -> Tensor:
    """The head in float32 whatever is around it: in bfloat16 a position would be known to half a millimetre only."""
    with torch.autocast(x.device.type, enabled=False):
        return in_float32(head, x)
