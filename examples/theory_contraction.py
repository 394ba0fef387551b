"""How fast the trained model's delta memory forgets, and two memories of it held to the bound.

python examples/theory_contraction.py [--short]
"""

import math
import sys

import numpy as np
import torch

from kairos_env import WorldModel
from kairos_env.eval.theory import forgetting as theory
from kairos_env.world_model.gated_delta_net import GatedDeltaNet

number, frames = (2, 2) if "--short" in sys.argv else (48, 24)
torch.set_num_threads(1)
model = WorldModel.from_pretrained("kairos-tiny")
clips = {
    "imagined, random actions": theory.imagined_clips(model, model.starts[:number], frames, policy=False),
    "imagined, own policy": theory.imagined_clips(model, model.starts[:number], frames, policy=True),
    "recorded": theory.recorded_clips(model, theory.unseen_episodes(model, number, frames)),
}

print("alpha: median, 99 % quantile and largest, of a token and of a frame; share of tokens with alpha + beta >= 1")
for name, of in clips.items():
    print(f"{name}: {len(of.latents)} clips of {of.frames} frames of {model.frame_tokens} tokens")
    for r in theory.forgetting(model, of):
        token, frame = (" ".join(f"{x:.4f}" for x in alphas) for alphas in (r.token, r.frame))
        life = r.half_life.format(4)
        print(f"  layer {r.layer} head {r.head}: {token} | {frame} | {r.lemma_3_fails:.0%} | half-life {life} frames")

for layer in theory.delta_layers(model):
    gap = theory.divergence(model, of, layer, tokens=2 * model.frame_tokens)
    print(f"two memories of layer {layer} read the recorded frames; error and bound, medians of the heads")
    for tokens in (1, 4, model.frame_tokens, 2 * model.frame_tokens):
        error, bound = (np.median(x[:, tokens - 1], 0) for x in (gap.error, gap.bound))
        print(f"  after {tokens:2d} tokens:", *(f"{e:.5f} <= {b:.5f};" for e, b in zip(error, bound)))
    print(f"  largest of error - bound: {np.max(gap.error - gap.bound):.0e}")

torch.manual_seed(0)
fresh = GatedDeltaNet(dim=1, heads=100_000, head_k_dim=1)
life = -math.log(2) / theory.log_decay(fresh, torch.zeros(1))
for tokens in (model.frame_tokens, 392, 480):
    print(f"half-life of at least {tokens} tokens before training: {(life >= tokens).double().mean():.1%} of the heads")
