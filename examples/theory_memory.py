"""What a memory is worth in a world where the best possible prediction is known, and so is every error.

python examples/theory_memory.py [--short]        about ten minutes on one core
"""

import sys

import torch

from kairos_env.eval import statistics
from kairos_env.eval.theory import hidden_places as hp

SHORT = "--short" in sys.argv
seeds, steps, clips, horizons = (1, 10, 32, (1, 4)) if SHORT else (3, 2000, 1024, (2, 3, 5, 9, 17, 33))
torch.set_num_threads(1)
world, stacks = hp.HiddenPlaces(), {"window": ("swa", "swa"), "hybrid": ("swa", "gdn"), "delta": ("gdn", "gdn")}
window = hp.visible(stacks["window"])
predictors = {"Bayes, all": [world.predict], "Bayes, window": [lambda seen, x: world.predict(seen, x, window)]}
for name, kinds in stacks.items():
    torch.manual_seed(0)
    predictors[name] = [hp.train(world, hp.Predictor(world.places, kinds), steps, seed) for seed in range(seeds)]

seen, values = test = world.watch(clips, 80, seed=-1)
best, past = world.predict(seen, values[:, :-1]), slice(40, None)
print(f"least risk: {world.risk():.4f} from all frames, {world.risk(window):.4f} from frames {window} back")
print(f"{'':14s} risk on {clips} clips           excess over Bayes: mean, least, most of {seeds} seeds")
for name, models in predictors.items():
    with torch.no_grad():
        told = torch.stack([model(seen, values[:, :-1]) for model in models])
    risk = statistics.mean((told - values[:, 1:]).square().mean(0)[:, past].mean(1).numpy())
    excess = (told - best)[..., past].square().mean((1, 2))
    print(f"{name:14s} {risk.format(4)}  {excess.mean():.4f} {excess.min():.4f} {excess.max():.4f}")

print("squared error of imagined frames, by horizon", *horizons)
for name, models in predictors.items():
    films = torch.stack([hp.imagine(model, test, values.shape[1] - max(horizons)) for model in models])
    error = (films - values).square().mean(0)[:, -max(horizons) :].numpy()
    print(f"{name:14s}", *(statistics.mean(error[:, h - 1]).format(3) for h in horizons))

print("filter: rho, mean-square rate, xi, xi by Lemma 4, epsilon, memory error | excess <= rate, Theorem 2, Lemma 4")
for seed in range(seeds):
    torch.manual_seed(seed)
    b = hp.theorem_2(world, hp.train(world, hp.DeltaFilter(world.places), steps, seed, rate=3e-2), test)
    constants = (b.rho, b.rate, b.perturbation, b.lemma, b.readout, b.memory_error)
    bounds = b.of(b.rate, b.perturbation), b.of(b.rho, b.perturbation), b.of(b.rho, b.lemma)
    print(*(f"{x:.4f}" for x in constants), "|", f"{b.excess:.6f} <=", *(f"{x:.4f}" for x in bounds))
