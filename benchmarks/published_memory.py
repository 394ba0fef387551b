"""How much memory does a clip of the published models take on a GPU? ``python benchmarks/published_memory.py``.

Counted, not measured: one pass over the full clip runs with tensors that have shapes and no content, layer by layer at
the full width, and the bytes that are alive at once are added up. Kernels' scratch space and fragmentation come on top.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kairos_env.world_model import dit
from kairos_env.world_model.attention.whole_clip import Local
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.published.memory import weight_count
from kairos_env.world_model.published.passes import ClipPasses, build_transformer
from kairos_env.world_model.published.releases import get_release
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.tokenizers.wan_vae import decoding_bytes

GB = 1e9
# of the text encoder: all weights in bfloat16; the embedding of words and one decoder layer, which are there off-loaded
TEXT = {
    "qwen2.5-vl": (16.6 * GB, (152_064 * 3584 + 233_057_792) * 2),
    "qwen3.5": (4.5 * GB, 248_320 * 2048 * 2 + 0.2 * GB),
}
VAE = 126_892_531 * 2


class LiveTensors(TorchDispatchMode):
    """The most bytes of tensors alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@torch.no_grad()
def activations(config: WorldActionConfig, frames: int, height: int, width: int) -> int:
    """Peak bytes of one pass beside the weights; a layer frees what it made, so that one of each kind tells."""
    config = dataclasses.replace(config, video=dataclasses.replace(config.video, layers=4), action=None)
    config = dataclasses.replace(config, action_dim=0, proprio_dim=0)
    with FakeTensorMode():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        model = ClipPasses(config, build_transformer(config)).eval()
        torch.set_default_dtype(before)
        model.mixing = Local("sdpa")
        count = (frames - 1) // 4 + 1
        latents = torch.empty(1, count, 16, height // 8, width // 8, dtype=torch.bfloat16)
        context = Context(torch.empty(1, 128, config.text_dim, dtype=torch.bfloat16))
        with LiveTensors() as counter:
            model.velocity(latents, torch.empty(1, count), context)
    return counter.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", nargs="*", default=["4b-robot", "4b-3.1-robot", "4b-720p"])
    parser.add_argument("--whole-feed-forward", action="store_true", help="not in pieces, to see what these save")
    args = parser.parse_args()
    if args.whole_feed_forward:
        dit.PIECE = 2**40
    columns = zip(
        ("size", "transformer", "text", "a pass", "decoding", "whole", "off-loaded"), (16, 13, 7, 8, 10, 8, 12)
    )
    print(f"{'GB':14}" + "".join(f"{word:>{width}}" for word, width in columns))
    for name in args.releases:
        config = get_release(name)
        g = config.generation
        size = g.frames, g.height, g.width
        weights, (text, waiting) = 2 * sum(weight_count(config)), TEXT[config.text_encoder]
        a_pass, decoding = activations(config, *size), decoding_bytes(g.height, g.width)
        block = 2 * 183_734_312  # the larger kind
        whole = weights + text + VAE + max(a_pass, decoding)
        rest = weights - 2 * (24 * 104_921_600 + 8 * 183_734_312) if config.action is None else 0
        small = rest + waiting + max(block + a_pass, VAE + decoding)
        numbers = weights, text, a_pass, decoding, whole, small
        shown = "x".join(map(str, (g.height, g.width, g.frames)))
        print(f"{name:14}{shown:>16}" + "".join(f"{n / GB:{w}.1f}" for n, w in zip(numbers, (13, 7, 8, 10, 8, 12))))


if __name__ == "__main__":
    main()
