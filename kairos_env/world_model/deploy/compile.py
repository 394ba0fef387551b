"""Faster decisions: `WorldActionModel.act` compiled, and on CUDA recorded whole.

At the sizes of a policy the hardware waits for Python: a decision is some ten thousand small operations. ``compiled``
fuses them with torch.compile, for fixed shapes. On CUDA a decision, prefill and all denoising steps, is then recorded
as one CUDA graph and launched at once. Both cost minutes, once for each shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.world_model.attention.whole_clip import Local
from kairos_env.world_model.mixture import Contexts
from kairos_env.world_model.published.passes import VideoCache
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context

MOST_SHAPES = 64  # that one process compiles for; beyond it PyTorch would go on uncompiled
WARM_UP = 3  # calls before a recording: kernels are compiled and tuned in them


def compiled(model: WorldActionModel, context_unit: int = 32, backend: str = "inductor") -> WorldActionModel:
    """The same model, on the same weights, with a compiled `act`; its other verbs are as before.

    The first decision of each shape compiles: make one before it counts. A shape is that of the observed latents and
    of the noise, the number of steps, and the context's length rounded up.

    Args:
        context_unit: contexts are padded with masked tokens to a multiple of this, so that instructions of different
            length share a shape.
        backend: of torch.compile. ``"eager"`` only traces.

    Raises:
        ValueError: the model is sharded over processes.
    """
    if not isinstance(model.mixing, Local):
        raise ValueError(f"only a model on one device can be compiled, this one has {type(model.mixing).__name__}")
    return CompiledModel(model, context_unit, backend)


class CompiledModel(WorldActionModel):
    """See `compiled`."""

    def __init__(self, model: WorldActionModel, context_unit: int, backend: str) -> None:
        super().__init__(model.config, model.transformer, model.tokenizer, model.encoder)
        # observed clips are short, and a recording must not depend on another engine's cached masks
        self.mixing = Local("sdpa")
        self.context_unit = context_unit
        self._prefill = torch.compile(super().prefill, dynamic=False, backend=backend)
        self._action_velocity = torch.compile(super().action_velocity, dynamic=False, backend=backend, fullgraph=True)
        self._recordings: dict[tuple[object, ...], CapturedGraph] = {}

    def prefill(self, latents: Tensor, context: Context | Contexts, history: int | None = None) -> VideoCache:
        """See `WorldActionModel.prefill`."""
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            return self._prefill(latents, context, history)

    def action_velocity(self, actions: Tensor, sigma: Tensor, context: Context | Contexts, cache: VideoCache) -> Tensor:
        """See `WorldActionModel.action_velocity`."""
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            return self._action_velocity(actions, sigma, context, cache)

    @torch.no_grad()
    def denoise_actions(
        self, observed: Tensor, context: Context, noise: Tensor, steps: int, history: int | None = None
    ) -> Tensor:
        """See `WorldActionModel.denoise_actions`."""
        tokens, mask = padded(context, self.context_unit)
        if noise.device.type != "cuda":
            return super().denoise_actions(observed, Context(tokens, mask), noise, steps, history)
        inputs = (observed, tokens, mask, noise)
        key = (steps, history, *((x.shape, x.dtype) for x in inputs))
        if key not in self._recordings:
            plain = super().denoise_actions
            self._recordings[key] = CapturedGraph(
                lambda o, t, m, n: plain(o, Context(t, m), n, steps, history), *inputs
            )
        return self._recordings[key](*inputs)


def padded(context: Context, unit: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask of a context, with masked tokens behind, to a multiple of ``unit`` tokens."""
    tokens, mask = context
    if mask is None:
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
    missing = -tokens.shape[1] % unit
    return F.pad(tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing))


class CapturedGraph:
    """A function of CUDA tensors as one CUDA graph, for the shapes, and the weights in place, that it was made with."""

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        self._inputs = [x.clone() for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for recorded, given in zip(self._inputs, inputs, strict=True):
            recorded.copy_(given)
        self._graph.replay()
        return self._output.clone()
