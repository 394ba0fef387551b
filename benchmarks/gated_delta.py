"""Chunked against naive gated delta rule on one CPU thread: ``python benchmarks/gated_delta.py``.

Milliseconds, the fastest of several runs (the machine's own noise only ever adds), for B1 H8 K64 V64 float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from kairos_env.world_model.gated_delta import Engine, gated_delta

# What one core has needed elsewhere for the forward pass, tokens -> ms: the figure to beat.
REFERENCE_MS = {1024: 38.0, 4096: 133.0}


def fastest_ms(run: Callable[[], object], seconds: float) -> float:
    """The shortest of at least three runs within about ``seconds``, after one for warming up."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def draw_inputs(tokens: int, heads: int, width: int) -> tuple[Tensor, ...]:
    """q, k, v, g, beta of batch 1, requiring gradients."""
    rng = torch.Generator().manual_seed(0)
    wide = [torch.randn(1, tokens, heads, width, generator=rng) for _ in range(3)]
    g, beta = -torch.rand(1, tokens, heads, generator=rng), torch.rand(1, tokens, heads, generator=rng)
    return tuple(x.requires_grad_() for x in (*wide, g, beta))


def measure(engine: Engine, tokens: int, heads: int, width: int, seconds: float) -> tuple[float, float]:
    """Milliseconds of one forward pass, and of one forward and backward pass."""
    inputs = draw_inputs(tokens, heads, width)

    def forward() -> None:
        with torch.no_grad():
            gated_delta(*inputs, engine=engine)

    def forward_backward() -> None:
        gated_delta(*inputs, engine=engine)[0].sum().backward()

    return fastest_ms(forward, seconds), fastest_ms(forward_backward, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64, help="K = V")
    parser.add_argument("--seconds", type=float, default=1.5, help="time per figure")
    options = parser.parse_args()
    torch.set_num_threads(1)

    print(f"gated delta rule, B1 H{options.heads} K{options.width} V{options.width}, float32, one thread, ms")
    print(f"{'':6} | {'forward':^33} | {'forward + backward':^26} | one core elsewhere,")
    print(
        f"{'tokens':>6} | {'naive':>8} {'chunked':>8} {'speed-up':>9} {'':5} | "
        f"{'naive':>8} {'chunked':>8} {'speed-up':>8} | forward"
    )
    for tokens in options.tokens:
        naive = measure("naive", tokens, options.heads, options.width, options.seconds)
        fast = measure("chunked", tokens, options.heads, options.width, options.seconds)
        reference = REFERENCE_MS.get(tokens) if (options.heads, options.width) == (8, 64) else None
        print(
            f"{tokens:6} | {naive[0]:8.1f} {fast[0]:8.1f} {naive[0] / fast[0]:8.1f}x {'':5} | "
            f"{naive[1]:8.1f} {fast[1]:8.1f} {naive[1] / fast[1]:7.1f}x | "
            + (f"{reference:.0f}" if reference else "-"),
            flush=True,
        )


if __name__ == "__main__":
    main()
