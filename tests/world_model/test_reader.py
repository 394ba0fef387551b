"""Objects seen in latents."""

from __future__ import annotations

import torch

from kairos_env.world_model.reader import ObjectReader


def spots(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (B, 1, 2, 8, 8) with a blurred spot in each channel, and where they are (B, 1, 2, 3), the third 0."""
    generator = torch.Generator().manual_seed(seed)
    places = 2 * torch.rand(count, 1, 2, 3, generator=generator) - 1
    places[..., 2] = 0
    row, column = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    apart = (places[..., 0, None, None] - row).square() + (places[..., 1, None, None] - column).square()
    return (-apart / 0.1).exp(), places


def test_places_between_cells_are_learnt_from_few_frames_and_the_error_is_expected() -> None:
    torch.manual_seed(0)
    reader = ObjectReader(2, 1, 2, width=16)
    optimiser = torch.optim.Adam(reader.parameters(), 1e-2)
    latents, places = spots(128, 0)
    for _ in range(120):
        seen = reader(latents, latents.new_zeros(128, 1, 1))
        made = (seen.objects - places).square().sum(-1)
        loss = (seen.objects - places).abs().mean() + 0.05 * (made.detach() * (-seen.errors).exp() + seen.errors).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    latents, places = spots(256, 1)
    with torch.no_grad():
        seen = reader(latents, latents.new_zeros(256, 1, 1))
    astray = (seen.objects - places).square().sum(-1).mean().sqrt()
    assert astray < 0.1  # a cell is 0.29 wide
    assert 0.5 * astray < (0.5 * seen.errors).exp().mean() < 2 * astray


def test_positions_of_every_frame_are_its_own_and_precise_under_bfloat16() -> None:
    torch.manual_seed(0)
    reader = ObjectReader(2, 1, 2, width=16).eval()
    latents, _ = spots(6, 2)
    proprio = torch.randn(6, 1, 1)
    with torch.no_grad():
        alone = reader(latents, proprio)
        clip = reader(latents.view(2, 3, 2, 8, 8), proprio.view(2, 3, 1))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = reader(latents, proprio)
    torch.testing.assert_close(clip.objects.view_as(alone.objects), alone.objects)
    torch.testing.assert_close(clip.errors.view_as(alone.errors), alone.errors)
    assert rounded.objects.dtype == torch.float32
    torch.testing.assert_close(rounded.objects, alone.objects, atol=0.01, rtol=0)
