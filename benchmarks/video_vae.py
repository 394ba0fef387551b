"""What do pixels cost? Seconds and memory of the video tokenizer, random weights, first frames and whole clips.

    python benchmarks/video_vae.py --device cuda                 the published width in bfloat16
    python benchmarks/video_vae.py --width 8 --scale 0.25        something for a CPU

Memory is the peak beside the weights, on a GPU only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kairos_env.world_model.tokenizers.wan_vae import WIDTH, VideoVAE, decoding_bytes

# (what, height, width, frames)
CASES = (("LIBERO", 224, 448, 1), ("RoboTwin", 384, 320, 1), ("480p", 480, 640, 81), ("720p", 704, 1280, 81))


def consume(vae: VideoVAE, latents: Tensor) -> None:
    for _ in vae.decode_pieces(latents):
        pass


def measure(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds, and peak gigabytes beside what was there before."""
    run()
    seconds, before = [], 0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    return sorted(seconds)[len(seconds) // 2], peak / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--scale", type=float, default=1, help="of the picture's sides")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae = VideoVAE.random(args.width).to(device, dtype)

    print(f"{'case':10}{'':>16}{'tiles':>8}{'encode s':>10}{'decode s':>10}{'encode GB':>11}{'decode GB':>11}")
    for name, height, width, frames in CASES:
        height, width = (int(side * args.scale) // 8 * 8 for side in (height, width))
        video = torch.rand(1, frames, 3, height, width, device=device, dtype=dtype) * 2 - 1
        for tiles, model in (("no", vae), ("yes", vae.tiled())):
            latents = model.encode_video(video)
            encode = measure(partial(model.encode_video, video), device, args.repeats)
            decode = measure(partial(consume, model, latents), device, args.repeats)
            size = f"{height}x{width}x{frames}"
            print(f"{name:10}{size:>16}{tiles:>8}{encode[0]:10.3f}{decode[0]:10.3f}{encode[1]:11.2f}{decode[1]:11.2f}")
        if args.width == WIDTH:
            print(f"{'':10}{'estimated decode, no tiles':>24}{decoding_bytes(height, width, dtype) / 1e9:42.2f}")


if __name__ == "__main__":
    main()
