"""TeaCache: denoising steps whose blocks are left out because they would say what they said before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

# Wan2.1-T2V-1.3B, which the published video weights were accelerated with; highest power first.
COEFFICIENTS = (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02)


class Embedded(Protocol):
    """Latents as a transformer's input: what `TeaCache` needs of `visibility.Tokens`."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def modulation(self) -> Tensor: ...


Clip = TypeVar("Clip", bound=Embedded)


class TeaCache:
    """A `Velocity` that skips the blocks while the timestep's modulation hardly changes (Liu et al. 2024, TeaCache).

    What all blocks together added to the tokens when they last ran is added again instead. The relative L1 change of
    the modulation from step to step goes through a polynomial that was fitted to the change of the output; the blocks
    run when the sum of these since they last ran reaches the threshold, and always at the first and the last step.

    One object serves one clip and one prompt; ``computed`` and ``skipped`` count its steps.

    Args:
        embed: latents, sigma -> tokens and modulation.
        blocks: those -> output tokens.
        read: output tokens, the input -> velocity.
        steps: of the whole schedule.
        threshold: 0 skips nothing; the published setting is 0.1.
        coefficients: of the polynomial, highest power first.
    """

    def __init__(
        self,
        embed: Callable[[Tensor, Tensor], Clip],
        blocks: Callable[[Clip], Tensor],
        read: Callable[[Tensor, Clip], Tensor],
        steps: int,
        threshold: float,
        coefficients: Sequence[float] = COEFFICIENTS,
    ) -> None:
        if not threshold >= 0:
            raise ValueError(f"the TeaCache threshold must be at least 0, got {threshold}")
        self.embed, self.blocks, self.read = embed, blocks, read
        self.steps, self.threshold, self.coefficients = steps, threshold, tuple(coefficients)
        self.computed = self.skipped = 0
        self._change = 0.0
        self._modulation = self._added = torch.empty(0)

    def __call__(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """latents (B, F, C, h, w), sigma (B, F) -> velocity (B, F, C, h, w)."""
        if self.computed + self.skipped == self.steps:
            raise ValueError(f"this TeaCache has served its {self.steps} steps; make a new one for the next clip")
        video = self.embed(latents, sigma)
        if self._due(video.modulation):
            tokens = self.blocks(video)
            self._added = tokens - video.tokens
            self.computed += 1
        else:
            tokens = video.tokens + self._added
            self.skipped += 1
        return self.read(tokens, video)

    def _due(self, modulation: Tensor) -> bool:
        step, before, self._modulation = self.computed + self.skipped, self._modulation, modulation
        if step in (0, self.steps - 1) or self.threshold == 0:
            self._change = 0.0
            return True
        change = float((modulation - before).abs().mean() / before.abs().mean())
        self._change += float(np.polyval(self.coefficients, change))
        if self._change < self.threshold:
            return False
        self._change = 0.0
        return True
