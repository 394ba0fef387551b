"""What deployment gains and costs: ``python benchmarks/deploy.py``.

Decisions plain and compiled, weights in 8 and 4 bits with their error, one pass on one and on two processes. On CUDA
at full size with random weights (two processes need two GPUs); on a CPU at a reduced width, where only ratios count.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import socket
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.deploy.compile import compiled
from kairos_env.world_model.deploy.parallel import shard
from kairos_env.world_model.deploy.quantize import count_bytes, quantize
from kairos_env.world_model.published.releases import get_release
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.sampling import sample_actions
from kairos_env.world_model.text.context import Context

POLICY, CLIP = "4b-libero", "4b-robot"
WORDS = 40  # context tokens of a short instruction
STEPS, ACTIONS = 10, 32


def reduced(config: WorldActionConfig) -> WorldActionConfig:
    """The same structure, 8 layers of width 256."""
    video = dataclasses.replace(
        config.video, dim=256, heads=4, head_dim=64, layers=8, ffn_dim=1024, delta_heads=4, delta_head_dim=64
    )
    action = config.action and dataclasses.replace(config.action, dim=128, ffn_dim=512)
    return dataclasses.replace(config, video=video, action=action, text_dim=256)


def build(release: str, device: torch.device, dtype: torch.dtype) -> WorldActionModel:
    config = get_release(release)
    model = WorldActionModel.from_release(config if device.type == "cuda" else reduced(config), 0, device, dtype)
    head = model.transformer.video_dit.head.head.weight
    with torch.no_grad():  # zero before training
        head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    return model


def request(model: WorldActionModel) -> tuple[Tensor, Context]:
    """One picture of the LIBERO setting, an instruction, proprioception."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    observed = torch.randn(1, 1, 16, 28, 56, generator=generator)
    words = torch.randn(1, WORDS - 1, config.text_dim, generator=generator)
    proprio = torch.randn(1, config.proprio_dim, generator=generator)
    return observed.to(model.device, model.dtype), model.condition(Context(words), proprio)


def in_turns(functions: Sequence[Callable[[], object]], device: torch.device, runs: int) -> list[list[float]]:
    """Milliseconds of each call, one function after the other: a busy machine is then busy for all of them.

    On a CPU, time of this process alone.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(runs + 2):  # the first two warm up
        for function, own in zip(functions, times, strict=True):
            start = clock()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            own.append(1e3 * (clock() - start))
    return [own[2:] for own in times]


def decisions(device: torch.device, dtype: torch.dtype, runs: int) -> None:
    model = build(POLICY, device, dtype)
    observed, context = request(model)

    def reading_again() -> Tensor:
        """What a decision would be if every step read its context anew."""
        cache = model.prefill(observed, context)
        velocity = lambda actions, sigma: model.action_velocity(actions, sigma, context, cache)
        noise = torch.zeros(1, ACTIONS, model.config.action_dim, device=device, dtype=dtype)
        return sample_actions(velocity, noise, [1 - step / STEPS for step in range(STEPS + 1)])

    start = time.perf_counter()
    fast = compiled(model)
    plain, quick = (functools.partial(m.act, observed, context, STEPS, ACTIONS) for m in (model, fast))
    difference = (quick() - plain()).abs().max()
    print(f"a decision of {STEPS} steps and {ACTIONS} actions (compiled in {time.perf_counter() - start:.0f} s)")
    names = "context read at every step", "context read once", "compiled"
    for name, times in zip(names, in_turns([reading_again, plain, quick], device, runs), strict=True):
        worst = sorted(times)[min(len(times) - 1, int(0.99 * len(times)))]
        print(f"  {name:<28}{statistics.median(times):>9.1f} ms median{worst:>9.1f} ms p99")
    print(f"  largest difference of an action, compiled from plain: {float(difference):.1e}")


def bits(device: torch.device, runs: int) -> None:
    print("weights of the transformers, error of one joint pass (relative), a decision")
    generator = torch.Generator().manual_seed(2)
    video = torch.randn(1, 3, 16, 28, 56, generator=generator).to(device)
    chunk = torch.randn(1, ACTIONS, get_release(POLICY).action_dim, generator=generator).to(device)
    sigma, level = torch.tensor([[0.0, 0.7, 0.7]], device=device), torch.tensor([0.7], device=device)

    def velocity(of: WorldActionModel) -> Tensor:
        frames, actions = of.joint_velocity(video, sigma, chunk, level, request(of)[1])
        # equal shares of the error, however many numbers either has
        return torch.cat([(x.float() / x.float().norm()).flatten() for x in (frames, actions)])

    exact = velocity(build(POLICY, device, torch.float32))
    models, rows = [], []
    for scheme in (None, "int8", "int4"):
        model = build(POLICY, device, torch.float32).to(torch.bfloat16)
        error, against = float((velocity(model) - exact).norm() / exact.norm()), "float32"
        if scheme:
            report = quantize(model, scheme, functools.partial(velocity, model))
            error, against = report.error, "bfloat16"
        rows.append((scheme or "bfloat16", count_bytes(model.transformer) / 1e6, error, against))
        models.append(model)
    observed, context = request(models[0])
    acts = [functools.partial(model.act, observed, context, STEPS, ACTIONS) for model in models]
    for (name, size, error, against), times in zip(rows, in_turns(acts, device, runs), strict=True):
        print(f"  {name:<10}{size:>10.1f} MB   {error:.1e} from {against:<10}{statistics.median(times):>9.1f} ms")


def one_pass(device: torch.device, dtype: torch.dtype, share: bool, runs: int) -> tuple[Tensor, float]:
    """Velocity and milliseconds of one denoising step of a clip, 480 x 640 x 81 on CUDA, 128 x 160 x 49 on a CPU."""
    model = build(CLIP, device, dtype)
    model = shard(model) if share else model
    frames, rows, columns = (21, 60, 80) if device.type == "cuda" else (13, 16, 20)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, frames, 16, rows, columns, generator=generator).to(device)
    context = Context(torch.randn(1, WORDS, model.config.text_dim, generator=generator).to(device))
    sigma = torch.full((1, frames), 0.7, device=device)
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        velocity = model.velocity(latents, sigma, context)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return velocity, statistics.median(times[1:])


def worker(rank: int, kind: str, port: int, dtype: torch.dtype, runs: int) -> None:
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    together, shared = one_pass(device, dtype, True, runs)
    dist.barrier()
    if rank == 0:
        alone, single = one_pass(device, dtype, False, runs)
        error = (together.double() - alone.double()).norm() / alone.double().norm()
        print(
            f"one denoising step: one process {single:.0f} ms, two {shared:.0f} ms ({single / shared:.2f} times faster)"
        )
        print(f"  relative difference {float(error):.1e}")
    dist.barrier()
    dist.destroy_process_group()


def processes(device: torch.device, dtype: torch.dtype, runs: int) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        print("two processes: needs two GPUs, this machine has one")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (device.type, port, dtype, runs), nprocs=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=20, help="timed repetitions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    print(f"torch {torch.__version__}, {device.type}, {str(dtype).removeprefix('torch.')}")
    decisions(device, dtype, options.runs)
    bits(device, options.runs)
    processes(device, dtype, options.runs)


if __name__ == "__main__":
    main()
