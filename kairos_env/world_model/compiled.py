"""Functions of tensors compiled for the processor: traced by PyTorch, or run by OpenVINO.

At the sizes of a small model an imagined step is a thousand operations of a few microseconds. A traced one saves the
way through Python and computes the same; OpenVINO also fuses operations and packs weights, which takes seconds for
each shape and changes the last digits. ``engines`` decides which it is.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kairos_env.extras import require
from kairos_env.world_model.engines import EngineError

Function = Callable[..., tuple[Tensor, ...]]
PATIENCE = 8  # calls of a shape that go untraced: tracing takes the time of a hundred
SOLVE = "aten::linalg_solve_triangular"
MOST_SHAPES = 16  # that one function is compiled for; a further one replaces the oldest


class Compiled:
    """A function of tensors, compiled for each shape of its inputs and anew when the weights have changed.

    Args:
        function: of tensors, pure, from tensors that may be anywhere in memory.
        weights: the module whose parameters it reads.
        engine: ``"traced"`` or ``"openvino"``.
        exact: in float32; otherwise OpenVINO takes bfloat16 where the processor has units for it, in half the time.
    """

    def __init__(self, function: Function, weights: nn.Module, engine: str, exact: bool = True) -> None:
        self.function, self.engine, self.exact = function, engine, exact
        self._parameters = list(weights.parameters())
        self._forget()

    def _forget(self) -> None:
        self._compiled: dict[tuple[torch.Size, ...], Function] = {}
        self._calls: Counter[tuple[torch.Size, ...]] = Counter()
        self._version = -1

    def __getstate__(self) -> dict[str, Any]:
        """Compiled functions stay where they are: a copy compiles its own."""
        return self.__dict__ | {"_compiled": {}, "_calls": Counter(), "_version": -1}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        version = sum(p._version for p in self._parameters)
        if version != self._version:
            self._forget()
            self._version = version
        shapes = tuple(x.shape for x in inputs)
        run = self._compiled.get(shapes)
        if run is not None:
            return run(*inputs)
        self._calls[shapes] += 1
        if self._calls[shapes] <= PATIENCE and self.engine == "traced":
            return self.function(*inputs)
        if len(self._compiled) == MOST_SHAPES:
            del self._compiled[next(iter(self._compiled))]
        traced = _trace(self.function, inputs, self._parameters)
        self._compiled[shapes] = traced if self.engine == "traced" else _openvino(traced, inputs, self.exact)
        return self._compiled[shapes](*inputs)


@contextmanager
def _constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters as constants: a graph takes none that has a gradient."""
    learned = [p for p in parameters if p.requires_grad]
    for p in learned:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learned:
            p.requires_grad_(True)


def _trace(function: Function, inputs: tuple[Tensor, ...], parameters: Sequence[nn.Parameter]) -> Any:
    def named(*tensors: Tensor) -> tuple[Tensor, ...]:  # PyTorch asks for a name, which partial functions have not
        return function(*tensors)

    with warnings.catch_warnings(), _constant(parameters):
        warnings.simplefilter("ignore")  # sizes become constants, which is meant: each shape has its own trace
        function(*inputs)  # what is cached is then made outside of the trace
        return torch.jit.trace(named, inputs, check_trace=False)


# OpenVINO -------------------------------------------------------------------------------------------------------------


def _openvino(traced: Any, inputs: tuple[Tensor, ...], exact: bool) -> Function:
    """A traced function by OpenVINO, on as many threads as PyTorch has; ``exact`` as in `Compiled`."""
    ov = require("openvino", "fast")
    require("openvino.frontend.pytorch", "fast")
    used = [index for index, value in enumerate(traced.graph.inputs()) if value.uses()]
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if exact:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = ov.Core().compile_model(_network(traced, inputs), "CPU", settings).create_infer_request()
    outputs = [(tuple(port.shape), port.element_type.to_dtype()) for port in request.model_outputs]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = {index: tensors[index].detach().contiguous().numpy() for index in used}
        for index, array in given.items():
            request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
        found = [np.empty(shape, dtype) for shape, dtype in outputs]
        for index, array in enumerate(found):
            request.set_output_tensor(index, ov.Tensor(array, shared_memory=True))
        request.infer()
        return tuple(torch.from_numpy(array) for array in found)

    return run


def _network(traced: Any, inputs: Sequence[Tensor]) -> Any:
    """A traced function as an OpenVINO model of those input shapes."""
    ov = require("openvino", "fast")
    frontend = require("openvino.frontend", "fast").FrontEndManager().load_by_framework("pytorch")
    extension = require("openvino.frontend.pytorch", "fast").ConversionExtension
    frontend.add_extension(extension("aten::mT", _transposed))
    sizes = {next(node.inputs()).type().sizes()[-1] for node in traced.graph.nodes() if node.kind() == SOLVE}
    if len(sizes) > 1:
        raise EngineError(f"systems of different sizes {sorted(sizes)} cannot be converted for OpenVINO")
    frontend.add_extension(extension(SOLVE, partial(_substituted, *sizes)))
    decoder = require("openvino.frontend.pytorch.ts_decoder", "fast").TorchScriptPythonDecoder(traced)
    model = frontend.load(decoder)  # which does not keep the decoder alive
    for place, x in zip(model.get_inputs(), inputs, strict=True):
        model.set_partial_shape(place, ov.PartialShape(list(x.shape)))
    return frontend.convert(model)


def _transposed(context: Any) -> Any:
    """``x.mT`` of a tensor with three axes or more."""
    op = require("openvino.opset13", "fast")
    x = context.get_input(0)
    axes = list(range(x.get_partial_shape().rank.get_length()))
    return op.transpose(x, np.array([*axes[:-2], axes[-1], axes[-2]])).outputs()


def _substituted(size: int, context: Any) -> Any:
    """``torch.linalg.solve_triangular(a, b, upper=True, left=False, unitriangular=True)``: x of x a = b, a of ``size``.

    By halves, x = [x_1 | x_2]: x_1 a_11 = b_1, then x_2 a_22 = b_2 - x_1 a_12.
    """
    op = require("openvino.opset13", "fast")
    a, b = context.get_input(0), context.get_input(1)

    def part(x: Any, first: int, last: int, axis: int) -> Any:
        return op.slice(x, *(np.array([number]) for number in (first, last, 1, axis)))

    def solve(first: int, last: int, right: Any) -> Any:
        if last - first == 1:
            return right
        middle = (first + last) // 2
        x = solve(first, middle, part(right, 0, middle - first, 2))
        corner = part(part(a, first, middle, 1), middle, last, 2)
        rest = op.subtract(part(right, middle - first, last - first, 2), op.matmul(x, corner, False, False))
        return op.concat([x, solve(middle, last, rest)], 2)

    return solve(0, size, b).outputs()
