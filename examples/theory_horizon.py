"""How imagination's error grows, with the delta rule's memory, with one frame of it, and without.

python examples/theory_horizon.py [--short]
"""

import sys

import torch

from kairos_env import WorldModel
from kairos_env.eval import statistics
from kairos_env.eval.theory.forgetting import KEPT, recorded_clips, rollout_error, unseen_episodes

number, contexts, horizons = (2, (1,), (1, 2)) if "--short" in sys.argv else (96, (1, 8), (1, 2, 4, 8, 16))
torch.set_num_threads(1)
model = WorldModel.from_pretrained("kairos-tiny")
episodes = unseen_episodes(model, number, max(contexts) + max(horizons) - 1)

for context in contexts:
    clips = recorded_clips(model, episodes, context)
    errors = {kept: rollout_error(model, clips, kept) for kept in KEPT}
    print(f"{context} observed frames, then imagined: squared error of the latents, {number} episodes")
    for kept, error in errors.items():
        print(f"  memory of {kept:12s}", *(statistics.mean(error[:, h - 1]).format(3) for h in horizons))
        if kept != "all":
            more = error - errors["all"]
            print(f"  {'more than all':22s}", *(statistics.mean(more[:, h - 1]).format(4) for h in horizons))
