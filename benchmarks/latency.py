"""What the modes of the 4B model cost, and how near a device comes to that: ``python benchmarks/latency.py``.

First the analytic costs at full size. Then measured times: on CUDA at full size with random weights, on a CPU at a
reduced width (the ratios between modes hold there, the seconds do not). "floor" divides the analytic operations by
the rate that this device reached, in the same run, on a plain matrix product and on plain attention.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import torch

from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.published import memory as cost
from kairos_env.world_model.published.releases import get_release
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

H200 = 989e12, 4.8e12  # dense bfloat16 operations and bytes a second, of the data sheet
MODES = {"4b-libero": (224, 448), "4b-robotwin": (384, 320)}
CLIPS = {"4b-robot": (480, 640, 81), "4b-720p": (704, 1280, 81)}


def reduced(config: WorldActionConfig) -> WorldActionConfig:
    """The same structure, 8 layers of width 256: milliseconds on one core."""
    video = dataclasses.replace(
        config.video, dim=256, heads=4, head_dim=64, layers=8, ffn_dim=1024, delta_heads=4, delta_head_dim=64
    )
    action = config.action and dataclasses.replace(config.action, dim=104, ffn_dim=408)
    return dataclasses.replace(config, video=video, action=action, text_dim=256)


def print_costs() -> None:
    peaks = f"{H200[0] / 1e12:.0f} TFLOP/s and {H200[1] / 1e12:.1f} TB/s"
    print(f"analytic, full size; floor of {peaks} (an H200's data sheet)")
    print(f"{'':<44}{'TFLOP':>10}{'linear':>9}{'attention':>11}{'delta':>8}{'GB':>9}{'floor ms':>10}")
    for release, (height, width) in MODES.items():
        config = get_release(release)
        tokens = cost.grid(config, 1, height, width)[1]
        print_cost(f"{release}: prefill, {tokens} tokens", cost.video_pass(config, 1, tokens))
        print_cost(f"{release}: one action step, 32 actions", cost.action_pass(config, 32, tokens))
        print_cost(f"{release}: action-only, 10 steps", cost.action_only(config, height, width, 10, 32))
        print_cost(f"{release}: joint, 9 frames, 10 steps", cost.joint(config, 9, height, width, 10, 32))
    for release, (height, width, frames) in CLIPS.items():
        config = get_release(release)
        step = cost.generation(config, frames, height, width, 1, guidance=False)
        print_cost(f"{release}: one step, {height}x{width}x{frames}", step)
        memory = cost.estimate_memory(config, frames, height, width, torch.bfloat16)
        print(f"{'':<4}about {memory / 2**30:.0f} GiB in bfloat16, without tokenizer and text encoder")


def print_cost(name: str, c: cost.Cost) -> None:
    print(
        f"{name:<44}{c.operations / 1e12:>10.2f}{c.linear / 1e12:>9.2f}{c.attention / 1e12:>11.2f}"
        f"{c.delta / 1e12:>8.2f}{c.bytes / 1e9:>9.1f}{1e3 * c.floor(*H200):>10.2f}"
    )


def seconds(function: Callable[[], object], device: torch.device, budget: float, least: int = 5) -> list[float]:
    """Times of repeated calls after two that warm up."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least + 2 or time.perf_counter() - begin < budget:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[2:]


def reached_rates(model: WorldActionModel, tokens: int, budget: float) -> tuple[float, float]:
    """Operations a second of this device: a product of the model's own shape, and attention without a mask."""
    video, device = model.config.video, model.device
    x = torch.randn(max(tokens, 1024), video.dim, device=device, dtype=model.dtype)
    weight = torch.randn(video.dim, video.ffn_dim, device=device, dtype=model.dtype)
    product = 2 * x.numel() * video.ffn_dim / min(seconds(lambda: x @ weight, device, budget))
    length = max(tokens, 1024)
    q = torch.randn(1, video.heads, length, video.head_dim, device=device, dtype=model.dtype)
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)
    attention = 4 * video.heads * video.head_dim * length**2 / min(seconds(attend, device, budget))
    return product, attention


def floor(c: cost.Cost, rates: tuple[float, float]) -> float:
    return (c.linear + c.delta) / rates[0] + c.attention / rates[1]


def quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def measure_modes(release: str, device: torch.device, full: bool, budget: float) -> None:
    config = get_release(release) if full else reduced(get_release(release))
    model = WorldActionModel.from_release(config, device=device, dtype=torch.bfloat16 if full else torch.float32)
    height, width = MODES[release]
    observed = torch.randn(1, 1, 16, height // 8, width // 8, device=device, dtype=model.dtype)
    words = torch.randn(1, cost.CONTEXT_TOKENS - 1, config.text_dim, device=device, dtype=model.dtype)
    context = model.condition(Context(words), torch.zeros(1, config.proprio_dim))
    act = seconds(lambda: model.act(observed, context, steps=10), device, budget)
    both = seconds(lambda: model.joint(observed, context, frames=9, steps=10), device, budget, least=3)
    rates = reached_rates(model, cost.grid(config, 1, height, width)[1], budget / 4)
    least = floor(cost.action_only(config, height, width, 10, 32), rates)
    alone, together = statistics.median(act), statistics.median(both)
    print(
        f"{release}: action-only p50 {1e3 * alone:.1f} ms, p99 {1e3 * quantile(act, 0.99):.1f} ms ({len(act)} runs), "
        f"{alone / least:.1f} x floor; joint {1e3 * together:.0f} ms; joint / action-only {together / alone:.1f}"
    )


def measure_step(release: str, device: torch.device, full: bool, budget: float) -> None:
    config = get_release(release) if full else reduced(get_release(release))
    height, width, frames = CLIPS[release] if full else (128, 160, 81)
    model = WorldActionModel.from_release(config, device=device, dtype=torch.bfloat16 if full else torch.float32)
    latent_frames, tokens = cost.grid(config, frames, height, width)
    latents = torch.randn(1, latent_frames, 16, height // 8, width // 8, device=device, dtype=model.dtype)
    sigma = torch.ones(1, latent_frames, device=device)
    context = Context(torch.randn(1, cost.CONTEXT_TOKENS, config.text_dim, device=device, dtype=model.dtype))
    times = seconds(lambda: model.velocity(latents, sigma, context), device, budget, least=3)
    rates = reached_rates(model, latent_frames * tokens if full else 1024, budget / 4)
    least = floor(cost.video_pass(config, latent_frames, tokens), rates)
    best = statistics.median(times)
    print(f"{release}: one step at {height}x{width}x{frames} {best:.3f} s, {best / least:.2f} x floor of {least:.3f} s")


def measure_tokenizer(device: torch.device, full: bool, budget: float) -> None:
    vae = (VideoVAE.random() if full else VideoVAE.random(width=16)).to(device, torch.bfloat16 if full else None)
    for release, (height, width) in MODES.items():
        frame = torch.zeros(1, 1, 3, height, width, device=device, dtype=vae.dtype)
        times = seconds(functools.partial(vae.encode_video, frame), device, budget, least=3)
        print(f"{release}: tokenizer, one frame {1e3 * statistics.median(times):.1f} ms")


def measure_encoder(device: torch.device, budget: float) -> None:
    """Qwen2.5-VL of 7B with random weights, an instruction of 160 tokens without a picture."""
    from transformers import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    settings = Qwen2_5_VLTextConfig(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    )
    with torch.device(device):
        model = Qwen2_5_VLTextModel(settings).to(torch.bfloat16).eval()
    ids = torch.randint(0, 1000, (1, 160), device=device)
    with torch.no_grad():
        times = seconds(lambda: model(input_ids=ids, use_cache=False), device, budget, least=3)
    print(f"conditioning encoder, 7B, 160 text tokens {1e3 * statistics.median(times):.1f} ms (cached by instruction)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per figure")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--analytic", action="store_true", help="no measurement")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    full = device.type == "cuda"
    print_costs()
    if options.analytic:
        return
    print(f"\nmeasured on {torch.cuda.get_device_name(device) if full else 'CPU, width 256, 8 layers, float32'}")
    for release in MODES:
        measure_modes(release, device, full, options.seconds)
    for release in CLIPS:
        measure_step(release, device, full, options.seconds)
    measure_tokenizer(device, full, options.seconds)
    if full:
        measure_encoder(device, options.seconds)


if __name__ == "__main__":
    main()
