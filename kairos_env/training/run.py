"""One training run in a folder of its own: data -> tokenizer -> world-action model, resumable at any step."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from kairos_env.records import Episode, RobotSpec
from kairos_env.runs import write_json
from kairos_env.training.batches import Clips, require_own_latents
from kairos_env.training.config import TrainConfig
from kairos_env.training.data import split
from kairos_env.training.tokenizer import train_tokenizer
from kairos_env.training.transfer import go_on_from
from kairos_env.training.validation import Validation
from kairos_env.training.world_action import train_world_action
from kairos_env.world_model.checkpoint import load, save
from kairos_env.world_model.config import get_preset
from kairos_env.world_model.model import WorldModel


def train(
    config: TrainConfig,
    episodes: Sequence[Episode],
    spec: RobotSpec,
    tasks: Mapping[str, str],
    weights: Sequence[float] | None = None,
    say: Callable[[str], None] = lambda text: None,
    pictures: Callable[[int], Episode] | None = None,
) -> Path:
    """Runs both stages and writes the finished model to ``<out>/model``.

    Args:
        episodes: all of them; ``validation + starts``, evenly spaced over the sequence, are held out of training. Those
            that have latents instead of pictures need ``init``, the model that made the latents.
        tasks: task name -> instruction.
        weights: how often each episode is drawn, relative to the others.
        say: is told what a model that goes on from another took over (also in ``<out>/transfer.json``), and what the
            data do not teach.
        pictures: number of a held-out episode -> the same with pictures, for ``episodes`` that have latents instead.

    Raises:
        ValueError: too few episodes, a folder of another run, or latents of another model.

    Returns:
        the folder of the finished model, for `WorldModel.from_pretrained`.
    """
    training, held_out, first_frames = split(len(episodes), config.validation, config.starts)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    _describe(config, folder, len(episodes))
    learned = [episodes[i] for i in training]
    look = pictures or episodes.__getitem__
    validation = [look(i) for i in held_out]
    starts = [look(i).observation(0) for i in first_frames]
    if not (all(e.images for e in validation) and all(o.images for o in starts)):
        raise ValueError("held-out episodes need pictures, for film strips and as starts: pass `pictures`")

    source = load(config.init, config.device) if config.init else None
    if source is not None:
        require_own_latents(source, learned, config.init)
    elif any(episode.latents for episode in learned):
        raise ValueError("cached latents are of use only to the model that made them: go on from it with `init`")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        model = WorldModel(source.config if source else get_preset(config.preset), spec, tasks).to(config.device)
    if source is None:
        train_tokenizer(model, learned, config, folder)
    else:
        transfer = go_on_from(source, model, learned, config.init)
        write_json(folder / "transfer.json", dataclasses.asdict(transfer))
        say(str(transfer))
    model.tokenizer.requires_grad_(False)

    clips = Clips(model, learned, weights and [weights[i] for i in training])  # all latents once
    for missing in clips.untaught():
        say(missing)
    train_world_action(model, clips, Validation(model, validation, config, folder / "strips"), config, folder)
    whole = [start for start in starts if len(start.images) == len(spec.cameras)]
    finished = WorldModel(model.config, spec, tasks, model.statistics, whole)
    finished.load_state_dict(model.state_dict())
    save(finished, folder / "model", getattr(torch, config.weights))
    return folder / "model"


def _describe(config: TrainConfig, folder: Path, episodes: int) -> None:
    """Writes the resolved configuration and versions; a different configuration in the folder is an error."""
    versions = {n: importlib.metadata.version(n) for n in ("torch", "numpy", "gymnasium", "einops")}
    resolved = dataclasses.asdict(config) | {"episodes": episodes}
    path = folder / "config.json"
    if path.exists():
        # a key that the run does not know yet had its default
        old = dataclasses.asdict(TrainConfig()) | json.loads(path.read_text())["config"]
        changed = {k: (old.get(k), v) for k, v in resolved.items() if old.get(k) != json.loads(json.dumps(v))}
        if changed:
            raise ValueError(
                f"{folder} holds a run with another configuration (there, here): {changed}. Choose another `out`, "
                "or resume with the same settings."
            )
        return
    write_json(
        path,
        {
            "config": resolved,
            "versions": versions | {"python": platform.python_version()},
            "threads": torch.get_num_threads(),
        },
    )
