"""A video tokenizer whose weights wait in the computer's memory and visit a device while they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kairos_env.world_model.tokenizers.tiling import Tiling
from kairos_env.world_model.tokenizers.wan_vae import PUBLISHED_DECODE_TILING, PUBLISHED_ENCODE_TILING, VideoVAE


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """While it lasts, a module is on the device."""
    module.to(device)
    try:
        yield
    finally:
        module.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()


class VisitingVAE:
    """A video tokenizer that is on the device only while it works."""

    def __init__(self, vae: VideoVAE, device: torch.device) -> None:
        self.vae, self.place = vae, device
        self.channels, self.spatial, self.temporal = vae.channels, vae.spatial, vae.temporal

    def tiled(
        self, encode: Tiling | None = PUBLISHED_ENCODE_TILING, decode: Tiling | None = PUBLISHED_DECODE_TILING
    ) -> VisitingVAE:
        """See `VideoVAE.tiled`."""
        return VisitingVAE(self.vae.tiled(encode, decode), self.place)

    def encode_video(self, video: Tensor) -> Tensor:
        """See `VideoVAE.encode_video`."""
        with visiting(self.vae, self.place):
            return self.vae.encode_video(video)

    def decode_video(self, latents: Tensor) -> Tensor:
        """See `VideoVAE.decode_video`."""
        with visiting(self.vae, self.place):
            return self.vae.decode_video(latents)
