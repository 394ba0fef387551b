"""Weights in 8 or 4 bits: a world-action model in 5 or 3 GB, with the error that this costs, measured.

Weight-only: products are computed in the model's dtype, weights are unpacked on the way. Only the linear layers of
the blocks are quantised, 98 % of all weights. Time and context embeddings, heads, norms and the decay
and strength of the delta rule stay exact: they are small, and an error there moves every token alike.

Quantised weights are not saved and not trained: quantise after loading, and after moving to the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kairos_env.extras import require
from kairos_env.world_model.published.world_action import WorldActionModel

Scheme = Literal["int8", "int4"]
EXACT = ("a_proj", "b_proj")  # log decay and write strength: they act through exponentials
GROUPS = (32, 64, 128, 256)  # of 4-bit weights that the kernels know


@dataclass(frozen=True)
class QuantizationReport:
    """What became smaller, and what it cost.

    Args:
        scheme: ``"int8"`` or ``"int4"``.
        layers: number of quantised layers.
        bytes_before, bytes_after: of all weights of the transformers.
        error: ``|v' - v| / |v|`` (2-norms) of what was probed.
    """

    scheme: Scheme
    layers: int
    bytes_before: int
    bytes_after: int
    error: float


def quantize(
    model: WorldActionModel, scheme: Scheme, probe: Callable[[], Tensor], group: int = 64
) -> QuantizationReport:
    """Quantises the transformers of a model in place.

    Args:
        scheme: ``"int8"`` has one scale for each output, ``"int4"`` a scale and a zero point for each ``group`` inputs.
        probe: computes something with the model, such as a velocity of typical inputs; called before and after.
        group: of ``"int4"``: 32, 64, 128 or 256. Smaller ones are more exact and take more memory.

    Raises:
        ImportError: torchao is not installed.
        ValueError: the scheme does not fit the weights or the device, or they are quantised already.
    """
    layers = _block_layers(model.transformer)
    _check(layers, scheme, group)
    before, bytes_before = probe(), count_bytes(model.transformer)
    config = _config(scheme, group, model.device)
    require("torchao.quantization", "quantize").quantize_(
        model.transformer, config, filter_fn=lambda layer, name: name in layers
    )
    error = (probe().double() - before.double()).norm() / before.double().norm()
    return QuantizationReport(scheme, len(layers), bytes_before, count_bytes(model.transformer), float(error))


def count_bytes(module: nn.Module) -> int:
    """Bytes of its weights as they are held, scales and zero points included."""
    return sum(_bytes(weight) for weight in module.parameters())


def _bytes(x: Tensor) -> int:
    if is_traceable_wrapper_subclass(x):
        return sum(_bytes(getattr(x, name)) for name in x.__tensor_flatten__()[0])
    return x.numel() * x.element_size()


def _block_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: layer
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and ".blocks." in name and name.rpartition(".")[2] not in EXACT
    }


def _check(layers: dict[str, nn.Linear], scheme: Scheme, group: int) -> None:
    if scheme not in get_args(Scheme):
        raise ValueError(f"unknown quantisation {scheme!r}; legal: {', '.join(get_args(Scheme))}")
    weight = next(iter(layers.values())).weight
    if is_traceable_wrapper_subclass(weight):
        raise ValueError(f"the model is quantised already ({type(weight).__name__}); load it again")
    if scheme == "int8":
        return
    if weight.dtype != torch.bfloat16 or weight.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"int4 needs bfloat16 weights on cpu or cuda, these are {weight.dtype} on {weight.device.type}; "
            "call model.to(torch.bfloat16) first, or take int8"
        )
    legal = [size for size in GROUPS if not any(layer.in_features % size for layer in layers.values())]
    if group not in legal:
        raise ValueError(
            f"groups of {group} inputs do not fit every layer; legal for this model: "
            f"{', '.join(map(str, legal)) or 'none, take int8'}"
        )


def _config(scheme: Scheme, group: int, device: torch.device) -> Any:
    quantization = require("torchao.quantization", "quantize")
    settings = {"set_inductor_config": False}  # it would change torch.compile for the whole process
    if scheme == "int8":
        return quantization.Int8WeightOnlyConfig(**settings)
    if device.type == "cuda":
        return quantization.Int4WeightOnlyConfig(group, int4_packing_format="tile_packed_to_4d", **settings)
    # the same numbers, packed for a CPU
    return require("torchao.prototype.quantization.int4", "quantize").PrototypeInt4WeightOnlyConfig(group, **settings)
