"""What do longer clips cost? Windowed layers beside full attention, and every engine on the same inputs.

    python benchmarks/attention.py                    the lengths, then the engines
    python benchmarks/attention.py --device cuda      bfloat16, with the kernels that are installed

Seconds are medians over rounds that take all lengths in turns, of CPU time on a CPU (one thread) and of wall time
elsewhere. Memory is the most that PyTorch's allocator has handed out at once during a run, besides inputs and
weights: counted by its profiler on a CPU, so code outside PyTorch and unused pages of the process are not in it.
Clips shorter than a dilated window (9 frames) cost less than the line through the longer ones.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kairos_env.runs import describe_machine
from kairos_env.world_model.attention.kernels import clip_attention
from kairos_env.world_model.attention.patterns import ClipPattern
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.engines import NAMES, why_not
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context

Run = Callable[[], object]
CLIPS = {
    "frame windows": ClipPattern("swa", 13, 48, 8, history=1, restrict_history=True),
    "dilated": ClipPattern("dswa", 13, 48, 8, history=1, restrict_history=True),
    "actions in view": ClipPattern("swa", 13, 48, 8, history=1, actions_see_future=True, video_sees_actions=True),
    "token windows": ClipPattern("swa", 13, 48, unit="token"),
    "dilated tokens": ClipPattern("dswa", 13, 48, unit="token"),
}


class Fit(NamedTuple):
    """How a cost grows: R^2 of the best straight line, and the exponent between the two longest clips."""

    straight: float
    exponent: float


def keep_freed_pages() -> None:
    """Asks glibc not to hand freed memory back: fetching the pages anew costs more, the longer the tensors are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    for parameter in (-1, -3) if mallopt else ():  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(parameter, 2**30)


def fit(lengths: Sequence[int], costs: Sequence[float]) -> Fit:
    x, y = np.array(lengths, float), np.array(costs, float)
    rest = y - np.polyval(np.polyfit(x, y, 1), x)
    return Fit(1 - (rest @ rest) / ((y - y.mean()) @ (y - y.mean())), np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2]))


def seconds(runs: Mapping[int, Run], device: torch.device, rounds: int) -> list[float]:
    """The median of each run; the first round warms up."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken: dict[int, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            began = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken[key].append(clock() - began)
    return [float(np.median(each[1:])) for each in taken.values()]


def peak_mib(run: Run, device: torch.device) -> float:
    """The most memory that ``run`` holds at once."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))) / 2**20


def draw(p: ClipPattern, heads: int, width: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v (1, T, H, K)."""
    rng = torch.Generator().manual_seed(0)
    shape = (1, p.video + p.actions, heads, width)
    return [torch.randn(shape, generator=rng).to(device, dtype) for _ in range(3)]


def layer(kind: str, frames: int, options: argparse.Namespace) -> Run:
    """One softmax layer without its projections."""
    p = ClipPattern(kind, frames, (options.cells // 2) ** 2)
    return partial(clip_attention, *draw(p, 4, 16, options.device, options.dtype), p)


def step(config: WorldActionConfig, frames: int, options: argparse.Namespace) -> Run:
    """One evaluation of the whole video transformer."""
    model = WorldActionModel.from_release(config, device=options.device, dtype=options.dtype)
    shape = (1, frames, config.latent_channels, options.cells, options.cells)
    latents = torch.zeros(shape, device=options.device, dtype=options.dtype)
    sigma = torch.full((1, frames), 0.5, device=options.device)
    context = Context(torch.zeros(1, 16, config.text_dim, device=options.device, dtype=options.dtype))
    return partial(model.velocity, latents, sigma, context)


def print_growth(title: str, runs: Mapping[str, Mapping[int, Run]], options: argparse.Namespace) -> None:
    """A table of seconds and memory against the length, one pair of columns for each of ``runs``."""
    tokens = (options.cells // 2) ** 2
    with torch.no_grad():
        times = {name: seconds(each, options.device, options.rounds) for name, each in runs.items()}
        memory = {name: [peak_mib(run, options.device) for run in each.values()] for name, each in runs.items()}
    print(f"\n{title}\n{'frames':>6} {'tokens':>6}" + "".join(f" | {name + ' ms':>12} {'MiB':>7}" for name in runs))
    for i, frames in enumerate(options.frames):
        cells = (f" | {1e3 * times[name][i]:12.2f} {memory[name][i]:7.2f}" for name in runs)
        print(f"{frames:6} {frames * tokens:6}" + "".join(cells))
    for what, costs in (("time", times), ("memory", memory)):
        for name, each in costs.items():
            straight, exponent = fit(options.frames, each)
            print(f"  {what} of {name}: straight line R^2 {straight:.5f}, exponent at the end {exponent:.2f}")


def forward_backward(leaves: list[Tensor], p: ClipPattern, engine: str) -> None:
    clip_attention(*leaves, p, engine).sum().backward()


def print_engines(options: argparse.Namespace) -> None:
    """Milliseconds of every engine that runs here, forward and with gradients, and its distance from ``dense``."""
    legal = [name for name in NAMES["attention"] if not why_not(name, options.device, options.dtype)]
    print(f"\nengines, H4 K64, {options.dtype}: ms forward | forward + backward | largest error against float64")
    for title, p in CLIPS.items():
        print(f"{title}: {p.frames} frames of {p.tokens} tokens, {p.actions} actions")
        inputs = draw(p, 4, 64, options.device, options.dtype)
        exact = clip_attention(*(x.double() for x in inputs), p, "dense")
        leaves = [x.clone().requires_grad_() for x in inputs]
        for name in legal:
            run = partial(clip_attention, *inputs, p, name)
            try:
                error = (run().double() - exact).abs().max().item()
                (forward,) = seconds({0: run}, options.device, options.rounds)
            except ValueError as reason:
                print(f"  {name:6} {reason}")
                continue
            try:
                (both,) = seconds({0: partial(forward_backward, leaves, p, name)}, options.device, options.rounds)
                backward = f"{1e3 * both:8.2f}"
            except ValueError:
                backward = "    none"
            print(f"  {name:6} {1e3 * forward:8.2f} | {backward} | {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[13, 21, 29, 37, 45, 53, 61, 69])
    parser.add_argument("--cells", type=int, default=20, help="latent height and width; 2 x 2 cells are a token")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    options.dtype = torch.float32 if options.device.type == "cpu" else torch.bfloat16
    torch.set_num_threads(1)
    keep_freed_pages()
    print(f"{describe_machine()['processor']}, torch {torch.__version__}, {options.device}, {options.dtype}")

    kinds = {"sliding": "swa", "dilated": "dswa", "full": "fa"}
    runs = {name: {f: layer(kind, f, options) for f in options.frames} for name, kind in kinds.items()}
    print_growth("one attention layer, 4 heads of 16", runs, options)

    ours = miniature("4b", layers=4)
    full = dataclasses.replace(ours, video=dataclasses.replace(ours.video, pattern=("fa",)))
    configs = {"hybrid": ours, "full": full}
    runs = {name: {f: step(config, f, options) for f in options.frames} for name, config in configs.items()}
    print_growth("one step of the transformer, 4 layers 64 wide", runs, options)
    print_engines(options)


if __name__ == "__main__":
    main()
