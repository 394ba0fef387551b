"""Which precision a machine trains faster in."""

from __future__ import annotations

import time
from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]
SHAPE = (4096, 256, 1024)  # a layer's product at the sizes of training
MARGIN = 1.1  # bf16 has to be so much faster in products, for what conversions cost


def choose_precision(wanted: Precision, device: str) -> tuple[Literal["bf16", "fp32"], str]:
    """The precision of a training, and why.

    ``"auto"`` measures on a CPU, since CPUs differ both ways: bfloat16 products were 2.5 times as fast as float32 ones
    on one of AMD's with AVX512-BF16, half as fast on one without. A training step follows by 1.4 and 0.8.
    """
    if wanted != "auto":
        return wanted, "as asked for"
    if torch.device(device).type != "cpu":
        return "bf16", f"chosen for {device}"
    ratio = product_seconds(torch.float32) / product_seconds(torch.bfloat16)
    return "bf16" if ratio > MARGIN else "fp32", f"products in bf16 are {ratio:.2f} times as fast as in fp32 here"


def product_seconds(dtype: torch.dtype) -> float:
    """CPU-seconds of a matrix product of `SHAPE`, the least of several."""
    rows, inner, columns = SHAPE
    a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    found = []
    for _ in range(6):
        began = time.process_time()
        a @ b
        found.append(time.process_time() - began)
    return max(min(found[1:]), 1e-9)  # the first one prepares kernels
