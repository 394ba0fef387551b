"""Stored outputs of the bundled models and of a seeded miniature of each published release: a net under rebuilding.

``python tests/stored_outputs.py`` writes them anew, which is right only where a model is meant to do something else.
Inputs are drawn from seeds, weights of the miniatures from their names; of each output a sample of elements is stored.
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import torch
from paths import TESTS
from safetensors.torch import save_file
from torch import Tensor

from kairos_env.records import Array
from kairos_env.world_model.config import WorldActionConfig
from kairos_env.world_model.model import WorldModel
from kairos_env.world_model.published.releases import miniature
from kairos_env.world_model.published.world_action import WorldActionModel
from kairos_env.world_model.text.context import Context
from kairos_env.world_model.tokenizers.wan_vae import VideoVAE

BUNDLED = ("kairos-tiny", "kairos-libero")
MINIATURES = ("4b", "4b-robot", "4b-robot-distilled", "4b-720p", "4b-3.1-robot", "4b-libero", "4b-robotwin")
FOLDER = TESTS / "data"
MOST = 96  # stored elements of an output
STEPS = 13  # imagined decisions, more than the dilated window reaches


def stored_file(name: str) -> Path:
    return FOLDER / f"outputs-{name}.safetensors"


def sample(x: Tensor | Array) -> Tensor:
    """At most `MOST` elements, evenly spread."""
    flat = torch.as_tensor(x).detach().float().flatten()
    index = torch.linspace(0, len(flat) - 1, min(MOST, len(flat)), dtype=torch.float64).round().long()
    return flat[index].clone()


def world_model_outputs(model: WorldModel) -> dict[str, Tensor]:
    """The verbs of a bundled model, batch 2."""
    rng = np.random.default_rng(0)
    low, high = model.spec.action_low, model.spec.action_high
    actions = rng.uniform(low, high, (2, STEPS, len(low))).astype(np.float32)
    first = [model.starts[0], model.starts[-1]]
    second = [model.starts[1], model.starts[-2]]
    found: dict[str, Tensor | Array] = {"encode": model.encode(first)}
    state = model.observe(first, seeds=[3, 4])
    found |= {"observed_reward": state.reward, "observed_success": state.success}
    found["act"] = model.act(state, steps=4)
    chunk, future = model.joint(state, steps=2)
    found |= {"joint_actions": chunk, "joint_video": future}
    found["infer_actions"] = model.infer_actions(state, [second] * model.chunk_length, steps=2)
    found["one_step"] = model.step(state, actions[:, 0], steps=3).latent
    roll = model.imagine(state, actions)
    names = ("latents", "proprio", "reward", "success", "uncertainty")
    found |= {f"imagined_{name}": getattr(roll, name) for name in names}
    for camera, picture in model.decode(roll.latents[:, -1]).items():
        found[f"decoded_{camera}"] = picture
    found["act_later"] = model.act(roll.state)
    seen = model.observe(second, model.observe(first, seeds=[3, 4]), actions[:, 0])
    found |= {"act_seen": model.act(seen), "seen_reward": seen.reward}
    for index in (0, 3):
        memory = roll.state.layers[index]
        found |= {f"keys_{index}": torch.stack(memory.keys, 1), f"values_{index}": torch.stack(memory.values, 1)}
    return {name: sample(value) for name, value in found.items()}


class Hashed:
    """Context encoder whose tokens are drawn from the prompt's hash; pictures are ignored."""

    def __init__(self, text_dim: int) -> None:
        self.text_dim = text_dim

    def encode(self, prompts, images=None) -> Context:  # type: ignore[no-untyped-def]
        draws = [drawn((5, self.text_dim), zlib.crc32(prompt.encode())) for prompt in prompts]
        return Context(torch.stack(draws))


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(name: str) -> WorldActionConfig:
    """The release in miniature, for clips of 9 pictures of 32 x 48 pixels."""
    config = miniature(name)
    generation = dataclasses.replace(config.generation, height=32, width=48, frames=9)
    return dataclasses.replace(config, generation=generation)


def seeded_weights(module: torch.nn.Module) -> None:
    """Every parameter from its name: zero-initialised heads would hide differences."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "A_log" not in name and "dt_bias" not in name:
                spread = 0.5 if weight.ndim == 1 else 1.5 * weight[0].numel() ** -0.5
                weight.copy_(spread * drawn(tuple(weight.shape), zlib.crc32(name.encode())) + 0.5 * ("norm" in name))
            elif "A_log" in name:
                weight.copy_(torch.linspace(-1, 2, weight.numel()))
            else:
                weight.copy_(torch.linspace(-4, -2, weight.numel()))


def seeded_miniature(name: str) -> WorldActionModel:
    config = small(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VideoVAE.random(width=8)
    model = WorldActionModel.from_release(config, tokenizer=vae, encoder=Hashed(config.text_dim))
    seeded_weights(model.transformer)
    return model


def release_outputs(model: WorldActionModel) -> dict[str, Tensor]:
    """Whole clips, chunks and single passes of a miniature."""
    config = model.config
    context = model.context(["lift the cube"])
    latents = drawn((1, 12, config.latent_channels, 4, 6), 1)
    sigma = torch.full((1, 12), 0.7)
    image = (drawn((32, 48, 3), 2).clamp(-2, 2) * 60 + 128).byte().numpy()
    distilled = config.generation.sampler == "dmd"
    steps, words = None if distilled else 2, {"prompt_prefix": "", **({} if distilled else {"negative_prompt": ""})}
    found: dict[str, Tensor | Array] = {
        "velocity": model.velocity(latents, sigma, context),
        "velocity_observed": model.velocity(latents, sigma * (torch.arange(12) > 0), context, 1),
        "generate": model.generate("lift the cube", image, steps=steps, progress=False, **words).frames,
    }
    if config.action is not None:
        context = model.context(["lift the cube"], proprio=drawn((1, config.proprio_dim), 3))
        other = model.context(["blurred"], proprio=drawn((1, config.proprio_dim), 3))
        one, actions = latents[:, :1], drawn((1, 8, config.action_dim), 4)
        chunk, video = model.joint(one, context, 9, 2, 8, 5)
        later, guided_video = model.joint(one, context, 9, 2, 8, 5, True, other, 2.0)
        found |= {
            "act": model.act(one, context, 3, 8, 5),
            "joint_actions": chunk,
            "joint_video": video,
            "joint_later": later,
            "joint_guided": guided_video,
            "imagine": model.imagine(one, actions, context, 9, 2, 5),
            "infer_actions": model.infer_actions(latents[:, :3], context, 2, 8, 5),
        }
    return {name: sample(value) for name, value in found.items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for name in BUNDLED:
        save_file(world_model_outputs(WorldModel.from_pretrained(name)), stored_file(name))
    for name in MINIATURES:
        save_file(release_outputs(seeded_miniature(name)), stored_file(name))


if __name__ == "__main__":
    main()
